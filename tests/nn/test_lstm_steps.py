"""LSTM steps against torch's cell: values, gradients, dropout that goes round, autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.lstm_steps import lstm_sequence, lstm_step

STEPS, ITEMS, INPUTS, SIZE = 6, 3, 4, 5


def build() -> tuple[nn.LSTMCell, Tensor, Tensor]:
    torch.manual_seed(0)
    mask = (torch.rand(STEPS, ITEMS, SIZE) > 0.3).float() / 0.7
    return nn.LSTMCell(INPUTS, SIZE), torch.randn(STEPS, ITEMS, INPUTS), mask


def torchs(cell: nn.LSTMCell, x: Tensor, mask: Tensor | None) -> Tensor:
    hidden = below = torch.zeros(ITEMS, SIZE, dtype=x.dtype)
    found = []
    for step in range(STEPS):
        hidden, below = cell(x[step], (hidden, below))
        hidden = hidden if mask is None else hidden * mask[step]
        found.append(hidden)
    return torch.stack(found)


def by_steps(cell: nn.LSTMCell, x: Tensor, mask: Tensor | None) -> Tensor:
    hidden = below = torch.zeros(ITEMS, SIZE)
    found = []
    for step in range(STEPS):
        gates = x[step] @ cell.weight_ih.T + hidden @ cell.weight_hh.T
        hidden, below = lstm_step(gates + cell.bias_ih + cell.bias_hh, below)
        hidden = hidden if mask is None else hidden * mask[step]
        found.append(hidden)
    return torch.stack(found)


def by_sequence(cell: nn.LSTMCell, x: Tensor, mask: Tensor | None) -> Tensor:
    gates = x @ cell.weight_ih.T + cell.bias_ih + cell.bias_hh
    return lstm_sequence(gates, cell.weight_hh, mask)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("way", [by_steps, by_sequence])
def test_values_and_gradients_are_those_of_torchs_cell(way: object, dropped: bool) -> None:
    assert callable(way)
    cell, x, mask = build()
    x.requires_grad_()
    kept = mask if dropped else None
    weight = torch.randn(STEPS, ITEMS, SIZE)
    sides = [torchs(cell, x, kept), way(cell, x, kept)]
    torch.testing.assert_close(*sides)
    grads = [torch.autograd.grad((side * weight).sum(), [x, *cell.parameters()]) for side in sides]
    for want, got in zip(*grads):
        torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(way(cell, x, kept), sides[0])


def test_the_cell_also_has_a_gradient() -> None:
    """A step's memory cell may be used by itself, as at the end of a truncated sequence."""
    cell = nn.LSTMCell(INPUTS, SIZE)
    x, below = torch.randn(ITEMS, INPUTS), torch.randn(ITEMS, SIZE, requires_grad=True)
    zeros = torch.zeros(ITEMS, SIZE)
    _, want = cell(x, (zeros, below))
    _, got = lstm_step(x @ cell.weight_ih.T + cell.bias_ih + cell.bias_hh, below)
    grads = [torch.autograd.grad(side.square().sum(), below)[0] for side in (want, got)]
    torch.testing.assert_close(*grads)


def test_autocast_multiplies_in_its_type_and_returns_float32() -> None:
    cell, x, mask = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = by_sequence(cell, x, mask)
    assert got.dtype == torch.float32
    want = torchs(cell, x, mask)
    assert not torch.equal(got, want)
    torch.testing.assert_close(got, want, atol=3e-2, rtol=3e-2)
    got.sum().backward()
    assert cell.weight_hh.grad is not None
    assert cell.weight_hh.grad.dtype == torch.float32
