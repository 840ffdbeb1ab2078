"""Differences of features over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.nn.masking import length_mask


def deltas(features: Tensor, lengths: Tensor, *, window: int = 5) -> Tensor:
    """Estimate the slope of each feature over time by linear regression.

    ``d[t] = sum_n n (x[t + n] - x[t - n]) / (2 sum_n n^2)``, ``n = 1 .. (window - 1) / 2``; an
    item's first and last frame are repeated beyond its ends (Young et al., The HTK Book, 2006,
    equation 5.16).

    Parameters
    ----------
    features : Tensor
        Shape ``(B, T, F)``.
    lengths : Tensor
        Shape ``(B,)``, valid frames.
    window : int
        Frames looked at, odd, at least 3.

    Returns
    -------
    Tensor
        The shape of ``features``, zero beyond the lengths.

    Raises
    ------
    ValueError
        If ``window`` is even or too small.

    Examples
    --------
    >>> ramp = torch.arange(6.0).reshape(1, 6, 1)
    >>> deltas(ramp, torch.tensor([6]))[0, 2:4, 0].tolist()
    [1.0, 1.0]
    """
    check_delta_window(window)
    reach = (window - 1) // 2
    frames = features.shape[1]
    last = (lengths - 1).clamp_min(0)
    index = last.reshape(-1, 1, 1).expand(-1, 1, features.shape[2])
    valid = length_mask(lengths, frames).unsqueeze(2)
    ends_held = torch.where(valid, features, features.gather(1, index))
    padded = F.pad(ends_held.transpose(1, 2), (reach, reach), mode="replicate").transpose(1, 2)
    slope = torch.zeros_like(features)
    for n in range(1, reach + 1):
        after = padded[:, reach + n : reach + n + frames]
        before = padded[:, reach - n : reach - n + frames]
        slope = slope + n * (after - before)
    slope = slope / (2 * sum(n * n for n in range(1, reach + 1)))
    return slope.masked_fill(~valid, 0.0)


def check_delta_window(window: int) -> None:
    """Raise a ValueError unless the window is odd and at least 3."""
    if window < 3 or window % 2 == 0:
        raise ValueError(f"the window of deltas must be odd and at least 3, got {window}")
