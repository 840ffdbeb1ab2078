"""A HyperPyYAML file as a tree: reading it with line numbers, overriding its nodes."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ruamel.yaml
from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.scalarfloat import ScalarFloat

from speechkit.config.targets import parameters_of
from speechkit.names import nearest

OBJECT_TAGS = ("!new:", "!name:", "!apply:", "!module:")
TAGS = (*OBJECT_TAGS, "!ref", "!copy", "!tuple", "!PLACEHOLDER")
_REFERENCE = re.compile(r"<([^<>]*)>")
_PATH = re.compile(r"([^.\[\]]+)((?:\[[^\[\]]*\])*)((?:\.\w+)*)")


class HparamsError(ValueError):
    """Something is wrong with hyperparameters; ``problems`` lists everything at once.

    Examples
    --------
    >>> print(HparamsError(["no such key", "no such class"]))
    2 problems with the hyperparameters:
      1. no such key
      2. no such class
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = "a problem" if count == 1 else f"{count} problems"
        rows = [f"  {number}. {text}" for number, text in enumerate(self.problems, 1)]
        super().__init__(f"{head} with the hyperparameters:\n" + "\n".join(rows))


class Reference(NamedTuple):
    """``<key[part].attribute>`` taken apart."""

    parts: tuple[str, ...]
    attributes: tuple[str, ...]


def parse_reference(text: str) -> Reference | None:
    """Take apart what stands between ``<`` and ``>``; None if it is not a reference.

    Examples
    --------
    >>> parse_reference("model[encoder].output_size")
    Reference(parts=('model', 'encoder'), attributes=('output_size',))
    """
    match = _PATH.fullmatch(text.strip())
    if match is None:
        return None
    name, brackets, attributes = match.groups()
    parts = (name, *(part for part in re.findall(r"\[([^\]]*)\]", brackets)))
    return Reference(parts, tuple(attributes.split(".")[1:]))


class _Representer(ruamel.yaml.RoundTripRepresenter):
    """Writes floats so that they are read as the same: ruamel.yaml loses digits of some."""

    def represent_scalar_float(self, data: Any) -> Any:
        node = super().represent_scalar_float(data)
        if float(node.value.replace("_", "")) != float(data):
            return self.represent_float(float(data))
        return node


_Representer.add_representer(ScalarFloat, _Representer.represent_scalar_float)


def round_trip() -> ruamel.yaml.YAML:
    """Return a parser and writer that keeps tags, comments and quotes."""
    yaml = ruamel.yaml.YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 2**16
    return yaml


def dump(tree: Any) -> str:
    """Write a tree as YAML."""
    stream = io.StringIO()
    round_trip().dump(tree, stream)
    return stream.getvalue()


def tag_of(node: Any) -> str:
    """Return the tag of a node, empty where it has none."""
    tag = getattr(node, "tag", None)
    return str(getattr(tag, "value", None) or "")


def is_object(node: Any) -> bool:
    """Whether a node stands for something that is built."""
    return tag_of(node).startswith(OBJECT_TAGS)


def child(node: Any, part: str) -> tuple[Any, Any] | None:
    """Return (key, value) of a mapping's key or a list's index, None where there is none."""
    if isinstance(node, dict):
        if part in node:
            return part, node[part]
        return next(((key, value) for key, value in node.items() if str(key) == part), None)
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return int(part), node[int(part)]
    return None


class Entry(NamedTuple):
    """A node of the tree: its dotted key, itself, and its line (from 1) where it has one."""

    key: str
    node: Any
    line: int | None


class Document:
    """A YAML file and what was found to be wrong with it.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    HparamsError
        If it cannot be read as YAML with a mapping at the top.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        self.overridden = False
        self._keep: list[Any] = []
        self._from_command_line: dict[int, str] = {}
        try:
            self.source = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            others = sorted(str(p) for p in path.parent.glob("*.y*ml"))
            raise HparamsError([f"there is no file {path}{nearest(str(path), others)}"]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise HparamsError([f"{path} cannot be read: {error}"]) from error
        self.lines = self.source.splitlines()
        self.tree = self._parse()

    def _parse(self) -> CommentedMap:
        yaml = round_trip()
        yaml.allow_duplicate_keys = True  # they are all found below, not only the first
        try:
            self._find_duplicates(round_trip().compose(self.source), "")
            tree = yaml.load(self.source)
        except ruamel.yaml.error.MarkedYAMLError as error:
            tabs = [n for n, line in enumerate(self.lines, 1) if re.match(r"[ ]*\t", line)]
            found = [f"{self.at(n)}: a tab in the indentation; YAML wants spaces" for n in tabs]
            line = error.problem_mark.line + 1 if error.problem_mark is not None else None
            if line not in tabs:
                what = " ".join(str(t) for t in (error.context, error.problem) if t)
                found.append(f"{self.at(line)}: not valid YAML: {what}")
            raise HparamsError(found) from None
        except ruamel.yaml.error.YAMLError as error:
            raise HparamsError([f"{self.at(None)}: not valid YAML: {error}"]) from error
        if not isinstance(tree, CommentedMap):
            raise HparamsError([f"{self.at(None)}: must hold 'key: value' lines at the top level"])
        return tree

    def _find_duplicates(self, node: Any, prefix: str) -> None:
        if isinstance(node, ruamel.yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._find_duplicates(item, f"{prefix}{index}.")
        if not isinstance(node, ruamel.yaml.MappingNode):
            return
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first and name != "<<":
                text = f"the key {prefix + name!r} stands here again, first in line {first[name]}"
                self.add(line, text)
            first.setdefault(name, line)
            self._find_duplicates(value, f"{prefix}{name}.")

    def at(self, line: int | None) -> str:
        """Return where a line is: ``hparams/toy.yaml:12``."""
        return str(self.path) if line is None else f"{self.path}:{line}"

    def add(self, line: int | None, text: str, *, option: str | None = None) -> None:
        """Note a problem, in a line of the file or with an option of the command line."""
        place = f"--{option}" if option is not None else self.at(line)
        entry = (line if option is None and line is not None else 10**9, f"{place}: {text}")
        if entry not in self.problems:
            self.problems.append(entry)

    def raise_problems(self) -> None:
        """Raise all problems, in the order of the lines, if there are any."""
        if self.problems:
            raise HparamsError([text for _, text in sorted(self.problems, key=lambda p: p[0])])

    def comment(self, line: int | None) -> str:
        """Return the comment of a line, or that of the lines just above it."""
        if line is None or line > len(self.lines):
            return ""
        bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", self.lines[line - 1])
        found = re.search(r"\s#+\s*(.*)$", bare)
        if found:
            return found.group(1).strip()
        above: list[str] = []
        for text in reversed(self.lines[: line - 1]):
            if not text.strip().startswith("#"):
                break
            above.insert(0, text.strip().lstrip("# ").strip())
        return " ".join(part for part in above if part)

    def text(self) -> str:
        """Return the YAML text: the file's own, or with the overrides in place."""
        if not self.overridden:
            return self.source
        text = dump(self.tree)
        # ruamel.yaml moves the comment behind a tag to a line of its own: put it back.
        for line in self.lines:
            found = re.search(r"!\S+[ ]+(#.*)$", line)
            if found:
                pattern = r"(!\S+)[ ]*\n[ ]+" + re.escape(found.group(1)) + r"[ ]*\n"
                line_end = f"  {found.group(1)}\n".replace("\\", r"\\")
                text = re.sub(pattern, r"\1" + line_end, text, count=1)
        return text

    def line_of(self, parent: Any, key: Any) -> int | None:
        """Return the line (from 1) of a key of a mapping or list, if it is from the file."""
        data = getattr(getattr(parent, "lc", None), "data", None) or {}
        return (
            data[key][0] + 1 if key in data and id(parent) not in self._from_command_line else None
        )

    def entries(self, node: Any = ..., prefix: str = "") -> Iterator[Entry]:
        """Iterate over all nodes with their dotted keys, parents before children."""
        node = self.tree if node is ... else node
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(node, dict):
            items = node.items()
        elif isinstance(node, list):
            items = enumerate(node)
        for key, value in items:
            dotted = f"{prefix}{key}"
            yield Entry(dotted, value, self.line_of(node, key))
            yield from self.entries(value, dotted + ".")

    def referenced(self) -> set[str]:
        """Return the top-level keys that references in the tree name."""
        nodes = [e.node for e in self.entries() if tag_of(e.node) in ("!ref", "!copy")]
        texts = [text for node in nodes for text in _REFERENCE.findall(str(node.value))]
        found = [parse_reference(text) for text in texts]
        return {reference.parts[0] for reference in found if reference is not None}

    def drop_orphans(self, before: set[str], keep: Collection[str]) -> None:
        """Remove the keys that only what was overridden referred to."""
        while orphans := [k for k in self.tree if k in before - self.referenced() - set(keep)]:
            for key in orphans:
                del self.tree[key]

    def follow(self, node: Any) -> Any:
        """Follow ``!ref <key>`` from a node to the node of the file that it stands for."""
        for _ in range(100):
            if tag_of(node) != "!ref" or not isinstance(node, TaggedScalar):
                return node
            match = _REFERENCE.fullmatch(str(node.value).strip())
            reference = parse_reference(match.group(1)) if match else None
            if reference is None or reference.attributes:
                return node
            target: Any = self.tree
            for part in reference.parts:
                found = child(self.follow_once(target), part)
                if found is None:
                    return node
                target = found[1]
            node = target
        return node

    def follow_once(self, node: Any) -> Any:
        """Follow a reference on the way to a part, but leave the tree itself alone."""
        return node if node is self.tree or tag_of(node) != "!ref" else self.follow(node)

    def override(self, key: str, text: Any, extra: Collection[str] = ()) -> None:
        """Set a dotted key to a value written in YAML; a key that fits nothing is a problem.

        Parameters
        ----------
        key : str
            ``model.encoder.num_layers``, ``tests.0``; a reference on the way is followed. Beside
            the file's keys, it may name an argument of a ``!new:`` node that the file leaves at
            its default.
        text : str
            The value, in YAML. (A value that is not a string is taken as it is.)
        extra : collection of str
            Top-level keys that may be set though the file does not have them.
        """
        value = text
        if isinstance(text, str):
            try:
                value = round_trip().load(text)
            except ruamel.yaml.error.YAMLError as error:
                what = getattr(error, "problem", None) or str(error)
                self.add(None, f"{text!r} is not valid YAML ({what}); quote it", option=key)
                return None
        holder, last, node = None, None, self.tree
        *way, name = key.split(".")
        for part in way:
            found = child(node, part)
            if found is None:
                return self._unknown(key, extra)
            holder, last = node, found[0]
            node = self.follow(found[1])
            if node is not found[1]:
                holder = None
        if not self._set(holder, last, node, name, value, extra):
            return self._unknown(key, extra)
        self.overridden = True
        self._mark(value, key)
        return None

    def _set(
        self, holder: Any, last: Any, node: Any, name: str, value: Any, extra: Collection[str]
    ) -> bool:
        found = child(node, name)
        if found is not None:
            node[found[0]] = value
            return True
        if node is self.tree and name in extra:
            node[name] = value
            return True
        parameter = parameters_of(tag_of(node)).get(name)
        if parameter is None or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            return False
        if isinstance(node, dict):
            node[name] = value
            return True
        if isinstance(node, TaggedScalar):  # `encoder: !new:Class` with no arguments yet
            holder, last = (holder, last) if holder is not None else self._holder_of(node)
            mapping = CommentedMap({name: value})
            mapping.yaml_set_ctag(ruamel.yaml.Tag(suffix=tag_of(node)))
            holder[last] = mapping
            self._mark(mapping, name)
            return True
        return False

    def _holder_of(self, node: Any) -> tuple[Any, Any]:
        """Find the mapping or list that a node stands in."""
        holders = [self.tree, *(entry.node for entry in self.entries())]
        for holder in holders:
            items: Iterable[tuple[Any, Any]] = ()
            if isinstance(holder, dict | list):
                items = holder.items() if isinstance(holder, dict) else enumerate(holder)
            for key, value in items:
                if value is node:
                    return holder, key
        raise KeyError(f"node {node!r} is not in the tree")

    def _mark(self, value: Any, key: str) -> None:
        """Remember which nodes came from the command line: their line numbers mean nothing."""
        self._keep.append(value)
        if isinstance(value, dict | list):
            self._from_command_line[id(value)] = key
            for item in value.values() if isinstance(value, dict) else value:
                self._mark(item, key)

    def _unknown(self, key: str, extra: Collection[str]) -> None:
        known = [entry.key for entry in self.entries()] + list(extra)
        prefix, _, _ = key.rpartition(".")
        for entry in list(self.entries()):
            if entry.key == prefix:
                known += [
                    f"{prefix}.{name}" for name in parameters_of(tag_of(self.follow(entry.node)))
                ]
        self.add(None, f"{self.path} has no such key{nearest(key, known)}", option=key)
