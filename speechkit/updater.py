"""From a loss to new weights: optimisers, schedule, precision, clipping and moving average."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speechkit import distributed
from speechkit.checkpoint import Checkpointer, CheckpointError
from speechkit.ema import ExponentialMovingAverage, average_state_dicts
from speechkit.optim import build_optimizers, clip_gradients
from speechkit.schedules import Schedule
from speechkit.training import PRECISIONS, Training, TrainingError

logger = logging.getLogger(__name__)


class Updater:
    """Owns all that changes the weights of a model.

    Parameters
    ----------
    model : nn.Module
        The model, on its device.
    optimizer : callable or mapping
        As :func:`speechkit.optim.build_optimizers` takes it.
    options : Training
        Precision, clipping and moving average.
    schedule : Schedule
        Multiplies every base learning rate.
    parameter_groups : mapping, optional
        Optimiser settings by parameter prefix.
    frozen : sequence of str
        Prefixes of parameters that do not train.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer] | Mapping[str, Callable[..., Optimizer]],
        options: Training,
        schedule: Schedule,
        *,
        parameter_groups: Mapping[str, Mapping[str, Any]] | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.options = options
        self.schedule = schedule
        self.device = next(model.parameters()).device
        self.optimizers = build_optimizers(
            model, optimizer, parameter_groups=parameter_groups, frozen=frozen
        )
        self._options = {
            name: [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=options.precision == "fp16" and self.device.type == "cuda"
        )
        self.ema: ExponentialMovingAverage | None = None
        if options.ema_decay is not None:
            self.ema = ExponentialMovingAverage(model, decay=options.ema_decay)

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates now: ``lr`` where there is but one."""
        groups = [
            (f"lr/{key}/{group['name']}", float(group["lr"]))
            for key, optimizer in self.optimizers.items()
            for group in optimizer.param_groups
        ]
        distinct = {rate for _, rate in groups}
        return {"lr": distinct.pop()} if len(distinct) == 1 else dict(groups)

    def autocast(self) -> torch.autocast:
        """Give the autocast context of the run's precision."""
        dtype = PRECISIONS[self.options.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def set_rates(self, step: int, total_steps: int) -> None:
        """Put the schedule's learning rate for an update into every optimiser."""
        factor = self.schedule.factor(step, total_steps)
        for name, optimizer in self.optimizers.items():
            for group, options in zip(optimizer.param_groups, self._options[name]):
                group["lr"] = options["lr"] * factor

    def backward(
        self,
        loss: Tensor,
        *,
        inputs: Sequence[Tensor] | None = None,
        retain_graph: bool = False,
    ) -> None:
        """Add the gradient of a loss, scaled where the precision asks for it.

        Parameters
        ----------
        loss : Tensor
            A scalar.
        inputs : sequence of Tensor, optional
            The parameters that get the gradient; all by default.
        retain_graph : bool
            Whether another loss goes backward through the same graph.
        """
        self.scaler.scale(loss).backward(inputs=inputs, retain_graph=retain_graph)

    def step(self, *, finite: bool = True, only: Sequence[str] | None = None) -> bool:
        """Update the weights, or skip when loss or gradient is not finite on any process.

        The gradient of each optimiser's parameters is clipped apart; those of the optimisers that
        do not step are dropped too.

        Parameters
        ----------
        finite : bool
            Whether the loss was finite here.
        only : sequence of str, optional
            The optimisers that step; all by default.

        Returns
        -------
        bool
            Whether the weights changed.
        """
        optimizers = [o for n, o in self.optimizers.items() if only is None or n in only]
        norms = []
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norms.append(clip_gradients(parameters, self.options.max_grad_norm))
        # fp16 meets infinite gradients by design: its scaler skips those steps by itself.
        sound = self.scaler.is_enabled() or all(bool(torch.isfinite(norm)) for norm in norms)
        bad = distributed.any_rank(not (finite and sound))
        for optimizer in optimizers if not bad else ():
            self.scaler.step(optimizer)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            self.scaler.update()
        if self.ema is not None and not bad:
            self.ema.update()
        return not bad

    def state_dict(self) -> dict[str, Any]:
        """Give all that the rest of the training depends on, the model's weights apart."""
        return {
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "options": self._options,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up ``state_dict``'s result; options that were changed since are those of this run.

        The model's weights must be in place: an average that the state lacks starts from them.
        """
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            groups = zip(optimizer.param_groups, self._options[name], state["options"][name])
            for group, new, old in groups:
                group.update({k: v for k, v in new.items() if k not in old or old[k] != v})
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        elif self.ema is not None:
            self.ema = ExponentialMovingAverage(self.model, decay=self.ema.decay)


def evaluated_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the weights that validation saw: the moving average where there is one."""
    average = state["updater"]["ema"]
    if average is None:
        return dict(state["model"])
    return {**state["model"], **average["averages"], **average["buffers"]}


def best_weights(checkpointer: Checkpointer, count: int) -> dict[str, Tensor]:
    """Give the mean of the weights of the best checkpoints, or the last ones without a metric.

    A damaged checkpoint is named in a warning and left out; where none of the best is good, the
    last good one takes their place.

    Raises
    ------
    TrainingError
        When there is no checkpoint.
    CheckpointError
        When there are checkpoints, but none is good.
    """
    states = []
    for entry in checkpointer.best(count):
        try:
            states.append(evaluated_weights(checkpointer.load(entry)))
        except CheckpointError as error:
            logger.warning("%s It was one of the best; the model is made without it.", error)
    if not states:
        last = checkpointer.load_last()
        if last is None:
            raise TrainingError(
                f"{checkpointer.folder} holds no checkpoint; train first, or name a model folder "
                "with --init_from"
            )
        states = [evaluated_weights(last.state)]
        logger.info("the model is that of %s", last.entry.file)
    return average_state_dicts(states)
