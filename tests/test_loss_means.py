"""Means of losses by name: over utterances and processes, and kept in checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speechkit.loss_means import LossMeans

WORKER = """
import torch
from speechkit import distributed as d
from speechkit.loss_means import LossMeans

with d.session():
    made = []
    for size in (d.world_size(), 1):
        means = LossMeans()
        means.add({"mel": torch.full((1 + d.rank(),), 10.0 * (1 + d.rank()))})
        if d.rank():
            means.add({"stop": torch.ones(3)})
        state = d.gather_objects([means.state_dict()])[0]  # rank 0 writes the checkpoint
        state["sums"] = state["sums"][:size]
        resumed = LossMeans()
        resumed.load_state_dict(state)
        made.append(resumed.take())
    print(f"rank {d.rank()}: {made}", flush=True)
"""


def test_means_are_over_utterances() -> None:
    means = LossMeans()
    means.add({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.zeros(3)})
    means.add({"a": torch.tensor(6.0)}, items=1)
    means.add({"a": torch.zeros(0)})
    state = means.state_dict()
    assert means.take() == {"a": pytest.approx(3.0), "b": 0.0}
    means.load_state_dict(state)
    means.add({"a": torch.tensor([8.0])})
    assert means.take() == {"a": pytest.approx(4.0), "b": 0.0}


def test_each_process_goes_on_with_its_own_sums(tmp_path: Path) -> None:
    """What they saw of a running epoch differs; one that has other processes begins it again."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(tmp_path / "worker.py"),
    ]  # fmt: skip
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # (1 x 10 + 2 x 20) / 3, and a name that one process alone has.
    expected = {"mel": 50.0 / 3, "stop": 1.0}
    for rank in range(2):
        assert f"rank {rank}: [{expected}, {{}}]" in done.stdout
