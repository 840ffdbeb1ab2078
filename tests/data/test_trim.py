"""Silence at the ends, and loudness."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from speechkit.data.audio import read_audio
from speechkit.data.errors import DataError
from speechkit.data.speech_level import active_speech_level
from speechkit.data.trim import SetLoudness, TrimSilence, k_weighting, loudness, sound_span

RATE = 8000


def sound(seconds: float = 0.5, amplitude: float = 0.5) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * 440 / RATE * torch.arange(int(seconds * RATE)))


def call(transform: object, waveform: torch.Tensor) -> torch.Tensor:
    item = {"id": "a", "waveform": waveform}
    out = transform(item, torch.Generator())  # type: ignore[operator]
    assert out["id"] == "a"
    assert item["waveform"] is waveform  # the item that came in is as it was
    return out["waveform"]


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (0.5, 0.2), (0.02, 1.0), (0.3, 0.0)])
def test_the_ends_are_cut_to_the_margin(before: float, after: float) -> None:
    parts = [torch.zeros(int(before * RATE)), sound(), torch.zeros(int(after * RATE))]
    noisy = torch.cat(parts) + 1e-4 * torch.randn(sum(map(len, parts)))
    cut = call(TrimSilence(sample_rate=RATE, margin=0.1), noisy)
    wanted = min(before, 0.1) + 0.5 + min(after, 0.1)
    assert len(cut) / RATE == pytest.approx(wanted, abs=0.021)  # a window
    first = int(before * RATE)
    offset = next(i for i in range(len(noisy)) if torch.equal(noisy[i : i + len(cut)], cut))
    assert offset <= first
    assert offset + len(cut) >= first + len(sound())


def test_pauses_inside_stay_and_soft_sounds_by_the_threshold() -> None:
    waveform = torch.cat(
        [sound(0.2, 0.005), torch.zeros(4000), sound(), torch.zeros(4000), sound()]
    )
    assert sound_span(waveform, RATE, threshold_db=50.0) == (0, len(waveform))
    assert sound_span(waveform, RATE, threshold_db=30.0)[0] == pytest.approx(5600, abs=160)


def test_tiny_and_odd_waveforms() -> None:
    assert sound_span(torch.tensor([0.1]), RATE) == (0, 1)
    assert sound_span(torch.zeros(0), RATE) == (0, 0)
    assert sound_span(torch.ones(81), RATE) == (0, 81)
    with pytest.raises(ValueError, match=r"\(T,\)"):
        sound_span(torch.ones(2, 3), RATE)


def test_silence_is_an_error() -> None:
    for transform in (
        TrimSilence(sample_rate=RATE),
        SetLoudness(sample_rate=RATE),
        SetLoudness(sample_rate=RATE, measure="active"),
    ):
        with pytest.raises(DataError, match="silent"):
            call(transform, torch.zeros(RATE))


def test_real_recordings_are_cut_where_they_are_silent(real_data: Path) -> None:
    path = real_data / "LJSpeech-1.1/wavs/LJ001-0002.wav"
    waveform, rate = read_audio(path)
    silence = 1e-4 * torch.randn(rate)
    cut = call(TrimSilence(sample_rate=rate), torch.cat([silence, waveform, silence]))
    assert len(waveform) - 0.4 * rate < len(cut) <= len(waveform) + 2 * 0.05 * rate
    again = call(TrimSilence(sample_rate=rate), cut)
    assert abs(len(again) - len(cut)) <= 0.02 * rate


def test_the_filters_are_those_of_the_recommendation() -> None:
    # ITU-R BS.1770-4, tables 1 and 2, for 48 kHz.
    (shelf_b, shelf_a), (pass_b, pass_a) = k_weighting(48000)
    close = {"abs": 2e-12}
    assert shelf_b == pytest.approx(
        [1.53512485958697, -2.69169618940638, 1.19839281085285], **close
    )
    assert shelf_a == pytest.approx([1.0, -1.69065929318241, 0.73248077421585], **close)
    assert pass_b == [1.0, -2.0, 1.0]
    assert pass_a == pytest.approx([1.0, -1.99004745483398, 0.99007225036621], **close)


@pytest.mark.parametrize("rate", [16000, 22050, 24000, 44100, 48000])
def test_loudness_of_a_tone_at_any_rate(rate: int) -> None:
    # EBU Tech 3341, case 1 is -23 LUFS for a stereo sine of -23 dBFS: one channel is 3.01 lower.
    tone = 10 ** (-23 / 20) * torch.sin(2 * math.pi * 1000 / rate * torch.arange(5 * rate))
    assert loudness(tone, rate) == pytest.approx(-23.0 - 3.01, abs=0.1)
    quiet = torch.cat([tone, torch.zeros(5 * rate), 10 ** (-20 / 20) * tone])
    assert loudness(quiet, rate) == pytest.approx(-26.0, abs=0.2)  # gated by both gates


def test_loudness_agrees_with_torchaudio_where_that_does_not_clip(real_data: Path) -> None:
    from torchaudio.functional import loudness as peer

    waveform, rate = read_audio(real_data / "LJSpeech-1.1/wavs/LJ001-0001.wav")
    assert waveform.abs().max() < 0.95
    assert loudness(waveform, rate) == pytest.approx(float(peer(waveform[None], rate)), abs=0.15)


@pytest.mark.parametrize("measure", ["lufs", "active"])
def test_the_target_is_met_and_peaks_stay_below_one(measure: str) -> None:
    torch.manual_seed(1)
    waveform = torch.randn(2 * RATE) * torch.linspace(0.001, 0.02, 2 * RATE)

    def level(x: torch.Tensor) -> float:
        return loudness(x, RATE) if measure == "lufs" else active_speech_level(x, RATE).db

    change = SetLoudness(sample_rate=RATE, target=-26.0, measure=measure)
    assert level(call(change, waveform)) == pytest.approx(-26.0, abs=0.1)
    loud = call(SetLoudness(sample_rate=RATE, target=0.0, measure=measure), waveform)
    assert float(loud.abs().max()) == pytest.approx(1.0)


def test_a_short_word_has_a_loudness() -> None:
    word = sound(0.25)
    assert loudness(word, RATE) == pytest.approx(loudness(sound(2.0), RATE), abs=0.3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrimSilence(sample_rate=0),
        lambda: TrimSilence(sample_rate=RATE, threshold_db=0.0),
        lambda: TrimSilence(sample_rate=RATE, margin=-1.0),
        lambda: SetLoudness(sample_rate=RATE, measure="rms"),
        lambda: SetLoudness(sample_rate=RATE, target=math.nan),
        lambda: SetLoudness(sample_rate=RATE, peak=0.0),
        lambda: loudness(torch.zeros(2, 3), RATE),
        lambda: loudness(torch.tensor([math.nan]), RATE),
    ],
)
def test_wrong_arguments(make: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()  # type: ignore[operator]
