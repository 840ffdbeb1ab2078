"""Writing a WAV file block by block."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_MOST_BYTES = 2**32 - 4096  # what a WAV header can say, less the header
_FULL_SCALE = {"PCM_16": 2**15, "PCM_24": 2**23}
_BYTES = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}


class WavWriter:
    """Writes one channel beside its place, and puts it there when it is complete.

    An error or a kill leaves an older file of that name as it was.

    Parameters
    ----------
    path : Path
        Missing folders are made.
    sample_rate, num_samples : int
        Of what is to come; above 4 GiB the file is an RF64.
    subtype : str
        ``"FLOAT"``, ``"PCM_16"`` or ``"PCM_24"``.

    Attributes
    ----------
    clipped : int
        Samples so far that were beyond full scale, and are at it in the file; with ``"FLOAT"``
        there are none.

    Examples
    --------
    >>> import soundfile, tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "a.wav"
    >>> with WavWriter(path, 8000, 3, subtype="PCM_16") as writer:
    ...     writer.write(torch.tensor([0.5, 2.0, -2.0]))
    >>> soundfile.read(path, dtype="int16")[0].tolist(), writer.clipped
    ([16384, 32767, -32768], 2)
    """

    def __init__(self, path: Path, sample_rate: int, num_samples: int, *, subtype: str) -> None:
        self.path = path
        self.sample_rate = sample_rate
        self.subtype = subtype
        self.format = container(num_samples * _BYTES[subtype])
        self.clipped = 0
        self._file: Any = None
        self._partial = path

    def __enter__(self) -> WavWriter:
        import soundfile

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The process's number, so that two commands at once do not write into one file.
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._file = soundfile.SoundFile(
            self._partial, "w", self.sample_rate, 1, subtype=self.subtype, format=self.format
        )
        return self

    def write(self, samples: Tensor) -> None:
        """Write the next samples ``(t,)``."""
        import torch

        if self.subtype == "FLOAT":
            self._file.write(samples.numpy())
            return
        full = _FULL_SCALE[self.subtype]
        # As speechkit.data.audio.write_audio: what was read from 16 bits is written back unchanged.
        scaled = (samples.double() * full).round()
        whole = scaled.clamp(-full, full - 1)
        self.clipped += int((scaled != whole).sum())
        # The highest bits of 32 are those that the file gets.
        self._file.write((whole * (2**31 // full)).to(torch.int32).numpy())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def container(num_bytes: int) -> str:
    """Choose the container for so many bytes of samples.

    Examples
    --------
    >>> container(10**9), container(5 * 10**9)
    ('WAV', 'RF64')
    """
    return "WAV" if num_bytes <= _MOST_BYTES else "RF64"
