"""``--fold all``: what it refuses, and folds that do not belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speechkit.brain import Brain
from speechkit.data.errors import DataError
from speechkit.metrics.results import Result
from speechkit.results import RunResults, write_test
from speechkit.rotation import pool, run_folds

YAML = """
seed: 1
fold: 1
prepare: !name:{module}.prepare
  root: {root}
  out: {root}/out
  {option}
model: !new:torch.nn.PReLU
data: !new:speechkit.data.splits.SplitData
  train: null
  valid: null
  test: null
  num_workers: 0
  max_bad_share: 0.0
  seed: !ref <seed>
optimizer: !name:torch.optim.AdamW
training: !new:speechkit.training.Training
  epochs: 1
"""


def yaml_of(folder: Path, module: str, option: str = "fold: !ref <fold>") -> str:
    path = folder / "some.yaml"
    path.write_text(YAML.format(module=module, root=folder, option=option))
    return str(path)


@pytest.mark.parametrize(
    ("module", "option", "message"),
    [
        ("speechkit.datasets.label_folder", "seed: !ref <fold>", "label_folder has no folds"),
        ("speechkit.datasets.esc50", "fold: !ref <fold>", "meta/esc50.csv: no such table"),
    ],
)
def test_what_has_no_folds(
    module: str,
    option: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_folds(Brain, [yaml_of(tmp_path, module, option), "--fold", "all"])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err


def test_several_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        run_folds(Brain, [yaml_of(tmp_path, "speechkit.datasets.esc50"), "--fold=all"])
    assert "in one process, and here are 2: train each with torchrun" in capsys.readouterr().err


def test_a_stray_option_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_folds(
            Brain,
            [yaml_of(tmp_path, "speechkit.datasets.esc50"), "--fold", "all", "--sede", "2"],
        )
    error = capsys.readouterr().err
    assert error.count("sede") == 1
    assert "seed" in error


def finished(folder: Path, split: str) -> Path:
    row: dict[str, Any] = {"id": "a", "label": "cat", "scores": {"cat": 0.9, "dog": 0.1}}
    result = Result("accuracy", 100.0, "%", 1)
    write_test(folder, split, [row], "classification", [result])
    RunResults("some", "train", 4, {split: [result]}).write(folder / "RESULTS.json")
    return folder


def test_folds_of_one_kind_are_pooled(tmp_path: Path) -> None:
    places = {n: finished(tmp_path / f"fold{n}", "test") for n in (2, 7)}
    record = pool(tmp_path, places, command="all of it")
    assert (record.recipe, record.seed, record.command) == ("some", 4, "all of it")
    assert record.results["test"][0] == Result("accuracy", 100.0, "%", 2)
    assert RunResults.read(tmp_path / "RESULTS.json").results == record.results


def test_folds_of_different_tests_are_refused(tmp_path: Path) -> None:
    places = {n: finished(tmp_path / f"fold{n}", f"test{n}") for n in (1, 2)}
    with pytest.raises(DataError, match=r"fold2: was tested on \['test2'\], fold 1 on \['test1'\]"):
        pool(tmp_path, places, command="all of it")
    with pytest.raises(DataError, match=r"fold3.*RESULTS\.json"):
        pool(tmp_path, {1: places[1], 3: tmp_path / "fold3"}, command="all of it")
