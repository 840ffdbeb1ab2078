"""Schedules against torch's own schedulers and the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from speechkit.schedules import (
    Constant,
    Cosine,
    LinearWarmup,
    NewBob,
    Noam,
    Plateau,
    Schedule,
    warmup_length,
)

TOTAL = 50
STEPS = [Constant(), Noam(warmup_steps=5), Cosine(warmup_steps=5), LinearWarmup(warmup_steps=0.1)]
LISTENING: list[Callable[[], Schedule]] = [Plateau, NewBob]


def torch_rates(make: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def factors(schedule: Schedule) -> list[float]:
    return [schedule.factor(step, TOTAL) for step in range(TOTAL)]


def test_noam_is_equation_3_over_its_peak() -> None:
    size, warmup = 512, 11

    def paper(number: int) -> float:
        return size**-0.5 * min(number**-0.5, number * warmup**-1.5)

    expected = [paper(number) / paper(warmup) for number in range(1, TOTAL + 1)]
    assert factors(Noam(warmup_steps=warmup)) == pytest.approx(expected)
    assert max(factors(Noam(warmup_steps=warmup))) == 1.0


@pytest.mark.parametrize("min_factor", [0.0, 0.1])
def test_cosine_is_torchs(min_factor: float) -> None:
    def plain(optimizer: torch.optim.Optimizer) -> Any:
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL, eta_min=min_factor)

    def warm(optimizer: torch.optim.Optimizer) -> Any:
        rising = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)
        falling = lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL - 10, eta_min=min_factor)
        return lr_scheduler.SequentialLR(optimizer, [rising, falling], milestones=[10])

    assert factors(Cosine(min_factor=min_factor)) == pytest.approx(torch_rates(plain))
    schedule = Cosine(warmup_steps=10, min_factor=min_factor)
    assert factors(schedule) == pytest.approx(torch_rates(warm))


@pytest.mark.parametrize("min_factor", [0.0, 0.25])
def test_linear_is_torchs(min_factor: float) -> None:
    def warm(optimizer: torch.optim.Optimizer) -> Any:
        rising = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)
        falling = lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=min_factor, total_iters=TOTAL - 10
        )
        return lr_scheduler.SequentialLR(optimizer, [rising, falling], milestones=[10])

    schedule = LinearWarmup(warmup_steps=0.2, min_factor=min_factor)
    assert factors(schedule) == pytest.approx(torch_rates(warm))


VALUES = [9.0, 8.0, 8.0, 7.9999, 8.5, 8.5, 3.0, 3.1, 3.1, 3.1, 3.1, 3.1, 3.1, 2.0]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_torchs(patience: int, maximize: bool) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max" if maximize else "min",
        factor=0.3,
        patience=patience,
        min_lr=0.01,
        eps=0.0,
    )
    schedule = Plateau(patience=patience, decay=0.3, min_factor=0.01)
    for value in VALUES:
        torchs.step(value)
        schedule.validated(value, maximize)
        assert schedule.factor(0, TOTAL) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_with_negative_values() -> None:
    # si_snr and log-likelihoods: torch's relative threshold would call a slightly worse one better.
    schedule = Plateau(patience=0)
    for value in (-10.0, -9.9995):
        schedule.validated(value, maximize=False)
    assert schedule.factor(0, TOTAL) == 0.5


def test_newbob_compares_with_the_value_before() -> None:
    schedule = NewBob(decay=0.5, threshold=0.0025, min_factor=0.2)
    # (value, factor after): relative improvements -, .1, .0022, -.11, .19, 0, nan, 1 (to zero), 0
    expected = [(10.0, 1.0), (9.0, 1.0), (8.98, 0.5), (10.0, 0.25), (8.1, 0.25), (8.1, 0.2)]
    expected += [(math.nan, 0.2), (0.0, 0.2), (0.0, 0.2)]
    for value, factor in expected:
        schedule.validated(value, maximize=False)
        assert schedule.factor(0, TOTAL) == factor
    rising = NewBob()
    for value in (0.5, 0.6, 0.55):
        rising.validated(value, maximize=True)
    assert rising.factor(0, TOTAL) == 0.5


@pytest.mark.parametrize("make", LISTENING)
def test_nan_is_no_improvement(make: Callable[[], Schedule]) -> None:
    schedule = make()
    for _ in range(3):
        schedule.validated(math.nan, maximize=False)
    assert schedule.factor(0, TOTAL) < 1.0


@pytest.mark.parametrize("make", LISTENING)
def test_resumed_schedule_goes_on(make: Callable[[], Schedule]) -> None:
    through, first, second = make(), make(), make()
    for value in VALUES[:6]:
        through.validated(value, False)
        first.validated(value, False)
    second.load_state_dict(first.state_dict())
    for value in VALUES[6:]:
        through.validated(value, False)
        second.validated(value, False)
        assert through.factor(0, TOTAL) == second.factor(0, TOTAL)
    assert through.factor(0, TOTAL) < 1.0


@pytest.mark.parametrize("schedule", STEPS)
def test_step_schedules_ignore_validation_and_bound(schedule: Schedule) -> None:
    before = factors(schedule)
    schedule.validated(1.0, maximize=True)
    assert factors(schedule) == before
    assert schedule.state_dict() == {}
    schedule.load_state_dict({})
    assert all(0.0 < factor <= 1.0 for factor in before)
    assert schedule.factor(10 * TOTAL, TOTAL) >= 0.0
    assert schedule.factor(0, 0) <= 1.0


def test_wrong_values_are_named() -> None:
    assert warmup_length(0.2, 50) == 10
    assert warmup_length(1, 50) == 1
    with pytest.raises(ValueError, match=r"warmup_steps=500\.0 is a float"):
        Noam(warmup_steps=500.0)
    with pytest.raises(ValueError, match="warmup_steps=-1"):
        Cosine(warmup_steps=-1)
    with pytest.raises(ValueError, match="decay=2"):
        Plateau(decay=2)
    with pytest.raises(ValueError, match="saved by another schedule"):
        Cosine().load_state_dict(Plateau().state_dict())
