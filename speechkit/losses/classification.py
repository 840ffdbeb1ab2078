"""Losses of classifiers: one label of many, or each label by itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    multi_label: bool = False,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of each item with its targets, which may be a mixture of labels.

    Parameters
    ----------
    logits : Tensor
        Shape ``(B, C)``.
    targets : Tensor
        Shape ``(B, C)``: how much of each label an item has
        (`speechkit.data.labels.as_targets`).
    multi_label : bool
        Labels do not exclude each other: the mean over the labels of the binary cross-entropy.
    weights : Tensor, optional
        Shape ``(C,)``, against imbalance (`speechkit.data.labels.class_weights`): of each label, or
        with ``multi_label`` of its presence.
    label_smoothing : float
        Share of the target that goes to all labels alike (Szegedy et al. 2016, section 7); with
        ``multi_label``, targets come nearer to one half by half of it.

    Returns
    -------
    Tensor
        Shape ``(B,)``, float32, in nats.

    Raises
    ------
    ValueError
        If the shapes disagree, or ``label_smoothing`` is outside [0, 1).

    Examples
    --------
    >>> import torch
    >>> logits, targets = torch.zeros(1, 4), torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    >>> round(float(classification_loss(logits, targets).exp()), 3)
    4.0
    >>> round(float(classification_loss(logits, targets, multi_label=True).exp()), 3)
    2.0
    """
    if logits.dim() != 2 or logits.shape != targets.shape:
        raise ValueError(
            f"expected logits and targets (B, C), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if weights is not None and weights.shape != logits.shape[1:]:
        raise ValueError(f"{logits.shape[1]} labels, but weights {tuple(weights.shape)}")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    logits, targets = logits.float(), targets.float()
    weights = None if weights is None else weights.to(logits)
    if multi_label:
        targets = targets * (1 - label_smoothing) + label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weights, reduction="none"
        )
        return losses.mean(1)
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    if weights is not None:
        targets = targets * weights
    return -(targets * logits.log_softmax(1)).sum(1)
