"""What the page says of synthesized speech: faults, and some to see and to hear."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError
from speechkit.report import write_report
from speechkit.report_run import Run
from speechkit.report_tts import faults_of, read_arrays, tts
from speechkit.results import write_rows

CONDITIONS = ("", "copy-synthesis", "recording")


def write_arrays(path: Path, **change: Any) -> None:
    arrays = {"mel": np.random.default_rng(0).normal(size=(20, 8)).astype(np.float16)}
    arrays |= {"alignment": np.eye(3).repeat(4, axis=0), "pieces": np.array(["a", " ", "$"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **(arrays | change))


def add_split(folder: Path, split: str = "test", count: int = 2, seconds: float = 0.5) -> None:
    """Write a split in its three conditions, with the sound of every utterance."""
    noise = torch.rand(int(16000 * seconds), generator=torch.Generator().manual_seed(0)) - 0.5
    for condition in CONDITIONS:
        name = f"{split}@{condition}" if condition else split
        rows = []
        for n in range(count):
            sound = f"test/{name}/audio/{n}.wav"
            write_audio(folder / sound, 0.5 * noise, 16000)
            row: dict[str, Any] = {
                "id": f"u{n}", "reference": "a <b>", "hypothesis": "a b", "voice": "Jo & Al",
                "duration": seconds, "condition": condition, "estimate": sound,
            }  # fmt: skip
            if not condition:
                arrays = f"test/{name}/arrays/{n}.npz"
                write_arrays(folder / arrays)
                row |= {
                    "stopped": n > 0, "alignment_score": 0.25 + 0.5 * n, "problems": [],
                    "mcd": 6.25, "duration_ratio": 1.5, "arrays": arrays,
                }  # fmt: skip
            rows.append(row)
        write_rows(folder / "test" / name / "rows.jsonl", rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hparams.yaml").write_text("seed: 1\n")
    add_split(tmp_path)
    return tmp_path


def test_the_page(folder: Path) -> None:
    page = write_report(folder).read_text()
    assert page.count("<h2>Synthesized speech</h2>") == 1
    assert "<b>" not in page
    for label in (
        "Log-mel spectrogram of u0, copy-synthesis, 0.50 s, 0 to 8 kHz",
        "Log-mel spectrogram of u1, recording, 0.50 s, 0 to 8 kHz",
        "Mel and alignment of u0, synthesized",
    ):
        assert label in page
    heads = [int(level) for level in re.findall(r"<h(\d)>", page)]
    assert all(after - before <= 1 for before, after in pairwise(heads))


def test_the_section(folder: Path) -> None:
    section = tts(Run.read(folder))
    assert section.count("<audio") == 6
    assert "1 of 2 utterances went wrong; the worst 1 first." in section
    assert "did not stop by itself" in section
    assert "alignment 0.25 · MCD 6.2 dB · 1.50 times the recording's length" in section
    assert section.count("heard as: a b") == 6
    assert section.count("voice Jo &amp; Al") == 2


def test_faults_are_listed_from_the_worst(tmp_path: Path) -> None:
    rows = [
        {"id": f"u{n:02d}", "reference": "x", "stopped": True, "alignment_score": n / 20,
         "problems": ["skipped: symbols 1 to 2"] if n < 15 else []}
        for n in range(20)
    ]  # fmt: skip
    (tmp_path / "hparams.yaml").write_text("seed: 1\n")
    place = tmp_path / "test/test/rows.jsonl"
    place.parent.mkdir(parents=True)
    write_rows(place, rows[::-1])
    section = tts(Run.read(tmp_path))
    assert "15 of 20 utterances went wrong; the worst 12 first." in section
    assert re.findall(r"u\d\d", section) == [f"u{n:02d}" for n in range(12)]
    write_rows(place, rows[15:])
    assert "Each of 5 utterances ended by itself" in tts(Run.read(tmp_path))
    assert faults_of({"stopped": True}) == []
    with pytest.raises(DataError, match="the row 'a' has problems='none': a list is needed"):
        faults_of({"id": "a", "problems": "none"})


def test_sentences_of_the_last_validation(tmp_path: Path) -> None:
    (tmp_path / "hparams.yaml").write_text("seed: 1\n")
    for n in range(2):
        write_audio(tmp_path / f"samples/{n:03d}.wav", torch.zeros(800), 8000)
    section = tts(Run.read(tmp_path))
    assert section.count("<audio") == 2
    assert 'aria-label="sentence 2"' in section


def test_it_keeps_to_the_allowance(tmp_path: Path) -> None:
    (tmp_path / "hparams.yaml").write_text("seed: 1\n")
    for split in ("one", "two"):
        add_split(tmp_path, split, count=3, seconds=0.2)
    run = Run.read(tmp_path)
    run.players = 20
    both = tts(run).split("<h3>two</h3>")
    assert [part.count("<audio") for part in both] == [6, 6]
    assert all("2 of the 3 that were kept are shown" in part for part in both)
    assert run.players == 8  # for the worst utterances
    run.media_bytes = 1000
    assert "0 of the 3 that were kept are shown" in tts(run)
    assert run.media_bytes == 1000


def test_what_moved_is_said(folder: Path) -> None:
    (folder / "test/test/audio/0.wav").unlink()
    (folder / "test/test@recording/audio/0.wav").unlink()
    (folder / "test/test/arrays/1.npz").unlink()
    section = tts(Run.read(folder))
    assert section.count("<audio") == 4
    assert "No sound of recording: " in section
    assert "0.wav: no such audio file" in section
    assert "No picture: " in section


def test_other_tasks_rows_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "hparams.yaml").write_text("seed: 1\n")
    for name, row in (
        ("test", {"id": "a", "reference": "x", "hypothesis": "y"}),
        ("test@6kbps", {"id": "a", "condition": "6kbps", "estimate": "a.wav"}),
    ):
        (tmp_path / "test" / name).mkdir(parents=True)
        write_rows(tmp_path / "test" / name / "rows.jsonl", [row])
    assert tts(Run.read(tmp_path)) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mel": np.zeros(3)}, r"mel \(3,\) and alignment \(12, 3\) are no matrices"),
        ({"alignment": np.zeros((0, 3))}, "are no matrices"),
        ({"pieces": np.array([{}], dtype=object)}, "no file of a mel and an alignment"),
    ],
)
def test_broken_arrays(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_arrays(tmp_path / "a.npz", **change)
    with pytest.raises(DataError, match=message):
        read_arrays(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_text("text")
    with pytest.raises(DataError, match="no file of a mel"):
        read_arrays(tmp_path / "b.npz")
