"""Detection errors against a count of frames, and which rows there can be."""

from __future__ import annotations

import random

import pytest

from speechkit.metrics.results import SCORERS
from speechkit.metrics.voice_activity import detection_errors, summarize


def spans(seed: int) -> list[tuple[float, float]]:
    """Draw stretches of whole tenths of a second, which may touch and overlap."""
    generator = random.Random(seed)
    starts = [generator.randrange(90) for _ in range(6)]
    return [(start / 10, (start + generator.randrange(1, 10)) / 10) for start in starts]


def frames(regions: list[tuple[float, float]]) -> set[int]:
    """List the tenths of a second that are covered."""
    return {k for a, b in regions for k in range(round(10 * a), round(10 * b))}


@pytest.mark.parametrize("seed", range(8))
def test_is_what_frames_say(seed: int) -> None:
    reference, hypothesis = spans(seed), spans(100 + seed)
    errors = detection_errors(reference, hypothesis, 10.0)
    there, here = frames(reference), frames(hypothesis)
    assert errors.total == pytest.approx(len(there) / 10)
    assert errors.missed == pytest.approx(len(there - here) / 10)
    assert errors.false_alarm == pytest.approx(len(here - there) / 10)
    row = {"id": "a", "duration": 10.0, "speech": {"reference": reference, "hypothesis": reference}}
    row["overlap"] = {"reference": reference, "hypothesis": hypothesis}
    found = {result.metric: result.value for result in summarize([row])}
    assert found["DetER"] == 0.0
    assert found["F1"] == 100.0
    precision, recall = (len(there & here) / len(side) for side in (here, there))
    assert found["overlap F1"] == pytest.approx(200 * precision * recall / (precision + recall))
    assert found["overlap DetER"] == pytest.approx(
        found["overlap missed"] + found["overlap false alarm"]
    )


def test_pools_recordings_and_never_is_everything_missed() -> None:
    def row(found: list[list[float]], overlap: list[list[float]]) -> dict[str, object]:
        return {
            "id": "a",
            "duration": 10.0,
            "speech": {"reference": [[0, 8]], "hypothesis": found},
            "overlap": {"reference": overlap, "hypothesis": []},
        }

    results = SCORERS["voice_activity"]([row([[0, 8]], [[1, 2]]), row([], [])])
    values = {result.metric: (result.value, result.count) for result in results}
    assert list(values)[:2] == ["DetER", "overlap DetER"]
    assert values["DetER"] == (50.0, 2)
    assert values["overlap missed"] == (100.0, 2)
    assert values["overlap F1"] == (0.0, 2)
    # Without any overlap to find there is no rate, and no NaN.
    alone = {result.metric for result in summarize([row([], [])])}
    assert alone == {"DetER", "F1", "missed", "false alarm"}


def test_rows_that_are_none() -> None:
    good = {"id": "a", "duration": 9.0, "speech": {"reference": [[0, 1]], "hypothesis": []}}
    for change in ({"speech": {"reference": [[0, 1]]}}, {"duration": None},
                   {"speech": {"reference": [[2, 1]], "hypothesis": []}}):  # fmt: skip
        with pytest.raises(ValueError, match=r"row 2 \(id 'a'\)"):
            summarize([good, {**good, **change}])
    silent = {**good, "speech": {"reference": [], "hypothesis": [[0, 1]]}}
    with pytest.raises(ValueError, match="the references of 1 rows have no speech"):
        summarize([silent])
