"""Mixup: recordings of a batch added to each other, and their labels with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechkit.nn.masking import mask_padding


class Mixed(NamedTuple):
    """What `Mixup` gives: recordings ``(B, T)``, their lengths ``(B,)``, their targets ``(B, C)``.

    Attributes
    ----------
    waveforms, lengths, targets : Tensor
        As they went in.
    """

    waveforms: Tensor
    lengths: Tensor
    targets: Tensor


class Mixup:
    """Add to each recording of a batch another one, and to its labels the other's.

    Zhang et al. 2018, "mixup: beyond empirical risk minimization", equation 1: with a share drawn
    from Beta(alpha, alpha), ``share * own + (1 - share) * other``, of recordings and of targets.
    The larger share is the item's own. What is drawn is a function of the item's generator; who
    the others are depends on the batch.

    Parameters
    ----------
    alpha : float
        Small ones mix little: 0.2 to 1.0 are usual.
    prob : float
        Probability that an item is mixed.

    Raises
    ------
    ValueError
        If ``alpha`` is not above 0, or ``prob`` not in [0, 1].

    Examples
    --------
    >>> mixup = Mixup(alpha=1.0)
    >>> generators = [torch.Generator().manual_seed(n) for n in range(2)]
    >>> out = mixup(torch.eye(2), torch.tensor([2, 2]), torch.eye(2), generators)
    >>> torch.allclose(out.waveforms, out.targets), out.targets.sum(1).tolist()
    (True, [1.0, 1.0])
    """

    def __init__(self, *, alpha: float = 0.4, prob: float = 1.0) -> None:
        if alpha <= 0 or not 0.0 <= prob <= 1.0:
            raise ValueError(f"need alpha > 0 and prob in [0, 1], got {alpha} and {prob}")
        self.alpha = alpha
        self.prob = prob

    def __call__(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        targets: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Mixed:
        """Mix a padded batch.

        Parameters
        ----------
        waveforms : Tensor
            Shape ``(B, T)``, or ``(B, T, F)`` of features where zero is a mean. Not modified.
        lengths : Tensor
            Shape ``(B,)``. A mixture is as long as the longer of its two.
        targets : Tensor
            Float, shape ``(B, C)``.
        generators : sequence of torch.Generator
            One an item, on the CPU.

        Raises
        ------
        ValueError
            If there is not one generator for each item.
        """
        size = len(waveforms)
        if len(generators) != size:
            raise ValueError(f"need a generator for each of {size} items, got {len(generators)}")
        if size < 2:
            return Mixed(waveforms, lengths, targets)
        drawn = [self._draw(number, size, g) for number, g in enumerate(generators)]
        others = torch.tensor([other for other, _ in drawn], device=lengths.device)
        share = torch.tensor([share for _, share in drawn], device=waveforms.device)
        own = mask_padding(waveforms, lengths)
        weight = share.to(own.dtype).reshape(-1, *[1] * (own.dim() - 1))
        mixed = weight * own + (1 - weight) * own[others]
        longer = torch.where(share.to(lengths.device) < 1, lengths[others], 0)
        share = share.unsqueeze(1)
        return Mixed(
            mixed,
            torch.maximum(lengths, longer),
            share * targets + (1 - share) * targets[others.to(targets.device)],
        )

    def _draw(self, number: int, size: int, generator: torch.Generator) -> tuple[int, float]:
        """Draw an item's other one, and its own share, which is 1 where it is not mixed."""
        chosen, place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        seed = int(torch.randint(2**31, (1,), generator=generator))
        share = float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
        other = (number + 1 + int(place * (size - 1))) % size
        return other, max(share, 1.0 - share) if chosen < self.prob else 1.0
