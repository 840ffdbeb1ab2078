"""Results of a speaker test, with intervals."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from speechkit.metrics.results import SCORERS
from speechkit.metrics.verification import summarize
from speechkit.metrics.verification_results import MIN_SPEAKERS


def rows_of(num_speakers: int) -> list[dict[str, Any]]:
    """Give all pairs of six recordings a speaker; some speakers are hard."""
    rng = np.random.default_rng(0)
    items = [(speaker, n) for speaker in range(num_speakers) for n in range(6)]
    hard = 2 * rng.normal(size=num_speakers)
    return [
        {
            "score": float(rng.normal() + (3 + hard[a[0]] if a[0] == b[0] else 0)),
            "target": a[0] == b[0],
            "speakers": [str(a[0]), str(b[0])],
        }
        for a, b in combinations(items, 2)
    ]


def test_the_interval_by_speaker_is_the_wider_one() -> None:
    rows = rows_of(12)
    results = {result.metric: result for result in SCORERS["speaker"](rows)}
    assert list(results)[:3] == [result.metric for result in summarize(rows)]
    width = {}
    for kind in ("", " trials"):
        low, high = (results[f"EER{kind} {end}"].value for end in ("low", "high"))
        assert low <= results["EER"].value <= high
        assert results[f"EER{kind} low"].unit == "%"
        width[kind] = high - low
    assert width[""] > width[" trials"] > 0
    assert results["minDCF(0.05) high"].value <= 1.0
    # The same rows give the same numbers.
    assert [r.value for r in SCORERS["speaker"](rows)] == [r.value for r in results.values()]


@pytest.mark.parametrize("speakers", [MIN_SPEAKERS - 1, None])
def test_few_or_unknown_speakers_have_no_interval(speakers: int | None) -> None:
    rows = rows_of(speakers or 6)
    if speakers is None:
        rows = [{k: v for k, v in row.items() if k != "speakers"} for row in rows]
    metrics = [result.metric for result in SCORERS["speaker"](rows)]
    assert "EER trials high" in metrics
    assert "EER high" not in metrics
