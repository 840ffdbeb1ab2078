"""Recordings cut into overlapping segments, coded one by one, and joined again.

A segment's codes follow those of the one before it, and all segments but the last take the same
number of frames::

    samples    |----- segment 0 -----|
                              |----- segment 1 -----|
                                               |- 2 -|
    codes      | 150 frames   | 150 frames   | rest |

Where the last but one ends with the recording, it may need a frame less; that place holds code 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.nn.masking import length_mask


def segment_bounds(num_samples: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Give the first sample of each segment and the one behind its last.

    Examples
    --------
    >>> segment_bounds(25, 10, 9)
    [(0, 10), (9, 19), (18, 25)]
    """
    starts = range(0, num_samples, stride)
    return [(start, min(start + size, num_samples)) for start in starts] or [(0, 0)]


def segment_frames(num_samples: Tensor, size: int, stride: int, hop_length: int) -> Tensor:
    """Count the frames of items of so many samples, laid out as above.

    Examples
    --------
    >>> segment_frames(torch.tensor([0, 7, 25]), 10, 9, 2).tolist()
    [0, 4, 14]
    """
    before = (num_samples + stride - 1).div(stride, rounding_mode="floor").sub(1).clamp(min=0)
    rest = num_samples - before * stride
    last = (rest + hop_length - 1).div(hop_length, rounding_mode="floor")
    return before * -(-size // hop_length) + last


def join_segments(waves: list[Tensor], valid: list[Tensor], stride: int) -> Tensor:
    """Fade segments into one another: each sample is their mean, weighted by a triangle.

    Défossez et al. 2022, section 3.1: segments of one second that overlap by 10 ms.

    Parameters
    ----------
    waves : list of Tensor
        Shapes ``(B, C, t)``.
    valid : list of Tensor
        Shapes ``(B,)``: valid samples of each segment.
    stride : int
        Samples from the start of a segment to that of the next.

    Returns
    -------
    Tensor
        Shape ``(B, C, T)``.

    Examples
    --------
    >>> waves = [torch.ones(1, 1, 4), torch.full((1, 1, 4), 2.0)]
    >>> join_segments(waves, [torch.tensor([4])] * 2, 3).flatten().tolist()
    [1.0, 1.0, 1.0, 1.5, 2.0, 2.0, 2.0]
    """
    first = waves[0]
    total = max(stride * index + wave.shape[2] for index, wave in enumerate(waves))
    out = first.new_zeros(*first.shape[:2], total)
    weights = first.new_zeros(first.shape[0], 1, total)
    for index, wave in enumerate(waves):
        place = torch.arange(wave.shape[2], device=wave.device)
        # Up to the middle of an item's first segment and down again, for all its segments.
        triangle = torch.minimum(place + 1, valid[0].view(-1, 1, 1) - place).to(wave.dtype)
        mask = length_mask(valid[index], wave.shape[2]).unsqueeze(1)
        span = slice(index * stride, index * stride + wave.shape[2])
        out[..., span] += torch.where(mask, wave * triangle, 0.0)
        weights[..., span] += torch.where(mask, triangle, 0.0)
    return out / weights.clamp(min=1.0)
