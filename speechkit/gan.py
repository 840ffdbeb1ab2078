"""Training a generator of waveforms against discriminators: codecs and vocoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speechkit import parallel
from speechkit.brain import Brain
from speechkit.data.batch import Batch
from speechkit.loss_means import LossMeans
from speechkit.losses.adversarial import (
    discriminator_loss,
    discriminator_turn,
    feature_matching_loss,
    generator_loss,
)
from speechkit.losses.balancer import Balancer
from speechkit.nn.discriminators import split_channels
from speechkit.training import Stage

Factory = Callable[..., Optimizer]
GENERATOR, DISCRIMINATOR = "generator", "discriminator"


class Generated(NamedTuple):
    """What a generator made of a batch, and what it should have been.

    Attributes
    ----------
    estimate, target : Tensor
        Waveforms, ``(B, C, T)``.
    lengths : Tensor
        Shape ``(B,)``: valid samples.
    """

    estimate: Tensor
    target: Tensor
    lengths: Tensor


class GANBrain(Brain):
    """A generator's training with losses between waveforms and, if wanted, discriminators.

    In one update both sides learn from one pass: the discriminators tell the generated waveforms
    from the real ones, the generator follows all losses as the balancer weighs them. The model
    folder holds the generator alone; checkpoints hold both sides.

    A task writes ``compute_forward``, :meth:`generated`, :meth:`distances` and ``evaluate``.

    Parameters
    ----------
    model : nn.Module
        The generator.
    balancer : Balancer
        Weighs ``distances``, and ``adversarial`` and ``features`` where there are discriminators.
    optimizer : callable or mapping
        For both sides, or ``{"generator": ..., "discriminator": ...}``.
    discriminator : nn.Module, optional
        Gives a `speechkit.nn.discriminators.Judgement` of waveforms of one channel and lengths;
        without one there are the distances alone.
    adversarial : str
        The kind of loss, see `speechkit.losses.adversarial`.
    feature_scale : str
        Of the feature matching loss, see there.
    adversarial_start : int
        Updates before the discriminators take part: distances alone come far, at a fraction of the
        time.
    turns : (int, int)
        Of how many updates (the second) the discriminators learn in how many (the first).
    **kwargs
        What :class:`speechkit.brain.Brain` takes.

    Raises
    ------
    ValueError
        When the balancer has no weight for a loss that there is.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        balancer: Balancer,
        optimizer: Factory | Mapping[str, Factory],
        discriminator: nn.Module | None = None,
        adversarial: str = "hinge",
        feature_scale: str = "batch",
        adversarial_start: int = 0,
        turns: Sequence[int] = (2, 3),
        **kwargs: Any,
    ) -> None:
        sides = {GENERATOR: model}
        if discriminator is not None:
            sides[DISCRIMINATOR] = discriminator
            missing = {"adversarial", "features"} - set(balancer.weights)
            if missing:
                raise ValueError(
                    f"balancer.weights has no {' and no '.join(sorted(missing))}, which a "
                    "discriminator needs"
                )
        if not isinstance(optimizer, Mapping):
            optimizer = dict.fromkeys(sides, optimizer)
        elif discriminator is None:
            optimizer = {GENERATOR: optimizer[GENERATOR]}
        super().__init__(model=nn.ModuleDict(sides), optimizer=optimizer, **kwargs)
        self.discriminator = discriminator
        self.balancer = balancer
        self.adversarial = adversarial
        self.feature_scale = feature_scale
        self.adversarial_start = adversarial_start
        self.updates, self.period = turns
        discriminator_turn(0, updates=self.updates, period=self.period)  # checks the numbers
        self.means = LossMeans()

    # ---------------------------------------------------------------- what a task writes

    def generated(self, outputs: Any, batch: Batch) -> Generated:
        """Give the waveforms that were made and wanted, from what ``compute_forward`` gave."""
        raise NotImplementedError(f"{type(self).__name__} must define generated")

    def distances(self, pair: Generated) -> dict[str, Tensor]:
        """Give the losses between the two, by their names in the balancer: ``(B,)`` each."""
        raise NotImplementedError(f"{type(self).__name__} must define distances")

    def other_loss(self, outputs: Any) -> Tensor | None:
        """Give what is added to the balanced loss and does not pass through the waveform."""
        return None

    # ---------------------------------------------------------------- training

    @property
    def network(self) -> nn.Module:
        """The generator."""
        return self.model[GENERATOR]  # type: ignore[index]

    @property
    def contested(self) -> bool:
        """Whether the discriminators take part in this update."""
        return self.discriminator is not None and self.position.step >= self.adversarial_start

    @property
    def _learns(self) -> bool:
        """Whether the discriminators learn in this update."""
        step = self.position.step - self.adversarial_start
        return self.contested and discriminator_turn(step, updates=self.updates, period=self.period)

    def stepping(self) -> Sequence[str]:
        """Name the optimisers that step in this update."""
        return (GENERATOR, DISCRIMINATOR) if self._learns else (GENERATOR,)

    def train_batch(self, batch: Batch, share: float, *, last: bool) -> Tensor:
        """Add a batch's gradients to both sides; the loss is the balanced mean of the distances."""
        with self.updater.autocast():
            outputs = self.compute_forward(batch, Stage.TRAIN)
        pair = self.generated(outputs, batch)
        pair = pair._replace(estimate=pair.estimate.float())
        losses = self.distances(pair)
        if self.contested:
            losses |= self._contest(pair, share, last=last)
        scale = self.updater.scaler.get_scale() if self.updater.scaler.is_enabled() else 1.0
        total = self.balancer.loss(losses, pair.estimate, loss_scale=scale)
        other = self.other_loss(outputs)
        if other is not None:
            total = total + other
            losses["other"] = other
        self.updater.backward(total.mean() * share)
        self.means.add(losses, items=len(batch))
        return total.detach()

    def _contest(self, pair: Generated, share: float, *, last: bool) -> dict[str, Tensor]:
        """Let the discriminators judge, and learn if it is their turn; the generator's losses."""
        assert self.discriminator is not None
        # Discriminators of one channel judge those of stereo apart, as items.
        estimate, lengths = split_channels(pair.estimate, pair.lengths)
        target, _ = split_channels(pair.target, pair.lengths)
        with self.updater.autocast():
            fake = self.discriminator(estimate, lengths)
            with torch.set_grad_enabled(self._learns):
                real = self.discriminator(target, lengths)
        losses = {
            "adversarial": generator_loss(fake, kind=self.adversarial),
            "features": feature_matching_loss(fake, real, scale=self.feature_scale),
        }
        losses = {name: loss.view(len(pair.estimate), -1).mean(1) for name, loss in losses.items()}
        if self._learns:
            loss = discriminator_loss(real, fake, kind=self.adversarial)
            learned = [p for p in self.discriminator.parameters() if p.requires_grad]
            # The same pass serves both sides: this one goes no further than the discriminators.
            self.updater.backward(loss.mean() * share, inputs=learned, retain_graph=True)
            if last:
                parallel.average_gradients(learned)
            self.means.add({"discriminator": loss}, items=len(pair.estimate))
        return losses

    def compute_objectives(self, outputs: Any, batch: Batch, stage: Stage) -> Tensor:
        """Give the mean of the distances as the balancer weighs them: the validation loss."""
        pair = self.generated(outputs, batch)
        losses = self.distances(pair._replace(estimate=pair.estimate.float()))
        weights = {name: self.balancer.weights[name] for name in losses}
        total = torch.stack([losses[name] * weight for name, weight in weights.items()]).sum(0)
        return total / max(sum(weights.values()), 1e-12)

    # ---------------------------------------------------------------- numbers and state

    def end_training(self) -> dict[str, float]:
        """Give the mean of each loss over the epoch."""
        return self.means.take()

    def task_state(self) -> dict[str, Any]:
        """Give the balancer's running norms and the means of a running epoch."""
        return {"balancer": self.balancer.state_dict(), "means": self.means.state_dict()}

    def load_task_state(self, state: Mapping[str, Any]) -> None:
        """Take up ``task_state``'s result."""
        self.balancer.load_state_dict(state["balancer"])
        self.means.load_state_dict(state["means"])
