"""The active speech level: how loud speech is while somebody speaks (ITU-T P.56, method B)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_NUM_BINS = 20  # thresholds, each half the power of the one before: 60 dB


class SpeechLevel(NamedTuple):
    """Mean power while speech is active (1.0 is 0 dB), and the share of time when it is."""

    power: float
    activity: float

    @property
    def db(self) -> float:
        """The level in dB of a power of 1; minus infinity for silence."""
        return 10 * math.log10(self.power) if self.power > 0 else -math.inf


def active_speech_level(
    waveform: Tensor,
    sample_rate: int,
    *,
    band_limit: bool = True,
    margin_db: float = 15.9,
    hangover: float = 0.2,
    time_constant: float = 0.03,
) -> SpeechLevel:
    """Measure the active speech level by method B of ITU-T Recommendation P.56 (12/2011).

    The envelope is the rectified signal, smoothed twice by one pole. For each threshold, the time
    in which the envelope was at or above it within the last `hangover` counts as active, and the
    whole energy over that time is the level. The threshold sought lies `margin_db` below its own
    level; between thresholds, which are 3 dB apart, it is interpolated in dB.

    Thresholds are powers of two below the largest envelope, the hangover lasts
    ``ceil(0.2 fs) + 1`` samples and speech is limited to 200-5500 Hz (below 14 kHz of sample rate:
    to above 200 Hz) as in VOICEBOX's ``activlev``, by which WSJ0-mix was made. So a gain of two
    shifts the level by exactly 6.02 dB, another gain to within a tenth of a dB. Silence after
    speech that was cut off adds up to the hangover to the active time, and no more.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(T,)``, floats; computed in double precision.
    sample_rate : int
        In Hz.
    band_limit : bool
        Limit the band first: fifth-order Chebyshev filters (type II, 50 dB, -0.25 dB at the edge).
    margin_db : float
        How far the threshold lies below the level.
    hangover : float
        How long speech counts as active after the envelope fell, in seconds.
    time_constant : float
        Of the envelope's smoothing, in seconds.

    Returns
    -------
    SpeechLevel
        Power and activity; both are 0 for silence.

    Raises
    ------
    ValueError
        When the waveform has another shape, holds no samples or some that are not finite.

    Examples
    --------
    >>> tone = torch.sin(torch.arange(80000.0) * 2 * torch.pi * 1000 / 8000)
    >>> active = active_speech_level(torch.cat([tone, torch.zeros(80000)]), 8000)
    >>> round(active.db), round(active.activity, 1)  # the mean power is -6 dB
    (-3, 0.5)
    """
    from torchaudio.functional import lfilter

    if waveform.dim() != 1 or not waveform.numel() or not bool(waveform.isfinite().all()):
        raise ValueError(
            f"waveform must be finite samples (T,), got shape {tuple(waveform.shape)}"
            f"{', with some not finite' if waveform.dim() == 1 and waveform.numel() else ''}"
        )
    x = waveform.detach().to("cpu", torch.float64)
    if band_limit:
        for zeros, poles in _band_filters(sample_rate):
            x = lfilter(x, torch.from_numpy(poles), torch.from_numpy(zeros), clamp=False)
    energy = float(x.square().sum())
    if energy == 0.0:
        return SpeechLevel(0.0, 0.0)
    pole = math.exp(-1 / (sample_rate * time_constant))
    a = torch.tensor([1.0, -2 * pole, pole**2], dtype=torch.float64)
    b = torch.tensor([(1 - pole) ** 2, 0.0, 0.0], dtype=torch.float64)
    envelope = lfilter(x.abs(), a, b, clamp=False)
    # 2^(e-1) <= envelope^2 < 2^e; what is zero is below every threshold.
    squared = envelope.square().numpy()
    exponents = np.where(squared > 0, np.frexp(squared)[1], -(1 << 20))
    exponents = _running_max(exponents, math.ceil(hangover * sample_rate) + 1)
    top = int(exponents.max())
    bins = np.minimum(top - exponents, _NUM_BINS - 1)
    active_time = np.cumsum(np.bincount(bins, minlength=_NUM_BINS))
    levels = 10 * np.log10(energy / active_time)
    thresholds = 10 * math.log10(2) * (top - 1 - np.arange(_NUM_BINS))
    level = _crossing(levels, levels - thresholds - margin_db)
    power = 10 ** (level / 10)
    return SpeechLevel(power, energy / len(x) / power)


def _running_max(values: np.ndarray, width: int) -> np.ndarray:
    """Return the maximum of each value and the ``width - 1`` before it, in log2(width) passes."""
    out, reach = values.copy(), 1  # out[i] is the maximum of the last `reach` values
    while reach < width:
        step = min(reach, width - reach)
        out[step:] = np.maximum(out[step:], out[:-step])
        reach += step
    return out


def _crossing(levels: np.ndarray, excess: np.ndarray) -> float:
    """Return the level where the excess over threshold and margin first rises through zero."""
    rising = np.flatnonzero((excess[:-1] < 0) & (excess[1:] >= 0))
    if len(rising):
        first = int(rising[0])
        share = 1 / (1 - excess[first + 1] / excess[first])
        return float(levels[first] + share * (levels[first + 1] - levels[first]))
    return float(levels[-1] if excess[-1] <= 0 else levels[0])


def _band_filters(sample_rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Design the (b, a) of 200 Hz high-pass and, from 14 kHz of sample rate on, 5.5 kHz low-pass.

    The analog prototype is the textbook's Chebyshev type II filter, its frequency scaled so that
    -0.25 dB falls on the edge, and the bilinear transform keeps the edge where it is.
    """
    order, ripple, stop = 5, 10 ** (0.25 / 10) - 1, 10 ** (50 / 10) - 1
    edge = math.cosh(math.acosh(math.sqrt(stop / ripple)) / order)
    angles = np.pi * np.arange(1 - order, order, 2) / (2 * order)
    bend = math.asinh(math.sqrt(stop)) / order
    # Of a high-pass filter with its edge at 1.
    poles = -(math.sinh(bend) * np.cos(angles) + 1j * math.cosh(bend) * np.sin(angles)) / edge
    zeros = 1j * np.sin(angles) / edge
    zeros[order // 2] = 0.0
    warp = math.tan(math.pi * 200 / sample_rate)
    digital = [[(1 + s * warp) / (1 - s * warp) for s in (zeros, poles)]]
    if sample_rate >= 14000:
        warp = math.tan(math.pi * 5500 / sample_rate)
        digital.append([(s + warp) / (s - warp) for s in (zeros, poles)])
    filters = []
    for (z, p), passed in zip(digital, (-1.0, 1.0)):  # gain 1 at half the sample rate, and at 0
        b, a = np.real(np.poly(z)), np.real(np.poly(p))
        filters.append((b * np.polyval(a, passed) / np.polyval(b, passed), a))
    return filters
