"""Convolutional front ends that shorten the time axis, exact for padded batches.

Every convolution sees zeros beyond an item's length, which is what its own edge padding gives
the item alone::

    item alone     0 | a b c | 0          one kernel of 3 around c sees (b, c, 0)
    in a batch     0 | a b c 0 0 0 | 0    masked before the convolution: (b, c, 0) again
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded, mask_padding
from speechkit.nn.shifts import depthwise_by_shifts


def _check_geometry(channels: Sequence[int], strides: Sequence[int], kernel_size: int) -> None:
    if not channels:
        raise ValueError("channels is empty: name the output channels of at least one layer")
    if len(channels) != len(strides):
        raise ValueError(
            f"{len(channels)} channels {list(channels)} but {len(strides)} strides "
            f"{list(strides)}: give one stride for each layer"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that frames stay centred: {kernel_size}")
    if min(strides) < 1:
        raise ValueError(f"strides must be at least 1: {list(strides)}")


def strided_lengths(lengths: Tensor, stride: int) -> Tensor:
    """Output frames of a convolution with an odd kernel and half of it padded on each side.

    Examples
    --------
    >>> strided_lengths(torch.tensor([0, 1, 4, 5]), 2).tolist()
    [0, 1, 2, 3]
    """
    return torch.div(lengths + stride - 1, stride, rounding_mode="floor")


def _masked(x: Tensor, lengths: Tensor) -> Tensor:
    """Zero the padding, and give an empty time axis one frame for a kernel to stand on."""
    if x.shape[1] == 0:
        return x.new_zeros((x.shape[0], 1, *x.shape[2:]))
    return mask_padding(x, lengths)


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Convolve each feature along time with its own kernel.

    Parameters
    ----------
    x : Tensor
        Shape ``(B, T, C)``.
    weight : Tensor
        Shape ``(C, 1, K)``, as of an `nn.Conv1d` with ``groups=C``.
    bias : Tensor, optional
        Shape ``(C,)``.
    padding : int
        Zero frames at each end.
    dilation : int
        Frames between the taps of the kernel.

    Returns
    -------
    Tensor
        Shape ``(B, T', C)``.

    Examples
    --------
    >>> x = torch.arange(4.0).view(1, 4, 1)
    >>> depthwise_conv(x, torch.ones(1, 1, 3), None, padding=2, dilation=2).flatten().tolist()
    [2.0, 4.0, 2.0, 4.0]
    """
    reach = dilation * (weight.shape[2] - 1)
    on_cpu = x.device.type == "cpu"
    if on_cpu and dilation > 1 and bias is not None and 2 * padding == reach:
        return depthwise_by_shifts(x, weight.to(x.dtype), bias.to(x.dtype), dilation)
    # As a 2-d convolution of height 1 the (B, T, C) batch is already in channels-last
    # layout: no transposed copy, and a kernel 20 times faster than conv1d's on a CPU.
    dtype = x.dtype
    # torch has no usable bfloat16 kernel for it on a CPU: one call takes minutes.
    if on_cpu and dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    with torch.autocast("cpu", enabled=False) if on_cpu else contextlib.nullcontext():
        out = F.conv2d(
            x.transpose(1, 2).unsqueeze(2),  # (B, C, 1, T)
            weight.unsqueeze(2).to(x.dtype),
            bias.to(x.dtype) if bias is not None else None,
            padding=(0, padding),
            dilation=(1, dilation),
            groups=x.shape[2],
        )
    return out.squeeze(2).transpose(1, 2).to(dtype)


class MaskedBatchNorm(nn.Module):
    """Batch norm over the valid frames of a padded batch.

    Ioffe and Szegedy 2015. In training the statistics are those of the valid frames in the batch,
    and their running averages are kept for evaluation.

    Parameters
    ----------
    num_features : int
        Features per frame.
    eps : float
        Added to the variance.
    momentum : float
        Share of the batch's statistics in the new running averages.

    Examples
    --------
    >>> norm = MaskedBatchNorm(num_features=4)
    >>> y = norm(torch.randn(2, 50, 4) * 3 + 1, torch.tensor([50, 20]))
    >>> valid = torch.cat([y[0], y[1, :20]])
    >>> bool(valid.mean().abs() < 1e-5), bool((valid.std() - 1).abs() < 0.02)
    (True, True)
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, *, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalise ``(B, T, num_features)``; the padding of the result is zero."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            valid = mask_padding(x.float(), lengths)
            count = lengths.clamp(max=x.shape[1]).sum()
            mean = valid.sum(dim=(0, 1)) / count.clamp(min=1)
            centred = mask_padding(valid - mean, lengths)
            var = centred.square().sum(dim=(0, 1)) / count.clamp(min=1)
            self._update(mean.detach(), var.detach(), count)
        scale = self.weight * (var + self.eps).rsqrt()
        out = torch.addcmul(self.bias - mean * scale, x.float(), scale)
        return mask_padding(out.to(x.dtype), lengths)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        # The running variance is unbiased, as torch's; a batch without frames changes nothing.
        share = self.momentum * (count > 0)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * count / (count - 1).clamp(min=1), share)


class ConvBlock(nn.Module):
    """Convolution along time, layer norm, SiLU, dropout.

    Parameters
    ----------
    input_size, output_size : int
        Features per frame before and after.
    kernel_size : int
        Odd; in frames.
    stride : int
        Input frames per output frame.
    dropout : float
        Probability of dropping an output value.

    Examples
    --------
    >>> block = ConvBlock(input_size=80, output_size=16, kernel_size=5, stride=3)
    >>> out = block(torch.randn(2, 30, 80), torch.tensor([30, 4]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 10, 16]), [10, 2])
    """

    def __init__(
        self,
        *,
        input_size: int,
        output_size: int,
        kernel_size: int = 3,
        stride: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_geometry([output_size], [stride], kernel_size)
        self.input_size = input_size
        self.output_size = output_size
        self.kernel_size = kernel_size
        self.stride = stride
        self.dropout = dropout
        self.conv = nn.Conv1d(
            input_size, output_size, kernel_size, stride=stride, padding=kernel_size // 2
        )
        self.norm = nn.LayerNorm(output_size)
        self.activation = nn.SiLU()
        self.drop = Dropout(dropout)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames."""
        return strided_lengths(lengths, self.stride)

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, ceil(T / stride), output_size)``."""
        x = _masked(x, lengths).transpose(1, 2)  # (B, F, T)
        x = self.norm(self.conv(x).transpose(1, 2))  # (B, T', D)
        lengths = self.num_frames(lengths)
        return Padded(mask_padding(self.drop(self.activation(x)), lengths), lengths)


class ConvEncoder(nn.Module):
    """A stack of `ConvBlock`: the small front end of a CNN + BiLSTM recogniser.

    Parameters
    ----------
    input_size : int
        Features per frame.
    channels, strides : sequence of int
        Output size and stride of each layer.
    kernel_size : int
        Odd; in frames.
    dropout : float
        Probability of dropping a value after each layer.

    Raises
    ------
    ValueError
        If channels and strides differ in number or the kernel is even.

    Examples
    --------
    >>> encoder = ConvEncoder(input_size=80, channels=(32, 32), strides=(2, 2))
    >>> out = encoder(torch.randn(2, 30, 80), torch.tensor([30, 5]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 8, 32]), [8, 2])
    """

    def __init__(
        self,
        *,
        input_size: int,
        channels: Sequence[int],
        strides: Sequence[int],
        kernel_size: int = 5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_geometry(channels, strides, kernel_size)
        self.input_size = input_size
        self.channels = list(channels)
        self.strides = list(strides)
        self.kernel_size = kernel_size
        self.dropout = dropout
        sizes = [input_size, *channels]
        self.blocks = nn.ModuleList(
            ConvBlock(
                input_size=sizes[i],
                output_size=sizes[i + 1],
                kernel_size=kernel_size,
                stride=stride,
                dropout=dropout,
            )
            for i, stride in enumerate(strides)
        )

    @property
    def output_size(self) -> int:
        """Features per output frame."""
        return self.channels[-1]

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames."""
        for stride in self.strides:
            lengths = strided_lengths(lengths, stride)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, T', channels[-1])`` and the new lengths."""
        for block in self.blocks:
            x, lengths = block(x, lengths)
        return Padded(x, lengths)


class ConvSubsampling(nn.Module):
    """Two-dimensional convolutions over time and frequency, then a linear layer.

    The usual front end of Transformer and Conformer encoders (Dong et al. 2018,
    "Speech-Transformer"; Gulati et al. 2020). Each layer is a convolution with its stride along
    both axes, an optional layer norm over the frame's frequencies and channels, and ReLU.

    Parameters
    ----------
    input_size : int
        Features per frame.
    channels, strides : sequence of int
        Output channels and stride of each layer.
    output_size : int
        Features per output frame.
    kernel_size : int
        Odd; frames and frequency bins.
    norm : bool
        Whether to normalise after each convolution.
    dropout : float
        Probability of dropping an output value.

    Raises
    ------
    ValueError
        If channels and strides differ in number or the kernel is even.

    Examples
    --------
    >>> front = ConvSubsampling(input_size=80, channels=(8, 8), strides=(2, 2), output_size=144)
    >>> out = front(torch.randn(2, 100, 80), torch.tensor([100, 41]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 25, 144]), [25, 11])
    """

    def __init__(
        self,
        *,
        input_size: int,
        channels: Sequence[int],
        strides: Sequence[int],
        output_size: int,
        kernel_size: int = 3,
        norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_geometry(channels, strides, kernel_size)
        self.input_size = input_size
        self.channels = list(channels)
        self.strides = list(strides)
        self.output_size = output_size
        self.kernel_size = kernel_size
        self.norm = norm
        self.dropout = dropout
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        num_bins, in_channels = input_size, 1
        for out_channels, stride in zip(channels, strides):
            self.convs.append(
                nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2)
            )
            num_bins, in_channels = (num_bins + stride - 1) // stride, out_channels
            self.norms.append(nn.LayerNorm(out_channels * num_bins) if norm else nn.Identity())
        self.linear = nn.Linear(in_channels * num_bins, output_size)
        self.drop = Dropout(dropout)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames."""
        for stride in self.strides:
            lengths = strided_lengths(lengths, stride)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, T', output_size)`` and the new lengths."""
        # Frames first and channels last in memory: the norm, the linear layer and the masks see
        # frames in one piece, and the convolutions take this layout as it is, without copies.
        x = x.unsqueeze(3)  # (B, T, F, C=1)
        for conv, norm, stride in zip(self.convs, self.norms, self.strides):
            image = _masked(x, lengths).permute(0, 3, 1, 2)  # (B, C, T, F)
            x = conv(image).permute(0, 2, 3, 1)
            lengths = strided_lengths(lengths, stride)
            x = torch.relu(norm(x.flatten(2)).unflatten(2, x.shape[2:]))
        x = self.drop(self.linear(x.flatten(2)))
        return Padded(mask_padding(x, lengths), lengths)
