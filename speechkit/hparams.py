"""Reads a HyperPyYAML file with overrides, and reports every problem in it at once.

Nothing is built before the whole file has been found to be right: placeholders, overrides,
references, unused keys, targets and their arguments are checked first. Then it is built in
stages, each of which builds no more than what was asked for.

A YAML file on the user's own disk is code, as a ``train.py`` is: never read one from elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hyperpyyaml.core
import ruamel.yaml
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from speechkit.config.command_line import parse_command_line
from speechkit.config.document import (
    Document,
    HparamsError,
    child,
    dump,
    is_object,
    tag_of,
)
from speechkit.config.resolve import Resolver, flatten, tagged
from speechkit.names import nearest

__all__ = ["Hparams", "HparamsError", "changes", "parse_command_line", "read_hparams"]

ABSENT = "(absent)"
_BUILT = "!built"


def read_hparams(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    consumed: Collection[str],
    required: Collection[str] = (),
) -> Hparams:
    """Read a YAML file and check all of it; nothing is built.

    Parameters
    ----------
    path : str or Path
        A HyperPyYAML file.
    overrides : Mapping, optional
        ``{"model.encoder.num_layers": "6"}``: dotted keys and values in YAML. They reach into
        ``!new:`` nodes, through ``!ref``, into lists (``tests.0``), and may name arguments that
        the file leaves at their defaults.
    consumed : collection of str
        Top-level keys that the program takes. Others must be referred to in the file.
    required : collection of str
        Those of them that must be there.

    Returns
    -------
    Hparams
        To be built.

    Raises
    ------
    HparamsError
        With everything that is wrong.
    """
    document = Document(Path(path))
    known = [*consumed, *required]
    before = document.referenced()
    for key, value in (overrides or {}).items():
        document.override(key, value, extra=consumed)
    document.drop_orphans(before, keep=[*known, *(key.split(".")[0] for key in overrides or {})])
    resolved = Resolver(document).resolve()
    _check_keys(document, known, required)
    document.raise_problems()
    return Hparams(document.path, document.text(), resolved)


def _check_keys(document: Document, known: Collection[str], required: Collection[str]) -> None:
    """Note top-level keys that nothing uses, and those that are missing."""
    tree = document.tree
    used = {*known, *document.referenced()}
    for key in tree:
        line = document.line_of(tree, key)
        if not isinstance(key, str):
            document.add(line, f"the top-level key {key!r} is no name; quote it")
        elif key not in used:
            hint = nearest(key, [name for name in known if name not in tree])
            document.add(line, f"nothing uses {key!r}{hint}")
    for key in required:
        if key not in tree:
            hint = nearest(key, [str(name) for name in tree if name not in known])
            document.add(None, f"the key {key!r} is missing{hint}")


class Hparams:
    """Hyperparameters that were checked and are to be built; made by :func:`read_hparams`.

    Attributes
    ----------
    path : Path
        The file they were read from.
    text : str
        Its text with the overrides in place, comments and references kept: reading it again
        without overrides gives the same hyperparameters.
    """

    def __init__(self, path: Path, text: str, tree: CommentedMap) -> None:
        self.path = path
        self.text = text
        self._tree = tree
        self._shared = _shared_nodes(tree)
        self._built: dict[int, Any] = {}

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def keys(self) -> list[str]:
        """Return the top-level keys."""
        return [str(key) for key in self._tree]

    def _find(self, key: str) -> tuple[Any, Any] | None:
        found: tuple[Any, Any] | None = (None, self._tree)
        for part in key.split("."):
            found = child(found[1], part) if found is not None else None
        return found

    def value(self, key: str, default: Any = ...) -> Any:
        """Return a plain value, references and arithmetic resolved, without building anything.

        Parameters
        ----------
        key : str
            May be dotted: ``model.encoder.num_layers``.
        default : Any
            What to return where there is no such key.

        Raises
        ------
        KeyError
            If there is no such key, and no default.
        TypeError
            If it is, or holds, an object.
        """
        found = self._find(key)
        if found is None:
            if default is not ...:
                return default
            raise KeyError(f"{self.path}: no key {key!r}{nearest(key, self.flat())}")
        node = found[1]
        if is_object(node) or any(is_object(part) for part in _inner_nodes(node)):
            raise TypeError(f"{self.path}: {key!r} holds an object, it has no value before build()")
        return _load({"value": self._copy(node, {})}, {})["value"]

    def flat(self) -> dict[str, Any]:
        """Return ``{dotted key: plain value}``, with an object's tag where an object stands."""
        return flatten(self._tree)

    def build(self, keys: Collection[str] | None = None) -> dict[str, Any]:
        """Build top-level keys, with what they refer to and nothing else.

        What was built before is not built again, and what several keys refer to is one object,
        over several calls too.

        Parameters
        ----------
        keys : collection of str, optional
            Those to build; all by default. Keys that the file does not have are left out.

        Returns
        -------
        dict
            ``{key: object or value}``, in the order of the file.
        """
        wanted = [key for key in self._tree if keys is None or key in keys]
        copies: dict[int, Any] = {}
        document = {f"key {key}": self._copy(self._tree[key], copies) for key in wanted}
        new = {number: node for number, node in self._shared.items() if number in copies}
        for number in new:
            document.setdefault(f"node {number}", copies[number])
        result = _load(document, self._built)
        self._built |= {number: result[f"node {number}"] for number in new}
        return {key: result[f"key {key}"] for key in wanted if keys is not None or key[:2] != "__"}

    def _copy(self, node: Any, copies: dict[int, Any]) -> Any:
        """Copy a tree, putting a marker where an object has been built before."""
        if isinstance(node, float) and "e" in repr(node):
            # hyperpyyaml loses digits of such floats when it writes them for itself.
            return tagged(CommentedSeq([node.hex()]), _BUILT)
        if not isinstance(node, dict | list):
            return node
        if id(node) in self._built:
            return tagged(CommentedSeq([id(node)]), _BUILT)
        if id(node) not in copies:
            if isinstance(node, dict):
                new: Any = CommentedMap()
                new.update({key: self._copy(value, copies) for key, value in node.items()})
            else:
                new = CommentedSeq([self._copy(value, copies) for value in node])
            copies[id(node)] = tagged(new, tag_of(node)) if tag_of(node) else new
        return copies[id(node)]


def _inner_nodes(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield value
            yield from _inner_nodes(value)


def _shared_nodes(tree: CommentedMap) -> dict[int, Any]:
    """Return the nodes that are kept once built: top-level ones and those that occur twice."""
    kept = {id(node): node for node in tree.values() if isinstance(node, dict | list)}
    seen: set[int] = set()

    def visit(node: Any) -> None:
        if not isinstance(node, dict | list):
            return
        if id(node) in seen:
            kept[id(node)] = node
            return
        seen.add(id(node))
        for value in node.values() if isinstance(node, dict) else node:
            visit(value)

    visit(tree)
    return kept


def _load(document: Mapping[str, Any], built: Mapping[int, Any]) -> dict[str, Any]:
    """Build a resolved tree with hyperpyyaml; ``!built`` nodes stand for objects."""

    class Loader(ruamel.yaml.Loader):
        """Keeps what is registered here from the other users of ruamel.yaml."""

    def restore(loader: Any, node: Any) -> Any:
        (key,) = loader.construct_sequence(node)
        return float.fromhex(key) if isinstance(key, str) else built[key]

    Loader.add_constructor(_BUILT, restore)
    tree = CommentedMap()
    tree.update(document)
    with _defaults_restored():
        return hyperpyyaml.load_hyperpyyaml(dump(tree), loader=Loader)


@contextmanager
def _defaults_restored() -> Iterator[None]:
    """Undo what load_hyperpyyaml leaves behind in ruamel.yaml and yaml.

    Its implicit tuples would change how all YAML in this process is read and written, and when
    building fails, it leaves other defaults behind.
    """
    plain_yaml = hyperpyyaml.core.yaml
    classes = (plain_yaml.constructor.BaseConstructor, ruamel.yaml.constructor.BaseConstructor)
    before = [cls.construct_object.__defaults__ for cls in classes]
    resolvers = ruamel.yaml.resolver.implicit_resolvers
    count = len(resolvers)
    try:
        yield
    finally:
        for cls, defaults in zip(classes, before):
            cls.construct_object.__defaults__ = defaults
        del resolvers[count:]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Compare two :meth:`Hparams.flat`.

    Parameters
    ----------
    old, new : Mapping
        Dotted keys and plain values.

    Returns
    -------
    list of tuple
        ``(key, old value, new value)``, with ``"(absent)"`` where a key is not there.

    Examples
    --------
    >>> changes({"seed": 1, "lr": 0.1}, {"seed": 2, "lr": 0.1, "ema": None})
    [('seed', 1, 2), ('ema', '(absent)', None)]
    """
    return [
        (key, old.get(key, ABSENT), new.get(key, ABSENT))
        for key in dict.fromkeys([*old, *new])
        if not _same(old.get(key, ABSENT), new.get(key, ABSENT))
    ]


def _same(a: Any, b: Any) -> bool:
    both_nan = isinstance(a, float) and isinstance(b, float) and a != a and b != b
    return both_nan or (a == b and isinstance(a, bool) == isinstance(b, bool))
