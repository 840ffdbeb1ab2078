"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["atomic_file", "atomic_write", "sync_folder"]

TEMPORARY_SUFFIX = ".writing"


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder (creations, renames, removals) survive a loss of power.

    Parameters
    ----------
    folder : str or Path
        An existing folder.

    Examples
    --------
    >>> import tempfile
    >>> sync_folder(tempfile.gettempdir())
    """
    if os.name == "nt":  # Windows cannot open a folder, and journals names by itself.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not offer it for folders; names are then in their hands.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name only when it is complete and on the disk.

    The bytes go to a file beside the final place; on leaving the block it is synced, renamed over
    the old one, and the folder is synced. When the block or the disk fails, the old file stays and
    the partial one is removed. A kill leaves at most a file that ends in ``.writing``.

    Parameters
    ----------
    path : str or Path
        The final place; its folder is made when missing.

    Yields
    ------
    IO[bytes]
        A file open for writing bytes.

    Raises
    ------
    OSError
        What the operating system said, such as "no space left on device".

    Examples
    --------
    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "a.bin"
    >>> with atomic_file(place) as file:
    ...     _ = file.write(b"abc")
    ...     assert not place.exists()
    >>> place.read_bytes()
    b'abc'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one file apart; the last rename wins as a whole.
    partial = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    r"""Write a whole file at once: after a kill or a full disk, the old or the new one is there.

    Parameters
    ----------
    path : str or Path
        Where; its folder is made when missing.
    data : bytes or str
        What; a string is written as UTF-8, line ends as they are.

    Raises
    ------
    OSError
        What the operating system said; the old file is then untouched.

    Examples
    --------
    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "new" / "a.json"
    >>> atomic_write(place, '{"a": 1}\n')
    >>> place.read_text()
    '{"a": 1}\n'
    >>> [p.name for p in place.parent.iterdir()]
    ['a.json']
    """
    with atomic_file(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)
