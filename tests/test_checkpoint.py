"""Checkpoints: pruning, damage, full disks, kills; random state; files written whole."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkit import files
from speechkit.checkpoint import Checkpointer, CheckpointError
from speechkit.files import atomic_file, atomic_write
from speechkit.rng import random_state, set_random_state


def save(saver: Checkpointer, step: int, wer: float | None = None) -> Any:
    metrics = None if wer is None else {"WER": wer}
    return saver.save({"w": torch.full((4,), float(step))}, epoch=step, step=step, metrics=metrics)


def on_disk(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path / "c", keep_last=2, keep_best=2, metric="WER")
    for step, wer in ((1, 5.0), (2, 2.0), (3, float("nan")), (4, 3.0), (5, None), (6, 9.0)):
        save(saver, step, wer)
    kinds = {entry.step: entry.kind for entry in saver.entries()}
    assert kinds == {2: "best", 4: "best", 5: "last", 6: "last"}
    names = [f"step-{step:08d}.pt" for step in (2, 4, 5, 6)]
    assert on_disk(tmp_path / "c") == ["index.json", *names]
    assert [entry.step for entry in saver.best(9)] == [2, 4, 6]
    assert saver.load(saver.best()[0])["w"].tolist() == [2.0] * 4
    content = json.loads((tmp_path / "c" / "index.json").read_text())
    row = content["checkpoints"][0]
    assert set(row) == {"file", "sha256", "epoch", "step", "metrics", "kind"}
    data = (tmp_path / "c" / row["file"]).read_bytes()
    assert row["sha256"] == hashlib.sha256(data).hexdigest()


def test_maximized_metric_and_ties(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep_last=3, metric="WER", maximize=True)
    for step, value in ((1, 4.0), (2, 7.0), (3, 7.0)):
        save(saver, step, value)
    assert [entry.step for entry in saver.best(2)] == [2, 3]
    plain = Checkpointer(tmp_path)
    assert [entry.step for entry in plain.best(2)] == [3, 2]


def test_nothing_saved(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path / "new", metric="WER")
    assert saver.load_last() is None
    assert saver.best() == []
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="keep_last=0"):
        Checkpointer(tmp_path, keep_last=0)


def test_second_save_of_a_step_never_touches_the_first_file(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep_last=2, metric="WER")
    first = save(saver, 7)
    second = save(saver, 7, 1.0)
    assert (first.file, second.file) == ("step-00000007.pt", "step-00000007-1.pt")
    assert on_disk(tmp_path) == ["index.json", "step-00000007-1.pt"]
    save(saver, 7)  # without metrics: the validated one stays
    assert [entry.metrics for entry in saver.entries()] == [{"WER": 1.0}, {}]


def test_damaged_files_fall_back_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver = Checkpointer(tmp_path, keep_last=4)
    for step in (1, 2, 3, 4):
        save(saver, step)
    (tmp_path / "step-00000004.pt").unlink()
    damaged = tmp_path / "step-00000003.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    flipped = bytearray((tmp_path / "step-00000002.pt").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "step-00000002.pt").write_bytes(flipped)
    with caplog.at_level(logging.WARNING):
        loaded = saver.load_last()
    assert loaded is not None
    assert loaded.entry.step == 1
    assert loaded.state["w"].tolist() == [1.0] * 4
    messages = [record.getMessage() for record in caplog.records]
    assert "step-00000004.pt is missing" in messages[0]
    assert "step-00000003.pt is damaged" in messages[1]
    assert "step-00000002.pt is damaged" in messages[2]
    # The damaged ones do not count among the last: the good one is kept beside the new one.
    save(saver, 2)
    assert [entry.step for entry in saver.entries()] == [1, 2]
    assert on_disk(tmp_path) == ["index.json", "step-00000001.pt", "step-00000002-1.pt"]


def test_no_good_checkpoint_is_an_error(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path)
    save(saver, 1)
    (tmp_path / "step-00000001.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints .* is good.*start the"):
        saver.load_last()
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        saver.load_last()


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path)
    save(saver, 1)
    entry = save(saver, 2)
    path = tmp_path / entry.file
    torch.save({"w": Trap(tmp_path / "executed")}, path)
    index = tmp_path / "index.json"
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    index.write_text(index.read_text().replace(entry.sha256, new))
    loaded = saver.load_last()
    assert loaded is not None
    assert loaded.entry.step == 1
    assert not (tmp_path / "executed").exists()


class Trap:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_without_an_entry_are_ignored_then_removed(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path)
    save(saver, 1)
    for name in ("step-00000099.pt", "step-00000002.pt.17.writing", "index.json.17.writing"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    loaded = saver.load_last()
    assert loaded is not None
    assert loaded.entry.step == 1
    save(saver, 2)
    assert on_disk(tmp_path) == ["index.json", "notes.txt", "step-00000001.pt", "step-00000002.pt"]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {"b": [1, np.float64(2.0)]}}, r"state\['a'\]\['b'\]\[1\] is a numpy.float64"),
        ({"path": Path("x")}, r"state\['path'\] is a pathlib"),
        ({"a": {np.int64(1): 2}}, r"the key .* of state\['a'\] is a numpy.int64"),
    ],
)
def test_what_could_not_be_loaded_is_refused_when_saved(
    tmp_path: Path, value: dict[str, Any], place: str
) -> None:
    with pytest.raises(TypeError, match=place):
        Checkpointer(tmp_path).save(value, epoch=1, step=1)
    assert on_disk(tmp_path) == []


def test_a_whole_training_state_round_trips(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "random": random_state(),
        "more": [OrderedDict(a=(1, None)), {1, 2}, b"x", torch.float16, torch.Size([1])],
    }
    saver = Checkpointer(tmp_path)
    saver.save(state, epoch=1, step=1)
    loaded = saver.load_last()
    assert loaded is not None
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state["model"][name], tensor)
    optimizer.load_state_dict(loaded.state["optimizer"])
    set_random_state(loaded.state["random"])
    assert loaded.state["more"] == state["more"]


def fail_after(monkeypatch: pytest.MonkeyPatch, error: int, when: str) -> None:
    """Let the next sync of a file whose name holds ``when`` fail."""
    true_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        if when in name.name:
            raise OSError(error, os.strerror(error))
        true_fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("when", ["step-00000003.pt", "index.json"])
def test_full_disk_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    saver = Checkpointer(tmp_path, keep_last=1, metric="WER")
    save(saver, 1, 1.0)
    save(saver, 2, 2.0)
    with monkeypatch.context() as patch:
        fail_after(patch, errno.ENOSPC, when)
        with pytest.raises(CheckpointError, match=r"(?s)no room .*00000002.pt, is untouched.*Free"):
            save(saver, 3, 0.5)
        loaded = Checkpointer(tmp_path).load_last()
        assert loaded is not None
        assert loaded.entry.step == 2
        assert [entry.step for entry in saver.entries()] == [1, 2]
    save(saver, 3, 0.5)
    assert on_disk(tmp_path) == ["index.json", "step-00000003.pt"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_another_disk_error_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Checkpointer(tmp_path)
    fail_after(monkeypatch, errno.EIO, "step-")
    with pytest.raises(CheckpointError, match=r"could not write .*Input/output error; none was"):
        save(saver, 1)


LIMITED = """
import resource, sys, torch
from speechkit.checkpoint import Checkpointer, CheckpointError
saver = Checkpointer(sys.argv[1])
saver.save({"w": torch.zeros(10)}, epoch=1, step=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
# 300,000 bytes are passed inside one tensor, and between two of many.
for state in ({"w": torch.zeros(200_000)}, {str(i): torch.zeros(1000) for i in range(200)}):
    try:
        saver.save(state, epoch=2, step=2)
    except CheckpointError as error:
        print(error)
print(saver.load_last().entry.step, sorted(p.name for p in saver.folder.iterdir()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    for message in (first, second):
        assert "no room to write" in message
        assert "(File too large; " in message
        assert "step-00000001.pt, is untouched" in message
    assert last == "1 ['index.json', 'step-00000001.pt']"


KILLING = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from speechkit.checkpoint import Checkpointer

torch.set_num_threads(1)
saver = Checkpointer(sys.argv[1], keep_last=1, keep_best=1, metric="WER")


def save_on(step):
    while True:
        step += 1
        state = {"w": torch.full((300_000,), float(step))}
        saver.save(state, epoch=step, step=step, metrics={"WER": (step * 7919) % 13})


moments, step, leftovers = random.Random(1), 0, 0
for _ in range(12):
    child = os.fork()
    if child == 0:
        save_on(step)
    time.sleep(moments.uniform(0.02, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # Every file that the index names is whole, the best one too.
    for entry in saver.entries():
        weights = saver.load(entry)["w"]
        assert len(weights) == 300_000 and (weights == entry.step).all(), entry
    loaded = saver.load_last()
    assert loaded is None or loaded.entry.step >= step
    step = loaded.entry.step if loaded else 0
    named = {entry.file for entry in saver.entries()} | {"index.json"}
    leftovers += len({path.name for path in saver.folder.iterdir()} - named)
print(step, leftovers)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_kill_at_any_moment_leaves_a_good_one(tmp_path: Path) -> None:
    # A process of its own forks and kills, so that torch is imported only once.
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    step, leftovers = map(int, done.stdout.split())
    assert step > 0
    assert leftovers > 0  # some kill came in the middle of a save


def test_random_state_covers_every_generator(tmp_path: Path) -> None:
    np.random.standard_normal()  # leaves half of a pair behind, which is state too

    def draw() -> tuple[Any, ...]:
        numbers = [random.gauss(0, 1), random.random(), *np.random.standard_normal(3).tolist()]
        if torch.cuda.is_available():
            numbers.append(torch.rand(1, device="cuda").item())
        return (*numbers, torch.rand(1).item())

    saver = Checkpointer(tmp_path)
    saver.save({"random": random_state()}, epoch=1, step=1)
    expected = draw()
    loaded = saver.load_last()
    assert loaded is not None
    set_random_state(loaded.state["random"])
    assert draw() == expected


def test_random_state_of_more_devices_warns(caplog: pytest.LogCaptureFixture) -> None:
    state = random_state()
    if torch.cuda.is_available():
        state["cuda"] = []
    else:
        state["cuda"] = [torch.zeros(16, dtype=torch.uint8)]
    with caplog.at_level(logging.WARNING):
        set_random_state(state)
    assert "CUDA devices" in caplog.text


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()

    def interrupted() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == "ä\n".encode()
    assert on_disk(tmp_path) == ["a.json"]
