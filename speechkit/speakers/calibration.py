"""From scores to decisions and probabilities, fitted on trials.

A probability needs a prior: how often two recordings are of one speaker where the model is used.
The decision is "one speaker" where the probability is at least one half, so the threshold follows
from the prior too. Costs that differ are a prior in disguise: with a miss that costs ``c`` times a
false acceptance, ``c p / (c p + 1 - p)``.

A calibration is a few plain numbers (``to_dict``), so that it fits into a model folder.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from speechkit.data.errors import DataError
from speechkit.metrics.trial_rates import Array, Values, checked_trials

METHODS = ("logistic", "isotonic")


class Verdict(NamedTuple):
    """What two recordings' score says.

    ``same_speaker`` and ``probability`` are None where no calibration was fitted: a score alone
    does not tell.
    """

    score: float
    same_speaker: bool | None
    probability: float | None


@dataclass(frozen=True, slots=True)
class LogisticCalibration:
    """Probability ``sigmoid(slope * score + offset)``.

    Examples
    --------
    >>> calibration = LogisticCalibration(slope=10.0, offset=-3.0)
    >>> calibration.threshold, calibration.probability(0.3)
    (0.3, 0.5)
    """

    slope: float
    offset: float

    def __post_init__(self) -> None:
        if not (0 < self.slope < math.inf and math.isfinite(self.offset)):
            raise ValueError(f"slope must be positive and both finite: {self}")

    @property
    def threshold(self) -> float:
        """The score from which on the decision is "one speaker"."""
        return -self.offset / self.slope

    def probability(self, score: float) -> float:
        """Compute the probability that both are one speaker."""
        x = self.slope * score + self.offset
        return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold and `calibration_from_dict` takes."""
        return {"method": "logistic", "slope": self.slope, "offset": self.offset}


@dataclass(frozen=True, slots=True)
class IsotonicCalibration:
    """Probability by a rising curve: linear between the given scores, level outside.

    Examples
    --------
    >>> calibration = IsotonicCalibration(scores=(0.0, 1.0), probabilities=(0.1, 0.9))
    >>> calibration.threshold, calibration.probability(0.25), calibration.probability(-7)
    (0.5, 0.3..., 0.1)
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a <= b for x in (self.scores, self.probabilities) for a, b in pairwise(x))
        bounded = all(0 < p < 1 for p in self.probabilities)
        if len(self.scores) != len(self.probabilities) or not rising or not bounded:
            raise ValueError(
                "an isotonic calibration needs as many rising probabilities between 0 and 1 as "
                f"rising scores, got {self}"
            )
        if not (self.probabilities and self.probabilities[0] < 0.5 <= self.probabilities[-1]):
            raise ValueError(f"the probabilities do not pass one half: {self.probabilities[:10]}")

    @property
    def threshold(self) -> float:
        """The lowest score from which on the decision is "one speaker"."""
        after = bisect.bisect_left(self.probabilities, 0.5)
        (s0, s1), (p0, p1) = (x[after - 1 : after + 1] for x in (self.scores, self.probabilities))
        return s0 + (s1 - s0) * (0.5 - p0) / (p1 - p0)

    def probability(self, score: float) -> float:
        """Compute the probability that both are one speaker."""
        return float(np.interp(score, self.scores, self.probabilities))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold and `calibration_from_dict` takes."""
        scores, probabilities = list(self.scores), list(self.probabilities)
        return {"method": "isotonic", "scores": scores, "probabilities": probabilities}


Calibration: TypeAlias = "LogisticCalibration | IsotonicCalibration"


def calibrate(
    scores: Values, targets: Values, *, method: str = "logistic", prior: float = 0.5
) -> Calibration:
    """Fit how probable one speaker is at a score.

    Parameters
    ----------
    scores : array-like
        Shape ``(N,)``: of trials like those to come, on recordings the model was not trained on.
    targets : array-like
        Shape ``(N,)``: true where both sides are one speaker.
    method : str
        ``"logistic"``: two numbers, for tens of trials and more. ``"isotonic"``: any rising curve
        (pool adjacent violators), for thousands.
    prior : float
        How often both sides will be one speaker. The trials may have another share: each kind
        counts as a whole.

    Returns
    -------
    LogisticCalibration or IsotonicCalibration
        With ``threshold`` and ``probability(score)``.

    Raises
    ------
    ValueError
        As `speechkit.metrics.verification.det_curve`; where the method is unknown or the prior not
        between 0 and 1.
    DataError
        Where the scores of targets are not the higher ones, or trials are too few for an isotonic
        curve to pass one half.

    References
    ----------
    Brummer and du Preez (2006), "Application-independent evaluation of speaker detection",
    section 6; Platt (1999), "Probabilistic outputs for support vector machines" (labels moved off
    0 and 1, so that separated scores give a finite slope; the logistic curve is fitted at a prior
    of one half and then moved to the prior).

    Examples
    --------
    >>> calibration = calibrate([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1])
    >>> round(calibration.threshold, 6), calibration.probability(0.9) > 0.75
    (0.5, True)
    """
    if method not in METHODS or not 0 < prior < 1:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}, is {method!r}; prior must be between 0 "
            f"and 1, is {prior}"
        )
    values, labels = checked_trials(scores, targets)
    if values[labels].mean() <= values[~labels].mean():
        raise DataError(
            f"trials of one speaker score {values[labels].mean():.4g} on average, not above the "
            f"others' {values[~labels].mean():.4g}: are the labels the right way round, and the "
            "model trained?"
        )
    return (_logistic if method == "logistic" else _isotonic)(values, labels, prior)


def calibration_from_dict(values: Mapping[str, Any]) -> Calibration:
    """Build a calibration from ``to_dict``'s dictionary.

    Raises
    ------
    ValueError
        Where the method is unknown or its numbers are missing or wrong.

    Examples
    --------
    >>> fitted = LogisticCalibration(slope=9.0, offset=-3.0)
    >>> calibration_from_dict(fitted.to_dict()) == fitted
    True
    """
    method = values.get("method")
    try:
        if method == "logistic":
            return LogisticCalibration(float(values["slope"]), float(values["offset"]))
        if method == "isotonic":
            scores, probabilities = (
                tuple(float(x) for x in values[key]) for key in ("scores", "probabilities")
            )
            return IsotonicCalibration(scores, probabilities)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a {method} calibration with faulty numbers: {error!r}") from error
    raise ValueError(f"no calibration method {method!r}; there are: {', '.join(METHODS)}")


def judge(score: float, calibration: Calibration | None) -> Verdict:
    """Decide on a score; without a calibration there is no decision and no probability.

    Examples
    --------
    >>> judge(0.75, None)
    Verdict(score=0.75, same_speaker=None, probability=None)
    >>> judge(0.75, LogisticCalibration(slope=2.0, offset=-1.5))
    Verdict(score=0.75, same_speaker=True, probability=0.5)
    """
    if not math.isfinite(score):
        raise ValueError(f"a score must be finite, is {score}")
    if calibration is None:
        return Verdict(score, None, None)
    return Verdict(score, score >= calibration.threshold, calibration.probability(score))


def _weights(labels: Array, prior: float) -> Array:
    """Let targets weigh the prior together, and the others the rest."""
    weights: Array = np.where(labels, prior / labels.sum(), (1 - prior) / (~labels).sum())
    return weights


def _logistic(values: Array, labels: Array, prior: float) -> LogisticCalibration:
    """Newton's method on the balanced cross entropy, with halved steps where it would rise."""
    center, scale = float(values.mean()), float(values.std())
    x = np.stack([(values - center) / scale, np.ones(len(values))], axis=1)
    yes, no = int(labels.sum()), int((~labels).sum())
    wanted = np.where(labels, (yes + 1) / (yes + 2), 1 / (no + 2))
    weights = _weights(labels, 0.5)

    def loss(at: Array) -> float:
        z = x @ at
        return float(weights @ (np.logaddexp(0.0, z) - wanted * z))

    fitted = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ fitted, -500, 500)))
        gradient = x.T @ (weights * (p - wanted))
        if float(np.abs(gradient).max()) < 1e-12:
            break
        step = np.linalg.solve((x.T * (weights * p * (1 - p))) @ x + 1e-12 * np.eye(2), gradient)
        while loss(fitted - step) > loss(fitted) and float(np.abs(step).max()) > 1e-14:
            step = step / 2
        fitted = fitted - step
    slope = float(fitted[0]) / scale
    if slope <= 0:
        raise DataError("trials of one speaker do not score higher than others: the slope is 0")
    offset = float(fitted[1]) - slope * center + math.log(prior / (1 - prior))
    return LogisticCalibration(slope, offset)


def _isotonic(values: Array, labels: Array, prior: float) -> IsotonicCalibration:
    """Pool adjacent violators; 0 and 1 become what so few trials can tell."""
    distinct, place = np.unique(values, return_inverse=True)  # equal scores, equal probability
    weights = _weights(labels, prior)
    whole = np.bincount(place, weights=weights)
    target = np.bincount(place, weights=weights * labels)
    blocks: list[list[float]] = []  # weight of targets, weight, lowest score, highest score
    for block in np.stack([target, whole, distinct, distinct], axis=1).tolist():
        blocks.append(block)
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1], blocks[-1][2], last[3]]
    least = prior / (prior + (1 - prior) * (int((~labels).sum()) + 1))
    most = prior * (int(labels.sum()) + 1) / (prior * (int(labels.sum()) + 1) + 1 - prior)
    scores: list[float] = []
    probabilities: list[float] = []
    for yes, weight, low, high in blocks:
        p = min(max(yes / weight, least), most)
        for score in (low, high) if high > low else (low,):
            scores.append(float(score))
            probabilities.append(float(p))
    if not probabilities[0] < 0.5 <= probabilities[-1]:
        raise DataError(
            f"no score makes one speaker {'less' if probabilities[0] >= 0.5 else 'more'} likely "
            f"than not at a prior of {prior} with {len(values)} trials: take method='logistic', "
            "or more trials"
        )
    return IsotonicCalibration(tuple(scores), tuple(probabilities))
