"""Pooling over time: frames of any number in, one vector out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from speechkit.nn.masking import mask_padding, ragged
from speechkit.nn.tdnn import FrameBatchNorm


class StatisticsPooling(nn.Module):
    """Mean and standard deviation of each feature over an item's frames.

    Snyder et al. 2018, "X-vectors: robust DNN embeddings for speaker recognition", section 2.2.

    Parameters
    ----------
    input_size : int
        Features per frame.
    correction : int
        The variance is divided by the frames less this: 0 as Kaldi's, 1 for the unbiased one, as
        SpeechBrain's.
    eps : float
        Smallest variance, so that its root has a gradient.

    Examples
    --------
    >>> pool = StatisticsPooling(input_size=1)
    >>> pool(torch.tensor([[[1.0], [3.0], [77.0]]]), torch.tensor([2])).tolist()
    [[2.0, 1.0]]
    """

    def __init__(self, *, input_size: int, correction: int = 0, eps: float = 1e-10) -> None:
        super().__init__()
        self.input_size = input_size
        self.correction = correction
        self.eps = eps

    @property
    def output_size(self) -> int:
        """Features of the pooled vector: means, then deviations."""
        return 2 * self.input_size

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``(B, T, input_size)`` to ``(B, 2 * input_size)``, float32.

        An item without frames has mean zero and the smallest deviation.
        """
        with torch.autocast(x.device.type, enabled=False):
            valid = ragged(lengths, x.shape[1])
            x = x.float() if valid is None else mask_padding(x.float(), valid)
            count = _counts(lengths, x)
            mean = x.sum(1) / count
            centred = x - mean.unsqueeze(1)
            if valid is not None:
                centred = mask_padding(centred, valid)
            var = centred.square().sum(1) / (count - self.correction).clamp(min=1)
            return torch.cat([mean, var.clamp(min=self.eps).sqrt()], dim=1)


class AttentiveStatisticsPooling(nn.Module):
    """Mean and deviation of each feature over frames that an attention of its own weighs.

    Desplanques, Thienpondt and Demuynck 2020, "ECAPA-TDNN: Emphasized channel attention,
    propagation and aggregation in TDNN based speaker verification", section 3.1 and equations 1 to
    4; without ``context`` each frame is weighed by itself alone, as in Okabe et al. 2018.

    Parameters
    ----------
    input_size : int
        Features per frame.
    attention_size : int
        Size of the attention's hidden layer.
    context : bool
        The attention also sees the item's mean and deviation over all frames.
    eps : float
        Smallest variance.

    Examples
    --------
    >>> pool = AttentiveStatisticsPooling(input_size=8, attention_size=4).eval()
    >>> x = torch.randn(2, 30, 8)
    >>> out = pool(x, torch.tensor([30, 11]))
    >>> out.shape, torch.allclose(out[1:], pool(x[1:, :11], torch.tensor([11])), atol=1e-5)
    (torch.Size([2, 16]), True)
    """

    def __init__(
        self,
        *,
        input_size: int,
        attention_size: int = 128,
        context: bool = True,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.attention_size = attention_size
        self.context = context
        self.eps = eps
        self.hidden = nn.Linear(input_size * (3 if context else 1), attention_size)
        self.norm = FrameBatchNorm(num_features=attention_size)
        self.score = nn.Linear(attention_size, input_size)

    @property
    def output_size(self) -> int:
        """Features of the pooled vector: means, then deviations."""
        return 2 * self.input_size

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``(B, T, input_size)`` to ``(B, 2 * input_size)``, float32.

        An item without frames has mean zero and the smallest deviation.
        """
        valid = ragged(lengths, x.shape[1])
        x = x.float() if valid is None else mask_padding(x.float(), valid)
        mean = x.sum(1) / _counts(lengths, x)  # (B, C)
        # Sums of what is centred once lose no digits, whatever the features' offset is.
        centred = x - mean.unsqueeze(1)
        if valid is not None:
            centred = mask_padding(centred, valid)
        weights = self._weights(x, mean, centred, lengths, valid)  # (B, T, C)
        shift, var = _WeightedMoments.apply(centred, weights)
        return torch.cat([mean + shift, self._root(var)], dim=1)

    def _weights(
        self, x: Tensor, mean: Tensor, centred: Tensor, lengths: Tensor, valid: Tensor | None
    ) -> Tensor:
        # Mean and deviation are the same in all frames: their part of the product is made once.
        weight = self.hidden.weight
        hidden = F.linear(x, weight[:, : self.input_size], self.hidden.bias)
        if self.context:
            std = self._root(centred.square().sum(1) / _counts(lengths, x))
            constant = F.linear(torch.cat([mean, std], dim=1), weight[:, self.input_size :])
            hidden = hidden + constant.unsqueeze(1)
        scores = self.score(self.norm(F.relu(hidden), valid).tanh()).float()
        if valid is not None:  # an empty item gives its first frame, a zero, all the weight
            scores = mask_padding(scores, valid.clamp(min=1), float("-inf"))
        return scores.softmax(dim=1)

    def _root(self, var: Tensor) -> Tensor:
        return var.clamp(min=self.eps).sqrt()


class EmbeddingLayer(nn.Module):
    """Linear layer from a pooled vector to the embedding, with batch norms around it.

    With both norms it is the end of ECAPA-TDNN as published (figure 2 of Desplanques et al. 2020),
    with none that of the x-vector.

    Parameters
    ----------
    input_size : int
        Size of the pooled vector.
    embed_dim : int
        Size of the embedding.
    norm_input, norm_output : bool
        Whether there is a norm before, and after.

    Examples
    --------
    >>> EmbeddingLayer(input_size=12, embed_dim=5, norm_input=True)(torch.randn(3, 12)).shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        *,
        input_size: int,
        embed_dim: int,
        norm_input: bool = False,
        norm_output: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.embed_dim = embed_dim
        self.norm_input = norm_input
        self.norm_output = norm_output
        self.before = FrameBatchNorm(num_features=input_size) if norm_input else None
        self.linear = nn.Linear(input_size, embed_dim)
        self.after = FrameBatchNorm(num_features=embed_dim) if norm_output else None

    @property
    def output_size(self) -> int:
        """Size of the embedding."""
        return self.embed_dim

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, input_size)`` to ``(B, embed_dim)``."""
        if self.before is not None:
            x = self.before(x.unsqueeze(1)).squeeze(1)
        x = self.linear(x)
        if self.after is not None:
            x = self.after(x.unsqueeze(1)).squeeze(1)
        return x


class _WeightedMoments(torch.autograd.Function):
    """Mean and variance over axis 1 of ``x (B, T, C)`` with weights that sum to 1: both (B, C).

    Autograd would keep, and pass over, more tensors as large as the frames.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        mean = (weights * x).sum(1)
        ctx.save_for_backward(x, weights, mean)
        return mean, (x - mean.unsqueeze(1)).square_().mul_(weights).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weights, mean = ctx.saved_tensors
        of_mean, of_var = (grad.unsqueeze(1) for grad in grads)
        away = x - mean.unsqueeze(1)
        grad_x = torch.addcmul(of_mean, away, of_var, value=2.0).mul_(weights)
        # The mean's own part in the variance has no gradient: sum(weights * away) is 0.
        grad_weights = away.square_().mul_(of_var).addcmul_(x, of_mean)
        return grad_x, grad_weights


def _counts(lengths: Tensor, x: Tensor) -> Tensor:
    """Count the valid frames of each item of (B, T, C), at least 1: (B, 1)."""
    return lengths.clamp(1, max(1, x.shape[1])).unsqueeze(1).to(x.dtype)
