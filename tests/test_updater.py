"""Taking up an updater's state, as it was and with other hyperparameters."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn

from speechkit.schedules import Constant, Plateau, Schedule
from speechkit.training import Position, Training
from speechkit.updater import Updater


def make(
    model: nn.Module,
    schedule: Schedule | None = None,
    ema_decay: float | None = None,
    **options: Any,
) -> Updater:
    return Updater(
        model,
        functools.partial(torch.optim.AdamW, lr=0.1, **options),
        Training(epochs=1, ema_decay=ema_decay),
        schedule or Constant(),
    )


def update(updater: Updater, step: int) -> None:
    updater.set_rates(step, 10)
    updater.backward(updater.model(torch.ones(1, 2)).sum())
    assert updater.step()


def test_changed_options_are_taken_and_the_others_kept() -> None:
    model = nn.Linear(2, 1)
    first = make(model, weight_decay=0.5)
    update(first, 0)
    second = make(model, weight_decay=0.25)
    state = first.state_dict()
    state["optimizers"]["model"]["param_groups"][0]["eps"] = 1e-3  # as if training had moved it
    second.load_state_dict(state)
    group = second.optimizers["model"].param_groups[0]
    assert (group["weight_decay"], group["eps"]) == (0.25, 1e-3)
    assert second.optimizers["model"].state[model.weight]["step"] == 1


def test_an_average_that_begins_later_starts_from_the_weights_then() -> None:
    trained = nn.Linear(2, 1)
    first = make(trained)
    update(first, 0)
    model = nn.Linear(2, 1)
    second = make(model, ema_decay=0.9)
    model.load_state_dict(trained.state_dict())
    second.load_state_dict(first.state_dict())
    assert second.ema is not None
    with second.ema.applied():
        assert torch.equal(model.weight, trained.weight)


def test_a_plateau_is_remembered() -> None:
    model = nn.Linear(2, 1)
    first, second = (make(model, Plateau(patience=0)) for _ in range(2))
    for loss in (1.0, 2.0):
        first.schedule.validated(loss, maximize=False)
    second.load_state_dict(first.state_dict())
    second.set_rates(5, 10)
    assert second.rates == {"lr": 0.05}


def test_a_metric_that_is_no_number_is_never_the_best() -> None:
    position = Position()
    found = [
        position.validated(value, maximize=False, patience=None)
        for value in (math.nan, 2.0, math.nan, 1.0)
    ]
    assert found == [False, True, False, True]
    assert position.best == 1.0
