"""Text for language models: files of sentences, or the transcripts of manifests, into splits."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechkit.data.manifest import DataError
from speechkit.data.text import read_lines, read_texts
from speechkit.datasets import preparation
from speechkit.files import atomic_write, file_digest

_FORMAT = 1  # raised when the same corpus gives other splits than before
_STAMP = ".text_corpus.json"

Source = str | os.PathLike[str]


def prepare(
    sources: Source | Sequence[Source],
    out: Source,
    *,
    ids: bool = False,
    group_parts: int | None = None,
    valid_share: float = 0.02,
    test_share: float = 0.02,
    seed: int = 0,
) -> dict[str, Path]:
    """Write ``train.txt``, ``valid.txt`` and ``test.txt``; does nothing where they are up to date.

    Which split a line goes to is a function of the seed and its group alone: it stays where it is
    when files or lines are added. Lines keep their order.

    Parameters
    ----------
    sources : path or sequence of path
        Files of one sentence a line in UTF-8, ``.gz`` or not; each may be a pattern such as
        ``LibriSpeech/train-clean-100/*/*/*.trans.txt``.
    out : path
        The folder of the splits.
    ids : bool
        Whether lines are ``utt_id TEXT``; the id is not part of the text.
    group_parts : int, optional
        With ``ids``: lines whose ids agree in their first so many parts, between dashes, go to one
        split. 1 keeps the readers of LibriSpeech apart. By default equal texts are a group, so that
        no text is in two splits.
    valid_share, test_share : float
        Expected shares of the groups; a split whose share is 0 is not written.
    seed : int
        Of the split.

    Returns
    -------
    dict
        Split to file.

    Raises
    ------
    ValueError
        If shares leave no training text, or ``group_parts`` is given without ids.
    DataError
        If there is no such file, an id has no text, or a split would be empty.
    """
    if min(valid_share, test_share) < 0 or valid_share + test_share >= 1:
        raise ValueError(
            f"valid_share={valid_share} and test_share={test_share} must be at least 0, and below "
            "1 together"
        )
    if group_parts is not None and (not ids or group_parts < 1):
        raise ValueError(f"group_parts={group_parts} needs ids=True and at least 1 part")
    files, out = _find(sources), Path(out)
    settings = {
        "format": _FORMAT, "sources": {str(path): file_digest(path) for path in files},
        "ids": ids, "group_parts": group_parts, "shares": [valid_share, test_share], "seed": seed,
    }  # fmt: skip
    shares = {"train": 1.0, "valid": valid_share, "test": test_share}
    splits = {name: out / f"{name}.txt" for name, share in shares.items() if share > 0}
    if preparation.is_current(out / _STAMP, settings):
        return splits
    lines: dict[str, list[str]] = {name: [] for name in splits}
    for path in files:
        for key, text in _read(path, ids=ids):
            group = "-".join(key.split("-")[:group_parts]) if group_parts is not None else text
            place = preparation.position(group, seed)
            evaluated = "test" if place < test_share else "valid"
            lines[evaluated if place < test_share + valid_share else "train"].append(text)
    empty = [name for name in splits if not lines[name]]
    if empty:
        raise DataError(
            f"{', '.join(map(str, files[:3]))}: too little text: nothing falls into "
            f"{', '.join(empty)}; give more of it, larger shares, or another seed"
        )
    for name, path in splits.items():
        atomic_write(path, "".join(f"{text}\n" for text in lines[name]))
    preparation.write_stamp(out / _STAMP, settings, splits.values())
    return splits


def from_manifest(
    manifests: Mapping[str, Source | Sequence[Source]], out: Source
) -> dict[str, Path]:
    r"""Write the transcripts of manifests as text files.

    Parameters
    ----------
    manifests : mapping of str to path or sequence of path
        Split to manifest, or to several; text files are taken as well.
    out : path
        Where ``<split>.txt`` goes.

    Returns
    -------
    dict
        Split to file.

    Raises
    ------
    DataError
        If a manifest is wrong, or rows have no text.

    Examples
    --------
    >>> import tempfile
    >>> from speechkit.data.manifest import Utterance, write_manifest
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_manifest(folder / "m.jsonl", [Utterance("a", "-", 1.0, 16000, text="ONE TWO")])
    >>> from_manifest({"train": folder / "m.jsonl"}, folder)["train"].read_text()
    'ONE TWO\n'
    """
    written = {}
    for split, paths in manifests.items():
        several = [paths] if isinstance(paths, str | os.PathLike) else paths
        texts = [text for path in several for _, text in read_texts(path)]
        written[split] = Path(out) / f"{split}.txt"
        atomic_write(written[split], "".join(f"{' '.join(text.split())}\n" for text in texts))
    return written


def _find(sources: Source | Sequence[Source]) -> list[Path]:
    several = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    files: dict[Path, None] = {}
    for source in several:
        # A name with brackets in it may be a file as well as a pattern.
        exact = Path(source).is_file()
        found = [str(source)] if exact else sorted(glob.glob(str(source), recursive=True))  # noqa: PTH207 (absolute patterns)
        if not any(Path(path).is_file() for path in found):
            raise DataError(
                f"{source}: no such file; give text files, or a pattern that finds some"
            )
        files |= dict.fromkeys(Path(path).absolute() for path in found if Path(path).is_file())
    if not files:
        raise DataError("no text files were named; give at least one")
    return list(files)


def _read(path: Path, *, ids: bool) -> list[tuple[str, str]]:
    """Give ``(id, text)`` of each line with text; without ids, the id is empty."""
    rows: list[tuple[str, str]] = []
    problems: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if not words:
            continue
        key = words.pop(0) if ids else ""
        if words:
            rows.append((key, " ".join(words)))
        else:
            problems.append(f"line {number}: {key!r} has no text")
    preparation.raise_problems(
        path, problems, "Lines must be 'utt_id TEXT'; for lines without ids, ids must be false"
    )
    return rows
