"""Manifests: JSON Lines, one utterance a row, checked when they are read."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from speechkit.data.errors import DataError, listing
from speechkit.files import atomic_file

# Fields beside "audio" whose values are paths (or lists of them), kept relative in the file too.
PATH_FIELDS = ("sources", "noise", "mel")
_REQUIRED = ("id", "audio", "duration", "sample_rate")
_KNOWN = ("id", "audio", "start", "duration", "sample_rate", "text", "speaker")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row of a manifest.

    Attributes
    ----------
    id : str
        Unique in its manifest.
    audio : str
        The audio file: absolute once read; in the file, relative paths start at its folder.
    duration : float
        Length of the utterance in seconds.
    sample_rate : int
        Samples per second of the file.
    start : float
        Where the utterance begins in the file, in seconds.
    text, speaker : str or None
        What the task needs of them.
    extra : Mapping[str, Any]
        Every other field of the row.

    Examples
    --------
    >>> Utterance("a", "/tmp/a.wav", duration=1.5, sample_rate=16000, text="yes").text
    'yes'
    """

    id: str
    audio: str
    duration: float
    sample_rate: int
    start: float = 0.0
    text: str | None = None
    speaker: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        # Rows travel from the loader's workers with each batch: a dataclass's own pickling with
        # slots is several times slower.
        return Utterance, (
            self.id,
            self.audio,
            self.duration,
            self.sample_rate,
            self.start,
            self.text,
            self.speaker,
            self.extra,
        )


class Problem(NamedTuple):
    """Something wrong with one row: its number (from 1), its id if there is one, and what it is."""

    row: int
    id: str | None
    message: str

    def __str__(self) -> str:
        name = f" ({self.id})" if self.id else ""
        return f"row {self.row}{name}: {self.message}"


def read_manifest(path: str | os.PathLike[str]) -> list[Utterance]:
    """Read a manifest and check every row of it.

    Parameters
    ----------
    path : str or PathLike
        A JSON Lines file. Each row needs ``id``, ``audio``, ``duration`` (s) and ``sample_rate``.

    Returns
    -------
    list of Utterance
        In the file's order.

    Raises
    ------
    DataError
        When the file is missing or empty, or rows are malformed: all problems at once, with row
        numbers (the first 20 are shown).

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> row = {"id": "a", "audio": "a.wav", "duration": 2.0, "sample_rate": 8000, "label": 3}
    >>> _ = (folder / "m.jsonl").write_text(json.dumps(row))
    >>> utterance = read_manifest(folder / "m.jsonl")[0]
    >>> utterance.audio == str(folder / "a.wav"), utterance.extra
    (True, {'label': 3})
    """
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for entry in _checked_rows(path):
        if isinstance(entry, Problem):
            problems.append(entry)
        else:
            utterances.append(entry[1])
    if problems:
        raise DataError(_listing(path, problems))
    if not utterances:
        raise DataError(f"{path}: the manifest has no rows; each line is one utterance as JSON")
    return utterances


def write_manifest(path: str | os.PathLike[str], utterances: Iterable[Utterance]) -> None:
    r"""Write a manifest: beside its place first, then renamed, so that no half of one is left.

    Parameters
    ----------
    path : str or PathLike
        Where it goes; missing folders are made.
    utterances : iterable of Utterance
        Audio that lies under the manifest's folder is written as a relative path, so that the
        folder can be moved.

    Raises
    ------
    DataError
        When two utterances have the same id.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "m.jsonl"
    >>> write_manifest(path, [Utterance("a", str(path.parent / "wav/a.wav"), 1.0, 16000)])
    >>> path.read_text()
    '{"id": "a", "audio": "wav/a.wav", "start": 0.0, "duration": 1.0, "sample_rate": 16000}\n'
    """
    path = Path(path).absolute()
    seen: set[str] = set()
    with atomic_file(path) as file:
        for utterance in utterances:
            if utterance.id in seen:
                raise DataError(f"{path}: id {utterance.id!r} twice; ids must be unique")
            seen.add(utterance.id)
            row = json.dumps(_to_row(utterance, path.parent), ensure_ascii=False)
            file.write(f"{row}\n".encode())


def check_manifest(
    path: str | os.PathLike[str], *, open_audio: bool = True, read_samples: bool = False
) -> list[Problem]:
    """Find everything that is wrong with a manifest, row by row, without stopping at the first.

    Parameters
    ----------
    path : str or PathLike
        The manifest.
    open_audio : bool
        Also open every audio file: it exists, is audio, is not cut short, has the row's sample
        rate and holds the row's span.
    read_samples : bool
        Also decode every span, which finds damage inside files and NaN samples, and takes time.

    Returns
    -------
    list of Problem
        Empty where all is well.

    Raises
    ------
    DataError
        When the manifest itself cannot be read.
    """
    problems: list[Problem] = []
    rows = 0
    for entry in _checked_rows(path):
        rows += 1
        if isinstance(entry, Problem):
            problems.append(entry)
        elif open_audio or read_samples:
            message = _audio_problem(entry[1], read_samples=read_samples)
            if message:
                problems.append(Problem(entry[0], entry[1].id, message))
    if not rows:
        problems.append(Problem(1, None, "the manifest has no rows; each line is one utterance"))
    return problems


def manifest_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a manifest file's bytes, in hexadecimal."""
    return hashlib.sha256(_read_bytes(path)).hexdigest()


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest; prepare the data or correct the path") from None
    except OSError as error:
        raise DataError(f"{path}: the manifest cannot be read: {error.strerror}") from error


def _checked_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Utterance] | Problem]:
    """Yield (row number, utterance) for a good row and a problem for a bad one."""
    folder = Path(path).absolute().parent
    first_row: dict[str, int] = {}
    # Bytes are split by "\n" alone: str.splitlines would also cut at U+2028 inside a transcript.
    for number, line in enumerate(_read_bytes(path).split(b"\n"), start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield Problem(number, None, f"not JSON in UTF-8 ({error})")
            continue
        messages = _row_problems(row)
        item_id = row["id"] if isinstance(row, dict) and isinstance(row.get("id"), str) else None
        if item_id is not None:
            if item_id in first_row:
                messages.append(f"duplicate id, first in row {first_row[item_id]}")
            else:
                first_row[item_id] = number
        if messages:
            yield Problem(number, item_id, "; ".join(messages))
        else:
            yield number, _from_row(row, folder)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_FIELD_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (lambda v: isinstance(v, str) and bool(v), "a text that is not empty"),
    "audio": (lambda v: isinstance(v, str) and bool(v), "a path"),
    "duration": (lambda v: _is_number(v) and v > 0, "a number of seconds above 0"),
    "start": (lambda v: _is_number(v) and v >= 0, "a number of seconds, 0 or above"),
    "sample_rate": (lambda v: type(v) is int and v > 0, "a whole number above 0"),
    "text": (lambda v: v is None or isinstance(v, str), "a text"),
    "speaker": (lambda v: v is None or isinstance(v, str), "a text"),
}


def _row_problems(row: Any) -> list[str]:
    if not isinstance(row, dict):
        return [f"must be a JSON object, is {type(row).__name__}"]
    messages = [f"missing field {name!r}" for name in _REQUIRED if name not in row]
    for name, (is_good, wanted) in _FIELD_RULES.items():
        if name in row and not is_good(row[name]):
            messages.append(f"{name!r} must be {wanted}, is {row[name]!r}")
    return messages


def _from_row(row: dict[str, Any], folder: Path) -> Utterance:
    extra = {name: value for name, value in row.items() if name not in _FIELD_RULES}
    for name in PATH_FIELDS:
        if name in extra:
            extra[name] = _map_paths(extra[name], lambda path: str(folder / path))
    return Utterance(
        id=row["id"],
        audio=str(folder / row["audio"]),
        duration=float(row["duration"]),
        sample_rate=row["sample_rate"],
        start=float(row.get("start", 0.0)),
        text=row.get("text"),
        speaker=row.get("speaker"),
        extra=extra,
    )


def _to_row(utterance: Utterance, folder: Path) -> dict[str, Any]:
    def shorten(path: str) -> str:
        absolute = Path(path).absolute()
        return absolute.relative_to(folder).as_posix() if folder in absolute.parents else path

    row = {name: getattr(utterance, name) for name in _KNOWN}
    row["audio"] = shorten(utterance.audio)
    row.update({name: utterance.extra[name] for name in sorted(utterance.extra)})
    for name in PATH_FIELDS:
        if name in row:
            row[name] = _map_paths(row[name], shorten)
    return {name: value for name, value in row.items() if value is not None}


def _map_paths(value: Any, convert: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return convert(value)
    if isinstance(value, list | tuple):
        return [_map_paths(item, convert) for item in value]
    return value


def _audio_problem(utterance: Utterance, *, read_samples: bool) -> str | None:
    from speechkit.data.audio import audio_info, check_span, read_audio

    try:
        info = audio_info(utterance.audio)
        check_span(utterance.audio, info, utterance.start, utterance.duration)
        if read_samples:
            read_audio(utterance.audio, start=utterance.start, duration=utterance.duration)
    except DataError as error:
        return str(error)
    if info.sample_rate != utterance.sample_rate:
        return (
            f"'sample_rate' is {utterance.sample_rate}, but {utterance.audio} has "
            f"{info.sample_rate}; correct the row"
        )
    return None


def _listing(path: str | os.PathLike[str], problems: list[Problem]) -> str:
    head = f"{path}: {len(problems)} bad row{'s' if len(problems) > 1 else ''}"
    advice = f"Correct these rows; `speechkit check {path}` lists all that is wrong."
    return listing(head, problems, advice)
