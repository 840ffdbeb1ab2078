"""Connectionist temporal classification (Graves et al., 2006)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.nn.masking import length_mask


def min_frames(targets: Sequence[int] | Tensor) -> int:
    """Count the fewest frames that can carry a label sequence: its length plus its repeats.

    Two equal labels in a row need a blank between them, or they would collapse to one.

    Parameters
    ----------
    targets : sequence of int, or Tensor
        Labels of one utterance, shape ``(U,)``, without padding and blanks.

    Returns
    -------
    int
        Frames needed.

    Examples
    --------
    >>> min_frames([3, 1, 1, 2])
    5
    """
    labels = targets.tolist() if isinstance(targets, Tensor) else list(targets)
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def ctc_loss(
    log_probs: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    blank: int = 0,
) -> Tensor:
    """Compute -log p(targets | frames) for each utterance, with torch's own kernel.

    Not averaged and not divided by anything, so that the caller chooses the weighting. Half
    precision is computed in float32. Where labels need more frames than there are
    (:func:`min_frames`), the loss is infinite: see to such utterances before.

    Parameters
    ----------
    log_probs : Tensor
        Shape ``(B, T, V)``, log-softmax over ``V``. Frames beyond ``lengths`` change nothing.
    lengths : Tensor
        Shape ``(B,)``, integer: valid frames.
    targets : Tensor
        Shape ``(B, U)``, integer labels; what lies beyond ``target_lengths`` changes nothing.
    target_lengths : Tensor
        Shape ``(B,)``, integer: valid labels (may be 0).
    blank : int
        Index of the blank in ``V``.

    Returns
    -------
    Tensor
        Shape ``(B,)``, in nats; float64 for float64 input, else float32.

    Raises
    ------
    ValueError
        Where shapes disagree or a label lies outside ``V`` or is the blank.

    References
    ----------
    Graves, Fernandez, Gomez and Schmidhuber (2006), "Connectionist temporal classification",
    equation 8; the recursion is in :func:`ctc_forward_reference`.

    Examples
    --------
    >>> log_probs = torch.full((1, 2, 2), 0.5).log()  # 3 of 4 paths collapse to "1"
    >>> loss = ctc_loss(log_probs, torch.tensor([2]), torch.tensor([[1]]), torch.tensor([1]))
    >>> round(loss.neg().exp().item(), 4)
    0.75
    """
    _check(log_probs, lengths, targets, target_lengths, blank)
    if log_probs.dtype not in (torch.float32, torch.float64):
        log_probs = log_probs.float()
    if log_probs.numel() == 0:  # the kernel refuses: without a frame only "no labels" is possible
        labels = target_lengths.to(log_probs.device) > 0
        return log_probs.new_zeros(len(labels)).masked_fill(labels, float("inf"))
    # Garbage in the padding must not reach the kernels, some of which read what they then mask.
    targets = targets.masked_fill(_padding(targets, target_lengths), 1 if blank == 0 else 0)
    # With int64 lengths torch runs its own kernel, which has none of cuDNN's limits.
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        targets,
        lengths.long(),
        target_lengths.long(),
        blank=blank,
        reduction="none",
    )


def ctc_forward_reference(
    log_probs: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    blank: int = 0,
) -> Tensor:
    """Compute the loss of :func:`ctc_loss` by the recursion as the paper writes it.

    A reference to read and to test against, utterance by utterance; differentiable by autograd.
    The labels ``l`` are extended with blanks to ``l' = - l1 - l2 - ... lU -`` (``2U + 1`` states),
    and ``alpha[s]`` is the log-probability of all paths over the frames so far that end in state
    ``s``. A state is entered from itself, from the one before, and from two before where that
    skips a blank between two different labels::

        alpha_t[s] = log y_t[l'_s] + logsumexp(alpha[s], alpha[s-1], alpha[s-2] if allowed)

    Parameters and result are those of :func:`ctc_loss`.

    References
    ----------
    Graves et al. (2006), equations 5 to 8.

    Examples
    --------
    >>> log_probs = torch.full((1, 3, 2), 0.5).log()  # "1" twice: only the path 1 - 1
    >>> args = torch.tensor([3]), torch.tensor([[1, 1]]), torch.tensor([2])
    >>> ctc_forward_reference(log_probs, *args).neg().exp().tolist()
    [0.125]
    """
    _check(log_probs, lengths, targets, target_lengths, blank)
    losses = []
    for item, num_frames, labels, num_labels in zip(
        log_probs, lengths.tolist(), targets, target_lengths.tolist()
    ):
        extended = torch.full((2 * num_labels + 1,), blank, dtype=torch.long)
        extended[1::2] = labels[:num_labels].cpu()
        losses.append(-_forward(item[:num_frames], extended, blank))
    return torch.stack(losses)


def _forward(log_probs: Tensor, extended: Tensor, blank: int) -> Tensor:
    """Log-probability of one utterance: frames (T, V), blank-extended labels (S,)."""
    if len(log_probs) == 0:
        return log_probs.new_tensor(0.0 if len(extended) == 1 else float("-inf"))
    extended = extended.to(log_probs.device)
    never = log_probs.new_tensor(-1e30)  # -inf would turn the gradient of logsumexp into NaN
    may_skip = torch.zeros_like(extended, dtype=torch.bool)
    may_skip[2:] = (extended[2:] != blank) & (extended[2:] != extended[:-2])
    emitted = log_probs[:, extended]  # (T, S): log y_t of each state's label
    # a path begins in the first blank or in the first label
    begins = torch.arange(len(extended), device=log_probs.device) < 2
    alpha = torch.where(begins, emitted[0], never)
    for y in emitted[1:]:
        one_before = torch.cat([never[None], alpha[:-1]])
        two_before = torch.cat([never[None], one_before[:-1]])
        skipped = torch.where(may_skip, two_before, never)
        alpha = y + torch.logsumexp(torch.stack([alpha, one_before, skipped]), dim=0)
    # and ends in the last label or in the last blank
    total = torch.logsumexp(alpha[-2:], dim=0)
    return torch.where(total < -1e29, total.new_tensor(float("-inf")), total)


def _padding(targets: Tensor, target_lengths: Tensor) -> Tensor:
    return ~length_mask(target_lengths.to(targets.device), targets.shape[1])


def _check(
    log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor, blank: int
) -> None:
    if log_probs.dim() != 3 or targets.dim() != 2:
        raise ValueError(
            "log_probs must be (B, T, V) and targets (B, U), got "
            f"{tuple(log_probs.shape)} and {tuple(targets.shape)}"
        )
    batch, frames, vocab = log_probs.shape
    sizes = (len(lengths), len(targets), len(target_lengths))
    if sizes != (batch, batch, batch):
        raise ValueError(f"{batch} items in log_probs, but lengths, targets have {sizes}")
    if not 0 <= blank < vocab:
        raise ValueError(f"blank={blank} lies outside the vocabulary of {vocab}")
    if batch == 0:
        return
    if int(lengths.max()) > frames or int(target_lengths.max()) > targets.shape[1]:
        raise ValueError(
            f"lengths {lengths.tolist()} and target_lengths {target_lengths.tolist()} exceed the "
            f"padded sizes {frames} and {targets.shape[1]}"
        )
    wrong = (targets < 0) | (targets >= vocab) | (targets == blank)
    wrong &= ~_padding(targets, target_lengths)
    if bool(wrong.any()):
        item, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"item {item}: label {int(targets[item, place])} at {place} must lie in 0..{vocab - 1} "
            f"and not be the blank ({blank})"
        )
