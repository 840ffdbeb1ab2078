"""Optimisers over parts of a model, frozen parts and clipping."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from speechkit.optim import build_optimizers, clip_gradients, freeze, frozen_modules

ADAMW = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)


class Model(nn.Module):
    """An encoder of two layers and a norm, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "norm": nn.LayerNorm(2)}
        )
        self.head = nn.Linear(2, 2)
        self.header = nn.Linear(2, 2)


def named(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {g["name"]: {names[p] for p in g["params"]} for g in optimizer.param_groups}


def test_one_optimizer_holds_every_parameter_once() -> None:
    model = Model()
    made = build_optimizers(model, ADAMW)
    assert list(made) == ["model"]
    assert named(model, made["model"]) == {"rest": {n for n, _ in model.named_parameters()}}
    assert made["model"].param_groups[0]["lr"] == 1e-3


def test_groups_by_prefix_the_longer_one_first() -> None:
    model = Model()
    made = build_optimizers(
        model,
        ADAMW,
        parameter_groups={"encoder": {"lr": 1e-4}, "encoder.layers.0": {"lr": 1e-5}},
        no_decay=["*norm*", "*.bias"],
    )["model"]
    layers = "encoder.layers"
    assert named(model, made) == {
        "encoder": {f"{layers}.1.weight"},
        "encoder/no_decay": {f"{layers}.1.bias", "encoder.norm.weight", "encoder.norm.bias"},
        "encoder.layers.0": {f"{layers}.0.weight"},
        "encoder.layers.0/no_decay": {f"{layers}.0.bias"},
        # "head" is not a prefix of "header.weight": parts are dotted.
        "rest": {"head.weight", "header.weight"},
        "rest/no_decay": {"head.bias", "header.bias"},
    }
    rates = {g["name"]: (g["lr"], g["weight_decay"]) for g in made.param_groups}
    assert rates["encoder"] == (1e-4, 0.1)
    assert rates["encoder/no_decay"] == (1e-4, 0.0)
    assert rates["encoder.layers.0"] == (1e-5, 0.1)
    assert rates["rest/no_decay"] == (1e-3, 0.0)


def test_state_loads_into_a_rebuilt_optimizer() -> None:
    options: dict[str, Any] = {"parameter_groups": {"head": {"lr": 0.5}}, "no_decay": ["*.bias"]}
    model = Model()
    first = build_optimizers(model, ADAMW, **options)["model"]
    sum(p.sum() for p in model.parameters()).backward()
    first.step()
    second = build_optimizers(Model(), ADAMW, **options)["model"]
    second.load_state_dict(first.state_dict())
    assert [g["name"] for g in second.param_groups] == [g["name"] for g in first.param_groups]


def test_several_optimizers_share_the_model_without_overlap() -> None:
    model = Model()
    sgd = partial(torch.optim.SGD, lr=0.1)
    made = build_optimizers(model, {"encoder": ADAMW, "head": sgd, "header": sgd})
    parts = [set().union(*named(model, optimizer).values()) for optimizer in made.values()]
    assert [type(optimizer).__name__ for optimizer in made.values()] == ["AdamW", "SGD", "SGD"]
    assert sum(len(part) for part in parts) == len(set().union(*parts)) == 10
    with pytest.raises(ValueError, match=r"no optimizer covers header\.weight, header\.bias"):
        build_optimizers(model, {"encoder": ADAMW, "head": sgd})
    left = build_optimizers(model, {"encoder": ADAMW, "head": sgd}, frozen=["header"])
    assert list(left) == ["encoder", "head"]


def test_frozen_parts_do_not_learn_nor_drift() -> None:
    model = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.BatchNorm1d(2)})
    optimizer = build_optimizers(model, ADAMW, frozen=["a"])["model"]
    model.train()
    for module in frozen_modules(model, ["a"]):
        module.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model["b"](model["a"](torch.randn(8, 2))).square().sum().backward()
    optimizer.step()
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert {name.split(".")[0] for name in changed} == {"b"}
    assert "b.running_mean" in changed
    assert frozen_modules(model, ["a.weight"]) == []


def test_a_prefix_that_matches_nothing_names_the_nearest() -> None:
    model = Model()
    with pytest.raises(ValueError, match=r"frozen: 'encodr' .*did you mean 'encoder'\?"):
        build_optimizers(model, ADAMW, frozen=["encodr"])
    with pytest.raises(ValueError, match=r"parameter_groups: 'encoder.layers.3'.*encoder\.layers"):
        build_optimizers(model, ADAMW, parameter_groups={"encoder.layers.3": {"lr": 1.0}})
    with pytest.raises(ValueError, match=r"optimizer: 'zzz' .*there are encoder, head, header"):
        build_optimizers(model, {"zzz": ADAMW})
    with pytest.raises(ValueError, match=r"no_decay: '\*bais' matches no"):
        build_optimizers(model, ADAMW, no_decay=["*bais"])
    with pytest.raises(ValueError, match="not the string 'head'"):
        freeze(model, "head")
    # Nothing was frozen by a call that failed.
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_contradictions_are_named() -> None:
    model = Model()
    with pytest.raises(ValueError, match="no option 'learning_rate'"):
        build_optimizers(model, ADAMW, parameter_groups={"head": {"learning_rate": 1.0}})
    with pytest.raises(ValueError, match="all of 'head' is frozen"):
        build_optimizers(model, ADAMW, parameter_groups={"head": {"lr": 1.0}}, frozen=["head"])
    with pytest.raises(ValueError, match="'model': every parameter is frozen"):
        build_optimizers(model, ADAMW, frozen=["encoder", "head", "header"])


def test_wrappers_are_looked_through() -> None:
    model = Model()
    compiled = torch.compile(model, backend="eager")
    made = build_optimizers(compiled, ADAMW, parameter_groups={"head": {"lr": 1.0}})
    assert set(named(model, made["model"])) == {"head", "rest"}


def test_clipping_is_torchs() -> None:
    for limit in (0.5, 1e6, None):
        model, other = Model(), Model()
        for one in (model, other):
            torch.manual_seed(3)
            for parameter in one.encoder.parameters():  # the heads have no gradient
                parameter.grad = torch.randn_like(parameter)
        norm = clip_gradients(model.parameters(), limit)
        bound = float("inf") if limit is None else limit
        expected = nn.utils.clip_grad_norm_(other.parameters(), bound)
        assert norm.item() == expected.item()
        for mine, theirs in zip(model.parameters(), other.parameters()):
            assert (mine.grad is None) == (theirs.grad is None)
            if mine.grad is not None and theirs.grad is not None:
                assert torch.equal(mine.grad, theirs.grad)
    assert clip_gradients([], 1.0).item() == 0.0
    with pytest.raises(ValueError, match="max_norm=0"):
        clip_gradients([], 0)


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, float("nan")])
    assert not torch.isfinite(clip_gradients([weight], 1.0))
