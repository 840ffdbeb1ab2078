"""What the turns of a rotation over folds give together: mean and deviation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from speechkit.metrics.classification import summarize as summarize_classification
from speechkit.metrics.results import Result


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make the results of a classifier's rotation from the rows of all its turns.

    Parameters
    ----------
    rows : iterable of dict
        As for `speechkit.metrics.classification.summarize`, each with ``"fold"``.

    Returns
    -------
    list of Result
        Each metric's mean over the folds, a fold counting as much as any other, and where there
        are several, its standard deviation (of a sample) as ``<metric>_deviation``; counted are the
        folds.

    Raises
    ------
    ValueError
        If a row has no fold; and as the summary of each fold.

    Examples
    --------
    >>> rows = [
    ...     {"id": "a", "fold": 1, "label": "cat", "scores": {"cat": 0.9, "dog": 0.1}},
    ...     {"id": "b", "fold": 2, "label": "cat", "scores": {"cat": 0.7, "dog": 0.3}},
    ...     {"id": "c", "fold": 2, "label": "dog", "scores": {"cat": 0.6, "dog": 0.4}},
    ... ]
    >>> [(r.metric, round(r.value, 2), r.count) for r in summarize(rows)[:2]]
    [('accuracy', 75.0, 2), ('accuracy_deviation', 35.36, 2)]
    """
    folds: dict[int, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows, start=1):
        fold = row.get("fold")
        if not isinstance(fold, int):
            raise ValueError(f"row {number} (id {row.get('id')!r}) has no fold, but {fold!r}")
        folds.setdefault(fold, []).append(row)
    if not folds:
        raise ValueError("no rows to score")
    values: dict[str, tuple[str, list[float]]] = {}
    for _, part in sorted(folds.items()):
        for result in summarize_classification(part):
            values.setdefault(result.metric, (result.unit, []))[1].append(result.value)
    results = []
    for metric, (unit, each) in values.items():
        results.append(Result(metric, statistics.fmean(each), unit, len(each)))
        if len(each) > 1:
            results.append(Result(f"{metric}_deviation", statistics.stdev(each), unit, len(each)))
    return results
