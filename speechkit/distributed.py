"""The few helpers that training needs on top of ``torch.distributed``.

Started by ``torchrun``, a process learns its place from the environment; started plainly, every
helper is the identity. Collective helpers must be called by all ranks alike.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch import distributed as dist

__all__ = [
    "Distributed",
    "all_reduce_sum",
    "any_rank",
    "barrier",
    "cleanup",
    "default_device",
    "gather_objects",
    "init",
    "is_main",
    "main_first",
    "rank",
    "session",
    "unwrap",
    "world_size",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Distributed:
    """The place of a process among those of the run.

    Attributes
    ----------
    rank, world_size : int
        Number of this process and of all.
    local_rank : int
        Number of this process on its machine.
    """

    rank: int
    world_size: int
    local_rank: int


def init(*, timeout_minutes: float = 30.0) -> Distributed:
    """Join the run that ``torchrun`` started; alone, be a run of one process.

    Each process of a machine gets a CUDA device of its own, where there are enough of them.

    Parameters
    ----------
    timeout_minutes : float
        How long a collective waits for a rank that does not come.

    Returns
    -------
    Distributed
        The place of this process.

    Raises
    ------
    RuntimeError
        When the environment names only part of a run.

    Examples
    --------
    >>> init()
    Distributed(rank=0, world_size=1, local_rank=0)
    """
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    size = int(found["WORLD_SIZE"] or 1)
    missing = [name for name, value in found.items() if value is None]
    if size == 1:
        return Distributed(rank=0, world_size=1, local_rank=0)
    if missing:
        raise RuntimeError(
            f"WORLD_SIZE={size} is set but {', '.join(missing)} is not: start the run with "
            "torchrun, or unset WORLD_SIZE"
        )
    place = Distributed(_number("RANK"), size, _number("LOCAL_RANK"))
    cuda = _enough_cuda()
    if cuda:
        torch.cuda.set_device(place.local_rank)
    if not dist.is_initialized():
        # gloo beside NCCL carries what lives on the CPU: counts, test rows, objects.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(minutes=timeout_minutes)
        )
    return place


def _number(name: str) -> int:
    return int(os.environ.get(name) or 0)


def _enough_cuda() -> bool:
    """Say whether each process of this machine has a CUDA device; the same on all of them."""
    return 0 < max(_number("LOCAL_WORLD_SIZE"), 1) <= torch.cuda.device_count()


def default_device() -> str:
    """Name the device of this process: its own CUDA device, or the CPU on a machine without.

    Returns
    -------
    str
        ``cpu``, or ``cuda:`` and the local rank.

    Raises
    ------
    RuntimeError
        When a machine has CUDA devices, but fewer than processes.

    Examples
    --------
    >>> default_device() in ("cpu", "cuda:0")
    True
    """
    if not torch.cuda.is_available():
        return "cpu"
    if not _enough_cuda():
        raise RuntimeError(
            f"{_number('LOCAL_WORLD_SIZE')} processes on a machine with "
            f"{torch.cuda.device_count()} CUDA devices: lower torchrun's --nproc_per_node, or run "
            "with --device cpu"
        )
    return f"cuda:{_number('LOCAL_RANK')}"


@contextmanager
def session() -> Iterator[Distributed]:
    """Be part of the run inside the block.

    After an error the block does not wait for the other ranks, so that ``torchrun`` sees this
    process end and stops them.

    Yields
    ------
    Distributed
        The place of this process.

    Examples
    --------
    >>> with session() as place:
    ...     place.world_size
    1
    """
    yield init()
    cleanup()


def cleanup() -> None:
    """Leave the run, when no wrapped model is in use any more; alone, do nothing.

    Examples
    --------
    >>> cleanup()
    """
    if _active():
        # A wrapped model in a reference cycle holds a group, whose threads would still run when
        # the interpreter goes down: gloo aborts the process then.
        gc.collect()
        dist.destroy_process_group()


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process in the run, 0 alone.

    Examples
    --------
    >>> rank()
    0
    """
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Return the number of processes of the run.

    Examples
    --------
    >>> world_size()
    1
    """
    return dist.get_world_size() if _active() else 1


def is_main() -> bool:
    """Say whether this is the process that writes files (rank 0).

    Examples
    --------
    >>> is_main()
    True
    """
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here.

    Examples
    --------
    >>> barrier()
    """
    if world_size() > 1:
        all_reduce_sum(0.0)  # unlike dist.barrier, needs no choice of device


@overload
def all_reduce_sum(x: Tensor) -> Tensor: ...
@overload
def all_reduce_sum(x: float) -> float: ...
def all_reduce_sum(x: Tensor | float) -> Tensor | float:
    """Add up a value over the ranks.

    Parameters
    ----------
    x : Tensor or float
        Of the same shape and type on each rank; numbers travel as float64.

    Returns
    -------
    Tensor or float
        The sum, outside autograd; ``x`` itself is unchanged.

    Examples
    --------
    >>> all_reduce_sum(2.5)
    2.5
    >>> all_reduce_sum(torch.tensor([1, 2])).tolist()
    [1, 2]
    """
    total = x.detach().clone() if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(total)
    return total if isinstance(x, Tensor) else float(total)


def any_rank(condition: bool) -> bool:
    """Say whether something holds on any rank, so that all of them act alike.

    Examples
    --------
    >>> any_rank(True), any_rank(False)
    (True, False)
    """
    return all_reduce_sum(float(condition)) > 0


def gather_objects(items: list[T]) -> list[T]:
    """Join the lists of all ranks, in the order of ranks.

    Parameters
    ----------
    items : list
        Anything that pickles (rows of a test); lengths may differ.

    Returns
    -------
    list
        The same on every rank.

    Examples
    --------
    >>> gather_objects([1, 2])
    [1, 2]
    """
    if world_size() == 1:
        return list(items)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


@contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 go through the block before the others, as for preparing data on a shared disk.

    Raises
    ------
    RuntimeError
        On the other ranks, when rank 0 failed inside the block.

    Examples
    --------
    >>> with main_first():
    ...     prepared = True
    """
    if world_size() == 1:
        yield
        return
    # A group of its own, since preparing a corpus may take longer than a collective may wait.
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=2))
    done = [True]
    try:
        if not is_main():
            dist.broadcast_object_list(done, src=0, group=patient)
            if not done[0]:
                raise RuntimeError("rank 0 failed in what it had to do first: see its error")
            yield
        else:
            done[0] = False
            try:
                yield
                done[0] = True
            finally:
                dist.broadcast_object_list(done, src=0, group=patient)
    finally:
        dist.destroy_process_group(patient)


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
