"""Distances of synthesized speech from recordings: their scale, their path, and real speech."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechkit.data.audio import read_audio
from speechkit.metrics.separation import NotComputableError
from speechkit.metrics.tts import compare, f0_errors, mel_cepstra, mel_cepstral_distortion

RATE = 16000


def noise(seconds: float = 0.6, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def filtered(signal: Tensor, order: int, size: float) -> Tensor:
    """Multiply a spectrum so that ``ln |H|`` is a cosine of the mel scale."""
    spectrum = torch.fft.rfft(signal.double())
    hertz = torch.linspace(0, RATE / 2, len(spectrum), dtype=torch.float64)
    mels = torch.log10(1 + hertz / 700)
    gain = torch.exp(size * torch.cos(order * math.pi * mels / mels[-1]))
    return torch.fft.irfft(spectrum * gain, len(signal)).float()


def spoken(*hertz: float, seconds: float = 0.2, pauses: bool = True) -> Tensor:
    """Give buzzes of these pitches, each with its own formant, between pauses of noise."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for number, f0 in enumerate(hertz):
        time = torch.arange(int(seconds * RATE)) / RATE
        center = 400 * (number + 2)
        parts.append(
            sum(
                torch.sin(2 * torch.pi * k * f0 * time) / (1 + ((k * f0 - center) / 200) ** 2)
                for k in range(1, 30)
            )
        )
        if pauses:
            parts.append(0.05 * torch.randn(int(0.1 * RATE), generator=generator))
    return 0.1 * torch.cat(parts)


@pytest.mark.parametrize("order", [1, 3, 9])
def test_the_scale_is_that_of_the_log_amplitude(order: int) -> None:
    size = 0.3
    change = mel_cepstra(filtered(noise(), order, size), RATE) - mel_cepstra(noise(), RATE)
    want = torch.zeros(13, dtype=torch.float64)
    want[order - 1] = size
    torch.testing.assert_close(change.mean(dim=0), want, atol=0.03, rtol=0)
    found = mel_cepstral_distortion(noise(), filtered(noise(), order, size), RATE)
    assert found == pytest.approx(10 / math.log(10) * math.sqrt(2) * size, rel=0.1)


def test_coefficients_beyond_the_last_are_not_heard() -> None:
    other = filtered(noise(), 16, 0.3)
    assert mel_cepstral_distortion(noise(), other, RATE) < 0.6
    assert mel_cepstral_distortion(noise(), other, RATE, num_ceps=20) > 1.5


def test_a_copy_at_any_level_is_no_distance() -> None:
    signal = spoken(120, 180)
    found = compare(signal, 0.25 * signal, RATE)
    assert found.mcd < 1e-3
    assert found.f0_rmse_cents == pytest.approx(0.0, abs=1e-3)
    assert (found.voicing_error, found.duration_ratio) == (0.0, 1.0)


def test_a_slow_speaker_says_the_same() -> None:
    quick, slow = spoken(120, 180, 140), spoken(120, 180, 140, seconds=0.3)
    other = spoken(180, 120, 140)[: len(quick)]
    found = compare(quick, slow, RATE)
    assert found.duration_ratio == pytest.approx(1.2 / 0.9)
    assert found.f0_rmse_cents is not None
    assert found.f0_rmse_cents < 60
    assert found.voicing_error < 10
    # Not so one frame beside the other, as far as both go.
    ours, theirs = mel_cepstra(quick, RATE), mel_cepstra(slow, RATE)[: len(quick) // 80 + 1]
    straight = 10 / math.log(10) * math.sqrt(2) * (ours - theirs).norm(dim=1).mean()
    assert found.mcd < 0.7 * float(straight)
    assert compare(quick, other, RATE).f0_rmse_cents > 5 * found.f0_rmse_cents


def test_pitch_and_voicing_errors() -> None:
    signal = spoken(120, 180, pauses=False)
    higher = spoken(120 * 2 ** (2 / 12), 180 * 2 ** (2 / 12), pauses=False)
    found = compare(signal, higher, RATE)
    assert found.f0_rmse_cents == pytest.approx(200, abs=60)
    whispered = compare(signal, noise(0.4), RATE)
    assert whispered.voicing_error > 80
    assert whispered.f0_rmse_cents is None or whispered.voicing_error < 100
    f0 = torch.tensor([100.0, 0.0, 200.0, 150.0]), torch.tensor([100.0, 80.0, 400.0, 0.0])
    cents, voicing = f0_errors(*f0)
    assert cents == pytest.approx(1200 / math.sqrt(2))
    assert voicing == 50.0
    assert f0_errors(torch.zeros(3), torch.zeros(3)) == (None, 0.0)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        f0_errors(torch.zeros(2), torch.zeros(3))


def test_silence_at_the_ends_costs_the_ratio_alone() -> None:
    signal = spoken(120, 180)
    silence = 1e-5 * noise(0.5, seed=3)
    found = compare(signal, torch.cat([silence, signal, silence, silence]), RATE)
    assert found.duration_ratio == pytest.approx((len(signal) + 1.5 * RATE) / len(signal))
    assert found.mcd < 0.5
    assert found.voicing_error < 5


def test_refused() -> None:
    with pytest.raises(NotComputableError, match="estimate is silent"):
        compare(noise(), torch.zeros(8000), RATE)
    with pytest.raises(NotComputableError, match="reference is empty"):
        compare(torch.zeros(0), noise(), RATE)
    with pytest.raises(ValueError, match="not finite"):
        compare(noise(), torch.full((800,), math.nan), RATE)
    with pytest.raises(ValueError, match=r"must be \(T,\), got shape \(1, 9600\)"):
        compare(noise()[None], noise(), RATE)
    with pytest.raises(ValueError, match="need 1 <= num_ceps < 80 bands, got 80"):
        mel_cepstra(noise(), RATE, num_ceps=80)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 48000])
def test_no_band_is_empty(rate: int) -> None:
    cepstra = mel_cepstra(torch.randn(rate // 4), rate, num_ceps=79)
    assert torch.isfinite(cepstra).all()
    # A band without a bin would lie at the floor in every frame: 80 dB is 18 nepers of power.
    assert float(cepstra.abs().max()) < 1.0


def test_real_digits_are_nearer_to_their_own(real_data: Path) -> None:
    digits = {
        (digit, take): read_audio(real_data / "fsdd/recordings" / f"{digit}_george_{take}.wav")[0]
        for digit in range(4)
        for take in (10, 11)
    }
    for digit in range(4):
        found = [mel_cepstral_distortion(digits[digit, 10], digits[n, 11], 8000) for n in range(4)]
        assert min(found) == found[digit]
        assert 1 < found[digit] < 10
