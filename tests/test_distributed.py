"""Two processes on gloo, started as a user starts them: through torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from speechkit import distributed, parallel, sharding
from speechkit.optim import build_optimizers, clip_gradients

WORKER = '''
import contextlib, json, sys
from functools import partial
from pathlib import Path
import torch
from torch import nn
from speechkit import distributed as d, parallel, sharding
from speechkit.checkpoint import Checkpointer
from speechkit.optim import build_optimizers, clip_gradients

torch.set_num_threads(1)
folder = Path(sys.argv[1])
COUNTS = (3, 5)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


def train(strategy, steps, start=None, accumulate=False, unequal_start=False):
    """Train on this rank's shard of a batch of 8; give everything that came of it."""
    torch.manual_seed(d.rank() if unequal_start else 0)
    model = Model()
    optimizer = build_optimizers(model, partial(torch.optim.AdamW, lr=0.1),
                                 parameter_groups={"head": {"lr": 0.05}})["model"]
    wrapped = model
    if strategy:
        wrapped = parallel.wrap(model, strategy, optimizers=[optimizer])
    if start:
        sharding.load_model_state(wrapped, start["model"])
        sharding.load_optimizer_state(wrapped, optimizer, start["optimizer"])
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator)
    weight = 1.0
    if strategy:
        x, y = x.split(COUNTS)[d.rank()], y.split(COUNTS)[d.rank()]
        weight = len(x) * d.world_size() / d.all_reduce_sum(float(len(x)))
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        parts = [(x[:1], y[:1]), (x[1:], y[1:])] if accumulate else [(x, y)]
        for i, (a, b) in enumerate(parts):
            with contextlib.nullcontext() if i + 1 == len(parts) else parallel.no_sync(wrapped):
                loss = (wrapped(a) - b).square().mean() * (len(a) / len(x)) * weight
                loss.backward()
        gradients = {n: getattr(p.grad, "full_tensor", lambda p=p: p.grad)().clone()
                     for n, p in model.named_parameters()}
        norms.append(clip_gradients(model.parameters(), 0.5).item())
        optimizer.step()
    return {"model": sharding.model_state(wrapped), "gradients": gradients, "norms": norms,
            "optimizer": sharding.optimizer_state(wrapped, optimizer)}, model


def worst(a, b):
    return max(float((a[n] - b[n]).abs().max()) for n in b)


def work(place):
    rank = d.rank()
    report = {"rank": rank, "world_size": d.world_size(), "main": d.is_main(),
              "place": [place.rank, place.world_size, place.local_rank],
              "device": d.default_device() if not torch.cuda.is_available() else "cpu"}
    with d.main_first():
        existed = (folder / "prepared").exists()
        (folder / "prepared").touch()
    report["existed"] = existed
    try:
        with d.main_first():
            if d.is_main():
                raise KeyError("preparing")
    except (KeyError, RuntimeError) as error:
        report["failed"] = str(error)
    report["sum"] = d.all_reduce_sum(rank + 0.5)
    report["int_and_float"] = d.all_reduce_sum(1 if rank else 0.25)
    tensor = torch.tensor([rank, 10])
    report["tensor_sum"] = d.all_reduce_sum(tensor).tolist()
    report["unchanged"] = tensor.tolist()
    report["any"] = [d.any_rank(rank == 1), d.any_rank(False)]
    report["gathered"] = d.gather_objects([{"rank": rank, "i": i} for i in range(rank + 1)])
    report["nothing"] = d.gather_objects([])

    one, _ = train(None, 1)
    two, _ = train("ddp", 1)
    report["gradient"] = worst(two["gradients"], one["gradients"])
    report["norm"] = abs(two["norms"][0] - one["norms"][0])
    report["weights"] = worst(two["model"], one["model"])
    accumulated, _ = train("ddp", 1, accumulate=True)
    report["accumulated"] = worst(accumulated["gradients"], one["gradients"])
    report["names"] = sorted(two["model"]) == sorted(one["model"])
    three, _ = train(None, 3)

    # Small blocks are sharded too, so that the test reaches that code.
    sharding.MIN_BLOCK_PARAMETERS = 1
    cut, model = train("fsdp", 1, accumulate=True)
    report["sharded"] = sharding.is_sharded(model) and sharding.is_sharded(model.blocks[0])
    report["local"] = sum(p.to_local().numel() for p in model.parameters())
    report["total"] = sum(p.numel() for p in model.parameters())
    report["fsdp_gradient"] = worst(cut["gradients"], two["gradients"])
    report["fsdp_norm"] = abs(cut["norms"][0] - two["norms"][0])
    report["fsdp_empty"] = [len(cut["model"]), len(cut["optimizer"])]
    if d.is_main():
        report["fsdp_weights"] = worst(cut["model"], two["model"])
        Checkpointer(folder / "c").save(
            {"model": cut["model"], "optimizer": cut["optimizer"]}, epoch=1, step=1)
    d.barrier()
    # On from the file: three steps in two runs are those of one; weights of rank 0 count.
    saved = Checkpointer(folder / "c").load_last().state
    resumed, model = train("fsdp", 2, start=saved, unequal_start=True)
    if d.is_main():
        report["fsdp_resumed"] = worst(resumed["model"], three["model"])
    other, model = train("fsdp", 0 + 1, unequal_start=True)
    if d.is_main():
        report["fsdp_rank_0_counts"] = worst(other["model"], cut["model"])
        (folder / "written").write_text(str(rank))
    (folder / f"report-{rank}.json").write_text(json.dumps(report))


work(d.init())
d.cleanup()
'''


def torchrun(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    # The launcher takes a free port of this machine by itself.
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", str(script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two ranks saw, from one launch for all tests."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "worker.py"
    script.write_text(WORKER)
    done = torchrun(script, str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]


def test_ranks_know_their_place(reports: list[dict[str, Any]]) -> None:
    for rank, report in enumerate(reports):
        assert (report["rank"], report["world_size"], report["main"]) == (rank, 2, rank == 0)
        assert report["place"] == [rank, 2, rank]
        assert report["device"] == "cpu"


def test_main_goes_first_and_its_failure_is_known(reports: list[dict[str, Any]]) -> None:
    assert [report["existed"] for report in reports] == [False, True]
    assert reports[0]["failed"] == "'preparing'"
    assert "rank 0 failed" in reports[1]["failed"]


def test_collectives(reports: list[dict[str, Any]]) -> None:
    for rank, report in enumerate(reports):
        assert report["sum"] == 2.0
        assert report["int_and_float"] == 1.25
        assert report["tensor_sum"] == [1, 20]
        assert report["unchanged"] == [rank, 10]
        assert report["any"] == [True, False]
        assert report["gathered"] == [
            {"rank": 0, "i": 0},
            {"rank": 1, "i": 0},
            {"rank": 1, "i": 1},
        ]
        assert report["nothing"] == []


def test_ddp_gradients_are_those_of_the_global_batch(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["gradient"] < 1e-6
        assert report["accumulated"] < 1e-6
        assert report["norm"] < 1e-6
        assert report["weights"] < 1e-5
        assert report["names"]


def test_fsdp_steps_as_ddp_does(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["sharded"]
        assert report["fsdp_gradient"] < 1e-6
        assert report["fsdp_norm"] < 1e-6
    assert sum(report["local"] for report in reports) == reports[0]["total"]
    assert max(report["local"] for report in reports) < 0.6 * reports[0]["total"]
    assert reports[0]["fsdp_weights"] < 1e-5
    assert reports[0]["fsdp_rank_0_counts"] < 1e-5


def test_fsdp_state_is_whole_on_rank_0_and_resumes(reports: list[dict[str, Any]]) -> None:
    assert reports[0]["fsdp_empty"] == [6, 2]
    assert reports[1]["fsdp_empty"] == [0, 0]
    assert reports[0]["fsdp_resumed"] < 1e-5


FAILING = """
from speechkit import distributed as d
with d.session():
    if d.is_main():
        raise ValueError("only here")
    d.barrier()
"""


def test_a_rank_that_fails_does_not_hang_the_run(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    done = torchrun(script)
    assert done.returncode != 0
    assert "only here" in done.stderr


def test_one_process_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with distributed.session() as place:
        assert (place.rank, place.world_size, place.local_rank) == (0, 1, 0)
        model = nn.Linear(2, 2)
        assert parallel.wrap(model) is model
        assert parallel.wrap(model, "fsdp") is model
        x = torch.ones(2)
        assert torch.equal(distributed.all_reduce_sum(x), x)
        assert distributed.gather_objects([1]) == [1]
        distributed.barrier()
        with distributed.main_first(), parallel.no_sync(model):
            assert distributed.is_main()
        optimizer = build_optimizers(model, torch.optim.Adam)["model"]
        assert sharding.optimizer_state(model, optimizer) == optimizer.state_dict()
        assert clip_gradients(model.parameters(), 1.0).item() == 0.0
    with pytest.raises(ValueError, match=r"'zero3': choose one of ddp, fsdp"):
        parallel.wrap(model, "zero3")


def test_half_an_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RuntimeError, match="WORLD_SIZE=2 is set but LOCAL_RANK is not"):
        distributed.init()


def test_fewer_devices_than_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.default_device() == "cuda:1"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(RuntimeError, match="4 processes on a machine with 2 CUDA devices"):
        distributed.default_device()
