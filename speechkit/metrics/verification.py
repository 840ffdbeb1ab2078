"""How well scores tell same-speaker trials from the others: EER, minimum detection cost, DET.

A trial is accepted where its score is at or above a threshold. At each threshold there are two
rates: false acceptance (of trials of different speakers) and false rejection (of trials of one
speaker). The points of all thresholds, joined by straight lines, are the DET curve; the lines are
what trials of equal scores give when each is decided by a coin.

The two parameter sets of the detection cost that papers report are ``DCF_PARAMETERS``: a target
prior of 0.01 (VoxCeleb) and of 0.05 (VoxSRC), with both costs 1. Both are normalized: 1 is what
accepting none, or all, would cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from speechkit.metrics.results import Result
from speechkit.metrics.trial_rates import Array, SortedTrials, Values, checked_trials


class DcfParameters(NamedTuple):
    """What a decision costs: the prior of targets, and the price of each kind of error."""

    p_target: float
    c_miss: float = 1.0
    c_false_accept: float = 1.0


DCF_PARAMETERS: Mapping[str, DcfParameters] = {
    "minDCF(0.01)": DcfParameters(0.01),
    "minDCF(0.05)": DcfParameters(0.05),
}


class DetCurve(NamedTuple):
    """Operating points by rising threshold, arrays of equal length ``(K,)``.

    The first accepts all trials, the last none.
    """

    thresholds: Array
    false_accept: Array
    false_reject: Array


class OperatingPoint(NamedTuple):
    """A rate or cost, and the threshold that gives it: accept where ``score >= threshold``."""

    value: float
    threshold: float


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def det_curve(scores: Values, targets: Values) -> DetCurve:
    """Compute both error rates at every threshold that tells two trials apart.

    Parameters
    ----------
    scores : array-like
        Shape ``(N,)``; larger means more alike.
    targets : array-like
        Shape ``(N,)``: true (1) where both sides are one speaker.

    Returns
    -------
    DetCurve
        ``K`` is one more than the number of distinct scores. Thresholds lie half way between
        scores, so that ``scores >= thresholds[k]`` gives exactly the rates of point ``k``.

    Raises
    ------
    ValueError
        Where sizes differ, a score is not finite, a target is neither 0 nor 1, or one of the two
        kinds is missing.

    Examples
    --------
    >>> curve = det_curve([0.1, 0.4, 0.6], [0, 1, 1])
    >>> [round(float(t), 2) for t in curve.thresholds[:3]]
    [0.1, 0.25, 0.5]
    >>> curve.false_accept.tolist(), curve.false_reject.tolist()
    ([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 1.0])
    """
    trials = SortedTrials(*checked_trials(scores, targets))
    return DetCurve(trials.thresholds, *trials.rates())


def det_points(curve: DetCurve, max_points: int = 200) -> list[tuple[float, float]]:
    """Thin a curve out for a plot, on the normal deviate scale that DET plots have.

    Parameters
    ----------
    curve : DetCurve
        From :func:`det_curve`.
    max_points : int
        How many points to keep: the ends, and others spread evenly along the curve.

    Returns
    -------
    list of (float, float)
        False acceptance and false rejection as normal deviates (probits). Rates of 0 and 1,
        which have no place on the scale, are drawn half a step of the curve away from it.

    Examples
    --------
    >>> det_points(det_curve([0, 1, 2, 3], [0, 0, 1, 1]), max_points=3)[1]
    (-1.28..., -1.28...)
    """
    if max_points < 2:
        raise ValueError(f"max_points must be at least 2, is {max_points}")
    bound = 0.5 / len(curve.thresholds)
    rates = np.stack([curve.false_accept, curve.false_reject], axis=1)
    deviates = torch.special.ndtri(torch.from_numpy(np.clip(rates, bound, 1 - bound))).numpy()
    path = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(deviates, axis=0)).sum(axis=1))])
    wanted = np.linspace(0.0, path[-1], max_points)
    kept = np.unique(np.searchsorted(path, wanted).clip(0, len(path) - 1))
    return [(float(x), float(y)) for x, y in deviates[kept]]


def equal_error_rate(scores: Values, targets: Values) -> OperatingPoint:
    """Compute the rate at which false acceptance and false rejection are equal.

    Where no threshold makes them equal, it is where the line between the two nearest points of
    the DET curve does, as when scikit-learn's ``roc_curve`` is interpolated.

    Parameters
    ----------
    scores, targets : array-like
        As for :func:`det_curve`.

    Returns
    -------
    OperatingPoint
        The rate from 0 to 1, and the threshold whose two rates are nearest to each other.

    Raises
    ------
    ValueError
        As :func:`det_curve`.

    Examples
    --------
    >>> equal_error_rate([0.1, 0.2, 0.5, 0.3, 0.6, 0.9], [0, 0, 0, 1, 1, 1]).threshold
    0.4
    >>> equal_error_rate([0.2, 0.5, 0.3, 0.9], [0, 0, 1, 1]).value
    0.5
    """
    trials = SortedTrials(*checked_trials(scores, targets))
    accept, reject = trials.rates()
    nearest = int(np.argmin(np.abs(accept - reject)))
    return OperatingPoint(_crossing(accept, reject), float(trials.thresholds[nearest]))


def min_dcf(
    scores: Values, targets: Values, parameters: DcfParameters = DCF_PARAMETERS["minDCF(0.01)"]
) -> OperatingPoint:
    """Compute the least normalized detection cost over all thresholds.

    ``C = c_miss p_target P_miss + c_fa (1 - p_target) P_fa``, divided by the cost of the better of
    accepting none and accepting all, ``min(c_miss p_target, c_fa (1 - p_target))``.

    Parameters
    ----------
    scores, targets : array-like
        As for :func:`det_curve`.
    parameters : DcfParameters
        The prior and the costs.

    Returns
    -------
    OperatingPoint
        The cost from 0 to 1, and the lowest threshold that gives it.

    Raises
    ------
    ValueError
        As :func:`det_curve`; where the prior is not between 0 and 1 or a cost is not positive.

    References
    ----------
    NIST (2016), "Speaker recognition evaluation plan", equations 1 and 2.

    Examples
    --------
    >>> min_dcf([0.1, 0.5, 0.4, 0.9], [0, 0, 1, 1]).value
    0.5
    """
    _check_parameters(parameters)
    trials = SortedTrials(*checked_trials(scores, targets))
    costs = _costs(*trials.rates(), parameters)
    best = int(np.argmin(costs))
    return OperatingPoint(float(costs[best]), float(trials.thresholds[best]))


def bootstrap_intervals(
    scores: Values,
    targets: Values,
    *,
    speakers: Sequence[tuple[Any, Any]] | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute percentile bootstrap intervals of the EER and of both minimum costs.

    Parameters
    ----------
    scores, targets : array-like
        As for :func:`det_curve`.
    speakers : sequence of pairs, optional
        Who speaks on the two sides of each trial. Speakers are then drawn, not trials, since the
        trials of a speaker go right or wrong together: a trial of speaker ``a`` counts as often as
        ``a`` was drawn, a trial of ``a`` and ``b`` as often as both together (the product). Without
        it, targets and others are drawn trial by trial, and intervals are too narrow wherever
        speakers have several trials.
    num_resamples : int
        How many times to draw.
    confidence : float
        Share of the resamples that lies within.
    seed : int
        Of the draws.

    Returns
    -------
    dict
        ``"EER"`` (a rate from 0 to 1) and the names of `DCF_PARAMETERS`, with an `Interval` each.

    Raises
    ------
    ValueError
        As :func:`det_curve`; where `speakers` has another length, or a draw of speakers rarely has
        trials of both kinds (fewer than about three speakers).

    References
    ----------
    Bolle, Ratha and Pankanti (2004), "Error analysis of pattern recognition systems: the subsets
    bootstrap"; Poh and Bengio (2007), "Estimating the confidence interval of expected performance
    curve in biometric authentication using joint bootstrap".

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> targets = np.arange(400) % 2
    >>> low, high = bootstrap_intervals(
    ...     rng.normal(2.0 * targets), targets, num_resamples=100
    ... )["EER"]
    >>> bool(low < 0.159 < high), bool(high - low < 0.1)  # the true EER is Phi(-1)
    (True, True)
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples must be at least 1, is {num_resamples}; confidence must be between "
            f"0 and 1, is {confidence}"
        )
    values, labels = checked_trials(scores, targets)
    trials = SortedTrials(values, labels)
    rng = np.random.default_rng(seed)
    draw = _trial_draw(labels) if speakers is None else _speaker_draw(speakers, labels)
    found: dict[str, list[float]] = {name: [] for name in ("EER", *DCF_PARAMETERS)}
    for _ in range(num_resamples):
        rates = trials.rates(draw(rng))
        found["EER"].append(_crossing(*rates))
        for name, parameters in DCF_PARAMETERS.items():
            found[name].append(float(_costs(*rates, parameters).min()))
    bounds = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {name: Interval(*map(float, np.quantile(x, bounds))) for name, x in found.items()}


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a speaker model's results from its per-trial rows.

    Parameters
    ----------
    rows : iterable of dict
        With ``"score"`` (a number) and ``"target"`` (true, false, 1 or 0); other keys are ignored.

    Returns
    -------
    list of Result
        EER in percent and both minimum costs, each over all trials.

    Raises
    ------
    ValueError
        Where a row lacks one of the two or has no finite score (its number and id are named), or
        one kind of trial is missing.

    Examples
    --------
    >>> rows = [{"score": s, "target": s > 0} for s in (-2.0, -1.0, 1.0)]
    >>> [(r.metric, r.value, r.unit, r.count) for r in summarize(rows)]
    [('EER', 0.0, '%', 3), ('minDCF(0.01)', 0.0, '', 3), ('minDCF(0.05)', 0.0, '', 3)]
    """
    scores, targets = [], []
    for number, row in enumerate(rows, start=1):
        score, target = row.get("score"), row.get("target")
        known = isinstance(score, (int, float)) and not isinstance(score, bool)
        value = float(score) if known else math.nan  # type: ignore[arg-type]
        if not math.isfinite(value) or target not in (0, 1):  # True == 1
            raise ValueError(
                f"row {number} (id {row.get('id')!r}) needs a finite 'score' and a 'target' of "
                f"true or false, has score {score!r} and target {target!r}"
            )
        scores.append(value)
        targets.append(bool(target))
    count = len(scores)
    results = [Result("EER", 100 * equal_error_rate(scores, targets).value, "%", count)]
    for name, parameters in DCF_PARAMETERS.items():
        results.append(Result(name, min_dcf(scores, targets, parameters).value, "", count))
    return results


def _check_parameters(parameters: DcfParameters) -> None:
    costs = (parameters.c_miss, parameters.c_false_accept)
    if not 0 < parameters.p_target < 1 or not all(0 < cost < math.inf for cost in costs):
        raise ValueError(f"p_target must be between 0 and 1 and costs positive, got {parameters}")


def _crossing(accept: Array, reject: Array) -> float:
    """Rate where the line through the operating points meets accept = reject."""
    # accept falls from 1 and reject rises from 0, so the difference has one change of sign.
    after = int(np.argmax(reject >= accept))
    before = after - 1
    gaps = accept[before] - reject[before], reject[after] - accept[after]
    share = gaps[0] / (gaps[0] + gaps[1])
    return float(accept[before] + share * (accept[after] - accept[before]))


def _costs(accept: Array, reject: Array, parameters: DcfParameters) -> Array:
    miss = parameters.c_miss * parameters.p_target
    false_accept = parameters.c_false_accept * (1 - parameters.p_target)
    costs: Array = (miss * reject + false_accept * accept) / min(miss, false_accept)
    return costs


def _trial_draw(labels: Array) -> Callable[[np.random.Generator], Array]:
    """Draw trials with replacement, each kind by itself."""
    kinds = [np.flatnonzero(labels), np.flatnonzero(~labels)]

    def draw(rng: np.random.Generator) -> Array:
        weights = np.zeros(len(labels))
        for kind in kinds:
            drawn = rng.integers(len(kind), size=len(kind))
            weights[kind] = np.bincount(drawn, minlength=len(kind))
        return weights

    return draw


def _speaker_draw(
    speakers: Sequence[tuple[Any, Any]], labels: Array
) -> Callable[[np.random.Generator], Array]:
    """Draw speakers with replacement, again where a kind of trial is left without any."""
    if len(speakers) != len(labels):
        raise ValueError(f"{len(speakers)} pairs of speakers for {len(labels)} trials")
    index = {name: i for i, name in enumerate(dict.fromkeys(n for pair in speakers for n in pair))}
    first, second = np.array([[index[a], index[b]] for a, b in speakers]).T
    wrong = np.flatnonzero((first == second) != labels)
    if len(wrong):
        raise ValueError(
            f"trial {wrong[0]} has target {bool(labels[wrong[0]])} and the speakers "
            f"{speakers[wrong[0]]}"
        )

    def draw(rng: np.random.Generator) -> Array:
        for _ in range(100):
            times = np.bincount(rng.integers(len(index), size=len(index)), minlength=len(index))
            weights = np.where(labels, times[first], times[first] * times[second]).astype(float)
            if weights[labels].any() and weights[~labels].any():
                return weights
        raise ValueError(f"too few speakers to draw from: {len(index)}")

    return draw
