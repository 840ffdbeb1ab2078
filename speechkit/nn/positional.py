"""Sinusoidal positions, absolute and relative."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(positions: Tensor, embed_dim: int) -> Tensor:
    """Embed positions with sines (even features) and cosines (odd ones).

    Vaswani et al. 2017, "Attention is all you need", section 3.5.

    Parameters
    ----------
    positions : Tensor
        Shape ``(T,)``, in frames; negative ones are allowed.
    embed_dim : int
        Features of the embedding.

    Returns
    -------
    Tensor
        Shape ``(T, embed_dim)``, float32, also inside autocast.

    Examples
    --------
    >>> sinusoids(torch.tensor([0, 1]), 4)[0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    half = torch.arange(0, embed_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float().unsqueeze(1) * torch.exp(half * (-math.log(10000.0) / embed_dim))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :embed_dim]


def absolute_positions(num_frames: int, embed_dim: int, device: torch.device) -> Tensor:
    """Embeddings of the positions 0 to ``num_frames - 1``, shape ``(T, embed_dim)``.

    Examples
    --------
    >>> absolute_positions(3, 8, torch.device("cpu")).shape
    torch.Size([3, 8])
    """
    return sinusoids(torch.arange(num_frames, device=device), embed_dim)


def relative_positions(num_frames: int, embed_dim: int, device: torch.device) -> Tensor:
    """Embeddings of all offsets between two frames, from the furthest past to the future.

    Row ``r`` embeds the offset (query - key) ``T - 1 - r``, from ``T - 1`` to ``-(T - 1)``.
    Dai et al. 2019, "Transformer-XL", appendix B.

    Examples
    --------
    >>> relative_positions(3, 8, torch.device("cpu")).shape
    torch.Size([5, 8])
    """
    return sinusoids(torch.arange(num_frames - 1, -num_frames, -1, device=device), embed_dim)


def relative_shift(scores: Tensor) -> Tensor:
    """Turn scores by offset into scores by key, as a view without gathering.

    Query ``i`` and key ``j`` meet at offset row ``T - 1 - i + j``. In memory that is a
    parallelogram, and one row less of width makes it a rectangle::

        T = 3, rows of 2 T - 1 = 5         flat from T - 1 on, rows of 2 T - 2 = 4
        . . a b c                           a b c .
        . d e f .                  ->       d e f .
        g h i . .                           g h i

    Parameters
    ----------
    scores : Tensor
        Shape ``(..., T, 2 T - 1)``, contiguous in its last two axes.

    Returns
    -------
    Tensor
        Shape ``(..., T, T)``, a view of ``scores`` where its layout allows.

    Examples
    --------
    >>> relative_shift(torch.arange(15).view(3, 5)).tolist()
    [[2, 3, 4], [6, 7, 8], [10, 11, 12]]
    """
    num_frames = scores.shape[-2]
    if num_frames == 1:
        return scores
    width = 2 * num_frames - 2
    flat = scores.flatten(-2)[..., num_frames - 1 : num_frames - 1 + num_frames * width]
    return flat.unflatten(-1, (num_frames, width))[..., :num_frames]
