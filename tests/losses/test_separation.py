"""Separation losses: direct formulas, brute force over orders, padding, silence, gradients."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.losses.separation import (
    SeparationLoss,
    pairwise_log_mse,
    pairwise_si_snr,
    pairwise_snr,
    permutation_invariant,
)

SCORES = [pairwise_si_snr, pairwise_snr, pairwise_log_mse]
KINDS = ["si_snr", "snr", "log_mse"]


def signals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def separated(batch: int, speakers: int, time: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Targets with an offset, and estimates of them with noise and in another order."""
    targets = signals(batch, speakers, time, seed=seed) + 0.02
    return targets.flip(1) + 0.3 * signals(batch, speakers, time, seed=seed + 1), targets


def direct(kind: str, estimate: Tensor, target: Tensor) -> float:
    """One pair by the papers' formulas, in time."""
    estimate, target = estimate.double(), target.double()
    if kind == "si_snr":
        estimate, target = estimate - estimate.mean(), target - target.mean()
        target = (estimate @ target) / (target @ target) * target
    error = (estimate - target).square()
    if kind == "log_mse":
        return -10 * math.log10(error.mean())
    return 10 * math.log10(target.square().sum() / error.sum())


@pytest.mark.parametrize(("kind", "score"), list(zip(KINDS, SCORES)))
def test_scores_equal_the_formulas_in_time(kind, score):
    estimates, targets = separated(2, 3, 400)
    lengths = torch.tensor([400, 251])
    got = score(estimates[:, :2], targets, lengths)
    assert got.shape == (2, 2, 3)
    assert got.dtype == torch.float32
    for b, e, t in itertools.product(range(2), range(2), range(3)):
        n = int(lengths[b])
        want = direct(kind, estimates[b, e, :n], targets[b, t, :n])
        assert got[b, e, t].item() == pytest.approx(want, abs=5e-3)  # its ends count at -47 dB


@pytest.mark.parametrize("score", SCORES)
def test_mean_removal_is_an_option(score):
    estimates, targets = separated(1, 2, 300)
    length = torch.tensor([300])
    moved = estimates + 0.5
    torch.testing.assert_close(
        score(moved, targets, length, zero_mean=True),
        score(estimates, targets, length, zero_mean=True),
        atol=1e-3,
        rtol=0,
    )
    away = score(moved, targets, length, zero_mean=False)
    kept = score(estimates, targets, length, zero_mean=False)
    assert (away.flip(1) < kept.flip(1)).diagonal(dim1=1, dim2=2).all()  # of those that match


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-4, 1e4), st.booleans())
def test_si_snr_ignores_the_scale_of_the_estimate(scale, negative):
    estimates, targets = separated(1, 2, 300)
    length = torch.tensor([300])
    scaled = estimates * (-scale if negative else scale)
    torch.testing.assert_close(
        pairwise_si_snr(scaled, targets, length),
        pairwise_si_snr(estimates, targets, length),
        atol=1e-3,
        rtol=0,
    )


@pytest.mark.parametrize("speakers", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_neither_losses_nor_gradients(kind, speakers):
    if speakers > 3:
        pytest.importorskip("scipy")
    loss = SeparationLoss(kind=kind, max_db=30.0)
    estimates, targets = separated(3, speakers, 500)
    lengths = torch.tensor([500, 320, 77])
    for x in (estimates, targets):
        for item, length in zip(x, lengths):
            item[:, length:] = float("nan")
    estimates.requires_grad_()
    losses, order = loss(estimates, targets, lengths)
    losses.sum().backward()
    assert estimates.grad is not None
    for b, n in enumerate(lengths.tolist()):
        alone = estimates[b : b + 1, :, :n].detach().clone().requires_grad_()
        want, want_order = loss(alone, targets[b : b + 1, :, :n], lengths[b : b + 1])
        want.sum().backward()
        torch.testing.assert_close(losses[b : b + 1], want, atol=1e-5, rtol=1e-5)
        assert order[b].tolist() == want_order[0].tolist()
        torch.testing.assert_close(estimates.grad[b, :, :n], alone.grad[0], atol=1e-5, rtol=1e-4)
        assert not estimates.grad[b, :, n:].any()


@pytest.mark.parametrize("zero_mean", [False, True])
@pytest.mark.parametrize("max_db", [None, 10.0])
@pytest.mark.parametrize("score", SCORES)
def test_gradients_equal_finite_differences(score, max_db, zero_mean):
    estimates = (10 * signals(2, 3, 9, seed=1, dtype=torch.float64)).requires_grad_()
    targets = (10 * signals(2, 2, 9, seed=2, dtype=torch.float64)).requires_grad_()
    lengths = torch.tensor([9, 6])
    assert torch.autograd.gradcheck(
        lambda e, t: score(e, t, lengths, zero_mean=zero_mean, max_db=max_db), (estimates, targets)
    )


@pytest.mark.parametrize("speakers", [2, 3])
def test_gradient_of_the_loss_equals_finite_differences(speakers):
    estimates, targets = (x.double().requires_grad_() for x in separated(2, speakers, 12))
    loss = SeparationLoss()
    lengths = torch.tensor([12, 8])
    assert torch.autograd.gradcheck(lambda e: loss(e, targets.detach(), lengths)[0], (estimates,))


@pytest.mark.parametrize("max_db", [None, 30.0])
@pytest.mark.parametrize("score", SCORES)
def test_silence_and_perfection_stay_finite(score, max_db):
    sound = signals(1, 1, 200)
    constant, silence = torch.full_like(sound, 0.25), torch.zeros_like(sound)
    everything = torch.cat([sound, constant, silence], dim=1)
    lengths = torch.tensor([200])
    for n in (lengths, torch.tensor([1]), torch.tensor([0])):
        estimates = everything.clone().requires_grad_()
        targets = everything.clone().requires_grad_()
        scores = score(estimates, targets, n, max_db=max_db)
        scores.sum().backward()
        assert scores.isfinite().all()
        assert estimates.grad is not None
        assert estimates.grad.isfinite().all()
        assert targets.grad is not None
        assert targets.grad.isfinite().all()


def test_si_snr_of_silence_is_the_worst_and_teaches_nothing():
    estimates = signals(1, 2, 200).requires_grad_()
    score = pairwise_si_snr(estimates, torch.zeros(1, 1, 200), torch.tensor([200]))
    score.sum().backward()
    assert score.flatten().tolist() == pytest.approx([-80.0, -80.0])
    assert estimates.grad is not None
    assert not estimates.grad.any()


@pytest.mark.parametrize("score", [pairwise_snr, pairwise_log_mse])
def test_silent_targets_ask_for_quieter_estimates(score):
    loud = signals(1, 1, 200)
    estimates = torch.cat([loud, 0.1 * loud, 0.01 * loud], dim=1).requires_grad_()
    scores = score(estimates, torch.zeros(1, 1, 200), torch.tensor([200]))
    assert scores.flatten().diff().tolist() == pytest.approx([20.0, 20.0], abs=0.01)
    scores.sum().backward()
    assert estimates.grad is not None
    assert ((estimates.grad * estimates.detach()).sum(2) < 0).all()  # less is better


@pytest.mark.parametrize("score", [pairwise_si_snr, pairwise_snr])
def test_threshold_limits_the_score_and_fades_the_gradient(score):
    target = signals(1, 1, 1000)
    length = torch.tensor([1000])
    norms = []
    for noise in (1e-1, 1e-4):
        estimate = (target + noise * signals(1, 1, 1000, seed=1)).requires_grad_()
        free = score(estimate, target, length)
        limited = score(estimate, target, length, max_db=30.0)
        noise_to_signal = 10 ** (-free.item() / 10)
        want = -10 * math.log10(noise_to_signal + 1e-3)
        assert limited.item() == pytest.approx(want, abs=1e-3)
        limited.sum().backward()
        assert estimate.grad is not None
        norms.append(estimate.grad.norm().item() * noise)  # without a threshold it is constant
    assert norms[1] < 1e-3 * norms[0]


def test_log_mse_with_threshold_follows_its_formula():
    estimates, targets = separated(1, 1, 300)
    got = pairwise_log_mse(estimates, targets, torch.tensor([300]), max_db=20.0).item()
    error = (estimates - targets).square().mean() + 0.01 * targets.square().mean()
    assert got == pytest.approx(-10 * math.log10(error), abs=1e-4)


def brute_force(scores: Tensor) -> float:
    speakers = range(len(scores))
    return max(
        sum(scores[order[s], s].item() for s in speakers) / len(scores)
        for order in itertools.permutations(speakers)
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_assignment_equals_brute_force(speakers, seed):
    if speakers > 3:
        pytest.importorskip("scipy")
    scores = 100 * signals(2, speakers, speakers, seed=seed, dtype=torch.float64)
    value, order = permutation_invariant(scores)
    assert order.dtype == torch.int64
    for b in range(2):
        assert sorted(order[b].tolist()) == list(range(speakers))
        picked = scores[b, order[b], torch.arange(speakers)].mean()
        assert value[b].item() == pytest.approx(picked.item())
        assert value[b].item() == pytest.approx(brute_force(scores[b]))


@pytest.mark.parametrize("speakers", [3, 5, 20])
def test_permuting_estimates_permutes_the_order(speakers):
    if speakers > 3:
        pytest.importorskip("scipy")
    estimates, targets = separated(2, speakers, 400)
    lengths = torch.tensor([400, 300])
    loss = SeparationLoss()
    losses, order = loss(estimates, targets, lengths)
    assert order.tolist() == [list(range(speakers))[::-1]] * 2
    mixed = torch.randperm(speakers, generator=torch.Generator().manual_seed(0))
    mixed_losses, mixed_order = loss(estimates[:, mixed], targets, lengths)
    torch.testing.assert_close(mixed_losses, losses)
    assert torch.equal(mixed[mixed_order], order)
    by_target = estimates.gather(1, order.unsqueeze(2).expand_as(estimates))
    assert loss(by_target, targets, lengths)[1].tolist() == [list(range(speakers))] * 2


@pytest.mark.parametrize("speakers", [2, 4])
def test_unknown_scores_are_avoided_and_do_not_vanish(speakers):
    if speakers > 3:
        pytest.importorskip("scipy")
    scores = torch.zeros(1, speakers, speakers)
    scores[0, 0, 0] = float("nan")
    value, order = permutation_invariant(scores)
    assert order[0, 0] != 0
    assert value.item() == 0.0
    assert permutation_invariant(scores * float("nan")).value.isnan().all()


def test_half_precision_and_autocast_are_computed_precisely():
    estimates, targets = separated(2, 2, 4000)
    estimates = estimates + 1e-3 * targets  # 10 dB, where bfloat16 products would be far off
    lengths = torch.tensor([4000, 3000])
    loss = SeparationLoss()
    want, _ = loss(estimates, targets, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = loss(estimates, targets, lengths)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    low = estimates.bfloat16().requires_grad_()
    losses, _ = loss(low, targets, lengths)
    losses.sum().backward()
    torch.testing.assert_close(losses, want, atol=0.05, rtol=0)
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss(low.float(), targets, lengths)[0], losses)


def test_high_scores_are_exact_in_float32():
    """At 60 dB the error is a millionth of the power: a product in float32 would miss it."""
    target = signals(1, 1, 32000)
    estimate = target + 1e-3 * signals(1, 1, 32000, seed=1)
    got = pairwise_si_snr(estimate, target, torch.tensor([32000])).item()
    assert got == pytest.approx(direct("si_snr", estimate[0, 0], target[0, 0]), abs=0.05)


def test_an_empty_batch_has_no_losses():
    empty = torch.zeros(0, 2, 100)
    losses, order = SeparationLoss()(empty, empty, torch.zeros(0, dtype=torch.long))
    assert losses.shape == (0,)
    assert order.shape == (0, 2)


@pytest.mark.parametrize(
    ("estimates", "targets", "lengths", "message"),
    [
        ((2, 3, 50), (2, 2, 50), [50, 50], r"another number of speakers.*\(2, 3, 50\).*\(2, 2"),
        ((2, 2, 50), (2, 2, 49), [49, 49], r"differ in length.*\(2, 2, 50\).*\(2, 2, 49\)"),
        ((2, 2, 50), (1, 2, 50), [50, 50], r"batches of different sizes"),
        ((2, 50), (2, 50), [50, 50], r"must be \(B, S, T\), got estimates \(2, 50\)"),
        ((2, 2, 50), (2, 2, 50), [50], r"lengths must be \(B,\), got \(1,\)"),
        ((2, 2, 50), (2, 2, 50), [50, 51], r"lengths \[50, 51\] exceed"),
    ],
)
def test_wrong_shapes_are_named(estimates, targets, lengths, message):
    with pytest.raises(ValueError, match=message):
        SeparationLoss()(torch.zeros(estimates), torch.zeros(targets), torch.tensor(lengths))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"kind='sisnr' is no separation loss.*'log_mse'"):
        SeparationLoss(kind="sisnr")
    with pytest.raises(ValueError, match=r"\(B, S, S\) with S >= 1, got \(1, 2, 3\)"):
        permutation_invariant(torch.zeros(1, 2, 3))


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"4 speakers needs scipy.*speechkit\[separation\]"):
        permutation_invariant(torch.zeros(1, 4, 4))
    assert permutation_invariant(torch.eye(3)[None]).order.tolist() == [[0, 1, 2]]
