"""Schedules of learning rates that go up and down, or down in steps."""

from __future__ import annotations

from speechkit.schedules import Schedule


class Cyclical(Schedule):
    """From a low rate up to the base rate and back, again and again, each time less high.

    Smith 2017, "Cyclical learning rates for training neural networks", section 3.1: ``triangular``
    with ``decay=1``, ``triangular2`` with one half, as ECAPA-TDNN was trained.

    Parameters
    ----------
    period : int
        Updates of one cycle, up and down.
    min_factor : float
        Of the low rate.
    decay : float
        Each cycle's height above the low rate is this much of the one before.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> cyclical = Cyclical(period=100, min_factor=0.0, decay=0.5)
    >>> [cyclical.factor(step, 300) for step in (0, 25, 50, 100, 150)]
    [0.0, 0.5, 1.0, 0.0, 0.5]
    """

    def __init__(self, *, period: int, min_factor: float = 0.0, decay: float = 1.0) -> None:
        if period < 2 or not 0 <= min_factor <= 1 or not 0 < decay <= 1:
            raise ValueError(
                "need period >= 2, min_factor in [0, 1] and decay in (0, 1], got "
                f"{period}, {min_factor} and {decay}"
            )
        self.period = period
        self.min_factor = min_factor
        self.decay = decay

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor."""
        cycle, place = divmod(step, self.period)
        height = 1.0 - abs(2.0 * place / self.period - 1.0)
        return self.min_factor + (1.0 - self.min_factor) * height * self.decay**cycle


class StepDecay(Schedule):
    """The base rate, times ``decay`` again and again: as often as ``num_steps`` says in a run.

    Parameters
    ----------
    num_steps : int
        How often the rate goes down; the run is divided into one more equal parts.
    decay : float
        What it is multiplied by each time.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> steps = StepDecay(num_steps=2, decay=0.1)
    >>> [round(steps.factor(step, 300), 3) for step in (0, 99, 100, 299)]
    [1.0, 1.0, 0.1, 0.01]
    """

    def __init__(self, *, num_steps: int, decay: float = 0.1) -> None:
        if num_steps < 1 or not 0 < decay <= 1:
            raise ValueError(
                f"need num_steps >= 1 and decay in (0, 1], got {num_steps} and {decay}"
            )
        self.num_steps = num_steps
        self.decay = decay

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor."""
        part = (self.num_steps + 1) * step // max(1, total_steps)
        return float(self.decay ** min(part, self.num_steps))
