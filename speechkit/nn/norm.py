"""Layer norms of whole utterances: over all of an item, over its past, or over each frame."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.masking import length_mask

NormKind = Literal["global", "frame"]


class GlobalLayerNorm(nn.Module):
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
    >>> norm = GlobalLayerNorm(num_features=3)
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
        if lengths is None:  # torch's kernel, over an item at once
            flat = F.layer_norm(x.flatten(1), (x[:1].numel(),), eps=self.eps).view_as(x)
            bias = self.bias if residual is None else residual + self.bias
            return torch.addcmul(bias, flat, self.weight)
        inner = tuple(range(2, x.dim()))
        # Each row's part of its item, (B, R); 0 in the padding.
        shares = length_mask(lengths, x.shape[1]) / lengths.clamp(min=1).unsqueeze(1)
        mean = (x.mean(inner) * shares).sum(1)
        # Centred before it is squared: exact, and faster on a CPU than torch.var_mean.
        centred = x - _per_item(mean, x)
        squares = torch.linalg.vector_norm(centred, dim=inner).square()
        var = (squares * shares).sum(1) / math.prod(x.shape[2:])
        scale = self.weight * _per_item((var + self.eps).rsqrt(), x)
        return torch.addcmul(
            self.bias if residual is None else residual + self.bias, centred, scale
        )


def _per_item(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))


class CumulativeLayerNorm(nn.Module):
    """Normalise each frame by the features of all frames up to it.

    Luo and Mesgarani 2019, "Conv-TasNet", eq. 8-10 (cLN): nothing of the future is needed.

    Parameters
    ----------
    num_features : int
        Features per frame.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> norm = CumulativeLayerNorm(num_features=4)
    >>> x = torch.randn(1, 9, 4)
    >>> torch.allclose(norm(x)[:, :5], norm(x[:, :5]), atol=1e-6)
    True
    """

    def __init__(self, *, num_features: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise ``(B, T, num_features)``; lengths do not matter."""
        # Sums of squares in float64: their difference is the variance, over a whole recording.
        wide = x.double()
        count = self.num_features * torch.arange(1, x.shape[1] + 1, device=x.device)
        mean = wide.sum(dim=2).cumsum(dim=1) / count
        var = (wide.square().sum(dim=2).cumsum(dim=1) / count - mean.square()).clamp(min=0)
        scale = (var + self.eps).rsqrt()
        mean, scale = mean.float().unsqueeze(2), scale.float().unsqueeze(2)
        return torch.addcmul(self.bias, (x - mean) * scale, self.weight)


class FrameLayerNorm(nn.Module):
    """Normalise each frame over its features: a layer norm with the call of `GlobalLayerNorm`.

    Parameters
    ----------
    num_features : int
        Features, the last axis.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> FrameLayerNorm(num_features=3)(torch.randn(2, 5, 4, 3)).shape
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


_NORMS: dict[str, type[GlobalLayerNorm] | type[FrameLayerNorm]] = {
    "global": GlobalLayerNorm,
    "frame": FrameLayerNorm,
}


def make_norm(kind: str, num_features: int) -> GlobalLayerNorm | FrameLayerNorm:
    """Build a norm by name.

    Raises
    ------
    ValueError
        If there is none of the name.

    Examples
    --------
    >>> type(make_norm("frame", 8)).__name__
    'FrameLayerNorm'
    """
    if kind not in _NORMS:
        raise ValueError(f"unknown norm {kind!r}: choose from {sorted(_NORMS)}")
    return _NORMS[kind](num_features=num_features)
