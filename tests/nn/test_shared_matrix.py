"""Shared matrices give the numbers and the gradients of plain products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkit.nn.shared_matrix import Matrix, SharedMatrix, product, share


def _chain(x: Tensor, matrix: Matrix, steps: int = 4) -> list[Tensor]:
    outs = []
    for _ in range(steps):
        x = product(x, matrix).tanh()
        outs.append(x)
    return outs


@pytest.mark.parametrize("shape", [(5, 5), (3, 5, 5)], ids=["weight", "memory"])
def test_gradients_are_those_of_plain_products(shape: tuple[int, ...]) -> None:
    x, matrix = torch.randn(3, 2, 5, requires_grad=True), torch.randn(shape, requires_grad=True)
    plain, shared = _chain(x, matrix), _chain(x, share(matrix))
    torch.testing.assert_close(shared, plain)
    for outs in (plain[-1], sum(plain)):
        want = torch.autograd.grad(outs.square().sum(), (x, matrix), retain_graph=True)
        mine = shared[-1] if outs is plain[-1] else sum(shared)
        got = torch.autograd.grad(mine.square().sum(), (x, matrix), retain_graph=True)
        torch.testing.assert_close(got, want)


def test_an_earlier_backward_pass_leaves_nothing_behind() -> None:
    """A pass for x alone records gradients of all steps; one of two steps must not see them."""
    x, matrix = torch.randn(3, 2, 5, requires_grad=True), torch.randn(5, 5, requires_grad=True)
    plain, shared = _chain(x, matrix), _chain(x, share(matrix))
    torch.autograd.grad(shared[-1].sum(), x, retain_graph=True)
    (got,) = torch.autograd.grad(shared[1].sum(), matrix)
    (want,) = torch.autograd.grad(plain[1].sum(), matrix)
    torch.testing.assert_close(got, want)


def test_an_unused_product_has_no_gradient() -> None:
    matrix = torch.randn(5, 5, requires_grad=True)
    shared = share(matrix)
    product(torch.randn(1, 1, 5), shared)
    product(torch.ones(1, 1, 5), shared).sum().backward()
    torch.testing.assert_close(matrix.grad, torch.ones(5, 5))


def test_nothing_is_shared_without_gradients() -> None:
    matrix = torch.randn(5, 5, requires_grad=True)
    with torch.no_grad():
        assert share(matrix) is matrix
    assert isinstance(share(matrix), SharedMatrix)
    assert not isinstance(share(matrix.detach()), SharedMatrix)


def test_autocast_gives_gradients_in_the_parameters_type() -> None:
    x, matrix = torch.randn(3, 2, 5, requires_grad=True), torch.randn(5, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = product(x, share(matrix))
    assert out.dtype == torch.bfloat16
    got = torch.autograd.grad(out.float().square().sum(), (x, matrix))
    want = torch.autograd.grad((x @ matrix).square().sum(), (x, matrix))
    assert [g.dtype for g in got] == [torch.float32] * 2
    for g, w in zip(got, want):
        assert (g - w).norm() < 0.03 * w.norm()
