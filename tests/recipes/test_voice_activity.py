"""Every YAML of voice activity trains, tests and saves in small; a diarizer takes the result."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import speechkit
from speechkit.data.audio import write_audio
from speechkit.data.conversations import Conversations
from speechkit.data.manifest import read_manifest
from speechkit.data.randomness import item_generator
from speechkit.datasets.conversations import prepare_librispeech
from speechkit.features.normalize import UtteranceNorm
from speechkit.features.spectrum import LogMel
from speechkit.hparams import read_hparams
from speechkit.losses.voice_activity import activity_loss
from speechkit.metrics.diarization import Turn
from speechkit.metrics.voice_activity import summarize
from speechkit.models.voice_activity import VoiceActivity, frame_regions
from speechkit.nn.conv import ConvEncoder
from speechkit.results import RunResults, read_rows, score_folder
from speechkit.run import run
from speechkit.speakers.activity import open_detectors
from speechkit.speakers.diarization import Diarizer

HPARAMS = Path(__file__).parents[2] / "recipes" / "voice_activity" / "hparams"
YAMLS = sorted(HPARAMS.glob("*.yaml"))
RATE = 16000
TINY = [
    "--device", "cpu", "--seconds", "3.0", "--data.limit", "8", "--training.epochs", "1",
    "--training.validate_every", "1", "--data.transforms.0.overlap_prob", "1.0",
    "--model.features.num_mels", "12",
    "--model.norm.num_features", "12", "--model.encoder.layers.0.input_size", "12",
    "--model.encoder.layers.0.channels", "[6, 6]", "--model.encoder.layers.1.input_size", "6",
    "--model.encoder.layers.1.hidden_size", "6", "--test_snr", "[5.0]",
]  # fmt: skip
CONDITIONS = {"test", "test@5dB", "test@energy", "test@energy-5dB"}


def write_librispeech(root: Path) -> None:
    """Write six readers to train on and two to test with: chords over some noise."""
    torch.manual_seed(0)
    time = torch.arange(3 * RATE) / RATE
    for reader in range(8):
        subset = "train-clean-100" if reader < 6 else "test-other"
        folder = root / subset / f"{100 + reader}" / "7"
        name = f"{100 + reader}-7-0000"
        chord = sum(torch.sin(6.2832 * (110 + 30 * reader) * n * time) / n for n in (1, 2, 3))
        sound = 0.1 * torch.as_tensor(chord) * (torch.sin(6.2832 * 0.5 * time) > -0.7)
        write_audio(folder / f"{name}.flac", sound + 1e-4 * torch.randn(len(time)), RATE)
        (folder / f"{100 + reader}-7.trans.txt").write_text(f"{name} WORDS")


@pytest.fixture
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], list[str]]:
    """Return a function that gives a YAML's command line: small, on toy data."""

    def make(name: str) -> list[str]:
        if name.startswith("toy"):
            toy = request.getfixturevalue("toy_corpus")
            where = [
                "--data_folder", str(toy), "--manifests", str(tmp_path / "corpus"),
                "--prepare.num_train", "24", "--prepare.num_dev", "6", "--prepare.num_test", "6",
            ]  # fmt: skip
        else:
            write_librispeech(tmp_path / "libri")
            where = ["--root", str(tmp_path / "libri"), "--corpus", str(tmp_path / "corpus"),
                     "--prepare.valid_readers", "2"]  # fmt: skip
        return [str(HPARAMS / f"{name}.yaml"), *where, *TINY,
                "--output_folder", str(tmp_path / "run")]  # fmt: skip

    return make


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_yaml(
    yaml: Path,
    command: Callable[[str], list[str]],
    recipe: Callable[[str], ModuleType],
    tmp_path: Path,
) -> None:
    run(recipe("voice_activity").VoiceActivityDetection, command(yaml.stem))
    results = RunResults.read(tmp_path / "run/RESULTS.json").results
    assert set(results) == CONDITIONS
    scored = {(split, r.metric): r.value for split, r in score_folder(tmp_path / "run")}
    for split, values in results.items():
        for result in values:
            assert scored[split, result.metric] == pytest.approx(result.value)
    rows = {name: read_rows(tmp_path / f"run/test/{name}/rows.jsonl") for name in CONDITIONS}
    for name in CONDITIONS:  # all are tested with the same conversations
        assert [row["speech"]["reference"] for row in rows[name]] == [
            row["speech"]["reference"] for row in rows["test"]
        ]
    assert {row["duration"] for row in rows["test"]} == {3.0}
    # Energy knows nothing of overlap.
    never = {r.metric: r.value for r in results["test@energy"]}
    assert never["overlap missed"] == pytest.approx(100.0)
    assert never["overlap false alarm"] == 0.0
    assert never["DetER"] < 60
    logged = read_rows(tmp_path / "run/metrics.jsonl")
    assert {"valid/loss", "valid/DetER"} <= logged[-1].keys()
    assert "<h2>Results" in (tmp_path / "run/report.html").read_text()

    model = speechkit.load(tmp_path / "run/model")
    assert isinstance(model, VoiceActivity)
    detectors = open_detectors(tmp_path / "run/model")
    diarizer = Diarizer(lambda x: torch.ones(len(x), 2), sample_rate=RATE, **detectors._asdict())
    waveform = 0.1 * torch.randn(2 * RATE)
    found = diarizer(waveform)
    assert all(isinstance(turn, Turn) for turn in found.turns)
    heard = model.activity(waveform, RATE)
    assert bool(found.turns) == bool(heard)


def test_conversations_are_learnt_by_heart(tmp_path: Path) -> None:
    """Labels and frames fit together: what is learnt are the borders, of overlap too."""
    write_librispeech(tmp_path)
    made = prepare_librispeech(
        tmp_path, tmp_path / "out", train=["train-clean-100"], test=["test-other"], valid_readers=2
    )
    talk = Conversations(sources=made["train"], sample_rate=RATE, seconds=3.0, overlap_prob=1.0)
    rows = read_manifest(made["train"])
    items = [talk({"id": r.id, "utterance": r}, item_generator(0, 0, r.id)) for r in rows]
    waveform = torch.stack([item["waveform"] for item in items])
    speakers = torch.stack([item["speakers"] for item in items])
    assert int((speakers == 2).sum()) > 30
    torch.manual_seed(0)
    model = VoiceActivity(
        features=LogMel(num_mels=24, floor=1e-4),
        norm=UtteranceNorm(),
        encoder=ConvEncoder(input_size=24, channels=(32, 32), strides=(2, 1)),
    )
    lengths = torch.full((len(items),), waveform.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        logits, frames = model(waveform, lengths)
        loss = activity_loss(logits, speakers[:, ::2], frames).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = []
    for item in items:
        row: dict[str, Any] = {"duration": 3.0}
        for level, kind in enumerate(("speech", "overlap")):
            row[kind] = {
                "reference": frame_regions(item["speakers"] > level, 0.01, 3.0),
                "hypothesis": model.regions(item["waveform"], RATE, level=level + 1),
            }
        found.append(row)
    values = {result.metric: result.value for result in summarize(found)}
    assert values["F1"] > 95
    assert values["overlap F1"] > 80


def test_frames_that_labels_do_not_fit(
    command: Callable[[str], list[str]],
    recipe: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*command("librispeech_vad"), "--model.features.hop_length", "200"]
    with pytest.raises(SystemExit):
        run(recipe("voice_activity").VoiceActivityDetection, arguments)
    assert "must divide the 100 of the labels" in capsys.readouterr().err


def test_a_model_without_overlap(
    command: Callable[[str], list[str]],
    recipe: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*command("librispeech_vad"), "--model.num_levels", "1"]
    with pytest.raises(SystemExit):
        run(recipe("voice_activity").VoiceActivityDetection, arguments)
    assert "model.num_levels is 1" in capsys.readouterr().err


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_sizes(yaml: Path, tmp_path: Path) -> None:
    text = yaml.read_text()
    stated = re.search(r"([\d.]+) M\s+(# )?parameters\.$", text, re.MULTILINE)
    part = re.search(r"^model: .*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    assert stated
    assert part
    small = tmp_path / yaml.name
    small.write_text(f"sample_rate: 16000\n{part[0]}")
    model = read_hparams(small, {}, consumed=("model",)).build(["model"])["model"]
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}" == stated[1]
