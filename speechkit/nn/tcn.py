"""The mask network of Conv-TasNet: dilated depthwise convolutions over the whole utterance."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechkit.nn.conv import depthwise_conv
from speechkit.nn.masking import mask_padding, ragged
from speechkit.nn.norm import CumulativeLayerNorm, GlobalLayerNorm
from speechkit.nn.shifts import PReLU

MaskKind = Literal["relu", "sigmoid", "softmax"]


class TCNBlock(nn.Module):
    """Pointwise, dilated depthwise and pointwise convolution, with a residual and a skip path.

    Luo and Mesgarani 2019, "Conv-TasNet", figure 1(c).

    Parameters
    ----------
    num_features : int
        Features per frame, in and out.
    hidden_size : int
        Features between the pointwise convolutions.
    skip_size : int
        Features of the skip path.
    kernel_size : int
        Odd; taps of the depthwise convolution.
    dilation : int
        Frames between taps.
    causal : bool
        No future frames: kernels end at their frame, and norms are cumulative.
    """

    def __init__(
        self,
        *,
        num_features: int,
        hidden_size: int,
        skip_size: int,
        kernel_size: int = 3,
        dilation: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.hidden_size = hidden_size
        self.skip_size = skip_size
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.causal = causal
        norm = CumulativeLayerNorm if causal else GlobalLayerNorm
        self.expand = nn.Linear(num_features, hidden_size)
        self.activation1 = PReLU()
        self.norm1 = norm(num_features=hidden_size)
        self.depthwise = nn.Conv1d(
            hidden_size, hidden_size, kernel_size, dilation=dilation, groups=hidden_size
        )
        self.activation2 = PReLU()
        self.norm2 = norm(num_features=hidden_size)
        # Residual and skip path are one product.
        self.reduce = nn.Linear(hidden_size, num_features + skip_size)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map ``(B, T, num_features)`` to the same and the skip path ``(B, T, skip_size)``.

        ``lengths`` ``(B,)`` are all T by default; the input must be finite in the padding.
        """
        hidden = self.norm1(self.activation1(self.expand(x)), lengths)
        hidden = self._convolve(hidden if lengths is None else mask_padding(hidden, lengths))
        hidden = self.norm2(self.activation2(hidden), lengths)
        residual, skip = self.reduce(hidden).split([self.num_features, self.skip_size], dim=-1)
        return x + residual, skip

    def _convolve(self, x: Tensor) -> Tensor:
        conv, reach = self.depthwise, (self.kernel_size - 1) * self.dilation
        if not self.causal:
            half = reach // 2
            return depthwise_conv(x, conv.weight, conv.bias, padding=half, dilation=self.dilation)
        # Kernels that end at their frame are centred ones, half a reach earlier.
        x = F.pad(x, (0, 0, reach // 2, 0))
        x = depthwise_conv(x, conv.weight, conv.bias, padding=reach // 2, dilation=self.dilation)
        return x[:, : x.shape[1] - reach // 2]


class ConvTasNetMasker(nn.Module):
    """The separator of Conv-TasNet: ``num_repeats`` times blocks of dilations 1, 2, 4, ...

    Luo and Mesgarani 2019, "Conv-TasNet: Surpassing ideal time-frequency magnitude masking for
    speech separation", figure 1(b) and table II. With 512 features and the defaults below it has,
    with its filter banks of 16 samples, the 5.1 million parameters of the paper.

    Parameters
    ----------
    num_features : int
        Features per frame of the encoder.
    num_sources : int
        Masks.
    bottleneck_size, hidden_size, skip_size : int
        B, H and Sc of the paper.
    kernel_size : int
        P of the paper; odd.
    num_blocks : int
        X of the paper: block i has dilation ``2 ** i``.
    num_repeats : int
        R of the paper.
    mask : {"relu", "sigmoid", "softmax"}
        Nonlinearity of the masks; the softmax is over the sources.
    causal : bool
        No frame needs a later one.
    checkpointing : bool
        Compute the blocks once more in the backward pass instead of keeping what is in them.

    Raises
    ------
    ValueError
        If the kernel is even, the mask unknown, or a size below 1.

    Examples
    --------
    >>> masker = ConvTasNetMasker(
    ...     num_features=16, num_sources=2, bottleneck_size=8, hidden_size=12, skip_size=8,
    ...     num_blocks=2, num_repeats=1,
    ... )
    >>> masker(torch.rand(2, 30, 16), torch.tensor([30, 11])).shape
    torch.Size([2, 2, 30, 16])
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_sources: int,
        bottleneck_size: int = 128,
        hidden_size: int = 512,
        skip_size: int = 128,
        kernel_size: int = 3,
        num_blocks: int = 8,
        num_repeats: int = 3,
        mask: MaskKind = "relu",
        causal: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that frames stay centred: {kernel_size}")
        if mask not in ("relu", "sigmoid", "softmax"):
            raise ValueError(f"unknown mask {mask!r}: choose 'relu', 'sigmoid' or 'softmax'")
        if min(num_sources, num_blocks, num_repeats) < 1:
            raise ValueError(
                "num_sources, num_blocks and num_repeats must be at least 1, got "
                f"{num_sources}, {num_blocks} and {num_repeats}"
            )
        self.num_features = num_features
        self.num_sources = num_sources
        self.bottleneck_size = bottleneck_size
        self.hidden_size = hidden_size
        self.skip_size = skip_size
        self.kernel_size = kernel_size
        self.num_blocks = num_blocks
        self.num_repeats = num_repeats
        self.mask = mask
        self.causal = causal
        self.checkpointing = checkpointing
        norm = CumulativeLayerNorm if causal else GlobalLayerNorm
        self.norm = norm(num_features=num_features)
        self.bottleneck = nn.Linear(num_features, bottleneck_size)
        self.blocks = nn.ModuleList(
            TCNBlock(
                num_features=bottleneck_size,
                hidden_size=hidden_size,
                skip_size=skip_size,
                kernel_size=kernel_size,
                dilation=2**index,
                causal=causal,
            )
            for _ in range(num_repeats)
            for index in range(num_blocks)
        )
        self.activation = PReLU()
        self.output = nn.Linear(skip_size, num_sources * num_features)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Give the masks of frames.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, T, num_features)``.
        lengths : Tensor
            Shape ``(B,)``: valid frames.

        Returns
        -------
        Tensor
            Shape ``(B, num_sources, T, num_features)``; what is in the padding means nothing.
        """
        valid = ragged(lengths, x.shape[1])
        if valid is not None:
            x = mask_padding(x, valid)
        y = self.bottleneck(self.norm(x, valid))
        skips = y.new_zeros(*y.shape[:2], self.skip_size)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                y, skip = checkpoint(block, y, valid, use_reentrant=False)
            else:
                y, skip = block(y, valid)
            skips = skips + skip
        masks = self.output(self.activation(skips)).unflatten(-1, (self.num_sources, -1))
        masks = masks.transpose(1, 2)  # (B, S, T, N)
        if self.mask == "softmax":
            return masks.softmax(dim=1)
        return F.relu(masks) if self.mask == "relu" else masks.sigmoid()
