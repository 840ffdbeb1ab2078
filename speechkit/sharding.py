"""Fully sharded training (FSDP2): each rank holds a part of weights, gradients and their state.

The functions that give and take states work on any model: of one that is not sharded they give its
own ``state_dict``. All of them are collective for a sharded model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.optim import Optimizer

from speechkit.distributed import unwrap, world_size

__all__ = [
    "is_sharded",
    "load_model_state",
    "load_optimizer_state",
    "model_state",
    "optimizer_state",
    "shard",
]

# A block with fewer parameters is gathered faster with its neighbours than on its own.
MIN_BLOCK_PARAMETERS = 100_000


def shard(model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
    """Cut a model, already on its device, into one part a rank, in place.

    Blocks of their own are the members of each ``nn.ModuleList``; the rest goes with the model.
    Uses ``torch.distributed.fsdp.fully_shard`` (Zhao et al. 2023, in its second form).

    Parameters
    ----------
    model : nn.Module
        The model; its forward gathers the weights and lets them go again.
    optimizers : Iterable[Optimizer]
        Fresh ones over its parameters, which are changed to hold the parts.

    Raises
    ------
    ValueError
        For an optimiser that has stepped already.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> shard(model)  # alone, there is nothing to cut
    >>> is_sharded(model)
    False
    """
    if world_size() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = {parameter: name for name, parameter in model.named_parameters()}
    # Sharding cuts up each rank's own weights, where DDP copies those of rank 0: do that first.
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor, src=0)
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for module in reversed(list(model.modules())):  # the inner ones first
        if isinstance(module, nn.ModuleList):
            for block in module:
                if sum(p.numel() for p in block.parameters()) >= MIN_BLOCK_PARAMETERS:
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    parts = dict(model.named_parameters())
    for optimizer in optimizers:
        if optimizer.state:
            raise ValueError("this optimizer has stepped already: shard the model before training")
        for group in optimizer.param_groups:
            group["params"] = [parts[names[parameter]] for parameter in group["params"]]


def is_sharded(model: nn.Module) -> bool:
    """Say whether a model was cut by :func:`shard`.

    Parameters
    ----------
    model : nn.Module
        A model, wrapped or not.

    Examples
    --------
    >>> is_sharded(nn.Linear(1, 1))
    False
    """
    if world_size() == 1:  # spares a plain run the import
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(unwrap(model), FSDPModule)


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return the whole weights, also of a sharded model (then all ranks must call).

    Parameters
    ----------
    model : nn.Module
        A model, wrapped or not.

    Returns
    -------
    dict[str, Any]
        As ``state_dict`` of the bare model. Of a sharded one: on the CPU, and empty but on rank 0.

    Examples
    --------
    >>> sorted(model_state(nn.Linear(1, 1)))
    ['bias', 'weight']
    """
    model = unwrap(model)
    if not is_sharded(model):
        return model.state_dict()
    from torch.distributed.checkpoint import state_dict as dcp

    return dict(dcp.get_model_state_dict(model, options=_whole()))


def load_model_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load what :func:`model_state` gave, into a sharded model too (then all ranks must call).

    Parameters
    ----------
    model : nn.Module
        A model, wrapped or not.
    state : Mapping[str, Any]
        The whole weights, the same on each rank.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> load_model_state(model, model_state(nn.Linear(1, 1)))
    """
    model = unwrap(model)
    if not is_sharded(model):
        model.load_state_dict(dict(state))
        return
    from torch.distributed.checkpoint import state_dict as dcp

    dcp.set_model_state_dict(model, dict(state), options=dcp.StateDictOptions(full_state_dict=True))


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return the whole state of an optimiser, also of a sharded model (then all ranks must call).

    Parameters
    ----------
    model : nn.Module
        The model, wrapped or not.
    optimizer : Optimizer
        Over (part of) its parameters.

    Returns
    -------
    dict[str, Any]
        ``optimizer.state_dict()``; of a sharded model, by parameter names, and empty but on rank 0.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> sorted(optimizer_state(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    ['param_groups', 'state']
    """
    model = unwrap(model)
    if not is_sharded(model):
        return optimizer.state_dict()
    from torch.distributed.checkpoint import state_dict as dcp

    return dict(dcp.get_optimizer_state_dict(model, optimizer, options=_whole()))


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load what :func:`optimizer_state` gave, for a sharded model too (then all ranks must call).

    Parameters
    ----------
    model : nn.Module
        The model, wrapped or not.
    optimizer : Optimizer
        Over (part of) its parameters.
    state : Mapping[str, Any]
        The whole state, the same on each rank.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> load_optimizer_state(model, optimizer, optimizer_state(model, optimizer))
    """
    model = unwrap(model)
    if not is_sharded(model):
        optimizer.load_state_dict(dict(state))
        return
    from torch.distributed.checkpoint import state_dict as dcp

    dcp.set_optimizer_state_dict(
        model, optimizer, dict(state), options=dcp.StateDictOptions(full_state_dict=True)
    )


def _whole() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)
