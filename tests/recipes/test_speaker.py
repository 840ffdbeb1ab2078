"""Every YAML of speakers trains, tests and saves in small, on voices that are chords."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import speechkit
from speechkit.data.audio import write_audio
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance, read_manifest, write_manifest
from speechkit.datasets import speaker_splits, voxceleb
from speechkit.datasets.speaker_splits import prepare_librispeech
from speechkit.features.spectrum import LogMel
from speechkit.hparams import read_hparams
from speechkit.metrics.diarization import Turn
from speechkit.models.speaker import SpeakerEncoder
from speechkit.models.voice_activity import VoiceActivity
from speechkit.nn.conv import ConvEncoder
from speechkit.nn.pooling import EmbeddingLayer, StatisticsPooling
from speechkit.nn.xvector import XVectorEncoder
from speechkit.results import RunResults, read_rows, score_folder
from speechkit.run import run
from speechkit.speakers.calibration import calibration_from_dict
from speechkit.speakers.rttm import write_rttm
from speechkit.speakers.trials import Trial, read_trials, write_trials

HPARAMS = Path(__file__).parents[2] / "recipes" / "speaker" / "hparams"
YAMLS = sorted(HPARAMS.glob("*.yaml"))
RATE = 16000

TINY = [
    "--training.epochs", "1", "--device", "cpu", "--training.precision", "float32",
    "--crop_seconds", "0.5", "--data.num_workers", "0", "--data.max_batch_size", "8",
    "--prepare.valid_speakers", "2", "--prepare.piece_seconds", "0.6", "--data.limit", "8",
    "--test_seconds", "[0.5]", "--cohort_size", "3",
]  # fmt: skip
TINY_ECAPA = [
    "--model.features.num_mels", "20", "--model.encoder.input_size", "20",
    "--model.encoder.channels", "8", "--model.encoder.output_size", "12",
    "--model.pooling.input_size", "12", "--model.projection.input_size", "24",
]  # fmt: skip
TINY_XVECTOR = [
    "--model.encoder.channels", "[8, 8, 8, 8, 12]", "--model.pooling.input_size", "12",
    "--model.projection.input_size", "24",
]  # fmt: skip
TINY_NORM = ["--model.norm.num_features", "20"]
SMALL: dict[str, list[str]] = {
    "librispeech_ecapa_small": [*TINY_ECAPA, *TINY_NORM],
    "librispeech_xvector_small": TINY_XVECTOR,
    "voxceleb_ecapa": TINY_ECAPA,
    "voxceleb_xvector": TINY_XVECTOR,
    "voxceleb_resnet34": [
        "--model.encoder.channels", "2", "--model.encoder.num_blocks", "[1, 1]",
        "--model.pooling.input_size", "160", "--model.projection.input_size", "320",
    ],
}  # fmt: skip
CONDITIONS = {"", "@0.5s", "@mean-log-mel", "@mean-log-mel-centered"}


def voice(pitch: float, seconds: float = 1.3) -> torch.Tensor:
    """Give syllables of a chord over some noise: the mean over time is taken out of features."""
    time = torch.arange(round(seconds * RATE)) / RATE
    chord = sum(torch.sin(6.2832 * pitch * n * time) / n for n in (1, 2, 3, 5))
    syllables = (torch.sin(6.2832 * 6 * time) > 0).float()
    return 0.1 * torch.as_tensor(chord) * syllables + 0.003 * torch.randn(len(time))


def write_librispeech(root: Path) -> Path:
    """Write six readers to train on and three to test with, and the trials; give the list."""
    names = []
    for reader in range(9):
        subset = "train-clean-100" if reader < 6 else "test-other"
        place = root / subset / f"{100 + reader}" / "7"
        texts = []
        for number in range(1 if reader < 6 else 2):
            name = f"{100 + reader}-7-{number:04d}"
            write_audio(place / f"{name}.flac", voice(110 + 30 * reader), RATE)
            texts.append(f"{name} WORDS")
            if reader >= 6:
                names.append(f"{subset}/{100 + reader}/7/{name}.flac")
        (place / f"{100 + reader}-7.trans.txt").write_text("\n".join(texts))
    return write_pairs(root / "trials.txt", names, speaker=1)


def write_voxceleb(root: Path) -> Path:
    """Write the same in VoxCeleb's layout: ``dev/wav`` and ``test/wav``."""
    names = []
    for number in range(9):
        part = "dev" if number < 6 else "test"
        for video in range(2):
            name = f"id{10000 + number}/video{video}/00001.wav"
            write_audio(root / part / "wav" / name, voice(110 + 30 * number), RATE)
            if part == "test":
                names.append(name)
    return write_pairs(root / "trials.txt", names, speaker=0)


def write_pairs(path: Path, names: list[str], speaker: int) -> Path:
    """Write all pairs of files; the speaker is this part of a file's path."""
    pairs = combinations(names, 2)
    write_trials(
        path, [Trial(a.split("/")[speaker] == b.split("/")[speaker], a, b) for a, b in pairs]
    )
    return path


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Give the arguments that say where each corpus is."""
    torch.manual_seed(0)
    libri, vox = (tmp_path_factory.mktemp(name) for name in ("libri", "vox"))
    lists = write_librispeech(libri), write_voxceleb(vox)
    return {
        "librispeech": ["--root", str(libri), "--trial_list", str(lists[0])],
        "voxceleb": [
            "--train_roots", f"[{vox / 'dev'}]", "--test_root", str(vox / "test"),
            "--trial_list", str(lists[1]),
        ],
    }  # fmt: skip


@pytest.fixture
def command(corpora: dict[str, list[str]], tmp_path: Path) -> Callable[[str], list[str]]:
    """Return a function that gives a YAML's command line: small, on chords."""

    def make(name: str) -> list[str]:
        where = corpora[name.partition("_")[0]]
        places = ["--corpus", str(tmp_path / "corpus"), "--output_folder", str(tmp_path / "run")]
        return [str(HPARAMS / f"{name}.yaml"), *where, *places, *TINY, *SMALL[name]]

    return make


def test_every_yaml_has_a_test() -> None:
    assert [path.stem for path in YAMLS] == sorted(SMALL)


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_yaml(
    yaml: Path,
    command: Callable[[str], list[str]],
    recipe: Callable[[str], ModuleType],
    tmp_path: Path,
) -> None:
    run(recipe("speaker").SpeakerVerification, command(yaml.stem))
    results = RunResults.read(tmp_path / "run/RESULTS.json")
    # After a few updates all embeddings may be one, and then there is no AS-norm.
    splits = {f"test{condition}" for condition in CONDITIONS}
    assert set(results.results) - {"test@as-norm", "test@plda"} == splits
    assert ("test@plda" in results.results) == (yaml.stem == "voxceleb_xvector")
    rows = read_rows(tmp_path / "run/test/test/rows.jsonl")
    assert len(rows) == 15
    assert sum(row["target"] for row in rows) == 3
    # The numbers are those that the rows give.
    scored = {(split, r.metric): r.value for split, r in score_folder(tmp_path / "run")}
    for split, values in results.results.items():
        assert {"EER", "minDCF(0.01)", "EER trials low"} <= {r.metric for r in values}
        for result in values:
            assert scored[split, result.metric] == pytest.approx(result.value)
    page = (tmp_path / "run/report.html").read_text()
    assert "<h2>Speaker verification</h2>" in page
    assert "bit rate" not in page

    model = speechkit.load(tmp_path / "run/model")
    assert isinstance(model, SpeakerEncoder)
    first, second = rows[0]["id"].split()
    root = next(row for row in read_manifest(tmp_path / "corpus/test.jsonl") if row.id == first)
    folder = Path(root.audio.removesuffix(first))
    verdict = model.verify(folder / first, folder / second)
    assert verdict.score == pytest.approx(rows[0]["score"], abs=1e-4)
    assert (verdict.same_speaker is None) == (model.calibration is None)


def test_what_a_training_leaves(
    command: Callable[[str], list[str]], recipe: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """The encoder and its calibration, without the loss's weights; --test_only takes them up."""
    brain = recipe("speaker").SpeakerVerification
    arguments = command("librispeech_xvector_small")
    learning = ["--training.epochs", "12", "--schedule.warmup_steps", "2", "--loss.scale", "10"]
    run(brain, [*arguments, *learning, "--speakers.factors", "[1.0]", "--data.limit", "64"])
    model: Any = speechkit.load(tmp_path / "run/model")
    assert not any("loss" in name for name in model.state_dict())
    fitted = calibration_from_dict(model.calibration)
    assert -1 < fitted.threshold < 1
    losses = [row["train/loss"] for row in read_rows(tmp_path / "run/metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert "test@as-norm" in RunResults.read(tmp_path / "run/RESULTS.json").results
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["model"]["args"]["calibration"]["method"] == "logistic"

    again = [*arguments, "--output_folder", str(tmp_path / "again"), "--test_only"]
    run(brain, [*again, "--init_from", str(tmp_path / "run/model")])
    first, second = (
        [row["score"] for row in read_rows(tmp_path / name / "test/test/rows.jsonl")]
        for name in ("run", "again")
    )
    assert second == pytest.approx(first, abs=1e-5)


def test_overfit_is_refused(
    command: Callable[[str], list[str]], recipe: Callable[[str], ModuleType], capsys: Any
) -> None:
    arguments = [*command("librispeech_ecapa_small"), "--data.overfit", "4"]
    with pytest.raises(SystemExit):
        run(recipe("speaker").SpeakerVerification, arguments)
    error = capsys.readouterr().err
    assert re.search(r"data\.overfit .* --data\.limit 40 --data\.augment", error)


def test_middle(recipe: Callable[[str], ModuleType]) -> None:
    waveform = torch.arange(10.0).repeat(2, 1)
    cut, lengths = recipe("speaker").middle(waveform, torch.tensor([10, 3]), 4)
    assert cut[0].tolist() == [3, 4, 5, 6]
    assert cut[1, :3].tolist() == [0, 1, 2]
    assert lengths.tolist() == [4, 3]


PUBLISHED = {  # millions of parameters, as the papers give them
    "voxceleb_ecapa": 14.7, "voxceleb_xvector": 4.2, "voxceleb_resnet34": 6.6,
}  # fmt: skip


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_sizes(yaml: Path, tmp_path: Path) -> None:
    text = yaml.read_text()
    stated = re.search(r"([\d.]+) M parameters\.$", text, re.MULTILINE)
    part = re.search(r"^model: .*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    assert stated
    assert part
    small = tmp_path / yaml.name
    small.write_text(f"sample_rate: 16000\n{part[0]}")
    model = read_hparams(small, {}, consumed=("model",)).build(["model"])["model"]
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{count:.2f}" == stated[1]
    assert count == pytest.approx(PUBLISHED.get(yaml.stem, count), abs=0.06)


# ---------------------------------------------------------------- splits


def splits_of(tmp_path: Path, **options: Any) -> dict[str, Path]:
    """Prepare four speakers, of two recordings of 3 s each, and a trial list of a fifth."""
    rows = [
        Utterance(f"{name}{n}", str(tmp_path / f"{name}{n}.wav"), 3.0, RATE, speaker=name)
        for name in "abcd"
        for n in range(2)
    ]
    write_manifest(tmp_path / "all.jsonl", rows)
    for name in ("e0.wav", "e1.wav", "f0.wav"):
        write_audio(tmp_path / name, voice(200.0, 1.0), RATE)
    trials = [Trial(True, "e0.wav", "e1.wav"), Trial(False, "e0.wav", "f0.wav")]
    write_trials(tmp_path / "list.txt", trials)
    arguments: dict[str, Any] = {"valid_speakers": 2, "crop_every": 1.0, "piece_seconds": 1.5}
    return speaker_splits.prepare(
        tmp_path / "all.jsonl", tmp_path / "out", trials={"test": tmp_path / "list.txt"},
        root=tmp_path, **(arguments | options),
    )  # fmt: skip


def test_splits_share_no_speaker(tmp_path: Path) -> None:
    made = splits_of(tmp_path)
    train, valid, test = (read_manifest(made[name]) for name in ("train", "valid", "test"))
    assert len({row.speaker for row in train}) == len({row.speaker for row in valid}) == 2
    assert not {row.speaker for row in train} & {row.speaker for row in valid}
    assert len(train) == 4 * 3  # a crop for each second
    assert {(row.start, row.duration) for row in valid} == {(0.0, 1.5), (1.5, 1.5)}
    trials = read_trials(tmp_path / "out/valid.txt")
    assert len(trials) == 8 * 7 // 2
    assert sum(trial.target for trial in trials) == 2 * 4 * 3 // 2
    assert [row.id for row in test] == ["e0.wav", "e1.wav", "f0.wav"]
    assert test[0].speaker == test[1].speaker != test[2].speaker


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_speakers": 3}, "4 speakers are too few for 3 in validation"),
        ({"piece_seconds": 99.0, "valid_speakers": 2}, None),
    ],
)
def test_splits_that_cannot_be(
    tmp_path: Path, options: dict[str, Any], message: str | None
) -> None:
    if message is None:  # whole recordings are the pieces
        splits_of(tmp_path, **options)
        assert len(read_trials(tmp_path / "out/valid.txt")) == 6
        return
    with pytest.raises(DataError, match=message):
        splits_of(tmp_path, **options)


def test_a_trial_of_a_training_file_is_refused(tmp_path: Path) -> None:
    splits_of(tmp_path)
    write_audio(tmp_path / "a0.wav", voice(200.0, 1.0), RATE)
    write_trials(tmp_path / "bad.txt", [Trial(True, "e0.wav", "a0.wav")])
    with pytest.raises(DataError, match=r"(?s)1 files are in the training data.*a0\.wav"):
        speaker_splits.prepare(
            tmp_path / "all.jsonl", tmp_path / "out2", trials={"test": tmp_path / "bad.txt"},
            root=tmp_path, valid_speakers=2,
        )  # fmt: skip


def test_a_reader_in_training_and_test_is_refused(tmp_path: Path) -> None:
    trials = write_librispeech(tmp_path / "libri")
    options: Any = {"trials": {"test": trials}, "valid_speakers": 2}
    with pytest.raises(DataError, match="readers of the trials are in test-other too: 106, 107"):
        prepare_librispeech(tmp_path / "libri", tmp_path / "out", subsets=["test-other"], **options)
    (tmp_path / "libri/test-other/106/7/106-7-0000.flac").unlink()
    with pytest.raises(DataError, match=r"(?s)1 files do not exist.*106-7-0000\.flac"):
        prepare_librispeech(
            tmp_path / "libri", tmp_path / "out", subsets=["train-clean-100"], **options
        )


def test_voxceleb_leaves_the_speakers_of_the_trials_out(tmp_path: Path) -> None:
    trials = write_voxceleb(tmp_path)
    options: Any = {"trials": {"test": trials}, "valid_speakers": 2}
    made = voxceleb.prepare(
        [tmp_path / "dev", tmp_path / "test"][:1], tmp_path / "test", tmp_path / "out", **options
    )
    assert len({row.speaker for row in read_manifest(made["train"])}) == 4
    for number in (6, 7, 8):  # everything in one folder, as many have it
        (tmp_path / f"test/wav/id{10000 + number}").rename(tmp_path / f"dev/wav/id{10000 + number}")
    made = voxceleb.prepare(tmp_path / "dev", tmp_path / "dev", tmp_path / "out", **options)
    speakers = {row.speaker for name in ("train", "valid") for row in read_manifest(made[name])}
    assert speakers == {f"id{10000 + number}" for number in range(6)}
    with pytest.raises(DataError, match="no folder with speakers"):
        voxceleb.prepare(tmp_path / "test", tmp_path / "dev", tmp_path / "out", **options)


# ---------------------------------------------------------------- diarization


def test_diarize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    spec = importlib.util.spec_from_file_location(
        "recipe_speaker_diarize", HPARAMS.parent / "diarize.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    speechkit.save(
        SpeakerEncoder(
            features=LogMel(num_mels=20, floor=1e-3),
            encoder=XVectorEncoder(
                input_size=20, channels=(16,), kernel_sizes=(3,), dilations=(1,)
            ),
            pooling=StatisticsPooling(input_size=16),
            projection=EmbeddingLayer(input_size=32, embed_dim=12),
        ),
        tmp_path / "model",
    )
    both = torch.cat([voice(150.0, 5.0), voice(1500.0, 4.0)])
    write_audio(tmp_path / "audio/a.wav", both, RATE)
    (tmp_path / "rttm").mkdir()
    write_rttm(
        tmp_path / "rttm/a.rttm", {"a-upstream": [Turn(0.0, 5.0, "anna"), Turn(5.0, 9.0, "ben")]}
    )
    arguments = [
        "diarize.py", "--model", str(tmp_path / "model"), "--audio", str(tmp_path / "audio"),
        "--rttm", str(tmp_path / "rttm"), "--output_folder", str(tmp_path / "out"), "--true_speech",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", arguments)
    assert module.main() == 0
    results = RunResults.read(tmp_path / "out/RESULTS.json").results
    rates = {split: values[0].value for split, values in results.items()}
    assert rates["test@one-speaker"] == pytest.approx(100 * 4 / 9)
    assert rates["test@given-number"] < 10
    for split, result in score_folder(tmp_path / "out"):
        assert result.value == next(r.value for r in results[split] if r.metric == result.metric), (
            split
        )
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<h4>a, DER") == 3
    assert "Worst utterances" not in page
    # With a detector that hears two always, one of them is a false alarm everywhere.
    detector = VoiceActivity(
        features=LogMel(num_mels=8),
        encoder=ConvEncoder(input_size=8, channels=(4,), strides=(2,)),
    )
    for parameter in detector.parameters():
        torch.nn.init.ones_(parameter)
    speechkit.save(detector, tmp_path / "detector")
    monkeypatch.setattr("sys.argv", [*arguments[:-1], "--activity", str(tmp_path / "detector")])
    assert module.main() == 0
    results = RunResults.read(tmp_path / "out/RESULTS.json").results
    alarms = {r.metric: r.value for r in results["test@given-number"]}
    assert alarms["false alarm"] == pytest.approx(100.0)
    (tmp_path / "rttm/a.rttm").unlink()
    assert module.main() == 1
    assert "a.rttm: cannot be read" in capsys.readouterr().err
