"""The mask network of Conv-TasNet: dilated depthwise convolutions over the whole utterance."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechkit.nn.conv import depthwise_conv
from speechkit.nn.masking import length_mask
from speechkit.nn.shifts import PReLU

MaskKind = Literal["relu", "sigmoid", "softmax"]


class GlobalLayerNorm(nn.Module):
    """Normalise each item over all its valid frames and features.

    Luo and Mesgarani 2019, "Conv-TasNet", eq. 7 (gLN).

    Parameters
    ----------
    num_features : int
        Features per frame.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> norm = GlobalLayerNorm(num_features=4)
    >>> y = norm(torch.randn(1, 50, 4) * 3 + 1, None)
    >>> bool(y.mean().abs() < 1e-5), bool((y.var(unbiased=False) - 1).abs() < 1e-4)
    (True, True)
    """

    def __init__(self, *, num_features: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Normalise ``(B, T, num_features)``; ``mask`` ``(B, T, 1)`` is 1 at valid frames.

        Without a mask all frames are valid. With one, ``x`` must be zero elsewhere.
        """
        x = x.float()
        if mask is None:  # torch's kernel, over frames and features at once
            flat = F.layer_norm(x.flatten(1), (x.shape[1] * x.shape[2],), eps=self.eps)
            return torch.addcmul(self.bias, flat.view_as(x), self.weight)
        count = mask.sum(dim=(1, 2), keepdim=True).clamp(min=1) * self.num_features
        mean = x.sum(dim=(1, 2), keepdim=True) / count
        var = ((x - mean) * mask).square().sum(dim=(1, 2), keepdim=True) / count
        scale = self.weight * (var + self.eps).rsqrt()
        return torch.addcmul(self.bias - mean * scale, x, scale)


class CumulativeLayerNorm(nn.Module):
    """Normalise each frame by the features of all frames up to it.

    Luo and Mesgarani 2019, "Conv-TasNet", eq. 8-10 (cLN): nothing of the future is needed.

    Parameters
    ----------
    num_features : int
        Features per frame.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> norm = CumulativeLayerNorm(num_features=4)
    >>> x = torch.randn(1, 9, 4)
    >>> torch.allclose(norm(x, None)[:, :5], norm(x[:, :5], None), atol=1e-6)
    True
    """

    def __init__(self, *, num_features: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Normalise ``(B, T, num_features)``; what follows an item's end changes nothing."""
        # Sums of squares in float64: their difference is the variance, over a whole recording.
        wide = x.double()
        count = self.num_features * torch.arange(1, x.shape[1] + 1, device=x.device)
        mean = wide.sum(dim=2).cumsum(dim=1) / count
        var = (wide.square().sum(dim=2).cumsum(dim=1) / count - mean.square()).clamp(min=0)
        scale = (var + self.eps).rsqrt()
        mean, scale = mean.float().unsqueeze(2), scale.float().unsqueeze(2)
        return torch.addcmul(self.bias, (x - mean) * scale, self.weight)


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

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map ``(B, T, num_features)`` to the same and the skip path ``(B, T, skip_size)``."""
        hidden = self.norm1(_masked(self.activation1(self.expand(x)), mask), mask)
        hidden = self._convolve(_masked(hidden, mask))
        hidden = self.norm2(_masked(self.activation2(hidden), mask), mask)
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
        mask = valid_frames(lengths, x.shape[1])
        y = self.bottleneck(self.norm(_masked(x, mask), mask))
        skips = y.new_zeros(*y.shape[:2], self.skip_size)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                y, skip = checkpoint(block, y, mask, use_reentrant=False)
            else:
                y, skip = block(y, mask)
            skips = skips + skip
        masks = self.output(self.activation(skips)).unflatten(-1, (self.num_sources, -1))
        masks = masks.transpose(1, 2)  # (B, S, T, N)
        if self.mask == "softmax":
            return masks.softmax(dim=1)
        return F.relu(masks) if self.mask == "relu" else masks.sigmoid()


def valid_frames(lengths: Tensor, num_frames: int) -> Tensor | None:
    """Return ``(B, T, 1)``, 1 at valid frames and 0 elsewhere; None where all are valid.

    Batches of training are crops of one length: nothing is multiplied by ones there.
    """
    if bool((lengths >= num_frames).all()):
        return None
    return length_mask(lengths, num_frames).unsqueeze(2).float()


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the padding, where there is some; what is there may be NaN."""
    return x if mask is None else x.masked_fill(mask == 0, 0.0)
