"""Dotted names, such as ``encoder.layers.0``: their parts, and the nearest to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest candidate, or nothing.

    Examples
    --------
    >>> nearest("num_layers", ["seed", "model.encoder.num_layers"])
    "; did you mean 'model.encoder.num_layers'?"
    """
    names = list(dict.fromkeys(candidates))
    same_end = [other for other in names if other.split(".")[-1] == name.split(".")[-1]]
    near = difflib.get_close_matches(name, same_end, 1, cutoff=0.0)
    near = near or difflib.get_close_matches(name, names, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_under(name: str, prefix: str) -> bool:
    """Say whether a name lies under a dotted prefix; the empty one holds everything.

    Examples
    --------
    >>> is_under("encoder.layers.0", "encoder"), is_under("encoder_2.bias", "encoder")
    (True, False)
    """
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def unknown_prefixes(prefixes: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return the prefixes under which no name lies, each with what to say: the nearest that is.

    Examples
    --------
    >>> unknown_prefixes(["encoder", "haed"], ["encoder.weight", "head.weight"])
    {'haed': "; did you mean 'head'?"}
    """
    parts = dict.fromkeys(
        ".".join(name.split(".")[: end + 1]) for name in names for end in range(name.count(".") + 1)
    )
    first = [part for part in parts if "." not in part]
    there = f"; there are {', '.join(first[:10])}{', ...' if len(first) > 10 else ''}"
    return {prefix: nearest(prefix, parts) or there for prefix in prefixes if prefix not in parts}
