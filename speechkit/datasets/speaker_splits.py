"""What training and testing a speaker model needs, out of any corpus whose rows have a speaker.

- ``train.jsonl``: rows of the training speakers. Each is there several times, under other ids, by
  its length: every one is another random crop of an epoch.
- ``valid.jsonl`` and ``valid.txt``: pieces of the recordings of some speakers who are left out of
  the training, and all pairs of these pieces as trials.
- ``<name>.jsonl`` and ``<name>.txt`` for each trial list of the test, with the files it names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch

from speechkit.data.audio import audio_info
from speechkit.data.errors import DataError, listing
from speechkit.data.labels import labels_of
from speechkit.data.manifest import Utterance, read_manifest, write_manifest
from speechkit.datasets import librispeech
from speechkit.speakers.trials import (
    Trial,
    read_trials,
    trial_files,
    trial_speakers,
    write_trials,
)

File = str | os.PathLike[str]
_MAX_PIECES = 10
"""Pieces of one validation speaker: all pairs of more are slow, and tell little more."""


def prepare(
    manifest: File | Sequence[File],
    out: File,
    *,
    trials: Mapping[str, File],
    root: File,
    valid_speakers: int,
    crop_every: float = 3.0,
    piece_seconds: float = 3.0,
    seed: int = 0,
) -> dict[str, Path]:
    """Write the splits of any manifest with a ``speaker`` in each row.

    Parameters
    ----------
    manifest : path, or sequence of paths
        The speakers to train on and to validate with.
    out : path
        Where the files named above go.
    trials : mapping of name to path
        Trial lists of the test, in VoxCeleb's format; none of their files may be in training.
    root : path
        What the files of the trial lists are relative to.
    valid_speakers : int
        How many speakers validation gets; they are drawn by ``seed``.
    crop_every : float
        An utterance is in the training manifest once for each so many seconds of it.
    piece_seconds : float
        Length of the pieces that validation compares; shorter recordings of a speaker are pieces
        themselves. A speaker has at most ten.
    seed : int
        Of the choice of speakers.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When rows have no speaker, speakers are too few, a file of the trials is missing, or is in
        training.
    ValueError
        When a number is not positive.
    """
    paths = [manifest] if isinstance(manifest, (str, os.PathLike)) else list(manifest)
    rows = [row for path in paths for row in read_manifest(path)]
    out = Path(out).absolute()
    made = _training_splits(rows, out, valid_speakers, crop_every, piece_seconds, seed)
    used = {os.path.realpath(row.audio) for row in rows}
    for name, path in trials.items():
        made[name] = trial_manifest(path, root, out / f"{name}.jsonl")
        known = [row.id for row in read_manifest(made[name]) if os.path.realpath(row.audio) in used]
        if known:
            advice = "A test on them says nothing about new recordings: take them out of either"
            raise DataError(
                listing(f"{path}: {len(known)} files are in the training data", known, advice)
            )
    return made


def prepare_librispeech(
    root: File,
    out: File,
    *,
    subsets: Sequence[str],
    trials: Mapping[str, File],
    valid_speakers: int,
    crop_every: float = 3.0,
    piece_seconds: float = 3.0,
    seed: int = 0,
) -> dict[str, Path]:
    """Write the splits of LibriSpeech by reader.

    Parameters
    ----------
    root : path
        As `speechkit.datasets.librispeech.prepare` takes it. The files of the trial lists are
        relative to the folder that holds the subsets.
    out, trials, valid_speakers, crop_every, piece_seconds, seed
        As `prepare`.
    subsets : sequence of str
        The subsets to train on.

    Raises
    ------
    DataError
        As `prepare` and `speechkit.datasets.librispeech.prepare`; when a reader of the trials is
        one of the training's.
    """
    made = librispeech.prepare(root, Path(out) / "subsets", subsets=subsets)
    manifests = list(made.values())
    corpus = Path(root) / "LibriSpeech"
    corpus = corpus if corpus.is_dir() else Path(root)
    readers = {row.speaker for path in manifests for row in read_manifest(path)}
    for path in trials.values():
        names = trial_files(read_trials(path, corpus))
        # <subset>/<reader>/<chapter>/<file>
        known = sorted({Path(name).parts[-3] for name in names if name.count("/") > 1} & readers)
        if known:
            raise DataError(
                f"{path}: readers of the trials are in {', '.join(subsets)} too: "
                f"{', '.join(known[:20])}; verification is tested on speakers who are new"
            )
    return prepare(
        manifests, out, trials=trials, root=corpus, valid_speakers=valid_speakers,
        crop_every=crop_every, piece_seconds=piece_seconds, seed=seed,
    )  # fmt: skip


def trial_manifest(trials: File, root: File, path: Path) -> Path:
    """Write the manifest of the files that a trial list names, and a copy of the list beside it.

    Each row's id is the file's name in the list, and its speaker is one of the files that target
    trials join it with.

    Raises
    ------
    DataError
        As `speechkit.speakers.trials.read_trials`; when a file is no audio.
    """
    found = read_trials(trials, root)
    speakers: dict[str, str] = {}
    for trial, sides in zip(found, trial_speakers(found)):
        speakers |= dict(zip(trial[1:], sides))
    rows = []
    for name in trial_files(found):
        place = Path(root, name).absolute()  # a manifest's own paths are relative to it
        info = audio_info(place)
        seconds = info.num_samples / info.sample_rate
        rows.append(Utterance(name, str(place), seconds, info.sample_rate, speaker=speakers[name]))
    write_manifest(path, rows)
    copy = path.with_suffix(".txt")
    if Path(trials).resolve() != copy.resolve():
        shutil.copyfile(trials, copy)
    return path


def _training_splits(
    rows: Sequence[Utterance],
    out: Path,
    valid_speakers: int,
    crop_every: float,
    piece_seconds: float,
    seed: int,
) -> dict[str, Path]:
    if min(crop_every, piece_seconds) <= 0 or valid_speakers < 2:
        raise ValueError(
            f"crop_every={crop_every} and piece_seconds={piece_seconds} must be above 0, "
            f"valid_speakers={valid_speakers} at least 2: trials need two speakers"
        )
    by_speaker: dict[str, list[Utterance]] = {}
    for row in rows:
        by_speaker.setdefault(labels_of(row, "speaker")[0], []).append(row)
    names = sorted(by_speaker)
    if len(names) < valid_speakers + 2:
        raise DataError(
            f"{len(names)} speakers are too few for {valid_speakers} in validation and at least "
            "two in training; add speakers, or lower valid_speakers"
        )
    held_out = draw_speakers(names, valid_speakers, seed)
    train = [
        copy for row in rows if row.speaker not in held_out for copy in copies(row, crop_every)
    ]
    pieces = {name: _pieces(by_speaker[name], piece_seconds) for name in sorted(held_out)}
    made = {"train": out / "train.jsonl", "valid": out / "valid.jsonl"}
    write_manifest(made["train"], train)
    write_manifest(made["valid"], [piece for own in pieces.values() for piece in own])
    pairs = combinations(((name, piece.id) for name, own in pieces.items() for piece in own), 2)
    trials = [Trial(one[0] == other[0], one[1], other[1]) for one, other in pairs]
    if not any(trial.target for trial in trials):
        raise DataError(
            f"no speaker of the validation has two pieces of {piece_seconds:g} s; lower "
            "piece_seconds, or give longer recordings"
        )
    write_trials(out / "valid.txt", trials)
    return made


def draw_speakers(names: Sequence[str], count: int, seed: int) -> set[str]:
    """Draw the speakers who are left to the validation.

    Examples
    --------
    >>> len(draw_speakers(["a", "b", "c"], 2, seed=0))
    2
    """
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return {names[i] for i in order[:count]}


def copies(row: Utterance, every: float) -> list[Utterance]:
    """Make one row for each so many seconds; their ids differ, and so does what is drawn of them.

    Examples
    --------
    >>> [row.id for row in copies(Utterance("a", "a.wav", 7.0, 16000), 3.0)]
    ['a#0', 'a#1']
    """
    count = max(1, round(row.duration / every))
    return [replace(row, id=f"{row.id}#{number}") for number in range(count)]


def _pieces(rows: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Cut a speaker's recordings into pieces, and spread those that are kept over all of them."""
    pieces = []
    for row in rows:
        count = max(1, int(row.duration / seconds))
        size = min(seconds, row.duration)
        for number in range(count):
            name = row.id if not set(row.id) & set(" \t\n") else _digest(row.id)
            start = row.start + number * seconds
            pieces.append(replace(row, id=f"{name}#{number}", start=start, duration=size))
    step = max(1.0, len(pieces) / _MAX_PIECES)
    return [pieces[int(i * step)] for i in range(min(len(pieces), _MAX_PIECES))]


def _digest(name: str) -> str:
    """Name what a trial list cannot hold."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]
