"""How the decoder of Tacotron 2 speaks: one step after the other, each as few bytes as it can be.

On one row, the time of a step is that of reading its matrices. The context is a weighted mean of
the memory, so that what it adds to gates and outputs is the same mean of the memory multiplied by
their weights, once before the first step: for a sentence of 80 symbols, a sixth of the bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.nn.location_attention import LocationAttention
from speechkit.nn.lstm_steps import lstm_step
from speechkit.nn.tacotron import Prenet

_BLOCK = 64
"""Steps whose pre-net masks are drawn at once."""


class SpokenFrames(NamedTuple):
    """What the decoder says by itself.

    Attributes
    ----------
    frames : Tensor
        Shape ``(B, S * reduction_factor, num_mels)``; means nothing beyond an item's steps.
    steps : Tensor
        Shape ``(B,)``: steps with the one that said stop.
    alignment : Tensor
        Shape ``(B, S, U)``.
    stopped : Tensor
        Shape ``(B,)``, bool: whether any step said stop.
    """

    frames: Tensor
    steps: Tensor
    alignment: Tensor
    stopped: Tensor


class SpeechMatrices(NamedTuple):
    """Weights ``(outputs, inputs)`` of a step, sorted by what they multiply.

    Attributes
    ----------
    context : Tensor
        Of the context: to the gates of the attention LSTM, to those of the decoder LSTM, to the
        outputs, ``(4 H + 4 D + O, C)``.
    attention : Tensor
        Of pre-net and state, to the gates of the attention LSTM, ``(4 H, P + H)``.
    decoder : Tensor
        Of both LSTMs' states, to the gates of the decoder LSTM, ``(4 D, H + D)``.
    output : Tensor
        Of the decoder LSTM's output, to a step's frames and the log odds of the stop, ``(O, D)``.
    attention_bias, decoder_bias, output_bias : Tensor
        Of the three.
    """

    context: Tensor
    attention: Tensor
    decoder: Tensor
    output: Tensor
    attention_bias: Tensor
    decoder_bias: Tensor
    output_bias: Tensor


def speak(
    prenet: Prenet,
    attention: LocationAttention,
    weights: SpeechMatrices,
    memory: Tensor,
    lengths: Tensor,
    *,
    max_steps: int,
    stop_threshold: float,
    forward_only: bool,
    seed: int,
) -> SpokenFrames:
    """Speak until each item says stop, or for ``max_steps``.

    Under autocast the large matrices have its type; all else is float32.

    Parameters
    ----------
    prenet, attention, weights
        Parts of a `speechkit.nn.tacotron_decoder.TacotronDecoder`.
    memory : Tensor
        Shape ``(B, U, memory_size)``.
    lengths : Tensor
        Shape ``(B,)``: symbols.
    max_steps : int
        Steps at most.
    stop_threshold : float
        Probability above which a step is the last.
    forward_only : bool
        As in `speechkit.nn.location_attention.LocationAttention`.
    seed : int
        Of the pre-net's dropout.
    """
    kind = memory.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with torch.autocast(kind, enabled=False):
        steps = _Steps(prenet, attention, weights, memory.float(), lengths, dtype)
        generator = torch.Generator().manual_seed(seed)
        last = torch.full_like(lengths, max_steps)
        stopped = torch.zeros_like(lengths, dtype=torch.bool)
        groups, alignments, masks = [], [], []
        for step in range(max_steps):
            if step % _BLOCK == 0:
                masks = prenet.draw(_BLOCK, generator)
            group, odds = steps.take([mask[step % _BLOCK] for mask in masks], forward_only)
            groups.append(group)
            alignments.append(steps.looked.previous)
            stop = odds.sigmoid() > stop_threshold
            last = torch.where(stop & ~stopped, step + 1, last)
            stopped = stopped | stop
            if bool(stopped.all()):
                break
    frames = torch.stack(groups, dim=1).reshape(len(memory), -1, prenet.input_size)
    return SpokenFrames(frames, last, torch.stack(alignments, dim=1), stopped)


class _Steps:
    """What a step leaves to the next one, and the matrices as they are read fastest."""

    def __init__(
        self,
        prenet: Prenet,
        attention: LocationAttention,
        weights: SpeechMatrices,
        memory: Tensor,
        lengths: Tensor,
        dtype: torch.dtype | None,
    ) -> None:
        self.prenet, self.attention_layer, self.weights = prenet, attention, weights
        items = len(memory)
        self.fixed = attention.fix(memory, lengths)
        self.looked = attention.start(self.fixed)
        self.context: Tensor | None = None
        if items * memory.shape[1] < 2 * memory.shape[2]:
            self.fixed = self.fixed._replace(values=memory @ weights.context.T)
        else:  # with so many symbols, what is multiplied beforehand is more than the matrix
            self.context = _laid_out(weights.context, items, dtype)
        self.attention = _laid_out(weights.attention, items, dtype)
        self.decoder = _laid_out(weights.decoder, items, dtype)
        self.output = weights.output.T
        sizes = (len(weights.attention_bias), len(weights.decoder_bias), len(weights.output_bias))
        self.sizes = list(sizes)
        self.given = [memory.new_zeros(items, size) for size in sizes]
        self.hidden = self.cell = memory.new_zeros(items, sizes[0] // 4)
        self.top = self.top_cell = memory.new_zeros(items, sizes[1] // 4)
        self.frame = memory.new_zeros(items, prenet.input_size)

    def take(self, masks: list[Tensor], forward_only: bool) -> tuple[Tensor, Tensor]:
        """Take a step: its frames side by side ``(B, r M)`` and the log odds of the stop."""
        weights = self.weights
        known = torch.cat([self.prenet(self.frame, masks), self.hidden], dim=-1)
        gates = _times(known, self.attention) + weights.attention_bias + self.given[0]
        self.hidden, self.cell = lstm_step(gates, self.cell)
        found = self.attention_layer(
            self.hidden, self.fixed, self.looked, forward_only=forward_only
        )
        self.looked = found.state
        given = found.context if self.context is None else _times(found.context, self.context)
        self.given = list(given.split(self.sizes, dim=-1))
        known = torch.cat([self.hidden, self.top], dim=-1)
        gates = _times(known, self.decoder) + weights.decoder_bias + self.given[1]
        self.top, self.top_cell = lstm_step(gates, self.top_cell)
        out = self.top @ self.output + weights.output_bias + self.given[2]
        self.frame = out[:, -1 - self.prenet.input_size : -1]
        return out[:, :-1], out[:, -1]


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    return (x.to(matrix.dtype) @ matrix).float()


def _laid_out(weight: Tensor, items: int, dtype: torch.dtype | None) -> Tensor:
    """Transpose a weight ``(O, I)``, stored as the steps read it fastest.

    A single row on a CPU takes two thirds of the time where the matrix is stored ``(I, O)``;
    several rows, and bfloat16, do not.
    """
    if dtype is not None:
        return weight.to(dtype).T
    alone = weight.device.type == "cpu" and items == 1
    return weight.T.contiguous() if alone else weight.T
