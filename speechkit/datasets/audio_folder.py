"""Any folder of audio files, divided into training, validation and test by its sub-folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from speechkit.data.audio import audio_info
from speechkit.data.manifest import DataError, Utterance
from speechkit.datasets import preparation

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
_FORMAT = 1
_STAMP = "audio_folder.json"


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    valid_share: float = 0.02,
    test_share: float = 0.02,
    min_seconds: float = 1.0,
    seed: int = 0,
) -> dict[str, Path]:
    """Write ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``; nothing where they are up to date.

    Files of one sub-folder of the root (a speaker, an album) stay together; those that lie in the
    root itself are divided one by one. Which split a sub-folder goes to follows from its name and
    the seed: it stays there when others are added.

    Parameters
    ----------
    root : path
        A folder with audio files, at any depth: of any format in ``SUFFIXES``, rate and number of
        channels.
    out : path
        The folder of the manifests.
    valid_share, test_share : float
        Expected shares of the sub-folders; a split whose share is 0 is not written.
    min_seconds : float
        Shorter files are left out.
    seed : int
        Of the division.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    ValueError
        If shares leave nothing to train on.
    DataError
        If there is no audio, files cannot be read (all are named, the first 20 in full), or a split
        would be empty.

    Examples
    --------
    >>> import tempfile, torch
    >>> from speechkit.data.audio import write_audio
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("anna", "ben", "cleo", "dora", "emil"):
    ...     (root / "in" / name).mkdir(parents=True)
    ...     write_audio(root / "in" / name / "1.wav", torch.zeros(16000), 16000)
    >>> manifests = prepare(root / "in", root / "out", valid_share=0.3, test_share=0.3)
    >>> sorted(manifests), [len(path.read_text().splitlines()) for path in manifests.values()]
    (['test', 'train', 'valid'], [2, 2, 1])
    """
    if min(valid_share, test_share) < 0 or valid_share + test_share >= 1:
        raise ValueError(
            f"valid_share={valid_share} and test_share={test_share} must be at least 0, and below "
            "1 together"
        )
    root, out = Path(root).absolute(), Path(out).absolute()
    files = sorted(_audio_files(root))
    if not files:
        raise DataError(
            f"{root}: no audio here ({', '.join(SUFFIXES)}); give the folder that holds it"
        )
    settings = {
        "format": _FORMAT, "root": str(root), "shares": [valid_share, test_share],
        "min_seconds": min_seconds, "seed": seed,
        "files": preparation.listing_sha256(root, files),
    }  # fmt: skip
    shares = {"train": 1.0, "valid": valid_share, "test": test_share}
    manifests = {split: out / f"{split}.jsonl" for split, share in shares.items() if share > 0}
    if preparation.is_current(out / _STAMP, settings):
        return manifests
    rows: dict[str, list[Utterance]] = {split: [] for split in manifests}
    problems = []
    for path in files:
        try:
            row = _row(root, path)
        except DataError as error:
            problems.append(str(error))
            continue
        if row.duration >= min_seconds:
            place = preparation.position(row.speaker or row.id, seed)
            held_out = "test" if place < test_share else "valid"
            rows[held_out if place < test_share + valid_share else "train"].append(row)
    preparation.raise_problems(root, problems, "Mend these files or move them away")
    empty = [split for split in manifests if not rows[split]]
    if empty:
        raise DataError(
            f"{root}: nothing of its {len(files)} files falls into {', '.join(empty)} (files below "
            f"{min_seconds:g} s do not count); give larger shares or another seed, or write "
            "manifests of your own"
        )
    preparation.write_manifests(out / _STAMP, settings, manifests, rows)
    return manifests


def _audio_files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                yield path


def _row(root: Path, path: Path) -> Utterance:
    info = audio_info(path)
    place = path.relative_to(root)
    return Utterance(
        place.as_posix(),
        str(path),
        duration=info.num_samples / info.sample_rate,
        sample_rate=info.sample_rate,
        speaker=place.parts[0] if len(place.parts) > 1 else None,
    )
