"""Codebooks on two ranks: k-means, averages and replaced codes are those of both batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

WORKER = """
import copy, json, sys
from pathlib import Path
import torch
from torch import distributed as dist
from speechkit.nn.quantize import ResidualVectorQuantizer, kmeans

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(100 + rank)  # each rank draws its own numbers


def batch(step, rank):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(2, 30 + 20 * rank, 3, generator=generator) + rank


options = dict(latent_size=3, codebook_size=8, num_codebooks=2, decay=0.8)
report = {}

model = ResidualVectorQuantizer(**options)
for step in range(4):
    model(batch(step, rank), num_codebooks=1 + step % 2)
report["buffers"] = {name: x.tolist() for name, x in model.named_buffers()}

vectors = batch(0, rank).flatten(0, 1)
found = kmeans(vectors, num_codes=4, iterations=100)
report["means"], report["counts"] = found.codebook.tolist(), found.counts.tolist()

# From equal codebooks, one update is that of one process with both batches.
state = torch.load(Path(sys.argv[1]) / "start.pt")
model = ResidualVectorQuantizer(kmeans_iterations=0, threshold_dead=0.0, **{"latent_size": 3,
    "codebook_size": 8, "num_codebooks": 2, "decay": 0.8})
model.load_state_dict(state)
model(batch(7, rank))
report["updated"] = {name: x.tolist() for name, x in model.named_buffers()}

# A codebook far from all data: its codes are replaced, by vectors of both ranks.
model.layers[0].threshold_dead = 2.0
model.layers[0].codebook.fill_(1000.0)
model.layers[0].codebook[0] = 0
model.layers[0].ema_counts.fill_(0.0)
model(batch(8, rank))
report["replaced"] = model.layers[0].codebook.tolist()
(Path(sys.argv[1]) / f"report-{rank}.json").write_text(json.dumps(report))
dist.destroy_process_group()
"""


def _batch(step: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(2, 30 + 20 * rank, 3, generator=generator) + rank


def _start() -> Any:
    from speechkit.nn.quantize import ResidualVectorQuantizer

    torch.manual_seed(0)
    return ResidualVectorQuantizer(
        latent_size=3,
        codebook_size=8,
        num_codebooks=2,
        decay=0.8,
        kmeans_iterations=0,
        threshold_dead=0.0,
    )


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    (folder / "worker.py").write_text(WORKER)
    torch.save(_start().state_dict(), folder / "start.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    done = subprocess.run(
        [*command, str(folder / "worker.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]


def test_codebooks_are_equal_on_both_ranks(reports: list[dict[str, Any]]) -> None:
    first, second = reports
    assert first["buffers"]["initialised"] is True
    assert first == second  # to the last bit


def test_kmeans_sees_the_vectors_of_both(reports: list[dict[str, Any]]) -> None:
    vectors = torch.cat([_batch(0, rank).flatten(0, 1) for rank in (0, 1)])
    means = torch.tensor(reports[0]["means"])
    codes = torch.cdist(vectors, means).argmin(1)
    counts = torch.bincount(codes, minlength=4).float()
    assert counts.tolist() == reports[0]["counts"]
    # It has converged: each mean is that of its vectors, of both ranks.
    for code in range(4):
        torch.testing.assert_close(vectors[codes == code].mean(0), means[code])


def test_an_update_is_that_of_the_joined_batch(reports: list[dict[str, Any]]) -> None:
    model = _start()
    joined = torch.cat([_batch(7, rank).flatten(0, 1) for rank in (0, 1)])
    model(joined[None])
    for name, want in model.named_buffers():
        got = torch.tensor(reports[0]["updated"][name])
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5, check_dtype=False)


def test_dead_codes_become_vectors_of_both_ranks(reports: list[dict[str, Any]]) -> None:
    codes = torch.tensor(reports[0]["replaced"])
    sources = [_batch(8, rank).flatten(0, 1) for rank in (0, 1)]
    near = [torch.cdist(codes, vectors).min(1).values < 1e-6 for vectors in sources]
    assert near[0].sum() >= 3
    assert near[1].sum() >= 3
    assert codes.max() < 100
