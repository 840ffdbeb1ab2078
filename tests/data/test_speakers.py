"""Crops whose speaker is known, and speeds that make new speakers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance, write_manifest
from speechkit.data.speakers import SpeakerCrops

RATE = 8000


@pytest.fixture
def rows(tmp_path: Path) -> list[Utterance]:
    """Return two speakers with tones of 500 Hz, 3 s long."""
    write_audio(tmp_path / "a.wav", torch.sin(torch.arange(3 * RATE) * 6.2832 * 500 / RATE), RATE)
    made = [Utterance(n, str(tmp_path / "a.wav"), 3.0, RATE, speaker=n) for n in ("x", "y")]
    write_manifest(tmp_path / "train.jsonl", made)
    return made


def draws(crops: SpeakerCrops, row: Utterance, count: int = 20) -> list[dict[str, Any]]:
    return [
        crops({"id": row.id, "utterance": row}, torch.Generator().manual_seed(seed))
        for seed in range(count)
    ]


def test_each_speed_is_a_speaker_of_its_own(rows: list[Utterance], tmp_path: Path) -> None:
    crops = SpeakerCrops(
        manifest=tmp_path / "train.jsonl", sample_rate=RATE, crop_seconds=1.0, factors=[1.0, 0.8]
    )
    assert crops.num_speakers == 4
    found = set()
    for item in draws(crops, rows[1]):
        assert item["waveform"].shape == (RATE,)
        spectrum = torch.fft.rfft(item["waveform"] * torch.hann_window(RATE)).abs()
        found.add((int(item["speaker"]), int(spectrum.argmax())))
    # "y" is number 1, and 3 where it is played at 0.8 of its speed: 500 Hz become 400.
    assert found == {(1, 500), (3, 400)}


def test_crops_are_a_function_of_the_generator(rows: list[Utterance], tmp_path: Path) -> None:
    crops = SpeakerCrops(manifest=tmp_path / "train.jsonl", sample_rate=RATE, crop_seconds=1.0)
    first, second = draws(crops, rows[0]), draws(crops, rows[0])
    assert all(torch.equal(a["waveform"], b["waveform"]) for a, b in zip(first, second))
    assert not torch.equal(first[0]["waveform"], first[1]["waveform"])
    assert {int(item["speaker"]) for item in first} == {0}


def test_a_short_utterance_is_whole(rows: list[Utterance], tmp_path: Path) -> None:
    crops = SpeakerCrops(manifest=tmp_path / "train.jsonl", sample_rate=RATE, crop_seconds=9.0)
    assert len(draws(crops, rows[0], count=1)[0]["waveform"]) == 3 * RATE


@pytest.mark.parametrize("factors", [[], [0.1], [1.0, 1.0001]])
def test_factors_that_make_no_voices(
    rows: list[Utterance], tmp_path: Path, factors: list[float]
) -> None:
    with pytest.raises(ValueError, match="factor"):
        SpeakerCrops(
            manifest=tmp_path / "train.jsonl", sample_rate=RATE, crop_seconds=1.0, factors=factors
        )


def test_a_speaker_who_is_not_in_training(rows: list[Utterance], tmp_path: Path) -> None:
    crops = SpeakerCrops(manifest=tmp_path / "train.jsonl", sample_rate=RATE, crop_seconds=1.0)
    for speaker, message in (("z", "'z' is not among the 2"), (None, "has no 'speaker'")):
        stranger = Utterance("u", rows[0].audio, 3.0, RATE, speaker=speaker)
        with pytest.raises(DataError, match=message):
            draws(crops, stranger, count=1)
