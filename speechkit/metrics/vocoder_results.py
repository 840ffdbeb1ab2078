"""From the rows of a vocoder's test to its results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from speechkit.metrics.quality_results import summarize as summarize_quality
from speechkit.metrics.results import Result

_COLUMNS = (
    ("STFT distance", "stft", ""),
    ("F0 RMSE", "f0_rmse_cents", "cents"),
    ("voicing error", "voicing_error", "%"),
    ("real-time factor", "rtf", ""),
)


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a vocoder's results from the rows of one condition.

    Parameters
    ----------
    rows : iterable of dict
        ``"id"``; ``"stft"``, of `speechkit.losses.vocoder.MultiResolutionSTFTLoss`;
        ``"f0_rmse_cents"`` and ``"voicing_error"``, of `speechkit.metrics.tts.f0_errors` at the
        same times; ``"rtf"``, seconds of work for a second of sound; measures of
        `speechkit.metrics.quality`. What a row lacks is not counted; other keys are ignored.

    Returns
    -------
    list of Result
        The mean of each measure over the rows that have it, and what
        `speechkit.metrics.quality_results.summarize` makes of all.

    Raises
    ------
    ValueError
        Where a value is no finite number, or no row has any measure of quality.

    Examples
    --------
    >>> rows = [{"id": "a", "stft": 1.5, "pesq": 3.0}, {"id": "b", "stft": 0.5, "pesq": 2.0}]
    >>> [(r.metric, r.value) for r in summarize(rows)]
    [('STFT distance', 1.0), ('PESQ-WB', 2.5)]
    """
    rows = list(rows)
    results = []
    for metric, key, unit in _COLUMNS:
        values = [float(row[key]) for row in rows if row.get(key) is not None]
        bad = [row.get("id") for row in rows if not math.isfinite(float(row.get(key) or 0.0))]
        if bad:
            raise ValueError(f"rows {bad}: {key!r} is no finite number")
        if values:
            results.append(Result(metric, math.fsum(values) / len(values), unit, len(values)))
    return results + summarize_quality(rows)
