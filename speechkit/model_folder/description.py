"""Objects to configs and back: what a model folder's ``config.json`` says about a model.

Every module and tokenizer keeps each constructor argument under an attribute of the same name, so
a class and its arguments can be read off an object and the object be built again.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import speechkit
from speechkit.model_folder import safety
from speechkit.model_folder.safety import PretrainedError

_RESERVED = frozenset({"class", "args", "file", "sha256", "tuple", "float"})


def describe(obj: Any) -> dict[str, Any]:
    """Describe a module or tokenizer by its class and constructor arguments.

    Each argument is read from the attribute of the same name.

    Parameters
    ----------
    obj : nn.Module or tokenizer
        Of a class that model folders may name.

    Returns
    -------
    dict
        ``{"class": "speechkit.nn.rnn.RecurrentEncoder", "args": {...}}``.

    Raises
    ------
    PretrainedError
        For a class that is not allowed, an argument without an attribute or of a type that a
        config cannot hold, or a module with weights that is used in two places.

    Examples
    --------
    >>> describe(nn.LeakyReLU(0.2))
    {'class': 'torch.nn.LeakyReLU', 'args': {'negative_slope': 0.2, 'inplace': False}}
    """
    return _describe_object(obj, path="model", seen={})


def _describe_object(obj: Any, path: str, seen: dict[int, str]) -> dict[str, Any]:
    cls = type(obj)
    name = safety.class_name(cls)
    try:
        if safety.resolve_class(name) is not cls:
            raise PretrainedError(f"{name!r} names another class than that of this object")
    except PretrainedError as error:
        raise PretrainedError(f"{path}: {error}") from None
    if isinstance(obj, nn.Module) and obj.state_dict():
        if id(obj) in seen:
            raise PretrainedError(
                f"{path}: the same module is already used as {seen[id(obj)]}; a folder keeps "
                "modules with weights in one place only"
            )
        seen[id(obj)] = path
    args = {
        argument: _describe_value(_argument(obj, argument, path), f"{path}.{argument}", seen)
        for argument in _argument_names(cls, path)
    }
    return {"class": name, "args": args}


def _argument_names(cls: type, path: str) -> Sequence[str]:
    name = safety.class_name(cls)
    if name.startswith("torch.nn."):
        return safety.TORCH_CLASSES[cls.__name__]
    constructor = inspect.getattr_static(cls, "__init__")
    if constructor in (object.__init__, nn.Module.__init__):
        return ()
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PretrainedError(
                f"{path}: {name} takes *{parameter.name}; a class that is kept in a model folder "
                "names each of its constructor's arguments"
            )
    return [parameter.name for parameter in parameters]


def _argument(obj: Any, name: str, path: str) -> Any:
    try:
        value = getattr(obj, name)
    except AttributeError:
        raise PretrainedError(
            f"{path}: {type(obj).__name__} does not keep its constructor's argument {name!r} "
            "under an attribute of that name"
        ) from None
    # torch's own layers keep the Parameter where the constructor took a flag.
    if name == "bias" and type(obj).__module__.startswith("torch.nn."):
        return value is not None
    return value


def _describe_value(value: Any, path: str, seen: dict[int, str]) -> Any:
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, tuple):
        items = [_describe_value(v, f"{path}.{i}", seen) for i, v in enumerate(value)]
        return {"tuple": items}
    if isinstance(value, list | nn.ModuleList):
        return [_describe_value(v, f"{path}.{i}", seen) for i, v in enumerate(value)]
    if isinstance(value, dict | nn.ModuleDict):
        bad = [key for key in value if not isinstance(key, str) or key in _RESERVED]
        if bad:
            raise PretrainedError(f"{path}: keys {bad} cannot be kept in a config")
        return {key: _describe_value(v, f"{path}.{key}", seen) for key, v in value.items()}
    return _describe_object(value, path, seen)


def build(config: Any, folder: Path | None = None, *, root: Path | None = None) -> Any:
    """Rebuild what :func:`describe` described.

    Parameters
    ----------
    config : dict
        ``{"class": ..., "args": {...}}``.
    folder : Path, optional
        Where the files of ``{"file": ...}`` arguments lie.
    root : Path, optional
        Where links inside the folder may lead to; by default nowhere outside it.

    Raises
    ------
    PretrainedError
        For a class that is not allowed, arguments that it does not take, a file that is not
        a plain file of the folder.

    Examples
    --------
    >>> build({"class": "torch.nn.ReLU", "args": {}})
    ReLU()
    """
    safety.check_depth(config)
    if not isinstance(config, dict) or "class" not in config:
        raise PretrainedError(f"a model's config needs 'class' and 'args', not {str(config)[:80]}")
    return _build_value(config, folder, root)


def _build_value(value: Any, folder: Path | None, root: Path | None) -> Any:
    if isinstance(value, list):
        return [_build_value(item, folder, root) for item in value]
    if not isinstance(value, dict):
        return value
    if "class" in value:
        return _build_object(value, folder, root)
    if "file" in value:
        if folder is None:
            raise PretrainedError(f"{value}: a file argument, but no folder was given")
        return safety.file_argument(folder, value, root)
    if set(value) == {"tuple"} and isinstance(value["tuple"], list):
        return tuple(_build_value(item, folder, root) for item in value["tuple"])
    if set(value) == {"float"} and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if _RESERVED & set(value):
        raise PretrainedError(f"not a value of a config: {str(value)[:120]}")
    return {key: _build_value(item, folder, root) for key, item in value.items()}


def _build_object(config: dict[str, Any], folder: Path | None, root: Path | None) -> Any:
    if set(config) != {"class", "args"} or not isinstance(config["args"], dict):
        raise PretrainedError(f"an object needs 'class' and 'args', not {str(config)[:120]}")
    cls = safety.resolve_class(config["class"])
    args = {name: _build_value(value, folder, root) for name, value in config["args"].items()}
    unknown = sorted(set(args) - set(_argument_names(cls, config["class"])))
    if unknown:
        raise PretrainedError(
            f"{config['class']} takes no argument {', '.join(unknown)}; the folder may have been "
            f"written by another version of speechkit (this is {speechkit.__version__})"
        )
    try:
        return cls(**args)
    except PretrainedError:
        raise
    except Exception as error:  # whatever a constructor raises, the folder is at fault
        kind = type(error).__name__
        raise PretrainedError(f"{config['class']} cannot be built: {kind}: {error}") from error
