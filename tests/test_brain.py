"""The training loop: exact resume, gradients, skipped steps, best weights."""

from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.brain import Brain
from speechkit.data.batch import Batch, Failure
from speechkit.data.loaders import SpeechData
from speechkit.data.manifest import DataError, Utterance, write_manifest
from speechkit.training import Interrupted, Stage, Training, TrainingError


class Numbers:
    """A transform that needs no audio: features drawn by the item's own generator."""

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        if item["id"].startswith("bad"):
            raise DataError(f"{item['id']}: cannot be read")
        frames = int(item["utterance"].duration)
        x = torch.randn(frames, 3, generator=generator)
        return {"id": item["id"], "x": x, "y": x.mean()}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 8)
        self.head = nn.Linear(8, 1)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        hidden = self.drop(torch.tanh(self.encoder(x)))
        mask = (torch.arange(x.shape[1]) < lengths[:, None]).unsqueeze(2)
        return self.head((hidden * mask).sum(1) / lengths[:, None]).squeeze(1)


class Regression(Brain):
    """Predicts the mean of its input."""

    stop_after: int | None = None
    poison: tuple[int, ...] = ()

    def compute_forward(self, batch: Batch, stage: Stage) -> Tensor:
        if stage is Stage.TRAIN and self.position.step + 1 == self.stop_after:
            self.stop.number = signal.SIGTERM
        return self.forward(*batch.x)

    def compute_objectives(self, outputs: Tensor, batch: Batch, stage: Stage) -> Tensor:
        losses = (outputs - batch.y) ** 2
        if stage is Stage.TRAIN and self.position.step in self.poison:
            return losses * float("nan")
        return losses


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [Utterance(f"u{n:02}", "-", float(3 + n % 7), 1000) for n in range(30)]
    write_manifest(path, rows)
    return path


def make(
    folder: Path,
    manifest: Path,
    cls: type[Brain] = Regression,
    *,
    workers: int = 0,
    dropout: float = 0.3,
    max_batch_seconds: float = 30.0,
    frozen: tuple[str, ...] = (),
    max_bad_share: float = 0.01,
    **training: Any,
) -> Any:
    torch.manual_seed(3)
    model = Net()
    model.drop.p = dropout
    options = {"epochs": 3, **training}
    return cls(
        model=model,
        data=SpeechData(
            train=manifest,
            valid=manifest,
            transforms=[Numbers()],
            max_batch_seconds=max_batch_seconds,
            num_workers=workers,
            seed=5,
            max_bad_share=max_bad_share,
        ),
        optimizer=functools.partial(torch.optim.AdamW, lr=0.05),
        training=Training(**options),
        folder=folder,
        frozen=frozen,
    )


def weights(brain: Brain) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in brain.model.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_inside_an_epoch_is_bit_identical(
    tmp_path: Path, manifest: Path, workers: int
) -> None:
    whole = make(tmp_path / "whole", manifest, ema_decay=0.9)
    whole.fit()

    class Stopping(Regression):
        stop_after = 6

    first = make(tmp_path / "cut", manifest, Stopping, workers=workers, ema_decay=0.9)
    with pytest.raises(Interrupted):
        first.fit()
    assert 0 < first.position.batch < first.data.num_train_batches(first.position.epoch)
    torch.manual_seed(99)  # a new process has another random state
    second = make(tmp_path / "cut", manifest, workers=workers, ema_decay=0.9)
    second.fit()
    assert second.position.step == whole.position.step
    assert_equal(weights(whole), weights(second))
    losses = [[r["train/loss"] for r in b.tracker.rows()] for b in (whole, second)]
    assert losses[0] == losses[1]


def test_accumulated_gradient_is_that_of_the_union(tmp_path: Path, manifest: Path) -> None:
    """Unequal batches in one group give the gradient of all their items in one batch."""
    brain = make(tmp_path, manifest, dropout=0.0, accumulation=100, max_grad_norm=None, epochs=1)
    batches = list(brain.data.train_loader(0))
    assert len({len(batch) for batch in batches}) > 1
    seen = {}
    brain.updater.step = lambda **_: seen.update(  # type: ignore[method-assign]
        {n: p.grad.clone() for n, p in brain.model.named_parameters()}
    )
    brain.fit_batches(batches)
    brain.model.zero_grad()
    losses = [brain.compute_objectives(brain.forward(*b.x), b, Stage.VALID) for b in batches]
    torch.cat(losses).mean().backward()
    for name, parameter in brain.model.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad)


def test_nonfinite_steps_are_skipped_and_named(
    tmp_path: Path, manifest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Poisoned(Regression):
        poison = (2,)

    brain = make(tmp_path, manifest, Poisoned, epochs=1)
    with caplog.at_level("WARNING"):
        brain.fit()
    assert "loss is not finite for u" in caplog.text
    assert all(torch.isfinite(w).all() for w in weights(brain).values())
    assert brain.tracker.rows()[0]["train/skipped_steps"] == 1


def test_a_run_of_nonfinite_steps_stops_with_advice(tmp_path: Path, manifest: Path) -> None:
    class Hopeless(Regression):
        poison = tuple(range(100))

    brain = make(tmp_path, manifest, Hopeless, max_nonfinite=3)
    with pytest.raises(TrainingError, match="lower learning rate"):
        brain.fit()
    assert brain.position.step == 2


def test_bad_items_are_skipped_up_to_the_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [Utterance(f"{'bad' if n == 4 else 'u'}{n}", "-", 5.0, 1000) for n in range(20)]
    write_manifest(path, rows)
    brain = make(tmp_path / "strict", path, max_bad_share=0.01)
    with pytest.raises(DataError, match="max_bad_share"):
        brain.fit()
    # Validation must not leave anything out: train only.
    brain = make(tmp_path / "lenient", path, max_bad_share=0.1, epochs=1)
    brain.data.paths.pop("valid")
    with caplog.at_level("WARNING"):
        brain.fit()
    assert "bad4" in caplog.text
    assert brain.position.epoch == 1


def test_failures_of_the_task_count_too(tmp_path: Path, manifest: Path) -> None:
    brain = make(tmp_path, manifest, max_bad_share=0.0)
    with pytest.raises(DataError, match="u03"):
        brain.note_failures([Failure("u03", "labels do not fit")])


def test_best_weights_are_those_of_the_best_epoch(tmp_path: Path, manifest: Path) -> None:
    kept: list[tuple[float, dict[str, Tensor]]] = []

    class Watched(Regression):
        def validate(self) -> dict[str, float]:
            metrics = super().validate()
            kept.append((metrics["loss"], weights(self)))
            return metrics

    brain = make(tmp_path, manifest, Watched, epochs=6)
    brain.fit()
    brain.load_best()
    assert_equal(weights(brain), min(kept, key=lambda pair: pair[0])[1])

    two = make(tmp_path, manifest, epochs=6, average_best=2)
    two.load_best()
    best = sorted(kept, key=lambda pair: pair[0])[:1]
    assert len(two.checkpointer.best(2)) >= 1
    assert best[0][0] == two.checkpointer.best(1)[0].metrics["loss"]


def test_average_of_the_best_k(tmp_path: Path, manifest: Path) -> None:
    brain = make(tmp_path, manifest, epochs=4, average_best=3)
    brain.fit()
    entries = brain.checkpointer.best(3)
    assert len(entries) == 3
    states = [brain.checkpointer.load(entry)["model"] for entry in entries]
    brain.load_best()
    mean = torch.stack([s["head.weight"] for s in states]).mean(0)
    torch.testing.assert_close(brain.model.state_dict()["head.weight"], mean)


def test_early_stop(tmp_path: Path, manifest: Path) -> None:
    class Getting(Regression):
        def validate(self) -> dict[str, float]:
            return {"loss": float(self.position.epoch)}

    brain = make(tmp_path, manifest, Getting, epochs=20, patience=2)
    brain.fit()
    assert brain.position.epoch == 3


def test_frozen_parts_do_not_move(tmp_path: Path, manifest: Path) -> None:
    brain = make(tmp_path, manifest, frozen=("encoder",), epochs=1)
    before = weights(brain)
    brain.fit()
    after = weights(brain)
    assert torch.equal(before["encoder.weight"], after["encoder.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_unknown_metric_names_those_that_are_there(tmp_path: Path, manifest: Path) -> None:
    brain = make(tmp_path, manifest, metric="WERR", epochs=1)
    with pytest.raises(TrainingError, match="it gives loss"):
        brain.fit()


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"compile": True}])
def test_precision_and_compile_train(
    tmp_path: Path, manifest: Path, options: dict[str, Any]
) -> None:
    plain = make(tmp_path / "plain", manifest, dropout=0.0, epochs=2)
    other = make(tmp_path / "other", manifest, dropout=0.0, epochs=2, **options)
    plain.fit()
    other.fit()
    a, b = (brain.tracker.rows()[-1]["valid/loss"] for brain in (plain, other))
    assert b == pytest.approx(a, rel=0.1)
