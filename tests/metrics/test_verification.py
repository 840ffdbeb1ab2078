"""EER, minimum cost, DET points and intervals, against loops over every threshold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechkit.metrics.verification import (
    DCF_PARAMETERS,
    DcfParameters,
    bootstrap_intervals,
    det_curve,
    det_points,
    equal_error_rate,
    min_dcf,
    summarize,
)

# Few distinct values, so that scores often tie.
TRIALS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=14).filter(
    lambda pairs: len({target for _, target in pairs}) == 2
)


def brute_points(scores: list[float], targets: list[bool]) -> list[tuple[float, float]]:
    """(false accept, false reject) at every score as threshold and above the last."""
    yes = [s for s, t in zip(scores, targets) if t]
    no = [s for s, t in zip(scores, targets) if not t]
    return [
        (sum(s >= t for s in no) / len(no), sum(s < t for s in yes) / len(yes))
        for t in [*sorted(set(scores)), math.inf]
    ]


def brute_eer(points: list[tuple[float, float]]) -> float:
    for (a0, r0), (a1, r1) in itertools.pairwise(points):
        # a0 + u (a1 - a0) = r0 + u (r1 - r0)
        slope = (a1 - a0) - (r1 - r0)
        if slope and 0 <= (u := (r0 - a0) / slope) <= 1:
            return a0 + u * (a1 - a0)
    raise AssertionError("the curve goes from (1, 0) to (0, 1)")


@given(TRIALS)
def test_matches_loops_over_all_thresholds(pairs):
    scores, targets = [float(s) for s, _ in pairs], [t for _, t in pairs]
    points = brute_points(scores, targets)
    curve = det_curve(scores, targets)
    np.testing.assert_allclose(np.stack(curve[1:], axis=1), points, atol=1e-12)
    assert equal_error_rate(scores, targets).value == pytest.approx(brute_eer(points), abs=1e-12)
    for p, c_miss, c_fa in [(0.01, 1, 1), (0.05, 1, 1), (0.5, 10, 1), (0.9, 1, 2)]:
        worst = min(c_miss * p, c_fa * (1 - p))
        want = min(c_miss * p * r + c_fa * (1 - p) * a for a, r in points) / worst
        found = min_dcf(scores, targets, DcfParameters(p, c_miss, c_fa))
        assert found.value == pytest.approx(want, abs=1e-12)


@given(TRIALS)
def test_thresholds_give_the_rates_of_their_points(pairs):
    scores = np.array([s for s, _ in pairs], dtype=float) * 5e-324  # neighbors in float64
    targets = np.array([t for _, t in pairs])
    for threshold, accept, reject in zip(*det_curve(scores, targets)):
        accepted = scores >= threshold
        assert accepted[~targets].mean() == pytest.approx(accept)
        assert (~accepted[targets]).mean() == pytest.approx(reject)


def test_separated_reversed_and_constant_scores():
    targets = [0, 0, 1, 1]
    assert equal_error_rate([0.0, 1.0, 3.0, 4.0], targets) == (0.0, 2.0)
    assert equal_error_rate([4.0, 3.0, 1.0, 0.0], targets).value == 1.0
    assert equal_error_rate([7.0] * 4, targets).value == 0.5
    assert [min_dcf([7.0] * 4, targets, p).value for p in DCF_PARAMETERS.values()] == [1.0, 1.0]


def test_two_normal_distributions():
    """Means 2 apart: the EER is Phi(-1), and thresholds lie half way."""
    rng = np.random.default_rng(0)
    targets = np.arange(200_000) % 4 == 0
    scores = rng.normal(2.0 * targets)
    value, threshold = equal_error_rate(torch.from_numpy(scores), torch.from_numpy(targets))
    assert value == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=0.002)
    assert threshold == pytest.approx(1.0, abs=0.02)
    # The cost is least where the likelihood ratio is (1 - p) / p: s = 1 + ln(99) / 2.
    value, threshold = min_dcf(scores, targets)
    best = 1 + math.log(99) / 2
    miss, accept = (0.5 * math.erfc(x / math.sqrt(2)) for x in (2 - best, best))
    assert value == pytest.approx(miss + 99 * accept, abs=0.01)
    assert threshold == pytest.approx(best, abs=0.2)
    # A straight line of slope -1 on the scale of DET plots.
    points = np.array(det_points(det_curve(scores, targets)))
    inner = points[(np.abs(points) < 2).all(axis=1)]
    assert len(inner) > 30
    np.testing.assert_allclose(inner.sum(axis=1), -2.0, atol=0.1)


def test_intervals_cover_and_narrow():
    """Of 60 data sets, about 95 % of the intervals hold the true EER (95 % of 60 is 57)."""
    rng = np.random.default_rng(1)
    targets = np.arange(300) % 2
    hits, widths = 0, []
    for number in range(60):
        low, high = bootstrap_intervals(
            rng.normal(2.0 * targets), targets, num_resamples=200, seed=number
        )["EER"]
        hits += low <= 0.1587 <= high
        widths.append(high - low)
    assert hits >= 51
    many = np.arange(4800) % 2
    narrow = bootstrap_intervals(rng.normal(2.0 * many), many, num_resamples=200)["EER"]
    assert (narrow.high - narrow.low) / np.mean(widths) == pytest.approx(0.25, abs=0.1)


def test_speakers_drawn_as_a_whole_give_wider_intervals():
    """Each speaker has one voice: copies of a trial tell nothing new."""
    rng = np.random.default_rng(2)
    copies, people = 20, 30
    pairs = [(a, a) for a in range(people)] + [(a, (a + 1) % people) for a in range(people)]
    scores = np.repeat(rng.normal([2.0 * (a == b) for a, b in pairs]), copies)
    speakers = [pair for pair in pairs for _ in range(copies)]
    targets = [a == b for a, b in speakers]
    by_trial = bootstrap_intervals(scores, targets, num_resamples=200)["EER"]
    by_speaker = bootstrap_intervals(scores, targets, speakers=speakers, num_resamples=200)["EER"]
    assert by_speaker.high - by_speaker.low > 2 * (by_trial.high - by_trial.low)


def test_intervals_are_the_same_for_a_seed():
    targets = np.arange(60) % 2
    scores = np.random.default_rng(0).normal(targets)
    first, again, other = (
        bootstrap_intervals(scores, targets, num_resamples=50, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([0.0, 1.0], [1, 1], "2 targets and 0 others"),
        ([], [], "0 targets and 0 others"),
        ([0.0, math.nan], [0, 1], "trial 1"),
        ([0.0, math.inf], [0, 1], "not finite"),
        ([0.0, 1.0, 2.0], [0, 1], r"\(3,\) and \(2,\)"),
        ([0.0, 1.0], [0, 2], "0 or 1"),
    ],
)
def test_bad_trials_are_named(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        equal_error_rate(scores, targets)


def test_bad_arguments_are_named():
    scores, targets = [0.0, 1.0], [0, 1]
    with pytest.raises(ValueError, match="p_target"):
        min_dcf(scores, targets, DcfParameters(0.0))
    with pytest.raises(ValueError, match="1 pairs of speakers for 2"):
        bootstrap_intervals(scores, targets, speakers=[("a", "b")])
    with pytest.raises(ValueError, match="trial 1 has target True"):
        bootstrap_intervals(scores, targets, speakers=[("a", "b"), ("a", "b")])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_intervals(scores, targets, confidence=1.5)
    with pytest.raises(ValueError, match="max_points"):
        det_points(det_curve(scores, targets), max_points=1)


def test_rows_become_results():
    rows = [
        {"id": "a", "score": 0.9, "target": True},
        {"id": "b", "score": 0.2, "target": True},
        {"id": "c", "score": 0.5, "target": 0},
        {"id": "d", "score": 0.1, "target": False},
    ]
    results = {r.metric: (r.value, r.count) for r in summarize(rows)}
    assert results == {"EER": (50.0, 4), "minDCF(0.01)": (0.5, 4), "minDCF(0.05)": (0.5, 4)}
    for bad in ({"score": "x"}, {"target": None}, {"score": math.nan}):
        with pytest.raises(ValueError, match=r"row 2 \(id 'b'\)"):
            summarize([rows[0], {**rows[1], **bad}])
