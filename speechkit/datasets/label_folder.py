"""A folder per label: any recordings sorted by what they are.

Either ``<root>/<label>/**`` with a division made here, or ``<root>/{train,valid,test}/<label>/**``
with the division that is there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from speechkit.data.audio import audio_info
from speechkit.data.manifest import DataError, Utterance
from speechkit.datasets import preparation
from speechkit.datasets.audio_folder import SUFFIXES

SPLITS = ("train", "valid", "test")
_FORMAT = 1
_STAMP = ".label_folder.stamp.json"
_LAYOUT = (
    "Expected <root>/<label>/<recording>, or <root>/{train,valid,test}/<label>/<recording>, with "
    f"recordings in one of {', '.join(SUFFIXES)}"
)


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    group: str | None = None,
    seed: int = 0,
) -> dict[str, Path]:
    r"""Write ``train.jsonl``, ``valid.jsonl``, ``test.jsonl``; nothing where they are up to date.

    Each row's ``label`` is the name of its folder. Without ``group``, every label is divided by
    itself, by the shares, and has a recording at least in each split. With it, recordings of one
    group (a speaker, a session, a recording that clips were cut from) stay together, which is what
    an honest test needs where there are such groups.

    Parameters
    ----------
    root : path
        One of the two layouts above; a division that is there is kept, and the shares mean nothing.
    out : path
        The folder of the manifests.
    valid_share, test_share : float
        Shares of the recordings, or of the groups; a split whose share is 0 is not written.
    group : str, optional
        A regular expression, searched in each path below the root, with ``/`` between its parts;
        its first group names the recording's group: ``r"([^/]+)_[0-9]+\.wav$"``. The row keeps it.
    seed : int
        Of the division.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        If there are fewer than two labels, a label has too few recordings for the splits, files
        are unreadable, in no label's folder or without a group (all are named, the first 20 in
        full), or a split has a label that training lacks.
    ValueError
        If shares leave nothing to train on, or the expression has no group.

    Examples
    --------
    >>> import tempfile, torch
    >>> from speechkit.data.audio import write_audio
    >>> root = Path(tempfile.mkdtemp())
    >>> for label in ("cat", "dog"):
    ...     for number in range(4):
    ...         write_audio(root / "in" / label / f"{number}.wav", torch.zeros(800), 8000)
    >>> manifests = prepare(root / "in", root / "out")
    >>> {split: len(path.read_text().splitlines()) for split, path in manifests.items()}
    {'train': 4, 'valid': 2, 'test': 2}
    """
    if min(valid_share, test_share) < 0 or valid_share + test_share >= 1:
        raise ValueError(
            f"valid_share={valid_share} and test_share={test_share} must be at least 0, and below "
            "1 together"
        )
    pattern = None if group is None else re.compile(group)
    if pattern is not None and pattern.groups < 1:
        raise ValueError(f"group={group!r} needs a group in parentheses, which names the group")
    root, out = Path(root).absolute(), Path(out).absolute()
    files = _find(root)
    divided = {path.relative_to(root).parts[0] for path in files} <= {*SPLITS}
    settings = {
        "format": _FORMAT, "root": str(root), "shares": [valid_share, test_share], "group": group,
        "seed": seed, "files": preparation.listing_sha256(root, files),
    }  # fmt: skip
    if divided:
        there = {path.relative_to(root).parts[0] for path in files}
        splits = [split for split in SPLITS if split in there]
    else:
        shares = {"train": 1.0, "valid": valid_share, "test": test_share}
        splits = [split for split, share in shares.items() if share > 0]
    manifests = {split: out / f"{split}.jsonl" for split in splits}
    if preparation.is_current(out / _STAMP, settings):
        return manifests
    rows = _read(root, files, pattern, divided)
    if divided:
        parts = {split: [row for name, row in rows if name == split] for split in splits}
    else:
        divide = _divide_groups if pattern is not None else _divide_labels
        parts = divide(root, [row for _, row in rows], valid_share, test_share, seed)
        parts = {split: parts[split] for split in splits}
    _check_splits(root, parts)
    preparation.write_manifests(out / _STAMP, settings, manifests, parts)
    return manifests


def _find(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. {_LAYOUT}")
    files = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not files:
        raise DataError(f"{root}: no recordings here. {_LAYOUT}")
    return files


def _read(
    root: Path, files: list[Path], pattern: re.Pattern[str] | None, divided: bool
) -> list[tuple[str, Utterance]]:
    """Return each file's first folder and its row, or raise about all that are wrong."""
    rows, problems = [], []
    for path in files:
        place = path.relative_to(root)
        if len(place.parts) < 2 + divided:
            problems.append(f"{place}: in no label's folder")
            continue
        found = pattern.search(place.as_posix()) if pattern is not None else None
        if pattern is not None and (found is None or not found[1]):
            problems.append(f"{place}: no group by {pattern.pattern!r}")
            continue
        try:
            info = audio_info(path)
        except DataError as error:
            problems.append(str(error))
            continue
        extra = {"label": place.parts[int(divided)]}
        if found is not None:
            extra["group"] = found[1]
        row = Utterance(
            place.as_posix(),
            str(path),
            duration=info.num_samples / info.sample_rate,
            sample_rate=info.sample_rate,
            extra=extra,
        )
        rows.append((place.parts[0], row))
    preparation.raise_problems(root, problems, f"{_LAYOUT}. Move these files, or mend them")
    return rows


def _divide_labels(
    root: Path, rows: list[Utterance], valid_share: float, test_share: float, seed: int
) -> dict[str, list[Utterance]]:
    """Divide each label's recordings by the shares, at least one a split."""
    parts: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    by_label: dict[str, list[Utterance]] = {}
    for row in rows:
        by_label.setdefault(row.extra["label"], []).append(row)
    problems = []
    for label, own in sorted(by_label.items()):
        own.sort(key=lambda row: preparation.position(row.id, seed))
        counts = {
            split: max(1, round(share * len(own))) if share else 0
            for split, share in (("test", test_share), ("valid", valid_share))
        }
        if sum(counts.values()) >= len(own):
            problems.append(f"{label}: {len(own)} recordings are too few for {counts} and training")
            continue
        tested, end = counts["test"], counts["test"] + counts["valid"]
        parts["test"] += own[:tested]
        parts["valid"] += own[tested:end]
        parts["train"] += own[end:]
    preparation.raise_problems(root, problems, "Add recordings, or change the shares")
    return parts


def _divide_groups(
    root: Path, rows: list[Utterance], valid_share: float, test_share: float, seed: int
) -> dict[str, list[Utterance]]:
    """Divide the groups by the shares, at least one a split."""
    groups = sorted({row.extra["group"] for row in rows})
    groups.sort(key=lambda name: preparation.position(name, seed))
    counts = [
        max(1, round(share * len(groups))) if share else 0 for share in (test_share, valid_share)
    ]
    if sum(counts) >= len(groups):
        raise DataError(
            f"{root}: {len(groups)} groups ({', '.join(groups[:20])}) are too few for {counts[0]} "
            f"to test, {counts[1]} to validate and some to train; use other shares or groups"
        )
    place = dict.fromkeys(groups, "train")
    place.update(dict.fromkeys(groups[: counts[0]], "test"))
    place.update(dict.fromkeys(groups[counts[0] : sum(counts)], "valid"))
    parts: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    for row in rows:
        parts[place[row.extra["group"]]].append(row)
    return parts


def _check_splits(root: Path, parts: Mapping[str, list[Utterance]]) -> None:
    """Refuse a division in which something is tested that was never trained."""
    if not parts.get("train"):
        raise DataError(f"{root}: nothing to train on; there are {', '.join(parts)}. {_LAYOUT}")
    known = {row.extra["label"] for row in parts["train"]}
    problems = []
    if len(known) < 2:
        problems.append(f"train: only the label {', '.join(known)}, and two are needed at least")
    for split, rows in parts.items():
        unknown = sorted({row.extra["label"] for row in rows} - known)
        problems += [f"{split}: {label!r} is not in training" for label in unknown]
    preparation.raise_problems(
        root, problems, "Move recordings between the folders, or divide by another seed or group"
    )
