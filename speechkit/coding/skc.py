"""The ``.skc`` file: a codec's codes in chunks of at most a second, each checked and independent.

A file is a header, then chunk records without gaps. Numbers are big-endian.

==============  =====  ============================================================================
header          bytes
==============  =====  ============================================================================
magic           3      ``SKC``
version         1      1
flags, channels 1      high half: bit 0 where codes may be entropy-coded, others 0; low half:
                       channels - 1
codebooks       1      ``Q`` - 1
sample rate     3
hop length      2      samples between frames, at most a second
codebook size   2      - 1
side size       1      bytes that each chunk carries beside its codes, up to 64
checksum        2      CRC-16 (``binascii.crc_hqx``) of the 14 bytes above and the ids
model id        8      names the codec
entropy id      8      names the entropy coder's model; there only where the flag is set
==============  =====  ============================================================================

==============  =====  ============================================================================
chunk record    bytes
==============  =====  ============================================================================
length word     2      bits 0 to 13: bytes of the payload; bit 14: codes are entropy-coded (a
                       chunk that would grow is packed plainly); bit 15: the last chunk
checksum        4      CRC-32 over header, length word and payload, xor (the chunk's number times
                       0x9E3779B1, modulo 2**32)
payload                the last chunk begins with its frames (2 bytes) and the samples of the whole
                       file (6); then the side bytes; then the codes
==============  =====  ============================================================================

Every chunk but the last has the same number of frames, `SkcHeader.chunk_frames`. Packed codes have
ceil(log2 of the codebook size) bits each, frame by frame, the first codebook first, the highest bit
first, filled up with zero bits. So a plain file is seekable by arithmetic, any file by hopping over
lengths. Entropy-coded chunks (`speechkit.coding.predictor`) begin with a fresh model.

The checksum gives a sound chunk's number back, which is how missing, swapped and repeated chunks
are found, and how reading goes on behind a damaged one. A file without a last chunk is cut off.
"""

from __future__ import annotations

from types import TracebackType
from typing import IO, NamedTuple

import numpy as np

from speechkit.coding.predictor import CodePredictor, check_codes, encode_codes
from speechkit.coding.skc_checks import (
    check_model_id,
    check_predictor,
    describe_damage,
    weights_id,
)
from speechkit.coding.skc_layout import (
    MAX_SAMPLES,
    RecordLayout,
    SkcError,
    SkcHeader,
    pack_codes,
)
from speechkit.coding.skc_reader import Chunk, SkcReader, SkcSummary
from speechkit.coding.skc_records import Damage

__all__ = [
    "Chunk",
    "Damage",
    "SkcContent",
    "SkcError",
    "SkcHeader",
    "SkcReader",
    "SkcSummary",
    "SkcWriter",
    "check_model_id",
    "describe_damage",
    "read_skc",
    "weights_id",
    "write_skc",
]


class SkcWriter:
    """Writes codes to a stream as they come, holding back at most one chunk.

    Parameters
    ----------
    file : IO[bytes]
        Open for writing; a pipe will do.
    header : SkcHeader
        Its ``entropy_id`` must be the predictor's digest, where there is one.
    predictor : CodePredictor, optional
        For entropy coding; codes are packed plainly without it.

    Raises
    ------
    SkcError
        If header and predictor do not fit.

    Examples
    --------
    >>> import io
    >>> header = SkcHeader(sample_rate=16000, channels=1, num_codebooks=2, codebook_size=8,
    ...                    hop_length=320, model_id=b"a codec!")
    >>> file = io.BytesIO()
    >>> with SkcWriter(file, header) as writer:
    ...     writer.write(np.ones((2, 60), dtype=np.int64))
    ...     writer.finish(num_samples=19000)
    >>> _ = file.seek(0)
    >>> content = read_skc(file)
    >>> content.codes.shape, content.num_samples, file.tell()
    ((2, 60), 19000, 90)
    """

    def __init__(
        self, file: IO[bytes], header: SkcHeader, predictor: CodePredictor | None = None
    ) -> None:
        check_predictor(header, predictor, reading=False)
        self.file = file
        self.header = header
        self.predictor = predictor
        self.num_frames = 0
        self._layout = RecordLayout(header)
        self._pending = np.zeros((header.num_codebooks, 0), dtype=np.int64)
        self._sides: list[bytes] = []
        self._index = 0
        self._finished = False
        file.write(header.to_bytes())

    def write(self, codes: np.ndarray, side: bytes = b"") -> None:
        """Add frames.

        Parameters
        ----------
        codes : np.ndarray
            Shape ``(Q, T)``, integer. Any number of frames; where the file has side bytes, those of
            exactly one chunk (the last may be shorter).
        side : bytes
            The chunk's side bytes.

        Raises
        ------
        ValueError
            If the codes or the side bytes do not fit the header, or the file is finished.
        """
        header = self.header
        codes = check_codes(codes, header.num_codebooks, header.codebook_size)
        if codes.shape[0] != header.num_codebooks:
            raise ValueError(f"codes of {codes.shape[0]} codebooks, not {header.num_codebooks}")
        if len(side) != header.side_size:
            raise ValueError(f"{len(side)} side bytes, but the header says {header.side_size}")
        if self._finished:
            raise ValueError("the file is finished; no frames can follow")
        if header.side_size:
            if codes.shape[1] > header.chunk_frames or self.num_frames % header.chunk_frames:
                raise ValueError(
                    f"with side bytes, codes are written a chunk of {header.chunk_frames} frames "
                    f"at a time; {codes.shape[1]} frames came after {self.num_frames}"
                )
            self._sides.append(side)
        self.num_frames += codes.shape[1]
        self._pending = np.concatenate([self._pending, codes], axis=1)
        # The last chunk is known as such only when the file is finished: one is always kept.
        first, size = 0, header.chunk_frames
        while self._pending.shape[1] - first > size:
            self._emit(self._pending[:, first : first + size], None)
            first += size
        self._pending = self._pending[:, first:].copy()

    def finish(self, num_samples: int) -> None:
        """Write the last chunk. The stream stays open.

        Parameters
        ----------
        num_samples : int
            Samples of each channel of the audio: at most what the frames cover.

        Raises
        ------
        ValueError
            If the frames do not cover so many samples, or the file is finished already.
        """
        covered = min(self.num_frames * self.header.hop_length, MAX_SAMPLES)
        if self._finished or not 0 <= num_samples <= covered:
            raise ValueError(
                "the file is finished already"
                if self._finished
                else f"{num_samples} samples, but {self.num_frames} frames cover 0 to {covered}"
            )
        if self.header.side_size and not self._sides:
            self._sides.append(bytes(self.header.side_size))
        self._emit(self._pending, num_samples)
        self._finished = True

    def _emit(self, codes: np.ndarray, num_samples: int | None) -> None:
        payload, coded = pack_codes(codes, self.header.bits), False
        if self.predictor is not None:
            shorter = encode_codes(codes, self.predictor)
            if len(shorter) < len(payload):
                payload, coded = shorter, True
        side = self._sides.pop(0) if self.header.side_size else b""
        last = None if num_samples is None else (codes.shape[1], num_samples)
        self.file.write(self._layout.build(self._index, side + payload, coded, last))
        self._index += 1

    def __enter__(self) -> SkcWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Refuse to leave a file without its end behind, unless an error is under way."""
        if kind is None and not self._finished:
            raise ValueError("call finish(num_samples) before the writer is left")


class SkcContent(NamedTuple):
    """A whole file.

    Attributes
    ----------
    header : SkcHeader
        What the file says about itself.
    codes : np.ndarray
        Codes ``(Q, T)``, int64; zeros in gaps.
    num_samples : int
        Samples of each channel; what the frames cover, where the last chunk is lost.
    gaps : list of Chunk
        Where codes are missing; always empty without ``conceal``.
    """

    header: SkcHeader
    codes: np.ndarray
    num_samples: int
    gaps: list[Chunk]


def write_skc(
    file: IO[bytes],
    header: SkcHeader,
    codes: np.ndarray,
    num_samples: int,
    predictor: CodePredictor | None = None,
) -> None:
    """Write codes ``(Q, T)`` that are all at hand: see `SkcWriter`."""
    with SkcWriter(file, header, predictor) as writer:
        writer.write(codes)
        writer.finish(num_samples)


def read_skc(
    file: IO[bytes], predictor: CodePredictor | None = None, *, conceal: bool = False
) -> SkcContent:
    """Read a whole file: see `SkcReader`."""
    reader = SkcReader(file, predictor, conceal=conceal)
    header = reader.header
    parts, gaps = [np.zeros((header.num_codebooks, 0), dtype=np.int64)], []
    for chunk in reader.chunks():
        if chunk.codes is None:
            gaps.append(chunk)
        empty = (header.num_codebooks, chunk.num_frames)
        parts.append(np.zeros(empty, dtype=np.int64) if chunk.codes is None else chunk.codes)
    codes = np.concatenate(parts, axis=1)
    samples = reader.num_samples
    return SkcContent(
        header, codes, codes.shape[1] * header.hop_length if samples is None else samples, gaps
    )
