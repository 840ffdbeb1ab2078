"""Every YAML of classification trains, tests and saves in small, on tones and noises."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

import speechkit
from speechkit.data.audio import write_audio
from speechkit.data.manifest import Utterance, write_manifest
from speechkit.hparams import read_hparams
from speechkit.models.classifier import Classified, SoundClassifier
from speechkit.results import RunResults, read_rows, score_folder
from speechkit.rotation import run_folds

HPARAMS = Path(__file__).parents[2] / "recipes" / "classification" / "hparams"
YAMLS = sorted(HPARAMS.glob("*.yaml"))
LABELS = ("dog", "rain", "rooster")
RATE = 8000

ONE_EPOCH = ["--training.epochs", "1", "--device", "cpu", "--data.max_batch_size", "4"]
FLOAT = ["--training.precision", "float32", "--data.num_workers", "0"]
TINY_CONV = ["--model.encoder.channels", "[2, 4, 4, 4]", "--model.pooling.input_size", "4"]
TINY_CNN14 = [
    *FLOAT, "--model.encoder.channels", "[2, 2, 4, 4, 4, 4]", "--model.pooling.input_size", "4",
    "--model.embedding_size", "4",
]  # fmt: skip
TINY_AST = [
    *FLOAT, "--model.encoder.embed_dim", "8", "--model.encoder.num_heads", "2",
    "--model.encoder.num_layers", "1", "--model.encoder.feedforward_size", "8",
    "--model.pooling.input_size", "8",
]  # fmt: skip
SMALL = {
    "esc10_conv2d": TINY_CONV,
    "esc50_cnn14": TINY_CNN14,
    "esc50_ast": TINY_AST,
    "urbansound8k_cnn14": TINY_CNN14,
    "folder_conv2d": [*TINY_CONV, "--prepare.valid_share", "0.3", "--prepare.test_share", "0.3"],
    "emotion_conv2d": TINY_CONV,
    "tags_cnn14": TINY_CNN14,
}
Run = Callable[..., Path]


def sound(label: int, number: int) -> torch.Tensor:
    """Return 0.3 to 0.4 s of a tone: another octave for each label."""
    size = 2400 + 100 * (number % 8)
    time = torch.arange(size) / RATE
    return 0.3 * torch.sin(2 * math.pi * 400 * 2**label * (1 + 0.02 * number) * time)


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return clips of three labels in the layout of each corpus."""
    root = tmp_path_factory.mktemp("sounds")
    esc, urban, rows = [], [], []
    for fold in (1, 2, 4):  # no clips of the third
        for target, label in enumerate(LABELS):
            for number in range(2):
                name = f"{fold}-{target}{number}-A-{target}.wav"
                waveform = sound(target, 10 * fold + number)
                for place in ("esc/audio", f"urban/audio/fold{fold}", f"folder/{label}"):
                    write_audio(root / place / name, waveform, RATE)
                source = f"{fold}{target}{number}"
                esc.append([name, fold, target, label, True, source, "A"])
                urban.append([name, source, 0.0, 0.4, 1, fold, target, label])
                row = {"label": [label, "tone"] if number else [label], "emotion": label}
                path = str(root / "esc/audio" / name)
                rows.append((fold, Utterance(name, path, len(waveform) / RATE, RATE, extra=row)))
    columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    write_table(root / "esc/meta/esc50.csv", [columns, *esc])
    columns = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    write_table(root / "urban/metadata/UrbanSound8K.csv", [columns, *urban])
    for split, fold in (("train", 1), ("valid", 2), ("test", 4)):
        write_manifest(root / "rows" / f"{split}.jsonl", [row for f, row in rows if f == fold])
    return root


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def train(
    sounds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Callable[[str], ModuleType],
) -> Run:
    """Return a function that runs a YAML in small, and returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *changes: str, folder: str = "run") -> Path:
        corpus = {"esc10": "esc", "esc50": "esc", "urbansound8k": "urban", "folder": "folder"}
        where = corpus.get(name.partition("_")[0])
        place = ["--root", sounds / where] if where else ["--manifests", sounds / "rows"]
        output = [] if folder == "default" else ["--output_folder", folder]
        words = [HPARAMS / f"{name}.yaml", *place, *output, *ONE_EPOCH, *SMALL[name], *changes]
        run_folds(recipe("classification").Classification, [str(word) for word in words])
        return tmp_path / folder

    return run


def test_every_yaml_has_a_test() -> None:
    assert [path.stem for path in YAMLS] == sorted(SMALL)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_yaml(name: str, train: Run) -> None:
    folder = train(name)
    results = RunResults.read(folder / "RESULTS.json").results["test"]
    assert results[0].metric == ("mAP" if name == "tags_cnn14" else "accuracy")
    assert score_folder(folder)
    rows = read_rows(folder / "test/test/rows.jsonl")
    labels = [*LABELS, "tone"] if name == "tags_cnn14" else list(LABELS)
    assert list(rows[0]["scores"]) == labels
    assert sum(rows[0]["scores"].values()) == pytest.approx(1, abs=1e-4) or name == "tags_cnn14"
    model = speechkit.load(folder / "model")
    assert isinstance(model, SoundClassifier)
    found = model.classify(rows[0]["audio"], top=len(labels))
    assert isinstance(found, Classified)
    for label, probability in found.labels:
        assert probability == pytest.approx(rows[0]["scores"][label], abs=1e-4)


def test_all_folds_in_one_command(train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("esc10_conv2d", "--fold", "all")
    assert sorted(p.name for p in folder.glob("fold*")) == ["fold1", "fold2", "fold4"]
    each = [
        RunResults.read(folder / f"fold{n}" / "RESULTS.json").results["test"][0].value
        for n in (1, 2, 4)
    ]
    record = RunResults.read(folder / "RESULTS.json")
    numbers = {result.metric: result for result in record.results["test"]}
    assert numbers["accuracy"].value == pytest.approx(sum(each) / 3)
    assert numbers["accuracy_deviation"].value == pytest.approx(float(torch.tensor(each).std()))
    assert numbers["accuracy"].count == 3
    assert len(read_rows(folder / "test/test/rows.jsonl")) == 18
    assert len(score_folder(folder)) == len(numbers)
    assert {"fold4/train", "fold4/test"} <= record.manifest_sha256.keys()
    assert "--fold all" in record.command
    assert "Confusion" in (folder / "report.html").read_text()
    # Each fold is what it is alone; again, nothing is trained.
    alone = train("esc10_conv2d", "--fold", "2", folder="alone")
    rows = [read_rows(f / "test/test/rows.jsonl") for f in (alone, folder / "fold2")]
    assert rows[0] == rows[1]
    before = {p: p.stat().st_mtime_ns for p in folder.glob("fold*/checkpoints/step-*.pt")}
    train("esc10_conv2d", "--fold=all")
    assert {p: p.stat().st_mtime_ns for p in folder.glob("fold*/checkpoints/step-*.pt")} == before


def test_some_of_the_training_recordings_validate(train: Run) -> None:
    share = ["--prepare.valid_share", "0.2", "--data.valid", "!ref <manifests>/valid.jsonl"]
    folder = train("esc10_conv2d", *share, "--training.metric", "accuracy")
    (row,) = read_rows(folder / "metrics.jsonl")
    assert {"valid/loss", "valid/accuracy"} <= row.keys()
    assert set(RunResults.read(folder / "RESULTS.json").manifest_sha256) == {
        "train", "valid", "test",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("esc10_conv2d", ["--fold", "3"], "fold 3 has no clips; there are clips in 1, 2, 4"),
        ("folder_conv2d", ["--fold", "all"], "--fold: "),
        ("emotion_conv2d", ["--field", "mood"], "6 rows without labels"),
        ("emotion_conv2d", ["--field", "label"], "rows without exactly one label"),
        (
            "emotion_conv2d",
            ["--weights", "!apply:torch.ones [2]"],
            "2 weights, but the model",
        ),
    ],
)
def test_what_cannot_be_trained(
    name: str,
    changes: list[str],
    message: str,
    train: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        train(name, *changes)
    assert stop.value.code == 1
    assert message in capsys.readouterr().err


def test_a_label_that_was_not_in_training(
    train: Run, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "valid", "test"):
        text = (sounds / "rows" / f"{split}.jsonl").read_text()
        (tmp_path / f"{split}.jsonl").write_text(
            text.replace('"emotion": "rain"', '"emotion": "snow"') if split == "test" else text
        )
    with pytest.raises(SystemExit):
        train("emotion_conv2d", "--manifests", str(tmp_path))
    assert "test: 'snow', in 2 rows" in capsys.readouterr().err


def test_transfer_to_other_labels(train: Run, sounds: Path, tmp_path: Path) -> None:
    first = train("emotion_conv2d", folder="first")
    source = ["--init_from", str(first / "model")]
    for split in ("train", "valid", "test"):  # other labels, and another number of them
        rows = [
            {**row, "mood": "low" if row["emotion"] == "dog" else "high"}
            for row in read_rows(sounds / "rows" / f"{split}.jsonl")
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = ["--manifests", str(tmp_path), "--field", "mood", *source]
    before = speechkit.load(first / "model").state_dict()

    probe = train(
        "emotion_conv2d", *other, "--frozen", "[encoder, pooling]",
        "--model.normalize.update_steps", "0", folder="probe",
    )  # fmt: skip
    model = speechkit.load(probe / "model")
    assert isinstance(model, SoundClassifier)
    assert model.labels == ["high", "low"]
    for name, value in model.state_dict().items():  # statistics of norms too
        assert name.startswith("head.") or torch.equal(value, before[name]), name
    tuned = speechkit.load(train("emotion_conv2d", *other, folder="tuned") / "model").state_dict()
    assert any(not torch.equal(tuned[n], before[n]) for n in before if n.startswith("encoder."))


def test_a_finished_model_is_tested_by_its_own_labels(
    train: Run, tmp_path: Path, sounds: Path
) -> None:
    first = train("esc10_conv2d", folder="first")
    model = speechkit.load(first / "model")
    assert isinstance(model, SoundClassifier)
    order = [2, 0, 1]
    model.labels = [model.labels[n] for n in order]
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(parameter[order])
    speechkit.save(model, tmp_path / "turned")
    again = train(
        "esc10_conv2d", "--test_only", "--init_from", str(tmp_path / "turned"), folder="again"
    )
    values = [RunResults.read(f / "RESULTS.json").results["test"] for f in (first, again)]
    assert values[0] == values[1]


def test_stated_sizes() -> None:
    """The sizes that comments state are those of the models, with as many labels as the corpus."""
    counts = {"esc50_cnn14": 50, "esc50_ast": 50, "urbansound8k_cnn14": 10, "tags_cnn14": 527}
    for name, count in counts.items():
        path = HPARAMS / f"{name}.yaml"
        stated = re.search(r"([\d.]+) M parameters", path.read_text())
        assert stated
        labels = str([f"label {n}" for n in range(count)])
        given = {"root": "data", "manifests": "data", "labels": labels}
        consumed = [*re.findall(r"^(\w+):", path.read_text(), re.MULTILINE)]
        given = {key: value for key, value in given.items() if key in consumed}
        hparams = read_hparams(path, given, consumed=consumed)
        model = hparams.build(["model"])["model"]
        size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert f"{size:.2f}" == stated[1]
