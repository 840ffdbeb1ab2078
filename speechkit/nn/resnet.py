"""ResNet over time and frequency, for speakers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.conv import strided_lengths
from speechkit.nn.masking import Padded, mask_padding, ragged
from speechkit.nn.tdnn import FrameBatchNorm


class _ConvNorm(nn.Module):
    """Convolution over frames and bins, then batch norm over the valid frames.

    Images are ``(B, T, F, C)``, which is the channels-last layout of ``(B, C, T, F)``; rows beyond
    an item's frames are zero before and after.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False
        )
        self.norm = FrameBatchNorm(num_features=out_channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Map ``(B, T, F, C)``; ``lengths`` ``(B,)`` are the frames after, if not all."""
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, T', F', D)
        bins = x.shape[2]
        valid = None if lengths is None else lengths * bins
        return self.norm(x.flatten(1, 2), valid).unflatten(1, (-1, bins))


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3 and a residual.

    He, Zhang, Ren and Sun 2016, "Deep residual learning for image recognition", figure 2.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels before and after.
    stride : int
        Frames and bins in for one out; the residual is projected where this is above 1 or the
        channels differ.
    """

    def __init__(self, *, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.first = _ConvNorm(in_channels, out_channels, 3, stride)
        self.second = _ConvNorm(out_channels, out_channels, 3, 1)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else _ConvNorm(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, T, F, C)`` to ``(B, T', F', D)``.

        ``lengths`` ``(B,)`` are the valid frames after the block, all by default; where they are
        given, the input must be zero in the padding, and the output is.
        """
        hidden = self.second(F.relu(self.first(x, lengths)), lengths)
        return F.relu(hidden + (x if self.shortcut is None else self.shortcut(x, lengths)))


class ResNetEncoder(nn.Module):
    """Frames of a ResNet34 for speakers (the "r-vector").

    Zeinali, Wang, Silnova, Matejka and Plchot 2019, "BUT system description to VoxCeleb speaker
    recognition challenge 2019", table 1: 32 channels first, stages of 3, 4, 6 and 3 blocks, bins
    and frames halved by all stages but the first. With 80 bins, `StatisticsPooling` of
    `speechkit.nn.pooling` and an embedding of 256 it has 6.6 million parameters.

    Parameters
    ----------
    input_size : int
        Bins of a frame.
    channels : int
        Channels of the first stage; each further one has twice as many.
    num_blocks : sequence of int
        Blocks of each stage.

    Raises
    ------
    ValueError
        If there is no stage, or one without blocks.

    Examples
    --------
    >>> import torch
    >>> encoder = ResNetEncoder(input_size=20, channels=4, num_blocks=(1, 1))
    >>> out = encoder(torch.randn(2, 31, 20), torch.tensor([31, 5]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 16, 80]), [16, 3])
    """

    def __init__(
        self, *, input_size: int = 80, channels: int = 32, num_blocks: Sequence[int] = (3, 4, 6, 3)
    ) -> None:
        super().__init__()
        if not num_blocks or min(num_blocks) < 1:
            raise ValueError(f"num_blocks {list(num_blocks)}: at least one stage, with blocks")
        self.input_size = input_size
        self.channels = channels
        self.num_blocks = list(num_blocks)
        self.stem = _ConvNorm(1, channels, 3, 1)
        self.blocks = nn.ModuleList()
        size = channels
        for stage, count in enumerate(self.num_blocks):
            width = channels * 2**stage
            for index in range(count):
                stride = 2 if stage and not index else 1
                self.blocks.append(
                    ResidualBlock(in_channels=size, out_channels=width, stride=stride)
                )
                size = width

    @property
    def output_size(self) -> int:
        """Features per output frame: bins that are left, times channels."""
        bins = self.input_size
        for _ in self.num_blocks[1:]:
            bins = (bins + 1) // 2
        return bins * self.channels * 2 ** (len(self.num_blocks) - 1)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames."""
        for _ in self.num_blocks[1:]:
            lengths = strided_lengths(lengths, 2)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, T', output_size)``, zero in the padding."""
        valid = ragged(lengths, x.shape[1])
        x = x if valid is None else mask_padding(x, valid)
        if x.shape[1] == 0:  # a kernel needs one frame to stand on
            x, valid = x.new_zeros(len(x), 1, self.input_size), lengths
        x = F.relu(self.stem(x.unsqueeze(3), valid))
        for block in self.blocks:
            if valid is not None:
                valid = strided_lengths(valid, cast(ResidualBlock, block).stride)
            x = block(x, valid)
        return Padded(x.flatten(2), self.num_frames(lengths))
