"""Dropout with cheap random bits: the one place where encoders draw their dropout masks.

On a CPU ``F.dropout`` spends 6 ns on each value's Bernoulli draw (a fifth of a Conformer's
training step). Here one 64-bit draw of torch's generator decides four values, 16 bits each, and
mask and product run vectorised. Runs repeat with ``torch.manual_seed`` as they do with
``F.dropout``, though the masks differ from its masks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


def _random_levels(size: int) -> Tensor:
    """Draw ``size`` independent uniform int16 values from torch's generator."""
    words = torch.empty((size + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    return words.view(torch.int16)[:size]


class _BitDropout(torch.autograd.Function):
    """``x * keep / P(keep)`` where an int16 level above the threshold keeps its value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, num_dropped: int) -> Tensor:
        ctx.save_for_backward(levels)
        ctx.num_dropped = num_dropped
        return _apply_levels(x, levels, num_dropped)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (levels,) = ctx.saved_tensors
        return _apply_levels(grads[0], levels, ctx.num_dropped), None, None


def _apply_levels(x: Tensor, levels: Tensor, num_dropped: int) -> Tensor:
    # int16 -> float32 and threshold_backward (x where levels > threshold, else 0) are the two
    # fastest vectorised operators that do this; where() and products with bool are four times
    # slower. Every int16 is exact in float32, but not in bfloat16: so the mask is float32.
    threshold = num_dropped - _LEVELS // 2 - 1
    wide = x.float()  # no copy of float32
    kept = torch.ops.aten.threshold_backward(wide, levels.to(torch.float32), threshold)
    return kept.mul_(_LEVELS / (_LEVELS - num_dropped)).to(x.dtype)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero each value with probability ``p`` and divide the others by ``1 - p``.

    On a CPU ``p`` is rounded to the next multiple of 2**-16 (0.1 becomes 0.100006), and the
    scale is that of the rounded probability: the expectation of the output is exactly ``x``.
    Elsewhere, and under ``torch.compile``, this is ``F.dropout``.

    Parameters
    ----------
    x : Tensor
        Any shape.
    p : float
        Probability of dropping a value, in [0, 1).
    training : bool
        Whether to drop anything.

    Returns
    -------
    Tensor
        The shape and type of ``x``; ``x`` itself where nothing is dropped.

    Examples
    --------
    >>> y = dropout(torch.ones(100_000), 0.25)
    >>> 0.24 < (y == 0).float().mean() < 0.26, y.max().item()
    (tensor(True), 1.3333333730697632)
    """
    if not training or p == 0.0 or x.numel() == 0:
        return x
    small_float = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if x.device.type != "cpu" or not small_float or torch.compiler.is_compiling():
        return F.dropout(x, p, training=True)
    num_dropped = min(round(p * _LEVELS), _LEVELS - 1)
    levels = _random_levels(x.numel()).view(x.shape)
    return _BitDropout.apply(x, levels, num_dropped)


class Dropout(nn.Module):
    """Module form of `dropout`.

    Parameters
    ----------
    p : float
        Probability of dropping a value.

    Raises
    ------
    ValueError
        If ``p`` is not in [0, 1).

    Examples
    --------
    >>> x = torch.ones(5)
    >>> Dropout(0.5).eval()(x) is x
    True
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"the probability of dropout must lie in [0, 1), not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with some values dropped in training, ``x`` itself otherwise."""
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """Show the probability in the module's print."""
        return f"p={self.p}"
