"""Augmentations: functions of (item, generator), and physically what they say."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.data.audio import write_audio
from speechkit.data.augment import (
    AddNoise,
    Augmentation,
    ChangeGain,
    ChangeSpeed,
    Clip,
    DropChunk,
    DropFrequency,
    LowPass,
    Reverberate,
    ShiftPitch,
)
from speechkit.data.manifest import DataError

RATE = 16000
ALL: list[Augmentation] = [
    AddNoise(),
    AddNoise(color="pink"),
    Reverberate(),
    ChangeSpeed(),
    ShiftPitch(),
    Clip(),
    DropChunk(),
    DropFrequency(),
    LowPass(),
    LowPass(mu_law_levels=256),
    ChangeGain(),
]
KEEP_LENGTH = [a for a in ALL if not isinstance(a, ChangeSpeed)]


def _tone(frequency: float, seconds: float = 1.0) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * frequency / RATE * torch.arange(int(seconds * RATE)))


def _apply(augmentation: Augmentation, waveform: Tensor, seed: int = 0) -> Tensor:
    item = {"id": "a", "waveform": waveform}
    return augmentation(item, torch.Generator().manual_seed(seed))["waveform"]


def _db(ratio: Tensor) -> float:
    return 10.0 * math.log10(float(ratio))


def _peak_hz(waveform: Tensor) -> float:
    windowed = waveform * torch.hann_window(len(waveform))
    spectrum = torch.fft.rfft(windowed, n=8 * RATE).abs()
    return int(spectrum.argmax()) / 8


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
@settings(max_examples=12, deadline=None)
@given(size=st.integers(0, 5000), seed=st.integers(0, 9999), silent=st.booleans())
def test_pure_float32_and_finite(
    augmentation: Augmentation, size: int, seed: int, silent: bool
) -> None:
    waveform = torch.zeros(size) if silent else torch.randn(size) * 0.1
    item = {"id": "a", "waveform": waveform}
    before, state = waveform.clone(), torch.get_rng_state()
    first = augmentation(item, torch.Generator().manual_seed(seed))
    second = augmentation(item, torch.Generator().manual_seed(seed))
    out = first["waveform"]
    assert torch.equal(out, second["waveform"])
    assert out.dtype == torch.float32
    assert out.dim() == 1
    assert torch.isfinite(out).all()
    assert torch.equal(item["waveform"], before)
    assert first["id"] == "a"
    assert torch.equal(torch.get_rng_state(), state)
    if augmentation in KEEP_LENGTH:
        assert len(out) == size


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_another_generator_gives_another_waveform(augmentation: Augmentation) -> None:
    waveform = torch.randn(8000) * 0.1
    outputs = [_apply(augmentation, waveform, seed) for seed in range(8)]
    assert any(not torch.equal(outputs[0], other) for other in outputs[1:])


def test_probability() -> None:
    waveform = torch.randn(100)
    changed = [
        not torch.equal(_apply(ChangeGain(gain_db=(6.0, 6.0), prob=0.3), waveform, seed), waveform)
        for seed in range(500)
    ]
    assert 0.24 < sum(changed) / 500 < 0.36
    assert torch.equal(_apply(ChangeGain(prob=0.0), waveform), waveform)


@pytest.mark.parametrize("color", ["white", "pink"])
@pytest.mark.parametrize("snr", [-5.0, 0.0, 17.5])
def test_noise_has_the_ratio_asked_for(color: str, snr: float) -> None:
    clean = _tone(440.0)
    noise = _apply(AddNoise(color=color, snr_db=(snr, snr)), clean) - clean
    assert abs(_db(clean.square().mean() / noise.square().mean()) - snr) < 0.1


def test_pink_noise_falls_by_3_db_an_octave() -> None:
    clean = _tone(440.0, 8.0)
    noise = _apply(AddNoise(color="pink", snr_db=(0.0, 0.0)), clean) - clean
    power = torch.fft.rfft(noise).abs().square()
    octaves = [power[8 * f : 16 * f].mean() for f in (100, 200, 400, 800, 1600, 3200)]
    for low, high in itertools.pairwise(octaves):
        assert abs(_db(low / high) - 3.01) < 1.0


def _write_noise(folder: Path, seconds: float, rate: int = RATE, name: str = "n.wav") -> Path:
    generator = torch.Generator().manual_seed(1)
    path = folder / name
    write_audio(path, torch.randn(int(seconds * rate), generator=generator) * 0.1, rate)
    return path


@pytest.mark.parametrize(("seconds", "rate"), [(0.3, RATE), (5.0, RATE), (2.0, 44100)])
def test_noise_from_files_and_manifest(tmp_path: Path, seconds: float, rate: int) -> None:
    path = _write_noise(tmp_path, seconds, rate)
    row = {"id": "n", "audio": "n.wav", "duration": seconds, "sample_rate": rate}
    manifest = tmp_path / "noise.jsonl"
    manifest.write_text(json.dumps(row) + "\n")
    clean = _tone(300.0, 1.013)
    for source in ([path], manifest, str(manifest)):
        add = AddNoise(noise=source, snr_db=(3.0, 3.0))
        pieces = [_apply(add, clean, seed) - clean for seed in range(3)]
        for noise in pieces:
            assert abs(_db(clean.square().mean() / noise.square().mean()) - 3.0) < 0.1
        assert not torch.equal(pieces[0], pieces[1])


def test_noise_respects_the_span_of_a_manifest_row(tmp_path: Path) -> None:
    quiet, loud = torch.zeros(RATE), torch.ones(RATE) * 0.5
    write_audio(tmp_path / "n.wav", torch.cat([quiet, loud]), RATE)
    row = {"id": "n", "audio": "n.wav", "start": 1.0, "duration": 1.0, "sample_rate": RATE}
    manifest = tmp_path / "noise.jsonl"
    manifest.write_text(json.dumps(row) + "\n")
    clean = _tone(300.0, 0.5)
    noise = _apply(AddNoise(noise=manifest, snr_db=(0.0, 0.0)), clean) - clean
    assert float(noise.std() / noise.mean()) < 1e-2


def test_missing_recordings_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.wav"):
        AddNoise(noise=[tmp_path / "gone.wav"])
    with pytest.raises(DataError, match="the list is empty"):
        Reverberate(impulse_responses=[])


def _response_file(folder: Path, delay: int = 500) -> Path:
    response = torch.zeros(4000)
    response[delay] = 0.25
    generator = torch.Generator().manual_seed(2)
    tail = torch.randn(3000, generator=generator) * 0.02
    response[delay + 100 : delay + 3100] = tail * torch.linspace(1, 0, 3000)
    write_audio(folder / "rir.wav", response, RATE)
    return folder / "rir.wav"


@pytest.mark.parametrize("recorded", [True, False])
def test_reverberation_keeps_alignment_and_level(tmp_path: Path, recorded: bool) -> None:
    source = [_response_file(tmp_path)] if recorded else None
    dry = torch.randn(RATE) * 0.1
    wet = _apply(Reverberate(impulse_responses=source), dry)
    assert len(wet) == len(dry)
    assert not torch.allclose(wet, dry, atol=1e-3)
    assert abs(_db(wet.square().mean() / dry.square().mean())) < 0.1
    spectrum = torch.fft.rfft(wet, n=2 * RATE) * torch.fft.rfft(dry, n=2 * RATE).conj()
    assert int(torch.fft.irfft(spectrum).abs().argmax()) == 0


def test_a_pure_delay_changes_nothing(tmp_path: Path) -> None:
    response = torch.zeros(1000)
    response[321] = 0.5
    write_audio(tmp_path / "delay.wav", response, RATE)
    dry = torch.randn(4000) * 0.1
    wet = _apply(Reverberate(impulse_responses=[tmp_path / "delay.wav"]), dry)
    torch.testing.assert_close(wet, dry, atol=1e-4, rtol=1e-3)


def test_drawn_response_decays_as_asked() -> None:
    reverberate = Reverberate(rt60=(0.4, 0.4), direct_db=(0.0, 0.0))
    response = reverberate._make_response(torch.Generator().manual_seed(0))
    left = response[1:].square().flip(0).cumsum(0).flip(0)  # Schroeder's backward integral
    left = 10 * torch.log10(left / left[0])
    time = [int((left < level).int().argmax()) / RATE for level in (-5.0, -25.0)]
    assert abs((time[1] - time[0]) * 3 - 0.4) < 0.04
    assert abs(_db(response[1:].square().sum())) < 0.1


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.25, 2.0])
def test_speed_changes_duration_and_pitch(factor: float) -> None:
    out = _apply(ChangeSpeed(factors=[factor]), _tone(1000.0))
    assert abs(len(out) - RATE / factor) <= 1
    assert abs(_peak_hz(out) / (1000.0 * factor) - 1) < 2e-3
    assert abs(float(out[1000:-1000].abs().max()) - 0.5) < 0.01


@pytest.mark.parametrize("semitones", [-12.0, -2.0, -0.5, 0.5, 2.0, 7.0])
def test_pitch_shift_changes_pitch_not_duration(semitones: float) -> None:
    tone = _tone(1000.0)
    out = _apply(ShiftPitch(semitones=(semitones, semitones)), tone)
    assert len(out) == len(tone)
    assert abs(12 * math.log2(_peak_hz(out) / 1000.0) - semitones) < 0.1
    # The tone lasts as long as before: sound in the first and last tenth too.
    for part in (out[800:1600], out[-1600:-800]):
        assert abs(_db(part.square().mean() / tone.square().mean())) < 1.5


def test_pitch_shift_keeps_onsets_in_place() -> None:
    waveform = torch.zeros(RATE)
    waveform[8000:12000] = _tone(500.0)[:4000]
    out = _apply(ShiftPitch(semitones=(3.0, 3.0)), waveform)
    loud = (out.unfold(0, 200, 200).square().mean(1) > 0.01).nonzero().flatten() * 200
    assert abs(int(loud[0]) - 8000) <= 400
    assert abs(int(loud[-1]) + 200 - 12000) <= 400


def test_clip_limits_to_a_fraction_of_the_peak() -> None:
    tone = _tone(100.0)
    out = _apply(Clip(fraction=(0.4, 0.4)), tone)
    assert abs(float(out.abs().max()) - 0.2) < 1e-4
    inside = tone.abs() < 0.199
    assert torch.equal(out[inside], tone[inside])


def test_dropped_chunks_have_length_and_bound() -> None:
    ones = torch.ones(RATE)
    out = _apply(DropChunk(num_chunks=(1, 1), seconds=(0.05, 0.05)), ones)
    zeros = (out == 0).nonzero().flatten()
    assert len(zeros) == 800
    assert int(zeros[-1] - zeros[0]) == 799
    for seed in range(20):
        many = DropChunk(num_chunks=(10, 10), seconds=(0.1, 0.3), max_share=0.15)
        assert int((_apply(many, ones, seed) == 0).sum()) <= 0.15 * RATE


def test_dropped_band_is_gone_and_the_rest_untouched() -> None:
    drop = DropFrequency(num_bands=(1, 1), width_hz=(400.0, 400.0), range_hz=(1800.0, 2200.0))
    inside = _tone(2000.0)
    out = _apply(drop, inside)[2000:-2000]
    assert _db(out.square().mean() / inside.square().mean()) < -40
    for frequency in (1000.0, 1700.0, 2300.0, 5000.0):
        outside = _tone(frequency)
        torch.testing.assert_close(
            _apply(drop, outside)[2000:-2000], outside[2000:-2000], atol=5e-3, rtol=0
        )


def test_low_pass_passes_below_and_stops_above() -> None:
    low_pass = LowPass(cutoff_hz=(3000.0, 3000.0))
    below, above = _tone(2900.0), _tone(3400.0)
    torch.testing.assert_close(
        _apply(low_pass, below)[2000:-2000], below[2000:-2000], atol=5e-3, rtol=0
    )
    out = _apply(low_pass, above)[2000:-2000]
    assert _db(out.square().mean() / above.square().mean()) < -40


def test_mu_law_quantises() -> None:
    tone = _tone(313.0)
    out = _apply(LowPass(cutoff_hz=(3400.0, 3400.0), mu_law_levels=256), tone)
    assert len(out.unique()) <= 256
    error = _db(tone.square().mean() / (out - tone).square().mean())
    assert 30 < error < 45  # G.711 gives about 38 dB
    loud = _apply(LowPass(mu_law_levels=256), 4 * tone)
    assert float(loud.abs().max()) > 1.5


def test_gain() -> None:
    out = _apply(ChangeGain(gain_db=(-6.0, -6.0)), _tone(100.0))
    assert abs(_db(out.square().mean() / _tone(100.0).square().mean()) + 6.0) < 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChangeGain(prob=1.5), "prob.*1.5"),
        (lambda: ChangeGain(gain_db=(3.0, -3.0)), r"gain_db.*\(3.0, -3.0\)"),
        (lambda: Clip(fraction=(0.5, 1.5)), "fraction.*1.5"),
        (lambda: AddNoise(color="red"), "'red'"),
        (lambda: ChangeSpeed(factors=[]), "factors"),
        (lambda: ChangeSpeed(factors=[0.0]), r"factors.*0\.0"),
        (lambda: DropChunk(max_share=2.0), "max_share.*2.0"),
        (lambda: DropFrequency(range_hz=(0.0, 9000.0)), "range_hz.*9000"),
        (lambda: LowPass(mu_law_levels=1), "mu_law_levels.*1"),
        (lambda: ShiftPitch(semitones=(-30.0, 0.0)), "semitones.*-30"),
    ],
)
def test_wrong_settings_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_real_noise_and_rooms(real_data: Path) -> None:
    responses = sorted((real_data / "RIRS_mini").rglob("*.wav"))
    noises = sorted((real_data / "ESC-50" / "audio").glob("*.ogg"))[:20]
    if not responses or not noises:
        pytest.skip("no impulse responses or noises in the folder of real audio")
    clean = torch.randn(2 * RATE) * 0.05
    for seed in range(10):
        wet = _apply(Reverberate(impulse_responses=responses), clean, seed)
        assert abs(_db(wet.square().mean() / clean.square().mean())) < 0.1
        noisy = _apply(AddNoise(noise=noises, snr_db=(5.0, 5.0)), clean, seed)
        power = (noisy - clean).square().mean()
        assert power == 0 or abs(_db(clean.square().mean() / power) - 5.0) < 0.1
