"""What codec files are read from and written to: paths, standard input and output."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

from torch import Tensor

from speechkit.data.audio import check_span, read_exactly
from speechkit.data.errors import DataError
from speechkit.data.formats import open_audio
from speechkit.data.wav_stream import WavStream, block_size
from speechkit.files import atomic_file

Place: TypeAlias = "str | os.PathLike[str] | IO[bytes]"
"""A path, or a stream of bytes."""
Progress: TypeAlias = "Callable[[float], object]"
"""Is told of each further number of seconds that is done."""


class Recording(NamedTuple):
    """An open recording, and its samples in blocks ``(C, t)``."""

    name: str
    sample_rate: int
    num_channels: int
    blocks: Iterator[Tensor]


@contextmanager
def open_recording(source: Place) -> Iterator[Recording]:
    """Open audio, of a file or a stream."""
    if not isinstance(source, (str, os.PathLike)):
        stream = WavStream(source)
        yield Recording(stream.name, stream.sample_rate, stream.num_channels, stream.blocks())
        return
    with open_audio(source) as reader:
        info = reader.info
        check_span(source, info, 0.0, None)

        def blocks() -> Iterator[Tensor]:
            size = block_size(info.sample_rate, info.num_channels)
            for first in range(0, info.num_samples, size):
                count = min(size, info.num_samples - first)
                yield read_exactly(reader, source, first, count).T

        yield Recording(os.fspath(source), info.sample_rate, info.num_channels, blocks())


@contextmanager
def open_source(source: Place) -> Iterator[tuple[IO[bytes], str]]:
    """Open an ``.skc`` file, and name it."""
    if not isinstance(source, (str, os.PathLike)):
        yield source, "standard input"
        return
    try:
        raw = FileIO(source, "rb")
    except FileNotFoundError:
        raise DataError(f"{source}: no such .skc file; correct the path") from None
    except OSError as error:
        raise DataError(f"{source}: cannot be opened: {error.strerror}") from error
    with BufferedReader(raw) as file:
        yield file, os.fspath(source)


def check_apart(source: Place, target: Place) -> None:
    """Raise a `DataError` where a path is to be read and to be written."""
    paths = [Path(place) for place in (source, target) if isinstance(place, (str, os.PathLike))]
    if len(paths) == 2 and all(path.is_file() for path in paths) and paths[0].samefile(paths[1]):
        raise DataError(
            f"{target}: is what is to be read, and would be overwritten; choose another name"
        )


@contextmanager
def open_target(target: Place) -> Iterator[IO[bytes]]:
    """Open what is to be written: a file is put in its place when it is complete."""
    if not isinstance(target, (str, os.PathLike)):
        yield target
    elif Path(target).exists() and not Path(target).is_file():
        with Path(target).open("wb") as file:  # a device or a named pipe is not to be replaced
            yield file
    else:
        with atomic_file(Path(target)) as file:
            yield file
