"""How well speech, and overlap, are detected: seconds missed and seconds invented.

Where ``R`` is the time that the reference marks and ``H`` the time that the hypothesis marks::

    missed       R without H
    false alarm  H without R
    DetER        (missed + false alarm) / R       the detection error rate
    F1           2 (R and H) / (R + H)

as in pyannote.metrics (Bredin 2017). Nothing is rounded to frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from speechkit.metrics.diarization import DiarizationErrors, Region, Turn, diarization_errors
from speechkit.metrics.results import Result

KINDS = ("speech", "overlap")
"""What a row has regions of: at least one, at least two people speak."""


def detection_errors(
    reference: Iterable[Region], hypothesis: Iterable[Region], duration: float
) -> DiarizationErrors:
    """Compare where something is with where it was found.

    Parameters
    ----------
    reference, hypothesis : iterable of (float, float)
        Start and end in seconds; what overlaps counts once.
    duration : float
        Seconds of the recording, all of which counts.

    Returns
    -------
    DiarizationErrors
        In seconds, without confusion; ``.rate`` is the detection error rate in percent.

    Raises
    ------
    ValueError
        Where a region ends before it begins.

    Examples
    --------
    >>> errors = detection_errors([(0, 2), (4, 6)], [(1, 3)], 10.0)
    >>> errors.total, errors.missed, errors.false_alarm, errors.rate
    (4.0, 3.0, 1.0, 100.0)
    """
    sides = ([Turn(start, end, "") for start, end in side] for side in (reference, hypothesis))
    return diarization_errors(*sides, regions=[(0.0, duration)])


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a detector's results from one row a recording.

    Parameters
    ----------
    rows : iterable of dict
        With ``"duration"`` in seconds and, for each of `KINDS` that is tested, ``{"reference":
        [[start, end], ...], "hypothesis": [[start, end], ...]}``; other keys are ignored.

    Returns
    -------
    list of Result
        Of each kind DetER, missed and false alarm, in percent of the reference's time, and F1 in
        percent; pooled over recordings, whose number is the count. A kind that no reference has is
        left out: it has no rates.

    Raises
    ------
    ValueError
        Where a row is no such row (its number and id are named), or no reference has anything.

    Examples
    --------
    >>> row = {"id": "a", "duration": 9.0,
    ...     "speech": {"reference": [[0, 4]], "hypothesis": [[1, 4]]}}
    >>> [(r.metric, round(r.value, 1)) for r in summarize([row])]
    [('DetER', 25.0), ('F1', 85.7), ('missed', 25.0), ('false alarm', 0.0)]
    """
    sums = dict.fromkeys(KINDS, DiarizationErrors())
    counts = dict.fromkeys(KINDS, 0)
    for number, row in enumerate(rows, start=1):
        try:
            for kind in KINDS:
                if kind in row:
                    reference, hypothesis = (
                        [(float(a), float(b)) for a, b in row[kind][side]]
                        for side in ("reference", "hypothesis")
                    )
                    sums[kind] += detection_errors(reference, hypothesis, float(row["duration"]))
                    counts[kind] += 1
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"row {number} (id {row.get('id')!r}): {error}") from error
    results = [
        Result(name if kind == "speech" else f"{kind} {name}", value, "%", counts[kind])
        for kind, errors in sums.items()
        for name, value in _rates(errors).items()
    ]
    if not results:
        raise ValueError(f"the references of {max(counts.values())} rows have no speech to find")
    # The two error rates first: they are what a run shows.
    return sorted(results, key=lambda result: not result.metric.endswith("DetER"))


def _rates(errors: DiarizationErrors) -> dict[str, float]:
    """Give the rates of one kind, in percent; none where the reference has none of it."""
    if errors.total <= 0:
        return {}
    found = errors.total - errors.missed
    f1 = 2 * found / (2 * found + errors.missed + errors.false_alarm)
    return {
        "DetER": errors.rate,
        "F1": 100 * f1,
        "missed": 100 * errors.missed / errors.total,
        "false alarm": 100 * errors.false_alarm / errors.total,
    }
