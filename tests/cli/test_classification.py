"""``speechkit classify``: labels, timelines, JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import speechkit
from speechkit import cli
from speechkit.data.audio import write_audio
from speechkit.features.spectrum import LogMel
from speechkit.models.classifier import Classified, SoundClassifier
from speechkit.nn.cnn14 import MaxMeanPooling
from speechkit.nn.conv2d_classifier import Conv2dEncoder


def classifier() -> SoundClassifier:
    torch.manual_seed(0)
    return SoundClassifier(
        sample_rate=8000,
        features=LogMel(sample_rate=8000, num_mels=16),
        encoder=Conv2dEncoder(input_size=16, channels=(4,), pools=(2,)),
        pooling=MaxMeanPooling(input_size=4),
        labels=["cat", "dog", "rain"],
    ).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    speechkit.save(classifier(), folder / "sounds")
    speechkit.save(nn.PReLU(), folder / "other")
    return {name: str(folder / name) for name in ("sounds", "other")}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    noise = 0.1 * torch.randn(40000, generator=torch.Generator().manual_seed(0))
    write_audio(tmp_path / "long.wav", noise * torch.linspace(0, 1, 40000) ** 4, 16000)  # 2.5 s
    write_audio(tmp_path / "short.wav", noise[:8000], 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_short_file(
    files: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["classify", "short.wav", "--model", folders["sounds"], "--top", "2"]) == 0
    output = capsys.readouterr()
    found = classifier().classify("short.wav", top=2)
    assert isinstance(found, Classified)
    assert output.out.splitlines() == [f"{s.probability:.3f}\t{s.label}" for s in found.labels]
    assert len(found.labels) == 2
    assert output.err == ""


def test_a_long_file_has_a_timeline(
    files: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", "long.wav", "short.wav", "--model", folders["sounds"]]
    assert cli.main([*command, "--window", "1", "--hop", "0.5"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    found = classifier().classify("long.wav", window=1.0, hop=0.5)
    assert isinstance(found, Classified)
    assert len(found.timeline) == 4
    spans = [line[1:] for line in lines if len(line) == 5]
    assert spans == [
        [f"{s.start:.2f}", f"{s.end:.2f}", f"{s.labels[0].probability:.3f}", s.labels[0].label]
        for s in found.spans
    ]
    assert (spans[0][0], spans[-1][1]) == ("0.00", "2.50")
    assert [line[0] for line in lines if len(line) == 3] == 3 * ["long.wav"] + 3 * ["short.wav"]
    assert {line[0] for line in lines if len(line) == 5} == {"long.wav"}


def test_json_has_every_window(
    files: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", "long.wav", "--model", folders["sounds"], "--window", "1", "--json"]
    assert cli.main([*command, "--top", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == "long.wav"
    assert [(w["start"], w["end"]) for w in told["timeline"]] == [(0, 1), (1, 2), (1.5, 2.5)]
    found = classifier().classify("long.wav", window=1.0, top=1)
    assert isinstance(found, Classified)
    assert told["labels"][0]["label"] == found.labels[0].label
    assert told["labels"][0]["probability"] == pytest.approx(found.labels[0].probability)
    assert all(len(window["labels"]) == 1 for window in told["timeline"])


def test_a_file_at_fault_does_not_cost_the_others(
    files: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "bad.wav").write_text("no audio")
    command = ["classify", "bad.wav", "short.wav", "missing.wav", "--model", folders["sounds"]]
    assert cli.main(command) == 1
    output = capsys.readouterr()
    assert {line.split("\t")[0] for line in output.out.splitlines()} == {"short.wav"}
    assert "bad.wav" in output.err
    assert "missing.wav" in output.err


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("other", [], "holds a PReLU, which does not classify"),
        ("sounds", ["--window", "1", "--hop", "2"], "--hop 2 is longer than --window 1"),
    ],
)
def test_what_cannot_be_done(
    model: str,
    options: list[str],
    message: str,
    files: Path,
    folders: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["classify", "short.wav", "--model", folders[model], *options]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""
