"""Averages of weights: the moving one and the mean of several states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from speechkit.checkpoint import Checkpointer
from speechkit.ema import ExponentialMovingAverage, average_state_dicts


class Model(nn.Module):
    """Has parameters, running statistics, a counter and a table outside the state."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x)) + self.table


def train(model: nn.Module, ema: ExponentialMovingAverage, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        ema.update()


def test_equals_torchs_average() -> None:
    model = Model()
    ema = ExponentialMovingAverage(model, 0.9, warmup=False)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    torchs.update_parameters(model)  # the first call copies
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        ema.update()
        torchs.update_parameters(model)
    with ema.applied():
        for name, parameter in torchs.module.named_parameters():
            torch.testing.assert_close(model.get_parameter(name), parameter)


def test_warmup_follows_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = ExponentialMovingAverage(model, 0.999)
    average = 1.0
    for update in range(20):
        nn.init.constant_(model.weight, float(update))
        ema.update()
        decay = (1 + update) / (10 + update)
        average = decay * average + (1 - decay) * update
    assert ema.state_dict()["averages"]["weight"].item() == pytest.approx(average, rel=1e-5)


def test_applied_swaps_exactly_and_back_after_an_error() -> None:
    model = Model()
    ema = ExponentialMovingAverage(model, 0.9)
    train(model, ema, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    identity = [id(parameter) for parameter in model.parameters()]

    def inside() -> None:
        with ema.applied() as same:
            assert same is model
            for name, tensor in ema.state_dict()["averages"].items():
                assert torch.equal(model.get_parameter(name), tensor)
            assert not torch.equal(model.linear.weight, before["linear.weight"])
            model(torch.randn(4, 3))  # changes the running statistics
            with pytest.raises(RuntimeError, match="update"):
                ema.update()
            with pytest.raises(RuntimeError, match="already"), ema.applied():
                pass
            raise KeyError("in validation")

    with pytest.raises(KeyError):
        inside()
    assert [id(parameter) for parameter in model.parameters()] == identity
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    ema.update()


def test_buffers_are_copied() -> None:
    model = Model()
    ema = ExponentialMovingAverage(model, 0.9)
    train(model, ema, 3)
    buffers = ema.state_dict()["buffers"]
    assert set(buffers) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    for name, buffer in buffers.items():
        assert torch.equal(buffer, model.get_buffer(name))
    assert buffers["norm.num_batches_tracked"].item() == 3


def test_half_precision_still_moves() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    ema = ExponentialMovingAverage(model, 0.999, warmup=False)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(1000):
        ema.update()
    expected = 2.0 - 0.999**1000
    assert ema.state_dict()["averages"]["weight"].item() == pytest.approx(expected, rel=1e-4)
    with ema.applied():
        assert model.weight.dtype == torch.bfloat16


def test_state_round_trips_through_a_checkpoint(tmp_path: Path) -> None:
    model = Model()
    ema = ExponentialMovingAverage(model, 0.9)
    train(model, ema, 2)
    saver = Checkpointer(tmp_path)
    saver.save({"model": model.state_dict(), "ema": ema.state_dict()}, epoch=1, step=2)
    loaded = saver.load_last()
    assert loaded is not None
    other = Model()
    resumed = ExponentialMovingAverage(other, 0.9)
    other.load_state_dict(loaded.state["model"])
    resumed.load_state_dict(loaded.state["ema"])
    torch.manual_seed(1)
    train(model, ema, 2)
    torch.manual_seed(1)
    train(other, resumed, 2)
    for name, tensor in ema.state_dict()["averages"].items():
        assert torch.equal(tensor, resumed.state_dict()["averages"][name])


def test_another_models_state_is_refused() -> None:
    state = ExponentialMovingAverage(nn.Linear(2, 2)).state_dict()
    ema = ExponentialMovingAverage(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="do not fit the model: weight, bias"):
        ema.load_state_dict(state)
    with pytest.raises(ValueError, match=r"averages .* norm\.bias"):
        ExponentialMovingAverage(Model()).load_state_dict(state)
    with pytest.raises(ValueError, match="decay=1"):
        ExponentialMovingAverage(Model(), 1.0)


def test_average_of_states() -> None:
    states = [
        {
            "half": torch.tensor([2048.0, 1.0]).half(),
            "weight": torch.tensor([float(i)]),
            "count": torch.tensor(i),
        }
        for i in range(5)
    ]
    kept = [state["weight"].clone() for state in states]
    mean = average_state_dicts(iter(states))
    assert mean["weight"].tolist() == [2.0]
    assert mean["count"].item() == 4
    # A sum of five in float16 would have passed 2048 with steps of 8.
    assert mean["half"].dtype == torch.float16
    assert mean["half"].tolist() == [2048.0, 1.0]
    assert all(torch.equal(a, s["weight"]) for a, s in zip(kept, states))
    one = average_state_dicts(states[:1])
    one["weight"].add_(1)
    assert states[0]["weight"].item() == 0.0


def test_states_of_different_models_are_refused() -> None:
    one = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match="differ in b"):
        average_state_dicts([one, {"a": torch.zeros(1)}])
    with pytest.raises(ValueError, match="differ in a"):
        average_state_dicts([one, {"a": torch.zeros(2), "b": torch.zeros(1)}])
    with pytest.raises(ValueError, match="no state dicts"):
        average_state_dicts([])
