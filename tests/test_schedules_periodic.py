"""Schedules that go up and down, or down in steps."""

from __future__ import annotations

import pytest

from speechkit.schedules_periodic import Cyclical, StepDecay


def test_cyclical_is_triangular2() -> None:
    schedule = Cyclical(period=20, min_factor=0.1, decay=0.5)
    factors = [schedule.factor(step, 60) for step in range(61)]
    assert factors[::20] == pytest.approx([0.1] * 4)
    assert factors[10::20] == pytest.approx([1.0, 0.55, 0.325])
    assert factors[5] == pytest.approx(0.55)
    assert min(factors) >= 0.1 - 1e-12


def test_step_decay_divides_the_run() -> None:
    schedule = StepDecay(num_steps=3, decay=0.5)
    factors = [schedule.factor(step, 8) for step in range(8)]
    assert factors == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert schedule.factor(99, 8) == 0.125


@pytest.mark.parametrize("options", [{"period": 1}, {"period": 9, "decay": 0.0}])
def test_cyclical_refuses(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need period"):
        Cyclical(**options)  # type: ignore[arg-type]


def test_step_decay_refuses() -> None:
    with pytest.raises(ValueError, match="need num_steps"):
        StepDecay(num_steps=0)
