"""What corpora with official folds share: clips of a table into train, valid and test."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speechkit.data.audio import audio_info
from speechkit.data.manifest import DataError, Utterance
from speechkit.datasets import preparation

_FORMAT = 1  # raised when the same corpus gives another manifest than before


class Clip(NamedTuple):
    """A clip of a corpus.

    Attributes
    ----------
    id : str
        Unique in the corpus.
    path : Path
        Its file.
    fold : int
        Where the corpus put it.
    label : str
        What it is.
    source : str
        The recording that it was cut from: clips of one may not be on both sides of a division.
    extra : Mapping
        More for the manifest's row.
    """

    id: str
    path: Path
    fold: int
    label: str
    source: str
    extra: Mapping[str, Any]


def read_table(
    path: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], Clip], layout: str
) -> list[Clip]:
    """Read a corpus's table of clips.

    Parameters
    ----------
    path : Path
        A CSV file with a header.
    columns : sequence of str
        Columns that it must have.
    parse : callable
        Turns a row into a clip; a ValueError of it names what is wrong.
    layout : str
        What the corpus should look like, for errors.

    Raises
    ------
    DataError
        When the table is missing, lacks columns or has bad rows or no rows; all are named.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table. {layout}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise DataError(
                f"{path}: no column {', '.join(missing)}; its header is {reader.fieldnames}. "
                f"{layout}"
            )
        clips: list[Clip] = []
        problems, seen = [], set()
        for number, row in enumerate(reader, start=2):
            try:
                clip = parse(row)
            except (TypeError, ValueError) as error:  # TypeError: a row that is cut short
                problems.append(f"line {number}: {error}")
                continue
            if clip.id in seen:
                problems.append(f"line {number}: {clip.id} is there twice")
            seen.add(clip.id)
            clips.append(clip)
    if not clips and not problems:
        problems.append("the table has no rows")
    preparation.raise_problems(path, problems, layout)
    return clips


def fold_numbers(clips: Iterable[Clip]) -> list[int]:
    """Return the folds that have clips, in order."""
    return sorted({clip.fold for clip in clips})


def prepare_folds(
    root: Path,
    out: Path,
    clips: Sequence[Clip],
    *,
    fold: int,
    valid_fold: int | None,
    valid_share: float,
    seed: int,
    layout: str,
) -> dict[str, Path]:
    """Write the manifests of one turn of the rotation; nothing where they are up to date.

    Parameters
    ----------
    root, out : Path
        The corpus, and where ``train.jsonl``, ``test.jsonl`` and perhaps ``valid.jsonl`` go.
    clips : sequence of Clip
        Those of the corpus that take part.
    fold : int
        Tested.
    valid_fold : int, optional
        Validates; the others train.
    valid_share : float
        Instead: this share of each label's training clips validates, or a little more: clips of
        one recording stay together.
    seed : int
        Of that choice.
    layout : str
        What the corpus should look like, for errors.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When a fold has no clips, a split would be empty, or files are missing or unreadable: all
        are named (the first 20 in full).
    ValueError
        When the arguments contradict each other.
    """
    _check_folds(root, clips, fold, valid_fold, valid_share)
    settings = {
        "format": _FORMAT, "root": str(root), "fold": fold, "valid_fold": valid_fold,
        "valid_share": valid_share, "seed": seed, "clips": [[c.id, c.fold, c.label] for c in clips],
    }  # fmt: skip
    missing = [clip.path for clip in clips if not clip.path.is_file()]
    preparation.raise_problems(
        root,
        [f"{path.relative_to(root)} is missing" for path in missing],
        f"{layout}. Put the files back, or remove their rows",
    )
    settings["files"] = preparation.listing_sha256(root, [clip.path for clip in clips])
    splits = ["train", "test"] + (["valid"] if valid_fold is not None or valid_share else [])
    manifests = {split: out / f"{split}.jsonl" for split in splits}
    stamp = out / ".folds.stamp.json"
    if preparation.is_current(stamp, settings):
        return manifests
    rows: dict[str, list[Utterance]] = {split: [] for split in splits}
    problems = []
    held_out = _hold_out([clip for clip in clips if clip.fold != fold], valid_share, seed)
    for clip in clips:
        if clip.fold == fold:
            split = "test"
        elif clip.fold == valid_fold or clip.source in held_out:
            split = "valid"
        else:
            split = "train"
        try:
            rows[split].append(_row(clip))
        except DataError as error:
            problems.append(str(error))
    preparation.raise_problems(root, problems, "Mend or remove these files and their rows")
    empty = [split for split in splits if not rows[split]]
    if empty:
        raise DataError(
            f"{root}: no clips for {', '.join(empty)} with fold={fold}, valid_fold={valid_fold}, "
            f"valid_share={valid_share}; choose other ones, or another seed"
        )
    preparation.write_manifests(stamp, settings, manifests, rows)
    return manifests


def _hold_out(clips: Sequence[Clip], share: float, seed: int) -> set[str]:
    """Choose recordings with at least this share of each label's clips, but never all of them."""
    by_label: dict[str, dict[str, int]] = {}
    for clip in clips:
        counts = by_label.setdefault(clip.label, {})
        counts[clip.source] = counts.get(clip.source, 0) + 1
    chosen: set[str] = set()
    for _, counts in sorted(by_label.items()):
        order = sorted(counts, key=lambda source: preparation.position(source, seed))
        wanted = share * sum(counts.values())
        for source in order[:-1]:
            if wanted <= sum(counts[name] for name in order if name in chosen):
                break
            chosen.add(source)
    return chosen


def _check_folds(
    root: Path, clips: Sequence[Clip], fold: int, valid_fold: int | None, valid_share: float
) -> None:
    if valid_fold is not None and (valid_share or valid_fold == fold):
        raise ValueError(
            f"fold={fold}, valid_fold={valid_fold}, valid_share={valid_share}: another fold than "
            "the tested one may validate, or a share of the others, not both"
        )
    if not 0.0 <= valid_share < 1.0:
        raise ValueError(f"valid_share must be in [0, 1), got {valid_share}")
    there = fold_numbers(clips)
    for name, wanted in (("fold", fold), ("valid_fold", valid_fold)):
        if wanted is not None and wanted not in there:
            raise DataError(
                f"{root}: {name} {wanted} has no clips; there are clips in "
                f"{', '.join(map(str, there)) or 'none'}: choose one of these"
            )


def _row(clip: Clip) -> Utterance:
    info = audio_info(clip.path)
    return Utterance(
        clip.id,
        str(clip.path),
        duration=info.num_samples / info.sample_rate,
        sample_rate=info.sample_rate,
        extra={"label": clip.label, "fold": clip.fold, "source": clip.source, **clip.extra},
    )
