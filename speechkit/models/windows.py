"""Recordings as overlapping windows.

Long audio goes through in overlapping windows::

    audio    |------------------------------------------------ ...
    window 0 [==============~~~~]
    window 1               [~~~~==============~~~~]
    window 2                              [~~~~==============~~~~]
    kept     |<----- 0 ------>|<------- 1 ------>|<------- 2 ...

Each window loses half of the overlap (``~``) on each side, where the model lacks context, and the
log-probabilities of what is left are joined. Windows start on the model's own frame grid, so that a
model whose receptive field is shorter than half of the overlap gives what it gives for the whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

AudioSource: TypeAlias = "str | os.PathLike[str] | Tensor"
SILENCE_DBFS = -70.0
"""A window with no 25 ms louder than this (RMS, re full scale) is silence: it has no words."""

_BLOCK_SECONDS = 10.0


class Plan(NamedTuple):
    """How recordings are cut, in frames and in samples."""

    sample_rate: int
    stride: int  # samples a frame
    step: int  # frames from a window's start to the next one's
    half: int  # frames that a window loses on an inner side

    @property
    def window(self) -> int:
        """Samples in a full window."""
        return (self.step + 2 * self.half) * self.stride


class Window(NamedTuple):
    """A window of recording ``item`` of a list: its samples, and whether all of it is silence."""

    item: int
    number: int
    waveform: Tensor
    is_last: bool
    silent: bool


def samples_per_frame(num_frames: Callable[[Tensor], Tensor]) -> int:
    """Find the model's stride from how many frames a long stretch adds (~4 days at 16 kHz)."""
    stretch = 2**32
    few, many = num_frames(torch.tensor([2**20, 2**20 + stretch])).tolist()
    stride = stretch / max(1, many - few)
    if abs(stride - round(stride)) > 0.01 or not few:
        raise ValueError(
            f"the model has {stride:.4f} samples a frame: windows can be joined only where that is "
            "a whole number"
        )
    return round(stride)


class Opened(NamedTuple):
    """A recording that can be read: its seconds, and its samples block by block."""

    duration: float
    blocks: Iterator[Tensor]  # mono, at the model's rate


def open_source(
    source: AudioSource, sample_rate: int | None, target_rate: int, position: str
) -> Opened:
    """Open a file or a tensor; ``position`` says in errors which item of a list it is."""
    from speechkit.data import audio

    if isinstance(source, (str, os.PathLike)):
        info = audio.audio_info(source)
        blocks = audio.stream_audio(
            source, block_seconds=_BLOCK_SECONDS, overlap_seconds=0.0, sample_rate=target_rate
        )
        return Opened(info.num_samples / info.sample_rate, iter(blocks))
    name = position or "the tensor"
    if not hasattr(source, "__array__"):
        raise TypeError(f"{name}: expected a path or a tensor, got {type(source).__name__}")
    if sample_rate is None:
        raise ValueError(
            f"{name}: a tensor does not say its sampling rate, so give it: "
            f"transcribe(tensor, sample_rate=...) in Hz (the model's own is {target_rate})"
        )
    samples = torch.as_tensor(source)
    if samples.numel() == 0:
        return Opened(0.0, iter(()))
    try:
        waveform = audio.as_waveform(samples, sample_rate, target_rate).cpu()
    except ValueError as error:  # DataError too: which item it was helps
        raise type(error)(f"{name}: {error}") from error
    return Opened(len(waveform) / target_rate, iter((waveform,)))


def cut_windows(item: int, source: Opened, plan: Plan) -> Iterator[Window]:
    """Cut a stream of blocks into windows; only the last one is shorter than the plan's."""
    step = plan.step * plan.stride
    buffer = torch.zeros(0)
    index = 0
    for block in source.blocks:
        buffer = torch.cat([buffer, block])
        while len(buffer) > plan.window:  # so there is always something left for a last window
            waveform = buffer[: plan.window].clone()
            yield Window(item, index, waveform, False, is_silent(waveform, plan.sample_rate))
            buffer = buffer[step:].clone()
            index += 1
    if len(buffer):
        yield Window(item, index, buffer, True, is_silent(buffer, plan.sample_rate))


def is_silent(waveform: Tensor, sample_rate: int) -> bool:
    """Whether no 25 ms of a waveform ``(T,)`` are louder than `SILENCE_DBFS`."""
    size = min(len(waveform), max(1, sample_rate // 40))
    whole = len(waveform) // size * size
    power = waveform[:whole].reshape(-1, size).square().mean(dim=1).max()
    rest = waveform[whole:].square().sum() / size
    return float(torch.maximum(power, rest)) < 10 ** (SILENCE_DBFS / 10)
