"""The options of the training loop, and where a run stands."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

import torch

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to try."""


class Interrupted(RuntimeError):  # noqa: N818
    """A signal asked the run to stop; everything was saved first."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class Stage(str, Enum):
    """What a batch is used for."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


@dataclass(frozen=True, kw_only=True)
class Training:
    """The options of the training loop.

    Attributes
    ----------
    epochs : int
        Passes over the training data.
    metric : str
        The validation number that picks the best checkpoint: ``loss`` or what the task reports.
    maximize : bool
        Whether a larger metric is better.
    accumulation : int
        Batches that make one update; the gradient is that of their union.
    max_grad_norm : float, optional
        Gradients are scaled down to this 2-norm.
    precision : str
        ``float32``, ``bf16`` or ``fp16`` (autocast; the weights stay float32).
    compile : bool
        Whether the model goes through ``torch.compile``.
    ema_decay : float, optional
        Keep an exponential moving average of the weights, used in validation and testing.
    average_best : int
        Test with the mean of the weights of this many best checkpoints.
    patience : int, optional
        Stop after this many validated epochs without a better metric.
    validate_every : int
        Validate after every so many epochs, and after the last.
    checkpoint_minutes : float
        Save in the middle of an epoch at this interval.
    max_nonfinite : int
        Stop after this many updates in a row without a finite loss and gradient.

    Examples
    --------
    >>> Training(epochs=2, precision="int4")
    Traceback (most recent call last):
        ...
    ValueError: training.precision is 'int4'; choose one of float32, bf16, fp16
    """

    epochs: int
    metric: str = "loss"
    maximize: bool = False
    accumulation: int = 1
    max_grad_norm: float | None = 5.0
    precision: str = "float32"
    compile: bool = False
    ema_decay: float | None = None
    average_best: int = 1
    patience: int | None = None
    validate_every: int = 1
    checkpoint_minutes: float = 15.0
    max_nonfinite: int = 10

    def __post_init__(self) -> None:
        problems = []
        if self.precision not in PRECISIONS:
            problems.append(
                f"training.precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}"
            )
        for name in ("epochs", "accumulation", "average_best", "validate_every", "max_nonfinite"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                problems.append(
                    f"training.{name} is {value!r}; it must be a whole number of at least 1"
                )
        if problems:
            raise ValueError("; ".join(problems))

    def validates(self, epoch: int) -> bool:
        """Whether validation follows an epoch, counted from 1."""
        return epoch % self.validate_every == 0 or epoch == self.epochs

    def check_skipped(self, position: Position) -> None:
        """Raise a `TrainingError` after ``max_nonfinite`` skipped updates in a row."""
        if position.nonfinite_run >= self.max_nonfinite:
            raise TrainingError(
                f"{position.nonfinite_run} updates in a row had no finite loss or gradient (up to "
                f"step {position.step}). Try a lower learning rate or a longer warm-up, a smaller "
                f"training.max_grad_norm (now {self.max_grad_norm}), training.precision float32 "
                f"(now {self.precision}), and look at the utterances named in the log"
            )


@dataclass
class Position:
    """Where a run stands: what a checkpoint needs beside weights and optimisers.

    Attributes
    ----------
    epoch : int
        Finished epochs; the running one has this number in the sampler.
    batch : int
        Batches of the running epoch that are done on each rank.
    step : int
        Updates since the start.
    loss_sum, items, skipped : float, int, int
        Of the running epoch: summed loss, utterances seen, updates skipped.
    nonfinite_run : int
        Updates in a row without a finite loss.
    best : float, optional
        Best validation metric so far.
    epochs_since_best : int
        Epochs without a better one.
    stopped : bool
        Whether early stopping has ended the training.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    items: int = 0
    skipped: int = 0
    nonfinite_run: int = 0
    best: float | None = None
    epochs_since_best: int = 0
    stopped: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Give the position as plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the position from ``state_dict``'s result."""
        for field in fields(self):
            setattr(self, field.name, state[field.name])

    def next_epoch(self) -> None:
        """Close the running epoch."""
        self.epoch += 1
        self.restart_epoch()

    def restart_epoch(self) -> None:
        """Go back to the start of the running epoch; updates that were made stay counted."""
        self.batch = self.items = self.skipped = 0
        self.loss_sum = 0.0

    def validated(self, value: float, *, maximize: bool, patience: int | None) -> bool:
        """Take note of a validation metric; returns whether it is the best so far. NaN never is."""
        first = self.best is None and not math.isnan(value)
        better = first or (
            self.best is not None and (value > self.best if maximize else value < self.best)
        )
        if better:
            self.best, self.epochs_since_best = value, 0
        else:
            self.epochs_since_best += 1
        self.stopped = patience is not None and self.epochs_since_best >= patience
        return better
