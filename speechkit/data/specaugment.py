"""SpecAugment: masks of time and frequency on features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SpecAugment:
    """Mask stretches of frames and of features (Park et al., 2019, "SpecAugment", section 2).

    Each item's masks are a function of its own generator and length, whatever the batch. The
    paper's time warping, which it found to matter least, is left out.

    Parameters
    ----------
    num_time_masks, num_freq_masks : int
        Masks of each kind (the paper's m_T and m_F).
    time_mask, freq_mask : int
        A mask's width is drawn from 0 to this many frames or features (T and F).
    max_time_share : float
        No time mask is wider than this share of an item's valid frames (p).
    value : float
        What is written; 0 is the mean of normalised features.

    Raises
    ------
    ValueError
        If a number is negative, or ``max_time_share`` is not in [0, 1].

    Examples
    --------
    >>> augment = SpecAugment(num_time_masks=1, time_mask=5, num_freq_masks=1, freq_mask=8)
    >>> x = torch.ones(1, 50, 20)
    >>> y = augment(x, torch.tensor([50]), [torch.Generator().manual_seed(1)])
    >>> y.shape == x.shape, bool((y == 0).any())
    (True, True)
    """

    def __init__(
        self,
        *,
        num_time_masks: int = 2,
        time_mask: int = 100,
        num_freq_masks: int = 2,
        freq_mask: int = 27,
        max_time_share: float = 0.2,
        value: float = 0.0,
    ) -> None:
        numbers = (num_time_masks, time_mask, num_freq_masks, freq_mask)
        if min(numbers) < 0 or not 0.0 <= max_time_share <= 1.0:
            raise ValueError(
                "need no negative number of masks or width, and max_time_share in [0, 1], got "
                f"{numbers} and {max_time_share}"
            )
        self.num_time_masks = num_time_masks
        self.time_mask = time_mask
        self.num_freq_masks = num_freq_masks
        self.freq_mask = freq_mask
        self.max_time_share = max_time_share
        self.value = value

    def __call__(
        self, features: Tensor, lengths: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Mask a padded batch.

        Parameters
        ----------
        features : Tensor
            Shape ``(B, T, F)``; not modified.
        lengths : Tensor
            Shape ``(B,)``, valid frames.
        generators : sequence of torch.Generator
            One an item, on the CPU.

        Returns
        -------
        Tensor
            The shape of ``features``.

        Raises
        ------
        ValueError
            If there is not one generator for each item.
        """
        batch, frames, size = features.shape
        if len(generators) != batch:
            raise ValueError(f"need a generator for each of {batch} items, got {len(generators)}")
        draws = 2 * (self.num_time_masks + self.num_freq_masks)
        if batch == 0 or draws == 0:
            return features
        # All numbers are drawn on the CPU at once and scaled where the lengths are: no GPU waits.
        drawn = torch.stack([torch.rand(draws, generator=g) for g in generators])
        drawn = drawn.to(features.device, non_blocking=True)
        time, freq = drawn.split([2 * self.num_time_masks, 2 * self.num_freq_masks], dim=1)
        total = lengths.to(features.device).unsqueeze(1)
        widest = (total * self.max_time_share).long().clamp_max(self.time_mask)
        masked = _masks(time, widest, total, frames).unsqueeze(2)
        total = torch.full_like(total, size)
        masked = masked | _masks(freq, total.clamp_max(self.freq_mask), total, size).unsqueeze(1)
        return features.masked_fill(masked, self.value)


def _masks(drawn: Tensor, widest: Tensor, total: Tensor, size: int) -> Tensor:
    """Make masks ``(B, size)`` of numbers in [0, 1): ``(B, 2 * masks)``, widths then starts."""
    first, second = drawn.chunk(2, dim=1)
    # Rounding may carry u * (n + 1) up to n + 1.
    width = torch.minimum((first * (widest + 1)).long(), widest)
    start = torch.minimum((second * (total - width + 1)).long(), total - width)
    position = torch.arange(size, device=drawn.device).reshape(1, 1, -1)
    start, width = start.unsqueeze(2), width.unsqueeze(2)
    return ((position >= start) & (position < start + width)).any(dim=1)
