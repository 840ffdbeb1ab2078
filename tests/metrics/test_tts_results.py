"""Rows of a test of synthesized speech, and what is made of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from speechkit.metrics.results import SCORERS
from speechkit.metrics.tts import compare
from speechkit.metrics.tts_results import spoken_row, summarize

RATE = 8000


def buzz(hertz: float, seconds: float = 0.5) -> torch.Tensor:
    time = torch.arange(int(seconds * RATE)) / RATE
    return 0.1 * sum(torch.sin(2 * torch.pi * k * hertz * time) / k for k in range(1, 9))


def row(name: str = "a", **change: Any) -> dict[str, Any]:
    given = {"text": "one two", "waveform": buzz(110), "sample_rate": RATE, **change}
    return spoken_row(id=name, **given)


def test_a_row_of_everything() -> None:
    made = row(
        hypothesis="one too", similarity=0.5, other_similarity=0.25, stopped=True, voice="jo",
        recording=buzz(100, 0.4), alignment=torch.eye(6)[:4], pieces="abcdef", work_seconds=0.25,
    )  # fmt: skip
    assert json.loads(json.dumps(made)) == made
    distances = compare(buzz(100, 0.4), buzz(110), RATE)._asdict()
    assert made == {
        "id": "a", "reference": "one two", "duration": 0.5, "hypothesis": "one too", "voice": "jo",
        "similarity": 0.5, "other_similarity": 0.25, "stopped": True, "work_seconds": 0.25,
        "alignment_score": made["alignment_score"], "diagonality": 1.0,
        "problems": ["skipped: symbols 4 to 5 ('ef')"],
        **distances,
    }  # fmt: skip
    assert made["alignment_score"] == pytest.approx(4 / 6)
    assert made["f0_rmse_cents"] == pytest.approx(1200 * math.log2(1.1), abs=5)


def test_silent_speech_has_a_row() -> None:
    made = row(waveform=torch.zeros(2000), recording=buzz(100))
    assert made["notes"] == ["no distances: estimate is silent"]
    assert made["duration_ratio"] == 0.5
    assert "mcd" not in made
    none = row(waveform=torch.zeros(0), recording=buzz(100), alignment=torch.zeros(0, 3))
    assert (none["duration"], none["alignment_score"]) == (0.0, 0.0)
    assert none["notes"] == ["no distances: estimate is empty"]
    whispered = row(waveform=torch.randn(4000), recording=0.1 * torch.randn(4000))
    assert "f0_rmse_cents" not in whispered
    assert whispered["notes"] == ["no F0 error: no pair of frames is voiced"]


def test_the_table() -> None:
    rows = [
        {
            "id": "a", "reference": "one two", "hypothesis": "one too", "similarity": 0.6,
            "other_similarity": 0.1, "stopped": True, "alignment_score": 0.9, "problems": [],
            "mcd": 5.0, "f0_rmse_cents": 100.0, "voicing_error": 10.0, "duration_ratio": 1.0,
            "duration": 1.0, "work_seconds": 0.5,
        },
        {
            "id": "b", "reference": "three", "hypothesis": "three", "similarity": 0.2,
            "other_similarity": 0.3, "stopped": False, "alignment_score": 0.3,
            "problems": ["skipped: symbols 1 to 2"], "mcd": 7.0, "voicing_error": 30.0,
            "duration_ratio": 2.0, "duration": 3.0, "work_seconds": 0.5,
        },
        {"id": "c", "reference": "not measured", "duration": 5.0},
    ]  # fmt: skip
    found = [(r.metric, round(r.value, 3), r.unit, r.count) for r in SCORERS["tts"](rows)]
    assert found == [
        ("WER", 33.333, "%", 3),
        ("CER", 8.333, "%", 12),
        ("right speaker", 50.0, "%", 2),
        ("speaker similarity", 0.4, "", 2),
        ("similarity to others", 0.2, "", 2),
        ("stop rate", 50.0, "%", 2),
        ("alignment problems", 50.0, "%", 2),
        ("alignment score", 0.6, "", 2),
        ("MCD", 6.0, "dB", 2),
        ("F0 RMSE", 100.0, "cents", 1),
        ("voicing error", 20.0, "%", 2),
        ("duration ratio", 1.5, "", 2),
        ("real-time factor", 0.25, "", 2),
    ]


def test_what_no_row_has_is_not_in_the_table() -> None:
    assert [r.metric for r in summarize([row(stopped=True)])] == ["stop rate"]
    silent = {"id": "a", "reference": "", "work_seconds": 1.0, "duration": 0.0, "stopped": False}
    assert [r.metric for r in summarize([silent])] == ["stop rate"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mcd": "5"}, r"row 2 \(id 'b'\): 'mcd' is '5', not a number"),
        ({"similarity": math.nan}, r"row 2 \(id 'b'\): 'similarity' is nan"),
        ({"stopped": 1}, "'stopped' is 1, not a bool"),
        ({"problems": "none"}, "'problems' is 'none', not a list"),
        ({"hypothesis": 3}, "'hypothesis' is 3, not a str"),
        ({"hypothesis": "x", "reference": None}, "without a text under 'reference'"),
    ],
)
def test_broken_rows_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarize([row(), row("b") | change])


def test_nothing_to_count() -> None:
    with pytest.raises(ValueError, match="none of 1 rows has anything to count"):
        summarize([row()])
    with pytest.raises(ValueError, match="none of 0 rows"):
        summarize([])
