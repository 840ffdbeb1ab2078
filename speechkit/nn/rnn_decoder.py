"""The recurrent decoder with attention (listen, attend and spell)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.nn.contexts import FixedMemory
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import mask_padding
from speechkit.nn.shared_matrix import Matrix, product, share
from speechkit.nn.stepping import DecoderOutput, Start, StepOutput

_CELLS: dict[str, type[nn.LSTMCell] | type[nn.GRUCell]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


class RNNDecoderState(NamedTuple):
    """What a prefix leaves behind.

    Attributes
    ----------
    hidden : tuple of Tensor
        Output of each layer, ``(B, K, H)``.
    cells : tuple of Tensor
        Memory cell of each LSTM layer, ``(B, K, H)``; empty for GRUs.
    context : Tensor
        Context of the last step, ``(B, K, C)``.
    alignment : Tensor or None
        State of the attention context, ``(B, K, T)``.
    """

    hidden: tuple[Tensor, ...]
    cells: tuple[Tensor, ...]
    context: Tensor
    alignment: Tensor | None


class _Layer(NamedTuple):
    """Matrices of a recurrent layer, as `product` takes them: of its input and of its state."""

    input: Matrix
    state: Matrix
    state_bias: Tensor


class RNNDecoder(nn.Module):
    """GRU or LSTM cells that see the previous token and the previous context.

    Chan et al. 2016, "Listen, attend and spell", eq. 6-8: ``s = RNN(s', y', c')``,
    ``c = Attend(s, h)``, ``p(y) = softmax(W [s, c])``. The attention's query is the last layer's
    state. Token 0 begins and ends a sentence.

    Parameters
    ----------
    vocab_size : int
        Number of tokens, with 0.
    memory_size : int
        Features of the encoder's frames.
    context : nn.Module
        One of `speechkit.nn.contexts`: takes the same ``memory_size``, and queries of
        ``hidden_size``.
    embed_dim : int
        Size of a token's embedding.
    hidden_size : int
        Units of each layer.
    num_layers : int
        Layers, at least 1.
    cell : {"gru", "lstm"}
        Kind of unit.
    dropout : float
        Probability of dropping a value of the embeddings, between layers, and before the output.
    scheduled_sampling : float
        Probability that a training step's input is the decoder's own best token instead of the
        reference (Bengio et al. 2015). Draws from torch's global generator, in training only.

    Raises
    ------
    ValueError
        If the cell is unknown, there is no layer, the probability is not in [0, 1], or the
        context takes other sizes.

    Examples
    --------
    >>> from speechkit.nn.contexts import AdditiveContext
    >>> decoder = RNNDecoder(
    ...     vocab_size=30, memory_size=8, embed_dim=6, hidden_size=16,
    ...     context=AdditiveContext(memory_size=8, query_size=16, attention_size=10),
    ... )
    >>> memory, lengths = torch.randn(2, 20, 8), torch.tensor([20, 13])
    >>> tokens, token_lengths = torch.tensor([[0, 4, 7], [0, 9, 0]]), torch.tensor([3, 2])
    >>> logits, attention = decoder(tokens, token_lengths, memory, lengths)
    >>> logits.shape, attention.shape
    (torch.Size([2, 3, 30]), torch.Size([2, 3, 20]))
    >>> fixed, state = decoder.start(memory, lengths)
    >>> step = decoder.step(tokens[:, :1], fixed, state)
    >>> torch.allclose(step.log_probs, logits[:, :1].log_softmax(-1), atol=1e-5)
    True
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        memory_size: int,
        context: nn.Module,
        embed_dim: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: Literal["gru", "lstm"] = "gru",
        dropout: float = 0.0,
        scheduled_sampling: float = 0.0,
    ) -> None:
        super().__init__()
        _check(cell, num_layers, scheduled_sampling)
        for name, wanted in (("memory_size", memory_size), ("query_size", hidden_size)):
            if getattr(context, name, wanted) != wanted:
                raise ValueError(
                    f"the context {type(context).__name__} has {name}={getattr(context, name)}, "
                    f"but this decoder gives it {wanted}"
                )
        self.vocab_size = vocab_size
        self.memory_size = memory_size
        self.context = context
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.cell = cell
        self.dropout = dropout
        self.scheduled_sampling = scheduled_sampling
        self.context_size = int(context.output_size)  # type: ignore[arg-type]
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        sizes = [embed_dim + self.context_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(_CELLS[cell](size, hidden_size) for size in sizes)
        self.drop = Dropout(dropout)
        self.output = nn.Linear(hidden_size + self.context_size, vocab_size)

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, memory: Tensor, lengths: Tensor
    ) -> DecoderOutput:
        """Score what follows each prefix of known sentences.

        Parameters
        ----------
        tokens : Tensor
            Shape ``(B, U)``, int64, input side: 0, then the sentence.
        token_lengths : Tensor
            Shape ``(B,)``: valid tokens with the first 0. Rows beyond mean nothing.
        memory : Tensor
            Shape ``(B, T, memory_size)``: the encoder's output.
        lengths : Tensor
            Shape ``(B,)``: valid frames.

        Returns
        -------
        DecoderOutput
            Logits ``(B, U, V)`` and alignments ``(B, U, T)``.

        Raises
        ------
        ValueError
            If there is no token, or the memory has another size.
        """
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must be (B, U) with U > 0, not {tuple(tokens.shape)}")
        tokens = mask_padding(tokens, token_lengths)
        fixed, state = self.start(memory, lengths)
        fixed = self.context.share(fixed)  # type: ignore[operator]
        layers = self._layers()
        inputs = self._token_gates(tokens.T).unbind(0)
        replaced = self._replaced(tokens)
        tops: list[Tensor] = []
        contexts: list[Tensor] = []
        alignments: list[Tensor] = []
        for step, gates in enumerate(inputs):
            if step and replaced is not None:
                gates = self._own_gates(gates, tops[-1], contexts[-1], replaced[:, step])
            state, weights = self._advance(gates.unsqueeze(1), fixed, state, layers)
            tops.append(state.hidden[-1])
            contexts.append(state.context)
            alignments.append(weights)
        features = torch.cat([torch.cat(tops, dim=1), torch.cat(contexts, dim=1)], dim=-1)
        return DecoderOutput(self.output(self.drop(features)), torch.cat(alignments, dim=1))

    def start(self, memory: Tensor, lengths: Tensor) -> Start:
        """Project a memory ``(B, T, D)`` once, and begin with one empty prefix per utterance."""
        fixed = self.context.fix(memory, lengths)  # type: ignore[operator]
        batch = memory.shape[0]
        zeros = (memory.new_zeros(batch, 1, self.hidden_size),) * self.num_layers
        state = RNNDecoderState(
            hidden=zeros,
            cells=zeros if self.cell == "lstm" else (),
            context=memory.new_zeros(batch, 1, self.context_size),
            alignment=self.context.start(fixed),  # type: ignore[operator]
        )
        return Start(fixed, state)

    def step(self, tokens: Tensor, fixed: FixedMemory, state: RNNDecoderState) -> StepOutput:
        """Append ``tokens`` ``(B, K)`` to the prefixes and score what follows."""
        gates = self._token_gates(tokens)
        state, weights = self._advance(gates, fixed, state, self._layers())
        features = torch.cat([state.hidden[-1], state.context], dim=-1)
        logits = self.output(self.drop(features)).float()
        return StepOutput(logits.log_softmax(dim=-1), state, weights)

    def _layers(self) -> list[_Layer]:
        """Prepare the matrices of all layers; the first one's input is the context alone."""
        layers = []
        for index, cell in enumerate(self.cells):
            weight: Any = cell.weight_ih
            weight = weight if index else weight[:, self.embed_dim :]
            state: Any = cell.weight_hh
            layers.append(_Layer(share(weight.T), share(state.T), cell.bias_hh))  # type: ignore
        return layers

    def _token_gates(self, tokens: Tensor) -> Tensor:
        """Return what tokens of any shape add to the first layer's gates ``(..., G)``."""
        cell: Any = self.cells[0]
        weight = cell.weight_ih[:, : self.embed_dim]
        return nn.functional.linear(self.drop(self.embedding(tokens)), weight, cell.bias_ih)

    def _advance(
        self, gates: Tensor, fixed: FixedMemory, state: RNNDecoderState, layers: list[_Layer]
    ) -> tuple[RNNDecoderState, Tensor]:
        """One step from the token's gates ``(B, K, G)``: the new state, the weights."""
        hidden, cells = [], []
        below = state.context
        for index, layer in enumerate(layers):
            if index:
                below = self.drop(below)
                gates = self.cells[index].bias_ih  # type: ignore[assignment]
            gates = product(below, layer.input) + gates
            recurrent = product(state.hidden[index], layer.state) + layer.state_bias
            if self.cell == "lstm":
                below, kept = _lstm(gates + recurrent, state.cells[index])
                cells.append(kept)
            else:
                below = _gru(gates, recurrent, state.hidden[index])
            hidden.append(below)
        context, weights, alignment = self.context(below, fixed, state.alignment)
        return RNNDecoderState(tuple(hidden), tuple(cells), context, alignment), weights

    def _replaced(self, tokens: Tensor) -> Tensor | None:
        """Which inputs ``(B, U)`` scheduled sampling replaces; None where it is off."""
        if not self.training or self.scheduled_sampling == 0.0:
            return None
        return torch.rand(tokens.shape, device=tokens.device) < self.scheduled_sampling

    def _own_gates(self, gates: Tensor, top: Tensor, context: Tensor, replaced: Tensor) -> Tensor:
        """Put gates of the decoder's own best token where ``replaced`` ``(B,)`` says so."""
        with torch.no_grad():
            best = self.output(torch.cat([top, context], dim=-1)).argmax(dim=-1).squeeze(1)
        return torch.where(replaced.unsqueeze(1), self._token_gates(best), gates)


def _check(cell: str, num_layers: int, scheduled_sampling: float) -> None:
    if cell not in _CELLS:
        raise ValueError(f"unknown cell {cell!r}: choose from {sorted(_CELLS)}")
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, not {num_layers}")
    if not 0.0 <= scheduled_sampling <= 1.0:
        raise ValueError(f"scheduled_sampling must lie in [0, 1], not {scheduled_sampling}")


def _gru(gates: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
    """`nn.GRUCell` from its two products ``(B, K, 3H)``."""
    size = state.shape[-1]
    opened = (gates[..., : 2 * size] + recurrent[..., : 2 * size]).sigmoid()
    reset, update = opened.chunk(2, dim=-1)
    new = torch.addcmul(gates[..., 2 * size :], reset, recurrent[..., 2 * size :]).tanh()
    return torch.lerp(new, state, update)


def _lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """`nn.LSTMCell` from the sum of its products ``(B, K, 4H)``: output and memory cell."""
    admit, forget, new, emit = gates.chunk(4, dim=-1)
    cell = torch.addcmul(forget.sigmoid() * cell, admit.sigmoid(), new.tanh())
    return emit.sigmoid() * cell.tanh(), cell
