"""F0 by YIN: against its formula, on voices of known pitch, and on real speech."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.data.audio import read_audio
from speechkit.features.pitch import _normalized_difference, track_pitch
from speechkit.features.spectrum import LogMel

RATE = 16000


def voice(f0: Tensor, harmonics: int = 10) -> Tensor:
    """Give a buzz whose F0 is ``(T,)``, in Hz by sample."""
    phase = 2 * torch.pi * (f0.double() / RATE).cumsum(0)
    return sum(torch.sin(k * phase) / k for k in range(1, harmonics + 1)).float() * 0.2


def test_the_difference_function_is_the_papers() -> None:
    frames = torch.randn(3, 90, dtype=torch.float64)
    found = _normalized_difference(frames, 40, 50)
    for frame, values in zip(frames, found):
        d = [float((frame[:40] - frame[lag : lag + 40]).square().sum()) for lag in range(51)]
        want = [1.0] + [d[lag] * lag / sum(d[1 : lag + 1]) for lag in range(1, 51)]
        assert values.tolist() == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("hertz", [65.0, 82.4, 110.0, 220.0, 333.3, 490.0])
def test_steady_voices(hertz: float) -> None:
    pitch = track_pitch(voice(torch.full((8000,), hertz)), RATE, hop_length=80)
    middle = pitch.f0[10:-10]
    assert (middle > 0).all()
    cents = 1200 * torch.log2(middle / hertz)
    assert float(cents.abs().max()) < 5.0


def test_a_gliding_voice_is_followed() -> None:
    f0 = torch.linspace(100, 300, 16000)
    pitch = track_pitch(voice(f0), RATE, hop_length=160)
    want = f0[::160][8:-8]
    cents = 1200 * torch.log2(pitch.f0[8 : 8 + len(want)] / want)
    assert float(cents.abs().max()) < 20.0


def test_noise_and_silence_have_no_voice() -> None:
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    pitch = track_pitch(noise, RATE, hop_length=160)
    assert float((pitch.f0 > 0).double().mean()) < 0.02
    assert float(pitch.aperiodicity.median()) > 0.5
    assert not track_pitch(torch.zeros(4000), RATE, hop_length=160).f0.any()
    assert not track_pitch(torch.full((4000,), 0.3), RATE, hop_length=160).f0[5:-5].any()
    # A buzz far below the speech is no speech.
    hum = voice(torch.full((16000,), 100.0))
    hum[8000:] *= 1e-3
    f0 = track_pitch(hum, RATE, hop_length=160).f0
    assert f0[5:45].all()
    assert not f0[55:].any()


@pytest.mark.parametrize("length", [1, 79, 80, 81, 4000])
def test_frames_are_those_of_the_spectrum(length: int) -> None:
    pitch = track_pitch(torch.randn(length), 8000, hop_length=80)
    mel = LogMel(sample_rate=8000, hop_length=80, n_fft=400, num_mels=20)
    count = int(mel.num_frames(torch.tensor([length])))
    assert pitch.f0.shape == pitch.aperiodicity.shape == (count,)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = voice(torch.linspace(100, 200, 8000))
    whole = track_pitch(samples, RATE, hop_length=80)
    monkeypatch.setattr("speechkit.features.pitch._BLOCK_FRAMES", 7)
    parts = track_pitch(samples, RATE, hop_length=80)
    torch.testing.assert_close(parts.f0, whole.f0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f_min": 300.0, "f_max": 200.0}, "need 0 < f_min < f_max < sample_rate / 4"),
        ({"f_max": 4000.0}, "f_max=4000.0, sample_rate=16000"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"hop_length": 0}, "hop_length=0"),
        ({"waveform": torch.zeros(0)}, "finite and not empty, got shape (0,)"),
        ({"waveform": torch.full((9,), torch.nan)}, "finite and not empty, got shape (9,)"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    options = {"waveform": torch.zeros(800), "hop_length": 80, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        track_pitch(options.pop("waveform"), RATE, **options)


def test_real_speech_played_faster(real_data: Path) -> None:
    samples, rate = read_audio(real_data / "LJSpeech-1.1" / "wavs" / "LJ001-0002.wav")
    hop = rate // 200
    slow = track_pitch(samples, rate, hop_length=hop).f0
    # The same samples at five quarters of the rate: every F0 is five quarters of what it was.
    fast = track_pitch(samples, rate * 5 // 4, hop_length=hop, f_max=625.0, f_min=75.0).f0
    both = (slow > 0) & (fast > 0)
    assert float((slow > 0).double().mean()) > 0.3
    assert 120 < float(slow[slow > 0].median()) < 300  # a woman's voice
    cents = 1200 * torch.log2(fast[both] / slow[both] / 1.25)
    assert float(cents.abs().median()) < 10
    assert float((cents.abs() < 50).double().mean()) > 0.9
