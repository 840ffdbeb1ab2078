"""Separation losses and metrics against the peers' own."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from speechkit.losses.separation import SeparationLoss, pairwise_si_snr, pairwise_snr
from speechkit.metrics.separation import signal_to_distortion


def _batch(speakers: int, time: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(speakers)
    targets = 0.1 * torch.randn(3, speakers, time, generator=generator)
    noise = 0.1 * torch.randn(3, speakers, time, generator=generator)
    estimates = targets.roll(1, dims=1) + 0.5 * noise + 0.01
    return estimates, targets, torch.full((3,), time)


@pytest.mark.parametrize("speakers", [2, 3, 5])
@pytest.mark.parametrize("kind", ["si_snr", "snr"])
def test_losses_and_gradients_equal_speechbrain(kind: str, speakers: int) -> None:
    losses = pytest.importorskip("speechbrain.nnet.losses")
    if speakers > 3:
        pytest.importorskip("scipy")
    estimates, targets, lengths = _batch(speakers)
    ours, theirs = estimates.clone().requires_grad_(), estimates.clone().requires_grad_()
    # SpeechBrain removes means from its SNR, too
    got, _ = SeparationLoss(kind=kind, zero_mean=True)(ours, targets, lengths)
    name = "get_si_snr_with_pitwrapper" if kind == "si_snr" else "get_snr_with_pitwrapper"
    time_first = targets.transpose(1, 2).clone(), theirs.transpose(1, 2) * 1.0  # both overwritten
    if kind == "snr":  # (B, T, ears, S)
        time_first = time_first[0].unsqueeze(2), time_first[1].unsqueeze(2)
    want = getattr(losses, name)(*time_first)
    torch.testing.assert_close(got, want.reshape(3), atol=2e-3, rtol=1e-4)
    got.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)


def test_pairwise_si_snr_equals_speechbrain() -> None:
    losses = pytest.importorskip("speechbrain.nnet.losses")
    estimates, targets, lengths = _batch(3)
    got = pairwise_si_snr(estimates, targets, lengths)
    for e in range(3):
        estimate = estimates[:, e : e + 1].expand_as(targets).permute(2, 0, 1).clone()
        want = -losses.cal_si_snr(targets.permute(2, 0, 1).clone(), estimate)[0]  # (B, S')
        torch.testing.assert_close(got[:, e], want, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("speakers", [2, 3, 5])
def test_losses_and_orders_equal_asteroid(speakers: int) -> None:
    asteroid = pytest.importorskip("asteroid.losses")
    if speakers > 3:
        pytest.importorskip("scipy")
    estimates, targets, lengths = _batch(speakers)
    for kind, name in (("si_snr", "pairwise_neg_sisdr"), ("snr", "pairwise_neg_snr")):
        wrapper = asteroid.PITLossWrapper(getattr(asteroid, name), pit_from="pw_mtx")
        want, reordered = wrapper(estimates, targets, return_est=True)
        got, order = SeparationLoss(kind=kind, zero_mean=True)(estimates, targets, lengths)
        torch.testing.assert_close(got.mean(), want, atol=2e-3, rtol=1e-4)
        picked = estimates.gather(1, order.unsqueeze(2).expand_as(estimates))
        torch.testing.assert_close(picked, reordered)


def test_scores_equal_torchmetrics() -> None:
    audio = pytest.importorskip("torchmetrics.functional.audio")
    estimates, targets, lengths = _batch(2)
    want = audio.scale_invariant_signal_noise_ratio(estimates, targets)
    got = pairwise_si_snr(estimates, targets, lengths).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-4)
    want = audio.signal_noise_ratio(estimates, targets)
    got = pairwise_snr(estimates, targets, lengths).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("time", [700, 8000])
def test_sdr_equals_mir_eval(time: int) -> None:
    """To 1e-3 dB, also of speech-like (strongly colored) sources and filtered estimates."""
    mir_eval = pytest.importorskip("mir_eval.separation")
    pytest.importorskip("fast_bss_eval")
    lfilter = pytest.importorskip("scipy.signal").lfilter
    noise = torch.randn(2, time, generator=torch.Generator().manual_seed(0)).double().numpy()
    sources = lfilter([0.1], [1.0, -0.95], noise)
    estimates = lfilter([1.0, 0.4, -0.2], [1.0], sources + 0.2 * sources[::-1]) + 0.01 * noise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it says that it will leave mir_eval
        want = mir_eval.bss_eval_sources(sources, estimates, compute_permutation=False)[0]
    got = [
        signal_to_distortion(torch.from_numpy(estimate), torch.from_numpy(source))
        for estimate, source in zip(estimates, sources)
    ]
    assert got == pytest.approx(want.tolist(), abs=1e-3)
