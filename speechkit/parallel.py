"""Models wrapped for training over several processes, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import distributed as dist
from torch import nn
from torch.optim import Optimizer

__all__ = ["no_sync", "unwrap", "wrap"]

STRATEGIES = ("ddp", "fsdp")


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


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
    if _alone() or not any(p.requires_grad for p in parameters):
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


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP and ``torch.compile``; any other model as it is.

    Parameters
    ----------
    model : nn.Module
        A model, wrapped or not.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> unwrap(model) is model
    True
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
