"""What an ``.skc`` file says without its codec, and where it is damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from speechkit.codec_files.places import Place, open_source
from speechkit.coding.skc import Damage, SkcError, SkcHeader, SkcReader


class DamagedPart(NamedTuple):
    """Where a file is damaged.

    Attributes
    ----------
    first_chunk, num_chunks : int
        The chunks that are lost; 0 of them where bytes are too many.
    start, end : float
        The seconds that are lost.
    offset, num_bytes : int
        The damaged bytes.
    reason : str
        What is wrong with them.
    """

    first_chunk: int
    num_chunks: int
    start: float
    end: float
    offset: int
    num_bytes: int
    reason: str

    def __str__(self) -> str:
        """Say it in words."""
        last = self.first_chunk + self.num_chunks - 1
        name = (
            f"chunk {self.first_chunk}"
            if self.num_chunks < 2
            else (f"chunks {self.first_chunk} to {last}")
        )
        place = f"bytes {self.offset} to {self.offset + self.num_bytes}"
        time = f"{self.start:.2f} s to {self.end:.2f} s"
        if not self.num_chunks:
            time = f"at {self.start:.2f} s, nothing is lost"
        return f"{name} ({time}, {place}): {self.reason}"


def describe(damage: Damage, header: SkcHeader, seconds: Callable[[int], float]) -> DamagedPart:
    """Say where damage is; ``seconds`` tells when a frame of the file begins."""
    size = header.chunk_frames
    start, end = (damage.first_chunk + i for i in (0, damage.num_chunks))
    return DamagedPart(
        damage.first_chunk,
        damage.num_chunks,
        seconds(start * size),
        seconds(end * size),
        damage.offset,
        damage.num_bytes,
        damage.reason,
    )


class SkcInfo(NamedTuple):
    """What a file says without its codec.

    Attributes
    ----------
    header : SkcHeader
        Of the file.
    num_samples : int or None
        Of each channel; None where the last chunk is lost.
    num_frames, num_chunks, num_bytes : int
        Frames, gaps included; sound chunks; bytes of the file.
    damages : list of DamagedPart
        What is wrong with it.
    """

    header: SkcHeader
    num_samples: int | None
    num_frames: int
    num_chunks: int
    num_bytes: int
    damages: list[DamagedPart]

    @property
    def duration(self) -> float:
        """Seconds; those of the frames, where the length is lost."""
        header = self.header
        lost = self.num_frames * header.hop_length
        return (lost if self.num_samples is None else self.num_samples) / header.sample_rate

    @property
    def nominal_kbps(self) -> float:
        """Bit rate of plainly packed codes.

        By the header's hop length, which is rounded up to whole samples where the recording had
        another rate than the codec: up to half a percent too low.
        """
        header = self.header
        bits = header.num_codebooks * np.log2(header.codebook_size)
        return float(bits * header.sample_rate / header.hop_length / 1000)

    @property
    def written_kbps(self) -> float | None:
        """Bit rate of the file, header and all; None where there is no audio."""
        return self.num_bytes * 8 / 1000 / self.duration if self.duration else None


def inspect_file(source: Place) -> SkcInfo:
    """Read what an ``.skc`` file says about itself, and find its damage, without a model.

    Raises
    ------
    SkcError
        If it has no sound header.
    """
    with open_source(source) as (file, name):
        try:
            reader = SkcReader(file)
        except SkcError as error:
            raise SkcError(f"{name}: {error}") from error
        header, summary = reader.header, reader.summary()
        # Of a whole file the length says best when a frame is: hops may be rounded, or overlap.
        hop = float(header.hop_length)
        if (
            summary.num_samples is not None
            and summary.num_samples <= (summary.num_frames - 1) * hop
        ):
            hop = summary.num_samples / summary.num_frames
        damages = [
            describe(damage, header, lambda frame: frame * hop / header.sample_rate)
            for damage in summary.damages
        ]
        return SkcInfo(
            header,
            summary.num_samples,
            summary.num_frames,
            summary.num_chunks,
            summary.num_bytes,
            damages,
        )
