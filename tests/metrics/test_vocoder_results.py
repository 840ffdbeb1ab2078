"""From the rows of a vocoder's test to its table."""

from __future__ import annotations

import pytest

from speechkit.metrics.results import SCORERS
from speechkit.metrics.vocoder_results import summarize

ROWS = [
    {"id": "a", "vocoder": "griffin-lim", "stft": 1.0, "rtf": 0.2, "pesq": 3.0, "stoi": 0.9},
    {"id": "b", "vocoder": "griffin-lim", "stft": 2.0, "rtf": 0.4, "pesq": 2.0},
]


def test_means_over_the_rows_that_have_them() -> None:
    found = {result.metric: (result.value, result.count) for result in summarize(ROWS)}
    assert found["STFT distance"] == (1.5, 2)
    assert found["real-time factor"] == (pytest.approx(0.3), 2)
    assert found["PESQ-WB"] == (2.5, 2)
    assert found["STOI"] == (0.9, 1)
    assert SCORERS["vocoder"](ROWS) == summarize(ROWS)


def test_what_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match=r"rows \['b'\]: 'stft' is no finite number"):
        summarize([ROWS[0], {**ROWS[1], "stft": float("nan")}])
    with pytest.raises(ValueError, match="none to count"):
        summarize([{"id": "a", "stft": 1.0}])
