"""What runs within and across chunks: recurrent layers, or Transformer layers.

A block maps ``(R, T, embed_dim)`` to the same shape: R sequences of T frames. The memory layout of
input and output is free, so that a time-major block costs its caller no copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechkit.nn.attention import KeyValue, attention_bias
from speechkit.nn.dropout import Dropout
from speechkit.nn.positional import absolute_positions
from speechkit.nn.rnn import reversal_index
from speechkit.nn.transformer import Activation, TransformerLayer

_CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
_SHORT = 32
"""Frames up to which written-out attention is faster than the fused kernel of a CPU."""


def _run(function: Callable[[Tensor], Tensor], x: Tensor, checkpointing: bool) -> Tensor:
    return checkpoint(function, x, use_reentrant=False) if checkpointing else function(x)


class RNNBlock(nn.Module):
    """Recurrent layers and a linear one back to the number of features.

    Luo, Chen and Yoshioka 2020, "Dual-path RNN", eq. 3-4 and 7.

    Parameters
    ----------
    embed_dim : int
        Features per frame, in and out.
    hidden_size : int
        Units of one direction of a layer.
    num_layers : int
        Recurrent layers.
    cell : {"lstm", "gru"}
        Kind of unit.
    bidirectional : bool
        Whether each layer also reads from the end.
    dropout : float
        Probability of dropping a value between layers.

    Raises
    ------
    ValueError
        If the cell is unknown or there is no layer.

    Examples
    --------
    >>> block = RNNBlock(embed_dim=6, hidden_size=4)
    >>> x = torch.randn(2, 9, 6)
    >>> batch, alone = block(x, torch.tensor([9, 5])), block(x[1:, :5])
    >>> batch.shape, torch.allclose(batch[1, :5], alone[0], atol=1e-5)
    (torch.Size([2, 9, 6]), True)
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: Literal["lstm", "gru"] = "lstm",
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise ValueError(f"unknown cell {cell!r}: choose from {sorted(_CELLS)}")
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, not {num_layers}")
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.cell = cell
        self.bidirectional = bidirectional
        self.dropout = dropout
        width = hidden_size * (2 if bidirectional else 1)
        self.layers = nn.ModuleList(
            _CELLS[cell](width if layer else embed_dim, hidden_size, bidirectional=bidirectional)
            for layer in range(num_layers)
        )
        self.drop = Dropout(dropout)
        self.linear = nn.Linear(width, embed_dim)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, *, checkpointing: bool = False
    ) -> Tensor:
        """Map ``(R, T, embed_dim)`` to the same shape; ``lengths (R,)`` are all T by default."""
        index = None
        if lengths is not None and self.bidirectional:
            index = reversal_index(lengths, x.shape[1]).T.unsqueeze(-1)  # (T, R, 1)
        return _run(lambda y: self._layers(y, index), x, checkpointing)

    def _layers(self, x: Tensor, index: Tensor | None) -> Tensor:
        x = x.transpose(0, 1)  # the layers are time-major
        for number, layer in enumerate(self.layers):
            x = self.drop(x) if number else x
            x = layer(x)[0] if index is None else _read_both(layer, x, index)
        return self.linear(x).transpose(0, 1)


def _read_both(layer: nn.Module, x: Tensor, index: Tensor) -> Tensor:
    """Run a bidirectional layer, the second direction from each sequence's own end."""
    ahead, back = layer.all_weights  # type: ignore[misc]
    backwards = x.gather(0, index.expand(-1, -1, x.shape[2]))
    backwards = _read(layer, backwards, back)
    backwards = backwards.gather(0, index.expand(-1, -1, backwards.shape[2]))
    return torch.cat([_read(layer, x, ahead), backwards], dim=-1)


def _read(layer: nn.Module, x: Tensor, weights: list[Tensor]) -> Tensor:
    state = x.new_zeros(1, x.shape[1], int(layer.hidden_size))  # type: ignore[arg-type]
    options = (weights, True, 1, 0.0, layer.training, False, False)
    if isinstance(layer, nn.LSTM):
        return torch.lstm(x, (state, state), *options)[0]
    return torch.gru(x, state, *options)[0]


class TransformerBlock(nn.Module):
    """Transformer layers over sinusoidal positions, and a last norm.

    Subakan et al. 2021, "Attention is all you need in speech separation", section 2.2, eq. 2-6;
    the residual round the whole block is that of `DualPathBlock`.

    Parameters
    ----------
    embed_dim, num_heads, num_layers, feedforward_size : int
        Features, attention heads, layers, hidden features of the feed-forward blocks.
    dropout : float
        Probability of dropping attention weights, hidden values and each layer's outputs.
    pre_norm : bool
        Whether norms come before attention and feed-forward instead of after their sums.
    activation : {"relu", "gelu", "silu"}
        Of the feed-forward blocks.
    positions : bool
        Whether sinusoids are added to the input.
    linear : bool
        Whether a linear layer follows.

    Raises
    ------
    ValueError
        If there is no layer, or the heads do not divide the features.

    Examples
    --------
    >>> block = TransformerBlock(embed_dim=8, num_heads=2, num_layers=2, feedforward_size=16)
    >>> x = torch.randn(2, 9, 8)
    >>> batch, alone = block(x, torch.tensor([9, 5])), block(x[1:, :5])
    >>> batch.shape, torch.allclose(batch[1, :5], alone[0], atol=1e-5)
    (torch.Size([2, 9, 8]), True)
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int = 8,
        num_layers: int = 8,
        feedforward_size: int = 1024,
        dropout: float = 0.0,
        pre_norm: bool = True,
        activation: Activation = "relu",
        positions: bool = True,
        linear: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, not {num_layers}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.feedforward_size = feedforward_size
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.activation = activation
        self.positions = positions
        self.linear = linear
        self.layers = nn.ModuleList(
            TransformerLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                feedforward_size=feedforward_size,
                dropout=dropout,
                pre_norm=pre_norm,
                activation=activation,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6  # that of the published checkpoints
        self.output = nn.Linear(embed_dim, embed_dim) if linear else nn.Identity()

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, *, checkpointing: bool = False
    ) -> Tensor:
        """Map ``(R, T, embed_dim)`` to the same shape; ``lengths (R,)`` are all T by default."""
        return _run(partial(self._layers, lengths), x, checkpointing)

    def _layers(self, lengths: Tensor | None, x: Tensor) -> Tensor:
        x = x.contiguous()
        if self.positions:
            x = x + absolute_positions(x.shape[1], self.embed_dim, x.device)
        for layer in self.layers:
            x = _apply_layer(layer, lengths, x)
        return self.output(self.norm(x))


def _apply_layer(layer: nn.Module, lengths: Tensor | None, x: Tensor) -> Tensor:
    assert isinstance(layer, TransformerLayer)
    attention, feedforward = layer.attention, layer.feedforward

    def attend(query: Tensor, pair: KeyValue) -> Tensor:
        mask = attention_bias(lengths, x.shape[1], None, query.dtype)
        short = x.device.type == "cpu" and x.shape[1] <= _SHORT
        return attention.attend(query, pair, mask, need_weights=short).output

    if not layer.pre_norm:
        return layer.run_blocks(x, lambda y: attend(*attention.project_self(y)))
    query, pair = _keep_input(lambda y: attention.project_self(layer.attention_norm(y)), x)
    x = x + layer.drop(attend(query, pair))
    hidden = _keep_input(lambda y: feedforward.expand(layer.feedforward_norm(y)), x)
    hidden = feedforward.drop(feedforward.nonlinearity(hidden))
    return x + layer.drop(feedforward.reduce(hidden))


def _keep_input(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """Apply a norm and a product, and keep nothing but their input for the backward pass.

    The backward pass runs the norm again, which is cheap, and stops before the product, since by
    then it has all that it needs. That saves a sixth of the memory of training.
    """
    if not torch.is_grad_enabled():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
