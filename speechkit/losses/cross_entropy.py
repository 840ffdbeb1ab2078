"""Cross-entropy over label sequences, for attention decoders and language models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from speechkit.nn.masking import length_mask


def sequence_cross_entropy(
    logits: Tensor, targets: Tensor, lengths: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Negative log-likelihood of each item's labels, summed over its valid positions.

    With label smoothing (Szegedy et al. 2016, section 7), the target is the label with
    ``1 - label_smoothing`` and all labels alike with the rest.

    Parameters
    ----------
    logits : Tensor
        Shape ``(B, U, V)``.
    targets : Tensor
        Shape ``(B, U)``, int64; what lies beyond an item's length means nothing.
    lengths : Tensor
        Shape ``(B,)``: valid positions.
    label_smoothing : float
        In [0, 1).

    Returns
    -------
    Tensor
        Shape ``(B,)``, float32, in nats.

    Raises
    ------
    ValueError
        If ``label_smoothing`` is outside [0, 1).

    Examples
    --------
    >>> import torch
    >>> loss = sequence_cross_entropy(
    ...     torch.zeros(1, 3, 4), torch.tensor([[1, 2, 0]]), torch.tensor([2]))
    >>> round(float(loss.exp()), 3)  # two choices among four
    16.0
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    valid = length_mask(lengths, targets.shape[1])
    log_probs = logits.float().log_softmax(dim=-1)
    losses = F.nll_loss(
        log_probs.transpose(1, 2), targets.masked_fill(~valid, 0), reduction="none"
    )  # (B, U)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * log_probs.mean(dim=-1)
    return losses.masked_fill(~valid, 0.0).sum(dim=1)
