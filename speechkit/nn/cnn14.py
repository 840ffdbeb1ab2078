"""CNN14 of the pretrained audio neural networks (PANNs), and the pooling that belongs to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechkit.nn.conv2d_classifier import (
    check_pools,
    conv_norm,
    fill_frames,
    frames_needed,
    pool_image,
    pooled_lengths,
)
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded, length_mask, mask_padding, ragged
from speechkit.nn.tdnn import FrameBatchNorm


class CNN14Block(nn.Module):
    """Two convolutions of 3 x 3, each with batch norm and ReLU, and mean pooling.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels before and after.
    pool : int
        How many frames and bins become one.

    Examples
    --------
    >>> block = CNN14Block(in_channels=1, out_channels=4)
    >>> out = block(torch.zeros(2, 10, 8, 1), torch.tensor([10, 5]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 5, 4, 4]), [5, 2])
    """

    def __init__(self, *, in_channels: int, out_channels: int, pool: int = 2) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.pool = pool
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = FrameBatchNorm(num_features=out_channels)
        self.bn2 = FrameBatchNorm(num_features=out_channels)
        for conv in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(conv.weight)

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map an image ``(B, T, F, C)``, zero in the padding, to ``(B, T // pool, F // pool, D)``.

        The result is zero in the padding too.
        """
        valid = ragged(lengths, x.shape[1])
        x = torch.relu(conv_norm(x, self.conv1, self.bn1, valid))
        x = torch.relu(conv_norm(x, self.conv2, self.bn2, valid))
        return pool_image(x, lengths, self.pool, "mean")


class CNN14(nn.Module):
    """Frames of CNN14, for sounds; weights have the names of the published ones.

    Kong et al. 2020, "PANNs: large-scale pretrained audio neural networks for audio pattern
    recognition", table 1: batch norm of each mel bin, six blocks, of which all but the last
    halve frames and bins, and the mean over the bins. With `MaxMeanPooling`, an embedding layer of
    2048 and 527 classes (`speechkit.models.classifier`) it has the 80,753,615 parameters of the
    paper. The features are log-mel in dB: 32 kHz, ``n_fft=1024``, ``hop_length=320``, 64 bins from
    50 to 14000 Hz, ``mel_scale="slaney"``, ``norm="slaney"``.

    Parameters
    ----------
    input_size : int
        Mel bins.
    channels : sequence of int
        Output channels of each block; fewer make a smaller network.
    dropout : float
        Probability of dropping a value after each block.

    Raises
    ------
    ValueError
        If the blocks leave no bin.

    Examples
    --------
    >>> encoder = CNN14(input_size=64, channels=(2, 4, 4, 4, 4, 8)).eval()
    >>> out = encoder(torch.randn(2, 100, 64), torch.tensor([100, 20]))
    >>> out.data.shape, out.lengths.tolist()  # 20 frames are fewer than 32: one is left
    (torch.Size([2, 3, 8]), [3, 1])
    """

    def __init__(
        self,
        *,
        input_size: int = 64,
        channels: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self._pools = [2] * (len(channels) - 1) + [1] if channels else []
        check_pools(input_size, channels, self._pools)
        self.input_size = input_size
        self.channels = list(channels)
        self.dropout = dropout
        self.bn0 = FrameBatchNorm(num_features=input_size)
        sizes = [1, *channels]
        for index, pool in enumerate(self._pools):
            block = CNN14Block(in_channels=sizes[index], out_channels=sizes[index + 1], pool=pool)
            self.add_module(f"conv_block{index + 1}", block)
        self.drop = Dropout(dropout)

    @property
    def output_size(self) -> int:
        """Features per output frame."""
        return self.channels[-1]

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, in order."""
        return [self.get_submodule(f"conv_block{i + 1}") for i in range(len(self.channels))]

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames: half, rounded down, after each block."""
        for pool in self._pools:
            lengths = pooled_lengths(lengths, pool)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, T', channels[-1])`` and the new lengths."""
        x = self.bn0(x, ragged(lengths, x.shape[1]))
        x = fill_frames(x, lengths, frames_needed(self._pools)).unsqueeze(3)  # (B, T, F, C=1)
        for block in self.blocks:
            x, lengths = block(x, lengths)
            x = self.drop(x)
        return Padded(x.mean(2), lengths)


class MaxMeanPooling(nn.Module):
    """The largest value of each feature over an item's frames, plus the mean.

    Kong et al. 2020, section III-A: one finds what is loud somewhere, the other what is there all
    the time.

    Parameters
    ----------
    input_size : int
        Features per frame.

    Examples
    --------
    >>> pool = MaxMeanPooling(input_size=1)
    >>> pool(torch.tensor([[[1.0], [3.0], [77.0]]]), torch.tensor([2])).tolist()
    [[5.0]]
    """

    def __init__(self, *, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size

    @property
    def output_size(self) -> int:
        """Features of the pooled vector."""
        return self.input_size

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``(B, T, input_size)`` to ``(B, input_size)``; an item without frames gives 0."""
        mean = mask_padding(x, lengths).sum(1) / lengths.clamp(min=1).unsqueeze(1)
        valid = length_mask(lengths, x.shape[1]).unsqueeze(2)
        top = x.masked_fill(~valid, -math.inf).amax(1)
        return mean + top.masked_fill(lengths.unsqueeze(1) == 0, 0.0)
