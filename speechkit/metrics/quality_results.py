"""From the rows of a codec's test to its results: means, the MUSHRA-proxy or the ranking."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

from speechkit.metrics.mushra import (
    CAUTION,
    PROXY_KEYS,
    RANKING_KEYS,
    rank_condition,
    score_condition,
)
from speechkit.metrics.results import Result


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a codec's results from the rows of one condition (one codec at one rate).

    Parameters
    ----------
    rows : iterable of dict
        ``"id"``, ``"kbps"`` as written on disk, and measures of `speechkit.metrics.quality`. What a
        row lacks is not counted; other keys are ignored.

    Returns
    -------
    list of Result
        The mean of each measure over the rows that have it; the MUSHRA-proxy and the ends of its
        interval where every row has what it needs; the ranking where no row has ``mel_db`` (audio
        below 24 kHz). Where only some rows allow the proxy there is none, with a warning.

    Raises
    ------
    ValueError
        Where a value is no finite number (the row's number and id are named), or no row has any.

    Examples
    --------
    >>> rows = [{"id": "a", "kbps": 6.0, "pesq": 1.9, "visqol_audio": 2.5, "mel_db": 9.3}]
    >>> [(r.metric, round(r.value, 1), r.count) for r in summarize(rows)][-1]
    ('MUSHRA-proxy', 29.0, 1)
    """
    rows = list(rows)
    values: dict[str, list[float]] = {key: [] for _, key, _ in _COLUMNS}
    for number, row in enumerate(rows, start=1):
        for key in values:
            value = row.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"row {number} (id {row.get('id')!r}): {key!r} is {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"row {number} (id {row.get('id')!r}): {key!r} is {value}")
            values[key].append(float(value))
    results = [
        Result(metric, math.fsum(values[key]) / len(values[key]), unit, len(values[key]))
        for metric, key, unit in _COLUMNS
        if values[key]
    ]
    if not results:
        raise ValueError(f"no row has any of {sorted(values)}: none to count")
    return results + _overall(rows, values)


_COLUMNS = (
    ("bit rate", "kbps", "kbps"),
    ("SI-SNR", "si_snr", "dB"),
    ("STOI", "stoi", ""),
    ("ESTOI", "estoi", ""),
    ("PESQ-WB", "pesq", "MOS"),
    ("ViSQOL-audio", "visqol_audio", "MOS"),
    ("ViSQOL-speech", "visqol_speech", "MOS"),
    ("mel distance", "mel", "dB"),
    ("mel distance, 24 kHz", "mel_db", "dB"),
)


def _overall(rows: list[dict[str, Any]], values: dict[str, list[float]]) -> list[Result]:
    """Give the proxy or the ranking as results, or nothing where it refuses."""
    wide = bool(values["mel_db"])
    name = "MUSHRA-proxy" if wide else "ranking score"
    unit = f"points, {CAUTION}" if wide else "of 100, an order only"
    keys = PROXY_KEYS if wide else RANKING_KEYS
    counts = [len(values[key]) for key in keys]
    if min(counts) < len(rows):
        if min(counts) > 0:
            warnings.warn(
                f"no {name}: of {len(rows)} rows, {dict(zip(keys, counts))} have what it needs",
                stacklevel=3,
            )
        return []
    found = score_condition(rows) if wide else rank_condition(rows)
    results = [Result(name, found.score, unit, found.count)]
    for end, value in (("from", found.low), ("to", found.high)):
        if value is not None:
            results.append(Result(f"{name}, 95 % {end}", value, "points", found.count))
    return results
