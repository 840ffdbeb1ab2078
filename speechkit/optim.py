"""Optimisers over the parts of a model: groups, frozen parts, clipping."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speechkit.distributed import unwrap
from speechkit.names import is_under, nearest, unknown_prefixes

__all__ = [
    "build_optimizers",
    "clip_gradients",
    "freeze",
    "frozen_modules",
]

OptimizerFactory = Callable[..., Optimizer]


def build_optimizers(
    model: nn.Module,
    optimizer: OptimizerFactory | Mapping[str, OptimizerFactory],
    *,
    parameter_groups: Mapping[str, Mapping[str, Any]] | None = None,
    frozen: Sequence[str] = (),
    no_decay: Sequence[str] = (),
) -> dict[str, Optimizer]:
    """Make the optimisers of a model.

    Parts are named by dotted prefixes of parameter names (``encoder``, ``encoder.layers.0``); where
    two fit a parameter, the longer one counts. Every group gets the key ``name`` (for logs).

    Parameters
    ----------
    model : nn.Module
        The model; a wrapper (DDP, torch.compile) is looked through.
    optimizer : Callable or Mapping[str, Callable]
        Called with parameter groups, such as ``partial(torch.optim.AdamW, lr=1e-3)``. A mapping
        from prefixes makes several optimisers, which must cover every trainable parameter.
    parameter_groups : Mapping[str, Mapping], optional
        Options of a part, such as ``{"encoder": {"lr": 1e-4}}``.
    frozen : Sequence[str]
        Parts that do not learn: their ``requires_grad`` is set to False.
    no_decay : Sequence[str]
        Patterns (``*.bias``, ``*norm*``) of parameter names with no weight decay.

    Returns
    -------
    dict[str, Optimizer]
        By the keys of ``optimizer``; a single one is called ``model``.

    Raises
    ------
    ValueError
        For a prefix or pattern that matches nothing (naming the nearest), an option that the
        optimiser does not have, a group whose parameters are all frozen, parameters left over.

    Examples
    --------
    >>> from functools import partial
    >>> model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    >>> adamw, slow = partial(torch.optim.AdamW, lr=1e-3), {"encoder": {"lr": 1e-4}}
    >>> made = build_optimizers(model, adamw, parameter_groups=slow, no_decay=["*.bias"])
    >>> [(g["name"], g["lr"], g["weight_decay"]) for g in made["model"].param_groups]
    [('encoder', 0.0001, 0.01), ('encoder/no_decay', 0.0001, 0.0),
     ('rest', 0.001, 0.01), ('rest/no_decay', 0.001, 0.0)]
    """
    model = unwrap(model)
    groups = dict(parameter_groups or {})
    factories = dict(optimizer) if isinstance(optimizer, Mapping) else {"": optimizer}
    _check_names(model, factories, groups, no_decay)
    freeze(model, frozen)
    made = {}
    for key, part in _owned(model, factories, groups).items():
        made[key or "model"] = _build(factories[key], _split(part, groups, no_decay), key)
    return made


def _check_names(
    model: nn.Module, factories: Collection[str], groups: Collection[str], no_decay: Sequence[str]
) -> None:
    names = [name for name, _ in model.named_parameters()]
    for what, prefixes in (("optimizer", factories), ("parameter_groups", groups)):
        _check_prefixes(what, [prefix for prefix in prefixes if prefix], names)
    for pattern in no_decay:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no_decay: {pattern!r} matches no parameter of the model")


def _owned(
    model: nn.Module, factories: Collection[str], groups: Collection[str]
) -> dict[str, dict[str, nn.Parameter]]:
    """Give each trainable parameter to one optimiser."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for prefix in groups:
        if not any(is_under(name, prefix) for name in trainable):
            raise ValueError(f"parameter_groups: all of {prefix!r} is frozen: name it in one only")
    owners = {name: _longest(name, factories) for name in trainable}
    left = [name for name, owner in owners.items() if owner is None]
    if left:
        raise ValueError(
            f"no optimizer covers {_some(left)}: add a prefix to optimizer (it has "
            f"{sorted(factories)}) or freeze these parameters"
        )
    parts = {key: {n: p for n, p in trainable.items() if owners[n] == key} for key in factories}
    for key, part in parts.items():
        if not part:
            raise ValueError(f"optimizer {key or 'model'!r}: every parameter is frozen")
    return parts


def _split(
    parameters: Mapping[str, nn.Parameter],
    groups: Mapping[str, Mapping[str, Any]],
    no_decay: Sequence[str],
) -> list[dict[str, Any]]:
    """Divide parameters into groups; the order depends on the options alone, for resuming."""
    made: dict[str, dict[str, Any]] = {}
    for prefix in [*groups, None]:
        options = dict(groups[prefix]) if prefix is not None else {}
        title = "rest" if prefix is None else prefix
        made[title] = {"name": title, "params": [], **options}
        made[f"{title}/no_decay"] = {
            **made[title],
            "name": f"{title}/no_decay",
            "params": [],
            "weight_decay": 0.0,
        }
    for name, parameter in parameters.items():
        title = _longest(name, groups) or "rest"
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in no_decay):
            title += "/no_decay"
        made[title]["params"].append(parameter)
    return [group for group in made.values() if group["params"]]


def _build(factory: OptimizerFactory, groups: list[dict[str, Any]], key: str) -> Optimizer:
    try:
        optimizer = factory(groups)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer {factory}: {error}") from error
    known = set(optimizer.defaults) | {"name", "params"}
    for group in optimizer.param_groups:
        for option in sorted(set(group) - known):
            known_options = sorted(optimizer.defaults)
            hint = nearest(option, known_options) or f"; there are {_some(known_options)}"
            raise ValueError(
                f"parameter_groups: {type(optimizer).__name__} ({key or 'model'}) has no option "
                f"{option!r} (given for {group['name']!r}){hint}"
            )
    return optimizer


def freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Stop parts of a model from learning.

    Parameters
    ----------
    model : nn.Module
        The model.
    frozen : Sequence[str]
        Dotted prefixes of parameter names.

    Raises
    ------
    ValueError
        For a prefix that matches nothing, naming the nearest.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    >>> freeze(model, ["0"])
    >>> [p.requires_grad for p in model.parameters()]
    [False, False, True, True]
    """
    model = unwrap(model)
    _check_prefixes("frozen", frozen, [name for name, _ in model.named_parameters()])
    for name, parameter in model.named_parameters():
        if any(is_under(name, prefix) for prefix in frozen):
            parameter.requires_grad_(False)


def frozen_modules(model: nn.Module, frozen: Sequence[str]) -> list[nn.Module]:
    """Return the modules of frozen parts, to put into eval mode after each ``model.train()``.

    A frozen part in training mode would still change: dropout, and running statistics.

    Parameters
    ----------
    model : nn.Module
        The model.
    frozen : Sequence[str]
        Dotted prefixes; one that names a single parameter has no module.

    Returns
    -------
    list[nn.Module]
        The modules that the prefixes name; ``eval()`` on them reaches all beneath.

    Raises
    ------
    ValueError
        For a prefix that matches nothing, naming the nearest.

    Examples
    --------
    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(1)).train()
    >>> for module in frozen_modules(model, ["1"]):
    ...     _ = module.eval()
    >>> [part.training for part in model]
    [True, False]
    """
    model = unwrap(model)
    modules = dict(model.named_modules())
    _check_prefixes("frozen", frozen, [name for name, _ in model.named_parameters()])
    return [modules[prefix] for prefix in frozen if prefix in modules]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale the gradients so that their joint 2-norm is at most ``max_norm``.

    Parameters
    ----------
    parameters : Iterable[nn.Parameter]
        Those without a gradient are passed over.
    max_norm : float, optional
        None: measure only.

    Returns
    -------
    Tensor
        The norm before clipping, a scalar; not finite when a gradient is not.

    Examples
    --------
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients([weight], 1.0).item()
    5.0
    >>> torch.allclose(weight.grad, torch.tensor([0.6, 0.8]))
    True
    """
    limit = float("inf") if max_norm is None else float(max_norm)
    if not limit > 0:
        raise ValueError(f"max_norm={max_norm}: give a number above 0, or None not to clip")
    given = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in given if p.grad is not None])
    if hasattr(norm, "full_tensor"):  # FSDP: the norm of this rank's shards is not yet the norm
        norm = norm.full_tensor()
    if limit != float("inf"):
        torch.nn.utils.clip_grads_with_norm_(given, limit, norm)
    return norm


def _longest(name: str, prefixes: Iterable[str]) -> str | None:
    return max((p for p in prefixes if is_under(name, p)), key=len, default=None)


def _check_prefixes(what: str, prefixes: Sequence[str], names: Sequence[str]) -> None:
    if isinstance(prefixes, str):
        raise ValueError(f"{what}: give a list of prefixes, not the string {prefixes!r}")
    problems = [
        f"{what}: {prefix!r} matches no parameter of the model{hint}"
        for prefix, hint in unknown_prefixes(prefixes, names).items()
    ]
    if problems:
        raise ValueError("\n".join(problems))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
