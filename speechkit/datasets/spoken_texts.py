"""What the corpora of read sentences share: clips with their texts into train, valid and test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speechkit.data.audio import audio_info
from speechkit.data.manifest import DataError, Utterance
from speechkit.datasets import preparation

_FORMAT = 1  # raised when the same corpus gives another manifest than before


class Clip(NamedTuple):
    """A sentence that somebody read.

    Attributes
    ----------
    id : str
        Unique in the corpus.
    path : Path
        Its file.
    text : str
        What is said.
    speaker : str or None
        Who says it.
    extra : Mapping
        More for the manifest's row.
    where : str
        The place that names it, for errors.
    split : str, optional
        The split that the corpus puts it into; a hash of its id decides where that is None.
    """

    id: str
    path: Path
    text: str
    speaker: str | None
    extra: Mapping[str, Any]
    where: str
    split: str | None = None


def prepare_clips(
    out: Path,
    clips: Sequence[Clip],
    problems: list[str],
    *,
    corpus: str,
    root: Path,
    layout: str,
    tables: Iterable[Path] = (),
    valid: float,
    test: float,
    seed: int,
) -> dict[str, Path]:
    """Write one manifest a split; does nothing where they are up to date.

    The split of a clip is a function of its id and the seed alone: a hash gives each id a place in
    [0, 1), and places below ``test`` are tested, those below ``test + valid`` validate. So a clip
    that an excerpt trains on is never tested in the whole corpus.

    Parameters
    ----------
    out : Path
        Where ``<split>.jsonl`` goes.
    clips : sequence of Clip
        Whose files are there.
    problems : list of str
        What is wrong with others; an error, together with what is found here.
    corpus, layout : str
        Its name, and what it should look like.
    root : Path
        Where it is.
    tables : iterable of Path
        Files beside the audio that decide the rows.
    valid, test : float
        Shares of the clips, about; where one is 0 there is no such split, unless by name.
    seed : int
        Of the hash.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When there are problems, ids twice, unreadable files (all are named, the first 20 in full),
        or no clips for a split.
    ValueError
        When the shares leave nothing to train on.
    """
    _check_shares(valid, test)
    if not clips and not problems:
        problems.append("no clips")
    first: dict[str, str] = {}
    for clip in clips:
        if first.setdefault(clip.id, clip.where) != clip.where:
            problems.append(f"{clip.where}: {clip.id} is in {first[clip.id]} too")
    advice = f"{layout}. Put missing files back, or remove their rows"
    preparation.raise_problems(root, problems, advice)
    own = {clip.split for clip in clips if clip.split is not None}
    shares = {"train": 1.0 - valid - test, "valid": valid, "test": test}
    shares = shares if any(clip.split is None for clip in clips) else {}
    splits = [split for split, share in shares.items() if share > 0.0]
    manifests = {split: out / f"{split}.jsonl" for split in [*splits, *sorted(own - {*splits})]}
    files = sorted({*tables, *(clip.path for clip in clips)})
    table = [[c.id, str(c.path), c.text, c.speaker, dict(c.extra), c.split] for c in clips]
    settings = {
        "format": _FORMAT, "root": str(root), "valid": valid, "test": test, "seed": seed,
        "clips": hashlib.sha256(json.dumps(table).encode()).hexdigest(),
        "files": preparation.listing_sha256(Path(root.anchor), files),
    }  # fmt: skip
    stamp = out / f".{corpus}.stamp.json"
    if preparation.is_current(stamp, settings):
        return manifests
    rows: dict[str, list[Utterance]] = {split: [] for split in manifests}
    for clip in clips:
        split = clip.split or _split(clip.id, valid, test, seed)
        try:
            rows[split].append(_row(clip))
        except DataError as error:
            problems.append(f"{clip.where}: {error}")
    preparation.raise_problems(root, problems, advice)
    empty = [split for split in manifests if not rows[split]]
    if empty:
        raise DataError(
            f"{root}: no clip of {len(clips)} falls into {', '.join(empty)} with valid={valid}, "
            f"test={test}, seed={seed}; choose larger shares, 0, or another seed"
        )
    preparation.write_manifests(stamp, settings, manifests, rows)
    return manifests


def _check_shares(valid: float, test: float) -> None:
    if min(valid, test) < 0.0 or valid + test >= 1.0:
        raise ValueError(
            f"valid={valid} and test={test} must be at least 0 and together below 1: they are "
            "shares of the clips"
        )


def _split(name: str, valid: float, test: float, seed: int) -> str:
    place = preparation.position(name, seed)
    return "test" if place < test else "valid" if place < test + valid else "train"


def _row(clip: Clip) -> Utterance:
    info = audio_info(clip.path)
    return Utterance(
        id=clip.id,
        audio=str(clip.path),
        duration=info.num_samples / info.sample_rate,
        sample_rate=info.sample_rate,
        text=clip.text,
        speaker=clip.speaker,
        extra=clip.extra,
    )
