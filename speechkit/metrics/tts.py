"""How far synthesized speech is from a recording of the same text: spectrum, pitch, voicing, pace.

Frames of both are paired by dynamic time warping of their mel cepstra, and all that is compared by
frame is compared along that one path:

- **mel-cepstral distortion** (Kubichek, 1993) in dB, without the overall level;
- **F0 error**: root mean square over pairs that are both voiced, in cents;
- **voicing error**: share of the pairs of which only one is voiced.

The **duration ratio** is of the whole signals, silence included. Before the rest, silence at both
ends is cut off: how much of it a recording has says nothing of the speech.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechkit.features.pitch import track_pitch
from speechkit.features.spectrum import LogMel
from speechkit.metrics.dtw import WarpingPath, warp
from speechkit.metrics.separation import NotComputableError

HOP_SECONDS = 0.005
WINDOW_SECONDS = 0.032
NUM_MELS = 80
RANGE_DB = 80.0
"""Energies more than this below the loudest band of their own signal are raised to it."""
EDGE_DB = 40.0
"""Frames at the two ends that are more than this below the loudest frame are silence."""
_TO_DB = 10.0 / math.log(10.0)


class SpeechDistance(NamedTuple):
    """Measures of synthesized speech against a recording.

    Attributes
    ----------
    mcd : float
        Mel-cepstral distortion in dB.
    f0_rmse_cents : float or None
        In cents; None where no pair of frames is voiced on both sides.
    voicing_error : float
        In percent of the pairs.
    duration_ratio : float
        Length of the estimate over that of the reference, as given.
    """

    mcd: float
    f0_rmse_cents: float | None
    voicing_error: float
    duration_ratio: float


def compare(
    reference: Tensor,
    estimate: Tensor,
    sample_rate: int,
    *,
    num_ceps: int = 13,
    f_min: float = 60.0,
    f_max: float = 500.0,
) -> SpeechDistance:
    """Measure synthesized speech against a recording of the same text.

    Parameters
    ----------
    reference, estimate : Tensor
        Shapes ``(T,)`` and ``(T',)``, of any two lengths.
    sample_rate : int
        Of both, in Hz.
    num_ceps : int
        Cepstral coefficients that are compared, from the first; the zeroth is the level.
    f_min, f_max : float
        Range of F0 in Hz.

    Returns
    -------
    SpeechDistance
        Everything 0, and the ratio 1, for a copy.

    Raises
    ------
    NotComputableError
        Where a signal is empty or silent.
    ValueError
        Where a signal is not finite or has more than one axis.

    References
    ----------
    Kubichek (1993), "Mel-cepstral distance measure for objective speech quality assessment";
    Skerry-Ryan et al. (2018), "Towards end-to-end prosody transfer for expressive speech synthesis
    with Tacotron", has 13 coefficients, and pitch and voicing errors, along such a path.

    Examples
    --------
    >>> time = torch.arange(16000) / 16000
    >>> def voice(hertz):
    ...     return sum(torch.sin(2 * torch.pi * hertz * k * time) / k for k in range(1, 20))
    >>> found = compare(voice(120.0), voice(120.0 * 2 ** (1 / 12)), 16000)
    >>> round(found.f0_rmse_cents), found.voicing_error < 1.0, found.duration_ratio
    (100, True, 1.0)
    """
    hop = _hop(sample_rate)
    cepstra, ranges = [], []
    for name, signal in (("reference", reference), ("estimate", estimate)):
        features, edges = _speech(name, signal, sample_rate, num_ceps)
        cepstra.append(features)
        ranges.append(edges)
    path = _paired(*cepstra)
    f0 = [
        track_pitch(signal.cpu(), sample_rate, hop_length=hop, f_min=f_min, f_max=f_max).f0[edges]
        for signal, edges in zip((reference, estimate), ranges)
    ]
    cents, voicing = f0_errors(
        f0[0][torch.from_numpy(path.first)], f0[1][torch.from_numpy(path.second)]
    )
    ratio = estimate.numel() / reference.numel()
    return SpeechDistance(path.cost / len(path.first), cents, voicing, ratio)


def mel_cepstral_distortion(
    reference: Tensor, estimate: Tensor, sample_rate: int, *, num_ceps: int = 13
) -> float:
    r"""Compute the mean mel-cepstral distortion over the best warping path, in dB.

    .. math:: \mathrm{MCD} = \frac{10}{\ln 10}
              \sqrt{2 \sum_{d=1}^{D} (c_d - c'_d)^2}

    with the cepstra of `mel_cepstra`. So it is the root mean square difference in dB of the two
    smoothed spectra over the mel scale, without the level. The path has the least sum of distances.

    Parameters
    ----------
    reference, estimate : Tensor
        Shapes ``(T,)`` and ``(T',)``.
    sample_rate : int
        Of both, in Hz.
    num_ceps : int
        D.

    Returns
    -------
    float
        0 for a copy, at any level. Numbers for one D, one kind of cepstra and one rate compare;
        others do not.

    Raises
    ------
    NotComputableError
        Where a signal is empty or silent.
    ValueError
        Where a signal is not finite or has more than one axis.

    Examples
    --------
    >>> noise = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    >>> round(mel_cepstral_distortion(noise, noise / 2, 16000), 6)
    0.0
    """
    features = [
        _speech(name, signal, sample_rate, num_ceps)[0]
        for name, signal in (("reference", reference), ("estimate", estimate))
    ]
    path = _paired(*features)
    return path.cost / len(path.first)


def f0_errors(reference: Tensor, estimate: Tensor) -> tuple[float | None, float]:
    """Compare the F0 of paired frames.

    Parameters
    ----------
    reference, estimate : Tensor
        Shape ``(K,)``, in Hz; 0 where unvoiced.

    Returns
    -------
    f0_rmse_cents : float or None
        Over pairs that are both voiced: ``1200 log2`` of the ratio; None where there are none.
    voicing_error : float
        Percent of the pairs of which just one is voiced.

    Raises
    ------
    ValueError
        Where shapes differ or there is no pair.

    Examples
    --------
    >>> f0_errors(torch.tensor([100.0, 100.0, 0.0, 0.0]), torch.tensor([200.0, 0.0, 0.0, 90.0]))
    (1200.0, 50.0)
    """
    if reference.shape != estimate.shape or reference.dim() != 1 or reference.numel() == 0:
        raise ValueError(
            f"F0 must be paired frames (K,), got {tuple(reference.shape)} and "
            f"{tuple(estimate.shape)}"
        )
    voiced = reference > 0, estimate > 0
    voicing = 100.0 * float((voiced[0] != voiced[1]).double().mean())
    both = voiced[0] & voiced[1]
    if not bool(both.any()):
        return None, voicing
    cents = 1200.0 * torch.log2(estimate[both].double() / reference[both].double())
    return float(cents.square().mean().sqrt()), voicing


def mel_cepstra(waveform: Tensor, sample_rate: int, *, num_ceps: int = 13) -> Tensor:
    r"""Compute cepstra of the mel spectrum, on the scale of the log amplitude's cosine series.

    The natural log of the power in M = 80 mel bands (windows of 32 ms every 5 ms) is transformed by
    the orthonormal DCT-II and divided by :math:`\sqrt{2 M}`, which gives the :math:`c_d` of
    :math:`\ln |H(\omega)| = \sum_d c_d \cos(d \omega)` over the mel scale: the scale of the
    mel-generalized cepstra, which the distortion's factor :math:`10 \sqrt{2} / \ln 10` is for.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(T,)``, not silent.
    sample_rate : int
        In Hz.
    num_ceps : int
        How many, from the first; the zeroth, the level, is left out.

    Returns
    -------
    Tensor
        Shape ``(frames, num_ceps)``, float64; the rate rounds the hop to whole samples.

    Raises
    ------
    NotComputableError
        Where the signal is empty or silent.
    ValueError
        Where it is not finite or has more than one axis, or there are fewer bands than cepstra.

    Examples
    --------
    >>> noise = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    >>> mel_cepstra(noise, 16000).shape
    torch.Size([101, 13])
    """
    return _cepstra(_energies("the waveform", waveform, sample_rate), num_ceps)


def _hop(sample_rate: int) -> int:
    return max(1, round(HOP_SECONDS * sample_rate))


def _energies(name: str, waveform: Tensor, sample_rate: int) -> Tensor:
    """Give the power in mel bands, ``(frames, NUM_MELS)``, above its floor."""
    if waveform.dim() != 1:
        raise ValueError(f"{name} must be (T,), got shape {tuple(waveform.shape)}")
    if waveform.numel() == 0:
        raise NotComputableError(f"{name} is empty")
    if not bool(torch.isfinite(waveform).all()):
        raise ValueError(f"{name} has samples that are not finite")
    with torch.inference_mode():
        signal = waveform.detach().cpu().float().unsqueeze(0)
        energies, _ = _spectrum(sample_rate)(signal, torch.tensor([signal.shape[1]]))
    loudest = float(energies.max())
    if loudest <= torch.finfo(torch.float32).tiny:
        raise NotComputableError(f"{name} is silent")
    return energies[0].double().clamp_min(loudest * 10.0 ** (-RANGE_DB / 10.0))


@lru_cache(maxsize=8)
def _spectrum(sample_rate: int) -> LogMel:
    # Bins are narrow enough that the lowest of the bands has one.
    n_fft = 1 << (math.ceil(2 * WINDOW_SECONDS * sample_rate) - 1).bit_length()
    return LogMel(
        sample_rate=sample_rate,
        n_fft=n_fft,
        hop_length=_hop(sample_rate),
        win_length=round(WINDOW_SECONDS * sample_rate),
        pad_mode="constant",
        num_mels=NUM_MELS,
        log=None,
    )


def _cepstra(energies: Tensor, num_ceps: int) -> Tensor:
    bands = energies.shape[1]
    if not 1 <= num_ceps < bands:
        raise ValueError(f"need 1 <= num_ceps < {bands} bands, got {num_ceps}")
    orders = torch.arange(1, num_ceps + 1, dtype=energies.dtype)
    places = torch.arange(bands, dtype=energies.dtype) + 0.5
    table = torch.cos(math.pi / bands * places.unsqueeze(1) * orders)  # (M, D)
    # sqrt(2 / M) makes the DCT orthonormal.
    return energies.log() @ table * (math.sqrt(2.0 / bands) / math.sqrt(2.0 * bands))


def _speech(
    name: str, waveform: Tensor, sample_rate: int, num_ceps: int
) -> tuple[Tensor, slice[int, int, None]]:
    """Give the cepstra between the silences at both ends, and which frames those are."""
    energies = _energies(name, waveform, sample_rate)
    level = energies.sum(dim=1)
    loud = torch.nonzero(level >= level.max() * 10.0 ** (-EDGE_DB / 10.0)).squeeze(1)
    edges = slice(int(loud[0]), int(loud[-1]) + 1)
    return _cepstra(energies[edges], num_ceps), edges


def _paired(reference: Tensor, estimate: Tensor) -> WarpingPath:
    """Warp two sequences of cepstra; the cost of a pair is its distortion in dB."""
    distances = torch.cdist(reference, estimate, compute_mode="donot_use_mm_for_euclid_dist")
    costs: np.ndarray = (_TO_DB * math.sqrt(2.0) * distances).numpy()
    return warp(costs)
