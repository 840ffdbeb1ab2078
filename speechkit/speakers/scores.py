"""Scores of speaker embeddings: cosine, and its adaptive normalization by a cohort."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST_DEVIATION = 1e-6


def unit_length(embeddings: Tensor) -> Tensor:
    """Scale embeddings to length 1.

    Parameters
    ----------
    embeddings : Tensor
        Shape ``(N, D)``.

    Returns
    -------
    Tensor
        Shape ``(N, D)``, floating point.

    Raises
    ------
    ValueError
        Where the shape is another, or an embedding is zero or not finite: it has no direction.

    Examples
    --------
    >>> unit_length(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    if embeddings.dim() != 2:
        raise ValueError(f"expected embeddings (N, D), got {tuple(embeddings.shape)}")
    if not embeddings.is_floating_point():
        raise ValueError(f"embeddings must be floating point, are {embeddings.dtype}")
    lengths = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    bad = torch.nonzero(~(lengths.squeeze(1) > 0) | ~lengths.squeeze(1).isfinite()).flatten()
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(embeddings)} embeddings are zero or not finite, the first is "
            f"number {int(bad[0])}"
        )
    return embeddings / lengths


def cosine_scores(first: Tensor, second: Tensor) -> Tensor:
    """Compare each of some embeddings with each of others, in one product of matrices.

    Parameters
    ----------
    first, second : Tensor
        Shapes ``(N, D)`` and ``(M, D)``.

    Returns
    -------
    Tensor
        Shape ``(N, M)``, from -1 to 1.

    Raises
    ------
    ValueError
        As :func:`unit_length`, and where the sizes ``D`` differ.

    Examples
    --------
    >>> cosine_scores(torch.eye(2), torch.tensor([[1.0, 1.0]])).flatten().tolist()
    [0.707..., 0.707...]
    """
    if first.shape[-1:] != second.shape[-1:]:
        raise ValueError(
            f"embeddings of different sizes: {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return unit_length(first) @ unit_length(second).T


def pair_scores(first: Tensor, second: Tensor) -> Tensor:
    """Compare embeddings row by row: ``(N, D)`` and ``(N, D)`` to ``(N,)``.

    Examples
    --------
    >>> pair_scores(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    if first.shape != second.shape:
        raise ValueError(f"not as many on both sides: {tuple(first.shape)}, {tuple(second.shape)}")
    return (unit_length(first) * unit_length(second)).sum(dim=1)


def speaker_means(
    embeddings: Tensor, speakers: Sequence[Hashable]
) -> tuple[Tensor, list[Hashable]]:
    """Average the unit embeddings of each speaker, for example as a cohort.

    Parameters
    ----------
    embeddings : Tensor
        Shape ``(N, D)``.
    speakers : sequence
        Whose each is.

    Returns
    -------
    means : Tensor
        Shape ``(S, D)``.
    names : list
        The speaker of each row, in the order in which they first appear.

    Raises
    ------
    ValueError
        As :func:`unit_length`, and where there are not as many speakers as embeddings.

    Examples
    --------
    >>> speaker_means(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), ["a", "b", "b"])
    (tensor([[1., 0.],
            [0., 1.]]), ['a', 'b'])
    """
    if len(speakers) != len(embeddings):
        raise ValueError(f"{len(speakers)} speakers for {len(embeddings)} embeddings")
    index = {name: row for row, name in enumerate(dict.fromkeys(speakers))}
    rows = torch.tensor([index[name] for name in speakers], device=embeddings.device)
    units = unit_length(embeddings)
    sums = units.new_zeros(len(index), embeddings.shape[1]).index_add_(0, rows, units)
    return sums / torch.bincount(rows, minlength=len(index))[:, None], list(index)


class CohortStatistics(NamedTuple):
    """Mean and standard deviation of each embedding's highest scores in the cohort, ``(N,)``."""

    mean: Tensor
    std: Tensor


class AdaptiveSNorm:
    """Adaptive symmetric normalization of scores (AS-norm).

    A score is measured against what each side scores with the cohort speakers that are most like
    it: ``((s - mean_e) / std_e + (s - mean_t) / std_t) / 2``. So one threshold suits voices and
    recordings that are more or less alike to all others.

    Parameters
    ----------
    cohort : Tensor
        Shape ``(C, D)``: embeddings of speakers who are in no trial, one each
        (:func:`speaker_means`).
    top : int
        How many of the highest cohort scores count; all, where the cohort has fewer. 200 to 400
        are common for cohorts of thousands.

    Raises
    ------
    ValueError
        As :func:`unit_length`; for fewer than two cohort speakers or ``top`` below 2.

    References
    ----------
    Matejka, Novotny, Plchot, Burget, Sanchez and Cernocky (2017), "Analysis of score normalization
    in multilingual speaker recognition", equations 5 to 7.

    Examples
    --------
    >>> cohort = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> norm = AdaptiveSNorm(cohort, top=2)
    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> norm.scores(a, b).round(decimals=4)
    tensor([[ 1.0000, -0.4000]])
    """

    def __init__(self, cohort: Tensor, *, top: int = 300) -> None:
        if top < 2 or len(cohort) < 2:
            raise ValueError(
                f"normalization needs two cohort speakers: the cohort has {len(cohort)}, top={top}"
            )
        self.cohort = unit_length(cohort)
        self.top = top

    def statistics(self, embeddings: Tensor) -> CohortStatistics:
        """Compute mean and deviation of the highest cohort scores of embeddings ``(N, D)``.

        Raises
        ------
        ValueError
            Where the cohort scores of an embedding are all the same.
        """
        scores = cosine_scores(embeddings, self.cohort)
        highest = scores.topk(min(self.top, scores.shape[1]), dim=1).values
        std, mean = torch.std_mean(highest, dim=1, correction=0)
        flat = torch.nonzero(std < _LEAST_DEVIATION).flatten()
        if len(flat):
            raise ValueError(
                f"embedding {int(flat[0])} scores the same with the {highest.shape[1]} nearest "
                "cohort speakers; are they copies of each other? Take another cohort"
            )
        return CohortStatistics(mean, std)

    def scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare each with each, ``(N, D)`` and ``(M, D)`` to normalized scores ``(N, M)``."""
        ours, theirs = self.statistics(first), self.statistics(second)
        raw = cosine_scores(first, second)
        by_row = (raw - ours.mean[:, None]) / ours.std[:, None]
        return (by_row + (raw - theirs.mean) / theirs.std) / 2

    def pair_scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare row by row, ``(N, D)`` and ``(N, D)`` to normalized scores ``(N,)``."""
        raw = pair_scores(first, second)
        ours, theirs = self.statistics(first), self.statistics(second)
        return ((raw - ours.mean) / ours.std + (raw - theirs.mean) / theirs.std) / 2
