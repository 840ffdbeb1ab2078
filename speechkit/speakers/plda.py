"""PLDA: how likely two embeddings are of one speaker, under a Gaussian model of voices.

The two-covariance model: a speaker's voice is ``y ~ N(mean, between)``, an embedding of it is
``x ~ N(y, within)``. The score is the log likelihood ratio of one voice against two.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.files import atomic_write
from speechkit.speakers.scores import unit_length

_FORMAT = "speechkit PLDA 1"


class Plda:
    """The two-covariance model, fitted by :func:`fit_plda`.

    Parameters
    ----------
    mean : Tensor
        Shape ``(D,)``.
    between : Tensor
        Shape ``(D, D)``: covariance of speakers, positive semi-definite.
    within : Tensor
        Shape ``(D, D)``: covariance of a speaker's embeddings, positive definite.
    center : Tensor, optional
        Shape ``(D,)``. If given, embeddings are moved by it and scaled to length ``sqrt(D)``
        before anything else, which makes them more Gaussian (Garcia-Romero and Espy-Wilson, 2011).

    Raises
    ------
    ValueError
        Where shapes disagree, a number is not finite, or a covariance is none.

    References
    ----------
    Brummer and de Villiers (2010), "The speaker partitioning problem", section 2; Ioffe (2006),
    "Probabilistic linear discriminant analysis".

    Examples
    --------
    >>> plda = Plda(torch.zeros(2), torch.eye(2), 0.1 * torch.eye(2))
    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.9, 0.1], [-1.0, 0.0]])
    >>> (plda.scores(a, b) > 0).tolist()
    [[True, False]]
    """

    def __init__(
        self, mean: Tensor, between: Tensor, within: Tensor, center: Tensor | None = None
    ) -> None:
        size = mean.shape[0] if mean.dim() == 1 else -1
        shapes = [tuple(x.shape) for x in (mean, between, within)]
        if shapes != [(size,), (size, size), (size, size)] or size < 1:
            raise ValueError(f"expected (D,), (D, D) and (D, D), got {shapes}")
        if center is not None and center.shape != mean.shape:
            raise ValueError(f"center {tuple(center.shape)} is not like mean {shapes[0]}")
        given = [mean, between, within, *([] if center is None else [center])]
        if not all(bool(x.isfinite().all()) for x in given):
            raise ValueError("mean, covariances and center must be finite")
        self.mean = mean.double()
        self.between = _symmetric(between.double())
        self.within = _symmetric(within.double())
        self.center = None if center is None else center.double()
        root, info = torch.linalg.cholesky_ex(self.within)
        if int(info):
            raise ValueError("within must be positive definite")
        # In the basis where within is the identity and between diagonal, dimensions are apart.
        half = torch.linalg.solve_triangular(root, self.between, upper=False)
        ratios = torch.linalg.solve_triangular(root, half.T, upper=False)
        values, vectors = torch.linalg.eigh(_symmetric(ratios))
        if float(values[0]) < -1e-6 * max(1.0, float(values[-1])):
            raise ValueError("between must be positive semi-definite")
        self.ratios = values.clamp_min(0.0)  # of between to within, (D,)
        self.basis = torch.linalg.solve_triangular(root.T, vectors, upper=True)  # (D, D)

    def transform(self, embeddings: Tensor) -> Tensor:
        """Move and scale embeddings ``(N, D)`` as the model wants them; float64."""
        x = embeddings.detach().double()
        if x.dim() != 2 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"expected embeddings (N, {len(self.mean)}), got {tuple(embeddings.shape)}"
            )
        if self.center is None:
            return x
        return unit_length(x - self.center) * math.sqrt(x.shape[1])

    def scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare each with each: log likelihood ratios, natural logarithm.

        Parameters
        ----------
        first, second : Tensor
            Shapes ``(N, D)`` and ``(M, D)``.

        Returns
        -------
        Tensor
            Shape ``(N, M)``, float64: above 0, one speaker is likelier than two.
        """
        u, v = self._projected(first), self._projected(second)
        product, square, constant = self._terms()
        own = (u.square() @ square)[:, None] + (v.square() @ square)
        return (u * product) @ v.T + own + constant

    def pair_scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare row by row: ``(N, D)`` and ``(N, D)`` to ``(N,)``."""
        if first.shape != second.shape:
            raise ValueError(
                f"not as many on both sides: {tuple(first.shape)}, {tuple(second.shape)}"
            )
        u, v = self._projected(first), self._projected(second)
        product, square, constant = self._terms()
        return (u * v) @ product + (u.square() + v.square()) @ square + constant

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as safetensors."""
        from safetensors.torch import save

        tensors = {"mean": self.mean, "between": self.between, "within": self.within}
        if self.center is not None:
            tensors["center"] = self.center
        data = save({k: x.contiguous() for k, x in tensors.items()}, {"format": _FORMAT})
        atomic_write(Path(path), data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plda:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            When the file is missing, no such file or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: not a PLDA model: {error}") from error
        names = {"mean", "between", "within"}
        if metadata.get("format") != _FORMAT or tensors.keys() - {"center"} != names:
            raise DataError(f"{path}: not a PLDA model (format {metadata.get('format')!r})")
        try:
            return cls(**tensors)
        except ValueError as error:
            raise DataError(f"{path}: damaged: {error}") from error

    def _projected(self, embeddings: Tensor) -> Tensor:
        return (self.transform(embeddings) - self.mean) @ self.basis

    def _terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of ``u v``, of ``u^2 + v^2`` and a constant, by dimension of within 1.

        With variance ``t = r + 1`` and covariance ``r`` of one speaker's two embeddings, their
        joint density has determinant ``t^2 - r^2 = 2 r + 1`` and inverse ``[t, -r; -r, t]`` over
        it, against ``t^2`` and ``1 / t`` where there are two speakers.
        """
        r = self.ratios
        total, joint = r + 1, 2 * r + 1
        square = 0.5 * (1 / total - total / joint)
        return r / joint, square, 0.5 * (2 * total.log() - joint.log()).sum()


def fit_plda(
    embeddings: Tensor,
    speakers: Sequence[Hashable],
    *,
    num_iterations: int = 20,
    length_norm: bool = True,
    floor: float = 1e-4,
) -> Plda:
    """Fit the model by expectation maximization.

    Parameters
    ----------
    embeddings : Tensor
        Shape ``(N, D)``.
    speakers : sequence
        Whose each is; some have several.
    num_iterations : int
        Rounds. The likelihood never falls from one to the next (but where the floor is reached).
    length_norm : bool
        Center the embeddings and scale them to one length; kept in the model.
    floor : float
        Least variance within speakers in any direction, as a share of the mean one: what lets the
        model be fitted where there are fewer embeddings than dimensions.

    Returns
    -------
    Plda
        In float64.

    Raises
    ------
    DataError
        With fewer than two speakers, or none who has two embeddings that differ.
    ValueError
        Where sizes disagree or an embedding is not finite.

    References
    ----------
    Sizov, Lee and Kinnunen (2014), "Unifying probabilistic linear discriminant analysis variants
    in biometric authentication", section 2.3 (two-covariance model).

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> voices = torch.randn(50, 1, 4, generator=generator)
    >>> x = (voices + 0.3 * torch.randn(50, 6, 4, generator=generator)).flatten(0, 1)
    >>> plda = fit_plda(x, [s for s in range(50) for _ in range(6)], length_norm=False)
    >>> round(float(plda.within.diagonal().mean()), 2)  # 0.3 squared
    0.09
    """
    x = embeddings.detach().double()
    if x.dim() != 2 or len(speakers) != len(x) or not bool(x.isfinite().all()):
        raise ValueError(
            f"expected finite embeddings (N, D) and N speakers, got {tuple(x.shape)} and "
            f"{len(speakers)}"
        )
    index = {name: row for row, name in enumerate(dict.fromkeys(speakers))}
    rows = torch.tensor([index[name] for name in speakers])
    counts = torch.bincount(rows, minlength=len(index)).double()
    center = x.mean(dim=0) if length_norm and len(x) else None
    if center is not None:
        x = unit_length(x - center) * math.sqrt(x.shape[1])
    means = _sums(x, rows, len(index)) / counts[:, None]
    rest = x - means[rows]
    if len(index) < 2 or float(rest.abs().max()) < 1e-9:
        raise DataError(
            f"PLDA needs two speakers, and one with two different embeddings: {len(index)} "
            f"speakers with up to {int(counts.max()) if len(counts) else 0} embeddings"
        )
    scatter = rest.T @ rest  # around each speaker's own mean, which never changes
    mean = means.mean(dim=0)
    between = _symmetric((means - mean).T @ (means - mean)) / len(index)
    within = _floored(scatter / len(x), floor)
    for _ in range(num_iterations):
        mean, between, within = _update(means, counts, scatter, mean, between, within)
        within = _floored(within, floor)
    return Plda(mean, between, within, center)


def _update(
    means: Tensor, counts: Tensor, scatter: Tensor, mean: Tensor, between: Tensor, within: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One round: where each voice probably is, then the parameters that fit these best.

    Speakers with as many embeddings share a posterior covariance, so there are few of these.
    """
    voices = torch.empty_like(means)
    spread_voices, spread_rest = torch.zeros_like(between), torch.zeros_like(within)
    for count in counts.unique():
        own = counts == count
        # gain = between (between + within / n)^-1: needs no inverse of a singular between
        gain = torch.linalg.solve(between + within / count, between).T
        covariance = _symmetric(between - gain @ between)
        voices[own] = mean + (means[own] - mean) @ gain.T
        spread_voices += int(own.sum()) * covariance
        spread_rest += int(own.sum()) * count * covariance
    new_mean = voices.mean(dim=0)
    moved, left = voices - new_mean, means - voices
    new_between = _symmetric(moved.T @ moved + spread_voices) / len(means)
    around = scatter + (left * counts[:, None]).T @ left + spread_rest
    return new_mean, new_between, _symmetric(around) / counts.sum()


def _sums(x: Tensor, rows: Tensor, number: int) -> Tensor:
    return x.new_zeros(number, x.shape[1]).index_add_(0, rows, x)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.T)


def _floored(within: Tensor, share: float) -> Tensor:
    """Keep every direction's variance at or above a share of the mean one."""
    values, vectors = torch.linalg.eigh(within)
    least = share * float(values.clamp_min(0.0).mean())
    return _symmetric((vectors * values.clamp_min(least)) @ vectors.T)
