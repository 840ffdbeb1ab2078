"""Any folder of recordings with a ``metadata.csv`` that says what is read in them.

Either the table has a header, with columns for the file and the text and perhaps ``speaker``,
``split`` and more, separated by ``|``, tab or comma::

    file|text|speaker
    one.wav|Good morning.|anna

or it has none and is as LJSpeech's: ``id|text`` or ``id|text|text in words``.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

from speechkit.data.manifest import DataError
from speechkit.datasets.spoken_texts import Clip, prepare_clips

FILE_COLUMNS = ("file", "file_name", "filename", "audio", "path", "id")
TEXT_COLUMNS = ("normalized_text", "text", "transcription", "transcript", "sentence")
_FOLDERS = (".", "wavs", "wav", "audio", "clips", "flac")
_ENDINGS = ("", ".wav", ".flac", ".mp3", ".ogg")
_RESERVED = frozenset({"id", "audio", "start", "duration", "sample_rate", "text", "speaker"})
_LAYOUT = (
    "Expected metadata.csv with rows id|text or id|text|text in words, or with a header that names "
    f"a column of the file ({', '.join(FILE_COLUMNS)}) and one of the text "
    f"({', '.join(TEXT_COLUMNS)}); files are looked for beside it and in "
    f"{', '.join(name for name in _FOLDERS if name != '.')}"
)

Row = dict[str, str]


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    metadata: str = "metadata.csv",
    speaker: str | None = None,
    valid: float = 0.05,
    test: float = 0.05,
    seed: int = 0,
) -> dict[str, Path]:
    """Write one manifest a split; does nothing where they are up to date.

    A column ``split`` decides the splits; else a hash of the ids does, as in
    `speechkit.datasets.spoken_texts.prepare_clips`. Columns that are not understood are kept in the
    rows. Recordings without a row are left alone.

    Parameters
    ----------
    root : path
        The folder described above.
    out : path
        Where ``<split>.jsonl`` goes.
    metadata : str
        The table, in `root`.
    speaker : str, optional
        Who reads, where no column tells.
    valid, test : float
        Shares of the clips, about, where no column tells the split.
    seed : int
        Of the hash.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When the table is missing or lacks columns, rows are malformed, or audio files are missing
        or unreadable: all of them are named, with row and file (the first 20 in full); when a split
        is empty.
    ValueError
        When the shares leave nothing to train on.
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    table = root / metadata
    problems: list[str] = []
    clips = []
    for number, row in _read_table(table, problems):
        clip = _clip(root, row, speaker, f"{table}, row {number}", problems)
        if clip is not None:
            clips.append(clip)
    return prepare_clips(
        out, clips, problems, corpus="metadata_folder", root=root, layout=_LAYOUT, tables=[table],
        valid=valid, test=test, seed=seed,
    )  # fmt: skip


def _read_table(path: Path, problems: list[str]) -> list[tuple[int, Row]]:
    """Read the rows as ``file``, ``text`` and what else there is, with their numbers."""
    if not path.is_file():
        raise DataError(f"{path}: no such table. {_LAYOUT}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not text in UTF-8 ({error.reason} at byte {error.start}); convert the file"
        ) from error
    lines = text.split("\n")
    first = lines[0].strip()
    separator = next((mark for mark in "|\t," if mark in first), "|")
    names = [name.strip().strip('"').lower() for name in first.split(separator)]
    files = [name for name in FILE_COLUMNS if name in names]
    texts = [name for name in TEXT_COLUMNS if name in names]
    if files and texts:
        return _with_header(lines, names, separator, files[0], texts[0], problems)
    if separator != "|" or bool(files) != bool(texts):
        raise DataError(
            f"{path}: its first row {first[:200]!r} names no column of the "
            f"{'text' if files else 'file'}. {_LAYOUT}"
        )
    rows = []
    for number, line in enumerate(lines, start=1):
        fields = [field.strip() for field in line.split("|")]
        if fields == [""]:
            continue
        if len(fields) not in (2, 3):
            problems.append(f"{path.name}, row {number}: {len(fields)} fields in {line[:200]!r}")
            continue
        row = {"file": fields[0], "text": fields[-1]}
        rows.append((number, row | ({"raw_text": fields[1]} if len(fields) == 3 else {})))
    return rows


def _with_header(
    lines: Sequence[str],
    names: Sequence[str],
    separator: str,
    file: str,
    text: str,
    problems: list[str],
) -> list[tuple[int, Row]]:
    # Between bars or tabs a quote is a quote; commas need quotes around a text with commas.
    if separator == ",":
        reader = csv.reader(lines[1:], skipinitialspace=True)
    else:
        reader = csv.reader(lines[1:], delimiter=separator, quoting=csv.QUOTE_NONE)
    rows = []
    for fields in reader:
        number = reader.line_num + 1
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(names):
            problems.append(
                f"row {number}: {len(fields)} fields, but the header has {len(names)}: "
                f"{separator.join(fields)[:200]!r}"
            )
            continue
        row = {name: field.strip() for name, field in zip(names, fields)}
        if text != "text" and "text" in row:
            row["raw_text"] = row["text"]
        rows.append((number, {**row, "file": row[file], "text": row[text]}))
    return rows


def _clip(
    root: Path, row: Row, speaker: str | None, where: str, problems: list[str]
) -> Clip | None:
    name, text = row["file"], " ".join(row["text"].split())
    if not name or not text:
        problems.append(f"{where}: no {'text' if name else 'file'}")
        return None
    places = [root / folder / f"{name}{end}" for folder in _FOLDERS for end in _ENDINGS]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        problems.append(f"{where}: there is no audio file {name}")
        return None
    split = row.get("split") or None
    if split is not None and not re.fullmatch(r"[\w-]+", split):
        problems.append(f"{where}: {split[:80]!r} cannot be the name of a split")
        return None
    item = row.get("id") or (name[: -len(path.suffix)] if name.endswith(path.suffix) else name)
    columns = {*FILE_COLUMNS, *TEXT_COLUMNS, "split"} | _RESERVED
    extra = {key: value for key, value in row.items() if key and key not in columns}
    who = row.get("speaker") or speaker
    return Clip(item, path.absolute(), text, who, extra, where, split)
