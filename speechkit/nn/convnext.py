"""Residual blocks of depthwise convolutions: much context for few operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechkit.nn.conv import depthwise_conv
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded, mask_padding


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, two pointwise layers, and the input added.

    Liu et al. 2022, "A ConvNet for the 2020s"; along time as in Siuzdak 2023, "Vocos".

    Parameters
    ----------
    embed_dim, hidden_size : int
        Features per frame, and between the pointwise layers.
    kernel_size : int
        Odd; in frames.
    dropout : float
        Probability of dropping a value of the block's output.
    layer_scale : float
        First value of the factors by which the features of the block's output are multiplied.

    Raises
    ------
    ValueError
        If the kernel is even.

    Examples
    --------
    >>> block = ConvNeXtBlock(embed_dim=8, hidden_size=24)
    >>> block(torch.randn(2, 9, 8), torch.tensor([9, 4])).shape
    torch.Size([2, 9, 8])
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        hidden_size: int,
        kernel_size: int = 7,
        dropout: float = 0.0,
        layer_scale: float = 0.2,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that frames stay centred: {kernel_size}")
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.layer_scale = layer_scale
        self.depthwise = nn.Conv1d(embed_dim, embed_dim, kernel_size, groups=embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.expand = nn.Linear(embed_dim, hidden_size)
        self.activation = nn.GELU()
        self.reduce = nn.Linear(hidden_size, embed_dim)
        self.scale = nn.Parameter(torch.full((embed_dim,), layer_scale))
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map ``(B, T, embed_dim)`` to the same shape; the result's padding means nothing."""
        conv = self.depthwise
        y = depthwise_conv(
            mask_padding(x, lengths), conv.weight, conv.bias, padding=self.kernel_size // 2
        )
        y = self.reduce(self.activation(self.expand(self.norm(y))))
        return x + self.drop(y * self.scale)


class ConvNeXtEncoder(nn.Module):
    """A stack of `ConvNeXtBlock` that keeps the time axis.

    Its receptive field is ``num_layers * (kernel_size - 1) + 1`` frames.

    Parameters
    ----------
    input_size : int
        Features per input frame; a linear layer maps them to ``embed_dim`` where they differ.
    embed_dim, num_layers, hidden_size : int
        Features, blocks, features between the pointwise layers of a block.
    kernel_size : int
        Odd; in frames.
    dropout : float
        Probability of dropping a value of a block's output.

    Raises
    ------
    ValueError
        If there is no block or the kernel is even.

    Examples
    --------
    >>> encoder = ConvNeXtEncoder(input_size=6, embed_dim=8, num_layers=2, hidden_size=24)
    >>> out = encoder(torch.randn(2, 9, 6), torch.tensor([9, 4]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 9, 8]), [9, 4])
    """

    def __init__(
        self,
        *,
        input_size: int,
        embed_dim: int,
        num_layers: int,
        hidden_size: int,
        kernel_size: int = 7,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, not {num_layers}")
        self.input_size = input_size
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.input = nn.Linear(input_size, embed_dim) if input_size != embed_dim else nn.Identity()
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(
                embed_dim=embed_dim,
                hidden_size=hidden_size,
                kernel_size=kernel_size,
                dropout=dropout,
                layer_scale=1.0 / num_layers,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)

    @property
    def output_size(self) -> int:
        """Features per output frame."""
        return self.embed_dim

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames: the same."""
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, T, embed_dim)``, zero in the padding."""
        x = self.input(mask_padding(x, lengths))
        for block in self.blocks:
            x = block(x, lengths)
        return Padded(mask_padding(self.norm(x), lengths), lengths)
