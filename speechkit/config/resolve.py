"""References and targets of a HyperPyYAML tree: checked, and resolved without building anything."""

from __future__ import annotations

import copy
import datetime
import re
from typing import Any

import ruamel.yaml
from hyperpyyaml.core import parse_arithmetic
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from speechkit.config.document import (
    OBJECT_TAGS,
    TAGS,
    Document,
    child,
    is_object,
    parse_reference,
    tag_of,
)
from speechkit.config.targets import check_call
from speechkit.names import nearest

_FINDER = re.compile(r"<([^<>]*)>")


class _Failed:
    """Stands where a value could not be resolved; the problem is noted already."""


FAILED = _Failed()


def plain(value: Any) -> Any:
    """Turn a scalar of the round-trip parser into Python's own.

    Unquoted strings in parentheses become tuples, as in hyperpyyaml.
    """
    quoted = isinstance(value, SingleQuotedScalarString | DoubleQuotedScalarString)
    if isinstance(value, str) and re.fullmatch(r"\(.*\)", value):
        return DoubleQuotedScalarString(value) if quoted else TaggedScalar(value, None, "!tuple")
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def tagged(node: Any, tag: str) -> Any:
    """Give a mapping or list a tag."""
    node.yaml_set_ctag(ruamel.yaml.Tag(suffix=tag))
    return node


class Resolver:
    """Makes a tree without references out of a document's, and notes what is wrong on the way.

    Nodes that several references point to stay one node, hence one object when they are built.

    Parameters
    ----------
    document : Document
        Its ``problems`` are added to.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self._done: dict[int, Any] = {}
        self._active: set[int] = set()
        self._copies: list[Any] = []

    def resolve(self) -> CommentedMap:
        """Resolve the whole tree."""
        result = CommentedMap()
        for key, node in self.document.tree.items():
            result[key] = self._node(node, str(key), self.document.line_of(self.document.tree, key))
        return result

    def _node(self, node: Any, key: str, line: int | None) -> Any:
        tag = tag_of(node)
        if not isinstance(node, dict | list | TaggedScalar):
            return plain(node)
        if id(node) in self._done:
            return self._done[id(node)]
        if id(node) in self._active:
            self._problem(key, line, f"{key!r} refers to itself")
            return FAILED
        self._active.add(id(node))
        try:
            result = self._resolved(node, tag, key, line)
        finally:
            self._active.discard(id(node))
        self._done[id(node)] = result
        return result

    def _problem(self, key: str, line: int | None, text: str) -> None:
        self.document.add(line, text, option=key if line is None else None)

    def _resolved(self, node: Any, tag: str, key: str, line: int | None) -> Any:
        if tag == "!PLACEHOLDER":
            what = self.document.comment(line)
            text = f"{key!r} is to be filled in" + (f": {what}" if what else "")
            self._problem(key, line, f"{text}; give --{key} VALUE")
            return FAILED
        if tag in ("!ref", "!copy"):
            return self._reference(str(node.value), tag == "!copy", key, line)
        if tag and not tag.startswith(OBJECT_TAGS) and tag != "!tuple":
            self._problem(key, line, f"{key!r}: the tag {tag} is not known; {_known_tags()}")
            return FAILED
        if isinstance(node, TaggedScalar):
            return self._tagged_scalar(node, tag, key, line)
        result: Any
        if isinstance(node, dict):
            result = CommentedMap()
            for name, value in node.items():
                where = self.document.line_of(node, name)
                result[name] = self._node(value, f"{key}.{name}", where)
        else:
            result = CommentedSeq()
            for index, value in enumerate(node):
                where = self.document.line_of(node, index)
                result.append(self._node(value, f"{key}.{index}", where))
        return self._checked(result, tag, key, line) if tag else result

    def _tagged_scalar(self, node: TaggedScalar, tag: str, key: str, line: int | None) -> Any:
        if tag == "!tuple":
            return TaggedScalar(str(node.value), None, "!tuple")
        if str(node.value).strip():
            text = f"{key!r}: {tag} takes arguments as 'name: value' lines, not {node.value!r}"
            self._problem(key, line, text)
            return FAILED
        return self._checked(CommentedMap(), tag, key, line)

    def _checked(self, result: Any, tag: str, key: str, line: int | None) -> Any:
        for text in check_call(tag, result):
            self._problem(key, line, f"{key!r}: {text}")
        return tagged(result, tag)

    def _reference(self, text: str, fresh: bool, key: str, line: int | None) -> Any:
        text = text.strip()
        full = _FINDER.fullmatch(text)
        if full:
            return self._target(full.group(1), fresh, key, line)
        found = _FINDER.findall(text)
        if not found:
            self._problem(key, line, f"{key!r}: !ref {text} names nothing; write !ref <key>")
            return FAILED
        values = {name: self._target(name, False, key, line) for name in dict.fromkeys(found)}
        for name, value in values.items():
            if isinstance(value, _Failed):
                return FAILED
            if value is None or not isinstance(value, bool | int | float | str):
                kind = "null" if value is None else "no plain value"
                self._problem(key, line, f"{key!r}: <{name}> is {kind}, so it cannot be part of "
                              f"{text!r}")  # fmt: skip
                return FAILED
        filled = _FINDER.sub(lambda match: str(values[match.group(1)]), text)
        try:
            return parse_arithmetic(filled)
        except (ArithmeticError, ValueError) as error:
            self._problem(key, line, f"{key!r}: {text} cannot be computed: {error}")
            return FAILED

    def _target(self, text: str, fresh: bool, key: str, line: int | None) -> Any:
        """Resolve one ``<key[part].attribute>``."""
        document = self.document
        reference = parse_reference(text)
        if reference is None:
            self._problem(key, line, f"{key!r}: <{text}> is not a reference; write <key[part]>")
            return FAILED
        node: Any = document.tree
        parent: Any = None
        last: Any = None
        for part in reference.parts:
            parent = document.follow_once(node)
            found = child(parent, part)
            if found is None:
                names = [_bracketed(entry.key) for entry in document.entries()]
                hint = nearest(text, names)
                self._problem(key, line, f"{key!r}: <{text}> refers to no key{hint}")
                return FAILED
            last, node = found
        if fresh:
            node = copy.deepcopy(document.follow(node))
            self._copies.append(node)  # kept, as nodes are known by their id
        where = document.line_of(parent, last)
        value = self._node(node, ".".join(reference.parts), where)
        return self._attributes(value, reference.attributes, text, key, line)

    def _attributes(
        self, value: Any, attributes: tuple[str, ...], text: str, key: str, line: int | None
    ) -> Any:
        if isinstance(value, _Failed):
            return value
        if attributes and not is_object(value):
            if isinstance(value, dict):
                hint = f"; a part of a mapping is written <{_bracketed(text)}>"
            else:
                hint = ", as it is a plain value"
            self._problem(key, line, f"{key!r}: <{text}> has no attributes{hint}")
            return FAILED
        for name in attributes:
            value = tagged(CommentedSeq([value, name]), "!apply:getattr")
        return value


def _known_tags() -> str:
    return "there are " + " ".join(f"{tag}..." if tag.endswith(":") else tag for tag in TAGS)


def _bracketed(key: str) -> str:
    """Write a dotted key as references write it: ``model[encoder]``."""
    first, *rest = key.split(".")
    return first + "".join(f"[{part}]" for part in rest)


def flatten(tree: CommentedMap) -> dict[str, Any]:
    """Flatten a resolved tree into dotted keys and plain values, which JSON can hold.

    Objects appear as their tag, and where they are used again as ``!ref <key>``.
    """
    names: dict[int, str] = {}
    for key, node in tree.items():
        if isinstance(node, dict | list):
            names.setdefault(id(node), str(key))
    result: dict[str, Any] = {}

    def visit(node: Any, key: str) -> None:
        tag = tag_of(node)
        is_part = isinstance(node, dict) or (isinstance(node, list) and bool(tag))
        if is_part and names.setdefault(id(node), key) != key:
            result[key] = f"!ref <{_bracketed(names[id(node)])}>"
            return
        if tag == "!apply:getattr":
            visit(node[0], key)
            inner = str(result[key])
            target = inner[6:-1] if inner.startswith("!ref <") else inner
            result[key] = f"!ref <{target}.{node[1]}>"
            return
        if is_object(node):
            result[key] = tag
        if isinstance(node, dict):
            for name, value in node.items():
                visit(value, f"{key}.{name}")
        elif isinstance(node, list) and (tag or any(isinstance(v, dict | list) for v in node)):
            for index, value in enumerate(node):
                visit(value, f"{key}.{index}")
        elif isinstance(node, list):
            result[key] = [_json_value(value) for value in node]
        else:
            result[key] = _json_value(node)

    for key, node in tree.items():
        visit(node, str(key))
    return result


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, str | TaggedScalar):
        return str(getattr(value, "value", value))
    return value
