"""Mels in files beside audio: crops that fit, other settings, wrong lengths, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance
from speechkit.data.mel_files import LoadWithMel, read_mel, write_mel
from speechkit.features.spectrum import LogMel

FEATURES = LogMel(sample_rate=8000, n_fft=128, hop_length=40, num_mels=12)


@pytest.fixture
def utterance(tmp_path: Path) -> Utterance:
    # Sample n has the value n / 1e5, and frame t is all t: what belongs together can be seen.
    wave = torch.arange(8010) / 1e5
    write_audio(tmp_path / "a.wav", wave, 8000)
    mel = torch.arange(8010 // 40 + 1).float().unsqueeze(1).expand(-1, 12)
    write_mel(tmp_path / "a.safetensors", mel, FEATURES)
    extra = {"mel": str(tmp_path / "a.safetensors")}
    return Utterance("a", str(tmp_path / "a.wav"), 8010 / 8000, 8000, extra=extra)


def _load(transform: LoadWithMel, utterance: Utterance, seed: int = 0) -> dict[str, Any]:
    item = {"id": utterance.id, "utterance": utterance}
    return transform(item, torch.Generator().manual_seed(seed))


def test_crops_of_both_belong_together(utterance: Utterance) -> None:
    transform = LoadWithMel(features=FEATURES, crop_frames=20)
    starts = set()
    for seed in range(8):
        item = _load(transform, utterance, seed)
        first = int(item["mel"][0, 0])
        assert item["mel"].shape == (21, 12)
        assert item["waveform"].shape == (800,)
        assert item["waveform"][0].item() == pytest.approx(first * 40 / 1e5, abs=1e-4)
        starts.add(first)
    assert len(starts) > 4
    assert max(starts) <= 180


def test_whole_utterances_and_short_ones(utterance: Utterance) -> None:
    for crop in (None, 300):
        item = _load(LoadWithMel(features=FEATURES, crop_frames=crop), utterance)
        assert item["waveform"].shape == (8010,)
        assert item["mel"].shape == (201, 12)


def test_without_a_mel_there_is_the_audio_alone(utterance: Utterance) -> None:
    alone = Utterance("a", utterance.audio, utterance.duration, 8000)
    item = _load(LoadWithMel(features=FEATURES, crop_frames=20), alone)
    assert item["waveform"].shape == (800,)
    assert "mel" not in item


def test_bad_mels_are_named(utterance: Utterance, tmp_path: Path) -> None:
    other = LogMel(sample_rate=8000, n_fft=128, hop_length=40, num_mels=12, f_max=3000.0)
    with pytest.raises(DataError, match=r"a\.safetensors: .* f_max: 4000\.0, needed is 3000\.0"):
        _load(LoadWithMel(features=other), utterance)
    part = Utterance("a", utterance.audio, 0.5, 8000, extra=utterance.extra)
    with pytest.raises(DataError, match="201 frames for 4000 samples, which have 101"):
        _load(LoadWithMel(features=FEATURES), part)
    number = Utterance("a", utterance.audio, 0.5, 8000, extra={"mel": 3})
    with pytest.raises(DataError, match="'mel' must be the path of a file, is 3"):
        _load(LoadWithMel(features=FEATURES), number)
    with pytest.raises(DataError, match=r"nothing\.safetensors: not a file of a mel"):
        read_mel(tmp_path / "nothing.safetensors", FEATURES)
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 30)
    with pytest.raises(DataError, match="not a file of a mel"):
        read_mel(tmp_path / "bad.safetensors", FEATURES)
    write_mel(tmp_path / "nan.safetensors", torch.full((3, 12), float("nan")), FEATURES)
    with pytest.raises(DataError, match="values of a mel are wrong"):
        read_mel(tmp_path / "nan.safetensors", FEATURES)
    with pytest.raises(ValueError, match=r"need a mel \(T, 12\)"):
        write_mel(tmp_path / "x.safetensors", torch.zeros(3, 11), FEATURES)
    with pytest.raises(ValueError, match="crop_frames=0"):
        LoadWithMel(features=FEATURES, crop_frames=0)
