"""Opening audio files: plain 16-bit WAV by its bytes, everything else by libsndfile."""

from __future__ import annotations

import math
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from speechkit.data.errors import DataError

# Writers to a pipe cannot know the size and put a huge number there.
_STREAMED_BYTES = 0x7FFF0000
_UNKNOWN_SAMPLES = 1 << 48
_MOST_SCRATCH = 1 << 20
_HEAD = 4096
_scratch = threading.local()


class AudioInfo(NamedTuple):
    """What a file's header says: samples a second, samples of each channel, channels."""

    sample_rate: int
    num_samples: int
    num_channels: int


class Reader(Protocol):
    """An open audio file."""

    info: AudioInfo

    def read(self, first: int, count: int) -> Tensor:
        """Return samples ``[first, first + count)``, shape (count, C), or fewer at a cut end."""


def check_finite(samples: Tensor, name: Any) -> None:
    """Raise `DataError` where samples are NaN or infinite."""
    # A sum is not finite where any sample is not, and costs a fraction of testing each.
    if not math.isfinite(samples.sum().item()) and not bool(samples.isfinite().all()):
        bad = int((~samples.isfinite()).sum())
        raise DataError(f"{name}: {bad} samples are NaN or infinite; write the file again")


@contextmanager
def open_audio(path: str | os.PathLike[str]) -> Iterator[Reader]:
    """Open a file by the fast path for plain 16-bit WAV, or by soundfile."""
    try:
        file = FileIO(path, "rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such audio file; correct the path or remove the row") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from error
    with file:
        wav = _wav_reader(file, path)
        if wav is not None:
            yield wav
            return
    import soundfile

    try:
        sound = soundfile.SoundFile(os.fspath(path))
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path}: not audio that can be read ({error.error_string}); convert it to WAV or "
            "FLAC, or remove it"
        ) from error
    with sound:
        yield _SoundFileReader(sound, path)


class _SoundFileReader:
    """Whatever libsndfile reads."""

    def __init__(self, sound: Any, path: Any) -> None:
        self._sound = sound
        self._path = path
        if sound.frames > _UNKNOWN_SAMPLES:
            raise DataError(
                f"{path}: its header does not say how long it is (it was written to a pipe); "
                "convert it again, to a file"
            )
        self.info = AudioInfo(sound.samplerate, sound.frames, sound.channels)

    def read(self, first: int, count: int) -> Tensor:
        import soundfile

        try:
            if self._sound.tell() != first:
                self._sound.seek(first)
            samples = self._sound.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise DataError(
                f"{self._path}: damaged or truncated: {error.error_string} between samples "
                f"{first} and {first + count}; copy the file again or remove it"
            ) from error
        out = torch.from_numpy(samples)
        check_finite(out, self._path)
        return out


class _WavReader:
    """Plain 16-bit PCM: the bytes are the samples, several times faster than libsndfile."""

    def __init__(self, file: FileIO, offset: int, info: AudioInfo) -> None:
        self._file = file
        self._offset = offset
        self.info = info

    def read(self, first: int, count: int) -> Tensor:
        channels = self.info.num_channels
        samples = _scratch_samples(count * channels)
        self._file.seek(self._offset + first * channels * 2)
        got = (self._file.readinto(samples.data) or 0) // (2 * channels)
        scaled = torch.from_numpy(samples).to(torch.float32).mul_(2.0**-15)
        return scaled.view(count, channels)[:got]


def _scratch_samples(count: int) -> np.ndarray[Any, Any]:
    """Return memory that this thread's next read overwrites: fresh pages cost more than reading."""
    if count > _MOST_SCRATCH:
        return np.empty(count, dtype="<i2")
    if not hasattr(_scratch, "samples") or len(_scratch.samples) < count:
        _scratch.samples = np.empty(2 * count, dtype="<i2")
    return _scratch.samples[:count]


def _wav_reader(file: FileIO, path: Any) -> _WavReader | None:
    """Parse a RIFF header; None where soundfile should look at the file instead.

    libsndfile reads what there is of a cut WAV and says nothing, so this is also where that is
    found out, whatever the encoding.
    """
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes); copy it again or remove it")
    head = file.read(_HEAD)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    encoding = b""
    offset = 12
    while True:
        chunk = _bytes_at(file, head, offset, 24)
        if len(chunk) < 8:
            return None
        name, length = struct.unpack("<4sI", chunk[:8])
        offset += 8
        if name == b"data":
            break
        if name == b"fmt ":
            encoding = chunk[8:]
        offset += length + length % 2
    if 0 < length < _STREAMED_BYTES and offset + length > size:
        raise DataError(
            f"{path}: truncated: its header promises {length} bytes of samples, it has "
            f"{size - offset}; copy the file again or remove it"
        )
    if len(encoding) < 16 or not 0 < length < _STREAMED_BYTES:
        return None
    tag, channels, rate, _, align, bits = struct.unpack("<HHIIHH", encoding)
    plain = tag == 1 and bits == 16 and channels > 0 and align == 2 * channels and rate > 0
    if not plain or length % align:
        return None
    return _WavReader(file, offset, AudioInfo(rate, length // align, channels))


def _bytes_at(file: FileIO, head: bytes, offset: int, count: int) -> bytes:
    if offset + count <= len(head):
        return head[offset : offset + count]
    file.seek(offset)
    return file.read(count)
