"""A matrix that many steps multiply by, with one gradient product for all of them.

Written plainly, backpropagation through `U` steps of ``x_u @ M`` makes `U` outer products of the
size of ``M`` and adds them up; that is most of the traffic of a recurrent decoder's training step.
Here each step only records its ``x_u`` and its gradient, and one product of the stacked records
gives the gradient of ``M``::

    M ── collect ──> M' ── product(x_1, M') ── product(x_2, M') ── ...      forward
    dM = X^T G  <──  records (x_u, g_u)                                     backward
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class SharedMatrix:
    """A matrix ``(I, O)`` or ``(B, I, O)`` whose gradient is computed once for all products.

    Use `share` to make one and `product` to multiply.
    """

    def __init__(self, matrix: Tensor) -> None:
        # One record for each product; a later backward pass through the same graph overwrites.
        self.records: list[_Record] = []
        self.matrix: Tensor = _Collect.apply(matrix, self.records)

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply ``x`` ``(B, K, I)`` by the matrix."""
        record = _Record()
        self.records.append(record)
        return _Product.apply(x.to(self.matrix.dtype), self.matrix, record)


Matrix = Tensor | SharedMatrix


class _Record:
    """Input and output gradient of one product, and the backward pass that wrote them."""

    def __init__(self) -> None:
        self.task = -1
        self.x: Tensor | None = None
        self.grad: Tensor | None = None


def share(matrix: Tensor) -> Matrix:
    """Share a matrix between steps where gradients are recorded; else return it as it is.

    Parameters
    ----------
    matrix : Tensor
        Shape ``(I, O)`` or ``(B, I, O)``.

    Returns
    -------
    Tensor or SharedMatrix
        For `product`.

    Examples
    --------
    >>> weight = torch.tensor([[2.0]], requires_grad=True)
    >>> shared, x = share(weight), torch.tensor([[[3.0]]])
    >>> product(product(x, shared), shared).sum().backward()  # 3 w^2
    >>> weight.grad
    tensor([[12.]])
    """
    if not (torch.is_grad_enabled() and matrix.requires_grad):
        return matrix
    if torch.is_autocast_enabled(matrix.device.type):
        # Autocast casts for each product; the gradient's type must be known when it is summed.
        matrix = matrix.to(torch.get_autocast_dtype(matrix.device.type))
    return SharedMatrix(matrix)


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """``x @ matrix`` for ``x`` ``(B, K, I)`` and a matrix ``(I, O)`` or ``(B, I, O)``."""
    if isinstance(matrix, SharedMatrix):
        return matrix.multiply(x)
    return x @ matrix.to(x.dtype)


class _Collect(torch.autograd.Function):
    """The identity; its gradient is the sum over the records of one backward pass."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, records: list[_Record]) -> Tensor:
        ctx.records, ctx.matrix_shape = records, matrix.shape
        return matrix.view_as(matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        task = torch._C._current_graph_task_id()
        used = [record for record in ctx.records if record.task == task]
        if not used:
            return grad, None
        x = torch.cat([record.x for record in used], dim=1)
        out = torch.cat([record.grad for record in used], dim=1)
        for record in used:
            record.x = record.grad = None
        if len(ctx.matrix_shape) == 2:
            x, out = x.flatten(0, 1), out.flatten(0, 1)
        return x.transpose(-1, -2) @ out, None


class _Product(torch.autograd.Function):
    """``x @ matrix``, whose backward records what the matrix's gradient needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, record: _Record) -> Tensor:
        ctx.save_for_backward(x, matrix)
        ctx.record = record
        with torch.autocast(x.device.type, enabled=False):
            return x @ matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        x, matrix = ctx.saved_tensors
        record = ctx.record
        record.task, record.x, record.grad = torch._C._current_graph_task_id(), x, grad
        return (grad @ matrix.mT if ctx.needs_input_grad[0] else None), None, None
