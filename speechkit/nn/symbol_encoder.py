"""The encoder of Transformer TTS: symbols to a memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded, mask_padding
from speechkit.nn.positional import sinusoids
from speechkit.nn.tacotron import NormedConv
from speechkit.nn.transformer import TransformerLayer


class ScaledPositions(nn.Module):
    """Sinusoidal positions times a learned factor, added to the input.

    Li et al. 2019, "Neural speech synthesis with Transformer network", section 3.2: text and speech
    are of different scales, so each has its own factor.

    Parameters
    ----------
    embed_dim : int
        Features.

    Examples
    --------
    >>> ScaledPositions(embed_dim=4)(torch.zeros(1, 2, 4)).detach()[0, 0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """

    def __init__(self, *, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Add the positions ``first, first + 1, ..`` to ``(B, T, embed_dim)``."""
        positions = torch.arange(first, first + x.shape[1], device=x.device)
        return x + self.scale * sinusoids(positions, self.embed_dim)


class SymbolEncoder(nn.Module):
    """Symbols to a memory: embeddings, convolutions, Transformer layers.

    Li et al. 2019, "Neural speech synthesis with Transformer network", sections 3.3 and 3.5: the
    convolutions are those of Tacotron 2, and a linear layer centres what their ReLU left positive.

    Parameters
    ----------
    num_symbols : int
        Symbols of the text front end.
    embed_dim, num_heads, num_layers, feedforward_size : int
        Features, attention heads, Transformer layers, hidden features of their feed-forward blocks.
    num_convs, kernel_size : int
        Convolutions, and the symbols that a filter sees; odd.
    conv_dropout, dropout : float
        Probability of dropping a value after a convolution, and in the Transformer layers.
    pre_norm : bool
        Whether norms come before the blocks.

    Examples
    --------
    >>> encoder = SymbolEncoder(num_symbols=9, embed_dim=8, num_heads=2, num_layers=1,
    ...                         feedforward_size=16)
    >>> encoder(torch.tensor([[1, 2, 3]]), torch.tensor([3])).data.shape
    torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        *,
        num_symbols: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        feedforward_size: int,
        num_convs: int = 3,
        kernel_size: int = 5,
        conv_dropout: float = 0.5,
        dropout: float = 0.1,
        pre_norm: bool = True,
    ) -> None:
        super().__init__()
        self.num_symbols = num_symbols
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.feedforward_size = feedforward_size
        self.num_convs = num_convs
        self.kernel_size = kernel_size
        self.conv_dropout = conv_dropout
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.embedding = nn.Embedding(num_symbols, embed_dim)
        self.convs = nn.ModuleList(
            NormedConv(
                input_size=embed_dim, output_size=embed_dim, kernel_size=kernel_size, gain="relu"
            )
            for _ in range(num_convs)
        )
        self.conv_drop = Dropout(conv_dropout)
        self.centre = nn.Linear(embed_dim, embed_dim)
        self.positions = ScaledPositions(embed_dim=embed_dim)
        self.drop = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                feedforward_size=feedforward_size,
                dropout=dropout,
                pre_norm=pre_norm,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim) if pre_norm else nn.Identity()

    def forward(self, tokens: Tensor, lengths: Tensor) -> Padded:
        """Map symbols ``(B, U)`` to ``(B, U, embed_dim)``, zero in the padding."""
        x = mask_padding(self.embedding(mask_padding(tokens, lengths)), lengths)
        for conv in self.convs:
            x = self.conv_drop(conv(x, lengths).relu())
        x = self.drop(self.positions(self.centre(x)))
        for layer in self.layers:
            x = layer(x, lengths)
        return Padded(mask_padding(self.norm(x), lengths), lengths)
