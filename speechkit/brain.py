"""The training loop: epochs, accumulation, validation, exact resume, testing.

A task subclasses :class:`Brain` and writes what :class:`speechkit.task.Task` asks for, three
methods mostly: ``compute_forward``, ``compute_objectives`` and ``evaluate``.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speechkit import distributed, parallel
from speechkit.checkpoint import Checkpointer
from speechkit.data.batch import Batch, Failure
from speechkit.data.manifest import DataError
from speechkit.data.splits import SplitData, in_groups
from speechkit.metrics.results import SCORERS, Result
from speechkit.optim import frozen_modules
from speechkit.results import write_test
from speechkit.rng import random_state, set_random_state
from speechkit.schedules import Constant, Schedule
from speechkit.signals import StopRequest
from speechkit.task import Task
from speechkit.tracking import Tracker, progress_bar
from speechkit.training import Interrupted, Position, Stage, Training, TrainingError
from speechkit.updater import Updater, best_weights

logger = logging.getLogger(__name__)


class Brain(Task):
    """Trains and tests one model.

    Parameters
    ----------
    model : nn.Module
        What is trained, saved and loaded.
    data : SplitData
        Where batches come from.
    optimizer : callable or mapping
        ``functools.partial(torch.optim.AdamW, lr=1e-3)``; a mapping from parameter prefix to such a
        callable makes several optimisers (GANs).
    training : Training
        The options of the loop.
    folder : Path
        The run's folder: checkpoints, metrics, test rows.
    schedule : Schedule, optional
        Multiplies every base learning rate; constant by default.
    parameter_groups : mapping, optional
        Optimiser settings by parameter prefix, such as ``{"encoder": {"lr": 1e-4}}``.
    frozen : sequence of str
        Prefixes of parameters that do not train; their modules stay in eval mode.
    seed : int
        Of what a task draws itself, beside the data's own seed.
    device : str
        Where the model runs.

    Attributes
    ----------
    forward : callable
        What ``compute_forward`` calls: ``network`` or, in training, its compiled or distributed
        form.
    split : str
        Which split is being evaluated.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        data: SplitData,
        optimizer: Callable[..., Optimizer] | Mapping[str, Callable[..., Optimizer]],
        training: Training,
        folder: Path,
        schedule: Schedule | None = None,
        parameter_groups: Mapping[str, Mapping[str, Any]] | None = None,
        frozen: Sequence[str] = (),
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.model = model.to(device)
        self.data = data
        self.training = training
        self.folder = Path(folder)
        self.seed = seed
        self.device = torch.device(device)
        self.frozen = tuple(frozen)
        self.forward: Callable[..., Any] = self.network
        self.position = Position()
        self.updater = Updater(
            self.model, optimizer, training, schedule if schedule is not None else Constant(),
            parameter_groups=parameter_groups, frozen=self.frozen,
        )  # fmt: skip
        self.tracker = Tracker(self.folder)
        self.checkpointer = Checkpointer(
            self.folder / "checkpoints",
            keep_best=training.average_best,
            metric=training.metric,
            maximize=training.maximize,
        )
        self.stop = StopRequest()
        self.split = ""
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self._loader_options: dict[str, Any] = {
            "rank": self.rank, "world_size": self.world_size,
            "pin_memory": self.device.type == "cuda",
        }  # fmt: skip

    # ---------------------------------------------------------------- training

    def fit(self) -> None:
        """Train until the epochs are done, from the last checkpoint if there is one.

        Raises
        ------
        Interrupted
            On SIGINT or SIGTERM, after a checkpoint was written.
        TrainingError
            When ``max_nonfinite`` updates in a row had no finite loss.
        DataError
            When more utterances fail than ``data.max_bad_share`` allows.
        """
        options = self.training
        wrapped = parallel.wrap(self.network)
        self.forward = torch.compile(wrapped) if options.compile else wrapped
        batches = self.data.num_train_batches(0, world_size=self.world_size)
        self.total_steps = options.epochs * math.ceil(batches / options.accumulation)
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        logger.info(
            "%.2f M trainable parameters, %d batches an epoch, %d epochs, on %s",
            trainable / 1e6, batches, options.epochs, self.device,
        )  # fmt: skip
        self.resume()
        with self.stop.caught():
            while self.position.epoch < options.epochs and not self.position.stopped:
                started = time.monotonic()
                try:
                    self._fit_epoch()
                    self._end_epoch(time.monotonic() - started)
                except DataError:
                    if self.world_size == 1 and self.position.step:  # others would not know of it
                        self.save()
                    raise
                if self.stop.agreed():
                    raise Interrupted(self.stop.number or 15)
        self.tracker.close()

    def _fit_epoch(self) -> None:
        position = self.position
        self.model.train()
        for module in frozen_modules(self.model, self.frozen):
            module.eval()
        loader = self.data.train_loader(
            position.epoch, start_batch=position.batch, **self._loader_options
        )
        saved = time.monotonic()
        bar = progress_bar(
            f"epoch {position.epoch + 1}", len(loader) + position.batch, position.batch
        )
        with bar:
            for group in in_groups(loader, self.training.accumulation):
                self.updater.set_rates(position.step, self.total_steps)
                self.fit_batches(group)
                position.step += 1
                position.batch += len(group)
                bar.update(len(group))
                bar.set_postfix(loss=f"{position.loss_sum / max(1, position.items):.4f}")
                if self.stop.agreed():
                    self.save()
                    raise Interrupted(self.stop.number or 15)
                # Clocks differ, and all ranks must save at one step.
                due = time.monotonic() - saved > 60 * self.training.checkpoint_minutes
                if distributed.any_rank(due):
                    self.save()
                    saved = time.monotonic()

    def _end_epoch(self, seconds: float) -> None:
        position, options = self.position, self.training
        items = distributed.all_reduce_sum(float(position.items))
        loss = distributed.all_reduce_sum(position.loss_sum) / max(1.0, items)
        row = {
            "epoch": position.epoch + 1, "step": position.step, "train/loss": loss,
            "train/skipped_steps": position.skipped, "seconds": seconds,
            "utterances_per_second": items / max(seconds, 1e-9), **self.updater.rates,
        }  # fmt: skip
        row |= {f"train/{name}": value for name, value in self.end_training().items()}
        metrics = self.validate() if options.validates(position.epoch + 1) else {}
        if metrics:
            if options.metric not in metrics:
                self.save()
                raise TrainingError(
                    f"training.metric is {options.metric!r}, which validation does not give; "
                    f"it gives {', '.join(sorted(metrics))}"
                )
            value = metrics[options.metric]
            position.validated(value, maximize=options.maximize, patience=options.patience)
            self.updater.schedule.validated(value, options.maximize)
        row |= {f"valid/{name}": value for name, value in metrics.items()}
        position.next_epoch()
        if distributed.is_main():
            self.tracker.log(row)
            shown = {"loss": loss, "valid loss": metrics.get("loss"), **self.updater.rates}
            if options.metric != "loss":
                shown[options.metric] = metrics.get(options.metric)
            text = "  ".join(f"{k} {v:.4g}" for k, v in shown.items() if v is not None)
            logger.info("epoch %d  %s  %.0f s", position.epoch, text, seconds)
        self.save(metrics)

    def fit_batches(self, batches: list[Batch]) -> None:
        """Make one update from the batches of one accumulation group.

        The gradient is that of the mean over all utterances of all batches on all ranks, however
        they are split.
        """
        for batch in batches:
            self.note_failures(batch.failures)
        batches = [batch.to(self.device, non_blocking=True) for batch in batches if len(batch)]
        items = sum(len(batch) for batch in batches)
        total = distributed.all_reduce_sum(float(items))
        if total == 0:
            return
        if items == 0:
            raise DataError(
                "no utterance of a batch could be used while other processes go on; "
                "mend or leave out the utterances named in the log"
            )
        finite, loss_sum = True, 0.0
        for index, batch in enumerate(batches):
            # Gradients travel between processes once a group, with its last batch.
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last else parallel.no_sync(self.forward):
                share = len(batch) * self.world_size / total
                losses = self.train_batch(batch, share, last=last)
            finite = self._check_finite(losses, batch) and finite
            loss_sum += float(losses.mean()) * len(batch)
        if self.updater.step(finite=finite, only=self.stepping()):
            self.position.loss_sum += loss_sum
            self.position.items += items
            self.position.nonfinite_run = 0
        else:
            self._note_skipped(batches)

    def _check_finite(self, losses: Tensor, batch: Batch) -> bool:
        good = torch.isfinite(losses)
        if bool(good.all()):
            return True
        ids = [i for i, ok in zip(batch.ids, good.expand(len(batch)).tolist()) if not ok]
        logger.warning("step %d: the loss is not finite for %s", self.position.step, ", ".join(ids))
        return False

    def _note_skipped(self, batches: list[Batch]) -> None:
        position = self.position
        position.skipped += 1
        position.nonfinite_run += 1
        ids = ", ".join(i for batch in batches for i in batch.ids)
        logger.warning("step %d skipped: loss or gradient not finite, with %s", position.step, ids)
        self.training.check_skipped(position)

    def note_failures(self, failures: Iterable[Failure]) -> None:
        """Log utterances that cannot be used; a `DataError` where they are too many."""
        self.data.note_failures(failures)

    # ---------------------------------------------------------------- evaluation

    def validate(self) -> dict[str, float]:
        """Give the validation loss and the task's numbers; empty without a validation set."""
        if "valid" not in self.data.splits:
            return {}
        loss, rows = self._evaluate_split("valid", Stage.VALID)
        scores = {result.metric: result.value for result in self._score(rows)}
        return {"loss": loss, **scores, **self.end_validation()}

    def test(self) -> dict[str, list[Result]]:
        """Evaluate every test split, each utterance once, and write rows and summaries."""
        results = {}
        for split in self.data.test_splits:
            _, rows = self._evaluate_split(split, Stage.TEST)
            for name, part in self.parts(split, rows).items():
                results[name] = self._score(part)
                if distributed.is_main():
                    write_test(self.folder, name, part, self.scorer or "", results[name])
        return results

    def _score(self, rows: list[dict[str, Any]]) -> list[Result]:
        return SCORERS[self.scorer](rows) if self.scorer and rows else []

    def _evaluate_split(self, split: str, stage: Stage) -> tuple[float, list[dict[str, Any]]]:
        self.model.eval()
        self.split = split
        wrapped, self.forward = self.forward, self.network
        loader = self.data.eval_loader(split, **self._loader_options)
        rows: list[dict[str, Any]] = []
        loss_sum, items = 0.0, 0
        ema = self.updater.ema
        averaged = ema.applied() if ema is not None else contextlib.nullcontext()
        with torch.no_grad(), averaged, progress_bar(split, len(loader)) as bar:
            for batch in loader:
                batch = batch.to(self.device, non_blocking=True)
                with self.updater.autocast():
                    outputs = self.compute_forward(batch, stage)
                    losses = self.compute_objectives(outputs, batch, stage)
                    rows.extend(self.evaluate(outputs, batch, stage))
                loss_sum += float(losses.float().mean()) * len(batch)
                items += len(batch)
                bar.update()
        self.forward = wrapped
        loss_sum, count = (distributed.all_reduce_sum(v) for v in (loss_sum, float(items)))
        return loss_sum / max(1.0, count), distributed.gather_objects(rows)

    # ---------------------------------------------------------------- checkpoints

    def save(self, metrics: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint (rank 0); ``metrics`` makes it a candidate for the best."""
        state = {
            "model": self.model.state_dict(),
            "updater": self.updater.state_dict(),
            "position": self.position.state_dict(),
            "task": self.task_state(),
            # Sums of a running epoch and random states differ by rank.
            "ranks": distributed.gather_objects([(self.position.state_dict(), random_state())]),
        }
        if distributed.is_main():
            self.checkpointer.save(
                state, epoch=self.position.epoch, step=self.position.step, metrics=metrics
            )
        distributed.barrier()

    def resume(self) -> bool:
        """Take up the last good checkpoint; returns whether there was one."""
        loaded = self.checkpointer.load_last()
        if loaded is None:
            return False
        state = loaded.state
        try:
            self.model.load_state_dict(state["model"])
            self.updater.load_state_dict(state["updater"])
            self.load_task_state(state.get("task", {}))
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"{loaded.entry.file} does not fit this model and its optimisers ({error!r}); "
                "start anew with another --output_folder"
            ) from error
        ranks = state["ranks"]
        if len(ranks) == self.world_size:
            position, random = ranks[self.rank]
            self.position.load_state_dict(position)
            set_random_state(random)
        else:
            logger.warning(
                "the checkpoint was made by %d processes, this run has %d: it goes on from the "
                "epoch's start, not bit by bit", len(ranks), self.world_size,
            )  # fmt: skip
            self.position.load_state_dict(state["position"])
            self.position.restart_epoch()
        if distributed.is_main():
            self.tracker.rewind(step=self.position.step)
        logger.info(
            "resumed after epoch %d, batch %d, step %d",
            self.position.epoch, self.position.batch, self.position.step,
        )  # fmt: skip
        return True

    def load_best(self) -> None:
        """Put the best weights into the model: their mean with ``average_best`` above 1."""
        weights = best_weights(self.checkpointer, self.training.average_best)
        self.model.load_state_dict(weights)
        self.updater.ema = None
