"""The fundamental frequency of speech by YIN (de Cheveigne & Kawahara, 2002)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_FRAMES = 1024  # worked on at once: memory does not grow with the recording


class Pitch(NamedTuple):
    """F0 by frame.

    Attributes
    ----------
    f0 : Tensor
        Shape ``(T,)``, float64, in Hz; 0 where there is no voice.
    aperiodicity : Tensor
        Shape ``(T,)``, float64: the difference function at the period, normalized; near 0 in vowels
        and near 1 in noise.
    """

    f0: Tensor
    aperiodicity: Tensor


def track_pitch(
    waveform: Tensor,
    sample_rate: int,
    *,
    hop_length: int,
    f_min: float = 60.0,
    f_max: float = 500.0,
    threshold: float = 0.25,
    window: float = 0.03,
    silence_db: float = 45.0,
) -> Pitch:
    r"""Estimate F0 with steps 1 to 5 of YIN, and decide where there is a voice.

    Of each frame, with ``W`` samples in the window,

    .. math:: d(\tau) = \sum_{j=1}^{W} (x_j - x_{j + \tau})^2 \qquad
              d'(\tau) = d(\tau) \Big/ \frac{1}{\tau} \sum_{j=1}^{\tau} d(j)

    (equations 6 and 8). The period is the first dip of :math:`d'` below the threshold, refined by a
    parabola through its neighbours. A frame without one is unvoiced, as is a frame much quieter
    than the loudest one. Frames lie as those of `speechkit.features.spectrum`: one centred at each
    multiple of the hop.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.
    hop_length : int
        Samples from one frame to the next.
    f_min, f_max : float
        The range of F0 in Hz; a voice outside is found as unvoiced or at a multiple of its period.
    threshold : float
        Of the aperiodicity, in (0, 1). The paper has 0.1, for a period that every frame has; where
        it decides on voicing too, that finds a voice in few frames of recordings with any noise
        (docs/measures.md).
    window : float
        W in seconds. It should hold a period of ``f_min``, nearly two are better.
    silence_db : float
        A frame more than this below the loudest frame's energy is unvoiced.

    Returns
    -------
    Pitch
        ``len(waveform) // hop_length + 1`` frames.

    Raises
    ------
    ValueError
        Where settings contradict each other, or the waveform is empty or not finite.

    References
    ----------
    de Cheveigne & Kawahara (2002), "YIN, a fundamental frequency estimator for speech and music",
    J. Acoust. Soc. Am. 111(4). Its step 6 (the best estimate nearby) is left out.

    Examples
    --------
    >>> time = torch.arange(8000) / 16000
    >>> voice = sum(torch.sin(2 * torch.pi * 120 * k * time) / k for k in range(1, 6))
    >>> pitch = track_pitch(voice, 16000, hop_length=160)
    >>> pitch.f0.shape, round(float(pitch.f0.median()), 1)
    (torch.Size([51]), 120.0)
    """
    low, high = _lags(sample_rate, f_min, f_max)
    if not 0.0 < threshold < 1.0 or hop_length < 1 or window <= 0:
        raise ValueError(
            f"need 0 < threshold < 1, hop_length > 0 and window > 0, got threshold={threshold}, "
            f"hop_length={hop_length}, window={window}"
        )
    if waveform.dim() != 1 or waveform.numel() == 0 or not bool(torch.isfinite(waveform).all()):
        raise ValueError(
            f"waveform must be (T,), finite and not empty, got shape {tuple(waveform.shape)}"
        )
    size = round(window * sample_rate)
    span = size + high + 1  # one lag more, to see the last dip's far side
    count = waveform.numel() // hop_length + 1
    left = span // 2
    right = max(0, (count - 1) * hop_length + span - left - waveform.numel())
    padded = F.pad(waveform.detach().double(), (left, right))
    frames = padded.unfold(0, span, hop_length)[:count]
    parts = [_estimate(part, size, low, high, threshold) for part in frames.split(_BLOCK_FRAMES)]
    periods, dips = (torch.cat(column) for column in zip(*parts))
    energy = frames.square().mean(dim=1)
    audible = (energy > 0) & (energy >= energy.max() * 10.0 ** (-silence_db / 10.0))
    voiced = audible & (dips < threshold)
    return Pitch(torch.where(voiced, sample_rate / periods, 0.0), dips)


def _lags(sample_rate: int, f_min: float, f_max: float) -> tuple[int, int]:
    if not 0 < f_min < f_max < sample_rate / 4:
        raise ValueError(
            f"need 0 < f_min < f_max < sample_rate / 4, got f_min={f_min}, f_max={f_max}, "
            f"sample_rate={sample_rate}"
        )
    return int(sample_rate / f_max), -int(-sample_rate // f_min)


def _estimate(
    frames: Tensor, size: int, low: int, high: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Give the period in samples and the normalized difference there, of frames ``(T, span)``."""
    normalized = _normalized_difference(frames, size, high + 1)
    here = normalized[:, low : high + 1]
    dip = (here <= normalized[:, low + 1 : high + 2]) & (here < normalized[:, low - 1 : high])
    found = dip & (here < threshold)
    place = torch.where(found.any(dim=1), found.int().argmax(dim=1), here.argmin(dim=1)) + low
    sides = torch.stack([place - 1, place, place + 1], dim=1).clamp(1, high + 1)
    before, at, after = normalized.gather(1, sides).unbind(dim=1)
    curve = before - 2 * at + after
    # Of a flat or falling place, as noise may have, no vertex is taken.
    vertex = 0.5 * (before - after) / curve.clamp_min(1e-12)
    shift = torch.where(curve > 1e-12, vertex, torch.zeros_like(at)).clamp(-0.5, 0.5)
    return place + shift, at


def _normalized_difference(frames: Tensor, size: int, last: int) -> Tensor:
    """Give the cumulative mean normalized difference of lags 0 to ``last``: ``(T, last + 1)``."""
    frames = frames - frames.mean(dim=1, keepdim=True)
    span = frames.shape[1]
    # Lags below zero wrap around to the last ``size - 1`` places, where no lag is wanted.
    length = 1 << (span - 1).bit_length()
    spectrum = torch.fft.rfft(frames, length)
    window = torch.fft.rfft(frames[:, :size], length)
    product = torch.fft.irfft(spectrum * window.conj(), length)[:, : last + 1]
    sums = F.pad(frames.square().cumsum(dim=1), (1, 0))
    energy = sums[:, size : size + last + 1] - sums[:, : last + 1]  # of x_{j + lag}
    difference = (energy[:, :1] + energy - 2 * product).clamp_min(0.0)
    difference[:, 0] = 0.0
    lags = torch.arange(1, last + 1, dtype=frames.dtype, device=frames.device)
    mean = difference[:, 1:].cumsum(dim=1) / lags
    # Of silence every lag is as good: 1, as for noise. What rounding leaves is no difference.
    tiny = 1e-12 * energy[:, :1] + torch.finfo(frames.dtype).tiny
    ratio = torch.where(mean > tiny, difference[:, 1:] / mean.clamp_min(tiny), 1.0)
    return F.pad(ratio, (1, 0), value=1.0)
