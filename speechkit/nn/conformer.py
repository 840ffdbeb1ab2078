"""The Conformer encoder: attention for what is far, convolution for what is near."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.attention import RelPosMultiHeadAttention
from speechkit.nn.chunks import check_chunks, draw_chunk_size, limit_to_chunks
from speechkit.nn.conv import MaskedBatchNorm, depthwise_conv
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded, mask_padding
from speechkit.nn.positional import relative_positions
from speechkit.nn.transformer import FeedForward

ConvNorm = Literal["layer", "batch"]


class ConformerConv(nn.Module):
    """Gated linear unit, depthwise convolution along time, norm, SiLU, linear.

    Gulati et al. 2020, section 2.2, without the dropout and the norm in front.

    Parameters
    ----------
    embed_dim : int
        Features per frame.
    kernel_size : int
        Odd; in frames.
    norm : {"layer", "batch"}
        What follows the depthwise convolution: a layer norm, or the paper's batch norm over the
        valid frames.
    causal : bool
        Whether the kernel ends at its frame instead of being centred on it.

    Raises
    ------
    ValueError
        If the kernel is even or the norm unknown.

    Examples
    --------
    >>> conv = ConformerConv(embed_dim=8, kernel_size=5)
    >>> conv(torch.randn(2, 9, 8), torch.tensor([9, 4])).shape
    torch.Size([2, 9, 8])
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        kernel_size: int = 31,
        norm: ConvNorm = "layer",
        causal: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that frames stay centred: {kernel_size}")
        if norm not in ("layer", "batch"):
            raise ValueError(f"unknown norm {norm!r}: choose 'layer' or 'batch'")
        self.embed_dim = embed_dim
        self.kernel_size = kernel_size
        self.norm = norm
        self.causal = causal
        self.expand = nn.Linear(embed_dim, 2 * embed_dim)
        self.depthwise = nn.Conv1d(
            embed_dim, embed_dim, kernel_size, padding=kernel_size // 2, groups=embed_dim
        )
        self.depthwise_norm = (
            nn.LayerNorm(embed_dim) if norm == "layer" else MaskedBatchNorm(num_features=embed_dim)
        )
        self.reduce = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map ``(B, T, embed_dim)`` to the same shape."""
        x = mask_padding(F.glu(self.expand(x), dim=-1), lengths)
        if self.causal:
            x = self._convolve(F.pad(x, (0, 0, self.kernel_size - 1, 0)), 0)
        else:
            x = self._convolve(x, self.kernel_size // 2)
        norm = self.depthwise_norm
        x = norm(x, lengths) if isinstance(norm, MaskedBatchNorm) else norm(x)
        return self.reduce(F.silu(x))

    def step(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Take the next frames of a stream, in eval mode and with ``causal``.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, t, embed_dim)``.
        tail : Tensor
            Shape ``(B, kernel_size - 1, embed_dim)``: what this gave the last time, zeros at first.

        Returns
        -------
        out : Tensor
            Shape ``(B, t, embed_dim)``.
        tail : Tensor
            For the next call.
        """
        gated = torch.cat([tail, F.glu(self.expand(x), dim=-1)], dim=1)
        out, norm = self._convolve(gated, 0), self.depthwise_norm
        if isinstance(norm, MaskedBatchNorm):
            out = norm(out, torch.full((x.shape[0],), x.shape[1], device=x.device))
        else:
            out = norm(out)
        return self.reduce(F.silu(out)), gated[:, x.shape[1] :]

    def _convolve(self, x: Tensor, padding: int) -> Tensor:
        conv = self.depthwise
        return depthwise_conv(x, conv.weight, conv.bias, padding=padding)


class ConformerLayer(nn.Module):
    """Half a feed-forward block, attention, convolution, half a feed-forward block, norm.

    Gulati et al. 2020, "Conformer: Convolution-augmented Transformer for speech recognition",
    equation 1.

    Parameters
    ----------
    embed_dim, num_heads, feedforward_size : int
        Features, attention heads, hidden features of the feed-forward blocks.
    kernel_size : int
        Of the depthwise convolution; odd, in frames.
    dropout : float
        Probability of dropping attention weights, hidden values and each block's output.
    norm : {"layer", "batch"}
        In the convolution block.
    bias : bool
        Whether the projections of the attention have biases.
    causal : bool
        Whether the convolution looks back only.

    Examples
    --------
    >>> layer = ConformerLayer(embed_dim=8, num_heads=2, feedforward_size=16, kernel_size=3)
    >>> layer(torch.randn(2, 5, 8), torch.tensor([5, 3])).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        feedforward_size: int,
        kernel_size: int = 31,
        dropout: float = 0.0,
        norm: ConvNorm = "layer",
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.feedforward_size = feedforward_size
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.norm = norm
        self.bias = bias
        self.causal = causal
        self.first_norm = nn.LayerNorm(embed_dim)
        self.first = self._feedforward()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = RelPosMultiHeadAttention(
            embed_dim=embed_dim, num_heads=num_heads, dropout=dropout, bias=bias
        )
        self.conv_norm = nn.LayerNorm(embed_dim)
        self.conv = ConformerConv(
            embed_dim=embed_dim, kernel_size=kernel_size, norm=norm, causal=causal
        )
        self.second_norm = nn.LayerNorm(embed_dim)
        self.second = self._feedforward()
        self.last_norm = nn.LayerNorm(embed_dim)
        self.drop = Dropout(dropout)

    def _feedforward(self) -> FeedForward:
        return FeedForward(
            embed_dim=self.embed_dim,
            hidden_size=self.feedforward_size,
            dropout=self.dropout,
            activation="silu",
        )

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        *,
        positions: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Map ``(B, T, embed_dim)`` to the same shape.

        ``positions`` are those of `speechkit.nn.positional.relative_positions`, shared by layers.
        """
        return self.run_blocks(
            x,
            lambda y: self.attention(y, lengths, positions=positions, attn_mask=attn_mask),
            lambda y: self.conv(y, lengths),
        )

    def run_blocks(
        self,
        x: Tensor,
        attend: Callable[[Tensor], Tensor],
        convolve: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Map ``(B, T, embed_dim)`` with other ways to attend and convolve: a stream's."""
        x = torch.add(x, self.drop(self.first(self.first_norm(x))), alpha=0.5)
        x = x + self.drop(attend(self.attention_norm(x)))
        x = x + self.drop(convolve(self.conv_norm(x)))
        x = torch.add(x, self.drop(self.second(self.second_norm(x))), alpha=0.5)
        return self.last_norm(x)


class ConformerEncoder(nn.Module):
    """Conformer layers, usually behind a `speechkit.nn.conv.ConvSubsampling` in a `Stack`.

    Parameters
    ----------
    input_size : int
        Features per input frame; a linear layer maps them to ``embed_dim`` where they differ.
    embed_dim, num_heads, num_layers, feedforward_size : int
        Features, attention heads, layers, hidden features of the feed-forward blocks. The paper's
        small, medium and large: 144, 4, 16, 576; 256, 4, 16, 1024; 512, 8, 17, 2048.
    kernel_size : int
        Of the depthwise convolution; odd, in frames.
    dropout : float
        Probability of dropping attention weights, hidden values and each block's output.
    norm : {"layer", "batch"}
        In the convolution blocks; "batch" is the paper's, over the valid frames only.
    bias : bool
        Whether the projections of the attention have biases.
    causal : bool
        Whether the convolutions look back only.
    chunk_size, left_chunks, dynamic_chunks
        As in `speechkit.nn.transformer.TransformerEncoder`; they need ``causal``.

    Raises
    ------
    ValueError
        If the settings make no sense.

    Examples
    --------
    >>> encoder = ConformerEncoder(
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
        kernel_size: int = 31,
        dropout: float = 0.0,
        norm: ConvNorm = "layer",
        bias: bool = True,
        causal: bool = False,
        chunk_size: int | None = None,
        left_chunks: int | None = None,
        dynamic_chunks: bool = False,
    ) -> None:
        super().__init__()
        check_chunks(chunk_size, left_chunks, dynamic_chunks)
        if (chunk_size is not None or dynamic_chunks) and not causal:
            raise ValueError(
                f"chunk_size={chunk_size}, dynamic_chunks={dynamic_chunks}: convolutions of "
                f"{kernel_size} frames in {num_layers} layers would look beyond the chunk; give "
                "causal=True too"
            )
        self.input_size = input_size
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.feedforward_size = feedforward_size
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.norm = norm
        self.bias = bias
        self.causal = causal
        self.chunk_size = chunk_size
        self.left_chunks = left_chunks
        self.dynamic_chunks = dynamic_chunks
        self.input = nn.Linear(input_size, embed_dim) if input_size != embed_dim else nn.Identity()
        self.drop = Dropout(dropout)
        self.layers = nn.ModuleList(
            ConformerLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                feedforward_size=feedforward_size,
                kernel_size=kernel_size,
                dropout=dropout,
                norm=norm,
                bias=bias,
                causal=causal,
            )
            for _ in range(num_layers)
        )

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
        x = self.drop(self.input(mask_padding(x, lengths)))
        positions = relative_positions(x.shape[1], self.embed_dim, x.device)
        for layer in self.layers:
            x = layer(x, lengths, positions=positions, attn_mask=attn_mask)
        return Padded(mask_padding(x, lengths), lengths)
