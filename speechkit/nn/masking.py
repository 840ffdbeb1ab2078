"""The only place where lengths become masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Padded(NamedTuple):
    """A padded batch and how much of each item is real.

    Attributes
    ----------
    data : Tensor
        Shape ``(B, T, ...)``; what lies beyond an item's length means nothing.
    lengths : Tensor
        Shape ``(B,)``, int64: valid samples or frames of each item.
    """

    data: Tensor
    lengths: Tensor


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Mark the valid positions of a padded batch.

    Parameters
    ----------
    lengths : Tensor
        Shape ``(B,)``, integer.
    max_length : int
        Size ``T`` of the padded time axis.

    Returns
    -------
    Tensor
        Shape ``(B, T)``, bool: True where the position is real.

    Examples
    --------
    >>> length_mask(torch.tensor([1, 3]), 3).int().tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    positions = torch.arange(max_length, device=lengths.device)
    return positions < lengths.unsqueeze(1)


def ragged(lengths: Tensor | None, max_length: int) -> Tensor | None:
    """Return the lengths, or None where all items are full, so that nothing is masked for nothing.

    On a GPU this waits for the lengths.

    Examples
    --------
    >>> ragged(torch.tensor([3, 3]), 3), ragged(torch.tensor([3, 2]), 3)
    (None, tensor([3, 2]))
    """
    if lengths is None or bool((lengths >= max_length).all()):
        return None
    return lengths


def mask_padding(x: Tensor, lengths: Tensor, value: float = 0.0) -> Tensor:
    """Overwrite the padding of a batch, so that garbage in it (NaN too) cannot leak.

    Parameters
    ----------
    x : Tensor
        Shape ``(B, T, ...)``.
    lengths : Tensor
        Shape ``(B,)``, integer.
    value : float
        What to write beyond each item's length.

    Returns
    -------
    Tensor
        A new tensor, the shape of ``x``.

    Examples
    --------
    >>> mask_padding(torch.full((1, 3), float("nan")), torch.tensor([0])).tolist()
    [[0.0, 0.0, 0.0]]
    """
    mask = length_mask(lengths, x.shape[1])
    mask = mask.reshape(mask.shape + (1,) * (x.dim() - 2))
    return x.masked_fill(~mask, value)
