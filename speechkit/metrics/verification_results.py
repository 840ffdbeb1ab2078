"""A speaker test's results from its rows: error rates, costs, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from speechkit.metrics.results import Result
from speechkit.metrics.verification import bootstrap_intervals, summarize

MIN_SPEAKERS = 5  # below, draws of speakers often have trials of one kind only
MAX_TRIALS = 50_000  # of a thousand draws; of more trials there are a hundred


def summarize_with_intervals(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a speaker model's results from its per-trial rows.

    Parameters
    ----------
    rows : iterable of dict
        With ``"score"``, ``"target"`` and, for intervals by speaker, ``"speakers"``: who speaks on
        the two sides.

    Returns
    -------
    list of Result
        EER and both minimum costs as of `speechkit.metrics.verification.summarize`; then the bounds
        of their 95 % bootstrap intervals. ``EER low`` and ``EER high`` draw speakers, where there
        are at least five, and are the ones to believe; ``EER trials low`` and ``EER trials high``
        draw trials.

    Raises
    ------
    ValueError
        As `speechkit.metrics.verification.summarize`.

    Examples
    --------
    >>> rows = [{"score": s, "target": s > 0} for s in (-2.0, -1.0, 1.0)]
    >>> [(r.metric, r.value) for r in summarize_with_intervals(rows)][3:5]
    [('EER trials low', 0.0), ('EER trials high', 0.0)]
    """
    rows = list(rows)
    results = summarize(rows)
    scores = [row["score"] for row in rows]
    targets = [bool(row["target"]) for row in rows]
    units = {result.metric: result.unit for result in results}
    draws = 1000 if len(rows) <= MAX_TRIALS else 100
    bounds = {}
    sides = [tuple(row["speakers"]) for row in rows if "speakers" in row]
    if len(sides) == len(rows) and len({name for pair in sides for name in pair}) >= MIN_SPEAKERS:
        bounds[""] = bootstrap_intervals(scores, targets, speakers=sides, num_resamples=draws)
    bounds[" trials"] = bootstrap_intervals(scores, targets, num_resamples=draws)
    for kind, intervals in bounds.items():
        for name, interval in intervals.items():
            scale = 100.0 if units[name] == "%" else 1.0
            for end, value in zip(("low", "high"), interval):
                metric = f"{name}{kind} {end}"
                results.append(Result(metric, scale * value, units[name], len(rows)))
    return results
