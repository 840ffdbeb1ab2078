"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = [
    "DISK_FULL",
    "atomic_file",
    "atomic_write",
    "explain",
    "file_digest",
    "replace_folder",
    "sync",
]

TEMPORARY_SUFFIX = ".writing"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: OSError) -> str:
    """Say in a sentence what the operating system refused, where, and what to do.

    Examples
    --------
    >>> explain(OSError(errno.ENOSPC, "No space left on device", "run/model"))
    'run/model: No space left on device; free some space, then run the same command again'
    """
    if error.strerror is None:  # not from the operating system
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in DISK_FULL:
        advice = "free some space, then run the same command again"
    else:
        advice = "correct the path, or see to the permissions"
    return f"{where}{error.strerror}; {advice}"


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file, read piece by piece.

    Parameters
    ----------
    path : str or Path
        The file.
    algorithm : str
        As ``hashlib`` names it.

    Examples
    --------
    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "a.bin"
    >>> atomic_write(place, b"abc")
    >>> file_digest(place)[:8], file_digest(place, "md5")[:8]
    ('ba7816bf', '90015098')
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def replace_folder(new: str | Path, folder: str | Path) -> None:
    """Put a finished folder in the place of another, which may exist.

    A kill in between leaves the old one under ``.<name>.old``, beside its place.

    Parameters
    ----------
    new, folder : str or Path
        On one file system.

    Examples
    --------
    >>> import tempfile
    >>> parent = Path(tempfile.mkdtemp())
    >>> for name in ("new", "old"):
    ...     atomic_write(parent / name / name, "")
    >>> replace_folder(parent / "new", parent / "old")
    >>> [path.name for path in sorted(parent.rglob("*"))]
    ['old', 'new']
    """
    new, folder = Path(new), Path(folder)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)  # leftovers of a replaced folder hurt nobody


def sync(path: str | Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a loss of power.

    Parameters
    ----------
    path : str or Path
        An existing file or folder.

    Examples
    --------
    >>> import tempfile
    >>> sync(tempfile.gettempdir())
    """
    if os.name == "nt":  # Windows cannot open a folder, and journals names by itself.
        return
    descriptor = os.open(path, os.O_RDONLY)
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
    sync(path.parent)


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
