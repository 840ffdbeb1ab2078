"""Bad input through the user's own commands: a clear error, and nothing lost.

Every message says what is wrong, where, and what to do; no traceback reaches the user.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

import speechkit
from speechkit import checkpoint, files, pretrained
from speechkit.cli import main as cli

AUDIO = {
    "missing": "no such audio file",
    "empty": "the file is empty",
    "truncated": "truncated",
    "foreign": "not audio",
    "nan": "NaN",
}
Row = dict[str, Any]


# ---------------------------------------------------------------- audio


@pytest.mark.parametrize("kind", AUDIO)
def test_bad_audio_in_training_is_named_and_skipped_up_to_the_share(bench: Any, kind: str) -> None:
    changed = bench.manifest("train", lambda rows: bench.spoil(rows[3], kind))
    shown = bench.fails(*changed)
    name = bench.rows("train")[3]["id"]
    assert f"skipped utterance {name}: {bench.folder / kind}.wav: " in shown
    assert AUDIO[kind] in shown
    assert "error: 1 of 24 training utterances could not be used" in shown
    assert f"speechkit check {changed[1]}" in shown


def test_a_larger_share_of_bad_audio_lets_the_same_run_go_on(bench: Any) -> None:
    """What the message advises is no change of hyperparameters that is refused."""
    changed = bench.manifest("train", lambda rows: bench.spoil(rows[3], "foreign"))
    bench.fails(*changed)
    bench.works(*changed, "--data.max_bad_share", "0.05")
    assert len(bench.tested()) == 6


@pytest.mark.parametrize("kind", AUDIO)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_bad_audio_in_evaluation_is_named_and_never_left_out(
    bench: Any, split: str, kind: str
) -> None:
    changed = bench.manifest(split, lambda rows: bench.spoil(rows[3], kind))
    shown = bench.fails(*changed, "--data.max_bad_share", "1")
    assert f"error: {changed[1]}: a score must not leave any utterance out" in shown
    assert f"utterance {bench.rows(split)[3]['id']!r}: {bench.folder / kind}.wav: " in shown
    assert AUDIO[kind] in shown
    assert f"speechkit check --decode {changed[1]}" in shown
    assert not (bench.out / "RESULTS.json").exists()


@pytest.mark.parametrize("split", ["dev", "test"])
def test_bad_audio_in_evaluation_loses_no_training(bench: Any, split: str) -> None:
    changed = bench.manifest(split, lambda rows: bench.spoil(rows[3], "truncated"))
    bench.fails(*changed)
    step = bench.checkpoints()[-1]["step"]
    bench.manifest(split, lambda rows: None)
    shown = bench.works(*changed)
    assert f"step {step}\n" in shown
    assert bench.checkpoints()[-1]["step"] == step
    assert bench.epochs() == [1]


def test_an_error_in_a_worker_brings_no_traceback(bench: Any) -> None:
    changed = bench.manifest("dev", lambda rows: bench.spoil(rows[3], "empty"))
    shown = bench.fails(*changed, "--data.num_workers", "1")
    assert f"utterance {bench.rows('dev')[3]['id']!r}: " in shown


def test_an_utterance_longer_than_the_budget(bench: Any) -> None:
    rows = bench.rows("train")
    long = [row["id"] for row in rows if row["duration"] > 2.0]
    budget = ["--data.max_batch_seconds", "2"]
    shown = bench.fails(*budget)
    assert "train.jsonl" in shown
    assert f"{len(long)} utterances are longer than max_batch_seconds=2: {long[0]}, " in shown
    assert "set max_utterance_seconds to leave them out" in shown
    # Those of the test are scored all the same, each alone.
    shown = bench.works(*budget, "--data.max_utterance_seconds", "2")
    assert f"left out {len(long)} of 24 training utterances" in shown
    assert len(bench.tested()) == 6


# ---------------------------------------------------------------- transcripts and manifests


def test_characters_outside_the_tokenizer(bench: Any) -> None:
    for split in ("train", "test"):
        bench.out = bench.folder / split
        changed = bench.manifest(split, lambda rows: rows[2].update(text="CALL ß ALICE"))
        shown = bench.fails(*changed)
        assert f"{bench.rows(split)[2]['id']}" in shown
        assert "'ß' (U+00DF) at position 5 is outside the tokenizer's vocabulary" in shown
        assert "clean the text of it, or train the tokenizer on it" in shown


def test_more_labels_than_frames(bench: Any) -> None:
    def lengthen(rows: list[Row]) -> None:
        rows[2]["text"] = "CALL ALICE " * 40

    changed = bench.manifest("train", lengthen)
    shown = bench.fails(*changed)
    assert re.search(rf"{bench.rows('train')[2]['id']}.* frames are needed for its 440", shown)
    assert "use a smaller stride, larger tokens, or leave the utterance out" in shown
    bench.out = bench.folder / "other"
    changed += [*bench.manifest("dev", lengthen), *bench.manifest("test", lengthen)]
    shown = bench.works(*changed, "--data.max_bad_share", "0.05")
    assert "skipped utterance" in shown
    row = next(row for row in bench.tested() if row["id"] == bench.rows("test")[2]["id"])
    assert row["reference"] == "CALL ALICE " * 40
    assert len(bench.tested()) == 6
    valid = json.loads((bench.out / "metrics.jsonl").read_text())["valid/loss"]
    assert np.isfinite(valid)


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_that_are_wrong_are_all_listed(bench: Any, split: str) -> None:
    def change(rows: list[Row]) -> None:
        rows[5]["id"] = rows[3]["id"]
        del rows[1]["duration"]
        del rows[4]["audio"]

    changed = bench.manifest(split, change)
    shown = bench.fails(*changed)
    assert f"error: {changed[1]}: 3 bad rows" in shown
    assert re.search(r"row 2 \(.*\): missing field 'duration'", shown)
    assert re.search(r"row 5 \(.*\): missing field 'audio'", shown)
    assert re.search(r"row 6 \(.*\): duplicate id, first in row 4", shown)
    assert not (bench.out / "checkpoints").exists()
    assert cli(["check", changed[1]]) == 1
    assert bench.printed().count(": row ") == 3


# ---------------------------------------------------------------- checkpoints


@contextmanager
def disk_that_fills(path: Path) -> Iterator[IO[bytes]]:
    """Stand in for ``atomic_file`` on a disk that is full after some bytes."""

    class Full:
        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            if self.file.tell() > 4000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    with files.atomic_file(path) as file:
        yield Full(file)  # type: ignore[misc]


def test_a_full_disk_while_saving(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = checkpoint.Checkpointer.save

    def save(self: checkpoint.Checkpointer, *args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as context:
            if kwargs["epoch"] == 2:
                context.setattr(checkpoint, "atomic_file", disk_that_fills)
            return saved(self, *args, **kwargs)

    two = ["--training.epochs", "2"]
    with monkeypatch.context() as context:
        context.setattr(checkpoint.Checkpointer, "save", save)
        shown = bench.fails(*two)
    assert "error: no room to write" in shown
    assert "the last good checkpoint, step-00000005.pt, is untouched" in shown
    assert "Free some space" in shown
    names = {path.name for path in (bench.out / "checkpoints").iterdir()}
    assert names == {"index.json", "step-00000005.pt"}
    assert "resumed after epoch 1" in bench.works(*two)
    assert bench.epochs() == [1, 2]


def test_a_full_disk_while_the_model_is_written(
    bench: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, bench.out)
    before = (bench.out / "model/model.safetensors").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/model")

    monkeypatch.setattr(pretrained, "save", full)
    shown = bench.fails("--training.epochs", "2")
    assert "error: out/model: No space left on device; free some space" in shown
    assert (bench.out / "model/model.safetensors").read_bytes() == before


def test_a_truncated_checkpoint_falls_back_to_the_one_before(bench: Any, finished: Path) -> None:
    shutil.copytree(finished, bench.out)
    last = bench.out / "checkpoints" / bench.checkpoints()[-1]["file"]
    last.write_bytes(last.read_bytes()[:1000])
    shown = bench.works("--training.epochs", "2")
    assert f"{last} is damaged" in shown
    assert "Falling back to the checkpoint before it" in shown
    assert "resumed after epoch 1" in shown
    assert bench.epochs() == [1, 2]
    new = (bench.out / "model/model.safetensors").read_bytes()
    assert new == (finished / "model/model.safetensors").read_bytes()


def test_a_truncated_best_checkpoint_does_not_end_the_test(bench: Any, finished: Path) -> None:
    shutil.copytree(finished, bench.out)
    best = next(row["file"] for row in bench.checkpoints() if "best" in row["kind"])
    (bench.out / "checkpoints" / best).write_bytes(b"PK")
    shown = bench.works("--training.epochs", "2", "--test_only")
    assert f"{best} is damaged" in shown
    assert "the model is made without it" in shown
    for path in (bench.out / "checkpoints").glob("*.pt"):
        path.write_bytes(b"PK")
    shown = bench.fails("--training.epochs", "2")
    assert "checkpoints in" in shown
    assert "restore them, or move the folder away to start the run anew" in shown


# ---------------------------------------------------------------- hostile model folders


class Bomb:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def name_a_function(folder: Path, sentinel: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["args"]["features"] = {"class": "os.mkdir", "args": {"path": str(sentinel)}}
    (folder / "config.json").write_text(json.dumps(config))


def bring_yaml(folder: Path, sentinel: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.yaml").write_text(f"model: !apply:os.mkdir\n  path: {sentinel}\n")


def bring_a_pickle(folder: Path, sentinel: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.pt").write_bytes(pickle.dumps(Bomb(sentinel)))


def hide_a_pickle(folder: Path, sentinel: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(sentinel)))


def leave_the_folder(folder: Path, sentinel: Path) -> None:
    elsewhere = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)


HOSTILE = {
    name_a_function: "'os.mkdir' is not allowed",
    bring_yaml: "config.yaml is not read",
    bring_a_pickle: "a pickle, which is never read",
    hide_a_pickle: "not a safetensors file",
    leave_the_folder: "leaves the model folder",
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_model_folder_executes_nothing(
    bench: Any, model: Path, attack: Callable[[Path, Path], None]
) -> None:
    sentinel = bench.folder / "executed"
    attack(model, sentinel)
    shown = bench.fails("--init_from", str(model))
    assert cli(["transcribe", bench.rows("test")[0]["audio"], "--model", str(model)]) == 2
    shown += bench.printed()
    assert shown.count(HOSTILE[attack]) == 2
    assert shown.count(f"error: {model}") == 2
    with pytest.raises(ValueError, match=re.escape(HOSTILE[attack])):
        speechkit.load(model)
    assert not sentinel.exists()
