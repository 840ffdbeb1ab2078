"""Small convolutional encoder over time and frequency, for sounds.

Images are ``(B, T, F, C)``, which is the channels-last layout of ``(B, C, T, F)``. Rows beyond an
item's frames are zero before each convolution, as its own edge padding is when the item is alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded, mask_padding, ragged
from speechkit.nn.tdnn import FrameBatchNorm

PoolKind = Literal["max", "mean"]


def pooled_lengths(lengths: Tensor, pool: int) -> Tensor:
    """Frames after pooling: whole groups only, but one where there is less than a group.

    Examples
    --------
    >>> pooled_lengths(torch.tensor([0, 1, 2, 5]), 2).tolist()
    [0, 1, 1, 2]
    """
    return torch.maximum(
        torch.div(lengths, pool, rounding_mode="floor"), lengths.clamp(min=0, max=1)
    )


def fill_frames(x: Tensor, lengths: Tensor, num_frames: int) -> Tensor:
    """Zero the padding of ``(B, T, F)``, and add frames up to ``num_frames`` for kernels to use.

    Examples
    --------
    >>> fill_frames(torch.ones(1, 2, 1), torch.tensor([1]), 3).flatten().tolist()
    [1.0, 0.0, 0.0]
    """
    if ragged(lengths, x.shape[1]) is not None:
        x = mask_padding(x, lengths)
    return F.pad(x, (0, 0, 0, max(0, num_frames - x.shape[1])))


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: FrameBatchNorm, valid: Tensor | None) -> Tensor:
    """Convolve an image ``(B, T, F, C)`` and normalise its channels over the valid frames.

    Parameters
    ----------
    x : Tensor
        Zero in the padding.
    conv : nn.Conv2d
        That keeps the number of frames.
    norm : FrameBatchNorm
        Over the channels.
    valid : Tensor, optional
        Shape ``(B,)``: frames of each item, if not all.

    Returns
    -------
    Tensor
        Shape ``(B, T, F', D)``, zero in the padding.
    """
    x = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, T, F', D)
    bins = x.shape[2]
    rows = None if valid is None else valid * bins
    return norm(x.flatten(1, 2), rows).unflatten(1, (-1, bins))


def pool_image(x: Tensor, lengths: Tensor, pool: int, kind: PoolKind) -> Padded:
    """Pool ``pool`` x ``pool`` frames and bins of an image ``(B, T, F, C)``.

    An item with less than ``pool`` frames is pooled with the zeros after it, so that something of
    it is left.

    Examples
    --------
    >>> image = torch.tensor([1.0, 3.0, 5.0]).view(1, 3, 1, 1).expand(1, 3, 2, 1)
    >>> out = pool_image(image, torch.tensor([3]), 2, "mean")
    >>> out.data.flatten().tolist(), out.lengths.tolist()
    ([2.0], [1])
    """
    lengths = pooled_lengths(lengths, pool)
    if pool > 1:
        pooling = F.max_pool2d if kind == "max" else F.avg_pool2d
        x = pooling(x.permute(0, 3, 1, 2), pool).permute(0, 2, 3, 1)
    # A group that is half of an item and half of its padding belongs to neither.
    if ragged(lengths, x.shape[1]) is not None:
        x = mask_padding(x, lengths)
    return Padded(x, lengths)


class Conv2dEncoder(nn.Module):
    """Blocks of convolution, batch norm, ReLU, pooling and dropout; the mean over the bins.

    The small network of many entries to sound classification (Salamon and Bello 2017, "Deep
    convolutional neural networks and data augmentation for environmental sound classification"),
    without their dense layers: pooling over time is left to `speechkit.models.classifier`.

    Parameters
    ----------
    input_size : int
        Features per frame.
    channels : sequence of int
        Output channels of each block.
    pools : sequence of int
        Of each block, how many frames and bins become one.
    kernel_size : int
        Odd; frames and bins.
    pool_kind : {"max", "mean"}
        How they become one.
    dropout : float
        Probability of dropping a value after each block.

    Raises
    ------
    ValueError
        If channels and pools differ in number, the kernel is even, the pools leave no bin, or the
        kind is unknown.

    Examples
    --------
    >>> encoder = Conv2dEncoder(input_size=64, channels=(8, 16), pools=(2, 4))
    >>> out = encoder(torch.randn(2, 100, 64), torch.tensor([100, 41]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 12, 16]), [12, 5])
    """

    def __init__(
        self,
        *,
        input_size: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        pools: Sequence[int] = (2, 2, 2, 2),
        kernel_size: int = 3,
        pool_kind: PoolKind = "max",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that frames stay centred: {kernel_size}")
        if pool_kind not in ("max", "mean"):
            raise ValueError(f"unknown pool_kind {pool_kind!r}: choose 'max' or 'mean'")
        check_pools(input_size, channels, pools)
        self.input_size = input_size
        self.channels = list(channels)
        self.pools = list(pools)
        self.kernel_size = kernel_size
        self.pool_kind: PoolKind = pool_kind
        self.dropout = dropout
        sizes = [1, *channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, bias=False)
            for before, after in pairwise(sizes)
        )
        self.norms = nn.ModuleList(FrameBatchNorm(num_features=size) for size in channels)
        self.drop = Dropout(dropout)

    @property
    def output_size(self) -> int:
        """Features per output frame."""
        return self.channels[-1]

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames."""
        for pool in self.pools:
            lengths = pooled_lengths(lengths, pool)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, T', channels[-1])`` and the new lengths."""
        x = fill_frames(x, lengths, frames_needed(self.pools)).unsqueeze(3)  # (B, T, F, C=1)
        for conv, norm, pool in zip(self.convs, self.norms, self.pools):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, FrameBatchNorm)
            x = torch.relu(conv_norm(x, conv, norm, ragged(lengths, x.shape[1])))
            x, lengths = pool_image(x, lengths, pool, self.pool_kind)
            x = self.drop(x)
        return Padded(x.mean(2), lengths)


def frames_needed(pools: Sequence[int]) -> int:
    """Frames that become exactly one.

    Examples
    --------
    >>> frames_needed([2, 2, 4])
    16
    """
    frames = 1
    for pool in pools:
        frames *= pool
    return frames


def check_pools(input_size: int, channels: Sequence[int], pools: Sequence[int]) -> None:
    """Refuse blocks that cannot be.

    Raises
    ------
    ValueError
        If there is no block, channels and pools differ in number, or the pools leave no bin.
    """
    if not channels or len(channels) != len(pools):
        raise ValueError(
            f"{len(channels)} channels {list(channels)} but {len(pools)} pools {list(pools)}: give "
            "one of each for every block, and one block at least"
        )
    if min(pools) < 1 or frames_needed(pools) > input_size:
        raise ValueError(
            f"pools {list(pools)} must be at least 1, and leave a bin of {input_size} features"
        )
