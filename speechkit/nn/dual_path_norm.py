"""Norms of dual-path networks: over an item's own frames or chunks, or over each frame."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.masking import length_mask

NormKind = Literal["global", "frame"]


class GlobalNorm(nn.Module):
    """Normalise each item over all its valid rows, whatever a row holds, and all features.

    Luo and Mesgarani 2019, "Conv-TasNet", eq. 7 (gLN); a group norm with one group.

    Parameters
    ----------
    num_features : int
        Features, the last axis.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> x = torch.randn(2, 5, 4, 3)
    >>> norm = GlobalNorm(num_features=3)
    >>> alone = norm(x[1:, :2])
    >>> torch.allclose(norm(x, torch.tensor([5, 2]))[1, :2], alone[0], atol=1e-5)
    True
    """

    def __init__(self, *, num_features: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Normalise ``(B, R, ..., num_features)`` and add the residual, where there is one.

        Parameters
        ----------
        x : Tensor
            Rows along axis 1; finite in the padding too.
        lengths : Tensor, optional
            Shape ``(B,)``: valid rows; all by default.
        residual : Tensor, optional
            The shape of ``x``.
        """
        x = x.float()
        inner = tuple(range(2, x.dim()))
        shares = _shares(x, lengths)
        mean = (x.mean(inner) * shares).sum(1)
        # Centred before it is squared: exact, and faster on a CPU than torch.var_mean.
        centred = x - _per_item(mean, x)
        squares = torch.linalg.vector_norm(centred, dim=inner).square()
        var = (squares * shares).sum(1) / math.prod(x.shape[2:])
        scale = self.weight * _per_item((var + self.eps).rsqrt(), x)
        return torch.addcmul(
            self.bias if residual is None else residual + self.bias, centred, scale
        )


def _shares(x: Tensor, lengths: Tensor | None) -> Tensor:
    """``(B, R)`` or ``(1, R)``: each row's part of its item; 0 in the padding."""
    if lengths is None:
        return x.new_full((1, x.shape[1]), 1 / max(1, x.shape[1]))
    return length_mask(lengths, x.shape[1]) / lengths.clamp(min=1).unsqueeze(1)


def _per_item(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))


class FrameNorm(nn.Module):
    """Normalise each frame over its features: a layer norm with the call of `GlobalNorm`.

    Parameters
    ----------
    num_features : int
        Features, the last axis.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> FrameNorm(num_features=3)(torch.randn(2, 5, 4, 3)).shape
    torch.Size([2, 5, 4, 3])
    """

    def __init__(self, *, num_features: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Normalise ``(B, R, ..., num_features)`` and add the residual; lengths do not matter."""
        y = F.layer_norm(x, (self.num_features,), self.weight, self.bias, self.eps)
        return y if residual is None else residual + y


_NORMS: dict[str, type[GlobalNorm] | type[FrameNorm]] = {"global": GlobalNorm, "frame": FrameNorm}


def make_norm(kind: str, num_features: int) -> GlobalNorm | FrameNorm:
    """Build a norm by name.

    Raises
    ------
    ValueError
        If there is none of the name.

    Examples
    --------
    >>> type(make_norm("frame", 8)).__name__
    'FrameNorm'
    """
    if kind not in _NORMS:
        raise ValueError(f"unknown norm {kind!r}: choose from {sorted(_NORMS)}")
    return _NORMS[kind](num_features=num_features)
