"""Reading an ``.skc`` file chunk by chunk: `speechkit.coding.skc` has the format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from speechkit.coding.predictor import CodePredictor, decode_streams
from speechkit.coding.range_coder import StreamError
from speechkit.coding.skc_checks import check_predictor, describe_damage
from speechkit.coding.skc_layout import (
    Record,
    RecordLayout,
    SkcError,
    SkcHeader,
    header_size,
    unpack_codes,
)
from speechkit.coding.skc_records import Damage, read_records


class Chunk(NamedTuple):
    """A part of the audio, or a gap.

    Attributes
    ----------
    number : int
        Of the chunk, from 0; of a gap, that of the first one lost.
    first_frame : int
        Where it begins, in frames of the whole file.
    num_frames : int
        How many frames it has. Where the last chunk is lost, a full one is assumed.
    codes : np.ndarray or None
        Codes ``(Q, num_frames)``, int64; None for a gap.
    side : bytes
        The chunk's side bytes.
    damage : Damage or None
        Of a gap.
    """

    number: int
    first_frame: int
    num_frames: int
    codes: np.ndarray | None
    side: bytes
    damage: Damage | None


class SkcSummary(NamedTuple):
    """What a walk through a file finds, without decoding codes.

    Attributes
    ----------
    num_chunks, num_frames : int
        Sound chunks, and the frames of the file, gaps included.
    num_samples : int or None
        Samples of each channel; None where the last chunk is lost.
    num_bytes : int
        Of the whole file.
    damages : list of Damage
        What is wrong with it.
    """

    num_chunks: int
    num_frames: int
    num_samples: int | None
    num_bytes: int
    damages: list[Damage]


class SkcReader:
    """Reads a stream chunk by chunk, at flat memory.

    Parameters
    ----------
    file : IO[bytes]
        Open for reading; a pipe will do.
    predictor : CodePredictor, optional
        That of the writer; needed for the codes of an entropy-coded file.
    conceal : bool
        Whether damage becomes a gap; otherwise it is an error.
    num_streams : int
        Entropy-coded chunks that are decoded side by side: 16 take a third of the time of single
        ones, but the first codes come when 16 chunks are there.

    Attributes
    ----------
    header : SkcHeader
        What the file says about itself.
    num_samples : int or None
        Samples of each channel, once the last chunk was read.
    damages : list of Damage
        Found so far.

    Raises
    ------
    SkcError
        If the stream does not begin with a sound header, or the predictor is another one.
    """

    def __init__(
        self,
        file: IO[bytes],
        predictor: CodePredictor | None = None,
        *,
        conceal: bool = False,
        num_streams: int = 16,
    ) -> None:
        self.file = file
        self.predictor = predictor
        self.conceal = conceal
        self.num_streams = num_streams
        self.num_samples: int | None = None
        self.damages: list[Damage] = []
        self._start = file.tell() if file.seekable() else None
        self._used = False
        start = _read(file, 5)
        size = header_size(start)
        self.header = SkcHeader.from_bytes(start + _read(file, size - len(start)))
        if predictor is not None:
            check_predictor(self.header, predictor, reading=True)
        self._header_size = size
        self._layout = RecordLayout(self.header)

    def chunks(self, first_chunk: int = 0) -> Iterator[Chunk]:
        """Decode chunks in order, from one of them on.

        A stream that cannot be sought in can be read once.

        Parameters
        ----------
        first_chunk : int
            Where to begin; frame ``t`` is in the chunk ``t // header.chunk_frames``.

        Yields
        ------
        Chunk
            Codes; gaps too where ``conceal`` is set.

        Raises
        ------
        SkcError
            For damage, after the chunks before it, where ``conceal`` is not set; for entropy-coded
            codes without a predictor; for a chunk behind the end.
        """
        if self.header.entropy_id and self.predictor is None:
            raise SkcError(
                "the file is entropy-coded with the model "
                f"{self.header.entropy_id.hex()}; give this model to decode it"
            )
        waiting: list[Record] = []
        last_chunk = -1
        for item in self._records(first_chunk):
            if isinstance(item, Record):
                last_chunk = item.number
                if item.number >= first_chunk:
                    waiting.append(item)
                if len(waiting) < (self.num_streams if self.header.entropy_id else 1):
                    continue
            yield from self._decode(waiting)
            waiting = []
            if isinstance(item, Damage):
                last_chunk = max(last_chunk, item.first_chunk + item.num_chunks - 1)
                yield from self._gap(item, first_chunk)
        yield from self._decode(waiting)
        if first_chunk > max(last_chunk, 0):
            raise SkcError(f"there is no chunk {first_chunk}; the file ends at chunk {last_chunk}")

    def summary(self) -> SkcSummary:
        """Walk through the file without decoding it; damage is listed, not raised."""
        chunks = frames = 0
        end = self._header_size
        for item in self._records(0):
            if isinstance(item, Record):
                chunks += 1
                frames += item.num_frames
                end += item.size
            else:
                frames += item.num_chunks * self.header.chunk_frames
                end += item.num_bytes
                self.damages.append(item)
        return SkcSummary(chunks, frames, self.num_samples, end, self.damages)

    def _records(self, first_chunk: int) -> Iterator[Record | Damage]:
        """Read records from the start, or from a chunk of a plain file whose place is known."""
        self.damages = []
        self.num_samples = None
        if self._used and self._start is None:
            raise SkcError("a stream that cannot be sought in can be read once; open it again")
        self._used = True
        place, expected = self._header_size, 0
        if self._start is not None:
            if first_chunk and not self.header.entropy_id:
                there = self._header_size + first_chunk * self._layout.max_size
                self.file.seek(self._start + there)
                record = self._layout.parse(_read(self.file, self._layout.max_size + 8))
                if record is not None and record.number == first_chunk:
                    place, expected = there, first_chunk
            self.file.seek(self._start + place)
        for item in read_records(self.file, self._layout, place, expected):
            if isinstance(item, Record) and item.num_samples is not None:
                self.num_samples = item.num_samples
            yield item

    def _decode(self, records: list[Record]) -> Iterator[Chunk]:
        """Decode records, entropy-coded ones side by side."""
        header, side = self.header, self.header.side_size
        coded = [record for record in records if record.coded]
        decoded: dict[int, np.ndarray | StreamError] = {}
        if coded and self.predictor is not None:
            streams = [record.payload[side:] for record in coded]
            frames = [record.num_frames for record in coded]
            blocks = decode_streams(streams, frames, header.num_codebooks, self.predictor)
            decoded = {record.number: block for record, block in zip(coded, blocks)}
        for record in records:
            codes = decoded.get(record.number)
            try:
                if isinstance(codes, StreamError):
                    raise SkcError(str(codes)) from codes
                if codes is None:
                    codes = unpack_codes(
                        record.payload[side:], header.num_codebooks, record.num_frames, header.bits
                    )
                if codes.size and codes.max() >= header.codebook_size:
                    raise SkcError(f"a code is {codes.max()}, but there are {header.codebook_size}")
            except SkcError as error:
                # The bytes are as they were written: whoever wrote them did not write codes.
                damage = Damage(record.number, 1, record.offset, record.size, str(error))
                yield from self._gap(damage, record.number, record.num_frames)
                continue
            first = record.number * header.chunk_frames
            payload = record.payload[:side]
            yield Chunk(record.number, first, record.num_frames, codes, payload, None)

    def _gap(
        self, damage: Damage, first_chunk: int, num_frames: int | None = None
    ) -> Iterator[Chunk]:
        """Raise the damage, or give a gap where chunks from ``first_chunk`` on are lost."""
        end = damage.first_chunk + damage.num_chunks
        if end < first_chunk + bool(damage.num_chunks):
            return  # before what was asked for
        if not self.conceal:
            raise SkcError(describe_damage(damage, self.header))
        self.damages.append(damage)
        start = max(damage.first_chunk, first_chunk)
        size = self.header.chunk_frames
        if end > start:
            frames = (end - start) * size if num_frames is None else num_frames
            yield Chunk(start, start * size, frames, None, bytes(self.header.side_size), damage)


def _read(file: IO[bytes], size: int) -> bytes:
    """Read ``size`` bytes, or all that are left: a pipe gives them in parts."""
    data = b""
    while len(data) < size and (block := file.read(size - len(data))):
        data += block
    return data
