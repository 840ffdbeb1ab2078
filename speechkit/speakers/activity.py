"""Where somebody speaks: runs of active frames, and energy as the simplest way to find them.

Energy cannot tell speech from noise, nor two voices from one: for recordings whose background is
quieter than the speech. `speechkit.models.voice_activity` has learnt both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from speechkit.models.voice_activity import VoiceActivity

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
    spans = [
        (first * HOP_SECONDS, min((last - 1) * HOP_SECONDS + FRAME_SECONDS, duration))
        for first, last in runs(active)
    ]
    return smooth_regions(
        spans, duration, min_silence=min_silence, min_speech=min_speech, padding=padding
    )


def runs(active: Tensor) -> list[tuple[int, int]]:
    """List where a row of booleans is True, as first index and the one after the last.

    Examples
    --------
    >>> runs(torch.tensor([True, False, True, True]))
    [(0, 1), (2, 4)]
    """
    edge = torch.zeros(1, dtype=torch.int8, device=active.device)
    change = torch.diff(active.to(torch.int8), prepend=edge, append=edge)
    starts, ends = (torch.nonzero(change == sign).flatten().tolist() for sign in (1, -1))
    return list(zip(starts, ends))


def hysteresis(scores: Tensor, *, onset: float, offset: float) -> Tensor:
    """Mark frames from where a score exceeds `onset` to before it falls below `offset`.

    Gelly and Gauvain (2015), "Minimum word error training of RNN-based voice activity detection",
    section 2: two thresholds keep a score near one of them from switching at every frame.

    Parameters
    ----------
    scores : Tensor
        Shape ``(T,)``.
    onset, offset : float
        Equal ones are a single threshold.

    Returns
    -------
    Tensor
        Shape ``(T,)``, bool.

    Raises
    ------
    ValueError
        If `offset` is above `onset`.

    Examples
    --------
    >>> hysteresis(torch.tensor([0.4, 0.6, 0.4, 0.2, 0.4]), onset=0.5, offset=0.3).int().tolist()
    [0, 1, 1, 0, 0]
    """
    if offset > onset:
        raise ValueError(f"offset must be at most onset={onset}, is {offset}")
    active = torch.zeros(len(scores), dtype=torch.bool)
    # Whatever holds on is a run; it counts from its first frame that would have started it.
    for first, last in runs(scores >= offset):
        above = torch.nonzero(scores[first:last] > onset).flatten()
        if len(above):
            active[first + int(above[0]) : last] = True
    return active


def smooth_regions(
    spans: Sequence[Region],
    duration: float,
    *,
    min_silence: float,
    min_speech: float,
    padding: float,
) -> list[Region]:
    """Close short gaps, then drop what is short, then widen what is left.

    Parameters
    ----------
    spans : sequence of (float, float)
        Start and end in seconds, sorted and apart.
    duration : float
        Of the recording.
    min_silence, min_speech, padding : float
        As in :func:`energy_activity`.

    Returns
    -------
    list of (float, float)
        Sorted and apart.

    Examples
    --------
    >>> smooth_regions([(1.0, 2.0), (2.1, 3.0), (5.0, 5.1)], 9.0,
    ...     min_silence=0.3, min_speech=0.2, padding=0.5)
    [(0.5, 3.5)]
    """
    joined: list[list[float]] = []
    for start, end in spans:
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


class Detectors(NamedTuple):
    """What a `speechkit.speakers.diarization.Diarizer` knows of a recording: by default, energy."""

    activity: Activity = energy_activity
    overlap: Activity | None = None


def open_detectors(
    folder: str | os.PathLike[str] | None, *, device: str | torch.device = "cpu"
) -> Detectors:
    """Open a model folder that finds speech and overlap.

    Parameters
    ----------
    folder : path, optional
        Of a `speechkit.models.voice_activity.VoiceActivity`; without one, it is energy.
    device : str or torch.device
        Where the model runs.

    Returns
    -------
    Detectors
        Without overlap where the model was not made for it.

    Raises
    ------
    DataError
        If the folder holds another model.
    PretrainedError
        As `speechkit.load`.

    Examples
    --------
    >>> open_detectors(None).overlap is None
    True
    """
    if folder is None:
        return Detectors()
    model = open_detector(folder, device=device)
    return Detectors(model.activity, model.overlap if model.num_levels > 1 else None)


def open_detector(
    folder: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> VoiceActivity:
    """Open the model folder of a `speechkit.models.voice_activity.VoiceActivity`.

    Raises
    ------
    DataError, PretrainedError
        As `open_detectors`.
    """
    import speechkit
    from speechkit.data.errors import DataError
    from speechkit.models.voice_activity import VoiceActivity

    model = speechkit.load(folder, device=device)  # type: ignore[arg-type]
    if not isinstance(model, VoiceActivity):
        raise DataError(
            f"{os.fspath(folder)}: holds a {type(model).__name__}, which does not find speech; "
            "give the folder of a voice activity detector"
        )
    return model
