"""What ``!new:``, ``!name:``, ``!apply:`` and ``!module:`` name, and which arguments it takes."""

from __future__ import annotations

import importlib
import inspect
import pydoc
from typing import Any

from speechkit.names import nearest


def locate(target: str) -> Any:
    """Import what ``!new:target`` names.

    Raises
    ------
    LookupError
        If there is no such thing, with the nearest name, or its module cannot be imported.

    Examples
    --------
    >>> locate("collections.Counter")
    <class 'collections.Counter'>
    """
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise LookupError(f"{target} cannot be imported: {error.value!r}") from error
    if found is not None:
        return found
    module_name, _, name = target.rpartition(".")
    while module_name:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            module_name, _, name = module_name.rpartition(".")
            continue
        hint = nearest(name, [other for other in vars(module) if not other.startswith("_")])
        raise LookupError(f"there is no {name!r} in {module_name}{hint}")
    raise LookupError(f"there is no module {target.split('.')[0]!r}")


def parameters_of(tag: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of the callable that a tag names; empty if not known."""
    if not tag.startswith(("!new:", "!name:", "!apply:")):
        return {}
    try:
        return dict(inspect.signature(locate(tag.split(":", 1)[1])).parameters)
    except (LookupError, TypeError, ValueError):
        return {}  # a target that cannot be imported is reported where targets are checked


def check_call(tag: str, args: Any) -> list[str]:
    """Check what an object's tag names and whether it takes the arguments given.

    Parameters
    ----------
    tag : str
        ``!new:``, ``!name:``, ``!apply:`` or ``!module:`` and a dotted name.
    args : dict or list
        Keyword or positional arguments.

    Returns
    -------
    list of str
        What is wrong.

    Examples
    --------
    >>> check_call("!new:torch.nn.Dropout", {"prob": 0.1})
    ["torch.nn.Dropout takes no argument 'prob'; it takes p, inplace"]
    """
    kind, target = tag.split(":", 1)
    try:
        found = locate(target)
    except LookupError as error:
        return [f"{tag}: {error}"]
    if kind == "!module":
        return [] if inspect.ismodule(found) else [f"{tag}: is not a module"]
    if kind == "!new" and not inspect.isclass(found):
        return [f"{tag}: is not a class; a function is called with !apply:{target}"]
    if kind == "!apply" and not inspect.isroutine(found):
        return [f"{tag}: is not a function; a class is built with !new:{target}"]
    if kind == "!name" and not callable(found):
        return [f"{tag}: takes no arguments"] if args else []
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return []  # builtins without a signature cannot be checked
    return _check_arguments(kind, target, parameters, args)


def _check_arguments(
    kind: str, target: str, parameters: list[inspect.Parameter], args: Any
) -> list[str]:
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    problems = []
    given: set[str] = set()
    if isinstance(args, list):
        if len(args) > len(positional) and not any_number:
            problems.append(f"{target} takes {len(positional)} arguments, not {len(args)}")
        given = {p.name for p in positional[: len(args)]}
    else:
        given = {str(name) for name in args}
        for name in args:
            if name not in by_name and not any_name:
                hint = nearest(str(name), by_name)
                if not hint:
                    names = [p.name for p in parameters if p.name in by_name]
                    hint = f"; it takes {', '.join(names)}" if names else "; it takes none"
                problems.append(f"{target} takes no argument {name!r}{hint}")
    if kind != "!name":
        required = [
            p.name
            for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        missing = [name for name in required if name not in given]
        if missing:
            problems.append(f"{target} needs {', '.join(missing)}, which is not given")
    return problems
