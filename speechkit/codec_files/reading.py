"""The audio of ``.skc`` files, block by block; see `speechkit.codec_files.files`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechkit.codec_files.info import DamagedPart, describe
from speechkit.codec_files.opened import FileCodec
from speechkit.codec_files.pieces import can_stream, frame_start, frames_of_segment, open_decoder
from speechkit.codec_files.places import Place, Progress, check_apart, open_source, open_target
from speechkit.coding.skc import Chunk, Damage, SkcError, SkcReader, check_model_id
from speechkit.coding.skc_checks import check_predictor
from speechkit.data.audio import _ratio
from speechkit.data.errors import DataError
from speechkit.data.streaming import StreamResampler
from speechkit.data.wav_stream import WavWriterStream

WARM_UP_SECONDS = 5.0
"""Decoded before a start in the middle, for a causal network to hear what was before."""


class DecodedFile(NamedTuple):
    """What was written.

    Attributes
    ----------
    num_samples, sample_rate, num_channels : int
        Of the audio.
    clipped : int
        Samples that were beyond full scale.
    damages : list of DamagedPart
        What was concealed.
    """

    num_samples: int
    sample_rate: int
    num_channels: int
    clipped: int
    damages: list[DamagedPart]


class SkcAudio:
    """The audio of an ``.skc`` file, decoded block by block at flat memory.

    Parameters
    ----------
    file : IO[bytes]
        A stream. Where it can be sought in, damage is found before anything is decoded.
    codec : FileCodec
        The one that made the file, with its predictor if the file is entropy-coded.
    start : float
        Seconds at which to begin. A codec of segments then gives exactly what it gives for the
        whole file. A causal one hears the five seconds before: what its network remembers from
        further back is missing.
    duration : float, optional
        Seconds to give, or less where the file ends before; by default all.
    conceal : bool
        Whether damage becomes silence; otherwise it is an error.
    name : str
        What errors call the file.

    Attributes
    ----------
    header : SkcHeader
        Of the file.
    num_samples : int or None
        That `blocks` gives; None where it is not known before the end.
    damages : list of DamagedPart
        Found in what is given, so far.

    Raises
    ------
    SkcError
        If it is no sound ``.skc`` file, was made with another codec or predictor, or is damaged.
    DataError
        If it ends before ``start``.
    """

    def __init__(
        self,
        file: IO[bytes],
        codec: FileCodec,
        *,
        start: float = 0.0,
        duration: float | None = None,
        conceal: bool = False,
        name: str = "the file",
    ) -> None:
        if start < 0 or (duration is not None and duration <= 0):
            raise ValueError(f"start={start} must be 0 or more, duration={duration} above 0")
        self.name = name
        self.codec = codec.codec
        self.conceal = conceal
        self._reader = _open_reader(file, codec, name)
        self.header = header = self._reader.header
        self.damages: list[DamagedPart] = []
        self._here = _ratio(header.sample_rate, self.codec.sample_rate)  # recording's, codec's
        self._first = round(start * header.sample_rate)
        count = None if duration is None else max(1, round(duration * header.sample_rate))
        self._end = None if count is None else self._first + count
        self.num_samples: int | None = None
        self._plan()
        if file.seekable():
            self._look()

    def blocks(self) -> Iterator[Tensor]:
        """Give the samples ``(C, t)``, float32, at the recording's rate; once.

        Raises
        ------
        SkcError
            For damage, when reading comes to it.
        """
        with torch.no_grad():
            yield from self._cut(self._resampled())

    def _plan(self) -> None:
        """Find the frames to decode, and what to drop of their samples."""
        codec, header = self.codec, self.header
        there, here = self._here
        ahead = StreamResampler(codec.sample_rate, header.sample_rate).lookahead
        reach = 2 * int(ahead * codec.sample_rate) + 1
        size, stride, hop = frames_of_segment(codec), codec.segment_stride, codec.hop_length
        place = self._first * here // there - reach
        self._begin_frame, self._end_frame = 0, None
        if size is not None:
            self._begin_frame = max(0, place // stride - 1) * size
        elif can_stream(codec):
            warm = int(WARM_UP_SECONDS * codec.sample_rate)
            self._begin_frame = max(0, (place - warm) // hop)
        if self._end is not None:
            end = -(-self._end * here // there) + reach
            if size is not None:
                self._end_frame = (end // stride + 2) * size
            elif can_stream(codec):
                self._end_frame = -(-end // hop)
        # The resampler begins where its kernel's phase is 0: at a multiple of `here` samples.
        begin = frame_start(codec, self._begin_frame)
        self._drop = -begin % here
        self._given = (begin + self._drop) // here * there  # the first sample resampled

    def _look(self) -> None:
        """Walk through the file once, for its length and its damage."""
        summary = self._reader.summary()
        total = summary.num_samples
        if total is None:
            there, here = self._here
            end = frame_start(self.codec, max(0, summary.num_frames - 1)) + self.codec.hop_length
            total = -(-end * there // here) if summary.num_frames else 0
        self._check_start(total)
        end = total if self._end is None else min(self._end, total)
        self.num_samples = end - self._first
        if not self.conceal:
            for damage in summary.damages:
                self._note(damage)

    def _check_start(self, total: int) -> None:
        if self._first and self._first >= total:
            rate = self.header.sample_rate
            raise DataError(
                f"{self.name}: has {total / rate:.2f} s, and ends before {self._first / rate:.2f} "
                "s; begin earlier"
            )

    def _note(self, damage: Damage) -> None:
        """Raise damage, or remember it, where it is in what is asked for."""
        part = describe(damage, self.header, self._seconds)
        rate = self.header.sample_rate
        before = self._first > 0 and part.end <= self._first / rate
        if before or (self._end is not None and part.start >= self._end / rate):
            return
        if not self.conceal:
            raise SkcError(
                f"{self.name}: damaged: {part}; get the file again, or conceal the damage "
                "(--conceal) to have the rest"
            )
        self.damages.append(part)

    def _seconds(self, frame: int) -> float:
        return frame_start(self.codec, frame) / self.codec.sample_rate

    def _decoded(self) -> Iterator[Tensor]:
        """Give the samples of the frames, at the codec's rate."""
        decoder = open_decoder(self.codec, self.header.num_codebooks)
        noted = 0
        for chunk in self._reader.chunks(self._begin_frame // self.header.chunk_frames):
            for damage in self._reader.damages[noted:]:
                self._note(damage)
            noted = len(self._reader.damages)
            skipped = max(0, self._begin_frame - chunk.first_frame)
            if chunk.codes is None:
                yield from decoder.skip(max(0, chunk.num_frames - skipped))
            else:
                codes = torch.from_numpy(chunk.codes)[:, skipped:]
                yield from decoder.push(codes, self._scales(chunk)[skipped:])
            if self._end_frame and chunk.first_frame + chunk.num_frames >= self._end_frame:
                break
        for damage in self._reader.damages[noted:]:
            self._note(damage)
        length, total = self._reader.num_samples, self._length()
        if length is not None and total is not None:
            self._check_start(length)
            self._end = length if self._end is None else min(self._end, length)
            total = max(0, total - frame_start(self.codec, self._begin_frame))
        yield from decoder.finish(total)

    def _length(self) -> int | None:
        """Give the samples of the file at the codec's rate, once its last chunk was read."""
        there, here = self._here
        total = self._reader.num_samples
        return None if total is None else -(-total * here // there)

    def _scales(self, chunk: Chunk) -> Tensor:
        """Give the loudness of each frame of a chunk."""
        if not self.codec.normalize:
            return torch.ones(chunk.num_frames)
        scales = torch.from_numpy(np.frombuffer(chunk.side, dtype=">f4").astype(np.float32))
        size = frames_of_segment(self.codec)
        frames = chunk.first_frame + torch.arange(chunk.num_frames)
        return scales[frames // size - chunk.first_frame // size if size else 0 * frames]

    def _resampled(self) -> Iterator[Tensor]:
        """Give the samples at the recording's rate, with the recording's channels."""
        header, codec = self.header, self.codec
        resamplers: list[StreamResampler] = []
        if header.sample_rate != codec.sample_rate:
            rates = codec.sample_rate, header.sample_rate
            resamplers = [StreamResampler(*rates) for _ in range(header.channels)]
        drop, place = self._drop, frame_start(codec, self._begin_frame)
        for block in self._decoded():
            total = self._length()  # known at the latest with the last chunk
            samples = block[:, drop : None if total is None else max(0, total - place)]
            drop = max(0, drop - block.shape[1])
            place += block.shape[1]
            if header.channels != codec.channels:
                samples = samples.mean(dim=0, keepdim=True)
            if resamplers and samples.shape[1]:
                samples = torch.stack([to.push(x) for to, x in zip(resamplers, samples)])
            yield samples
        if resamplers:
            yield torch.stack([to.finish() for to in resamplers])

    def _cut(self, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Give what is asked for, and no more."""
        place = self._given
        for block in blocks:
            ends = [place + block.shape[1]]
            ends += [] if self._end is None else [self._end]
            ends += [] if self.num_samples is None else [self._first + self.num_samples]
            first, end = max(0, self._first - place), min(ends) - place
            place += block.shape[1]
            if first < end:
                yield block[:, first:end]
            if min(ends) < place:
                return
        self._check_start(place)


def _open_reader(file: IO[bytes], codec: FileCodec, name: str) -> SkcReader:
    """Open a stream, and see that the codec is the one that made it."""
    try:
        # Damage is this module's to raise: it knows when the frames of a codec are.
        reader = SkcReader(file, codec.predictor, conceal=True)
        header = reader.header
        check_model_id(header, codec.model_id)
        check_predictor(header, codec.predictor, reading=True)
    except SkcError as error:
        raise SkcError(f"{name}: {error}") from error
    model = codec.codec
    expected = codec.header(
        sample_rate=header.sample_rate,
        channels=header.channels,
        num_codebooks=header.num_codebooks,
        coded=bool(header.entropy_id),
    )
    if header != expected or header.channels not in (1, model.channels):
        raise SkcError(
            f"{name}: its header does not fit the codec that it names: {header}, where the codec "
            f"would write {expected} or channels={model.channels}; get the file again"
        )
    if header.num_codebooks > model.num_codebooks:
        raise SkcError(
            f"{name}: has {header.num_codebooks} codebooks, the codec {model.num_codebooks}; get "
            "the file again"
        )
    return reader


def decode_file(
    source: Place,
    target: Place,
    codec: FileCodec,
    *,
    start: float = 0.0,
    duration: float | None = None,
    conceal: bool = False,
    subtype: str = "PCM_16",
    progress: Progress | None = None,
) -> DecodedFile:
    """Write the audio of an ``.skc`` file as a WAV, with the recording's rate and length.

    Parameters
    ----------
    source : path or IO[bytes]
        The ``.skc`` file.
    target : path or IO[bytes]
        An older file is replaced when the new one is complete, and stays if it never is.
    codec, start, duration, conceal
        See `SkcAudio`.
    subtype : {"PCM_16", "PCM_24", "FLOAT"}
        Of the samples; integers are clipped at full scale.
    progress : callable, optional
        Is told of each further number of seconds.

    Returns
    -------
    DecodedFile
        What was written.

    Raises
    ------
    DataError
        As `SkcAudio`; where the target is the source.
    """
    check_apart(source, target)
    with open_source(source) as (file, name):
        audio = SkcAudio(file, codec, start=start, duration=duration, conceal=conceal, name=name)
        header = audio.header
        with open_target(target) as out:
            writer = WavWriterStream(
                out,
                header.sample_rate,
                header.channels,
                audio.num_samples,
                subtype=subtype,
                rewrite=out is not target and out.seekable(),
            )
            for block in audio.blocks():
                writer.write(block)
                if progress is not None:
                    progress(block.shape[1] / header.sample_rate)
            writer.finish()
        return DecodedFile(
            writer.num_written, header.sample_rate, header.channels, writer.clipped, audio.damages
        )
