"""The loss of voice activity and overlap detection: one yes or no a frame for each level."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from speechkit.nn.masking import length_mask


def activity_loss(logits: Tensor, speakers: Tensor, lengths: Tensor) -> Tensor:
    """Binary cross-entropy of "at least k people speak", the mean over frames and levels.

    Parameters
    ----------
    logits : Tensor
        Shape ``(B, T, K)``: of at least 1, ..., at least K people.
    speakers : Tensor
        Shape ``(B, T)``, integer: how many people speak in each frame.
    lengths : Tensor
        Shape ``(B,)``, valid frames; what lies beyond changes nothing.

    Returns
    -------
    Tensor
        Shape ``(B,)``, float32, in nats; 0 for an item without frames.

    Raises
    ------
    ValueError
        If the shapes disagree.

    Examples
    --------
    >>> import torch
    >>> logits, speakers = torch.zeros(1, 3, 2), torch.tensor([[0, 1, 2]])
    >>> round(float(activity_loss(logits, speakers, torch.tensor([3])).exp()), 3)
    2.0
    """
    if logits.dim() != 3 or logits.shape[:2] != speakers.shape or len(lengths) != len(logits):
        raise ValueError(
            "expected logits (B, T, K), speakers (B, T) and lengths (B,), got "
            f"{tuple(logits.shape)}, {tuple(speakers.shape)} and {tuple(lengths.shape)}"
        )
    levels = speakers.new_tensor(range(1, logits.shape[2] + 1))
    targets = (speakers.unsqueeze(2) >= levels).float()
    padding = ~length_mask(lengths, logits.shape[1]).unsqueeze(2)
    # Before the loss: the gradient of a masked NaN would still be NaN.
    losses = F.binary_cross_entropy_with_logits(
        logits.float().masked_fill(padding, 0.0), targets, reduction="none"
    )
    totals = losses.masked_fill(padding, 0.0).sum(dim=(1, 2))
    return totals / (lengths * logits.shape[2]).clamp(min=1)
