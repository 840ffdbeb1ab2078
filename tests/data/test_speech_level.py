"""Active speech level: against a sample-by-sample reference, and what P.56 promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from speechkit.data import speech_level
from speechkit.data.speech_level import active_speech_level


def talk(seconds: float, rate: int, seed: int = 0) -> torch.Tensor:
    """Noise that comes and goes, as syllables and pauses do."""
    random = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    while sum(len(part) for part in parts) < seconds * rate:
        loud = random.normal(size=int(rate * random.uniform(0.1, 0.6))) * random.uniform(0.02, 0.3)
        parts += [loud, random.normal(size=int(rate * random.uniform(0.05, 0.5))) * 1e-4]
    return torch.from_numpy(np.concatenate(parts)[: int(seconds * rate)])


def reference(x: list[float], rate: int, margin: float = 15.9) -> tuple[float, float]:
    """Method B sample by sample: a counter of hangover for each threshold."""
    pole = math.exp(-1 / (0.03 * rate))
    first = second = energy = 0.0
    envelope = []
    for sample in x:
        first = pole * first + (1 - pole) * abs(sample)
        second = pole * second + (1 - pole) * first
        envelope.append(second)
        energy += sample * sample
    exponent = math.frexp(max(envelope) ** 2)[1]
    squares = [2.0 ** (exponent - 1 - j) for j in range(20)]
    hang = math.ceil(0.2 * rate)
    active, left = [0] * 20, [-1] * 20
    for value in envelope:
        for j, threshold in enumerate(squares):
            left[j] = hang if value * value >= threshold else left[j] - 1
            active[j] += left[j] >= 0
    active[19] = len(x)  # what is softer than all thresholds counts for the last
    levels = [10 * math.log10(energy / count) for count in active]
    excess = [a - 10 * math.log10(c) - margin for a, c in zip(levels, squares)]
    for j in range(19):
        if excess[j] < 0 <= excess[j + 1]:
            share = excess[j] / (excess[j] - excess[j + 1])
            power = 10 ** ((levels[j] + share * (levels[j + 1] - levels[j])) / 10)
            return power, energy / len(x) / power
    raise AssertionError("this signal must cross")


@pytest.mark.parametrize("rate", [8000, 16000])
def test_equals_the_recursion_sample_by_sample(rate: int) -> None:
    x = talk(2.0, rate, seed=rate)
    level = active_speech_level(x, rate, band_limit=False)
    power, activity = reference(x.tolist(), rate)
    assert level.power == pytest.approx(power, rel=1e-9)
    assert level.activity == pytest.approx(activity, rel=1e-9)
    assert 0.4 < level.activity < 1.0


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_band_filters_are_the_textbook_ones(rate: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    filters = speech_level._band_filters(rate)
    assert len(filters) == (1 if rate == 8000 else 2)
    edge = math.cosh(math.acosh(math.sqrt((1e5 - 1) / (10**0.025 - 1))) / 5)
    warped = [rate / math.pi * math.tan(math.pi * cutoff / rate) for cutoff in (200.0, 5500.0)]
    stops = [warped[0] / edge, warped[1] * edge]
    for (b, a), stop, kind in zip(filters, stops, ("highpass", "lowpass")):
        digital = rate / math.pi * math.atan(math.pi * stop / rate)
        b2, a2 = signal.cheby2(5, 50, digital, kind, fs=rate)
        np.testing.assert_allclose(b, b2, atol=1e-9)
        np.testing.assert_allclose(a, a2, atol=1e-9)


def test_high_pass_removes_hum_and_offset() -> None:
    x = talk(3.0, 8000)
    hum = 0.5 + torch.sin(torch.arange(len(x)) * 2 * math.pi * 30 / 8000)
    clean = active_speech_level(x, 8000).db
    assert abs(active_speech_level(x + hum, 8000).db - clean) < 0.2
    assert active_speech_level(x + hum, 8000, band_limit=False).db > clean + 6


@pytest.mark.parametrize(("gain", "tolerance"), [(2.0, 1e-9), (0.25, 1e-9), (0.3, 0.1), (5.0, 0.1)])
def test_gain_moves_the_level_by_its_square(gain: float, tolerance: float) -> None:
    x = talk(3.0, 16000)
    moved = active_speech_level(x * gain, 16000).db - active_speech_level(x, 16000).db
    assert moved == pytest.approx(20 * math.log10(gain), abs=tolerance)


def test_silence_lowers_the_mean_power_but_not_the_level() -> None:
    x = torch.cat([talk(4.0, 8000), torch.zeros(4000)])
    longer = torch.cat([x, torch.zeros(4 * 8000)])
    assert abs(active_speech_level(longer, 8000).db - active_speech_level(x, 8000).db) < 0.1
    assert 10 * torch.log10(longer.square().mean() / x.square().mean()) < -2.5
    ratio = active_speech_level(longer, 8000).activity / active_speech_level(x, 8000).activity
    assert ratio == pytest.approx(len(x) / len(longer), rel=0.03)


def test_half_a_tone_has_the_level_of_the_tone() -> None:
    tone = 0.1 * torch.sin(torch.arange(80000) * 2 * math.pi * 1000 / 16000)
    level = active_speech_level(torch.cat([tone, torch.zeros(80000)]), 16000)
    assert level.db == pytest.approx(-23.01, abs=0.3)  # 0.2 s of hangover and the decay in 5 s
    assert level.activity == pytest.approx(0.5, abs=0.04)


def test_silence_and_steady_signals() -> None:
    assert active_speech_level(torch.zeros(8000), 8000) == (0.0, 0.0)
    assert active_speech_level(torch.zeros(8000), 8000).db == -math.inf
    steady = active_speech_level(torch.ones(80000), 8000, band_limit=False)
    assert steady.power == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    "bad", [torch.zeros(0), torch.zeros(2, 8000), torch.tensor([0.0, math.nan])]
)
def test_what_is_no_waveform_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"samples \(T,\), got shape"):
        active_speech_level(bad, 8000)
