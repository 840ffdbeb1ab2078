"""Filtered pulses and noise: the pitch that is asked for, filters as given, padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.features.pitch import track_pitch
from speechkit.losses.vocoder import pitch_loss
from speechkit.nn.convnext import ConvNeXtEncoder
from speechkit.nn.source_filter import (
    PredictedPitch,
    SourceFilterGenerator,
    minimum_phase,
    pulse_train,
)

HOP = 20


def build(**changes: Any) -> SourceFilterGenerator:
    torch.manual_seed(0)
    encoder = ConvNeXtEncoder(input_size=6, embed_dim=8, num_layers=1, hidden_size=12)
    numbers: dict[str, Any] = {
        "sample_rate": 8000, "num_mels": 6, "hop_length": HOP, "num_bands": 17, "n_fft": 256,
        "encoder": encoder,
    }  # fmt: skip
    return SourceFilterGenerator(**{**numbers, **changes})


def test_pulses_have_the_pitch_and_flat_harmonics() -> None:
    f0, rate, hop = torch.linspace(100.0, 180.0, 200)[None], 16000, 160
    wave = pulse_train(f0, torch.tensor([200]), sample_rate=rate, hop_length=hop)
    assert float(wave.square().mean()) == pytest.approx(1.0, abs=0.05)
    # YIN compares samples: pulses between them look alike only when they are wide.
    wide = F.avg_pool1d(wave, 9, stride=1, padding=4)
    found = track_pitch(wide[0], rate, hop_length=hop).f0[5:195]
    torch.testing.assert_close(found.float(), f0[0, 5:195], rtol=0.01, atol=0.0)
    steady = pulse_train(
        torch.full((1, 100), 200.0), torch.tensor([100]), sample_rate=rate, hop_length=hop
    )
    power = torch.fft.rfft(steady[0, :16000]).abs()
    harmonics = power[200:7900:200]
    torch.testing.assert_close(harmonics, harmonics.mean().expand_as(harmonics), rtol=0.02, atol=0)
    assert float(power[300:7900:200].max()) < 0.02 * float(harmonics.min())


def test_the_last_frame_holds_its_pitch() -> None:
    f0 = torch.tensor([[100.0, 120.0, 400.0]])
    both = pulse_train(f0, torch.tensor([2]), sample_rate=8000, hop_length=80)
    alone = pulse_train(f0[:, :2], torch.tensor([2]), sample_rate=8000, hop_length=80)
    torch.testing.assert_close(both[:, :160], alone)


def test_minimum_phase_is_causal() -> None:
    torch.manual_seed(0)
    smooth = F.interpolate(torch.randn(3, 1, 9), size=129, mode="linear", align_corners=True)
    log_magnitude = smooth.squeeze(1)
    response = torch.polar(log_magnitude.exp(), minimum_phase(log_magnitude))
    impulse = torch.fft.irfft(response, 256)
    assert float(impulse[:, 128:].square().sum()) < 1e-3 * float(impulse.square().sum())
    # No other filter of these magnitudes has more of its energy at the start.
    zero_phase = torch.fft.irfft(log_magnitude.exp(), 256)
    assert bool((impulse[:, 0].abs() > 0.9 * zero_phase[:, 0].abs()).any())


def with_flat_filters(generator: SourceFilterGenerator, gains: tuple[float, float]) -> None:
    """Let both filters be the same number at all frequencies, whatever the mel."""
    for layer in (generator.filters, generator.envelope):
        torch.nn.init.zeros_(layer.weight)
    with torch.no_grad():
        bias = torch.tensor(gains).log().repeat_interleave(generator.num_bands)
        generator.filters.bias.copy_(bias)


@pytest.mark.parametrize(("gains", "channel"), [((1.0, 1e-6), 0), ((1e-6, 1.0), 1)])
def test_flat_filters_give_the_source(gains: tuple[float, float], channel: int) -> None:
    """Frames add up to what was cut into them, to the ends."""
    generator, lengths = build().eval(), torch.tensor([9, 4])
    with_flat_filters(generator, gains)
    mel = torch.randn(2, 6, 9)
    wave = generator(mel, lengths)
    generator.train()
    generator(mel, lengths)
    pitch = generator.take_pitch()
    assert pitch is not None
    source = generator.eval().source(pitch, lengths)[:, channel]
    torch.testing.assert_close(wave[:, 0], source, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gradients", [True, False])
def test_padding_changes_nothing(gradients: bool) -> None:
    generator = build().eval()
    lengths = torch.tensor([9, 5, 1, 0])
    mel = torch.randn(4, 6, 9)
    for row, size in enumerate(lengths.tolist()):
        mel[row, :, size:] = float("nan")
    with torch.set_grad_enabled(gradients):
        waves = generator(mel, lengths)
        assert waves.shape == (4, 1, 9 * HOP)
        for row, size in enumerate(lengths.tolist()):
            alone = generator(mel[row : row + 1, :, :size])
            # The pitch's last bits add up in the phase, and pulses are steep.
            both = (waves[row : row + 1, :, : size * HOP], alone)
            torch.testing.assert_close(*both, atol=1e-3, rtol=1e-3)
            assert not waves[row, :, size * HOP :].any()


def test_noise_differs_in_training_alone() -> None:
    generator, mel = build(), torch.randn(1, 6, 9)
    assert not torch.equal(generator(mel), generator(mel))
    assert generator.take_pitch() is not None
    assert generator.take_pitch() is None
    generator.eval()
    assert torch.equal(generator(mel), generator(mel))
    assert generator.take_pitch() is None


def test_every_parameter_learns_from_the_wave_or_the_pitch() -> None:
    generator, lengths = build(), torch.tensor([9, 4])
    wave = generator(torch.randn(2, 6, 9), lengths)
    pitch = generator.take_pitch()
    assert pitch is not None
    f0 = torch.tensor([[150.0] * 5 + [0.0] * 4] * 2)
    (wave.square().sum() + pitch_loss(pitch, f0, lengths).sum()).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_it_works_in_bfloat16_too() -> None:
    generator = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wave = generator(torch.randn(1, 6, 9))
    assert wave.dtype == torch.float32
    assert wave.isfinite().all()


def moving_bands(f0: Tensor) -> Tensor:
    """A mel whose strongest band follows the pitch, ``(B, 20, T)``."""
    bands = torch.linspace(80.0, 420.0, 20)
    return torch.exp(-((bands[:, None] - f0[:, None, :]) / 30.0).square())


def test_the_pitch_is_learnt_from_where_the_energy_lies() -> None:
    encoder = ConvNeXtEncoder(input_size=20, embed_dim=24, num_layers=2, hidden_size=32)
    generator = build(encoder=encoder, num_mels=20)
    f0 = torch.linspace(90.0, 400.0, 64).repeat(2, 1)[:, torch.randperm(64)]
    f0[:, ::7] = 0.0
    lengths = torch.tensor([64, 64])
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        generator(moving_bands(f0), lengths)
        found = generator.take_pitch()
        assert found is not None
        pitch_loss(found, f0, lengths).mean().backward()
        optimizer.step()
    voiced = f0 > 0
    assert ((found.voicing > 0) == voiced).float().mean() > 0.95
    octaves = (found.log_f0.detach().exp() / f0.clamp(min=1)).log2().abs()[voiced]
    assert float(octaves.median()) < 0.05


def test_the_loss_ignores_padding() -> None:
    f0, two = torch.tensor([[100.0, 0.0, 250.0]]), torch.tensor([2])
    predicted = PredictedPitch(torch.full((1, 3), 5.0), torch.zeros(1, 3))
    alone = PredictedPitch(*(x[:, :2] for x in predicted))
    torch.testing.assert_close(pitch_loss(predicted, f0, two), pitch_loss(alone, f0[:, :2], two))


@pytest.mark.parametrize("changes", [{"n_fft": 64}, {"num_bands": 1}, {"n_fft": 257}])
def test_numbers_that_do_not_fit(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="need an even n_fft of at least 6 hops"):
        build(**changes)
