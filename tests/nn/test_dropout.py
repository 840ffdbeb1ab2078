from __future__ import annotations

import pytest
import torch

from speechkit.nn.dropout import Dropout, dropout

SIZE = 1_000_003  # not a multiple of the four values of a draw


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rate_and_expectation(p: float, dtype: torch.dtype) -> None:
    y = dropout(torch.ones(SIZE, dtype=dtype), p).float()
    error = 5 * (p * (1 - p) / SIZE) ** 0.5
    assert abs((y == 0).float().mean().item() - p) < error
    assert y[y > 0].unique().numel() == 1
    assert abs(y.mean().item() - 1) < error / (1 - p) + (0.004 if dtype == torch.bfloat16 else 0)


def test_expectation_is_exact_for_the_rounded_probability() -> None:
    dropped = round(0.1 * 65536)
    scale = dropout(torch.ones(1000), 0.1).max().item()
    assert scale * (1 - dropped / 65536) == pytest.approx(1, abs=1e-7)


def test_all_levels_are_drawn_evenly() -> None:
    from speechkit.nn.dropout import _random_levels

    levels = _random_levels(1 << 20).int()
    counts = torch.histc(levels.float(), bins=64, min=-32768, max=32767)
    assert ((counts / counts.mean() - 1).abs() < 0.05).all()
    lanes = levels.view(-1, 4).float()
    correlation = torch.corrcoef(lanes.T) - torch.eye(4)
    assert correlation.abs().max() < 0.01, "the four values of a draw are independent"


def test_repeats_with_the_seed_and_advances_without() -> None:
    x = torch.randn(50)
    torch.manual_seed(7)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(7)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_random_state_can_be_restored() -> None:
    state = torch.get_rng_state()
    first = dropout(torch.ones(33), 0.5)
    torch.set_rng_state(state)
    assert torch.equal(dropout(torch.ones(33), 0.5), first)


@pytest.mark.parametrize("shape", [(7, 5), (4, 6, 3), (1,), (0, 4)], ids=str)
def test_the_gradient_takes_the_same_mask(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).add_(3).requires_grad_()
    y = dropout(x, 0.4)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, (y / x).detach(), atol=1e-6, rtol=1e-6)


def test_works_on_a_transposed_view() -> None:
    x = torch.arange(1.0, 13).view(3, 4).t().requires_grad_()
    y = dropout(x, 0.5)
    assert ((y == 0) | (y == 2 * x)).all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad * x, y)


def test_float64_falls_back_to_torch() -> None:
    y = dropout(torch.ones(1000, dtype=torch.float64), 0.5)
    assert y.dtype == torch.float64
    assert set(y.unique().tolist()) == {0.0, 2.0}


def test_does_nothing_in_evaluation_or_at_zero() -> None:
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_refuses_other_probabilities(p: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(p)
