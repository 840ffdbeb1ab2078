"""LSTM steps of decoders: one step with its own backward pass, and a whole sequence as one.

Both take the products of the inputs from outside, so that what is known of all steps beforehand
is one large product. Gates are in torch's order: input, forget, new, output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Hochreiter and Schmidhuber 1997 with a forget gate, from the sum of a step's products.

    Parameters
    ----------
    gates : Tensor
        Shape ``(..., 4 H)``, with biases.
    cell : Tensor
        Shape ``(..., H)``: memory cell before the step.

    Returns
    -------
    tuple of Tensor
        Output and memory cell, ``(..., H)``, float32.

    Examples
    --------
    >>> output, cell = lstm_step(torch.zeros(1, 8), torch.ones(1, 2))
    >>> cell.tolist(), round(output[0, 0].item(), 4)
    ([[0.5, 0.5]], 0.2311)
    """
    if torch.is_grad_enabled():
        return _Step.apply(gates.float(), cell)
    size = cell.shape[-1]
    gates = gates.float()
    admit, forget = gates[..., : 2 * size].sigmoid().chunk(2, dim=-1)
    cell = torch.addcmul(forget * cell, admit, gates[..., 2 * size : 3 * size].tanh())
    return gates[..., 3 * size :].sigmoid() * cell.tanh(), cell


class _Step(torch.autograd.Function):
    """`lstm_step`; the gradient of a step is six operators instead of fourteen."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        size = cell.shape[-1]
        opened = _open(gates, size)
        admit, forget, new, emit = opened.chunk(4, dim=-1)
        kept = torch.addcmul(forget * cell, admit, new)
        bent = kept.tanh()
        ctx.save_for_backward(opened, cell, bent)
        return emit * bent, kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_cell: Tensor) -> tuple[Tensor, Tensor]:
        opened, cell, bent = ctx.saved_tensors
        factors = _factors(opened, cell, bent)
        size = cell.shape[-1]
        grad_cell = torch.addcmul(grad_cell, grad_output, factors.cell)
        grad = factors.gates
        grad.unflatten(-1, (4, size))[..., :3, :] *= grad_cell.unsqueeze(-2)
        grad[..., 3 * size :] *= grad_output
        return grad, grad_cell * opened[..., size : 2 * size]


def _open(gates: Tensor, size: int) -> Tensor:
    """Activations of the gates ``(..., 4 H)``."""
    opened = gates.sigmoid()
    opened[..., 2 * size : 3 * size] = gates[..., 2 * size : 3 * size].tanh()
    return opened


class _Factors:
    """What the gradients of cell and output are multiplied by to be those of the gates."""

    def __init__(self, gates: Tensor, cell: Tensor) -> None:
        self.gates = gates  # (..., 4 H): three of the cell's gradient, one of the output's
        self.cell = cell  # (..., H): of the output's gradient, to the cell


def _factors(opened: Tensor, cell: Tensor, bent: Tensor) -> _Factors:
    """Factors from activations ``(..., 4 H)``, the cell before and the tanh of the cell after."""
    admit, _, new, emit = opened.chunk(4, dim=-1)
    slopes = torch.addcmul(opened, opened, opened, value=-1.0)  # a - a^2, of sigmoids
    size = cell.shape[-1]
    slopes[..., :size] *= new
    slopes[..., size : 2 * size] *= cell
    torch.mul(admit, 1.0 - new.square(), out=slopes[..., 2 * size : 3 * size])
    slopes[..., 3 * size :] *= bent
    return _Factors(slopes, torch.addcmul(emit, emit, bent.square(), value=-1.0))


def lstm_sequence(gates: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run an LSTM over time from zero, with dropout of what goes round.

    Parameters
    ----------
    gates : Tensor
        Shape ``(S, B, 4 H)``: what the inputs give, with biases.
    weight : Tensor
        Shape ``(4 H, H)``: ``weight_hh`` of an `nn.LSTMCell`.
    mask : Tensor, optional
        Shape ``(S, B, H)``: factors of each step's output, which is also the next step's state
        (dropout with its scale).

    Returns
    -------
    Tensor
        Outputs ``(S, B, H)``, float32.

    Examples
    --------
    >>> cell = torch.nn.LSTM(3, 5)
    >>> x = torch.randn(7, 2, 3)
    >>> gates = x @ cell.weight_ih_l0.T + cell.bias_ih_l0 + cell.bias_hh_l0
    >>> torch.allclose(lstm_sequence(gates, cell.weight_hh_l0), cell(x)[0], atol=1e-5)
    True
    """
    kind = gates.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    with torch.autocast(kind, enabled=False):
        outputs: Tensor = _Sequence.apply(gates.float(), weight.to(dtype), mask)
    return outputs


class _Sequence(torch.autograd.Function):
    """A loop forward and a loop backward; the weights' gradient is one product after it."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
        steps, items, width = gates.shape
        size = width // 4
        opened = torch.empty_like(gates)
        cells = gates.new_zeros(steps + 1, items, size)
        bent = gates.new_empty(steps, items, size)
        outputs = gates.new_zeros(steps + 1, items, size)
        transposed = weight.T
        for step in range(steps):
            product = outputs[step].to(weight.dtype) @ transposed
            torch.add(gates[step], product, out=opened[step])
            _advance(opened[step], cells[step], cells[step + 1], bent[step], outputs[step + 1])
            if mask is not None:
                outputs[step + 1] *= mask[step]
        ctx.save_for_backward(opened, cells, bent, outputs, weight, mask)
        return outputs[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        opened, cells, bent, outputs, weight, mask = ctx.saved_tensors
        steps, items, size = grad.shape
        factors = _factors(opened, cells[:-1], bent)
        grad_gates = factors.gates
        forget = opened[..., size : 2 * size]
        grad_cell = torch.zeros_like(grad[0])
        below = torch.zeros_like(grad[0])
        for step in range(steps - 1, -1, -1):
            grad_output = grad[step] + below
            if mask is not None:
                grad_output *= mask[step]
            grad_cell.addcmul_(grad_output, factors.cell[step])
            here = grad_gates[step]
            here.view(items, 4, size)[:, :3] *= grad_cell.unsqueeze(1)
            here[:, 3 * size :] *= grad_output
            grad_cell *= forget[step]
            below = (here.to(weight.dtype) @ weight).float()
        rows = grad_gates.flatten(0, 1).to(weight.dtype)
        columns = outputs[:-1].flatten(0, 1).to(weight.dtype)
        return grad_gates, rows.T @ columns, None


def _advance(opened: Tensor, cell: Tensor, kept: Tensor, bent: Tensor, output: Tensor) -> None:
    """One step in place: ``opened`` holds gates, then activations; the last three are written."""
    size = cell.shape[-1]
    opened[:, : 2 * size].sigmoid_()
    opened[:, 2 * size : 3 * size].tanh_()
    opened[:, 3 * size :].sigmoid_()
    torch.mul(opened[:, size : 2 * size], cell, out=kept)
    kept.addcmul_(opened[:, :size], opened[:, 2 * size : 3 * size])
    torch.tanh(kept, out=bent)
    torch.mul(opened[:, 3 * size :], bent, out=output)
