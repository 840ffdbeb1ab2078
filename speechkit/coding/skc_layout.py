"""The bytes of an ``.skc`` file: `speechkit.coding.skc` has the tables."""

from __future__ import annotations

import binascii
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from speechkit.data.errors import DataError

MAGIC = b"SKC"
VERSION = 1
ID_SIZE = 8
HEADER_SIZE = 16
RECORD_HEAD = 6  # length word and CRC
LAST_HEAD = 8  # in the last record's payload: frames and samples
MAX_SAMPLES = (1 << 48) - 1
MAX_RECORD = RECORD_HEAD + 0x3FFF
_MAX_PACKED = 16000  # bytes of a chunk's codes; with what may stand before them, below 2**14
_ENTROPY = 1  # flag of the header
_LENGTH, _CODED, _LAST = 0x3FFF, 0x4000, 0x8000  # of a record's length word
_SPREAD = 0x9E3779B1  # odd, so that an index can be had back from its product modulo 2**32
_GATHER = pow(_SPREAD, -1, 1 << 32)


class SkcError(DataError):
    """A file that is not a sound ``.skc`` file, or that does not fit what is to read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkcHeader:
    """What an ``.skc`` file says about itself.

    Attributes
    ----------
    sample_rate : int
        Samples per second of the audio, below 2**24.
    channels : int
        Of the audio, 1 to 16.
    num_codebooks : int
        Codes of a frame, ``Q``, 1 to 256.
    codebook_size : int
        Codes lie below it; 2 to 65536.
    hop_length : int
        Samples between frames: 1 to 65535, and not more than a second.
    model_id : bytes
        Eight bytes that name the codec that made the codes.
    entropy_id : bytes
        Eight bytes that name the entropy coder's model; empty for plainly packed codes.
    side_size : int
        Bytes that each chunk carries beside its codes, such as a gain; up to 64.

    Raises
    ------
    SkcError
        If a number is out of its bounds.

    Examples
    --------
    >>> header = SkcHeader(sample_rate=24000, channels=1, num_codebooks=8, codebook_size=1024,
    ...                    hop_length=320, model_id=bytes(8))
    >>> header.bits, header.chunk_frames, len(header.to_bytes())
    (10, 75, 24)
    """

    sample_rate: int
    channels: int
    num_codebooks: int
    codebook_size: int
    hop_length: int
    model_id: bytes
    entropy_id: bytes = b""
    side_size: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "sample_rate": (1, (1 << 24) - 1),
            "channels": (1, 16),
            "num_codebooks": (1, 256),
            "codebook_size": (2, 1 << 16),
            "hop_length": (1, min(self.sample_rate, (1 << 16) - 1)),
            "side_size": (0, 64),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SkcError(f"{name} of an .skc file must lie in [{low}, {high}], not {value}")
        if len(self.model_id) != ID_SIZE or len(self.entropy_id) not in (0, ID_SIZE):
            raise SkcError(
                f"model_id must have {ID_SIZE} bytes and entropy_id {ID_SIZE} or none, not "
                f"{self.model_id!r} and {self.entropy_id!r}"
            )

    @property
    def bits(self) -> int:
        """Bits of a plainly packed code."""
        return (self.codebook_size - 1).bit_length()

    @property
    def chunk_frames(self) -> int:
        """Frames of every chunk but the last: at most one second, and 16,000 packed bytes."""
        fitting = _MAX_PACKED * 8 // (self.num_codebooks * self.bits)
        return min(self.sample_rate // self.hop_length, fitting, 0xFFFF)

    def packed_size(self, num_frames: int) -> int:
        """Bytes of so many plainly packed frames."""
        return (num_frames * self.num_codebooks * self.bits + 7) // 8

    def seconds(self, chunk: int) -> float:
        """When a chunk begins."""
        return chunk * self.chunk_frames * self.hop_length / self.sample_rate

    def to_bytes(self) -> bytes:
        """Write 16 bytes and the ids."""
        flags = _ENTROPY if self.entropy_id else 0
        fields = struct.pack(
            ">3sBBB3sHHB",
            MAGIC,
            VERSION,
            flags << 4 | (self.channels - 1),
            self.num_codebooks - 1,
            self.sample_rate.to_bytes(3, "big"),
            self.hop_length,
            self.codebook_size - 1,
            self.side_size,
        )
        ids = self.model_id + self.entropy_id
        return fields + binascii.crc_hqx(fields + ids, 0).to_bytes(2, "big") + ids

    @classmethod
    def from_bytes(cls, data: bytes) -> SkcHeader:
        """Read what `to_bytes` wrote, from the start of ``data``.

        Raises
        ------
        SkcError
            If it is no header, of another version, or damaged.
        """
        if data[:3] != MAGIC:
            raise SkcError(
                f"not an .skc file: it begins with {data[:3]!r}, not {MAGIC!r}; give a file that "
                "speechkit encoded"
            )
        if len(data) < HEADER_SIZE:
            raise SkcError(
                f"the header is cut off: {len(data)} bytes of at least {HEADER_SIZE}; get the file "
                "again"
            )
        _, version, mixed, codebooks, rate, hop, size, side = struct.unpack(
            ">3sBBB3sHHB", data[: HEADER_SIZE - 2]
        )
        if version != VERSION:
            raise SkcError(
                f"the .skc file has version {version}, or its header is damaged; this speechkit "
                f"reads version {VERSION}"
            )
        ids = data[HEADER_SIZE : header_size(data)]
        stated = int.from_bytes(data[HEADER_SIZE - 2 : HEADER_SIZE], "big")
        if mixed >> 4 & ~_ENTROPY or stated != binascii.crc_hqx(data[: HEADER_SIZE - 2] + ids, 0):
            raise SkcError("the .skc file's header is damaged; get the file again")
        return cls(
            sample_rate=int.from_bytes(rate, "big"),
            channels=(mixed & 15) + 1,
            num_codebooks=codebooks + 1,
            codebook_size=size + 1,
            hop_length=hop,
            model_id=ids[:ID_SIZE],
            entropy_id=ids[ID_SIZE:],
            side_size=side,
        )


def header_size(start: bytes) -> int:
    """Bytes of a header with its ids, from its first five bytes.

    Examples
    --------
    >>> header_size(bytes(5))
    24
    """
    return HEADER_SIZE + ID_SIZE * (2 if start[4:5] and start[4] >> 4 & _ENTROPY else 1)


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """Pack codes ``(Q, T)`` frame by frame, the most significant bit first.

    Examples
    --------
    >>> pack_codes(np.array([[1, 2], [3, 4]]), 4).hex()
    '1324'
    """
    symbols = codes.T.reshape(-1, 1)
    return np.packbits((symbols >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)).tobytes()


def unpack_codes(data: bytes, num_codebooks: int, num_frames: int, bits: int) -> np.ndarray:
    """Read what `pack_codes` wrote.

    Returns
    -------
    np.ndarray
        Codes ``(Q, T)``, int64.

    Raises
    ------
    SkcError
        If the size is not right, or the last byte's unused bits are not zero.

    Examples
    --------
    >>> unpack_codes(bytes.fromhex("1324"), 2, 2, 4).tolist()
    [[1, 2], [3, 4]]
    """
    used = num_codebooks * num_frames * bits
    if len(data) != (used + 7) // 8:
        raise SkcError(f"{len(data)} bytes of packed codes, where {(used + 7) // 8} should be")
    flat = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if flat[used:].any():
        raise SkcError("bits after the packed codes are not zero")
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    codes = flat[:used].reshape(num_frames, num_codebooks, bits) @ weights
    return np.ascontiguousarray(codes.T)


class Record(NamedTuple):
    """A chunk as it lies in the file, its CRC found right.

    Attributes
    ----------
    number : int
        Of the chunk, from 0.
    size : int
        Bytes in the file.
    payload : bytes
        Side bytes and codes.
    coded : bool
        Whether the codes are entropy-coded.
    num_frames : int
        Frames that it holds.
    num_samples : int or None
        Samples of the whole file, in the last chunk alone.
    offset : int
        Where it begins in the file.
    """

    number: int
    size: int
    payload: bytes
    coded: bool
    num_frames: int
    num_samples: int | None
    offset: int = 0


class RecordLayout:
    """Writes and reads the chunk records of a file.

    Parameters
    ----------
    header : SkcHeader
        Of the file. Every CRC depends on it.
    """

    def __init__(self, header: SkcHeader) -> None:
        self.header = header
        self._seed = zlib.crc32(header.to_bytes())
        self.full_size = header.side_size + header.packed_size(header.chunk_frames)
        self.max_size = RECORD_HEAD + self.full_size

    @property
    def min_size(self) -> int:
        """The least bytes of a record that is not the last."""
        return RECORD_HEAD + self.header.side_size if self.header.entropy_id else self.max_size

    def build(self, index: int, payload: bytes, coded: bool, last: tuple[int, int] | None) -> bytes:
        """Make a record; ``last`` are the frames of the last chunk and the file's samples."""
        if last is not None:
            payload = struct.pack(">H", last[0]) + last[1].to_bytes(6, "big") + payload
        word = len(payload) | _CODED * coded | _LAST * (last is not None)
        head = word.to_bytes(2, "big")
        checksum = zlib.crc32(payload, zlib.crc32(head, self._seed))
        return head + (checksum ^ index * _SPREAD & 0xFFFFFFFF).to_bytes(4, "big") + payload

    def parse(self, data: bytes | bytearray | memoryview, place: int = 0) -> Record | None:
        """Read the record at a place; None where there is none, or not all of it."""
        head = bytes(data[place : place + RECORD_HEAD])
        word = int.from_bytes(head[:2], "big")
        end = place + RECORD_HEAD + (word & _LENGTH)
        if len(head) < RECORD_HEAD or end > len(data) or not self.plausible(np.array([word]))[0]:
            return None
        payload = bytes(data[place + RECORD_HEAD : end])
        checksum = zlib.crc32(payload, zlib.crc32(head[:2], self._seed))
        index = (int.from_bytes(head[2:], "big") ^ checksum) * _GATHER & 0xFFFFFFFF
        return self._record(index, end - place, word, payload)

    def _record(self, index: int, size: int, word: int, payload: bytes) -> Record | None:
        frames, samples = self.header.chunk_frames, None
        if word & _LAST:
            frames = int.from_bytes(payload[:2], "big")
            samples = int.from_bytes(payload[2:LAST_HEAD], "big")
            payload = payload[LAST_HEAD:]
            covered = (index * self.header.chunk_frames + frames) * self.header.hop_length
            if frames > self.header.chunk_frames or samples > covered:
                return None
        coded = bool(word & _CODED)
        full = self.header.side_size + self.header.packed_size(frames)
        if len(payload) > full or (not coded and len(payload) != full):
            return None
        return Record(index, size, payload, coded, frames, samples)

    def plausible(self, words: np.ndarray) -> np.ndarray:
        """Tell for length words whether a record may begin with them."""
        lengths = words & _LENGTH
        coded, last = words & _CODED != 0, words & _LAST != 0
        least = self.header.side_size + LAST_HEAD * last
        most = self.full_size + LAST_HEAD * last
        exact = ~coded & ~last
        fits = (lengths >= least) & (lengths <= most) & (~exact | (lengths == self.full_size))
        return fits if self.header.entropy_id else fits & ~coded
