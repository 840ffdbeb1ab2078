from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechkit.losses.balancer import Balancer

WEIGHTS = {"l1": 0.1, "mel": 1.0, "adversarial": 3.0}


def _losses(y: Tensor) -> dict[str, Tensor]:
    """Three losses of each utterance, of very different scale."""
    flat = y.flatten(1)
    return {
        "l1": 1e-4 * (flat - 1).abs().mean(1),
        "mel": 1e3 * (flat.square() - 1).square().mean(1),
        "adversarial": flat.sin().sum(1),
    }


def _published(outputs: list[Tensor], *, decay: float, per_item: bool = True) -> list[Tensor]:
    """Equation 4 in float64, with norms averaged as EnCodec's authors do, of scalar mean losses."""
    sums = dict.fromkeys(WEIGHTS, 0.0)
    counts = dict.fromkeys(WEIGHTS, 0.0)
    found = []
    for y in outputs:
        y = y.double().detach().requires_grad_()
        total = torch.zeros_like(y)
        for name, loss in _losses(y).items():
            (g,) = torch.autograd.grad(loss.mean(), y)
            norm = torch.stack([row.norm() for row in g]).mean() if per_item else g.norm()
            sums[name] = decay * sums[name] + norm.item()
            counts[name] = decay * counts[name] + 1
            share = WEIGHTS[name] / sum(WEIGHTS.values())
            total += share * g / (sums[name] / counts[name] + 1e-12)
        found.append(total.float())
    return found


@pytest.mark.parametrize("per_item", [True, False])
@pytest.mark.parametrize("scalar", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999, 1.0])
def test_gradients_are_the_published_ones(per_item: bool, scalar: bool, decay: float) -> None:
    outputs = [torch.randn(3, 1, 40) * (step + 1) for step in range(5)]
    balancer = Balancer(weights=WEIGHTS, decay=decay, per_item=per_item)
    for y, want in zip(outputs, _published(outputs, decay=decay, per_item=per_item)):
        y = y.clone().requires_grad_()
        losses = {k: v.mean() if scalar else v for k, v in _losses(y).items()}
        balancer.backward(losses, y)
        torch.testing.assert_close(y.grad, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batches", [(2, 5, 3)])
def test_the_batch_size_changes_nothing_of_an_utterance(batches: tuple[int, ...]) -> None:
    # Copies of one utterance: the balanced gradient of each is the same in any batch.
    row = torch.randn(1, 1, 30)
    balancer = Balancer(weights=WEIGHTS, decay=0.5)
    found = []
    for size in batches:
        y = row.repeat(size, 1, 1).requires_grad_()
        found += [*balancer.gradient({k: v.mean() for k, v in _losses(y).items()}, y)]
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0])


def test_shares_are_the_weights_whatever_the_scale_of_a_loss() -> None:
    y = torch.randn(4, 2, 25).requires_grad_()
    alone = []
    for name in WEIGHTS:
        balancer = Balancer(weights=WEIGHTS, total_norm=2.0)
        one = balancer.gradient({name: 1e6 * _losses(y)[name]}, y)
        assert one.flatten(1).norm(dim=1).mean().item() == pytest.approx(2.0, rel=1e-5)
        alone.append(WEIGHTS[name] / sum(WEIGHTS.values()) * one)
    got = Balancer(weights=WEIGHTS, total_norm=2.0).gradient(_losses(y), y)
    torch.testing.assert_close(got, sum(alone), atol=1e-6, rtol=1e-5)


def test_the_loss_has_the_balanced_gradient_and_a_value_to_log() -> None:
    weight = torch.ones(25, requires_grad=True)
    x = torch.randn(4, 1, 25)
    y = x * weight
    Balancer(weights=WEIGHTS).backward(_losses(y), y)
    assert weight.grad is not None
    want, weight.grad = weight.grad / 4, None
    y = x * weight
    losses = _losses(y)
    loss = Balancer(weights=WEIGHTS).loss(losses, y)
    loss.mean().backward()
    torch.testing.assert_close(weight.grad, want)
    mean = sum(WEIGHTS[k] * v.detach() for k, v in losses.items()) / sum(WEIGHTS.values())
    torch.testing.assert_close(loss.detach(), mean, atol=1e-3, rtol=1e-5)


def test_only_the_output_gets_gradients_of_the_losses() -> None:
    # What the losses go through (discriminators) is left alone.
    judge = torch.nn.Linear(10, 1)
    y = torch.randn(2, 10, requires_grad=True)
    Balancer(weights={"adversarial": 1.0}).backward({"adversarial": judge(y).squeeze(1)}, y)
    assert y.grad is not None
    assert all(p.grad is None for p in judge.parameters())


def test_a_resumed_balancer_goes_on_bit_by_bit() -> None:
    outputs = [torch.randn(2, 1, 30) for _ in range(4)]
    whole, first = Balancer(weights=WEIGHTS), Balancer(weights=WEIGHTS)

    def run(balancer: Balancer, ys: list[Tensor]) -> list[Tensor]:
        ys = [y.clone().requires_grad_() for y in ys]
        return [balancer.gradient(_losses(y), y) for y in ys]

    want = run(whole, outputs)
    run(first, outputs[:2])
    second = Balancer(weights=WEIGHTS)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for got, expected in zip(run(second, outputs[2:]), want[2:]):
        assert torch.equal(got, expected)
    assert second.state_dict() == whole.state_dict()


def test_a_loss_may_come_later_and_a_dropped_one_is_forgotten() -> None:
    balancer = Balancer(weights=WEIGHTS)
    y = torch.randn(2, 1, 30).requires_grad_()
    losses = _losses(y)
    late = losses.pop("adversarial")
    norm = balancer.gradient(losses, y, retain_graph=True).flatten(1).norm(dim=1).mean()
    assert norm.item() > 0.5  # the two that are there share the whole norm
    balancer.gradient({**losses, "adversarial": late}, y)
    assert set(balancer.norms) == set(WEIGHTS)
    fewer = Balancer(weights={"mel": 1.0})
    fewer.load_state_dict(balancer.state_dict())
    assert set(fewer.norms) == {"mel"}


def test_silence_and_overflow_leave_the_running_norms_usable() -> None:
    balancer = Balancer(weights={"a": 1.0, "b": 1.0})
    y = torch.ones(2, 4, requires_grad=True)
    gradient = balancer.gradient({"a": (0 * y).sum(1), "b": y.sum(1)}, y)
    torch.testing.assert_close(gradient, torch.full((2, 4), 0.25))
    before = balancer.state_dict()
    huge = balancer.gradient({"a": (float("inf") * y).sum(1), "b": y.sum(1)}, y)
    assert not huge.isfinite().all()  # the update is skipped by its own check
    assert balancer.norms["a"] == before["sums"]["a"] / before["counts"]["a"]
    assert balancer.gradient({"a": y.sum(1), "b": y.sum(1)}, y).isfinite().all()


def test_the_scale_keeps_small_gradients_of_fp16() -> None:
    y = torch.randn(2, 50, requires_grad=True)

    def loss() -> Tensor:
        return (y.half() * 1.0).float().mean(1) * 1e-7  # its gradient passes through fp16

    lost = Balancer(weights={"a": 1.0}).gradient({"a": loss()}, y)
    kept = Balancer(weights={"a": 1.0}).gradient({"a": loss()}, y, loss_scale=65536.0)
    assert not lost.any()
    assert kept.norm(dim=1).tolist() == pytest.approx([1.0, 1.0], rel=1e-2)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda y: {"other": y.sum(1)}, "'other'"),
        (lambda y: {}, "none"),
        (lambda y: {"l1": torch.ones(2)}, "'l1' does not depend"),
        (lambda y: {"l1": torch.ones(2, requires_grad=True) * 2}, "'l1' does not depend"),
        (lambda y: {"l1": y}, "shape"),
    ],
)
def test_bad_losses_are_named(losses: object, message: str) -> None:
    y = torch.randn(2, 5, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        Balancer(weights=WEIGHTS).gradient(losses(y), y)  # type: ignore[operator]


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="-1"):
        Balancer(weights={"a": -1.0})
    with pytest.raises(ValueError, match="one of them above"):
        Balancer(weights={"a": 0.0})
    with pytest.raises(ValueError, match="decay"):
        Balancer(weights={"a": 1.0}, decay=1.5)


WORKER = """
import json, sys
from pathlib import Path
import torch
from torch import distributed as dist
from speechkit.losses.balancer import Balancer

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
data = json.loads((Path(sys.argv[1]) / "data.json").read_text())
balancer = Balancer(weights={"a": 1.0, "b": 2.0}, decay=0.9)
found = []
for step in data:
    y = torch.tensor(step)[:2] if rank == 0 else torch.tensor(step)[2:]
    y.requires_grad_()
    found.append(balancer.gradient({"a": y.square().mean(1), "b": y.sin().mean(1)}, y).tolist())
report = {"gradients": found, "state": balancer.state_dict()}
(Path(sys.argv[1]) / f"report-{rank}.json").write_text(json.dumps(report))
dist.destroy_process_group()
"""


def test_two_ranks_are_one_process_with_both_batches(tmp_path: Path) -> None:
    data = [(torch.randn(5, 7) * (step + 1)).tolist() for step in range(3)]
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in (0, 1)]
    assert reports[0]["state"] == reports[1]["state"]
    joined = Balancer(weights={"a": 1.0, "b": 2.0}, decay=0.9)
    for step, parts in zip(data, zip(*(report["gradients"] for report in reports))):
        y = torch.tensor(step, requires_grad=True)
        want = joined.gradient({"a": y.square().mean(1), "b": y.sin().mean(1)}, y)
        torch.testing.assert_close(torch.tensor([*parts[0], *parts[1]]), want)
