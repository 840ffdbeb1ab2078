"""A recipe as a user runs it: one command, its folder, its mistakes, its second life."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import speechkit
from speechkit.cli import main as cli
from speechkit.run import run

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "recipes/asr/train.py")
YAML = str(ROOT / "recipes/asr/hparams/toy_ctc.yaml")
SMALL = [
    "--prepare.num_train", "24", "--prepare.num_dev", "6", "--prepare.num_test", "6",
    "--training.epochs", "2", "--data.max_batch_seconds", "12",
    "--model.encoder.layers.0.channels", "[4, 4]", "--model.encoder.layers.0.output_size", "16",
    "--model.encoder.layers.1.input_size", "16", "--model.encoder.layers.1.hidden_size", "8",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def command(toy_corpus: Path) -> list[str]:
    """Give the command line of a run on the small corpus, without its output folder."""
    return [YAML, "--data_folder", str(toy_corpus), *SMALL]


@pytest.fixture(scope="module")
def trained(
    toy_corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
    recipe: Callable[[str], ModuleType],
) -> Path:
    folder = tmp_path_factory.mktemp("run") / "toy"
    arguments = [YAML, "--data_folder", str(toy_corpus), *SMALL, "--output_folder", str(folder)]
    run(recipe("asr").Recognition, arguments)
    return folder


def fails(brain: type, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        run(brain, arguments)
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_a_run_leaves_all_that_the_readme_promises(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "hparams.yaml", "log.txt", "metrics.jsonl", "tensorboard", "checkpoints", "model", "test",
        "report.html", "RESULTS.json",
    }  # fmt: skip
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"train/loss", "valid/loss", "valid/WER", "lr"} <= rows[0].keys()
    results = json.loads((trained / "RESULTS.json").read_text())
    assert results["recipe"] == "toy_ctc"
    assert {r["metric"] for r in results["results"]} >= {"WER", "CER", "SER"}
    assert len(results["manifest_sha256"]["test"]) == 64
    text = (trained / "hparams.yaml").read_text()
    assert text.startswith("# command: python ")
    assert "hidden_size: 8" in text


def test_the_model_folder_opens_in_a_fresh_process_with_the_same_outputs(
    trained: Path, tmp_path: Path
) -> None:
    model = speechkit.load(trained / "model")
    x = torch.randn(2, 8000)
    lengths = torch.tensor([8000, 5000])
    with torch.no_grad():
        expected = model(x, lengths).log_probs
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch, speechkit; x = torch.load(sys.argv[2]); torch.set_num_threads(2)\n"
        "model = speechkit.load(sys.argv[1]); lengths = torch.tensor([8000, 5000])\n"
        "with torch.no_grad(): torch.save(model(x, lengths).log_probs, sys.argv[3])"
    )
    out = tmp_path / "y.pt"
    command = [sys.executable, "-c", code, str(trained / "model"), str(tmp_path / "x.pt"), str(out)]
    subprocess.run(command, check=True)
    assert torch.equal(torch.load(out), expected)


def test_score_recomputes_the_reported_numbers(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["score", str(trained)]) == 0
    assert "WER" in capsys.readouterr().out
    rows = trained / "test/test/rows.jsonl"
    before = rows.read_text()
    changed = [json.loads(line) for line in before.splitlines()]
    changed[0]["hypothesis"] = changed[0]["reference"] + " AND MORE"
    rows.write_text("".join(json.dumps(row) + "\n" for row in changed))
    try:
        assert cli(["score", str(trained)]) != 0
    finally:
        rows.write_text(before)


def test_every_problem_of_a_yaml_is_reported_at_once(
    tmp_path: Path, recipe: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    text = Path(YAML).read_text().replace("data/toy # ", "!PLACEHOLDER # the corpus: ")
    broken.write_text(text + "\nforgotten: 3\n")
    arguments = [
        str(broken),
        "--model.encoder.layers.0.chanels",
        "[4]",
        "--output_folder",
        str(tmp_path / "o"),
    ]
    shown = fails(recipe("asr").Recognition, arguments, capsys)
    assert "data_folder" in shown
    assert "the corpus" in shown
    assert "chanels" in shown
    assert "model.encoder.layers.0.channels" in shown
    assert "forgotten" in shown
    assert not (tmp_path / "o").exists()


def test_a_changed_hyperparameter_is_named_and_refused(
    trained: Path,
    command: list[str],
    recipe: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*command, "--output_folder", str(trained), "--optimizer.lr", "0.5"]
    shown = fails(recipe("asr").Recognition, arguments, capsys)
    assert re.search(r"optimizer\.lr: 0\.\d+ -> 0\.5", shown)
    assert "--resume_with_changes" in shown


def test_resume_with_changes_goes_on(
    trained: Path, command: list[str], recipe: Callable[[str], ModuleType]
) -> None:
    arguments = [*command, "--output_folder", str(trained), "--training.epochs", "3"]
    run(recipe("asr").Recognition, [*arguments, "--resume_with_changes"])
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_fine_tuning_on_another_vocabulary_gets_a_new_head(
    trained: Path,
    command: list[str],
    tmp_path: Path,
    recipe: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.yaml"
    text = Path(YAML).read_text()
    start, end = text.index("tokenizer: !apply"), text.index("data: !new")
    other.write_text(
        text[:start]
        + "tokenizer: !apply:speechkit.data.tokenizer.SentencePieceTokenizer.train\n"
        + "  source: !ref <manifests>/train.jsonl\n  vocab_size: 40\n\n"
        + text[end:]
    )
    arguments = [str(other), *command[1:], "--output_folder", str(tmp_path / "out")]
    arguments += ["--training.epochs", "1", "--init_from", str(trained / "model")]
    run(recipe("asr").Recognition, arguments)
    log = (tmp_path / "out/log.txt").read_text()
    assert "head" in log
    tuned = speechkit.load(tmp_path / "out/model")
    assert tuned.head.out_features == tuned.tokenizer.vocab_size


def test_a_mismatch_that_is_not_named_is_an_error_with_a_table(
    trained: Path,
    command: list[str],
    tmp_path: Path,
    recipe: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    wider = ["--model.encoder.layers.1.hidden_size", "12", "--output_folder", str(tmp_path / "w")]
    arguments = [*command, *wider, "--init_from", str(trained / "model")]
    shown = fails(recipe("asr").Recognition, arguments, capsys)
    assert "encoder.layers.1" in shown
    assert "reinit" in shown
    named = [*arguments, "--reinit", "[encoder.layers.1, head]", "--training.epochs", "1"]
    run(recipe("asr").Recognition, named)
    assert speechkit.load(tmp_path / "w/model").encoder.layers[1].hidden_size == 12


def test_test_only_scores_a_model_folder(
    trained: Path, command: list[str], tmp_path: Path, recipe: Callable[[str], ModuleType]
) -> None:
    """Whatever the YAML says of the network: it is tested as it is, and not saved once more."""
    arguments = [*command, "--output_folder", str(tmp_path / "t"), "--test_only"]
    arguments += ["--model.encoder.layers.1.hidden_size", "12"]
    run(recipe("asr").Recognition, [*arguments, "--init_from", str(trained / "model")])
    assert not (tmp_path / "t/metrics.jsonl").exists()
    assert not (tmp_path / "t/model").exists()
    a, b = (
        json.loads((folder / "RESULTS.json").read_text())["results"]
        for folder in (trained, tmp_path / "t")
    )
    assert a == b


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (["--sample_rate", "8000"], "give --sample_rate 16000"),
        (["--test_only", "--sample_rate", "8000"], "give --sample_rate 16000"),
        (["--test_only", "--output_folder", "TRAINED"], "holds a trained run"),
    ],
)
def test_what_a_model_folder_cannot_start_or_be_tested_with(
    trained: Path,
    command: list[str],
    tmp_path: Path,
    recipe: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    advice: str,
) -> None:
    changes = [str(trained) if word == "TRAINED" else word for word in changes]
    if "--output_folder" not in changes:
        changes += ["--output_folder", str(tmp_path / "n")]
    before = (trained / "RESULTS.json").read_bytes()
    arguments = [*command, *changes, "--init_from", str(trained / "model")]
    assert advice in fails(recipe("asr").Recognition, arguments, capsys)
    assert (trained / "RESULTS.json").read_bytes() == before


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_resumes_with_the_same_end(
    command: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    """The same command, stopped and given again, ends with the weights of an unbroken run."""
    arguments = [sys.executable, TRAIN, *command, "--training.epochs", "4"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(
        [*arguments, "--output_folder", str(whole)],
        check=True,
        env=_environment(),
        capture_output=True,
    )
    second = [*arguments, "--output_folder", str(cut)]
    process = subprocess.Popen(second, env=_environment(), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    log = cut / "metrics.jsonl"
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == (143 if number == signal.SIGTERM else -9), stderr.decode()
    subprocess.run(second, check=True, env=_environment(), capture_output=True)
    a, b = ((folder / "model/model.safetensors").read_bytes() for folder in (whole, cut))
    assert a == b


def test_two_processes_score_each_utterance_once(command: list[str], tmp_path: Path) -> None:
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
    ]  # fmt: skip
    folder = tmp_path / "two"
    done = subprocess.run(
        [*launcher, TRAIN, *command, "--output_folder", str(folder)],
        env=_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids = [json.loads(line)["id"] for line in (folder / "test/test/rows.jsonl").open()]
    assert len(ids) == len(set(ids)) == 6
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]
    assert epochs == [1, 2]
    assert done.stderr.count("epoch 1 ") == 1
