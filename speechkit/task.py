"""What a task writes: the methods that a training loop calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from speechkit.data.batch import Batch
from speechkit.training import Stage
from speechkit.updater import Updater


class Task:
    """The methods of :class:`speechkit.brain.Brain` that a task writes or may override.

    The first three make a task; the others are for what most tasks do not need.
    """

    model: nn.Module
    updater: Updater
    forward: Callable[..., Any]

    scorer: str | None = None
    """The name in ``metrics.results.SCORERS`` that turns rows of ``evaluate`` into results."""

    def compute_forward(self, batch: Batch, stage: Stage) -> Any:
        """Run ``self.forward`` on a batch; the result goes to the two methods below."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_forward")

    def compute_objectives(self, outputs: Any, batch: Batch, stage: Stage) -> Tensor:
        """Give the loss: ``(B,)``, one value an utterance, or a scalar mean over the batch."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_objectives")

    def evaluate(self, outputs: Any, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give one row of plain values an utterance, from which ``scorer`` makes numbers."""
        return []

    @property
    def network(self) -> nn.Module:
        """What ``compute_forward`` runs and the model folder holds.

        That is the model, unless it has parts for training alone, such as discriminators.
        """
        return self.model

    def parts(self, split: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Divide the rows of a test split into what is scored apart, by name; all are one here."""
        return {split: rows}

    def train_batch(self, batch: Batch, share: float, *, last: bool) -> Tensor:
        """Add a batch's gradient, and give its loss, detached: ``(B,)`` or a scalar.

        Override it for training that is not one loss and one backward pass (GANs).

        Parameters
        ----------
        batch : Batch
            On the device.
        share : float
            What its mean loss is multiplied by: the part of its utterances in the update's.
        last : bool
            Whether the update follows.
        """
        with self.updater.autocast():
            outputs = self.compute_forward(batch, Stage.TRAIN)
            losses = self.compute_objectives(outputs, batch, Stage.TRAIN)
        self.updater.backward(losses.mean() * share)
        return losses.detach()

    def stepping(self) -> Sequence[str] | None:
        """Name the optimisers that step in this update; None is all."""
        return None

    def end_validation(self) -> dict[str, float]:
        """Give more numbers of a validation pass after its last batch; all ranks call it."""
        return {}

    def end_training(self) -> dict[str, float]:
        """Give more numbers of a training epoch after its last batch; all ranks call it."""
        return {}

    def task_state(self) -> dict[str, Any]:
        """Give what else the rest of the training depends on: plain values and tensors."""
        return {}

    def load_task_state(self, state: Mapping[str, Any]) -> None:
        """Take up ``task_state``'s result."""
