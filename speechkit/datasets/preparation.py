"""What the corpora's preparations share: stamps, whole replacement of folders, lists of problems.

A stamp is a small JSON file that is written last. It holds the settings of a preparation and the
SHA-256 of each file that came out of it. A second preparation with the same settings and untouched
files has nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from speechkit.data.errors import DataError, listing
from speechkit.data.manifest import Utterance, read_manifest, write_manifest
from speechkit.files import atomic_write, file_digest


def listing_sha256(root: Path, files: Iterable[Path]) -> str:
    """Digest names, sizes and modification times: cheap, and different once a file changes.

    Parameters
    ----------
    root : Path
        Names count relative to this folder.
    files : iterable of Path
        The files, in any order.

    Returns
    -------
    str
        Hexadecimal SHA-256.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        state = path.stat()
        row = (path.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns)
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def write_stamp(path: Path, settings: Mapping[str, Any], outputs: Iterable[Path] = ()) -> None:
    """Record, atomically, what was prepared.

    Parameters
    ----------
    path : Path
        The stamp.
    settings : mapping
        What decided the outputs; values that JSON can hold.
    outputs : iterable of Path
        Files in the stamp's folder or below it, whose SHA-256 is recorded.
    """
    rows = {out.relative_to(path.parent).as_posix(): file_digest(out) for out in outputs}
    atomic_write(path, json.dumps({"settings": settings, "outputs": rows}, indent=1) + "\n")


def is_current(path: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether a stamp has these settings and its files are as they were written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> out = folder / "train.jsonl"
    >>> _ = out.write_text("one row")
    >>> write_stamp(folder / "stamp.json", {"seed": 0}, [out])
    >>> [is_current(folder / "stamp.json", {"seed": seed}) for seed in (0, 1)]
    [True, False]
    >>> _ = out.write_text("another row")
    >>> is_current(folder / "stamp.json", {"seed": 0})
    False
    """
    if not path.is_file():
        return False
    try:
        stamp = json.loads(path.read_text())
    except ValueError:
        return False  # cut short by a crash: prepare again
    if not isinstance(stamp, dict) or stamp.get("settings") != json.loads(json.dumps(settings)):
        return False
    files = {path.parent / name: sha for name, sha in stamp.get("outputs", {}).items()}
    return all(out.is_file() and file_digest(out) == sha for out, sha in files.items())


def check_replaceable(folder: Path, stamp_name: str) -> None:
    """Refuse to replace a folder that holds something which speechkit did not make.

    Raises
    ------
    DataError
        When the folder exists, is not empty and does not hold the stamp.
    """
    if folder.exists() and not (folder / stamp_name).is_file():
        if folder.is_dir() and not any(folder.iterdir()):
            return
        raise DataError(
            f"{folder} exists and was not made by speechkit (it holds no {stamp_name}); it is left "
            "as it is. Name another folder, or remove this one first"
        )


def raise_problems(where: Path, problems: Sequence[str], advice: str) -> None:
    """Raise one DataError that lists all problems (the first 20 in full), if there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise DataError(listing(f"{where}: {count}", problems, advice))


def write_manifests(
    stamp: Path,
    settings: Mapping[str, Any],
    manifests: Mapping[str, Path],
    rows: Mapping[str, Sequence[Utterance]],
) -> None:
    """Write each split's manifest and then the stamp."""
    for split, path in manifests.items():
        write_manifest(path, rows[split])
    write_stamp(stamp, settings, manifests.values())


def position(group: str, seed: int) -> float:
    """Give a group's place in [0, 1), from its name and the seed: the same on every machine.

    >>> round(position("anna", 0), 4)
    0.2064
    """
    digest = hashlib.blake2b(f"{seed}\x1f{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: for thousands of short waveforms several only cost time.

    >>> before = torch.get_num_threads()
    >>> with one_thread():
    ...     inside = torch.get_num_threads()
    >>> inside, torch.get_num_threads() == before
    (1, True)
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def join_subsets(
    prepare: Callable[[Path, Sequence[str]], Mapping[str, Path]],
    out: str | os.PathLike[str],
    splits: Mapping[str, Sequence[str]],
) -> dict[str, Path]:
    """Write one manifest a split, each of one or several of a corpus's subsets.

    Parameters
    ----------
    prepare : callable
        Takes a folder and names of subsets, and writes their manifests there.
    out : path
        Where ``<split>.jsonl`` goes; the subsets' own manifests go to ``subsets/`` in it.
    splits : mapping of str to sequence of str
        Split to subsets.

    Returns
    -------
    dict
        Split to manifest.
    """
    out = Path(out).absolute()
    wanted = sorted({subset for subsets in splits.values() for subset in subsets})
    manifests = prepare(out / "subsets", wanted)
    rows = {subset: read_manifest(path) for subset, path in manifests.items()}
    written = {}
    for split, subsets in splits.items():
        written[split] = out / f"{split}.jsonl"
        write_manifest(written[split], [row for subset in subsets for row in rows[subset]])
    return written
