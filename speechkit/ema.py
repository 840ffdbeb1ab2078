"""Averages of weights: a moving one during training, and the mean of several checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ExponentialMovingAverage", "average_state_dicts"]


class ExponentialMovingAverage:
    """Keep ``average = decay * average + (1 - decay) * weights`` beside a model.

    Polyak and Juditsky (1992) average the iterates; the exponential form is that of Tarvainen and
    Valpola (2017). Parameters are averaged, in float32 at least (in bfloat16, an average with decay
    0.999 would never move). Buffers (counts, running statistics) are copied as they are.

    Parameters
    ----------
    model : nn.Module
        Whose weights are averaged; it is kept, and changed only inside ``applied``.
    decay : float
        Share of the old average kept at each update.
    warmup : bool
        Use ``min(decay, (1 + n) / (10 + n))`` at update n, so that the first weights, which know
        nothing yet, are soon forgotten.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 0.0)
    >>> ema = ExponentialMovingAverage(model, decay=0.75, warmup=False)
    >>> _ = nn.init.constant_(model.weight, 8.0)
    >>> ema.update()
    >>> with ema.applied():
    ...     inside = model.weight.item()
    >>> inside, model.weight.item()
    (2.0, 8.0)
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, warmup: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay}: give at least 0 and less than 1, such as 0.999")
        self.model = model
        self.decay = decay
        self.warmup = warmup
        self.num_updates = 0
        self._applied = False
        self._averages = {
            name: _wide(parameter.detach()).clone() for name, parameter in self._parameters()
        }
        self._buffers = {name: buffer.detach().clone() for name, buffer in self._model_buffers()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's current weights into the average; call it after each optimiser step.

        Raises
        ------
        RuntimeError
            Inside ``applied``, where the model holds the average itself.
        """
        if self._applied:
            raise RuntimeError("update() inside applied(): the model holds the averages there")
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages, weights = [], []
        for name, parameter in self._parameters():
            averages.append(self._averages[name])
            weights.append(parameter.detach().to(self._averages[name].dtype))
        if averages:
            torch._foreach_lerp_(averages, weights, 1.0 - decay)
        for name, buffer in self._model_buffers():
            self._buffers[name].copy_(buffer)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Give the model the averaged weights inside the block, and its own, bit by bit, after it.

        Yields
        ------
        nn.Module
            The model.

        Raises
        ------
        RuntimeError
            When entered twice.
        """
        if self._applied:
            raise RuntimeError("applied() inside applied(): the averages are already in the model")
        tensors = dict(self._parameters()) | dict(self._model_buffers())
        saved = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._applied = True
        try:
            self._copy_into(tensors, self._averages | self._buffers)
            yield self.model
        finally:
            self._copy_into(tensors, saved)
            self._applied = False

    def state_dict(self) -> dict[str, Any]:
        """Return ``averages`` (by name), ``buffers`` and ``num_updates``; no copies."""
        return {
            "num_updates": self.num_updates,
            "averages": dict(self._averages),
            "buffers": dict(self._buffers),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

        Raises
        ------
        ValueError
            When the names or shapes are not those of the model, naming them.
        """
        for kind, own in (("averages", self._averages), ("buffers", self._buffers)):
            saved = state[kind]
            wrong = sorted(set(saved) ^ set(own))
            wrong += [n for n in own if n in saved and saved[n].shape != own[n].shape]
            if wrong:
                raise ValueError(
                    f"the saved {kind} of the moving average do not fit the model: "
                    f"{', '.join(wrong[:10])} (missing, unexpected or of another shape)"
                )
        for kind, own in (("averages", self._averages), ("buffers", self._buffers)):
            for name, tensor in own.items():
                tensor.copy_(state[kind][name])
        self.num_updates = int(state["num_updates"])

    @staticmethod
    @torch.no_grad()
    def _copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
        for name, target in targets.items():
            target.copy_(sources[name])

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.model.named_parameters()

    def _model_buffers(self) -> Iterator[tuple[str, Tensor]]:
        # Buffers outside the state_dict are constants (tables of positions): nothing to follow.
        for prefix, module in self.model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    yield (f"{prefix}.{name}" if prefix else name), buffer


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def average_state_dicts(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Average the weights of several checkpoints, as Vaswani et al. (2017, section 6.1) do.

    Parameters
    ----------
    states : Iterable[Mapping[str, Any]]
        State dicts of one model; a generator is read one at a time.

    Returns
    -------
    dict[str, Any]
        The mean of floating tensors, computed in float32 at least and returned in their type; all
        else (counts) from the last.

    Raises
    ------
    ValueError
        For no states, or states whose names or shapes differ, naming them.

    Examples
    --------
    >>> average = average_state_dicts(
    ...     [{"w": torch.tensor(1.0), "n": torch.tensor(1)},
    ...      {"w": torch.tensor(2.0), "n": torch.tensor(5)}]
    ... )
    >>> average["w"].item(), average["n"].item()
    (1.5, 5)
    """
    sums: dict[str, Tensor] = {}
    last: Mapping[str, Any] | None = None
    count = 0
    for state in states:
        if last is not None:
            _check_same(last, state)
        for name, value in state.items():
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                wide = value.detach().to(torch.promote_types(value.dtype, torch.float32))
                sums[name] = sums[name] + wide if name in sums else wide.clone()
        last = state
        count += 1
    if last is None:
        raise ValueError("no state dicts to average: give at least one")
    return {
        name: (sums[name] / count).to(value.dtype) if name in sums else value
        for name, value in last.items()
    }


def _check_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    wrong = sorted(set(one) ^ set(other))
    for name in set(one) & set(other):
        if getattr(one[name], "shape", None) != getattr(other[name], "shape", None):
            wrong.append(name)
    if wrong:
        raise ValueError(
            f"the states to average differ in {', '.join(wrong[:10])} (missing or of another "
            "shape): they are not of one model"
        )
