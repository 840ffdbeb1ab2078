"""Losses of source separation: pairwise scores, the best assignment, and both as one loss.

Every score is in dB and larger is better. All pairs of an estimate and a target come from one
product of two matrices, ``(B, S, T) x (B, T, S')``, in float64 whatever comes in (float32 on
devices that lack it), also under autocast: near the end of training the error is the small
difference of large powers.

Powers are means over the valid samples. What each score does with silence:

========= ============================== =============================== ==================
score     silent target                  silent estimate                 mean removed
========= ============================== =============================== ==================
SI-SNR    -80 dB, gradient 0             -80 dB, gradient 0              yes, by default
SNR       falls with the estimate's      0 dB                            no, by default
          power, to 0 dB at silence
log-MSE   as SNR, without its constant   target's power                  no, by default
========= ============================== =============================== ==================

So a model whose number of speakers varies (silent targets for those who are absent) trains with
SNR or log-MSE, best with ``max_db``; SI-SNR teaches it nothing about silence.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speechkit.nn.masking import length_mask, ragged

_FLOOR = 1e-10
"""Power added in SNR and log-MSE, -100 dB re full scale: that of rounding to 16 bits."""
_FAINT = 1e-16
"""Power added in SI-SNR to each signal: below any audio, so that the score ignores its scale."""
_SI_SNR_ENDS = 1e-8
"""Added to both shares of SI-SNR, which so lies within -80 and 80 dB."""
_MOST_BY_GATHER = 3


class PermutationInvariant(NamedTuple):
    """The best assignment of estimates to targets.

    Attributes
    ----------
    value : Tensor
        Shape ``(B,)``: the mean score over targets under that assignment.
    order : Tensor
        Shape ``(B, S)``, int64: ``order[b, s]`` is the estimate that belongs to target ``s``.
    """

    value: Tensor
    order: Tensor


def pairwise_si_snr(
    estimates: Tensor,
    targets: Tensor,
    lengths: Tensor,
    *,
    zero_mean: bool = True,
    max_db: float | None = None,
) -> Tensor:
    """Compute the scale-invariant signal-to-noise ratio of each estimate to each target.

    With ``r`` the correlation of the two, ``10 log10(r^2 / (1 - r^2))``: the target's share of the
    estimate's power against the rest of it. The value lies within -80 and 80 dB, those of the
    worst and the perfect estimate. A silent target or estimate scores -80 with a gradient of zero.

    Parameters
    ----------
    estimates : Tensor
        Shape ``(B, S, T)``.
    targets : Tensor
        Shape ``(B, S', T)``.
    lengths : Tensor
        Shape ``(B,)``, integer: valid samples. What lies beyond (NaN too) changes nothing.
    zero_mean : bool
        Remove each signal's mean over its valid samples first, as is usual.
    max_db : float, optional
        Soft threshold: ``-10 log10(noise / signal + 10^(-max_db / 10))``. No score exceeds it, and
        pairs near it count less and less in the gradient.

    Returns
    -------
    Tensor
        Shape ``(B, S, S')`` in dB; float64 where an input is, else float32.

    Raises
    ------
    ValueError
        Where shapes disagree or a length exceeds ``T``.

    References
    ----------
    Le Roux, Wisdom, Erdogan and Hershey (2019), "SDR - half-baked or well done?", equation 3;
    the threshold is that of Wisdom et al. (2020), "Unsupervised sound separation using mixture
    invariant training", equation 2.

    Examples
    --------
    >>> target = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    >>> noise = torch.tensor([[[1.0, 1.0, -1.0, -1.0]]])
    >>> estimate = 5 * (target + 0.1 * noise)  # at any scale
    >>> round(pairwise_si_snr(estimate, target, torch.tensor([4])).item(), 3)
    20.0
    """
    estimated, wanted, cross = _powers(estimates, targets, lengths, zero_mean)
    # the share of an estimate's power that lies along a target
    signal = cross.square() / ((estimated + _FAINT) * (wanted + _FAINT))
    noise = (1.0 - signal).clamp_min(0.0)  # float32 may round a share above 1
    ratio = (noise + _SI_SNR_ENDS) / (signal + _SI_SNR_ENDS)
    return _decibels(ratio + _threshold(max_db), estimates, targets)


def pairwise_snr(
    estimates: Tensor,
    targets: Tensor,
    lengths: Tensor,
    *,
    zero_mean: bool = False,
    max_db: float | None = None,
) -> Tensor:
    """Compute the signal-to-noise ratio of each estimate to each target.

    ``10 log10(|target|^2 / |target - estimate|^2)``, with the power of 16-bit rounding
    (1e-10) added to both, so that silence stays finite.

    Parameters, shapes and errors are those of :func:`pairwise_si_snr`, but means stay by default:
    the score is to notice a wrong offset as it notices a wrong scale.

    Examples
    --------
    >>> target = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    >>> estimates = torch.cat([0.9 * target, 0.5 * target], dim=1)
    >>> pairwise_snr(estimates, target, torch.tensor([4])).round(decimals=2)
    tensor([[[20.0000],
             [ 6.0200]]])
    """
    noise, wanted = _errors(estimates, targets, lengths, zero_mean)
    ratio = (noise + _FLOOR) / (wanted + _FLOOR)
    return _decibels(ratio + _threshold(max_db), estimates, targets)


def pairwise_log_mse(
    estimates: Tensor,
    targets: Tensor,
    lengths: Tensor,
    *,
    zero_mean: bool = False,
    max_db: float | None = None,
) -> Tensor:
    """Compute the negated logarithm of the mean squared error of each estimate to each target.

    ``-10 log10(mean (target - estimate)^2 + tau mean target^2 + 1e-10)`` with
    ``tau = 10^(-max_db / 10)``, or 0 without ``max_db``. It is :func:`pairwise_snr` without the
    target's own power, so that loud and quiet targets weigh by their errors.

    Parameters, shapes and errors are those of :func:`pairwise_si_snr`; means stay by default.

    References
    ----------
    Heitkaemper et al. (2020), "Demystifying TasNet: a dissecting approach"; the threshold as in
    Wisdom et al. (2020), equation 2.

    Examples
    --------
    >>> target = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    >>> round(pairwise_log_mse(0.9 * target, target, torch.tensor([4])).item(), 3)
    20.0
    """
    noise, wanted = _errors(estimates, targets, lengths, zero_mean)
    return _decibels(noise + _threshold(max_db) * wanted + _FLOOR, estimates, targets)


def permutation_invariant(scores: Tensor) -> PermutationInvariant:
    """Find the assignment of estimates to targets with the largest mean score.

    Up to three speakers all permutations are compared where the scores are; above, the Hungarian
    algorithm (Kuhn 1955; scipy's) runs on the CPU. The choice itself has no gradient, the scores
    that it picks have.

    Parameters
    ----------
    scores : Tensor
        Shape ``(B, S, S)``: of each estimate (second axis) for each target (third axis).

    Returns
    -------
    PermutationInvariant
        ``value (B,)`` and ``order (B, S)``. Scores that are NaN count as the worst in the choice,
        and reach the value if they are picked.

    Raises
    ------
    ValueError
        Where there are not as many estimates as targets.
    ImportError
        Above three speakers without scipy, which the extra ``separation`` brings.

    References
    ----------
    Yu, Kolbaek, Tan and Jensen (2017), "Permutation invariant training of deep models for
    speaker-independent multi-talker speech separation".

    Examples
    --------
    >>> value, order = permutation_invariant(torch.tensor([[[1.0, 20.0], [10.0, 2.0]]]))
    >>> value.tolist(), order.tolist()
    ([15.0], [[1, 0]])
    """
    if scores.dim() != 3 or scores.shape[1] != scores.shape[2] or scores.shape[1] == 0:
        raise ValueError(f"scores must be (B, S, S) with S >= 1, got {tuple(scores.shape)}")
    known = scores.detach().nan_to_num(nan=-1e6, posinf=1e6, neginf=-1e6)
    order = _by_gather(known) if scores.shape[1] <= _MOST_BY_GATHER else _by_hungarian(known)
    picked = scores.gather(1, order.unsqueeze(1)).squeeze(1)  # (B, S): of each target
    return PermutationInvariant(picked.mean(dim=1), order)


_SCORES = {"si_snr": pairwise_si_snr, "snr": pairwise_snr, "log_mse": pairwise_log_mse}


class SeparationLoss:
    """Permutation-invariant loss of a separator: the negated mean score of the best assignment.

    Parameters
    ----------
    kind : str
        ``"si_snr"``, ``"snr"`` or ``"log_mse"`` (see the functions of this module).
    max_db : float, optional
        Soft threshold: items better than this teach ever less (30 is usual). None: no threshold.
    zero_mean : bool, optional
        Whether means are removed; None takes the kind's own default (SI-SNR yes, others no).

    Raises
    ------
    ValueError
        For an unknown kind; when called, for another number of estimates than of targets.

    Examples
    --------
    >>> loss = SeparationLoss(kind="si_snr")
    >>> targets = torch.randn(1, 2, 800, generator=torch.Generator().manual_seed(0))
    >>> losses, order = loss(targets.flip(1), targets, torch.tensor([800]))
    >>> losses.round().tolist(), order.tolist()
    ([-80.0], [[1, 0]])
    """

    def __init__(
        self, *, kind: str = "si_snr", max_db: float | None = None, zero_mean: bool | None = None
    ) -> None:
        if kind not in _SCORES:
            raise ValueError(f"kind={kind!r} is no separation loss; there are: {sorted(_SCORES)}")
        self.kind = kind
        self.max_db = max_db
        self.zero_mean = zero_mean

    def __call__(
        self, estimates: Tensor, targets: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses ``(B,)`` in dB, and the order ``(B, S)``: each target's estimate.

        Takes estimates and targets ``(B, S, T)`` and lengths ``(B,)``.
        """
        _check(estimates, targets, lengths)
        if estimates.shape[1] != targets.shape[1]:
            raise ValueError(
                f"an estimate with another number of speakers than the targets: estimates are "
                f"{tuple(estimates.shape)}, targets {tuple(targets.shape)}, both (B, S, T)"
            )
        zero_mean = self.kind == "si_snr" if self.zero_mean is None else self.zero_mean
        scores = _SCORES[self.kind](
            estimates, targets, lengths, zero_mean=zero_mean, max_db=self.max_db
        )
        value, order = permutation_invariant(scores)
        return -value, order


class _Products(torch.autograd.Function):
    """Sums over the valid samples that every score is made of, and their gradient.

    From estimates ``x (B, S, T)`` and targets ``y (B, S', T)`` the sums of ``x y`` (B, S, S'), of
    ``x^2`` and ``x`` (B, S), and of ``y^2`` and ``y`` (B, S'). Autograd would build the gradient
    from six copies of the signals, which cost more than the products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, outside: Tensor | None) -> tuple[Tensor, ...]:
        precise = torch.float32 if x.device.type == "mps" else torch.float64
        ctx.dtypes = x.dtype, y.dtype
        x, y = (_fill(z.to(precise, copy=True), outside) for z in (x, y))
        ctx.save_for_backward(x, y, outside)
        squares = (torch.linalg.vector_norm(z, dim=2).square() for z in (x, y))
        return torch.bmm(x, y.transpose(1, 2)), *squares, x.sum(2), y.sum(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y, outside = ctx.saved_tensors
        cross, x_square, y_square, x_sum, y_sum = grads
        results: list[Tensor | None] = [None, None]
        sides = ((cross, y, x, x_square, x_sum), (cross.transpose(1, 2), x, y, y_square, y_sum))
        for side, (product, other, own, square, total) in enumerate(sides):
            if ctx.needs_input_grad[side]:
                grad = torch.bmm(product, other)
                grad.addcmul_(own, square.unsqueeze(2), value=2.0).add_(total.unsqueeze(2))
                results[side] = _fill(grad, outside).to(ctx.dtypes[side])
        return results[0], results[1], None


def _fill(x: Tensor, outside: Tensor | None) -> Tensor:
    """Write zeros in place into the padding, if there is any: the pass is not for nothing."""
    return x if outside is None else x.masked_fill_(outside, 0.0)


def _powers(
    estimates: Tensor, targets: Tensor, lengths: Tensor, zero_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean powers: estimates (B, S, 1), targets (B, 1, S'), and mean products (B, S, S')."""
    _check(estimates, targets, lengths)
    lengths = lengths.to(estimates.device)
    outside = None
    if ragged(lengths, estimates.shape[2]) is not None:
        outside = ~length_mask(lengths, estimates.shape[2]).unsqueeze(1)
    with torch.autocast(device_type=estimates.device.type, enabled=False):
        sums = _Products.apply(estimates, targets, outside)
    count = lengths.clamp_min(1).to(sums[0].dtype)
    cross, x_power, y_power, x_mean, y_mean = (
        z / count.reshape(-1, *[1] * (z.dim() - 1)) for z in sums
    )
    if zero_mean:
        cross = cross - x_mean.unsqueeze(2) * y_mean.unsqueeze(1)
        x_power = (x_power - x_mean.square()).clamp_min(0.0)
        y_power = (y_power - y_mean.square()).clamp_min(0.0)
    return x_power.unsqueeze(2), y_power.unsqueeze(1), cross


def _errors(
    estimates: Tensor, targets: Tensor, lengths: Tensor, zero_mean: bool
) -> tuple[Tensor, Tensor]:
    """Mean squared errors (B, S, S') and the targets' powers (B, 1, S')."""
    estimated, wanted, cross = _powers(estimates, targets, lengths, zero_mean)
    return (estimated + wanted - 2.0 * cross).clamp_min(0.0), wanted


def _threshold(max_db: float | None) -> float:
    return 0.0 if max_db is None else 10.0 ** (-max_db / 10.0)


def _decibels(ratio: Tensor, estimates: Tensor, targets: Tensor) -> Tensor:
    """Turn noise over signal into a score in dB, of the precision that is promised."""
    double = torch.float64 in (estimates.dtype, targets.dtype)
    return (-10.0 * torch.log10(ratio)).to(torch.float64 if double else torch.float32)


def _by_gather(scores: Tensor) -> Tensor:
    """Compare all permutations of (B, S, S) at once; (B, S)."""
    speakers = range(scores.shape[1])
    orders = torch.tensor(list(itertools.permutations(speakers)), device=scores.device)  # (P, S)
    totals = scores[:, orders, torch.tensor(speakers, device=scores.device)].sum(2)  # (B, P)
    return orders[totals.argmax(1)]


def _by_hungarian(scores: Tensor) -> Tensor:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            f"assigning {scores.shape[1]} speakers needs scipy: pip install 'speechkit[separation]'"
        ) from error
    # targets as rows: what is assigned to row s is target s's estimate
    costs = scores.transpose(1, 2).cpu().double().numpy()
    orders = [linear_sum_assignment(cost, maximize=True)[1].tolist() for cost in costs]
    shape = (len(scores), scores.shape[1])
    return torch.tensor(orders, dtype=torch.long, device=scores.device).reshape(shape)


def _check(estimates: Tensor, targets: Tensor, lengths: Tensor) -> None:
    shapes = f"estimates {tuple(estimates.shape)} and targets {tuple(targets.shape)}"
    if estimates.dim() != 3 or targets.dim() != 3:
        raise ValueError(f"estimates and targets must be (B, S, T), got {shapes}")
    if estimates.shape[0] != targets.shape[0]:
        raise ValueError(f"estimates and targets are batches of different sizes: {shapes}")
    if estimates.shape[2] != targets.shape[2]:
        raise ValueError(f"estimates and targets differ in length (the last axis): {shapes}")
    if lengths.shape != estimates.shape[:1]:
        raise ValueError(f"lengths must be (B,), got {tuple(lengths.shape)} for {shapes}")
    if len(lengths) and int(lengths.max()) > estimates.shape[2]:
        raise ValueError(f"lengths {lengths.tolist()} exceed the samples of {shapes}")
