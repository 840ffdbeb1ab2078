"""Keys and values of the prefixes of a search, without copying them when prefixes are reordered.

Every token that a prefix ever appended keeps its slot; which prefix sees which slot is a table. A
search reorders the table and leaves the slots where they are::

    3 prefixes, 2 steps          slots  0 1 2 3 4 5
    prefix 0 came from 1         sees   . x . x . .
    prefix 1 came from 1         sees   . x . . x .
    prefix 2 came from 0         sees   x . . . . x

So the `K` prefixes are `K` queries of one masked attention. Copying instead, once to reorder and
once to append, took longer than all matrix products of a step (6 layers of 512 features, 8 x 10
prefixes of 50 tokens, CPU). Prefixes of a search soon share their past, so that most slots are
seen by none: these are dropped from time to time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.nn.attention import KeyValue

_FIRST_COMPACTION = 128


class TokenCache:
    """Slots of all layers: tensors ``(B, H, S, D)`` with spare room, appended in place.

    It passes through `select_beams` as it is. Two steps from one state do not disturb each other:
    the second finds its place taken and works on a copy.

    Parameters
    ----------
    num_layers : int
        Layers.
    """

    def __init__(self, num_layers: int) -> None:
        self.layers: list[KeyValue | None] = [None] * num_layers
        self.used = 0
        self.compact_at = _FIRST_COMPACTION

    def write(self, layer: int, filled: int, new: KeyValue) -> KeyValue:
        """Put ``new`` ``(B, H, K, D)`` after the first ``filled`` slots and give all of them."""
        end = filled + new.keys.shape[2]
        pair = self.layers[layer]
        if pair is None or pair.keys.shape[2] < end:
            pair = self.layers[layer] = KeyValue(
                *(_with_room(None if pair is None else pair[i], new[i], filled) for i in (0, 1))
            )
        for slots, values in zip(pair, new):
            slots[:, :, filled:end] = values
        self.used = end
        return KeyValue(pair.keys[:, :, :end], pair.values[:, :, :end])

    def copy(self, filled: int, index: Tensor | None = None) -> TokenCache:
        """Copy the first ``filled`` slots, or those of an ``index`` ``(B, S')``."""
        copy = TokenCache(len(self.layers))
        copy.used = filled if index is None else index.shape[1]
        copy.compact_at = self.compact_at
        for i, pair in enumerate(self.layers):
            if pair is not None:
                copy.layers[i] = KeyValue(*(_take(part, filled, index) for part in pair))
        return copy


class TokenState(NamedTuple):
    """State of a Transformer's prefixes in a search.

    Attributes
    ----------
    seen : Tensor
        Bool, shape ``(B, K, S)``: the slots that a prefix sees.
    length : int
        Tokens of each prefix.
    cache : TokenCache
        The slots.
    """

    seen: Tensor
    length: int
    cache: TokenCache

    def extended(self) -> TokenState:
        """Give the state with one more token per prefix, whose slots are yet to be written."""
        state = self
        if state.seen.shape[2] >= state.cache.compact_at:
            state = _compact(state)
        filled, cache = state.seen.shape[2], state.cache
        # Autograd keeps what the steps before saw, so nothing may be written into it.
        if cache.used != filled or torch.is_grad_enabled():
            cache = cache.copy(filled)
        batch_size, num_prefixes = state.seen.shape[:2]
        own = torch.eye(num_prefixes, dtype=torch.bool, device=state.seen.device)
        seen = torch.cat([state.seen, own.expand(batch_size, -1, -1)], dim=2)
        return TokenState(seen, state.length + 1, cache)


def empty_state(num_layers: int, batch_size: int, device: torch.device) -> TokenState:
    """Give one empty prefix per utterance.

    Examples
    --------
    >>> empty_state(2, 3, torch.device("cpu")).seen.shape
    torch.Size([3, 1, 0])
    """
    seen = torch.zeros(batch_size, 1, 0, dtype=torch.bool, device=device)
    return TokenState(seen, 0, TokenCache(num_layers))


def _compact(state: TokenState) -> TokenState:
    """Drop the slots that no prefix sees."""
    alive = state.seen.any(dim=1)  # (B, S)
    most = int(alive.sum(dim=1).max())
    # Where an utterance has fewer, dead slots fill up: nobody sees them.
    index = alive.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    seen = state.seen.gather(2, index.unsqueeze(1).expand(-1, state.seen.shape[1], -1))
    cache = state.cache.copy(state.seen.shape[2], index)
    cache.compact_at = 2 * most + _FIRST_COMPACTION
    return TokenState(seen, state.length, cache)


def _with_room(old: Tensor | None, new: Tensor, filled: int) -> Tensor:
    batch_size, num_heads, num_new, size = new.shape
    room = new.new_empty(batch_size, num_heads, max(2 * filled, 16 * num_new), size)
    if old is not None:
        room[:, :, :filled] = old[:, :, :filled]
    return room


def _take(slots: Tensor, filled: int, index: Tensor | None) -> Tensor:
    if index is None:
        return slots[:, :, :filled].clone()
    rows = torch.arange(len(index), device=index.device).unsqueeze(1)
    return slots.transpose(1, 2)[rows, index].transpose(1, 2).contiguous()
