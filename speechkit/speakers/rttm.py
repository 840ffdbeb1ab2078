"""RTTM files: who speaks when, in the format of NIST's evaluations; and UEM files beside them.

A turn is a line of ten fields, of which those in angle brackets are not used here::

    SPEAKER <recording> 1 <start> <duration> <NA> <NA> <speaker> <NA> <NA>
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from speechkit.data.errors import DataError, listing
from speechkit.files import atomic_write
from speechkit.metrics.diarization import Region, Turn

# Other kinds of lines that the format has; a speaker diarization does not need them.
_OTHERS = (
    *("SPKR-INFO", "NOSCORE", "NO_RT_METADATA", "SEGMENT", "LEXEME", "NON-LEX", "NON-SPEECH"),
    *("FILLER", "EDIT", "SU", "IP", "CB", "A/P"),
)


def read_rttm(path: str | os.PathLike[str]) -> dict[str, list[Turn]]:
    """Read the turns of each recording.

    Parameters
    ----------
    path : path
        An RTTM file. Lines that begin with ``;;`` and other kinds of line than SPEAKER are left
        out; eight fields are enough.

    Returns
    -------
    dict
        From recording to its turns, sorted by start.

    Raises
    ------
    DataError
        When the file is unreadable, or has lines in another format: each with its number.

    Examples
    --------
    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "a.rttm"
    >>> write_rttm(place, {"a": [Turn(0.5, 2.25, "anna")]})
    >>> print(place.read_text(), end="")
    SPEAKER a 1 0.500 1.750 <NA> <NA> anna <NA> <NA>
    >>> read_rttm(place)
    {'a': [Turn(start=0.5, end=2.25, speaker='anna')]}
    """
    turns: dict[str, list[Turn]] = {}
    problems = []
    for number, fields in _lines(path):
        if fields[0].upper() in _OTHERS:
            continue
        times = _seconds(fields[3:5]) if len(fields) >= 8 and fields[0] == "SPEAKER" else None
        if times is None or min(times) < 0:
            problems.append(f"line {number}: {' '.join(fields)[:120]!r}")
            continue
        start, duration = times
        turns.setdefault(fields[1], []).append(Turn(start, start + duration, fields[7]))
    if problems:
        advice = "A line is 'SPEAKER <recording> 1 <start> <duration> <NA> <NA> <speaker> ...'"
        raise DataError(listing(f"{path}: {len(problems)} lines are no turns", problems, advice))
    return {name: sorted(own) for name, own in turns.items()}


def write_rttm(path: str | os.PathLike[str], turns: Mapping[str, Sequence[Turn]]) -> None:
    """Write the turns of each recording, in milliseconds.

    Parameters
    ----------
    path : path
        Where.
    turns : mapping
        From recording to turns; a recording without any leaves no line.

    Raises
    ------
    ValueError
        Where a name is empty or holds white space, or a turn has no length or no finite times.
    """
    lines = []
    for recording, own in turns.items():
        for turn in sorted(own):
            for name in (recording, turn.speaker):
                if len(name.split()) != 1 or name != name.strip():
                    raise ValueError(f"{path}: RTTM cannot hold the name {name!r}")
            if not 0 <= turn.start < turn.end < math.inf:
                raise ValueError(f"{path}: {recording}: no turn: {turn}")
            # Both ends are rounded, so that turns that touch still do.
            start, end = round(1000 * turn.start), round(1000 * turn.end)
            if end > start:
                times = f"{start / 1000:.3f} {(end - start) / 1000:.3f}"
                lines.append(f"SPEAKER {recording} 1 {times} <NA> <NA> {turn.speaker} <NA> <NA>\n")
    atomic_write(Path(path), "".join(lines))


def read_uem(path: str | os.PathLike[str]) -> dict[str, list[Region]]:
    r"""Read which regions of each recording are evaluated: ``<recording> 1 <start> <end>``.

    Raises
    ------
    DataError
        When the file is unreadable, or has lines in another format: each with its number.

    Examples
    --------
    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "a.uem"
    >>> place.write_text("a 1 0 12.5\n")
    11
    >>> read_uem(place)
    {'a': [(0.0, 12.5)]}
    """
    regions: dict[str, list[Region]] = {}
    problems = []
    for number, fields in _lines(path):
        times = _seconds(fields[2:]) if len(fields) == 4 else None
        if times is None or not 0 <= times[0] <= times[1]:
            problems.append(f"line {number}: {' '.join(fields)[:120]!r}")
            continue
        regions.setdefault(fields[0], []).append((times[0], times[1]))
    if problems:
        advice = "A line is '<recording> 1 <start> <end>', in seconds"
        raise DataError(listing(f"{path}: {len(problems)} lines are no regions", problems, advice))
    return {name: sorted(own) for name, own in regions.items()}


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Give number and fields of the lines that are neither empty nor comments."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text") from error
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if fields and not fields[0].startswith(";;"):
            yield number, fields


def _seconds(fields: Sequence[str]) -> tuple[float, float] | None:
    try:
        first, second = (float(field) for field in fields)
    except ValueError:  # not numbers: the caller lists the line
        return None
    return (first, second) if math.isfinite(first) and math.isfinite(second) else None
