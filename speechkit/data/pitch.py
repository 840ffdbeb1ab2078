"""The pitch of recordings, as a field of items: what text to speech with pitch learns from."""

from __future__ import annotations

import math
from typing import Any

import torch

from speechkit.features.pitch import track_pitch

OCTAVES = 0.5
"""What one unit of a pitch is: half an octave, so that a voice's range is about -1 to 1."""


class TrackPitch:
    """Set ``"pitch"`` ``(T',)``: of each frame of a log-mel, NaN where there is no voice.

    The unit is half an octave above or below ``reference_hz``, whoever speaks.

    Parameters
    ----------
    sample_rate : int
        Of the waveforms, in Hz.
    hop_length : int
        Of the features.
    reference_hz : float
        What is zero.

    Raises
    ------
    ValueError
        If a number is not above zero.

    Examples
    --------
    >>> time = torch.arange(8000) / 8000
    >>> item = {"waveform": torch.sin(2 * math.pi * 300 * time)}
    >>> pitch = TrackPitch(sample_rate=8000, hop_length=100)(item, torch.Generator())["pitch"]
    >>> pitch.shape, round(pitch[40].item(), 1)
    (torch.Size([81]), 2.0)
    """

    def __init__(self, *, sample_rate: int, hop_length: int, reference_hz: float = 150.0) -> None:
        if min(sample_rate, hop_length, reference_hz) <= 0:
            raise ValueError(
                f"sample_rate={sample_rate}, hop_length={hop_length} and "
                f"reference_hz={reference_hz} must be above 0"
            )
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.reference_hz = reference_hz

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Track the waveform's pitch."""
        f0 = track_pitch(item["waveform"], self.sample_rate, hop_length=self.hop_length).f0
        pitch = (f0 / self.reference_hz).log2() / OCTAVES
        return {**item, "pitch": pitch.masked_fill(f0 <= 0, math.nan).float()}
