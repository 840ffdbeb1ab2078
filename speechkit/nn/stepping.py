"""What decoders and language models that write one token after another have in common.

A step decoder is an ``nn.Module`` that is called in two ways with the same numbers: ``forward`` on
whole sequences in training, and ``start`` and ``step`` in a search. The search keeps `K` prefixes
of each of `B` utterances::

    fixed = what belongs to an utterance    (B, ...)       never copied per prefix
    state = what belongs to a prefix        (B, K, ...)    reordered by `select_beams`

Token 0 begins and ends a sentence: `END`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.nn.masking import mask_padding

END = 0
"""Begin and end of a sentence in attention decoders and language models; in CTC the blank."""

_State = TypeVar("_State")


class Sentences(NamedTuple):
    """Label sequences as a model that predicts the next one takes them.

    Attributes
    ----------
    inputs : Tensor
        Shape ``(B, U + 1)``: ``[END, y1 .. yU]``.
    targets : Tensor
        Shape ``(B, U + 1)``: ``[y1 .. yU, END]``.
    lengths : Tensor
        Shape ``(B,)``: labels of each and one more.
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor


def as_sentences(tokens: Tensor, token_lengths: Tensor) -> Sentences:
    """Put the begin before the labels and the end behind them.

    Parameters
    ----------
    tokens : Tensor
        Shape ``(B, U)``, int64; what lies beyond an item's length means nothing.
    token_lengths : Tensor
        Shape ``(B,)``.

    Examples
    --------
    >>> sentences = as_sentences(torch.tensor([[3, 4], [5, 9]]), torch.tensor([2, 1]))
    >>> sentences.inputs.tolist(), sentences.targets.tolist(), sentences.lengths.tolist()
    ([[0, 3, 4], [0, 5, 0]], [[3, 4, 0], [5, 0, 0]], [3, 2])
    """
    tokens = mask_padding(tokens, token_lengths, END)
    return Sentences(F.pad(tokens, (1, 0), value=END), F.pad(tokens, (0, 1), value=END),
                     token_lengths + 1)  # fmt: skip


class DecoderOutput(NamedTuple):
    """Teacher-forced output of a decoder.

    Attributes
    ----------
    logits : Tensor
        Shape ``(B, U, V)``: row ``u`` scores the token after the first ``u + 1`` input tokens.
    attention : Tensor or None
        Shape ``(B, U, T)``, rows sum to 1 over the valid frames; None where there is none.
    """

    logits: Tensor
    attention: Tensor | None


class Start(NamedTuple):
    """Where a search begins: one empty prefix per utterance.

    Attributes
    ----------
    fixed : Any
        What belongs to an utterance: projected keys, masks. Tensors of leading axis ``B``.
    state : Any
        What belongs to a prefix: nested tuples and lists of tensors of leading axes ``(B, 1)``.
    """

    fixed: Any
    state: Any


class StepOutput(NamedTuple):
    """Output of one step for all prefixes.

    Attributes
    ----------
    log_probs : Tensor
        Shape ``(B, K, V)``, float32, of the next token.
    state : Any
        The state after the step, leading axes ``(B, K)``.
    attention : Tensor or None
        Shape ``(B, K, T)``: where the step looked; None where there is no attention.
    """

    log_probs: Tensor
    state: Any
    attention: Tensor | None = None


class StepDecoder(Protocol):
    """A decoder with memory, as a search sees it."""

    vocab_size: int
    memory_size: int

    def start(self, memory: Tensor, lengths: Tensor) -> Start:
        """Prepare ``memory`` ``(B, T, D)`` of ``lengths`` ``(B,)`` for stepping."""
        ...

    def step(self, tokens: Tensor, fixed: Any, state: Any) -> StepOutput:
        """Append ``tokens`` ``(B, K)`` to the prefixes and score what follows."""
        ...


def select_beams(state: _State, parents: Tensor) -> _State:
    """Gather the prefixes of a state: the new prefix ``k`` continues the old ``parents[:, k]``.

    Parameters
    ----------
    state : nested NamedTuple, tuple, list, dict of tensors
        Tensors of shape ``(B, K, ...)``. Anything that is no tensor (numbers, None) passes through.
    parents : Tensor
        Shape ``(B, K')``, int64, values in [0, K).

    Returns
    -------
    The same nesting
        Tensors of shape ``(B, K', ...)``.

    Examples
    --------
    >>> state = (torch.tensor([[1, 2], [3, 4]]), None)
    >>> select_beams(state, torch.tensor([[1, 1, 0], [0, 1, 0]]))[0].tolist()
    [[2, 2, 1], [3, 4, 3]]
    """
    return cast(_State, _select(state, parents, {}))


def _select(state: Any, parents: Tensor, flat: dict[int, Tensor]) -> Any:
    """Gather; ``flat`` keeps the parents' places in the flattened axes, by number of beams."""
    if isinstance(state, Tensor):
        beams = state.shape[1]
        if beams not in flat:
            first = torch.arange(0, len(parents) * beams, beams, device=parents.device)
            flat[beams] = (parents + first.unsqueeze(1)).flatten()
        return state.flatten(0, 1).index_select(0, flat[beams]).unflatten(0, parents.shape)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(_select(value, parents, flat) for value in state))
    if isinstance(state, list | tuple):
        return type(state)(_select(value, parents, flat) for value in state)
    if isinstance(state, dict):
        return {key: _select(value, parents, flat) for key, value in state.items()}
    return state
