"""Adversarial losses: of the discriminators, of the generator, and between their feature maps.

Each takes the `Judgement` of discriminators and gives ``(B,)``, one value an utterance: the mean
over valid frames, then over sub-discriminators. ``D_k`` are their logits, ``x`` is the real signal
and ``y`` the generated one:

=================== ==================================== ==============================
kind                of the discriminators                of the generator
=================== ==================================== ==============================
``"hinge"``         max(0, 1 - D(x)) + max(0, 1 + D(y))  max(0, 1 - D(y))
``"hinge_linear"``  the same                             -D(y)
``"least_squares"`` (1 - D(x))^2 + D(y)^2                (1 - D(y))^2
=================== ==================================== ==============================

``"hinge"`` is EnCodec's (Defossez et al. 2022, section 3.4), ``"hinge_linear"`` that of Lim and Ye
(2017), ``"least_squares"`` HiFi-GAN's (Kong et al. 2020, equations 1 and 2; it adds up the
sub-discriminators, which is this times their number).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from speechkit.nn.discriminators import Judgement
from speechkit.nn.masking import length_mask

KINDS = ("hinge", "hinge_linear", "least_squares")
_SCALES = ("batch", "item", "none")
_FAINT = 1e-8
"""Least mean of a real feature map that another is measured by."""


def judge_pair(
    judge: Callable[[Tensor, Tensor], Judgement], real: Tensor, fake: Tensor, lengths: Tensor
) -> tuple[Judgement, Judgement]:
    """Judge real and generated signals in one pass.

    One pass is what a wrapper for distributed training expects before each backward pass, and
    keeps a GPU busier than two.

    Parameters
    ----------
    judge : callable
        Discriminators, wrapped or not.
    real, fake : Tensor
        Shape ``(B, C, T)``.
    lengths : Tensor
        Shape ``(B,)``, valid samples of both.

    Returns
    -------
    tuple of Judgement
        Of the real and of the generated signals.

    Examples
    --------
    >>> from speechkit.nn.discriminators import MultiScaleSTFTDiscriminator
    >>> judge = MultiScaleSTFTDiscriminator(num_filters=2, windows=(64,))
    >>> signals, lengths = torch.randn(2, 3, 1, 80), torch.tensor([80, 70, 64])
    >>> real, fake = judge_pair(judge, signals[0], signals[1], lengths)
    >>> real.logits[0].shape == fake.logits[0].shape
    True
    """
    both = judge(torch.cat([real, fake]), lengths.repeat(2))
    size = len(real)
    pairs = [[x.split(size) for x in maps] for maps in both.features]
    logits = [x.split(size) for x in both.logits]
    frames = both.frames and [[n[:size] for n in counts] for counts in both.frames]
    first, second = (
        Judgement([x[i] for x in logits], [[x[i] for x in maps] for maps in pairs], frames)
        for i in (0, 1)
    )
    return first, second


def discriminator_loss(real: Judgement, fake: Judgement, *, kind: str = "hinge") -> Tensor:
    """Compute what discriminators minimise.

    Parameters
    ----------
    real, fake : Judgement
        Of recordings, and of generated signals that carry no gradient (``y.detach()``).
    kind : {"hinge", "hinge_linear", "least_squares"}
        See the table of the module.

    Returns
    -------
    Tensor
        Shape ``(B,)``.

    Raises
    ------
    ValueError
        For an unknown kind, or judgements of different discriminators.

    Examples
    --------
    >>> real, fake = (Judgement([torch.full((1, 1, 2, 2), v)], [[]]) for v in (0.5, -2.0))
    >>> discriminator_loss(real, fake).item(), discriminator_loss(fake, real).item()
    (0.5, 4.5)
    """
    _check_kind(kind)
    _check_pair(real, fake)
    if kind == "least_squares":
        return _mean_logits(real, lambda x: (1.0 - x).square()) + _mean_logits(fake, torch.square)
    return _mean_logits(real, lambda x: (1.0 - x).relu()) + _mean_logits(
        fake, lambda x: (1.0 + x).relu()
    )


def generator_loss(fake: Judgement, *, kind: str = "hinge") -> Tensor:
    """Compute what a generator minimises: that its signals are told from real ones.

    Parameters
    ----------
    fake : Judgement
        Of generated signals.
    kind : {"hinge", "hinge_linear", "least_squares"}
        See the table of the module.

    Returns
    -------
    Tensor
        Shape ``(B,)``.

    Raises
    ------
    ValueError
        For an unknown kind.

    Examples
    --------
    >>> fake = Judgement([torch.full((1, 1, 2, 2), -2.0)], [[]])
    >>> [generator_loss(fake, kind=kind).item() for kind in KINDS]
    [3.0, 2.0, 9.0]
    """
    _check_kind(kind)
    if kind == "least_squares":
        return _mean_logits(fake, lambda x: (1.0 - x).square())
    if kind == "hinge_linear":
        return _mean_logits(fake, torch.neg)
    return _mean_logits(fake, lambda x: (1.0 - x).relu())


def feature_matching_loss(
    fake: Judgement, real: Judgement, *, scale: str = "batch", with_logits: bool = False
) -> Tensor:
    """Compute how far the feature maps of generated signals are from those of the real ones.

    The mean over layers of ``mean |f(y) - f(x)| / mean |f(x)|``; no gradient goes to ``f(x)``.

    Parameters
    ----------
    fake, real : Judgement
        Of generated and of real signals.
    scale : {"batch", "item", "none"}
        The mean below is over the whole batch (EnCodec's), over each utterance (so that none
        depends on what it is batched with, but silence counts for more), or left out (HiFi-GAN's).
    with_logits : bool
        Whether the logits count as one more layer, as in HiFi-GAN's code.

    Returns
    -------
    Tensor
        Shape ``(B,)``.

    Raises
    ------
    ValueError
        For an unknown scale, or judgements of different discriminators.

    References
    ----------
    Defossez et al. (2022), "High fidelity neural audio compression", equation 3; Kong et al.
    (2020), "HiFi-GAN", equation 4.

    Examples
    --------
    >>> real, fake = (Judgement([], [[torch.full((1, 1, 2, 2), v)]]) for v in (4.0, 3.0))
    >>> feature_matching_loss(fake, real).item()
    0.25
    >>> feature_matching_loss(fake, real, scale="none").item()
    1.0
    """
    if scale not in _SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose from {list(_SCALES)}")
    _check_pair(real, fake)
    terms = []
    for index, (ours, theirs) in enumerate(zip(fake.features, real.features)):
        pairs = list(zip(ours, theirs))
        if with_logits:
            pairs.append((fake.logits[index], real.logits[index]))
        frames: Sequence[Tensor | None] = [None] * len(pairs)
        if fake.frames is not None:
            frames = fake.frames[index]
        terms.append(
            torch.stack([_distance(y, x.detach(), n, scale) for (y, x), n in zip(pairs, frames)])
        )
    return torch.cat(terms).mean(0)


def discriminator_turn(step: int, *, updates: int = 2, period: int = 3) -> bool:
    """Say whether the discriminators learn in an update: ``updates`` of every ``period`` times.

    EnCodec draws it with that probability; by count, a resumed run and every process agree.

    Parameters
    ----------
    step : int
        Updates of the generator before this one.
    updates, period : int
        2 of 3 at 24 kHz and 1 of 2 at 48 kHz in the paper.

    Raises
    ------
    ValueError
        Where ``updates`` is not within 0 and ``period``.

    Examples
    --------
    >>> [discriminator_turn(step) for step in range(6)]
    [False, True, True, False, True, True]
    """
    if not 0 <= updates <= period or period < 1:
        raise ValueError(f"need 0 <= updates <= period, got {updates} and {period}")
    return (step + 1) * updates // period > step * updates // period


def _distance(fake: Tensor, real: Tensor, frames: Tensor | None, scale: str) -> Tensor:
    difference = _item_mean((fake.float() - real.float()).abs(), frames)
    if scale == "none":
        return difference
    size = _item_mean(real.float().abs(), frames)
    if scale == "batch":
        weights = torch.ones_like(size) if frames is None else frames.to(size.dtype)
        size = (size * weights).sum() / weights.sum().clamp(min=1.0)
    return difference / size.clamp(min=_FAINT)


def _mean_logits(judgement: Judgement, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Average a function of the logits over each item, then over sub-discriminators: ``(B,)``."""
    last: Sequence[Tensor | None] = [None] * len(judgement.logits)
    if judgement.frames is not None:
        last = [frames[-1] for frames in judgement.frames]
    means = [_item_mean(function(x.float()), n) for x, n in zip(judgement.logits, last)]
    return torch.stack(means).mean(0)


def _item_mean(x: Tensor, frames: Tensor | None) -> Tensor:
    """Average ``(B, N, T', F')`` over the valid frames of each item."""
    if frames is None:
        return x.mean((1, 2, 3))
    x = x.masked_fill(~length_mask(frames, x.shape[2])[:, None, :, None], 0.0)
    return x.sum((1, 2, 3)) / (frames * (x.shape[1] * x.shape[3])).clamp(min=1)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose from {list(KINDS)}")


def _check_pair(real: Judgement, fake: Judgement) -> None:
    shapes = [
        [
            [tuple(x.shape) for x in (*maps, *j.logits[k : k + 1])]
            for k, maps in enumerate(j.features)
        ]
        for j in (real, fake)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the judgements of the real and of the generated signals differ in shape; both must "
            f"come from the same discriminators and lengths: {shapes[0]} and {shapes[1]}"
        )
