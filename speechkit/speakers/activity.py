"""Where somebody speaks, by energy: for recordings whose background is quieter than the speech."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Region: TypeAlias = tuple[float, float]
Activity: TypeAlias = Callable[[Tensor, int], list[Region]]
"""From a waveform ``(T,)`` and its rate to ``(start, end)`` in seconds, sorted and apart."""

FRAME_SECONDS = 0.025
HOP_SECONDS = 0.01
SILENCE_DBFS = -70.0
"""Frames below (RMS, re full scale) are silence whatever the rest of the recording."""


def active_frames(
    waveform: Tensor, sample_rate: int, *, depth_db: float = 35.0, share: float = 0.7
) -> Tensor:
    """Tell loud frames from quiet ones, 100 a second.

    The threshold lies below the loud frames (the 95th percentile) by `share` of the distance to the
    quiet ones (the 5th), at least 10 dB and at most `depth_db`. So steady sound is active as a
    whole, and so is noise: energy cannot tell it from speech.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.
    depth_db : float
        How far below loud speech a frame may be, at most.
    share : float
        From 0 (only loud frames) to 1.

    Returns
    -------
    Tensor
        Shape ``(K,)``, bool; frame ``k`` covers 25 ms from ``k / 100`` s. A waveform shorter than
        a frame is one frame.

    Raises
    ------
    ValueError
        Where the waveform has another shape, no samples or some that are not finite.

    Examples
    --------
    >>> tone = torch.sin(torch.arange(16000.0))
    >>> active = active_frames(torch.cat([tone, 0.001 * tone]), 16000)
    >>> len(active), int(active.sum())
    (198, 100)
    """
    if waveform.dim() != 1 or not waveform.numel() or not bool(waveform.isfinite().all()):
        raise ValueError(f"expected finite samples (T,), got shape {tuple(waveform.shape)}")
    x = waveform.detach().cpu().double()
    size = min(len(x), max(1, round(FRAME_SECONDS * sample_rate)))
    hop = max(1, round(HOP_SECONDS * sample_rate))
    sums = torch.cat([x.new_zeros(1), x.square().cumsum(0)])
    starts = torch.arange(0, len(x) - size + 1, hop)
    power = ((sums[starts + size] - sums[starts]) / size).clamp_min(1e-16)
    level = 10 * power.log10()
    ordered = level.sort().values
    loud, quiet = (float(ordered[int(p * (len(ordered) - 1))]) for p in (0.95, 0.05))
    depth = min(depth_db, max(10.0, share * (loud - quiet)))
    return level >= max(loud - depth, SILENCE_DBFS)


def energy_activity(
    waveform: Tensor,
    sample_rate: int,
    *,
    min_silence: float = 0.3,
    min_speech: float = 0.2,
    padding: float = 0.05,
) -> list[Region]:
    """Find where somebody speaks: runs of active frames, with short gaps closed.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.
    min_silence : float
        Gaps shorter than this many seconds belong to the speech around them.
    min_speech : float
        What is shorter, after closing gaps, is no speech.
    padding : float
        Seconds added on both sides; not beyond half of a gap.

    Returns
    -------
    list of (float, float)
        Start and end in seconds, sorted and apart; empty for silence.

    Raises
    ------
    ValueError
        As :func:`active_frames`.

    Examples
    --------
    >>> tone, pause = torch.sin(torch.arange(16000.0)), torch.zeros(16000)
    >>> [(round(a, 1), round(b, 1)) for a, b in energy_activity(
    ...     torch.cat([pause, tone, pause, tone]), 16000)]
    [(0.9, 2.1), (2.9, 4.0)]
    """
    active = active_frames(waveform, sample_rate)
    duration = len(waveform) / sample_rate
    edges = torch.diff(active.int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    starts = (torch.nonzero(edges == 1).flatten().double() * HOP_SECONDS).tolist()
    last = torch.nonzero(edges == -1).flatten() - 1
    ends = (last.double() * HOP_SECONDS + FRAME_SECONDS).clamp_max(duration).tolist()
    joined: list[list[float]] = []
    for start, end in zip(starts, ends):
        if joined and start - joined[-1][1] < min_silence:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    speech = [span for span in joined if span[1] - span[0] >= min(min_speech, duration)]
    padded = []
    for number, (start, end) in enumerate(speech):
        before = speech[number - 1][1] if number else -math.inf
        after = speech[number + 1][0] if number + 1 < len(speech) else math.inf
        left = max(start - padding, (before + start) / 2, 0.0)
        padded.append((left, min(end + padding, (end + after) / 2, duration)))
    return padded
