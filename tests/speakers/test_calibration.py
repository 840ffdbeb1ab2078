"""Probabilities that are right, thresholds that follow, refusals where trials say nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from speechkit.data.errors import DataError
from speechkit.speakers.calibration import (
    IsotonicCalibration,
    LogisticCalibration,
    calibrate,
    calibration_from_dict,
    judge,
)


def trials(number: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores of variance 1, means 0 and 3: the log likelihood ratio is 3 s - 4.5."""
    rng = np.random.default_rng(seed)
    targets = rng.random(number) < share
    return rng.normal(3.0 * targets), targets


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
@pytest.mark.parametrize("prior", [0.5, 0.1])
def test_probabilities_are_the_true_ones(method, prior):
    scores, targets = trials(40_000, share=0.3)
    fitted = calibrate(scores, targets, method=method, prior=prior)
    shift = math.log(prior / (1 - prior))
    for score in (0.5, 1.0, 1.5, 2.0, 2.5):
        want = 1 / (1 + math.exp(-(3 * score - 4.5 + shift)))
        assert fitted.probability(score) == pytest.approx(want, abs=0.08)
    assert fitted.threshold == pytest.approx((4.5 - shift) / 3, abs=0.15)
    assert fitted.probability(fitted.threshold) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_a_kept_calibration_judges_the_same(method):
    scores, targets = trials(400, share=0.5)
    fitted = calibrate(scores, targets, method=method)
    again = calibration_from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    last = 0.0
    for score in np.linspace(-3, 6, 50).tolist():
        verdict = judge(score, again)
        assert verdict.same_speaker == (verdict.probability >= 0.5) == (score >= fitted.threshold)
        assert 0 < verdict.probability < 1
        assert verdict.probability >= last
        last = verdict.probability


def test_logistic_is_the_least_cross_entropy():
    """No step away from the fit is better, at a prior of one half and smoothed labels."""
    scores, targets = trials(60, share=0.5, seed=3)
    fitted = calibrate(scores, targets)
    yes, no = targets.sum(), (~targets).sum()
    wanted = np.where(targets, (yes + 1) / (yes + 2), 1 / (no + 2))
    weights = np.where(targets, 0.5 / yes, 0.5 / no)

    def loss(slope: float, offset: float) -> float:
        z = slope * scores + offset
        return float(weights @ (np.logaddexp(0, z) - wanted * z))

    best = loss(fitted.slope, fitted.offset)
    for a, b in [(0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01), (0.01, -0.02)]:
        assert loss(fitted.slope + a, fitted.offset + b) > best


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_separated_scores_stay_finite(method):
    scores, targets = np.array([0.0, 0.1, 0.2, 0.8, 0.9, 1.0]), np.arange(6) > 2
    fitted = calibrate(scores, targets, method=method)
    assert 0.2 < fitted.threshold < 0.8
    assert 0.6 < fitted.probability(1.0) < 1 - 1e-6


def test_isotonic_pools_violators_and_ties():
    scores = [1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    targets = [0, 0, 1, 0, 1, 0, 1, 1]
    fitted = calibrate(scores, targets, method="isotonic")
    # 2 to 3 holds one target of three, 4 and 5 one of two: neither may come before a lower one.
    assert [fitted.probability(s) for s in (2.0, 2.5, 3.0)] == pytest.approx([1 / 3] * 3)
    assert [fitted.probability(s) for s in (4.0, 5.0)] == pytest.approx([0.5] * 2)
    assert fitted.probability(1.0) == pytest.approx(1 / 6)  # one more trial would make it so
    assert fitted.probability(9.0) == pytest.approx(5 / 6)
    assert fitted.threshold == pytest.approx(4.0)


def test_without_a_calibration_there_is_no_decision():
    assert judge(0.9, None) == (0.9, None, None)
    with pytest.raises(ValueError, match="finite"):
        judge(math.nan, None)


def test_trials_that_say_nothing_are_refused():
    with pytest.raises(DataError, match="right way round"):
        calibrate([1.0, 0.0], [0, 1])
    with pytest.raises(DataError, match="right way round"):
        calibrate([1.0, 1.0, 1.0], [0, 1, 0])
    with pytest.raises(DataError, match="logistic"):
        calibrate([0.0, 1.0], [0, 1], method="isotonic", prior=0.01)
    with pytest.raises(ValueError, match="both kinds"):
        calibrate([0.0, 1.0], [1, 1])
    with pytest.raises(ValueError, match="'platt'"):
        calibrate([0.0, 1.0], [0, 1], method="platt")
    with pytest.raises(ValueError, match="prior"):
        calibrate([0.0, 1.0], [0, 1], prior=1.0)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"method": "platt"},
        {"method": "logistic", "slope": 1.0},
        {"method": "logistic", "slope": -1.0, "offset": 0.0},
        {"method": "logistic", "slope": None, "offset": 0.0},
        {"method": "isotonic", "scores": [1.0, 0.0], "probabilities": [0.1, 0.9]},
        {"method": "isotonic", "scores": [0.0, 1.0], "probabilities": [0.1, 1.0]},
        {"method": "isotonic", "scores": [0.0, 1.0], "probabilities": [0.1, 0.2]},
    ],
)
def test_faulty_numbers_are_refused(values):
    with pytest.raises(ValueError, match=r"calibration|slope|pass one half"):
        calibration_from_dict(values)


def test_extreme_scores_do_not_overflow():
    fitted = LogisticCalibration(slope=1e6, offset=0.0)
    assert [fitted.probability(s) for s in (-1e6, 1e6)] == [0.0, 1.0]
    assert IsotonicCalibration((0.0, 1.0), (0.1, 0.9)).probability(1e300) == 0.9
