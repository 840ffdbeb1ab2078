"""A recipe's command line: the YAML file, overrides of its keys, and the program's own options."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from speechkit.config.document import Document, HparamsError, tag_of
from speechkit.config.resolve import plain
from speechkit.names import nearest


def parse_command_line(
    argv: Sequence[str], *, flags: Collection[str] = (), options: Collection[str] = ()
) -> tuple[Path, dict[str, str], dict[str, Any]]:
    """Take a recipe's command line apart.

    ``hparams.yaml --seed 2 --model.encoder.num_layers=6 --test_only``. ``--help`` prints the
    keys of the YAML file with their values and comments, and exits.

    Parameters
    ----------
    argv : sequence of str
        Without the program's name.
    flags : collection of str
        The program's own switches, which take no value.
    options : collection of str
        The program's own options, which take one.

    Returns
    -------
    tuple
        The YAML file, ``{key: value in YAML}``, and ``{flag: bool, option: str or None}``.

    Raises
    ------
    HparamsError
        For a missing file name, a missing value or a stray argument.

    Examples
    --------
    >>> parse_command_line(["asr.yaml", "--lr", "-1", "--a.b=x"], flags=["test_only"])
    (...Path('asr.yaml'), {'lr': '-1', 'a.b': 'x'}, {'test_only': False})
    """
    own: dict[str, Any] = dict.fromkeys(flags, False) | dict.fromkeys(options)
    overrides: dict[str, str] = {}
    files, problems = _scan(list(argv), own, overrides)
    if "--help" in files:
        print(_help([name for name in files if name != "--help"], flags, options))
        raise SystemExit(0)
    problems += [f"{stray!r}: a stray argument; keys are set as --key value" for stray in files[1:]]
    if not files:
        problems.insert(0, "no YAML file: the first argument is recipes/.../hparams/NAME.yaml")
    if problems:
        raise HparamsError(problems)
    return Path(files[0]), overrides, own


def _scan(
    rest: list[str], own: dict[str, Any], overrides: dict[str, str]
) -> tuple[list[str], list[str]]:
    """Sort arguments into own options and overrides; return the others, and what is wrong."""
    others: list[str] = []
    problems: list[str] = []
    flags = {name for name, value in own.items() if value is False}
    while rest:
        argument = rest.pop(0)
        if argument in ("-h", "--help"):
            others.append("--help")
        elif not argument.startswith("--"):
            others.append(argument)
        elif argument[2:] in flags:
            own[argument[2:]] = True
        else:
            key, equals, value = argument[2:].partition("=")
            if not equals and (not rest or rest[0].startswith("--")):
                near = nearest(key, flags)
                problems.append(f"--{key}: needs a value, --{key} VALUE{near}")
                continue
            value = value if equals else rest.pop(0)
            if not key or key in flags:
                problems.append(f"{argument}: " + ("takes no value" if key else "names no key"))
            else:
                (own if key in own else overrides)[key] = value
    return others, problems


def _help(files: Sequence[str], flags: Collection[str], options: Collection[str]) -> str:
    program = Path(sys.argv[0]).name
    yaml = files[0] if files else "hparams.yaml"
    rows = [f"usage: {program} {yaml} [--key value ...] [--nested.key=value ...]", ""]
    rows += [f"  --{name}" for name in flags] + [f"  --{name} VALUE" for name in options]
    if not files:
        return "\n".join([*rows, "", f"{program} hparams.yaml --help lists the keys of that file."])
    document = Document(Path(files[0]))
    rows += ["", f"keys of {yaml}, with their values:"]
    table: list[tuple[str, str]] = []
    lists: set[str] = set()
    for key, node, line in document.entries():
        tag = tag_of(node)
        if key.rpartition(".")[0] in lists:
            continue  # shown with its list
        if isinstance(node, dict | list) and not tag:
            leaf = isinstance(node, list) and not any(isinstance(v, dict | list) for v in node)
            leaf = leaf and not any(tag_of(v) for v in node)
            shown = str([plain(v) for v in node]) if leaf else ""
            lists |= {key} if leaf else set()
        else:
            value = "" if isinstance(node, dict | list) else getattr(node, "value", node)
            shown = f"{tag} {'null' if value is None else value}".strip()
        own_line = line is not None and "#" in document.lines[line - 1]
        table.append((f"  --{key} {shown}".rstrip(), document.comment(line) if own_line else ""))
    width = min(60, max((len(left) for left, _ in table), default=0))
    return "\n".join(
        rows + [f"{left.ljust(width)}  # {note}" if note else left for left, note in table]
    )
