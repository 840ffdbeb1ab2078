"""Whether a recogniser listens: blank rate, and how diagonal and how flat its attention is.

Speech is read from left to right, so an attention that works is a diagonal: a later label looks at
a later frame. Two failures show long before the error rate does, an output that is all blank and an
attention that is flat; `diagnose` says in words what they usually mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.nn.masking import length_mask, mask_padding

ALL_BLANK = 0.99
"""Blank rate above which the output is called empty."""
NOT_DIAGONAL = 0.2
"""Diagonality below which labels are said not to follow the audio; flat attention has 0."""
FLAT = 0.9
"""Entropy above which such an attention is called flat; 1 is the same weight for every frame."""


class Finding(NamedTuple):
    """Something that is wrong with a model's alignments.

    Attributes
    ----------
    kind : str
        ``"all blank"``, ``"flat attention"`` or ``"stray attention"``.
    what : str
        What was measured, in a sentence.
    advice : str
        What it usually means, and what to try.
    """

    kind: str
    what: str
    advice: str


def blank_rate(log_probs: Tensor, lengths: Tensor, blank: int = 0) -> Tensor:
    """Give the share of frames at which the blank is the likeliest label.

    Parameters
    ----------
    log_probs : Tensor
        Shape ``(B, T, V)``, of a CTC output; any scores that rank alike will do.
    lengths : Tensor
        Shape ``(B,)``, valid frames.
    blank : int
        The blank's label.

    Returns
    -------
    Tensor
        Shape ``(B,)``, float32 in [0, 1]; NaN for an item without frames.

    Examples
    --------
    >>> scores = torch.tensor([[[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]]])
    >>> blank_rate(scores, torch.tensor([2])).tolist()
    [0.5]
    """
    is_blank = log_probs.argmax(dim=-1) == blank  # (B, T)
    return mask_padding(is_blank, lengths, value=False).sum(dim=1) / lengths


def attention_diagonality(weights: Tensor, token_lengths: Tensor, lengths: Tensor) -> Tensor:
    r"""Give the correlation of label and time in an attention matrix.

    The matrix, divided by its sum, is a joint distribution :math:`p(u, t)` of label index and
    frame, and the result is Pearson's coefficient under it:

    .. math:: r = \frac{\operatorname{cov}_p(u, t)}{\sqrt{\operatorname{var}_p(u)
              \operatorname{var}_p(t)}}

    It is 1 only where all mass lies on a rising straight line, whatever the line's slope and
    beginning: silence at the ends and the pace of speech cost nothing. Real alignments bend with
    the pace, and good ones have 0.9 and more. It is exactly 0 where every label has the same
    weights (flat attention, or one that is stuck at some frames), around 0 (standard deviation
    about ``1 / sqrt(U)``) where each label looks at a random frame, and -1 on the falling diagonal.

    The diagonality of Zhang et al. 2020, "On the usefulness of self-attention for automatic speech
    recognition with transformers", and that of Shim et al. 2022, "Understanding the role of self
    attention for efficient speech recognition", are for square self-attention, where the line is
    known; the correlation needs no line and no width of a band.

    Parameters
    ----------
    weights : Tensor
        Shape ``(B, U, T)``, not negative: row ``u`` says which frames label ``u`` came from.
    token_lengths, lengths : Tensor
        Shape ``(B,)``, valid rows and frames.

    Returns
    -------
    Tensor
        Shape ``(B,)``, float32 in [-1, 1]; NaN for an item with less than two rows or two frames,
        which has no diagonal.

    Examples
    --------
    >>> weights = torch.stack([torch.eye(4), torch.full((4, 4), 0.25)])
    >>> attention_diagonality(weights, torch.tensor([4, 4]), torch.tensor([4, 4])).tolist()
    [1.0, 0.0]
    """
    weights = _masked(weights, token_lengths, lengths)
    mass = weights.sum(dim=(1, 2)).clamp(min=1e-30)

    def centered(marginal: Tensor) -> tuple[Tensor, Tensor]:  # (B, N) -> (B, N), (B,)
        position = torch.arange(marginal.shape[1], device=marginal.device, dtype=marginal.dtype)
        mean = (marginal * position).sum(dim=1) / mass
        position = position - mean.unsqueeze(1)
        return position, (marginal * position.square()).sum(dim=1) / mass

    rows, row_variance = centered(weights.sum(dim=2))
    frames, frame_variance = centered(weights.sum(dim=1))
    covariance = torch.einsum("but,bu,bt->b", weights, rows, frames) / mass
    # All mass on one frame leaves rounding errors for a variance.
    stuck = torch.minimum(row_variance, frame_variance) < 1e-4
    product = (row_variance * frame_variance).clamp(min=1e-12)
    r = (covariance / product.sqrt()).clamp(-1, 1).masked_fill(stuck, 0.0)
    return r.masked_fill((token_lengths < 2) | (lengths < 2), math.nan)


def attention_entropy(weights: Tensor, token_lengths: Tensor, lengths: Tensor) -> Tensor:
    """Give the mean entropy of an attention's rows, as a share of the highest possible.

    ``mean_u H(weights[u]) / log(T)``: 1 is flat, 0 is one frame a label.

    Parameters
    ----------
    weights : Tensor
        Shape ``(B, U, T)``, rows sum to 1 over the valid frames.
    token_lengths, lengths : Tensor
        Shape ``(B,)``, valid rows and frames.

    Returns
    -------
    Tensor
        Shape ``(B,)``, float32 in [0, 1]; NaN for an item without rows or with less than two
        frames.

    Examples
    --------
    >>> weights = torch.stack([torch.eye(4), torch.full((4, 4), 0.25)])
    >>> attention_entropy(weights, torch.tensor([4, 4]), torch.tensor([4, 4])).tolist()
    [0.0, 1.0]
    """
    weights = _masked(weights, token_lengths, lengths)
    entropy = torch.special.entr(weights).sum(dim=(1, 2)) / token_lengths  # (B,)
    share = (entropy / lengths.clamp(min=2).log()).clamp(0, 1)
    return share.masked_fill((token_lengths < 1) | (lengths < 2), math.nan)


def _masked(weights: Tensor, token_lengths: Tensor, lengths: Tensor) -> Tensor:
    """Give the weights in float32, with zeros in the padding of both axes."""
    frames = length_mask(lengths, weights.shape[2]).unsqueeze(1)  # (B, 1, T)
    return mask_padding(weights.float().masked_fill(~frames, 0.0), token_lengths)


def diagnose(values: Mapping[str, float]) -> list[Finding]:
    """Say what the numbers of a validation mean, where they mean trouble.

    Parameters
    ----------
    values : mapping
        ``blank_rate``, ``attention_diagonality`` and ``attention_entropy``, means over the
        validation set; those that are missing are not judged.

    Returns
    -------
    list of Finding
        Empty where nothing is wrong.

    Examples
    --------
    >>> [finding.kind for finding in diagnose({"blank_rate": 1.0})]
    ['all blank']
    >>> diagnose({"blank_rate": 0.7, "attention_diagonality": 0.95, "attention_entropy": 0.2})
    []
    """
    findings = []
    blanks = values.get("blank_rate", 0.0)
    if blanks > ALL_BLANK:
        findings.append(
            Finding(
                "all blank",
                f"the CTC output is blank at {100 * blanks:.1f} % of the frames, so hypotheses are "
                "empty or nearly so",
                "In the first epochs this is the plateau that CTC starts from. If it stays: lower "
                "the learning rate or make its warm-up longer; see that ten utterances can be "
                "learnt by heart, and if not, that texts belong to their audio; use smaller "
                "labels (characters), or more frames a label (a smaller stride).",
            )
        )
    diagonality = round(values.get("attention_diagonality", 1.0), 2) + 0.0  # no -0.00
    if diagonality >= NOT_DIAGONAL:
        return findings
    entropy = values.get("attention_entropy", 1.0)
    if entropy > FLAT:
        findings.append(
            Finding(
                "flat attention",
                f"the attention is flat (entropy {entropy:.2f} of 1, diagonality "
                f"{diagonality:.2f}): all frames weigh alike, whatever the label",
                "The decoder hardly uses the audio and works as a language model, which writes "
                "likely sentences whatever was said. In the first epochs this is usual, with the "
                "mean of all frames for a context it is meant. If it stays: train jointly with "
                "CTC, whose loss teaches the encoder what is where; begin with short utterances; "
                "use fewer frames a label (a larger stride); lower the learning rate; use "
                "location-sensitive attention or a smaller decoder.",
            )
        )
    else:
        findings.append(
            Finding(
                "stray attention",
                f"the attention does not move with the labels (diagonality {diagonality:.2f}) "
                f"though it picks out frames (entropy {entropy:.2f} of 1)",
                "Each label looks at the same place, or at places in no order: the decoder has "
                "found something to tell utterances apart by, not what is said where. If it "
                "stays: train jointly with CTC, use location-sensitive attention, begin with "
                "short utterances; of an attention with several heads, look at each by itself.",
            )
        )
    return findings
