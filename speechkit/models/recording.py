"""A recording, in a file or a tensor, read block by block as often as needed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from speechkit.models.windows import AudioSource

_BLOCK_SECONDS = 10.0
_FULL_SCALE = 32767 / 32768  # the largest positive sample of 16 bits


class Recording:
    """A file or a tensor, with its own rate and length, that gives mono blocks at any rate.

    A file is not opened but while its blocks are read.

    Parameters
    ----------
    source : path or Tensor
        A file, or samples ``(T,)`` or ``(C, T)``: floats in [-1, 1] or 16-bit integers.
    sample_rate : int, optional
        Hz, of a tensor; a file knows its own.
    name : str, optional
        What errors call a tensor.

    Attributes
    ----------
    sample_rate, num_samples, num_channels : int
        Of the recording as it is.

    Raises
    ------
    DataError
        A file that cannot be opened, no samples, or samples of a tensor that are not finite.
    TypeError, ValueError
        Neither a path nor samples; no rate.

    Examples
    --------
    >>> recording = Recording(torch.zeros(2, 300), 8000)
    >>> recording.num_samples, sum(len(block) for block in recording.blocks(16000))
    (300, 600)
    """

    def __init__(
        self, source: AudioSource, sample_rate: int | None = None, *, name: str = "the tensor"
    ) -> None:
        from speechkit.data import audio

        self._warned = False
        self._path: str | None = None
        if isinstance(source, (str, os.PathLike)):
            self.name = self._path = os.fspath(source)
            info = audio.audio_info(source)
            audio.check_span(source, info, 0.0, None)
            self.sample_rate, self.num_samples, self.num_channels = info
            return
        if not hasattr(source, "__array__"):
            raise TypeError(f"{name}: expected a path or a tensor, got {type(source).__name__}")
        if sample_rate is None or sample_rate <= 0:
            raise ValueError(
                f"{name}: a tensor does not say its sampling rate, so give it, in Hz: "
                f"sample_rate={sample_rate}"
            )
        self.name = name
        samples = torch.as_tensor(source).detach()
        try:
            audio.as_waveform(samples, sample_rate, sample_rate)
        except ValueError as error:  # DataError too: which item of a list it was helps
            raise type(error)(f"{name}: {error}") from error
        self._samples = samples if samples.dim() == 2 else samples[None]
        self.sample_rate = sample_rate
        self.num_channels, self.num_samples = self._samples.shape

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_samples / self.sample_rate

    def blocks(self, sample_rate: int) -> Iterator[Tensor]:
        """Read the recording from its beginning, as mono blocks ``(t,)`` at this rate.

        At the end it is warned, once, if the recording is clipped.

        Raises
        ------
        DataError
            When reading comes to a fault of the file.
        """
        from speechkit.data.audio import to_mono
        from speechkit.data.streaming import StreamResampler

        resampler = StreamResampler(self.sample_rate, sample_rate)
        clipped = 0
        for channels in self._channels():
            clipped += count_clipped(channels)
            block = resampler.push(to_mono(channels))
            if len(block):
                yield block
        rest = resampler.finish()
        if len(rest):
            yield rest
        if clipped and not self._warned:
            self._warned = True
            share = clipped / (self.num_samples * self.num_channels)
            warnings.warn(
                f"{self.name}: {share:.2%} of the samples ({clipped}) are clipped: they stay at "
                "full scale, and so does their distortion in what is separated",
                stacklevel=2,
            )

    def _channels(self) -> Iterator[Tensor]:
        """Give blocks (C, t) at the recording's own rate."""
        from speechkit.data.audio import read_exactly
        from speechkit.data.formats import open_audio

        size = max(1, round(_BLOCK_SECONDS * self.sample_rate))
        if self._path is None:
            for block in self._samples.split(size, dim=1):
                scale = 32768.0 if block.dtype == torch.int16 else 1.0
                yield block.to("cpu", torch.float32) / scale
            return
        with open_audio(self._path) as reader:
            for first in range(0, self.num_samples, size):
                count = min(size, self.num_samples - first)
                yield read_exactly(reader, self._path, first, count).T


def count_clipped(channels: Tensor) -> int:
    """Count samples of ``(C, T)`` in runs of two or more equal ones at full scale or above.

    One sample at full scale is a peak, as normalised recordings have.

    Examples
    --------
    >>> count_clipped(torch.tensor([[0.5, 1.0, 1.0, 1.0, -0.2, 1.0], [0.5, 0.5, 0, 0, -1, -1]]))
    5
    """
    same = (channels[:, 1:] == channels[:, :-1]) & (channels[:, 1:].abs() >= _FULL_SCALE)
    in_run = torch.zeros_like(channels, dtype=torch.bool)
    in_run[:, 1:] |= same
    in_run[:, :-1] |= same
    return int(in_run.sum())
