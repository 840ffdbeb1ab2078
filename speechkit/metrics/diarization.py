"""Diarization error rate: the share of speaking time that is missed, invented or confused.

The definition is that of NIST's ``md-eval``. Each moment has ``R`` speakers in the reference and
``H`` in the hypothesis. Summed over the scored time::

    missed       max(R - H, 0)
    false alarm  max(H - R, 0)
    confusion    min(R, H) - (speakers of both that the mapping pairs)
    DER          (missed + false alarm + confusion) / R

The mapping of names is one to one and has the largest time in common. As in ``md-eval`` it is found
over everything that is evaluated, before collars and overlap are left out. Nothing is rounded to
frames: time is cut where a turn begins or ends.

Published numbers differ in two choices, so a number says which it is: a collar (time around each
beginning and end of a reference turn that does not count, 0.25 s on each side in many papers), and
whether time in which the reference has several speakers counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from speechkit.metrics.results import Result

Array: TypeAlias = "np.ndarray[Any, Any]"
Region: TypeAlias = tuple[float, float]


class Turn(NamedTuple):
    """Someone speaks: from when to when, in seconds, and who."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True, slots=True)
class DiarizationErrors:
    """Seconds of each kind; those of several recordings add up.

    Attributes
    ----------
    total : float
        Speaking time of the reference that is scored: two speakers at once count twice.
    missed, false_alarm, confusion : float
        As defined above.

    Examples
    --------
    >>> DiarizationErrors(total=10.0, missed=1.0, false_alarm=0.5, confusion=0.5).rate
    20.0
    """

    total: float = 0.0
    missed: float = 0.0
    false_alarm: float = 0.0
    confusion: float = 0.0

    def __add__(self, other: DiarizationErrors) -> DiarizationErrors:
        """Pool with another recording's."""
        return DiarizationErrors(
            self.total + other.total,
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
        )

    @property
    def errors(self) -> float:
        """Seconds of all three kinds."""
        return self.missed + self.false_alarm + self.confusion

    @property
    def rate(self) -> float:
        """DER in percent: 0 where nothing is scored and nothing wrong, infinite where only that."""
        if self.total > 0:
            return 100.0 * self.errors / self.total
        return math.inf if self.errors > 0 else 0.0


def diarization_errors(
    reference: Sequence[Turn],
    hypothesis: Sequence[Turn],
    *,
    collar: float = 0.0,
    skip_overlap: bool = False,
    regions: Sequence[Region] | None = None,
) -> DiarizationErrors:
    """Compare who speaks when with who should.

    Parameters
    ----------
    reference, hypothesis : sequence of Turn
        Of one recording, in any order; names need not be those of the other side. Turns of one
        speaker that overlap count once.
    collar : float
        Seconds before and after each beginning and end of a reference turn that are not scored.
    skip_overlap : bool
        Leave out the time in which the reference has several speakers.
    regions : sequence of (float, float), optional
        From when to when the recording is evaluated (its UEM). By default, as ``md-eval`` does,
        from the first beginning to the last end of the reference: speech that is found before or
        after goes unpunished. Give ``[(0, duration)]`` where it should count.

    Returns
    -------
    DiarizationErrors
        In seconds; ``.rate`` is the DER in percent.

    Raises
    ------
    ValueError
        Where a turn or region ends before it begins or is not finite, the collar is negative, or
        there is neither a reference turn nor a region.

    References
    ----------
    NIST (2009), "The 2009 (RT-09) rich transcription meeting recognition evaluation plan",
    section 5.2; its scorer ``md-eval`` version 22.

    Examples
    --------
    >>> reference = [Turn(0, 10, "anna"), Turn(8, 14, "ben")]
    >>> hypothesis = [Turn(0, 9, "1"), Turn(9, 15, "2")]
    >>> errors = diarization_errors(reference, hypothesis)
    >>> errors.total, errors.missed, errors.false_alarm, errors.confusion
    (16.0, 2.0, 0.0, 0.0)
    >>> diarization_errors(reference, hypothesis, skip_overlap=True).rate
    0.0
    """
    if not 0 <= collar < math.inf:
        raise ValueError(f"collar must be at least 0 seconds, is {collar}")
    reference, hypothesis = _checked(reference, "reference"), _checked(hypothesis, "hypothesis")
    evaluated = _regions(reference, regions)
    zones = _collars(reference, collar)
    times = _times(reference, hypothesis, evaluated, zones)
    lengths, middles = np.diff(times), (times[:-1] + times[1:]) / 2
    inside = _covered(times, evaluated)
    names = [list(dict.fromkeys(turn.speaker for turn in side)) for side in (reference, hypothesis)]
    active = [
        np.stack([_covered(times, _of(side, name)) for name in own])
        if own
        else np.zeros((0, len(middles)), dtype=bool)
        for side, own in zip((reference, hypothesis), names)
    ]
    common = (active[0] * np.where(inside, lengths, 0.0)) @ active[1].T.astype(float)
    scored = inside & ~_covered(times, zones)
    if skip_overlap:
        scored &= active[0].sum(axis=0) < 2
    seconds = np.where(scored, lengths, 0.0)
    here, there = (side.sum(axis=0) for side in active)
    matched = np.zeros(len(middles))
    for r, h in _largest_assignment(common):
        matched += active[0][r] & active[1][h]
    return DiarizationErrors(
        total=float(here @ seconds),
        missed=float(np.maximum(here - there, 0) @ seconds),
        false_alarm=float(np.maximum(there - here, 0) @ seconds),
        confusion=float((np.minimum(here, there) - matched) @ seconds),
    )


def speaker_mapping(
    reference: Sequence[Turn],
    hypothesis: Sequence[Turn],
    *,
    regions: Sequence[Region] | None = None,
) -> dict[str, str]:
    """Find which reference speaker each speaker of the hypothesis is, for example for a plot.

    Parameters
    ----------
    reference, hypothesis, regions
        As for :func:`diarization_errors`.

    Returns
    -------
    dict
        From names of the hypothesis to names of the reference; those who share no time with
        anybody are left out.

    Examples
    --------
    >>> speaker_mapping([Turn(0, 5, "anna"), Turn(5, 7, "ben")], [Turn(0, 6, "1")])
    {'1': 'anna'}
    """
    reference, hypothesis = _checked(reference, "reference"), _checked(hypothesis, "hypothesis")
    evaluated = _regions(reference, regions)
    times = _times(reference, hypothesis, evaluated, [])
    lengths = np.where(_covered(times, evaluated), np.diff(times), 0.0)
    ours = list(dict.fromkeys(turn.speaker for turn in reference))
    theirs = list(dict.fromkeys(turn.speaker for turn in hypothesis))
    common = np.zeros((len(ours), len(theirs)))
    for r, name in enumerate(ours):
        own = np.where(_covered(times, _of(reference, name)), lengths, 0.0)
        for h, other in enumerate(theirs):
            common[r, h] = own[_covered(times, _of(hypothesis, other))].sum()
    return {theirs[h]: ours[r] for r, h in _largest_assignment(common)}


SCORINGS: Sequence[tuple[str, float, bool]] = (
    ("DER", 0.0, False),
    ("DER (collar 0.25 s)", 0.25, False),
    ("DER (collar 0.25 s, no overlap)", 0.25, True),
)
"""Names, collars and `skip_overlap` of the rates that `summarize` gives."""


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a diarizer's results from one row a recording.

    Parameters
    ----------
    rows : iterable of dict
        With ``"reference"`` and ``"hypothesis"``, lists of ``[start, end, speaker]``, and perhaps
        ``"regions"``, a list of ``[start, end]``; other keys are ignored.

    Returns
    -------
    list of Result
        The rates of `SCORINGS`, then what the first of them is made of: missed, false alarm and
        confusion. All in percent of the reference's speaking time, pooled over recordings, whose
        number is the count.

    Raises
    ------
    ValueError
        Where a row is no such row (its number and id are named), or a rate has no time to score.

    Examples
    --------
    >>> rows = [{"id": "a", "reference": [[0, 4, "x"]], "hypothesis": [[1, 4, "1"]]}]
    >>> [(r.metric, round(r.value, 1)) for r in summarize(rows)][:2]
    [('DER', 25.0), ('DER (collar 0.25 s)', 21.4)]
    """
    sums = [DiarizationErrors() for _ in SCORINGS]
    count = 0
    for count, row in enumerate(rows, start=1):
        try:
            reference, hypothesis = (_turns(row, key) for key in ("reference", "hypothesis"))
            regions = row.get("regions")
            for s, (_, collar, skip_overlap) in enumerate(SCORINGS):
                sums[s] += diarization_errors(
                    reference,
                    hypothesis,
                    collar=collar,
                    skip_overlap=skip_overlap,
                    regions=None if regions is None else [(float(a), float(b)) for a, b in regions],
                )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"row {count} (id {row.get('id')!r}): {error}") from error
    empty = [name for (name, *_), errors in zip(SCORINGS, sums) if errors.total <= 0]
    if empty:
        raise ValueError(f"no speaking time is left to score in {count} recordings: {empty}")
    results = [Result(name, errors.rate, "%", count) for (name, *_), errors in zip(SCORINGS, sums)]
    parts = {"missed": "missed", "false alarm": "false_alarm", "confusion": "confusion"}
    for name, part in parts.items():
        results.append(Result(name, 100 * getattr(sums[0], part) / sums[0].total, "%", count))
    return results


def _turns(row: dict[str, Any], key: str) -> list[Turn]:
    if key not in row:
        raise KeyError(f"no {key!r}; it has {sorted(row)}")
    return [Turn(float(start), float(end), str(speaker)) for start, end, speaker in row[key]]


def _checked(turns: Sequence[Turn], side: str) -> list[Turn]:
    """Give the turns that last, or an error for one that cannot be."""
    for turn in turns:
        if not -math.inf < turn.start <= turn.end < math.inf:
            raise ValueError(f"a turn of the {side} ends before it begins or never: {turn}")
    return [turn for turn in turns if turn.end > turn.start]


def _regions(reference: Sequence[Turn], regions: Sequence[Region] | None) -> list[Region]:
    if regions is None:
        if not reference:
            raise ValueError(
                "the reference has no turn, so it does not say what is scored: give regions, such "
                "as [(0, duration)]"
            )
        return [(min(turn.start for turn in reference), max(turn.end for turn in reference))]
    for start, end in regions:
        if not -math.inf < start <= end < math.inf:
            raise ValueError(f"a region ends before it begins or never: {(start, end)}")
    return list(regions)


def _collars(reference: Sequence[Turn], collar: float) -> list[Region]:
    edges = [time for turn in reference for time in turn[:2]] if collar else []
    return [(time - collar, time + collar) for time in edges]


def _of(turns: Sequence[Turn], speaker: str) -> list[Region]:
    return [turn[:2] for turn in turns if turn.speaker == speaker]


def _times(*spans: Sequence[tuple[Any, ...]]) -> Array:
    """Every beginning and end, sorted: between two of them nothing changes."""
    return np.unique([float(t) for span in spans for start, end, *_ in span for t in (start, end)])


def _covered(times: Array, spans: Sequence[Region]) -> Array:
    """Which pieces between times ``(K,)`` lie in any span, shape ``(K - 1,)``."""
    change = np.zeros(len(times), dtype=np.int64)
    for ends, step in ((0, 1), (1, -1)):
        np.add.at(change, np.searchsorted(times, [span[ends] for span in spans]), step)
    covered: Array = np.cumsum(change)[:-1] > 0
    return covered


def _largest_assignment(weights: Array) -> list[tuple[int, int]]:
    """Pair rows with columns, one to one, so that the sum of weights >= 0 is largest.

    The Hungarian method by shortest augmenting paths (Jonker and Volgenant, 1987), O(n^3), so that
    nothing needs scipy. Pairs of weight 0 are left out.
    """
    size = max(weights.shape, default=0)
    cost = np.zeros((size, size))
    cost[: weights.shape[0], : weights.shape[1]] = -weights
    row_dual, column_dual = np.zeros(size), np.zeros(size + 1)
    row_of = np.full(size + 1, -1)  # of each column; the last column stands for the new row
    for row in range(size):
        row_of[size] = row
        best, came_from = np.full(size, np.inf), np.full(size, size)
        done = np.zeros(size + 1, dtype=bool)
        column = size
        while row_of[column] >= 0:
            done[column] = True
            open_columns = ~done[:size]
            reduced = cost[row_of[column]] - row_dual[row_of[column]] - column_dual[:size]
            closer = open_columns & (reduced < best)
            best[closer], came_from[closer] = reduced[closer], column
            nearest = int(np.argmin(np.where(open_columns, best, np.inf)))
            step = best[nearest]
            row_dual[row_of[done]] += step
            column_dual[done] -= step
            best[open_columns] -= step
            column = nearest
        while column != size:
            row_of[column] = row_of[came_from[column]]
            column = int(came_from[column])
    pairs = ((int(row_of[column]), column) for column in range(weights.shape[1]))
    return [(r, c) for r, c in pairs if r < weights.shape[0] and weights[r, c] > 0]
