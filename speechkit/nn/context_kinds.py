"""Attention contexts by name, for recipes that compare them."""

from __future__ import annotations

from typing import Literal

from torch import nn

from speechkit.nn.contexts import AdditiveContext, DotContext, LocationContext, MeanContext

_KINDS: dict[str, type[DotContext] | type[AdditiveContext] | type[LocationContext]] = {
    "dot": DotContext,
    "additive": AdditiveContext,
    "location": LocationContext,
}


def make_context(
    kind: Literal["dot", "additive", "location", "mean"],
    *,
    memory_size: int,
    query_size: int,
    attention_size: int,
) -> nn.Module:
    """Make a context of a kind that a YAML names, so that one recipe can compare them.

    Raises
    ------
    ValueError
        If the kind is unknown.

    Examples
    --------
    >>> type(make_context("dot", memory_size=6, query_size=4, attention_size=8)).__name__
    'DotContext'
    """
    if kind == "mean":
        return MeanContext(memory_size=memory_size)
    if kind not in _KINDS:
        raise ValueError(f"unknown attention {kind!r}: choose from {[*_KINDS, 'mean']}")
    return _KINDS[kind](
        memory_size=memory_size, query_size=query_size, attention_size=attention_size
    )
