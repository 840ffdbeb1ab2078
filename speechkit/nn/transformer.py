"""The Transformer encoder, and the feed-forward block it shares with the Conformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from speechkit.nn.attention import MultiHeadAttention
from speechkit.nn.chunks import check_chunks, draw_chunk_size, limit_to_chunks
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded, mask_padding
from speechkit.nn.positional import absolute_positions

Activation = Literal["relu", "gelu", "silu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class FeedForward(nn.Module):
    """Two linear layers, frame by frame, with an activation between them.

    Parameters
    ----------
    embed_dim, hidden_size : int
        Features outside and inside.
    dropout : float
        Probability of dropping a value after the activation.
    activation : {"relu", "gelu", "silu"}
        Non-linearity.

    Raises
    ------
    ValueError
        If the activation is unknown.

    Examples
    --------
    >>> import torch
    >>> FeedForward(embed_dim=8, hidden_size=32)(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        hidden_size: int,
        dropout: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"unknown activation {activation!r}: choose from {sorted(_ACTIVATIONS)}"
            )
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.activation = activation
        self.expand = nn.Linear(embed_dim, hidden_size)
        self.nonlinearity = _ACTIVATIONS[activation]()
        self.drop = Dropout(dropout)
        self.reduce = nn.Linear(hidden_size, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., embed_dim)`` to the same shape."""
        return self.reduce(self.drop(self.nonlinearity(self.expand(x))))


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection and a layer norm.

    Vaswani et al. 2017 (norm after the sum); Xiong et al. 2020, "On layer normalization in the
    Transformer architecture" (norm before the block).

    Parameters
    ----------
    embed_dim, num_heads, feedforward_size : int
        Features, attention heads, hidden features of the feed-forward block.
    dropout : float
        Probability of dropping attention weights, hidden values and each block's output.
    pre_norm : bool
        Whether the norm comes before each block instead of after the sum.
    activation : {"relu", "gelu", "silu"}
        Of the feed-forward block.

    Examples
    --------
    >>> import torch
    >>> layer = TransformerLayer(embed_dim=8, num_heads=2, feedforward_size=16)
    >>> layer(torch.randn(2, 5, 8), torch.tensor([5, 3])).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        feedforward_size: int,
        dropout: float = 0.0,
        pre_norm: bool = True,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.feedforward_size = feedforward_size
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.activation = activation
        self.attention = MultiHeadAttention(
            embed_dim=embed_dim, num_heads=num_heads, dropout=dropout
        )
        self.feedforward = FeedForward(
            embed_dim=embed_dim,
            hidden_size=feedforward_size,
            dropout=dropout,
            activation=activation,
        )
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.feedforward_norm = nn.LayerNorm(embed_dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor, *, attn_mask: Tensor | None = None) -> Tensor:
        """Map ``(B, T, embed_dim)`` to the same shape."""
        return self.run_blocks(x, lambda y: self.attention(y, lengths, attn_mask=attn_mask))

    def run_blocks(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """Map ``(B, T, embed_dim)`` with another way to attend: a stream's has a memory."""
        if self.pre_norm:
            x = x + self.drop(attend(self.attention_norm(x)))
            return x + self.drop(self.feedforward(self.feedforward_norm(x)))
        x = self.attention_norm(x + self.drop(attend(x)))
        return self.feedforward_norm(x + self.drop(self.feedforward(x)))


class TransformerEncoder(nn.Module):
    """Transformer layers over sinusoidal positions.

    Parameters
    ----------
    input_size : int
        Features per input frame; a linear layer maps them to ``embed_dim`` where they differ.
    embed_dim, num_heads, num_layers, feedforward_size : int
        Features, attention heads, layers, hidden features of the feed-forward blocks.
    dropout : float
        Probability of dropping attention weights, hidden values and each block's output.
    pre_norm : bool
        Whether norms come before the blocks; then a last norm follows the layers.
    activation : {"relu", "gelu", "silu"}
        Of the feed-forward blocks.
    chunk_size : int, optional
        Frames of a chunk: a frame sees its own chunk and those before it, so that the encoder can
        stream (`speechkit.nn.streaming`). By default a frame sees all frames.
    left_chunks : int, optional
        How many chunks before its own a frame sees; all by default.
    dynamic_chunks : bool
        Draw the chunk size of each training batch (`speechkit.nn.chunks.draw_chunk_size`);
        ``chunk_size``, which may be set anew on the trained encoder, is then that of evaluation.

    Raises
    ------
    ValueError
        If the settings make no sense.

    Examples
    --------
    >>> import torch
    >>> encoder = TransformerEncoder(
    ...     input_size=80, embed_dim=32, num_heads=4, num_layers=2, feedforward_size=64)
    >>> out = encoder(torch.randn(2, 20, 80), torch.tensor([20, 7]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 20, 32]), [20, 7])
    """

    def __init__(
        self,
        *,
        input_size: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        feedforward_size: int,
        dropout: float = 0.0,
        pre_norm: bool = True,
        activation: Activation = "relu",
        chunk_size: int | None = None,
        left_chunks: int | None = None,
        dynamic_chunks: bool = False,
    ) -> None:
        super().__init__()
        check_chunks(chunk_size, left_chunks, dynamic_chunks)
        self.input_size = input_size
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.feedforward_size = feedforward_size
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.activation = activation
        self.chunk_size = chunk_size
        self.left_chunks = left_chunks
        self.dynamic_chunks = dynamic_chunks
        self.input = nn.Linear(input_size, embed_dim) if input_size != embed_dim else nn.Identity()
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
        self.norm = nn.LayerNorm(embed_dim) if pre_norm else nn.Identity()
        self.drop = Dropout(dropout)

    @property
    def output_size(self) -> int:
        """Features per output frame."""
        return self.embed_dim

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames: the same."""
        return lengths

    def forward(self, x: Tensor, lengths: Tensor, *, attn_mask: Tensor | None = None) -> Padded:
        """Encode a padded batch.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, T, input_size)``.
        lengths : Tensor
            Shape ``(B,)``: valid frames.
        attn_mask : Tensor, optional
            Bool, ``(T, T)`` or ``(B, T, T)``: True where a frame may see another.

        Returns
        -------
        Padded
            Data ``(B, T, embed_dim)``, zero in the padding, and the lengths.
        """
        size = draw_chunk_size() if self.training and self.dynamic_chunks else self.chunk_size
        attn_mask = limit_to_chunks(attn_mask, x.shape[1], size, self.left_chunks, x.device)
        x = self.input(mask_padding(x, lengths))
        positions = absolute_positions(x.shape[1], self.embed_dim, x.device)
        x = self.drop(x + positions)
        for layer in self.layers:
            x = layer(x, lengths, attn_mask=attn_mask)
        return Padded(mask_padding(self.norm(x), lengths), lengths)
