"""Forced alignment: at which frames a known transcript was spoken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.losses.ctc import min_frames


class Alignment(NamedTuple):
    """Labels of one utterance with their places, from the most probable path that carries them.

    Attributes
    ----------
    tokens : list of int
        The labels.
    starts, ends : list of int
        First frame of each label, and the frame after its last; blanks lie between.
    scores : list of float
        Mean posterior probability of each label over its frames, in [0, 1].
    score : float
        Log-probability of the whole path, blanks included (nats).
    """

    tokens: list[int]
    starts: list[int]
    ends: list[int]
    scores: list[float]
    score: float


def forced_align(
    log_probs: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    blank: int = 0,
    names: Sequence[str] | None = None,
) -> list[Alignment]:
    """Find the most probable CTC path of each utterance that collapses to its labels (Viterbi).

    Parameters
    ----------
    log_probs : Tensor
        Shape ``(B, T, V)``, log-softmax over ``V``. Frames beyond ``lengths`` change nothing.
    lengths : Tensor
        Shape ``(B,)``, integer: valid frames.
    targets : Tensor
        Shape ``(B, U)``, integer labels without blanks.
    target_lengths : Tensor
        Shape ``(B,)``, integer: valid labels (may be 0).
    blank : int
        Index of the blank.
    names : sequence of str, optional
        What to call the items in errors, such as utterance ids.

    Returns
    -------
    list of Alignment
        One for each item. A frame lasts what the model's subsampling makes of it: multiply by its
        seconds.

    Raises
    ------
    ValueError
        Where labels need more frames than there are, or lie outside ``V``, or where the
        log-probabilities hold NaN or leave the labels no path; the item is named.

    References
    ----------
    Kürzinger et al. (2020), "CTC-segmentation of large corpora for German end-to-end speech
    recognition", describe the trellis; the kernel is torchaudio's.

    Examples
    --------
    >>> log_probs = torch.tensor([[[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]]]).log()
    >>> one = forced_align(log_probs, torch.tensor([3]), torch.tensor([[1, 2]]), torch.tensor([2]))
    >>> one[0].starts, one[0].ends
    ([0, 2], [1, 3])
    """
    batch = len(log_probs)
    if log_probs.dim() != 3 or targets.dim() != 2 or len(targets) != batch:
        raise ValueError(
            "log_probs must be (B, T, V) and targets (B, U), got "
            f"{tuple(log_probs.shape)} and {tuple(targets.shape)}"
        )
    if len(lengths) != batch or len(target_lengths) != batch:
        raise ValueError(f"{batch} items, but {len(lengths)} and {len(target_lengths)} lengths")
    alignments = []
    sizes = zip(lengths.tolist(), target_lengths.tolist())
    for index, (num_frames, num_labels) in enumerate(sizes):
        name = f"item {index}" if names is None else f"item {index} ({names[index]})"
        frames = log_probs[index, :num_frames].detach()
        labels = targets[index, :num_labels]
        _check_item(frames, labels, blank, name)
        alignments.append(_align_item(frames, labels, blank, name))
    return alignments


def _check_item(log_probs: Tensor, labels: Tensor, blank: int, name: str) -> None:
    needed, (num_frames, vocab) = min_frames(labels), log_probs.shape
    if needed > num_frames:
        raise ValueError(
            f"{name}: {len(labels)} labels need at least {needed} frames (a blank stands between "
            f"equal ones), but there are {num_frames}; shorten the transcript, or use a model that "
            "subsamples less or longer tokens"
        )
    wrong = [label for label in labels.tolist() if not 0 <= label < vocab or label == blank]
    if wrong:
        raise ValueError(
            f"{name}: label {wrong[0]} must lie in 0..{vocab - 1} and not be the blank ({blank})"
        )
    if bool(log_probs.isnan().any()):
        raise ValueError(f"{name}: the log-probabilities hold NaN; look at the model and its input")


def _align_item(log_probs: Tensor, labels: Tensor, blank: int, name: str) -> Alignment:
    if len(labels) == 0:  # the kernel wants at least one label
        return Alignment([], [], [], [], float(log_probs[:, blank].double().sum()))
    from torchaudio.functional import forced_align as align_path

    if log_probs.dtype not in (torch.float32, torch.float64):
        log_probs = log_probs.float()
    labels = labels.to(device=log_probs.device, dtype=torch.int64)
    path, emitted = align_path(log_probs[None].contiguous(), labels[None], blank=blank)
    ids, logs = path[0].tolist(), emitted[0].double()
    score = float(logs.sum())
    if score == float("-inf"):
        raise ValueError(f"{name}: no path of these labels has a probability above zero")
    probs = logs.exp().tolist()
    starts: list[int] = []
    ends: list[int] = []
    previous = blank
    for frame, label in enumerate(ids):
        if label != blank:
            if label != previous:
                starts.append(frame)
                ends.append(frame)
            ends[-1] = frame + 1
        previous = label
    scores = [sum(probs[a:b]) / (b - a) for a, b in zip(starts, ends)]
    return Alignment(labels.tolist(), starts, ends, scores, score)
