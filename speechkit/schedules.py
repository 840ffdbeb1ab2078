"""Learning-rate schedules: a factor on every group's base rate, a function of the step.

``step`` counts the updates already made, so the first update asks for ``factor(0, total)``.
Schedules that listen to the validation (Plateau, NewBob) change their factor in ``validated``; the
others ignore it. All of their memory is in ``state_dict``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

__all__ = [
    "Constant",
    "Cosine",
    "LinearWarmup",
    "NewBob",
    "Noam",
    "Plateau",
    "Schedule",
    "warmup_length",
]


def warmup_length(warmup: int | float, total_steps: int) -> int:
    """Turn a warm-up given in steps (int) or as a share of the run (float) into steps.

    Parameters
    ----------
    warmup : int or float
        Steps, or a share from 0.0 to 1.0.
    total_steps : int
        Updates of the whole run.

    Returns
    -------
    int
        Steps, at most ``total_steps`` for a share.

    Raises
    ------
    ValueError
        For a negative number, or a float above 1.

    Examples
    --------
    >>> warmup_length(500, 10_000), warmup_length(0.1, 10_000)
    (500, 1000)
    """
    if isinstance(warmup, float):
        if not 0.0 <= warmup <= 1.0:
            raise ValueError(
                f"warmup_steps={warmup} is a float, hence a share of the run from 0.0 to 1.0: "
                "write whole steps as an integer"
            )
        return round(warmup * total_steps)
    if warmup < 0:
        raise ValueError(f"warmup_steps={warmup}: give 0 or more")
    return warmup


class Schedule(ABC):
    """What the training loop asks of a schedule."""

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """Return what multiplies the base learning rates at the update after ``step`` updates."""

    def validated(self, value: float, maximize: bool) -> None:  # noqa: B027
        """Hear the validation metric; a schedule of steps alone has no use for it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; nothing for a pure function of the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

        Raises
        ------
        ValueError
            When the state is of another kind of schedule.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(
                f"the saved state of the schedule has {sorted(state)}, but {type(self).__name__} "
                f"keeps {sorted(self.state_dict())}: it was saved by another schedule"
            )
        for name, value in state.items():
            setattr(self, name, value)


class Constant(Schedule):
    """The base rate throughout.

    Examples
    --------
    >>> Constant().factor(7, 100)
    1.0
    """

    def factor(self, step: int, total_steps: int) -> float:
        """Return 1."""
        return 1.0


class Noam(Schedule):
    """Linear warm-up, then the inverse square root of the step (Vaswani et al. 2017, eq. 3).

    The paper's rate ``d^-0.5 * min(n^-0.5, n * w^-1.5)``, n = step + 1, is divided by its peak
    ``(d * w)^-0.5``, so that the base rate is the highest one reached.

    Parameters
    ----------
    warmup_steps : int or float
        w: steps, or a share of the run.

    Examples
    --------
    >>> noam = Noam(warmup_steps=100)
    >>> noam.factor(99, 1000), noam.factor(399, 1000), noam.factor(0, 1000)
    (1.0, 0.5, 0.01)
    """

    def __init__(self, *, warmup_steps: int | float = 25_000) -> None:
        warmup_length(warmup_steps, 1)
        self.warmup_steps = warmup_steps

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor, 1 at its peak."""
        ratio = (step + 1) / max(warmup_length(self.warmup_steps, total_steps), 1)
        return min(ratio, ratio**-0.5)


def _warmup_then(step: int, total_steps: int, warmup: int) -> tuple[float | None, float]:
    """Return the warm-up's factor (None after it) and the share of the rest that has passed."""
    if step < warmup:
        return (step + 1) / warmup, 0.0
    return None, min((step - warmup) / max(total_steps - warmup, 1), 1.0)


class Cosine(Schedule):
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter 2017, eq. 5, one period).

    Parameters
    ----------
    warmup_steps : int or float
        Steps, or a share of the run; 0: none.
    min_factor : float
        The factor at the end of the run and after.

    Examples
    --------
    >>> cosine = Cosine(warmup_steps=10, min_factor=0.1)
    >>> [round(cosine.factor(step, 110), 6) for step in (0, 9, 10, 60, 110, 999)]
    [0.1, 1.0, 1.0, 0.55, 0.1, 0.1]
    """

    def __init__(self, *, warmup_steps: int | float = 0, min_factor: float = 0.0) -> None:
        warmup_length(warmup_steps, 1)
        self.warmup_steps = warmup_steps
        self.min_factor = min_factor

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor, from warm-up to ``min_factor``."""
        warmup = warmup_length(self.warmup_steps, total_steps)
        rising, passed = _warmup_then(step, total_steps, warmup)
        if rising is not None:
            return rising
        return self.min_factor + (1 - self.min_factor) * 0.5 * (1 + math.cos(math.pi * passed))


class LinearWarmup(Schedule):
    """Linear warm-up, then a straight line down.

    Parameters
    ----------
    warmup_steps : int or float
        Steps, or a share of the run; 0: none.
    min_factor : float
        The factor at the end of the run and after.

    Examples
    --------
    >>> linear = LinearWarmup(warmup_steps=0.1)
    >>> [linear.factor(step, 100) for step in (0, 9, 10, 55, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """

    def __init__(self, *, warmup_steps: int | float = 0, min_factor: float = 0.0) -> None:
        warmup_length(warmup_steps, 1)
        self.warmup_steps = warmup_steps
        self.min_factor = min_factor

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor, from warm-up to ``min_factor``."""
        warmup = warmup_length(self.warmup_steps, total_steps)
        rising, passed = _warmup_then(step, total_steps, warmup)
        if rising is not None:
            return rising
        return 1 - (1 - self.min_factor) * passed


class Plateau(Schedule):
    """Lower the rate after more than ``patience`` validations in a row without improvement.

    Parameters
    ----------
    patience : int
        Validations without improvement that are forgiven.
    decay : float
        What the factor is multiplied by.
    min_factor : float
        The factor never goes below it.
    threshold : float
        Relative improvement over the best value that counts as one.

    Examples
    --------
    >>> plateau = Plateau(patience=1, decay=0.5)
    >>> factors = []
    >>> for loss in (1.0, 0.9, 0.9, 0.95, 0.7):
    ...     plateau.validated(loss, maximize=False)
    ...     factors.append(plateau.factor(0, 100))
    >>> factors
    [1.0, 1.0, 1.0, 0.5, 0.5]
    """

    def __init__(
        self,
        *,
        patience: int = 2,
        decay: float = 0.5,
        min_factor: float = 0.0,
        threshold: float = 1e-4,
    ) -> None:
        _check_decay(decay)
        if patience < 0:
            raise ValueError(f"patience={patience}: give 0 or more")
        self.patience = patience
        self.decay = decay
        self.min_factor = min_factor
        self.threshold = threshold
        self.current = 1.0
        self.best: float | None = None
        self.num_bad = 0

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor that the validations so far have led to."""
        return self.current

    def validated(self, value: float, maximize: bool) -> None:
        """Hear the validation metric; NaN is no improvement."""
        if _improvement(value, self.best, maximize) > self.threshold:
            self.best, self.num_bad = value, 0
            return
        self.num_bad += 1
        if self.num_bad > self.patience:
            self.current = max(self.current * self.decay, self.min_factor)
            self.num_bad = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the factor, the best value and the count of validations since it."""
        return {"current": self.current, "best": self.best, "num_bad": self.num_bad}


class NewBob(Schedule):
    """Lower the rate whenever a validation improves too little on the one before.

    The schedule of ICSI's QuickNet: a relative improvement below ``threshold`` multiplies the
    factor by ``decay``.

    Parameters
    ----------
    decay : float
        What the factor is multiplied by.
    threshold : float
        Relative improvement on the previous value that is enough.
    min_factor : float
        The factor never goes below it.

    Examples
    --------
    >>> newbob = NewBob()
    >>> factors = []
    >>> for wer in (10.0, 8.0, 7.99, 5.0):
    ...     newbob.validated(wer, maximize=False)
    ...     factors.append(newbob.factor(0, 100))
    >>> factors
    [1.0, 1.0, 0.5, 0.5]
    """

    def __init__(
        self, *, decay: float = 0.5, threshold: float = 0.0025, min_factor: float = 0.0
    ) -> None:
        _check_decay(decay)
        self.decay = decay
        self.threshold = threshold
        self.min_factor = min_factor
        self.current = 1.0
        self.previous: float | None = None

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor that the validations so far have led to."""
        return self.current

    def validated(self, value: float, maximize: bool) -> None:
        """Hear the validation metric; NaN is no improvement."""
        if not _improvement(value, self.previous, maximize) >= self.threshold:
            self.current = max(self.current * self.decay, self.min_factor)
        if not math.isnan(value):
            self.previous = value

    def state_dict(self) -> dict[str, Any]:
        """Return the factor and the previous value."""
        return {"current": self.current, "previous": self.previous}


def _check_decay(decay: float) -> None:
    if not 0.0 < decay < 1.0:
        raise ValueError(f"decay={decay}: give a number between 0 and 1, such as 0.5")


def _improvement(value: float, reference: float | None, maximize: bool) -> float:
    """Return the relative improvement on a reference; -inf for NaN, inf on the first value."""
    if math.isnan(value):
        return -math.inf
    if reference is None:
        return math.inf
    gain = value - reference if maximize else reference - value
    if gain == 0 or math.isnan(gain):  # also inf - inf
        return 0.0
    return gain / abs(reference) if math.isfinite(reference) and reference else gain * math.inf
