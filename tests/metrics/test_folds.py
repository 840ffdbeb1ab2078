"""Mean and deviation over folds."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from speechkit.metrics import classification
from speechkit.metrics.folds import summarize
from speechkit.metrics.results import SCORERS


def rows(fold: int, right: int, wrong: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{fold}-{n}", "fold": fold, "label": "cat",
            "scores": {"cat": float(n < right), "dog": float(n >= right)},
        }
        for n in range(right + wrong)
    ]  # fmt: skip


def test_each_fold_counts_alike() -> None:
    parts = [rows(1, 1, 0), rows(2, 1, 3), rows(5, 8, 2)]
    mixed = [row for n in range(10) for part in parts for row in part[n : n + 1]]
    numbers = {result.metric: result for result in summarize(mixed)}
    assert numbers["accuracy"].value == pytest.approx((100 + 25 + 80) / 3)
    assert numbers["accuracy"].count == 3
    assert numbers["accuracy_deviation"].value == pytest.approx(statistics.stdev([100, 25, 80]))
    assert numbers["accuracy_deviation"].unit == "%"
    for metric in ("balanced_accuracy", "macro_F1"):
        own = [r.value for p in parts for r in classification.summarize(p) if r.metric == metric]
        assert numbers[metric].value == pytest.approx(statistics.fmean(own))
    assert SCORERS["folds"] is summarize


def test_one_fold_has_no_deviation() -> None:
    names = [result.metric for result in summarize(rows(3, 2, 1))]
    assert names == ["accuracy", "balanced_accuracy", "macro_F1"]


@pytest.mark.parametrize("fold", [None, "1", 1.0])
def test_rows_without_a_fold_are_refused(fold: Any) -> None:
    with pytest.raises(ValueError, match=r"row 2 \(id 'a'\) has no fold"):
        summarize([*rows(1, 1, 0), {"id": "a", "fold": fold, "label": "cat", "scores": {"cat": 1}}])
    with pytest.raises(ValueError, match="no rows to score"):
        summarize([])
