"""How well labels were found: accuracy, per label, confusion, mean average precision.

A row is one utterance: ``"id"``, ``"label"`` (a name, or of a multi-label task the list of names)
and ``"scores"``, the probability of each of the model's labels, in its order. What is found is the
label with the largest score, or in a multi-label task each one whose score is at least one half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from speechkit.metrics.results import Result

_THRESHOLD = 0.5
_TOP = 5


@dataclass(frozen=True, slots=True)
class LabelScores:
    """How well one label was found.

    Attributes
    ----------
    label : str
        Its name.
    count : int
        Utterances that have it.
    precision, recall, f1 : float
        Shares in [0, 1]; a share of nothing is 0.
    average_precision : float or None
        Area under precision over recall; None where no utterance has the label.
    """

    label: str
    count: int
    precision: float
    recall: float
    f1: float
    average_precision: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)


class Confusion(NamedTuple):
    """Which labels were taken for which.

    Attributes
    ----------
    labels : list of str
        Of the rows and of the columns.
    counts : np.ndarray
        Shape ``(C, C)``, int64: utterances of the row's label found to be the column's.
    """

    labels: list[str]
    counts: np.ndarray


class _Table(NamedTuple):
    labels: list[str]
    targets: np.ndarray  # (N, C), bool
    scores: np.ndarray  # (N, C), float64
    multi_label: bool

    @property
    def found(self) -> np.ndarray:
        """What was found, (N, C) bool."""
        if self.multi_label:
            return self.scores >= _THRESHOLD
        return np.arange(len(self.labels)) == self.scores.argmax(1)[:, None]


def score_row(
    utterance_id: str,
    label: str | Sequence[str],
    probabilities: Tensor,
    labels: Sequence[str],
) -> dict[str, Any]:
    """Make an utterance's row.

    Parameters
    ----------
    utterance_id : str
        Its id.
    label : str or sequence of str
        What it is; several names of a multi-label task.
    probabilities : Tensor
        Shape ``(C,)``.
    labels : sequence of str
        Names of the ``C`` labels.

    Returns
    -------
    dict
        What JSON can hold: ``"id"``, ``"label"``, ``"prediction"`` and ``"scores"`` (rounded to
        six digits).

    Raises
    ------
    ValueError
        If there is another number of probabilities than of labels.

    Examples
    --------
    >>> import torch
    >>> score_row("a", "dog", torch.tensor([0.25, 0.75]), ["cat", "dog"])
    {'id': 'a', 'label': 'dog', 'prediction': 'dog', 'scores': {'cat': 0.25, 'dog': 0.75}}
    """
    values = [round(value, 6) for value in probabilities.detach().float().tolist()]
    if len(values) != len(labels):
        raise ValueError(f"{utterance_id}: {len(values)} probabilities for {len(labels)} labels")
    scores = dict(zip(labels, values))
    if isinstance(label, str):
        return {
            "id": utterance_id,
            "label": label,
            "prediction": labels[int(np.argmax(values))],
            "scores": scores,
        }
    found = [name for name, value in scores.items() if value >= _THRESHOLD]
    return {"id": utterance_id, "label": list(label), "prediction": found, "scores": scores}


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a classifier's results from its rows, one an utterance.

    Parameters
    ----------
    rows : iterable of dict
        As `score_row` makes them; other keys are ignored.

    Returns
    -------
    list of Result
        In percent. Of one label an utterance: ``accuracy``, ``balanced_accuracy`` (the mean recall
        of the labels that occur), ``macro_F1`` and, where there are ten labels or more,
        ``top5_accuracy``. Of several: ``mAP`` (over the labels that occur; counted are these),
        ``macro_F1`` and ``micro_F1``.

    Raises
    ------
    ValueError
        If there is no row, or a row lacks its label or scores, has other labels than the first or
        a label without a score (its number and id are named).

    Examples
    --------
    >>> rows = [
    ...     {"id": "a", "label": "cat", "scores": {"cat": 0.9, "dog": 0.1}},
    ...     {"id": "b", "label": "cat", "scores": {"cat": 0.7, "dog": 0.3}},
    ...     {"id": "c", "label": "dog", "scores": {"cat": 0.6, "dog": 0.4}},
    ... ]
    >>> [(r.metric, round(r.value, 2), r.count) for r in summarize(rows)]
    [('accuracy', 66.67, 3), ('balanced_accuracy', 50.0, 2), ('macro_F1', 40.0, 2)]
    """
    table = _read(rows)
    each = [scores for scores in _per_label(table) if scores.count]
    size = len(table.targets)
    macro_f1 = Result("macro_F1", _mean([s.f1 for s in each]), "%", len(each))
    if table.multi_label:
        precisions = [s.average_precision for s in each if s.average_precision is not None]
        found, right = int(table.found.sum()), int((table.found & table.targets).sum())
        micro = _f1(right, found, int(table.targets.sum()))
        return [
            Result("mAP", _mean(precisions), "%", len(precisions)),
            macro_f1,
            Result("micro_F1", 100.0 * micro, "%", size),
        ]
    own = (table.scores * table.targets).sum(1, keepdims=True)
    results = [
        Result("accuracy", _mean((table.found & table.targets).any(1)), "%", size),
        Result("balanced_accuracy", _mean([s.recall for s in each]), "%", len(each)),
        macro_f1,
    ]
    if len(table.labels) >= 2 * _TOP:
        # An equal score counts as better: a model that cannot tell gets nothing for it.
        rank = (table.scores >= own).sum(1)
        results.append(Result(f"top{_TOP}_accuracy", _mean(rank <= _TOP), "%", size))
    return results


def per_label(rows: Iterable[dict[str, Any]]) -> list[LabelScores]:
    """Score each of the model's labels by itself, in its order.

    Parameters
    ----------
    rows : iterable of dict
        As for `summarize`, whose errors this raises.

    Examples
    --------
    >>> rows = [{"id": "a", "label": ["cat"], "scores": {"cat": 0.9, "dog": 0.6}}]
    >>> [(s.label, s.count, s.precision, s.average_precision) for s in per_label(rows)]
    [('cat', 1, 1.0, 1.0), ('dog', 0, 0.0, None)]
    """
    return _per_label(_read(rows))


def confusion_matrix(rows: Iterable[dict[str, Any]]) -> Confusion:
    """Count which labels were taken for which.

    Parameters
    ----------
    rows : iterable of dict
        As for `summarize`, each with one label.

    Raises
    ------
    ValueError
        Where rows have several labels; and as `summarize`.

    Examples
    --------
    >>> rows = [{"id": "a", "label": "cat", "scores": {"cat": 0.2, "dog": 0.8}}]
    >>> confusion_matrix(rows).counts.tolist()
    [[0, 1], [0, 0]]
    """
    table = _read(rows)
    if table.multi_label:
        raise ValueError("a confusion matrix needs utterances with one label each")
    size = len(table.labels)
    cells = table.targets.argmax(1) * size + table.scores.argmax(1)
    return Confusion(table.labels, np.bincount(cells, minlength=size * size).reshape(size, size))


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Area under precision over recall, as steps: the sum of ``(R_n - R_{n-1}) P_n``.

    Equal scores are found together, so that their order changes nothing.

    Parameters
    ----------
    scores : np.ndarray
        Shape ``(N,)``.
    targets : np.ndarray
        Shape ``(N,)``, bool.

    Raises
    ------
    ValueError
        If shapes disagree, or nothing is to be found.

    Examples
    --------
    >>> round(average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, False, True])), 4)
    0.8333
    """
    targets = np.asarray(targets, dtype=bool)
    if scores.ndim != 1 or scores.shape != targets.shape or not targets.any():
        raise ValueError(
            f"need scores and targets (N,) with something to find, got {scores.shape} and "
            f"{targets.shape} with {int(targets.sum())}"
        )
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(targets[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision, recall = right[last] / (last + 1), right[last] / right[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _per_label(table: _Table) -> list[LabelScores]:
    found, scores = table.found, []
    for number, label in enumerate(table.labels):
        wanted = table.targets[:, number]
        right = int((wanted & found[:, number]).sum())
        num_found, count = int(found[:, number].sum()), int(wanted.sum())
        scores.append(
            LabelScores(
                label=label,
                count=count,
                precision=right / num_found if num_found else 0.0,
                recall=right / count if count else 0.0,
                f1=_f1(right, num_found, count),
                average_precision=(
                    average_precision(table.scores[:, number], wanted) if count else None
                ),
            )
        )
    return scores


def _f1(right: int, found: int, wanted: int) -> float:
    return 2 * right / (found + wanted) if found + wanted else 0.0


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean in percent; of nothing, 0."""
    return 100.0 * math.fsum(values) / len(values) if len(values) else 0.0


def _read(rows: Iterable[dict[str, Any]]) -> _Table:
    """Check the rows and put them into arrays."""
    labels: list[str] = []
    names: list[list[str]] = []
    scores: list[list[float]] = []
    kinds: set[bool] = set()
    for number, row in enumerate(rows, start=1):
        where = f"row {number} (id {row.get('id')!r})"
        values = _scores(row, where)
        labels = labels or list(values)
        if list(values) != labels:
            raise ValueError(f"{where}: its scores have other labels than those of the first row")
        label = row.get("label")
        several = isinstance(label, list)
        own: list[Any] = label if isinstance(label, list) else [label]
        unknown = [name for name in own if name not in values]
        if unknown:
            raise ValueError(f"{where}: no score for its label {unknown[0]!r}; there are {labels}")
        kinds.add(several)
        names.append(own)
        scores.append(list(values.values()))
    if not names:
        raise ValueError("no rows to score")
    if len(kinds) > 1:
        raise ValueError("some rows have one label and some a list: give the same kind in all")
    ids = {name: position for position, name in enumerate(labels)}
    targets = np.zeros((len(names), len(labels)), dtype=bool)
    for place, own in enumerate(names):
        targets[place, [ids[name] for name in own]] = True
    return _Table(labels, targets, np.array(scores, dtype=np.float64), kinds == {True})


def _scores(row: dict[str, Any], where: str) -> dict[str, float]:
    values = row.get("scores")
    good = isinstance(values, dict) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
        for x in values.values()
    )
    if not good or not values:
        raise ValueError(f"{where} needs a number for each label under 'scores', has {values!r}")
    return dict(values)
