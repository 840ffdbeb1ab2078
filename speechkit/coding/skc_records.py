"""Reading the records of an ``.skc`` file one after the other, past what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from speechkit.coding.skc_layout import MAX_RECORD, RECORD_HEAD, Record, RecordLayout

_BLOCK = 1 << 16
_MAX_JUMP = 256  # chunks that may be missing without a trace


class Damage(NamedTuple):
    """A part of the file that could not be used.

    Attributes
    ----------
    first_chunk : int
        The first chunk that is lost.
    num_chunks : int
        Chunks lost; 0 where bytes are too many, but no chunk is missing.
    offset : int
        Where the damaged bytes begin, from the start of the file.
    num_bytes : int
        How many they are; 0 where bytes are missing.
    reason : str
        What is wrong.
    """

    first_chunk: int
    num_chunks: int
    offset: int
    num_bytes: int
    reason: str


class _Window:
    """The part of a stream that is in memory."""

    def __init__(self, file: IO[bytes], offset: int) -> None:
        self.file = file
        self.offset = offset  # of the first byte in memory
        self.data = bytearray()
        self.ended = False

    def fill(self, size: int) -> None:
        """Have ``size`` bytes in memory, or all that are left."""
        while len(self.data) < size and not self.ended:
            block = self.file.read(max(size - len(self.data), _BLOCK))
            if not block:
                self.ended = True
            else:
                self.data += block

    def drop(self, size: int) -> None:
        del self.data[:size]
        self.offset += size


def read_records(
    file: IO[bytes], layout: RecordLayout, offset: int, expected: int = 0
) -> Iterator[Record | Damage]:
    """Read records to the end of a stream.

    Where the expected record is not, the next sound one is searched for, byte by byte, and a
    `Damage` given in place of what lies before it. A sound record names its own number, so records
    that are missing, swapped or repeated are noticed.

    Parameters
    ----------
    file : IO[bytes]
        At the record ``expected``, which begins at ``offset``. Only read, 64 KiB at a time.
    layout : RecordLayout
        Of the file's header.
    offset, expected : int
        Where the stream stands.

    Yields
    ------
    Record or Damage
        In the order of the file.
    """
    window = _Window(file, offset)
    while True:
        window.fill(MAX_RECORD)
        record = layout.parse(window.data)
        if record is None or record.number != expected:
            damage, record = _search(window, layout, expected)
            yield damage
            if record is None:
                return
        yield record._replace(offset=window.offset)
        expected = record.number + 1
        window.drop(record.size)
        if record.num_samples is not None:
            break
    window.fill(1)
    if window.data:
        start, size = window.offset, 0
        while window.data:
            size += len(window.data)
            window.drop(len(window.data))
            window.fill(1)
        yield Damage(expected, 0, start, size, "bytes follow the last chunk")


def _search(window: _Window, layout: RecordLayout, expected: int) -> tuple[Damage, Record | None]:
    """Move to the next sound record that may still come, and say what was passed."""
    start = window.offset
    while True:
        window.fill(_BLOCK + 2 * MAX_RECORD)
        for place in _candidates(window, layout):
            record = layout.parse(window.data, place)
            skipped = window.offset + place - start
            if record is None or not _follows(window, layout, expected, place, record, skipped):
                continue
            window.drop(place)
            lost = record.number - expected
            return Damage(expected, lost, start, skipped, _reason(lost, skipped)), record
        window.drop(min(_BLOCK, len(window.data)))
        if window.ended and not window.data:
            skipped = window.offset - start
            lost = -(-skipped // layout.max_size)
            return Damage(expected, lost, start, skipped, "the last chunk is missing"), None


def _follows(
    window: _Window, layout: RecordLayout, expected: int, place: int, record: Record, skipped: int
) -> bool:
    """Tell whether reading goes on with a record, though others before it are missing."""
    lost = record.number - expected
    if not 0 <= lost <= _MAX_JUMP + skipped // layout.min_size:
        return False
    # Where the one behind it should come before it, this one was moved here.
    behind = layout.parse(window.data, place + record.size)
    return behind is None or not expected <= behind.number < record.number


def _reason(lost: int, skipped: int) -> str:
    if not skipped:
        return "chunks are missing"
    if not lost:
        return "there are bytes that belong to no chunk, or to one that is not in its place"
    return "the checksum is wrong, or the chunk is not in its place"


def _candidates(window: _Window, layout: RecordLayout) -> list[int]:
    """Places in the first 64 KiB in memory where a record may begin, by the length word."""
    end = min(_BLOCK, len(window.data) - RECORD_HEAD + 1)
    if end <= 0:
        return []
    octets = np.frombuffer(bytes(window.data[: end + 1]), dtype=np.uint8).astype(np.int64)
    words = octets[:-1] << 8 | octets[1:]
    places: list[int] = np.flatnonzero(layout.plausible(words)).tolist()
    return places
