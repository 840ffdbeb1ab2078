"""Recordings to ``.skc`` files; see `speechkit.codec_files.files`."""

from __future__ import annotations

import warnings
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechkit.codec_files.opened import FileCodec
from speechkit.codec_files.pieces import frames_of_segment, open_encoder
from speechkit.codec_files.places import Place, Progress, check_apart, open_recording, open_target
from speechkit.coding.skc import SkcHeader, SkcWriter
from speechkit.coding.skc_checks import check_predictor
from speechkit.data.errors import DataError
from speechkit.data.streaming import StreamResampler


class DownmixWarning(UserWarning):
    """The channels of a recording are averaged, for the codec has one."""


class EncodedFile(NamedTuple):
    """What was written.

    Attributes
    ----------
    header : SkcHeader
        Of the file.
    num_samples : int
        Samples of each channel, at the rate of the recording.
    num_frames, num_bytes : int
        Of the file.
    """

    header: SkcHeader
    num_samples: int
    num_frames: int
    num_bytes: int

    @property
    def kbps(self) -> float:
        """Bit rate as written, header and all."""
        return self.num_bytes * 8 / 1000 / (self.num_samples / self.header.sample_rate)


@torch.no_grad()  # not inference_mode: a resampler's kernel is kept, and may be trained through
def encode_file(
    source: Place,
    target: Place,
    codec: FileCodec,
    *,
    kbps: float,
    progress: Progress | None = None,
) -> EncodedFile:
    """Write a recording as an ``.skc`` file.

    Parameters
    ----------
    source : path or IO[bytes]
        Audio of any format, rate and number of channels; from a stream, a WAV of any length.
    target : path or IO[bytes]
        An older file is replaced when the new one is complete, and stays if it never is.
    codec : FileCodec
        Codes are those of ``codec.codec.encode`` for the whole recording.
    kbps : float
        One of ``codec.codec.rates_kbps``.
    progress : callable, optional
        Is told of each further number of seconds.

    Returns
    -------
    EncodedFile
        What was written.

    Warns
    -----
    DownmixWarning
        If channels are averaged.

    Raises
    ------
    DataError
        For a rate that the codec does not serve; for audio that cannot be read; where the target
        is the source.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from speechkit.data.audio import write_audio
    >>> from speechkit.models.codec import Codec
    >>> from speechkit.nn.quantize import ResidualVectorQuantizer
    >>> from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder
    >>> sizes = {"num_filters": 2, "latent_size": 6, "lstm_layers": 1}
    >>> codec = FileCodec.of(Codec(
    ...     sample_rate=8000,
    ...     channels=1,
    ...     encoder=SEANetEncoder(strides=(2, 5), **sizes),
    ...     quantizer=ResidualVectorQuantizer(
    ...         latent_size=6, codebook_size=16, num_codebooks=3, kmeans_iterations=0),
    ...     decoder=SEANetDecoder(strides=(5, 2), **sizes),
    ... ))
    >>> path = Path(tempfile.mkdtemp()) / "a.wav"
    >>> write_audio(path, torch.randn(1600) / 10, 16000)
    >>> written = encode_file(path, path.with_suffix(".skc"), codec, kbps=6.4)
    >>> written.num_samples, written.num_frames, path.with_suffix(".skc").stat().st_size
    (1600, 80, 118)
    """
    num_codebooks = codec.codec.codebooks_for(kbps)
    check_apart(source, target)
    with open_recording(source) as recording:
        rate, channels, name = recording.sample_rate, recording.num_channels, recording.name
        kept = channels if channels in (1, codec.codec.channels) else 1
        header = codec.header(
            sample_rate=rate, channels=kept, num_codebooks=num_codebooks, coded=True
        )
        check_predictor(header, codec.predictor, reading=False)
        if kept != channels:
            warnings.warn(
                f"{name}: its {channels} channels are averaged to one: the codec has "
                f"{codec.codec.channels}",
                DownmixWarning,
                stacklevel=2,
            )
        with open_target(target) as file:
            counter = _Counter(file)
            chunks = _ChunkWriter(counter, header, codec)
            done = 0
            for block in recording.blocks:
                chunks.push(block)
                done += block.shape[1]
                if progress is not None:
                    progress(block.shape[1] / rate)
            if not done:
                raise DataError(f"{name}: holds no samples; record it again or remove it")
            frames = chunks.finish(done)
            return EncodedFile(header, done, frames, counter.num_bytes)


class _ChunkWriter:
    """Brings blocks of a recording to the codec's rate, and their codes into chunks."""

    def __init__(self, file: _Counter, header: SkcHeader, codec: FileCodec) -> None:
        self._header = header
        self._codec = codec.codec
        self._encoder = open_encoder(codec.codec, header.num_codebooks)
        self._writer = SkcWriter(file, header, codec.predictor)  # type: ignore[arg-type]
        self._codes = np.zeros((header.num_codebooks, 0), dtype=np.int64)
        self._resamplers: list[StreamResampler] = []
        self._chunk = 0

    def push(self, block: Tensor) -> None:
        """Take ``(C, t)`` at the recording's rate."""
        rates = self._header.sample_rate, self._codec.sample_rate
        samples = block if block.shape[0] == self._codec.channels else block.mean(0, keepdim=True)
        if rates[0] != rates[1]:
            self._resamplers = self._resamplers or [StreamResampler(*rates) for _ in samples]
            parts = [stream.push(x) for stream, x in zip(self._resamplers, samples)]
            samples = torch.stack(parts)
        self._encode(samples)

    def finish(self, num_samples: int) -> int:
        """End the recording of so many samples; return the number of frames."""
        if self._resamplers:
            self._encode(torch.stack([stream.finish() for stream in self._resamplers]))
        self._write(self._encoder.finish(), last=True)
        self._writer.finish(num_samples)
        return self._writer.num_frames

    def _encode(self, samples: Tensor) -> None:
        if samples.shape[0] != self._codec.channels:
            samples = samples.expand(self._codec.channels, -1)
        self._write(self._encoder.push(samples), last=False)

    def _write(self, codes: Tensor, *, last: bool) -> None:
        if not self._header.side_size:
            self._writer.write(codes.numpy())
            return
        self._codes = np.concatenate([self._codes, codes.numpy()], axis=1)
        size = self._header.chunk_frames
        while self._codes.shape[1] >= size or (last and self._codes.shape[1]):
            part, self._codes = self._codes[:, :size], self._codes[:, size:]
            self._writer.write(part, self._side(part.shape[1]))
            self._chunk += 1

    def _side(self, num_frames: int) -> bytes:
        first = self._chunk * self._header.chunk_frames
        size = frames_of_segment(self._codec)
        low, high = (first // size, (first + num_frames - 1) // size) if size else (0, 0)
        scales = np.array(self._encoder.scales[low : high + 1], dtype=">f4")
        return scales.tobytes().ljust(self._header.side_size, b"\0")


class _Counter:
    """Counts the bytes that are written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self.num_bytes += len(data)
        return self._file.write(data)
