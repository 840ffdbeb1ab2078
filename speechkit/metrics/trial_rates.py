"""Trials of speaker verification, checked and sorted: what all of its measures start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

Array: TypeAlias = "np.ndarray[Any, Any]"
Values: TypeAlias = "Tensor | Array | Sequence[float] | Sequence[int] | Sequence[bool]"


def checked_trials(scores: Values, targets: Values) -> tuple[Array, Array]:
    """Give scores as float64 and labels as booleans, or an error that says what is wrong.

    Parameters and errors are those of `speechkit.metrics.verification.det_curve`.

    Examples
    --------
    >>> checked_trials([1, 2], [0, 1])
    (array([1., 2.]), array([False,  True]))
    """
    values, marks = (
        np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x) for x in (scores, targets)
    )
    if values.ndim != 1 or values.shape != marks.shape:
        raise ValueError(f"expected scores and targets (N,), got {values.shape} and {marks.shape}")
    values = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{len(bad)} scores are not finite, the first is that of trial {bad[0]}")
    if not np.isin(marks, (0, 1)).all():
        raise ValueError(f"targets must be 0 or 1, some are {np.unique(marks)[:5].tolist()}")
    labels = marks.astype(bool)
    if labels.all() or not labels.any():
        raise ValueError(
            f"error rates need trials of both kinds: {int(labels.sum())} targets and "
            f"{int((~labels).sum())} others"
        )
    return values, labels


class SortedTrials:
    """Trials sorted once, of which the error rates can be taken under many weights.

    Parameters
    ----------
    scores, labels : ndarray
        Shape ``(N,)``, as :func:`checked_trials` gives.

    Examples
    --------
    >>> trials = SortedTrials(*checked_trials([0.2, 0.8], [0, 1]))
    >>> trials.thresholds[:2], trials.rates()[1]
    (array([0.2, 0.5]), array([0., 0., 1.]))
    """

    def __init__(self, scores: Array, labels: Array) -> None:
        self.order = np.argsort(scores, kind="stable")
        ordered = scores[self.order]
        self.labels = labels[self.order]
        # Where a run of equal scores ends: point k + 1 rejects all up to there.
        self.ends = np.flatnonzero(np.append(np.diff(ordered) > 0, True))
        distinct = ordered[self.ends]
        middle = distinct[:-1] / 2 + distinct[1:] / 2
        middle = np.where(middle > distinct[:-1], middle, distinct[1:])  # neighbors in float64
        above = np.nextafter(distinct[-1], np.inf)
        self.thresholds = np.concatenate([distinct[:1], middle, [above]])

    def rates(self, weights: Array | None = None) -> tuple[Array, Array]:
        """Give false acceptance and rejection at each threshold, trials counted by weight."""
        ordered = np.ones(len(self.labels)) if weights is None else weights[self.order]
        target = np.where(self.labels, ordered, 0.0)
        rejected = np.concatenate([[0.0], np.cumsum(target)[self.ends]])
        refused = np.concatenate([[0.0], np.cumsum(ordered - target)[self.ends]])
        return 1.0 - refused / refused[-1], rejected / rejected[-1]
