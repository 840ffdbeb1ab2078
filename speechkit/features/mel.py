"""Filters that sum the bins of a spectrum into mel-spaced bands."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mel_filters(
    bins: int,
    *,
    f_min: float,
    f_max: float,
    num_mels: int,
    sample_rate: int,
    mel_scale: str = "htk",
    norm: str | None = None,
    shape: str = "triangular",
) -> Tensor:
    """Make a filter bank; the arguments are those of `speechkit.features.spectrum.LogMel`.

    Returns
    -------
    Tensor
        float32, shape ``(bins, num_mels)``.

    Examples
    --------
    >>> mel_filters(201, f_min=0.0, f_max=8000.0, num_mels=40, sample_rate=16000).shape
    torch.Size([201, 40])
    """
    if shape == "symmetric":
        return _symmetric_filters(bins, f_min, f_max, num_mels, sample_rate)
    from torchaudio.functional import melscale_fbanks

    filters: Tensor = melscale_fbanks(
        bins, f_min, f_max, num_mels, sample_rate, norm=norm, mel_scale=mel_scale
    )
    return filters


def _symmetric_filters(
    bins: int, f_min: float, f_max: float, num_mels: int, sample_rate: int
) -> Tensor:
    """Triangles over Hz whose two sides are both as wide as the step from the centre below."""
    low, high = (2595.0 * math.log10(1.0 + f / 700.0) for f in (f_min, f_max))
    edges = 700.0 * (10.0 ** (torch.linspace(low, high, num_mels + 2) / 2595.0) - 1.0)
    centres, widths = edges[1:-1], edges[1:-1] - edges[:-2]
    frequencies = torch.linspace(0.0, sample_rate / 2, bins).unsqueeze(1)
    return (1.0 - (frequencies - centres).abs() / widths).clamp_min(0.0)
