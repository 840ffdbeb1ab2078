"""Distances of two recordings in mel spectra, in dB: one at 24 kHz, and one of several windows.

Both compare decibels of energies above a floor that lies a number of dB below the reference's
loudest band. The floor is the reference's for both signals: a recording and its decoded copy may be
louder or softer together without changing the distance, and a copy that is too loud or too soft has
a distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from speechkit.features.spectrum import LogMel
from speechkit.losses.codec import most_mels

PROXY_RANGE_DB = 100.0
"""Of the proxy's distance: about the customary floor of 1e-5 of full scale. docs/measures.md has
what other ranges give; this one puts Opus at 6 and 12 kbps within 10 points of listeners."""
RANGE_DB = 80.0
"""Of the distance over several windows: what rounding and dither leave in pauses lies below."""
WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
"""Samples: those of the codec's training loss."""


def mel_distance(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Average the absolute difference of two log-mel spectra: 80 bands, frames of 1024 samples.

    Parameters
    ----------
    reference, estimate : Tensor
        Shape ``(T,)``. The reference must not be silent.
    sample_rate : int
        In Hz; the MUSHRA-proxy takes 24,000.

    Returns
    -------
    float
        In dB, over bands and frames (a hop of 256 samples).

    Examples
    --------
    >>> noise = torch.randn(24000, generator=torch.Generator().manual_seed(0))
    >>> mel_distance(noise, noise, 24000), round(mel_distance(noise, noise / 2, 24000), 2)
    (0.0, 6.02)
    """
    spectrum = _spectrum(sample_rate, 1024, 80)
    return _distance(spectrum, reference, estimate, PROXY_RANGE_DB)


def multi_scale_mel_distance(
    reference: Tensor, estimate: Tensor, sample_rate: int, *, windows: Sequence[int] = WINDOWS
) -> float:
    """Average the distances in log-mel spectra of several windows, each with a hop of a quarter.

    Each window has at most 64 bands, and no more than it can tell apart
    (`speechkit.losses.codec.most_mels`).

    Parameters
    ----------
    reference, estimate : Tensor
        Shape ``(T,)``. The reference must not be silent.
    sample_rate : int
        In Hz.
    windows : sequence of int
        Samples of each window, divisible by 4.

    Returns
    -------
    float
        In dB.

    Examples
    --------
    >>> noise = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    >>> round(multi_scale_mel_distance(noise, noise / 2, 16000), 2)
    6.02
    """
    distances = [
        _distance(
            _spectrum(sample_rate, window, most_mels(window, sample_rate=sample_rate)),
            reference,
            estimate,
            RANGE_DB,
        )
        for window in windows
    ]
    return sum(distances) / len(distances)


@lru_cache(maxsize=32)
def _spectrum(sample_rate: int, window: int, num_mels: int) -> LogMel:
    return LogMel(
        sample_rate=sample_rate,
        n_fft=window,
        hop_length=window // 4,
        num_mels=num_mels,
        log=None,
    )


def _distance(spectrum: LogMel, reference: Tensor, estimate: Tensor, range_db: float) -> float:
    pair = torch.stack([reference, estimate]).detach().cpu().float()
    with torch.inference_mode():
        energies, _ = spectrum(pair, torch.full((2,), pair.shape[1]))
        floor = energies[0].max() * 10.0 ** (-range_db / 10.0)
        theirs, ours = energies.double().maximum(floor.double()).log10() * 10.0
        return float((ours - theirs).abs().mean())
