"""Training against discriminators: gradients of both sides, turns, exact resume, two processes."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.data.batch import Batch
from speechkit.data.loaders import SpeechData
from speechkit.data.manifest import Utterance, write_manifest
from speechkit.gan import GANBrain, Generated
from speechkit.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from speechkit.losses.balancer import Balancer
from speechkit.losses.codec import waveform_l1
from speechkit.nn.discriminators import MultiScaleSTFTDiscriminator
from speechkit.training import Interrupted, Stage, Training


class Noise:
    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        samples = 100 * int(item["utterance"].duration)
        return {"id": item["id"], "waveform": torch.randn(samples, 1, generator=generator)}


class Filter(GANBrain):
    """A generator that is one convolution and must give its input back."""

    stop_after: int | None = None

    def compute_forward(self, batch: Batch, stage: Stage) -> Tensor:
        if stage is Stage.TRAIN and self.position.step + 1 == self.stop_after:
            self.stop.number = signal.SIGTERM
        return self.forward(batch.waveform.data.transpose(1, 2))  # type: ignore[no-any-return]

    def generated(self, outputs: Tensor, batch: Batch) -> Generated:
        return Generated(outputs, batch.waveform.data.transpose(1, 2), batch.waveform.lengths)

    def distances(self, pair: Generated) -> dict[str, Tensor]:
        return {"l1": waveform_l1(*pair)}

    def other_loss(self, outputs: Tensor) -> Tensor:
        return 0.1 * outputs.square().mean((1, 2))


def discriminator() -> nn.Module:
    return MultiScaleSTFTDiscriminator(num_filters=2, windows=(32, 16))


ADAMW = functools.partial(torch.optim.AdamW, lr=0.01)


def make(
    folder: Path,
    *,
    judged: bool = True,
    cls: type = Filter,
    seconds: Sequence[float] = (2.0, 3.0, 4.0) * 4,
    batch_seconds: float = 16.0,
    optimizer: Any = ADAMW,
    **options: Any,
) -> Any:
    path = folder / "rows.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(path, [Utterance(f"u{n:02}", "-", s, 100) for n, s in enumerate(seconds)])
    torch.manual_seed(0)
    training = {"epochs": 2, **options.pop("training", {})}
    return cls(
        model=nn.Conv1d(1, 1, 9, padding=4),
        discriminator=discriminator() if judged else None,
        balancer=Balancer(weights={"l1": 1.0, "adversarial": 2.0, "features": 3.0}),
        data=SpeechData(
            train=path, valid=path, transforms=[Noise()], max_batch_seconds=batch_seconds, seed=1
        ),
        optimizer=optimizer,
        training=Training(**training),
        folder=folder,
        **options,
    )


def state(brain: GANBrain) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in brain.model.state_dict().items()}


def test_both_sides_get_the_gradients_of_two_plain_passes(tmp_path: Path) -> None:
    """Against: the discriminators' loss on detached output, then each loss's own gradient."""
    brain = make(tmp_path, turns=(1, 1))
    batch = next(iter(brain.data.train_loader(0)))
    brain.train_batch(batch, 1.0, last=True)
    ours = {n: p.grad.clone() for n, p in brain.model.named_parameters()}

    brain.model.zero_grad()
    estimate, target, lengths = brain.generated(brain.compute_forward(batch, Stage.TRAIN), batch)
    judge = brain.discriminator
    real = judge(target, lengths)
    discriminator_loss(real, judge(estimate.detach(), lengths)).mean().backward()
    for name, parameter in judge.named_parameters():
        torch.testing.assert_close(ours[f"discriminator.{name}"], parameter.grad)

    brain.model.zero_grad()
    fake = judge(estimate, lengths)
    losses = {
        "l1": (waveform_l1(estimate, target, lengths), 1.0),
        "adversarial": (generator_loss(fake), 2.0),
        "features": (feature_matching_loss(fake, real), 3.0),
    }
    total = torch.zeros_like(estimate)
    for loss, weight in losses.values():
        (gradient,) = torch.autograd.grad(loss.sum(), [estimate], retain_graph=True)
        total += weight / 6.0 * gradient / gradient.flatten(1).norm(dim=1).mean()
    count = len(estimate)
    (0.1 * estimate.square().mean((1, 2))).mean().backward(retain_graph=True)
    estimate.backward(total / count)
    for name, parameter in brain.network.named_parameters():
        torch.testing.assert_close(ours[f"generator.{name}"], parameter.grad)


def test_discriminators_wait_and_then_learn_in_their_turns(tmp_path: Path) -> None:
    brain = make(tmp_path, adversarial_start=2, turns=(2, 3), training={"epochs": 4})
    moved = []
    step = brain.updater.step

    def watch(**kwargs: Any) -> bool:
        before = state(brain)
        done = step(**kwargs)
        after = state(brain)
        changed = {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}
        moved.append("discriminator" in changed)
        assert "generator" in changed
        return bool(done)

    brain.updater.step = watch
    brain.fit()
    assert moved == [False, False, False, True, True, False, True, True, False, True, True, False]
    rows = brain.tracker.rows()
    assert "train/adversarial" not in rows[0] or rows[0]["train/adversarial"] > 0
    assert {"train/l1", "train/adversarial", "train/features", "train/discriminator"} <= set(
        rows[-1]
    )


def test_without_discriminators_there_are_the_distances_alone(tmp_path: Path) -> None:
    brain = make(tmp_path, judged=False)
    brain.fit()
    assert list(brain.updater.optimizers) == ["generator"]
    rows = brain.tracker.rows()
    assert "train/adversarial" not in rows[-1]
    assert rows[-1]["train/l1"] < rows[0]["train/l1"]
    assert isinstance(brain.network, nn.Conv1d)


@pytest.mark.parametrize("stop", [2, 5])
def test_resume_is_exact(tmp_path: Path, stop: int) -> None:
    """Weights of both sides, the balancer's norms and the losses of the log."""
    whole = make(tmp_path / "whole", adversarial_start=2)
    whole.fit()

    class Stopped(Filter):
        stop_after = stop

    cut = make(tmp_path / "cut", cls=Stopped, adversarial_start=2)
    with pytest.raises(Interrupted):
        cut.fit()
    again = make(tmp_path / "cut", adversarial_start=2)
    again.fit()
    a, b = state(whole), state(again)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.balancer.state_dict() == again.balancer.state_dict()
    names = ("train/loss", "train/l1", "train/features", "train/discriminator")
    logs = [[[row.get(n) for n in names] for row in x.tracker.rows()] for x in (whole, again)]
    assert logs[0] == logs[1]


def test_losses_without_a_weight_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adversarial and no features"):
        GANBrain(
            model=nn.Conv1d(1, 1, 1),
            discriminator=discriminator(),
            balancer=Balancer(weights={"l1": 1.0}),
            optimizer=functools.partial(torch.optim.AdamW, lr=0.01),
            data=None,
            training=Training(epochs=1),
            folder=tmp_path,
        )


ALIKE: dict[str, Any] = {
    "seconds": (2.0,) * 4,
    "feature_scale": "item",
    "turns": (1, 1),
    "optimizer": functools.partial(torch.optim.SGD, lr=0.5),
    "training": {"max_grad_norm": None, "epochs": 1},
}

WORKER = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
import torch
from test_gan import ALIKE, make, state
from speechkit import distributed, parallel

torch.set_num_threads(1)
folder = Path(sys.argv[1])
with distributed.session():
    brain = make(folder / f"rank{distributed.rank()}", batch_seconds=4.0, **ALIKE)
    brain.forward = parallel.wrap(brain.network)
    batches = list(brain.data.train_loader(0))
    brain.fit_batches([batches[distributed.rank()]])
    torch.save(state(brain), folder / f"{distributed.rank()}.pt")
    del brain
"""


def test_two_processes_step_as_one(tmp_path: Path) -> None:
    """Two utterances on each of two ranks move both sides as all four in one process do."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(script), str(tmp_path), str(Path(__file__).parent),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    brain = make(tmp_path / "one", batch_seconds=8.0, **ALIKE)
    before = state(brain)
    (batch,) = brain.data.train_loader(0)
    brain.fit_batches([batch])
    after = state(brain)
    for side in ("generator", "discriminator"):
        assert any(float((after[n] - before[n]).abs().max()) > 1e-4 for n in after if side in n)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in after.items():
            moved = value - before[name]
            torch.testing.assert_close(found[name] - before[name], moved, rtol=1e-3, atol=1e-6)
