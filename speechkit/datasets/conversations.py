"""Splits for training on conversations that are made while training, out of any reading corpus.

See `speechkit.data.conversations`: a row of these manifests is one conversation, whose first turn
is of the row's utterance.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from speechkit.data.errors import DataError
from speechkit.data.manifest import read_manifest, write_manifest
from speechkit.datasets import librispeech
from speechkit.datasets.speaker_splits import copies, draw_speakers

File = str | os.PathLike[str]


def prepare_librispeech(
    root: File,
    out: File,
    *,
    train: Sequence[str],
    test: Sequence[str],
    valid_readers: int,
    every: float = 5.0,
    seed: int = 0,
) -> dict[str, Path]:
    """Write ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``, which share no reader.

    Parameters
    ----------
    root : path
        As `speechkit.datasets.librispeech.prepare` takes it.
    out : path
        Where the manifests go; the subsets' own go to ``subsets/`` in it.
    train, test : sequence of str
        Subsets.
    valid_readers : int
        Readers of ``train`` who are left to the validation; they are drawn by ``seed``.
    every : float
        An utterance is there once for each so many seconds of it, under other ids.
    seed : int
        Of the choice of readers.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        As `speechkit.datasets.librispeech.prepare`; when a reader is in training and test, or there
        are too few.
    ValueError
        When a number cannot be.
    """
    if every <= 0 or valid_readers < 2:
        raise ValueError(
            f"every must be above 0, is {every}, and valid_readers at least 2, who can speak at "
            f"once, is {valid_readers}"
        )
    out = Path(out).absolute()
    made = librispeech.prepare(root, out / "subsets", subsets=sorted({*train, *test}))
    rows = [row for subset in train for row in read_manifest(made[subset])]
    tests = [row for subset in test for row in read_manifest(made[subset])]
    readers = sorted({str(row.speaker) for row in rows})
    both = sorted({str(row.speaker) for row in tests} & {*readers})
    if both:
        raise DataError(
            f"readers of the test ({', '.join(test)}) are in {', '.join(train)} too: "
            f"{', '.join(both[:20])}; take other subsets"
        )
    if len(readers) < valid_readers + 2:
        raise DataError(
            f"{', '.join(train)} has {len(readers)} readers, too few for {valid_readers} in "
            "validation and at least two in training; lower valid_readers"
        )
    held_out = draw_speakers(readers, valid_readers, seed)
    splits = {
        "train": [row for row in rows if row.speaker not in held_out],
        "valid": [row for row in rows if row.speaker in held_out],
        "test": tests,
    }
    manifests = {name: out / f"{name}.jsonl" for name in splits}
    for name, path in manifests.items():
        write_manifest(path, [copy for row in splits[name] for copy in copies(row, every)])
    return manifests
