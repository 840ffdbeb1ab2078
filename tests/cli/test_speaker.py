"""``speechkit embed``, ``verify``, ``enroll``, ``identify``, ``calibrate`` and ``diarize``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import speechkit
from speechkit import cli
from speechkit.cli.speaker import fingerprint
from speechkit.data.audio import write_audio
from speechkit.features.spectrum import LogMel
from speechkit.models.speaker import SpeakerEncoder
from speechkit.models.voice_activity import VoiceActivity
from speechkit.nn.conv import ConvEncoder
from speechkit.nn.pooling import EmbeddingLayer, StatisticsPooling
from speechkit.nn.xvector import XVectorEncoder
from speechkit.speakers.rttm import read_rttm
from speechkit.speakers.trials import Trial, write_trials

RATE = 8000


def encoder(seed: int = 0) -> SpeakerEncoder:
    torch.manual_seed(seed)
    return SpeakerEncoder(
        features=LogMel(sample_rate=RATE, n_fft=200, hop_length=80, num_mels=20, floor=1e-3),
        encoder=XVectorEncoder(input_size=20, channels=(16,), kernel_sizes=(3,), dilations=(1,)),
        pooling=StatisticsPooling(input_size=16),
        projection=EmbeddingLayer(input_size=32, embed_dim=12),
    ).eval()


def voice(pitch: float, seed: int, seconds: float = 2.0) -> Tensor:
    """Give a chord over some noise: voices differ by what bins are loud, in any network."""
    noise = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    time = torch.arange(len(noise)) / RATE
    return 0.2 * torch.sin(6.2832 * pitch * time) + 0.01 * noise


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    speechkit.save(encoder(), folder / "plain")
    speechkit.save(encoder(seed=1), folder / "other")
    speechkit.save(nn.PReLU(), folder / "no-voices")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make two recordings each of a low and a high voice, and what is no voice."""
    for name, pitch in (("low", 300.0), ("high", 2500.0)):
        for number in range(3):
            write_audio(tmp_path / f"{name}{number}.wav", voice(pitch, number), RATE)
    write_audio(tmp_path / "silence.wav", torch.zeros(RATE), RATE)
    write_audio(tmp_path / "short.wav", voice(300.0, 0, seconds=0.3), RATE)
    both = torch.cat([voice(300.0, 5, seconds=5.0), voice(2500.0, 6, seconds=5.0)])
    write_audio(tmp_path / "both talk.wav", both, RATE)
    files = [f"{name}{number}.wav" for name in ("low", "high") for number in range(3)]
    pairs = [(a, b) for i, a in enumerate(files) for b in files[i + 1 :]]
    write_trials(tmp_path / "trials.txt", [Trial(a[0] == b[0], a, b) for a, b in pairs])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fitted(work: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the folder of a model with a threshold."""
    speechkit.save(encoder(), work / "model", extra={"recipe": "chords"})
    command = ["calibrate", "--model", "model", "--trials", "trials.txt", "--root", "."]
    assert cli.main(command) == 0
    assert "by 15 trials at a prior of 0.5" in capsys.readouterr().out
    return "model"


def test_embed(work: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["embed", "low0.wav", "silence.wav", "high0.wav", "--model", models["plain"]]
    assert cli.main(command) == 1
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [row["file"] for row in rows] == ["low0.wav", "high0.wav"]
    assert "silence.wav: silence" in output.err
    expected = encoder().embed("low0.wav")
    assert rows[0]["embedding"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert cli.main([*command, "--out", "voices.safetensors"]) == 1
    found = load_file("voices.safetensors")
    assert set(found) == {"low0.wav", "high0.wav"}
    assert torch.allclose(found["low0.wav"], expected, atol=1e-5)


def test_no_decision_without_a_threshold(
    work: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", "low0.wav", "high0.wav", "--model", models["plain"]]
    assert cli.main(command) == 0
    assert "no decision: the model has no threshold" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["same_speaker"] is verdict["probability"] is None
    for threshold, said in (("-1", "one speaker"), ("1.01", "two speakers")):
        assert cli.main([*command, "--threshold", threshold]) == 0
        assert said in capsys.readouterr().out


def test_calibrate_keeps_the_threshold_in_the_folder(
    work: Path, fitted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((work / "model/config.json").read_text())
    assert config["extra"] == {"recipe": "chords"}
    for second, same in (("low1.wav", True), ("high1.wav", False)):
        assert cli.main(["verify", "low0.wav", second, "--model", fitted, "--json"]) == 0
        verdict = json.loads(capsys.readouterr().out)
        assert verdict["same_speaker"] is same
        assert (verdict["probability"] > 0.5) is same
    command = ["calibrate", "--model", fitted, "--trials", "trials.txt", "--root", "elsewhere"]
    assert cli.main(command) == 2
    assert "trials.txt: 6 files do not exist" in capsys.readouterr().err


def test_enroll_and_identify(
    work: Path, fitted: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    speakers = ["--model", fitted, "--speakers", "known.safetensors"]
    assert cli.main(["enroll", "anna", "low0.wav", *speakers]) == 0
    assert cli.main(["enroll", "anna", "low1.wav", *speakers]) == 0
    assert "anna has 2 recordings, of 1 speakers" in capsys.readouterr().out
    assert cli.main(["identify", "low2.wav", "high2.wav", *speakers]) == 0
    low, high = capsys.readouterr().out.splitlines()
    assert low.startswith("low2.wav: anna  (anna ")
    assert high.startswith("high2.wav: nobody enrolled  (anna ")
    assert cli.main(["enroll", "ben", "high0.wav", *speakers]) == 0
    capsys.readouterr()
    assert cli.main(["identify", "high2.wav", "--json", "--top", "1", *speakers]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["known"] is True
    assert [match["speaker"] for match in row["matches"]] == ["ben"]

    speakers[1] = models["other"]
    assert cli.main(["identify", "low2.wav", *speakers]) == 2
    assert "were enrolled with the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "message"), [("silence.wav", "silence.wav: silence"), ("short.wav", "0.30 s")]
)
def test_nobody_is_enrolled_from_nothing(
    work: Path,
    models: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    file: str,
    message: str,
) -> None:
    command = ["enroll", "anna", "low0.wav", file, "--model", models["plain"]]
    assert cli.main([*command, "--speakers", "known.safetensors"]) == 2
    assert message in capsys.readouterr().err
    assert not (work / "known.safetensors").exists()


def test_diarize(work: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["diarize", "both talk.wav", "--model", models["plain"], "--num_speakers", "2"]
    assert cli.main([*command, "--out", "who"]) == 0
    path = Path("who/both_talk.rttm")
    assert capsys.readouterr().out.splitlines() == [str(path)]
    turns = read_rttm(path)["both_talk"]
    assert [turn.speaker for turn in turns] == ["speaker_1", "speaker_2"]
    assert turns[1].start == pytest.approx(5.0, abs=0.8)
    assert cli.main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["turns"]) == 2
    command[1] = "silence.wav"
    assert cli.main(["diarize", "silence.wav", "--model", models["plain"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["turns"] == []


def always(folder: Path) -> None:
    """Save a detector that hears two people at any time."""
    detector = VoiceActivity(
        features=LogMel(sample_rate=RATE, n_fft=200, hop_length=80, num_mels=8),
        encoder=ConvEncoder(input_size=8, channels=(4,), strides=(2,)),
        sample_rate=RATE,
    )
    for parameter in detector.parameters():
        nn.init.ones_(parameter)
    speechkit.save(detector, folder)


def test_detect(work: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    always(work / "detector")
    command = ["detect", "low0.wav", "both talk.wav", "--model", "detector"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "low0.wav\t0.00\t2.00\toverlap", "low0.wav\t0.00\t2.00\tspeech",
        "both talk.wav\t0.00\t10.00\toverlap", "both talk.wav\t0.00\t10.00\tspeech",
    ]  # fmt: skip
    assert cli.main(["detect", "gone.wav", *command[1:], "--json"]) == 1
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert found[0] == {"file": "low0.wav", "speech": [[0.0, 2.0]], "overlap": [[0.0, 2.0]]}
    assert "gone.wav" in printed.err
    assert cli.main([*command, "--onset", "0.2"]) == 2
    assert "need 0 <= --offset <= --onset <= 1" in capsys.readouterr().err
    assert cli.main(["detect", "low0.wav", "--model", models["plain"]]) == 2
    assert "which does not find speech" in capsys.readouterr().err


def test_diarize_with_a_detector(
    work: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A detector that hears two always gives both of them the whole recording."""
    always(work / "detector")
    command = ["diarize", "both talk.wav", "--model", models["plain"], "--num_speakers", "2"]
    assert cli.main([*command, "--json", "--activity", "detector"]) == 0
    turns = json.loads(capsys.readouterr().out)["turns"]
    assert turns == [[0.0, 10.0, "speaker_1"], [0.0, 10.0, "speaker_2"]]
    assert cli.main([*command, "--json", "--activity", models["no-voices"]]) == 2
    assert "holds a PReLU, which does not find speech" in capsys.readouterr().err


def test_another_model_is_an_error(
    work: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["embed", "low0.wav"], ["diarize", "low0.wav"]):
        assert cli.main([*command, "--model", models["no-voices"]]) == 2
        assert "holds a PReLU, which knows no voices" in capsys.readouterr().err


def test_a_fingerprint_is_of_the_weights() -> None:
    assert fingerprint(encoder()) == fingerprint(encoder())
    assert fingerprint(encoder()) != fingerprint(encoder(seed=1))
