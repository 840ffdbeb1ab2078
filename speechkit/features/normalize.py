"""Normalisation of features over time: of each utterance, or of the whole training set."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechkit.nn.masking import mask_padding


class UtteranceNorm(nn.Module):
    """Give each feature of each utterance zero mean, and unit variance, over its valid frames.

    Parameters
    ----------
    mean_only : bool
        Subtract the mean and leave the scale (cepstral mean normalisation; Atal, 1974).
    eps : float
        Smallest standard deviation divided by, so that a constant feature stays finite.

    Examples
    --------
    >>> norm = UtteranceNorm(mean_only=True)
    >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> norm(x, torch.tensor([2])).flatten().tolist()
    [-1.0, 1.0, 0.0]
    """

    def __init__(self, *, mean_only: bool = False, eps: float = 1e-3) -> None:
        super().__init__()
        self.mean_only = mean_only
        self.eps = eps

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalise a padded batch.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, T, F)``.
        lengths : Tensor
            Shape ``(B,)``, valid frames.

        Returns
        -------
        Tensor
            float32, shape ``(B, T, F)``, zero beyond the lengths.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = mask_padding(x.float(), lengths)
            count = lengths.clamp_min(1).reshape(-1, 1, 1)
            x = mask_padding(x - x.sum(dim=1, keepdim=True) / count, lengths)
            if self.mean_only:
                return x
            variance = x.square().sum(dim=1, keepdim=True) / count
            # Clamped below the root: the gradient of a root at zero is infinite.
            return x / variance.clamp_min(self.eps**2).sqrt()


class GlobalNorm(nn.Module):
    """Give each feature zero mean and unit variance over the training set.

    In training, every batch's valid frames, those of all processes where torch.distributed runs,
    are merged into running statistics (Chan, Golub & LeVeque, 1983, "Algorithms for computing the
    sample variance", pairwise update), and the batch is normalised with the result. In evaluation
    the statistics are frozen. They are in the state dict.

    Parameters
    ----------
    num_features : int
        Size of the feature axis.
    update_steps : int, optional
        Training batches after which the statistics stay as they are; never by default.
    mean_only : bool
        Subtract the mean and leave the scale.
    eps : float
        Smallest standard deviation divided by.

    Examples
    --------
    >>> norm = GlobalNorm(num_features=1)
    >>> _ = norm(torch.tensor([[[2.0], [4.0], [77.0]]]), torch.tensor([2]))
    >>> norm.eval()(torch.tensor([[[5.0]]]), torch.tensor([1])).item()
    2.0
    """

    mean: Tensor
    variance: Tensor
    count: Tensor
    steps: Tensor

    def __init__(
        self,
        *,
        num_features: int,
        update_steps: int | None = None,
        mean_only: bool = False,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.update_steps = update_steps
        self.mean_only = mean_only
        self.eps = eps
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(num_features))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalise a padded batch; in training, learn from it first.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, T, num_features)``.
        lengths : Tensor
            Shape ``(B,)``, valid frames.

        Returns
        -------
        Tensor
            float32, shape ``(B, T, num_features)``, zero beyond the lengths.

        Raises
        ------
        ValueError
            If the feature axis has another size.
        """
        if x.shape[-1] != self.num_features:
            raise ValueError(f"need {self.num_features} features, got shape {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            x = mask_padding(x.float(), lengths)
            if self.training and (self.update_steps is None or self.steps < self.update_steps):
                self._update(x.detach(), lengths)
            x = x - self.mean.float()
            if not self.mean_only:
                x = x / self.variance.float().sqrt().clamp_min(self.eps)
            return mask_padding(x, lengths)

    def restore(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Undo the normalisation: what a model made in its range becomes features again.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, T, num_features)``.
        lengths : Tensor
            Shape ``(B,)``, valid frames.

        Returns
        -------
        Tensor
            float32, the same shape, zero beyond the lengths.

        Examples
        --------
        >>> norm = GlobalNorm(num_features=2)
        >>> x, lengths = torch.randn(1, 5, 2), torch.tensor([5])
        >>> torch.allclose(norm.restore(norm(x, lengths), lengths), x, atol=1e-6)
        True
        """
        x = x.float()
        if not self.mean_only:
            x = x * self.variance.float().sqrt().clamp_min(self.eps)
        return mask_padding(x + self.mean.float(), lengths)

    @torch.no_grad()
    def _update(self, x: Tensor, lengths: Tensor) -> None:
        """Merge the valid frames of ``x`` (zero beyond them), and of the other processes' ``x``."""
        count = lengths.sum()
        mean = x.sum(dim=(0, 1)) / count.clamp_min(1)
        squares = mask_padding(x - mean, lengths).square().sum(dim=(0, 1))
        precise = torch.float32 if x.device.type == "mps" else torch.float64
        mine = torch.cat([t.to(precise) for t in (count.reshape(1), mean, squares)])
        parts = [mine]
        if dist.is_available() and dist.is_initialized():
            # Gathered and then merged in the order of the ranks: the same bits on each of them.
            parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, mine)
        old = [self.count.reshape(1), self.mean, self.variance * self.count]
        counts, means, sums = _split(torch.stack([torch.cat([t.to(precise) for t in old]), *parts]))
        total = counts.sum().clamp_min(1)
        new_mean = (counts * means).sum(dim=0) / total
        new_variance = (sums + counts * (means - new_mean).square()).sum(dim=0) / total
        # One non-finite value would spoil the statistics for good; an empty batch has none.
        usable = torch.isfinite(new_mean + new_variance).all() & (counts.sum() > 0)
        self.mean.copy_(torch.where(usable, new_mean, self.mean.to(precise)))
        self.variance.copy_(torch.where(usable, new_variance, self.variance.to(precise)))
        self.count.copy_(torch.where(usable, counts.sum().long(), self.count))
        self.steps += 1


def _split(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take rows ``[count, mean..., squares...]`` apart: ``(N, 1)``, ``(N, F)``, ``(N, F)``."""
    features = (rows.shape[1] - 1) // 2
    return rows[:, :1], rows[:, 1 : 1 + features], rows[:, 1 + features :]
