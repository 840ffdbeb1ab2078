"""Models on their device, wrapped for training over several processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from speechkit.distributed import all_reduce_sum, world_size

__all__ = ["average_gradients", "check_device", "no_sync", "wrap"]

STRATEGIES = ("ddp", "fsdp")


def check_device(name: str) -> str:
    """Give back the name of a device, if this machine has it.

    Raises
    ------
    ValueError
        If it cannot be used here, saying why.

    Examples
    --------
    >>> check_device("cpu")
    'cpu'
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {name}: not usable here ({reason}); try cpu") from error
    return name


def wrap(
    model: nn.Module,
    strategy: str = "ddp",
    *,
    optimizers: Iterable[Optimizer] = (),
    find_unused_parameters: bool = False,
) -> nn.Module:
    """Prepare a model, already on its device, for training over the ranks.

    Parameters
    ----------
    model : nn.Module
        The model; ``fsdp`` changes it in place.
    strategy : str
        ``ddp``: each rank holds all weights. ``fsdp``: each holds a part
        (:mod:`speechkit.sharding`).
    optimizers : Iterable[Optimizer]
        Those made before over the model's parameters; ``fsdp`` puts its own in their place.
    find_unused_parameters : bool
        For DDP with parameters that take no part in some steps.

    Returns
    -------
    nn.Module
        The wrapped model; the model itself in one process.

    Raises
    ------
    ValueError
        For an unknown strategy.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> wrap(model) is model
    True
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")
    parameters = list(model.parameters())
    if world_size() == 1 or not any(p.requires_grad for p in parameters):
        return model
    if strategy == "fsdp":
        from speechkit.sharding import shard

        shard(model, optimizers)
        return model
    device = parameters[0].device
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=find_unused_parameters,
    )


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over the ranks, for a module that `wrap` did not wrap.

    All ranks must call it for the same parameters, and each of these have a gradient on all ranks
    or on none.

    Examples
    --------
    >>> parameter = nn.Parameter(torch.ones(2))
    >>> parameter.sum().backward()
    >>> average_gradients([parameter])
    >>> parameter.grad.tolist()
    [1.0, 1.0]
    """
    ranks = world_size()
    if ranks == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    # One message for all: small ones cost as much as large ones.
    means = all_reduce_sum(torch.cat([g.flatten() for g in gradients])) / ranks
    for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


@contextmanager
def _no_sharded_sync(model: Any) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def no_sync(model: Any) -> AbstractContextManager[None]:
    """Let gradients stay on each rank inside the block: all but the last of accumulated batches.

    Forward and backward both belong in the block.

    Parameters
    ----------
    model : nn.Module
        What :func:`wrap` gave, compiled or not.

    Examples
    --------
    >>> with no_sync(nn.Linear(1, 1)):
    ...     pass
    """
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        return inner.no_sync()
    if hasattr(inner, "set_requires_gradient_sync"):
        return _no_sharded_sync(inner)
    return nullcontext()


def wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given, so that a time is that of the work.

    Examples
    --------
    >>> wait_for(torch.device("cpu"))  # nothing to wait for
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
