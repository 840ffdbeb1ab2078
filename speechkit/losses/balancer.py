"""Weighing losses by the gradients that they send to a model's output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speechkit import distributed


class Balancer:
    """Scale the gradient of each loss to its share, whatever the scale of the loss.

    With ``g_i`` the gradient of loss ``i`` with respect to the output and ``<|g_i|>`` the running
    mean of its 2-norm, the gradient of all is the sum of
    ``total_norm * w_i / sum(w) * g_i / <|g_i|>`` (Defossez et al. 2022, equation 4). So a weight is
    the share that a loss has in the gradient, and need not be found anew when a loss is changed.

    Norms are of each utterance's own gradient, averaged over the batch and over all processes, so
    that neither batch size nor number of processes changes anything. A norm that is not finite is
    left out of the running mean (mixed precision meets some by design).

    Parameters
    ----------
    weights : mapping of str to float
        Share of each loss, by name.
    decay : float
        Of the running means, for each call; they are corrected for their start.
    total_norm : float
        Mean norm of the balanced gradient of an utterance, if all losses pulled alike.
    per_item : bool
        False: the norm of the whole batch's gradient instead of each utterance's.

    Attributes
    ----------
    norms : dict of str to float
        Running mean of the norm of each loss seen so far.

    Raises
    ------
    ValueError
        Where a number is out of range, a loss has no weight, or does not depend on the output.

    Examples
    --------
    >>> output = torch.tensor([[1.0, -2.0]], requires_grad=True)
    >>> balancer = Balancer(weights={"small": 3.0, "large": 1.0})
    >>> losses = {"small": 1e-3 * output[:, 0].abs(), "large": 1e3 * output[:, 1].abs()}
    >>> balancer.backward(losses, output)
    >>> output.grad
    tensor([[ 0.7500, -0.2500]])
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, float],
        decay: float = 0.999,
        total_norm: float = 1.0,
        per_item: bool = True,
    ) -> None:
        bad = {n: w for n, w in weights.items() if not (math.isfinite(w) and w >= 0)}
        if bad or not any(weights.values()):
            raise ValueError(
                f"weights must be numbers of at least 0, one of them above, got {dict(weights)}"
            )
        if not 0 <= decay <= 1 or not total_norm > 0:
            raise ValueError(
                f"need 0 <= decay <= 1 and total_norm > 0, got {decay} and {total_norm}"
            )
        self.weights = dict(weights)
        self.decay = decay
        self.total_norm = total_norm
        self.per_item = per_item
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    @property
    def norms(self) -> dict[str, float]:
        """The running mean of the norm of each loss seen so far."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def gradient(
        self,
        losses: Mapping[str, Tensor],
        output: Tensor,
        *,
        loss_scale: float = 1.0,
        retain_graph: bool = False,
    ) -> Tensor:
        """Compute the balanced gradient with respect to the output, and learn the norms.

        All processes must call it alike.

        Parameters
        ----------
        losses : mapping of str to Tensor
            Each ``(B,)``, one value an utterance, or the scalar mean over the batch. A name of
            ``weights`` may be missing: the others share the norm.
        output : Tensor
            Shape ``(B, ...)``, on which the losses depend. In fp16 the losses should be of
            ``output.float()``, and that be given here.
        loss_scale : float
            Losses are multiplied by it before their gradient is computed and the gradient is
            divided by it, so that fp16 does not flush it to zero: ``scaler.get_scale()``.
        retain_graph : bool
            Whether the graph from output to losses is still needed.

        Returns
        -------
        Tensor
            float32, the shape of ``output``; no graph.
        """
        unknown = sorted(set(losses) - set(self.weights))
        if unknown or not losses:
            raise ValueError(
                f"losses {unknown or 'none'} given, but the balancer has weights for "
                f"{', '.join(self.weights)}"
            )
        gradients = {}
        for index, (name, loss) in enumerate(losses.items()):
            retain = retain_graph or index < len(losses) - 1
            gradients[name] = _gradient(name, loss, output, loss_scale, retain)
        norms = self._observe(gradients)
        share = sum(self.weights[name] for name in losses)
        balanced = torch.zeros_like(output, dtype=torch.float32)
        for name, gradient in gradients.items():
            scale = self.total_norm * self.weights[name] / max(share, 1e-12)
            balanced.add_(gradient, alpha=scale / (norms[name] + 1e-12))
        return balanced

    def backward(
        self, losses: Mapping[str, Tensor], output: Tensor, *, retain_graph: bool = False
    ) -> None:
        """Send the balanced gradient from the output on through the model.

        Parameters are as in `gradient`. The utterances of a batch add up: their mean is `loss`.
        """
        gradient = self.gradient(losses, output, retain_graph=retain_graph)
        output.backward(gradient.to(output.dtype))

    def loss(
        self,
        losses: Mapping[str, Tensor],
        output: Tensor,
        *,
        loss_scale: float = 1.0,
        retain_graph: bool = False,
    ) -> Tensor:
        """Give one loss of each utterance whose gradient is the balanced one.

        For training loops that take the mean of a loss over the utterances of several batches and
        processes, scale it, and go backward themselves. Losses that do not pass through the output
        (commitment) are added to it.

        Parameters
        ----------
        losses, output, loss_scale, retain_graph
            As in `gradient`.

        Returns
        -------
        Tensor
            Shape ``(B,)``: the value is the weighted mean of the losses, for the log.

        Examples
        --------
        >>> output = torch.tensor([[1.0], [-2.0]], requires_grad=True)
        >>> loss = Balancer(weights={"l1": 1.0}).loss({"l1": 9 * output.abs().mean()}, output)
        >>> loss.mean().backward()
        >>> output.grad.tolist(), loss.tolist()
        ([[0.5], [-0.5]], [13.5, 13.5])
        """
        gradient = self.gradient(losses, output, loss_scale=loss_scale, retain_graph=retain_graph)
        share = max(sum(self.weights[name] for name in losses), 1e-12)
        value = torch.zeros(output.shape[0], device=output.device)
        for name, loss in losses.items():
            value = value + loss.detach().float() * (self.weights[name] / share)
        carrier = (output.float() * gradient).flatten(1).sum(1)
        return value + (carrier - carrier.detach())

    @torch.no_grad()
    def _observe(self, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Take the norms into the running means; give the mean of each loss of this call."""
        first = next(iter(gradients.values()))
        if self.per_item:
            sums = [g.flatten(1).norm(dim=1).sum() for g in gradients.values()]
        else:
            sums = [g.norm() for g in gradients.values()]
        count = torch.full_like(sums[0], float(len(first) if self.per_item else 1))
        # One transfer for all: a GPU is waited for once.
        *totals, items = distributed.all_reduce_sum(torch.stack([*sums, count])).tolist()
        averages = {}
        for name, total in zip(gradients, totals):
            if math.isfinite(total):
                self._sums[name] = self._sums.get(name, 0.0) * self.decay + total / items
                self._counts[name] = self._counts.get(name, 0.0) * self.decay + 1.0
            averages[name] = self.norms.get(name, total)
        return averages

    def state_dict(self) -> dict[str, Any]:
        """Give the running sums as plain numbers."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up ``state_dict``'s result; what has no weight any more is left out."""
        self._sums = {n: float(v) for n, v in state["sums"].items() if n in self.weights}
        self._counts = {n: float(state["counts"][n]) for n in self._sums}


def _gradient(name: str, loss: Tensor, output: Tensor, scale: float, retain: bool) -> Tensor:
    """Compute the gradient of each utterance's own loss, in float32."""
    if loss.dim() > 1 or (loss.dim() == 1 and loss.shape[0] != output.shape[0]):
        raise ValueError(
            f"loss {name!r} has shape {tuple(loss.shape)}; give one value for each of the "
            f"{output.shape[0]} utterances, or their mean"
        )
    total = loss.sum() if loss.dim() else loss * output.shape[0]
    found: tuple[Tensor | None, ...] = (None,)
    if total.requires_grad:
        found = torch.autograd.grad(
            total.float() * scale, [output], retain_graph=retain, allow_unused=True
        )
    if found[0] is None:
        raise ValueError(
            f"loss {name!r} does not depend on the output given to the balancer; add it to "
            "Balancer.loss instead, or compute it from that very tensor"
        )
    return found[0].float() / scale
