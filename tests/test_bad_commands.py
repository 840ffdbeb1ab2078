"""A user's mistakes on the command line: a clear error, found early, and nothing half made."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.datasets import espeak
from speechkit.run import run

RECIPES = Path(__file__).parents[1] / "recipes/asr/hparams"


# ---------------------------------------------------------------- mistakes on the command line


def test_a_yaml_that_is_not_there(bench: Any) -> None:
    wrong = str(RECIPES / "toy_ctx.yaml")
    shown = bench.fails(whole=[wrong])
    assert f"there is no file {wrong}; did you mean" in shown
    assert "toy_ctc.yaml" in shown


@pytest.mark.parametrize(
    ("yaml", "layout"),
    [
        ("librispeech_ctc.yaml", "<root>/<subset>/<reader>/<chapter>/"),
        ("fsdd_ctc.yaml", "<root>/recordings/{digit}_{speaker}_{take}.wav"),
    ],
)
def test_a_wrong_data_folder_shows_the_layout(bench: Any, yaml: str, layout: str) -> None:
    for name in ("nowhere", "photos"):
        folder = bench.folder / name
        if name == "photos":
            folder.mkdir()
            (folder / "beach.jpg").write_bytes(b"\xff\xd8")
        arguments = [str(RECIPES / yaml), "--data_folder", str(folder)]
        shown = bench.fails(whole=[*arguments, "--output_folder", str(bench.out)])
        assert f"error: {folder}" in shown
        assert layout in shown


def test_the_toy_corpus_never_replaces_a_folder_of_the_user(bench: Any) -> None:
    photo = bench.folder / "photos/beach.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"\xff\xd8")
    shown = bench.fails("--data_folder", str(photo.parent))
    assert f"error: {photo.parent} exists and was not made by speechkit" in shown
    assert photo.exists()


def test_init_from_what_is_no_model(bench: Any, finished: Path) -> None:
    (bench.folder / "photos").mkdir()
    for source, advice in (
        (bench.folder / "nowhere", "there is no such folder"),
        (bench.folder / "photos", "not a model folder, it has no config.json; give what"),
        (finished, f"did you mean {finished / 'model'}?"),
    ):
        shown = bench.fails("--init_from", str(source))
        assert f"error: {source}: " in shown
        assert advice in shown
    assert not bench.out.exists()


def test_a_device_that_is_not_there(bench: Any) -> None:
    names = ["gpu"] if torch.cuda.is_available() else ["gpu", "cuda"]
    for name in names:
        shown = bench.fails("--device", name)
        assert f"error: --device {name}: not usable here" in shown
        assert "try cpu" in shown
    assert not bench.out.exists()


def test_test_only_without_a_checkpoint(bench: Any) -> None:
    shown = bench.fails("--test_only")
    assert f"{bench.out / 'checkpoints'} holds no checkpoint" in shown
    assert "train first, or name a model folder with --init_from" in shown
    assert not bench.out.exists()


def test_an_output_folder_that_cannot_be_written(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.out.write_text("a file in its place")
    assert f"the output folder {bench.out} cannot be written: File exists" in bench.fails()
    bench.out.unlink()

    def refuse(*_: Any, **__: Any) -> None:  # permissions do not hold back root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(bench.out))

    monkeypatch.setattr("speechkit.run.tempfile.TemporaryFile", refuse)
    shown = bench.fails()
    assert f"the output folder {bench.out} cannot be written: Permission denied" in shown
    assert "name another with --output_folder" in shown


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", "many", "seed: 'many' is no whole number"),
        ("training.epochs", "many", "training.epochs is 'many'; it must be a whole number"),
        ("training.epochs", "0", "training.epochs is 0; it must be a whole number of at least 1"),
        ("optimizer.lr", "fast", "lr='fast'"),
        ("data.train", "nowhere.jsonl", "nowhere.jsonl: no such manifest; prepare the data"),
        ("training.metric", "WERR", "training.metric is 'WERR', which validation does not give"),
    ],
)
def test_values_that_make_no_sense(bench: Any, key: str, value: str, message: str) -> None:
    assert message in bench.fails(f"--{key}", value)


def test_a_metric_that_is_not_there_loses_no_epoch(bench: Any) -> None:
    bench.fails("--training.metric", "WERR")
    shown = bench.works("--training.metric", "WER", "--resume_with_changes")
    assert "resumed after epoch 0, batch 5, step 5" in shown
    assert bench.epochs() == [1]


# ---------------------------------------------------------------- preparation


def test_the_toy_extra_is_not_installed(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "speechkit.datasets.espeak.importlib.util.find_spec",
        lambda name: None if name == "espeakng_loader" else find(name),
    )
    shown = bench.fails("--data_folder", str(bench.folder / "new"))
    assert "error: synthetic speech needs espeak-ng" in shown
    assert "pip install" in shown
    assert "speechkit[toy]" in shown
    assert not list(bench.folder.glob("*new*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_preparation_leaves_nothing_half_made(
    bench: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    speak = espeak.synthesize

    def stopped(requests: Any) -> Iterator[np.ndarray]:
        for index, samples in enumerate(speak(requests)):
            if index == 3:
                assert list(bench.folder.glob(".new.*.partial/**/*.flac"))
                os.kill(os.getpid(), number)
            yield samples

    fresh = ["--data_folder", str(bench.folder / "new")]
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as context:
        context.setattr(espeak, "synthesize", stopped)
        shown = bench.fails(*fresh, status=128 + number)
    assert "stopped; what was finished is kept, the same command goes on" in shown
    assert not list(bench.folder.glob("*new*"))
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    if number == signal.SIGINT:
        bench.works(*fresh)
        assert len(bench.tested()) == 6


def test_a_stop_during_the_last_validation_is_heeded(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(bench.brain):  # type: ignore[name-defined, misc]
        def validate(self) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().validate()

    with pytest.raises(SystemExit) as stop:
        run(Stopped, bench.command())
    assert stop.value.code == 128 + signal.SIGTERM
    assert "the same command resumes" in bench.printed()
    assert bench.epochs() == [1]
    assert not (bench.out / "test").exists()
    bench.works()
    assert bench.epochs() == [1]
    assert len(bench.tested()) == 6
