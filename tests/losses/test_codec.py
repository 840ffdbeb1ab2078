from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.features.mel import mel_filters
from speechkit.losses.codec import MultiScaleMelLoss, most_mels, waveform_l1

WINDOWS = (32, 128, 512)


def _pair(batch: int, channels: int, samples: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    target = 0.1 * torch.randn(batch, channels, samples, generator=generator)
    return target + 0.02 * torch.randn(target.shape, generator=generator), target


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 700), min_size=1, max_size=3),
    channels=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_each_item_gives_what_it_gives_alone(lengths: list[int], channels: int, seed: int) -> None:
    samples = max(lengths) + 50
    estimate, target = _pair(len(lengths), channels, samples, seed)
    for row, length in enumerate(lengths):
        estimate[row, :, length:] = math.nan
        target[row, :, length:] = math.inf
    estimate.requires_grad_()
    mel = MultiScaleMelLoss(sample_rate=16000, windows=WINDOWS)
    for loss in (waveform_l1, mel):
        batched = loss(estimate, target, torch.tensor(lengths))
        (gradient,) = torch.autograd.grad(batched.sum(), estimate)
        assert gradient.isfinite().all()
        for row, length in enumerate(lengths):
            assert not gradient[row, :, length:].any()
            if length == 0:
                assert batched[row] == 0
                continue
            piece = slice(row, row + 1), slice(None), slice(length)
            alone = loss(estimate[piece], target[piece], torch.tensor([length]))
            torch.testing.assert_close(batched[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_equal_signals_are_at_distance_zero() -> None:
    _, target = _pair(2, 2, 5000)
    lengths = torch.tensor([5000, 40])
    for loss in (waveform_l1, MultiScaleMelLoss(sample_rate=24000)):
        assert loss(target, target, lengths).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-10, 1.0])
def test_gradients_are_finite_on_silence(power: float, level: float) -> None:
    mel = MultiScaleMelLoss(sample_rate=16000, windows=WINDOWS, power=power)
    noise = torch.randn(1, 1, 1000)
    for estimate, target in ((level * noise, 0 * noise), (0 * noise, level * noise)):
        estimate = estimate.requires_grad_()
        loss = mel(estimate, target, torch.tensor([1000]))
        (gradient,) = torch.autograd.grad(loss.sum(), estimate)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_mel_loss_follows_its_formula() -> None:
    # By numpy and by frames, beside the shared front end.
    estimate, target = _pair(1, 1, 400)
    window, rate, alpha, floor = 64, 16000, 3.0, 1e-5
    bands = most_mels(window, sample_rate=rate)
    bank = mel_filters(33, f_min=0.0, f_max=8000.0, num_mels=bands, sample_rate=rate).numpy()
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)

    def spectrum(x: torch.Tensor) -> np.ndarray:
        padded = np.pad(x[0, 0].numpy().astype(np.float64), window // 2, mode="reflect")
        frames = [padded[i : i + window] * hann for i in range(0, 401, 16)]
        return np.abs(np.fft.rfft(frames)) / np.sqrt((hann**2).sum()) @ bank

    x, y = spectrum(target), spectrum(estimate)
    logs = np.log10(y + floor) - np.log10(x + floor)
    want = (np.abs(y - x).mean() + alpha * (logs**2).mean()) / (1 + alpha)
    mel = MultiScaleMelLoss(sample_rate=rate, windows=(window,), alphas=(alpha,), floor=floor)
    assert mel(estimate, target, torch.tensor([400])).item() == pytest.approx(want, rel=1e-4)


def test_the_level_of_noise_counts_alike_at_all_windows() -> None:
    # The STFT is normalised: the first term does not grow with the window but by its bands' width.
    noise = 0.1 * torch.randn(1, 1, 48000)
    levels = []
    for window in (256, 512, 1024, 2048):
        mel = MultiScaleMelLoss(
            sample_rate=16000, windows=(window,), num_mels=8, alphas=(0.0,), floor=1.0
        )
        level = mel(torch.zeros_like(noise), noise, torch.tensor([48000])).item()
        levels.append(level / window)
    assert max(levels) / min(levels) < 1.05


@pytest.mark.parametrize("rate", [16000, 24000, 48000])
def test_no_band_is_empty_and_one_more_would_be_nearly(rate: int) -> None:
    for window in (32, 64, 128, 256, 512, 1024, 2048):
        count = most_mels(window, sample_rate=rate)
        assert 1 <= count <= 64
        for bands, good in ((count, True), (count + 1, False)):
            bank = mel_filters(
                window // 2 + 1, f_min=0.0, f_max=rate / 2, num_mels=bands, sample_rate=rate
            )
            if good or count < 64:
                assert bool((bank.amax(0) >= 0.5).all()) is good


def test_a_low_pass_costs_more_in_mel_than_on_the_waveform() -> None:
    # What the spectra are for: a dull copy is near in L1 and far in log-mel.
    time = torch.arange(16000) / 16000
    target = 0.5 * torch.sin(2 * math.pi * 200 * time) + 0.01 * torch.randn(16000)
    dull = 0.5 * torch.sin(2 * math.pi * 200 * time)
    shifted = 0.45 * torch.sin(2 * math.pi * 200 * time) + (target - dull)
    mel = MultiScaleMelLoss(sample_rate=16000)
    signals = [x.view(1, 1, -1) for x in (dull, shifted, target)]
    lengths = torch.tensor([16000])
    by_mel = [mel(x, signals[2], lengths).item() for x in signals[:2]]
    by_sample = [waveform_l1(x, signals[2], lengths).item() for x in signals[:2]]
    assert by_sample[0] < by_sample[1]
    assert by_mel[0] > 5 * by_mel[1]


def test_descent_on_the_mel_loss_comes_nearer() -> None:
    estimate, target = _pair(1, 1, 1000)
    estimate.requires_grad_()
    mel = MultiScaleMelLoss(sample_rate=16000, windows=WINDOWS)
    optimizer = torch.optim.Adam([estimate], lr=1e-3)
    values = []
    for _ in range(30):
        loss = mel(estimate, target, torch.tensor([1000])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": ()}, "multiples of 4"),
        ({"windows": (30,)}, "30"),
        ({"alphas": (1.0,)}, "each of the windows"),
        ({"floor": 0.0}, "floor"),
        ({"num_mels": 0}, "num_mels"),
        ({"power": 3.0}, "power"),
    ],
)
def test_bad_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiScaleMelLoss(sample_rate=16000, **options)


def test_shapes_that_disagree_are_named() -> None:
    estimate, target = _pair(2, 1, 100)
    for loss in (waveform_l1, MultiScaleMelLoss(sample_rate=16000, windows=(32,))):
        with pytest.raises(ValueError, match="99"):
            loss(estimate, target[..., :99], torch.tensor([99, 99]))
        with pytest.raises(ValueError, match="lengths"):
            loss(estimate, target, torch.tensor([99]))


def test_under_autocast_the_loss_is_that_of_float32() -> None:
    estimate, target = _pair(1, 1, 1000)
    mel = MultiScaleMelLoss(sample_rate=16000, windows=WINDOWS)
    want = mel(estimate, target, torch.tensor([1000]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = mel(estimate, target, torch.tensor([1000]))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)
