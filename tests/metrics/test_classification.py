"""Scores of classifiers, against their definitions written out in loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from speechkit.metrics.classification import (
    average_precision,
    confusion_matrix,
    per_label,
    score_row,
    summarize,
)
from speechkit.metrics.results import SCORERS

NAMES = [f"label{number}" for number in range(12)]


def _rows(count: int = 60, *, several: bool = False) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        logits = torch.randn(len(NAMES), generator=generator)
        if several:
            chosen = (torch.rand(11, generator=generator) < 0.3).nonzero().flatten().tolist()
            label: Any = [NAMES[i] for i in chosen]  # the last one never
            logits[chosen] += 1.0
            probabilities = logits.sigmoid()
        else:
            true = number * number % 11  # unbalanced, and the last one never
            logits[true] += 1.0
            label, probabilities = NAMES[true], logits.softmax(0)
        rows.append(score_row(f"u{number}", label, probabilities, NAMES))
    return rows


def _value(rows: list[dict[str, Any]], metric: str) -> tuple[float, int]:
    return next((r.value, r.count) for r in summarize(rows) if r.metric == metric)


def test_one_label_by_hand() -> None:
    rows = _rows()
    assert [r.metric for r in summarize(rows)] == [
        "accuracy", "balanced_accuracy", "macro_F1", "top5_accuracy",
    ]  # fmt: skip
    right = [row["label"] == row["prediction"] for row in rows]
    assert _value(rows, "accuracy") == (pytest.approx(100 * sum(right) / 60), 60)
    recalls, f1s = [], []
    for name in NAMES:
        own = [row for row in rows if row["label"] == name]
        found = [row for row in rows if row["prediction"] == name]
        both = [row for row in own if row["prediction"] == name]
        if own:
            recalls.append(len(both) / len(own))
            f1s.append(2 * len(both) / (len(own) + len(found)))
    assert 1 < len(recalls) < 11, "some labels must be missing for this test to say something"
    assert _value(rows, "balanced_accuracy") == (
        pytest.approx(100 * np.mean(recalls)), len(recalls),
    )  # fmt: skip
    assert _value(rows, "macro_F1")[0] == pytest.approx(100 * np.mean(f1s))
    top = [
        sorted(row["scores"], key=row["scores"].get, reverse=True).index(row["label"]) < 5
        for row in rows
    ]
    assert _value(rows, "top5_accuracy")[0] == pytest.approx(100 * np.mean(top))
    assert SCORERS["classification"](rows) == summarize(rows)


def test_a_model_that_cannot_tell_gets_nothing_for_it() -> None:
    rows = [score_row("a", NAMES[3], torch.full((12,), 1 / 12), NAMES)]
    assert _value(rows, "top5_accuracy")[0] == 0.0
    assert _value(rows, "accuracy")[0] == 0.0


def test_several_labels_by_hand() -> None:
    rows = _rows(several=True)
    assert [r.metric for r in summarize(rows)] == ["mAP", "macro_F1", "micro_F1"]
    precisions = []
    for name in NAMES[:11]:
        order = sorted(rows, key=lambda row: -row["scores"][name])
        seen, found = [], 0
        for rank, row in enumerate(order, start=1):
            if name in row["label"]:
                found += 1
                seen.append(found / rank)
        precisions.append(np.mean(seen))
    value, count = _value(rows, "mAP")
    assert (value, count) == (pytest.approx(100 * np.mean(precisions)), 11)
    pairs = [(name in row["label"], name in row["prediction"]) for row in rows for name in NAMES]
    both = sum(a and b for a, b in pairs)
    micro = 2 * both / (sum(a for a, _ in pairs) + sum(b for _, b in pairs))
    assert _value(rows, "micro_F1")[0] == pytest.approx(100 * micro)
    last = per_label(rows)[-1]
    assert (last.count, last.recall, last.average_precision) == (0, 0.0, None)
    assert last.to_dict()["label"] == "label11"


def test_average_precision_with_equal_scores() -> None:
    """The expected value over ties is not taken: they are found together."""
    scores, targets = np.array([0.5, 0.5, 0.5, 0.1]), np.array([False, True, False, True])
    assert average_precision(scores, targets) == pytest.approx(0.5 / 3 + 0.5 * 0.5)
    for order in ([2, 0, 1, 3], [1, 2, 0, 3]):
        assert average_precision(scores[order], targets[order]) == average_precision(
            scores, targets
        )
    with pytest.raises(ValueError, match="something to find"):
        average_precision(scores, np.zeros(4, dtype=bool))


def test_average_precision_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for _ in range(5):
        scores, targets = random.integers(0, 9, 50) / 9, random.random(50) < 0.3
        assert average_precision(scores, targets) == pytest.approx(
            metrics.average_precision_score(targets, scores)
        )


def test_confusion_counts_each_utterance_once() -> None:
    rows = _rows()
    labels, counts = confusion_matrix(rows)
    assert labels == NAMES
    assert counts.sum() == 60
    assert counts.trace() == sum(row["label"] == row["prediction"] for row in rows)
    for row_number, name in enumerate(NAMES):
        assert counts[row_number].sum() == sum(row["label"] == name for row in rows)
    with pytest.raises(ValueError, match="one label each"):
        confusion_matrix(_rows(several=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, r"row 2 \(id 'b'\) needs a number for each label"),
        ({"scores": {"x": float("nan"), "y": 0.1}}, r"row 2 .* needs a number"),
        ({"scores": {"y": 0.5, "x": 0.5}}, "other labels than those of the first row"),
        ({"label": "z"}, r"row 2 .* no score for its label 'z'; there are \['x', 'y'\]"),
        ({"label": None}, "no score for its label None"),
        ({"label": ["x"]}, "some rows have one label and some a list"),
    ],
)
def test_bad_rows_are_named(changes: dict[str, Any], message: str) -> None:
    scores = {"x": 0.5, "y": 0.5}
    rows = [
        {"id": "a", "label": "x", "scores": scores},
        {"id": "b", "label": "y", "scores": scores, **changes},
    ]
    with pytest.raises(ValueError, match=message):
        summarize(rows)


def test_nothing_to_score_is_said() -> None:
    with pytest.raises(ValueError, match="no rows"):
        summarize([])
    with pytest.raises(ValueError, match="3 probabilities for 2 labels"):
        score_row("a", "x", torch.rand(3), ["x", "y"])
