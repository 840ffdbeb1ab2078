"""The decoder of Tacotron 2: frames of a spectrogram from a memory, one step after the other.

What a step knows of the steps before::

    last frame ── pre-net ──┐
    context ────────────────┴─> attention LSTM ─> query ─> attention ─> context
                                      └──────────────┬─────────────────────┘
                                                     └─> decoder LSTM ──┐
                                          context ──────────────────────┴─> frames, stop

The decoder LSTM tells the attention nothing but through the frames. In training these are known,
so it runs after the attention has been through the whole text, its inputs as one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.acoustic_outputs import full_precision
from speechkit.nn.dropout import dropout
from speechkit.nn.location_attention import AttendedMemory, AttentionState, LocationAttention
from speechkit.nn.lstm_steps import lstm_sequence, lstm_step
from speechkit.nn.shared_matrix import Matrix, product, share
from speechkit.nn.tacotron import Prenet
from speechkit.nn.tacotron_speech import SpeechMatrices, SpokenFrames, speak


class DecodedFrames(NamedTuple):
    """What the decoder gives for known frames.

    Attributes
    ----------
    frames : Tensor
        Shape ``(B, S * reduction_factor, num_mels)``.
    stop_logits : Tensor
        Shape ``(B, S)``: log odds that a step is the last.
    alignment : Tensor
        Shape ``(B, S, U)``.
    """

    frames: Tensor
    stop_logits: Tensor
    alignment: Tensor


class _Weights(NamedTuple):
    """Matrices of a step, laid out once for all of them."""

    attention: Matrix  # of (context, state), (C + H, 4 H)
    bias: Tensor  # (4 H,)
    prenet: Tensor  # (P, 4 H)


class _State(NamedTuple):
    """What a step of the attention leaves behind; ``(B, ...)`` all."""

    hidden: Tensor
    cell: Tensor
    context: Tensor
    looked: AttentionState


class TacotronDecoder(nn.Module):
    """Pre-net, attention LSTM, location-sensitive attention, decoder LSTM, frames and stop.

    Shen et al. 2018, "Natural TTS synthesis by conditioning WaveNet on mel spectrogram
    predictions", section 2.2; several frames per step as in Wang et al. 2017 (Tacotron), where
    the next step sees the last of them. Dropout of the LSTMs' outputs goes round with the state.

    Parameters
    ----------
    num_mels : int
        Features of a frame.
    memory_size : int
        Features of the memory.
    reduction_factor : int
        Frames of a step.
    prenet_sizes : sequence of int
        Units of the pre-net's layers.
    prenet_dropout : float
        Its dropout, also when speaking.
    attention_size, location_channels, location_kernel : int
        Of `speechkit.nn.location_attention.LocationAttention`.
    attention_lstm_size, decoder_lstm_size : int
        Units of both LSTMs.
    attention_dropout, decoder_dropout : float
        Probabilities of dropping a value of their outputs.

    Raises
    ------
    ValueError
        If ``reduction_factor`` is below 1.

    Examples
    --------
    >>> decoder = TacotronDecoder(
    ...     num_mels=8, memory_size=6, prenet_sizes=(5,), attention_lstm_size=7,
    ...     decoder_lstm_size=9, reduction_factor=2,
    ... )
    >>> memory, lengths = torch.randn(2, 4, 6), torch.tensor([4, 3])
    >>> out = decoder(memory, lengths, torch.zeros(2, 3, 8))
    >>> out.frames.shape, out.stop_logits.shape, out.alignment.shape
    (torch.Size([2, 6, 8]), torch.Size([2, 3]), torch.Size([2, 3, 4]))
    >>> spoken = decoder.eval().speak(memory, lengths, max_steps=5, stop_threshold=1.0)
    >>> spoken.frames.shape, spoken.alignment.shape
    (torch.Size([2, 10, 8]), torch.Size([2, 5, 4]))
    """

    def __init__(
        self,
        *,
        num_mels: int,
        memory_size: int,
        reduction_factor: int = 1,
        prenet_sizes: Sequence[int] = (256, 256),
        prenet_dropout: float = 0.5,
        attention_size: int = 128,
        location_channels: int = 32,
        location_kernel: int = 31,
        attention_lstm_size: int = 1024,
        decoder_lstm_size: int = 1024,
        attention_dropout: float = 0.1,
        decoder_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if reduction_factor < 1:
            raise ValueError(f"reduction_factor must be at least 1, not {reduction_factor}")
        for p in (attention_dropout, decoder_dropout):
            if not 0.0 <= p < 1.0:
                raise ValueError(f"the probability of dropout must lie in [0, 1), not {p}")
        self.num_mels = num_mels
        self.memory_size = memory_size
        self.reduction_factor = reduction_factor
        self.prenet_sizes = list(prenet_sizes)
        self.prenet_dropout = prenet_dropout
        self.attention_size = attention_size
        self.location_channels = location_channels
        self.location_kernel = location_kernel
        self.attention_lstm_size = attention_lstm_size
        self.decoder_lstm_size = decoder_lstm_size
        self.attention_dropout = attention_dropout
        self.decoder_dropout = decoder_dropout
        self.prenet = Prenet(input_size=num_mels, sizes=prenet_sizes, dropout=prenet_dropout)
        self.attention_lstm = nn.LSTMCell(prenet_sizes[-1] + memory_size, attention_lstm_size)
        self.attention = LocationAttention(
            memory_size=memory_size,
            query_size=attention_lstm_size,
            attention_size=attention_size,
            channels=location_channels,
            kernel_size=location_kernel,
        )
        self.decoder_lstm = nn.LSTMCell(attention_lstm_size + memory_size, decoder_lstm_size)
        width = decoder_lstm_size + memory_size
        self.frame_output = nn.Linear(width, num_mels * reduction_factor)
        self.stop_output = nn.Linear(width, 1)
        nn.init.xavier_uniform_(self.frame_output.weight)
        nn.init.xavier_uniform_(self.stop_output.weight)

    def forward(
        self, memory: Tensor, lengths: Tensor, previous: Tensor, seed: int = 0
    ) -> DecodedFrames:
        """Run with known frames.

        Parameters
        ----------
        memory : Tensor
            Shape ``(B, U, memory_size)``.
        lengths : Tensor
            Shape ``(B,)``: symbols.
        previous : Tensor
            Shape ``(B, S, num_mels)``: the frame before each step, zeros before the first.
        seed : int
            Of the pre-net's dropout in eval mode; in training it is drawn from torch's generator.
        """
        steps = previous.shape[1]
        masks = None
        if not self.training:
            masks = self.prenet.draw(steps, torch.Generator().manual_seed(seed))
        weights = self._weights()
        seen = self.prenet(previous, masks).transpose(0, 1)  # (S, B, P)
        gates = (seen @ weights.prenet + weights.bias).unbind(0)
        fixed = self.attention.fix(memory, lengths)
        state = self._start(memory, fixed)
        kept = self._dropped(steps, memory, self.attention_lstm_size, self.attention_dropout)
        states: list[_State] = []
        for step in range(steps):
            mask = None if kept is None else kept[step]
            state = self._look(gates[step], fixed, state, weights, mask)
            states.append(state)
        contexts = torch.stack([state.context for state in states])  # (S, B, C)
        found = torch.cat([torch.stack([state.hidden for state in states]), contexts], dim=-1)
        cell = self.decoder_lstm
        gates_of_decoder = F.linear(found, cell.weight_ih, cell.bias_ih + cell.bias_hh)
        kept = self._dropped(steps, memory, self.decoder_lstm_size, self.decoder_dropout)
        hidden = lstm_sequence(gates_of_decoder, cell.weight_hh, kept)
        out = torch.cat([hidden, contexts], dim=-1).transpose(0, 1)  # (B, S, ...)
        frames = full_precision(self.frame_output, out).reshape(len(memory), -1, self.num_mels)
        alignment = torch.stack([state.looked.previous for state in states], dim=1)
        stop_logits = full_precision(self.stop_output, out).squeeze(-1)
        return DecodedFrames(frames, stop_logits, alignment)

    @torch.no_grad()
    def speak(
        self,
        memory: Tensor,
        lengths: Tensor,
        *,
        max_steps: int,
        stop_threshold: float = 0.5,
        attention: Literal["soft", "forward"] = "soft",
        seed: int = 0,
    ) -> SpokenFrames:
        """Speak until each item says stop, or for ``max_steps``.

        All items of a batch share the pre-net's masks, so that each says what it says alone.

        Parameters
        ----------
        memory, lengths : Tensor
            As in `forward`.
        max_steps : int
            Steps at most.
        stop_threshold : float
            Probability above which a step is the last.
        attention : {"soft", "forward"}
            Softmax over all symbols, or forward attention (Zhang et al. 2018).
        seed : int
            Of the pre-net's dropout.

        Raises
        ------
        ValueError
            If the attention is unknown, or ``max_steps`` below 1.
        """
        if attention not in ("soft", "forward"):
            raise ValueError(f"unknown attention {attention!r}: choose from ['forward', 'soft']")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, not {max_steps}")
        matrices = self._speech_matrices()
        return speak(
            self.prenet,
            self.attention,
            matrices,
            memory,
            lengths,
            max_steps=max_steps,
            stop_threshold=stop_threshold,
            forward_only=attention == "forward",
            seed=seed,
        )

    def _speech_matrices(self) -> SpeechMatrices:
        """Weights of a step, sorted by what they multiply."""
        first, second, width = self.attention_lstm, self.decoder_lstm, self.prenet_sizes[-1]
        output = torch.cat([self.frame_output.weight, self.stop_output.weight])
        of_context = [
            first.weight_ih[:, width:],
            second.weight_ih[:, self.attention_lstm_size :],
            output[:, self.decoder_lstm_size :],
        ]
        return SpeechMatrices(
            context=torch.cat(of_context),
            attention=torch.cat([first.weight_ih[:, :width], first.weight_hh], dim=1),
            decoder=torch.cat(
                [second.weight_ih[:, : self.attention_lstm_size], second.weight_hh], dim=1
            ),
            output=output[:, : self.decoder_lstm_size],
            attention_bias=first.bias_ih + first.bias_hh,
            decoder_bias=second.bias_ih + second.bias_hh,
            output_bias=torch.cat([self.frame_output.bias, self.stop_output.bias]),
        )

    def _weights(self) -> _Weights:
        cell, width = self.attention_lstm, self.prenet_sizes[-1]
        attention = torch.cat([cell.weight_ih[:, width:], cell.weight_hh], dim=1)
        bias = cell.bias_ih + cell.bias_hh
        return _Weights(share(attention.T), bias, cell.weight_ih[:, :width].T)

    def _start(self, memory: Tensor, fixed: AttendedMemory) -> _State:
        zeros = torch.zeros(len(memory), self.attention_lstm_size, device=memory.device)
        context = memory.new_zeros(len(memory), self.memory_size)
        return _State(zeros, zeros, context, self.attention.start(fixed))

    def _look(
        self,
        gates: Tensor,
        fixed: AttendedMemory,
        state: _State,
        weights: _Weights,
        mask: Tensor | None,
    ) -> _State:
        """Attention LSTM and attention, from what the pre-net gives its gates ``(B, 4 H)``."""
        known = torch.cat([state.context.float(), state.hidden], dim=-1).unsqueeze(1)
        gates = gates + product(known, weights.attention).squeeze(1)
        hidden, cell = lstm_step(gates, state.cell)
        if mask is not None:
            hidden = hidden * mask
        found = self.attention(hidden, fixed, state.looked)
        return _State(hidden, cell, found.context, found.state)

    def _dropped(self, steps: int, memory: Tensor, size: int, p: float) -> Tensor | None:
        """Dropout masks ``(S, B, size)`` of a training pass; None where nothing is dropped."""
        if not self.training or p == 0.0:
            return None
        return dropout(torch.ones(steps, len(memory), size, device=memory.device), p)
