"""WAV through pipes: where nothing can be sought, and the length may not be known beforehand."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.data.formats import check_finite

# Writers to a pipe cannot know the size and put 0 or a huge number there.
_STREAMED_BYTES = 0x7FFF0000
_UNKNOWN = 0xFFFFFFFF
_MOST_BYTES = 2**32 - 4096  # what a RIFF's sizes can say, less the header
_MOST_FORMAT = 4096
_BLOCK_SECONDS = 10
_BLOCK_NUMBERS = 1 << 23
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_DTYPES = {(_PCM, 8): "u1", (_PCM, 16): "<i2", (_PCM, 24): "u1", (_PCM, 32): "<i4"}
_DTYPES |= {(_FLOAT, 32): "<f4", (_FLOAT, 64): "<f8"}
_SUBTYPES = {"PCM_16": (_PCM, 16), "PCM_24": (_PCM, 24), "FLOAT": (_FLOAT, 32)}


class _Format(NamedTuple):
    tag: int
    bits: int
    num_channels: int
    sample_rate: int

    @property
    def align(self) -> int:
        """Bytes of a sample of all channels."""
        return self.num_channels * self.bits // 8


class WavStream:
    """Reads a WAV from a stream that cannot be sought in, at flat memory.

    Parameters
    ----------
    file : IO[bytes]
        At the beginning of the WAV: RIFF or RF64, integers of 8 to 32 bits or floats.
    name : str
        What errors call it.

    Attributes
    ----------
    sample_rate, num_channels : int
        As its header says.
    num_samples : int or None
        Of each channel; None where whoever wrote it could not know.

    Raises
    ------
    DataError
        If it is no WAV, or one of an encoding that is not read here.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> writer = WavWriterStream(file, 8000, 1, None, subtype="PCM_16")
    >>> writer.write(torch.tensor([[0.5, -1.0]]))
    >>> writer.finish()
    >>> stream = WavStream(io.BytesIO(file.getvalue()))
    >>> stream.num_samples is None, [block.tolist() for block in stream.blocks()]
    (True, [[[0.5, -1.0]]])
    """

    def __init__(self, file: IO[bytes], name: str = "standard input") -> None:
        self.name = name
        self._file = file
        self._format, num_bytes = self._read_header()
        self.sample_rate = self._format.sample_rate
        self.num_channels = self._format.num_channels
        self.num_samples = None if num_bytes is None else num_bytes // self._format.align

    def blocks(self) -> Iterator[Tensor]:
        """Give the samples in blocks ``(C, t)`` of up to ten seconds, float32.

        Raises
        ------
        DataError
            If the stream ends too early, or samples are not finite.
        """
        align = self._format.align
        size = block_size(self.sample_rate, self.num_channels)
        done = 0
        while self.num_samples is None or done < self.num_samples:
            count = size if self.num_samples is None else min(size, self.num_samples - done)
            data = read_full(self._file, count * align)
            done += len(data) // align
            promised = self.num_samples is not None and len(data) < count * align
            if promised or len(data) % align:
                what = f"promises {self.num_samples} samples" if promised else "has whole samples"
                raise DataError(
                    f"{self.name}: cut off after {done} samples, where its header {what}; send it "
                    "again"
                )
            if not data:
                return
            yield self._samples(data)

    def _samples(self, data: bytes) -> Tensor:
        tag, bits = self._format.tag, self._format.bits
        raw: np.ndarray[Any, Any] = np.frombuffer(data, dtype=_DTYPES[tag, bits])
        if bits == 24:  # the three upper bytes of 32 bits
            wide = np.zeros((len(data) // 3, 4), dtype=np.uint8)
            wide[:, 1:] = raw.reshape(-1, 3)
            raw, bits = wide.view("<i4").reshape(-1), 32
        if tag == _PCM:
            offset = 128.0 if bits == 8 else 0.0
            values = (raw.astype(np.float32) - offset) * np.float32(2.0 ** (1 - bits))
        else:
            values = raw.astype(np.float32)
        samples = torch.from_numpy(values.reshape(-1, self.num_channels).T.copy())
        check_finite(samples, self.name)
        return samples

    def _read_header(self) -> tuple[_Format, int | None]:
        head = read_full(self._file, 12)
        if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
            what = "empty" if not head else f"begins with {head[:4]!r}"
            raise DataError(
                f"{self.name}: is no WAV ({what}), and nothing else is read from a pipe; send a "
                "WAV, or give the name of a file"
            )
        long_size: int | None = None
        found: _Format | None = None
        while True:
            chunk = read_full(self._file, 8)
            if len(chunk) < 8:
                raise DataError(f"{self.name}: the WAV ends before its samples; send it again")
            name, size = chunk[:4], int.from_bytes(chunk[4:], "little")
            if name == b"data":
                break
            if name in (b"fmt ", b"ds64") and size <= _MOST_FORMAT:
                body = read_full(self._file, size + size % 2)
                if name == b"fmt ":
                    found = self._parse_format(body)
                else:
                    long_size = int.from_bytes(body[8:16], "little")
            else:
                self._skip(size + size % 2)
        if found is None:
            raise DataError(f"{self.name}: the WAV does not say its format; write it again")
        size = long_size if size == _UNKNOWN and long_size else size
        known = long_size == size or 0 < size < _STREAMED_BYTES
        return found, size if known else None

    def _parse_format(self, body: bytes) -> _Format:
        if len(body) < 16:
            raise DataError(f"{self.name}: the WAV's format is cut off; write it again")
        tag, channels, rate, _, align, bits = struct.unpack("<HHIIHH", body[:16])
        if tag == _EXTENSIBLE and len(body) >= 26:
            tag = int.from_bytes(body[24:26], "little")
        found = _Format(tag, bits, channels, rate)
        if (tag, bits) not in _DTYPES or not channels or not rate or align != found.align:
            raise DataError(
                f"{self.name}: a WAV of encoding {tag} with {bits} bits, {channels} channels and "
                f"{rate} Hz is not read from a pipe; convert it to 16-bit integers or 32-bit floats"
            )
        return found

    def _skip(self, size: int) -> None:
        while size and (data := self._file.read(min(size, 1 << 16))):
            size -= len(data)


class WavWriterStream:
    """Writes a WAV block by block to a stream; above 4 GiB it is an RF64.

    Parameters
    ----------
    file : IO[bytes]
        Open for writing.
    sample_rate, num_channels : int
        Of what is to come.
    num_samples : int or None
        Of each channel. None: not known; the header then says so, as other programs do in pipes,
        unless it can be written again.
    subtype : {"PCM_16", "PCM_24", "FLOAT"}
        Of the samples.
    rewrite : bool
        Whether the stream can be sought in, for a header with the right length at the end.

    Attributes
    ----------
    num_written : int
        Samples of each channel so far.
    clipped : int
        Samples that were beyond full scale, and are at it in the file; with ``"FLOAT"`` none.

    Examples
    --------
    >>> import io, soundfile
    >>> file = io.BytesIO()
    >>> writer = WavWriterStream(file, 8000, 2, None, subtype="PCM_16", rewrite=True)
    >>> writer.write(torch.tensor([[0.5, 2.0], [-0.5, -2.0]]))
    >>> writer.finish()
    >>> _ = file.seek(0)
    >>> soundfile.read(file, dtype="int16")[0].tolist(), writer.clipped
    ([[16384, -16384], [32767, -32768]], 2)
    """

    def __init__(
        self,
        file: IO[bytes],
        sample_rate: int,
        num_channels: int,
        num_samples: int | None,
        *,
        subtype: str,
        rewrite: bool = False,
    ) -> None:
        self.file = file
        self.num_written = self.clipped = 0
        self._format = _Format(*_SUBTYPES[subtype], num_channels, sample_rate)
        self._rewrite = rewrite and num_samples is None
        self._start = file.tell() if self._rewrite else 0
        size = None if num_samples is None else num_samples * self._format.align
        file.write(_header(self._format, size, reserve=self._rewrite))

    def write(self, samples: Tensor) -> None:
        """Write the next samples ``(C, t)``."""
        self.num_written += samples.shape[1]
        rows = samples.detach().cpu().T
        if self._format.tag == _FLOAT:
            self.file.write(rows.to(torch.float32).numpy().astype("<f4").tobytes())
            return
        full = 1 << (self._format.bits - 1)
        # As speechkit.data.audio.write_audio: what was read from 16 bits is written back unchanged.
        scaled = (rows.double() * full).round()
        whole = scaled.clamp(-full, full - 1)
        self.clipped += int((scaled != whole).sum())
        if self._format.bits == 16:
            self.file.write(whole.to(torch.int16).numpy().astype("<i2").tobytes())
            return
        octets = whole.to(torch.int32).numpy().astype("<i4").reshape(-1, 1).view(np.uint8)
        self.file.write(octets[:, :3].tobytes())

    def finish(self) -> None:
        """Write what belongs behind the samples, and the header again where that is possible."""
        size = self.num_written * self._format.align
        self.file.write(b"\0" * (size % 2))
        if self._rewrite:
            end = self.file.tell()
            self.file.seek(self._start)
            self.file.write(_header(self._format, size, reserve=True))
            self.file.seek(end)


def _header(form: _Format, size: int | None, *, reserve: bool) -> bytes:
    """Make all that stands before the samples; ``reserve`` leaves room for the sizes of an RF64."""
    rate = form.sample_rate
    fields = (form.tag, form.num_channels, rate, rate * form.align, form.align, form.bits)
    body = b"fmt " + struct.pack("<IHHIIHH", 16, *fields)
    long = size is not None and size > _MOST_BYTES
    if long or reserve:
        head = 4 + 36 + len(body) + 8
        total = head + (size or 0) + (size or 0) % 2
        sizes = struct.pack("<QQQI", total, size or 0, (size or 0) // form.align, 0)
        body = (b"ds64" if long else b"JUNK") + struct.pack("<I", 28) + sizes + body
    if long or size is None:
        riff = data = _UNKNOWN
    else:
        riff, data = 4 + len(body) + 8 + size + size % 2, size
    name = b"RF64" if long else b"RIFF"
    start = name + riff.to_bytes(4, "little") + b"WAVE"
    return start + body + b"data" + data.to_bytes(4, "little")


def block_size(sample_rate: int, num_channels: int) -> int:
    """Choose how many samples of each channel are read at once: ten seconds, or 32 MiB.

    Examples
    --------
    >>> block_size(24000, 1), block_size(768000, 64)
    (240000, 131072)
    """
    return max(1, min(_BLOCK_SECONDS * sample_rate, _BLOCK_NUMBERS // num_channels))


def read_full(file: IO[bytes], size: int) -> bytes:
    """Read ``size`` bytes, or all that are left: a pipe gives them in parts."""
    parts = []
    while size and (part := file.read(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
