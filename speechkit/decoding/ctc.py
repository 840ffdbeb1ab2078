"""CTC decoding: greedy, and prefix beam search."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import numpy as np
from torch import Tensor

from speechkit.decoding.hypothesis import Hypothesis
from speechkit.decoding.prefix_beam import Limits, Search
from speechkit.decoding.scorer import PrefixScorer


def collapse(ids: Sequence[int], *, blank: int = 0) -> list[int]:
    """Turn a path into labels: merge repeats, then drop blanks (Graves et al., 2006, section 3.1).

    Parameters
    ----------
    ids : sequence of int
        One label or blank for each frame.
    blank : int
        Index of the blank.

    Returns
    -------
    list of int
        The labels.

    Examples
    --------
    >>> collapse([0, 1, 1, 0, 1, 2, 2, 0])
    [1, 1, 2]
    """
    return [label for label, _ in groupby(ids) if label != blank]


def greedy(log_probs: Tensor, lengths: Tensor, *, blank: int = 0) -> list[Hypothesis]:
    """Take the best label of every frame, and collapse.

    Parameters
    ----------
    log_probs : Tensor
        Shape ``(B, T, V)``, log-softmax over ``V``.
    lengths : Tensor
        Shape ``(B,)``, integer: valid frames; what lies beyond changes nothing.
    blank : int
        Index of the blank.

    Returns
    -------
    list of Hypothesis
        One for each item; its score is the log-probability of the best path alone.

    Raises
    ------
    ValueError
        Where shapes disagree, or valid frames hold NaN or no probability at all.

    Examples
    --------
    >>> import torch
    >>> log_probs = torch.tensor([[[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]]).log()
    >>> best = greedy(log_probs, torch.tensor([3]))[0]
    >>> best.tokens, best.frames, best.ends, round(best.confidences[0], 4)
    ([1, 2], [0, 2], [2, 3], 0.8)
    """
    return [
        greedy_path(item.argmax(axis=1), item.max(axis=1, initial=-np.inf), blank=blank)
        for item in _items(log_probs, lengths, blank)
    ]


def greedy_path(labels: np.ndarray, log_probs: np.ndarray, *, blank: int = 0) -> Hypothesis:
    """Collapse the best label of every frame, for those who kept no more of the posteriors.

    Parameters
    ----------
    labels : array
        Shape ``(T,)``, the best label of each frame.
    log_probs : array
        Shape ``(T,)``, its log-probability.
    blank : int
        Index of the blank.

    Returns
    -------
    Hypothesis
        As `greedy` gives it.

    Examples
    --------
    >>> best = greedy_path(np.array([0, 1, 1, 2]), np.log([0.9, 0.5, 0.8, 0.7]))
    >>> best.tokens, best.frames, best.ends, [round(c, 4) for c in best.confidences]
    ([1, 2], [1, 3], [3, 4], [0.8, 0.7])
    """
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    spoken = labels[starts] != blank
    ends = np.append(starts[1:], len(labels))[spoken]
    peaks = np.maximum.reduceat(log_probs, starts)[spoken] if len(starts) else log_probs
    return Hypothesis(
        labels[starts][spoken].tolist(),
        float(log_probs.astype(np.float64).sum()),
        starts[spoken].tolist(),
        ends.tolist(),
        np.minimum(np.exp(peaks.astype(np.float64)), 1.0).tolist(),
    )


class PrefixBeamSearch:
    """Search for the label sequences of the highest probability, summed over all of their paths.

    Each prefix in the beam keeps the probability of its paths that end in a blank apart from that
    of the paths that end in its last label, so that paths which collapse to the same labels add up.
    With nothing pruned the scores are exact; what is pruned makes them smaller, by little.

    Parameters
    ----------
    beam_size : int
        How many prefixes survive a frame.
    nbest : int
        How many hypotheses to return at most.
    blank : int
        Index of the blank.
    token_min_logp : float
        Labels less probable than this in a frame are left out there, unless they are its best;
        ``-inf`` leaves out none.
    beam_prune_logp : float
        Prefixes whose log-probability lies further below the best one's are dropped; values below
        -300 count as -300.
    scorer : PrefixScorer or None
        A language model, word list or bonus: adds to the score of each prefix.
    beam_unit : {"prefix", "ending"}
        What ``beam_size`` and ``beam_prune_logp`` speak of: a prefix with both of its
        probabilities (the papers), or each of the two by itself (pyctcdecode and SpeechBrain's
        CTCBeamSearcher, which thereby keep fewer prefixes at the same beam size).

    Raises
    ------
    ValueError
        Where an option makes no sense.

    References
    ----------
    Graves (2012), "Supervised sequence labelling with recurrent neural networks", section 7.5.3;
    Hannun, Maas, Jurafsky and Ng (2014), "First-pass large vocabulary continuous speech
    recognition using bi-directional recurrent DNNs", algorithm 1.

    Examples
    --------
    The best path is two blanks (0.36), but three paths together make label 1 (0.64):

    >>> import math, torch
    >>> log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    >>> search = PrefixBeamSearch(beam_size=2, nbest=2)
    >>> [(h.tokens, round(math.exp(h.score), 2)) for h in search(log_probs, torch.tensor([2]))[0]]
    [([1], 0.64), ([], 0.36)]
    """

    def __init__(
        self,
        *,
        beam_size: int = 10,
        nbest: int = 1,
        blank: int = 0,
        token_min_logp: float = -5.0,
        beam_prune_logp: float = -10.0,
        scorer: PrefixScorer | None = None,
        beam_unit: Literal["prefix", "ending"] = "prefix",
    ) -> None:
        if beam_size < 1 or not 1 <= nbest <= beam_size:
            raise ValueError(
                f"1 <= nbest <= beam_size must hold, got nbest={nbest}, beam_size={beam_size}"
            )
        if not (token_min_logp <= 0.0 and beam_prune_logp <= 0.0):
            raise ValueError(
                "token_min_logp and beam_prune_logp are log-probabilities, at most 0; got "
                f"{token_min_logp} and {beam_prune_logp}"
            )
        if beam_unit not in ("prefix", "ending"):
            raise ValueError(f"beam_unit must be 'prefix' or 'ending', got {beam_unit!r}")
        self.beam_size = beam_size
        self.nbest = nbest
        self.blank = blank
        self.token_min_logp = token_min_logp
        self.beam_prune_logp = beam_prune_logp
        self.scorer = scorer
        self.beam_unit = beam_unit

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Search each item of a batch.

        Parameters
        ----------
        log_probs : Tensor
            Shape ``(B, T, V)``, log-softmax over ``V``; computed with in float64.
        lengths : Tensor
            Shape ``(B,)``, integer: valid frames; what lies beyond changes nothing.

        Returns
        -------
        list of list of Hypothesis
            For each item 1 to ``nbest`` hypotheses, the best first. ``score`` is the natural
            logarithm of the probability of all paths that survived, plus what the scorer added;
            ``frames`` follow the heaviest of the paths wherever several met.

        Raises
        ------
        ValueError
            Where shapes disagree, or valid frames hold NaN or no probability at all.
        """
        limits = Limits(
            self.beam_size, self.token_min_logp, self.beam_prune_logp, self.beam_unit == "ending"
        )
        results = []
        for item in _items(log_probs, lengths, self.blank):
            found = Search(item, limits, self.blank, self.scorer).run(self.nbest)
            results.append([
                _hypothesis(
                    item,
                    np.asarray(one.tokens, dtype=np.int64),
                    np.asarray(one.frames, dtype=np.int64),
                    one.score,
                    self.blank,
                )
                for one in found
            ])  # fmt: skip
        return results


def _hypothesis(
    log_probs: np.ndarray, tokens: np.ndarray, frames: np.ndarray, score: float, blank: int
) -> Hypothesis:
    """Add ends and confidences to the tokens (U,) that begin at frames (U,)."""
    if len(tokens) == 0:
        return Hypothesis([], score, [], [], [])
    first, num_frames = int(frames[0]), len(log_probs)
    stretch = np.diff(frames, append=num_frames)
    times = np.arange(first, num_frames)
    own = log_probs[times, np.repeat(tokens, stretch)]  # (T - first,): each frame's own token
    places = frames - first
    spoken = np.where(own >= log_probs[first:, blank], times, 0)
    ends = np.maximum(np.maximum.reduceat(spoken, places), frames) + 1
    confidences = np.exp(np.maximum.reduceat(own, places).astype(np.float64))
    return Hypothesis(
        tokens.tolist(), score, frames.tolist(), ends.tolist(), np.minimum(confidences, 1).tolist()
    )


def _items(log_probs: Tensor, lengths: Tensor, blank: int) -> list[np.ndarray]:
    """Check a batch and cut it into float32 or float64 arrays (T, V) without padding."""
    if log_probs.dim() != 3 or lengths.shape != log_probs.shape[:1]:
        raise ValueError(
            "log_probs must be (B, T, V) and lengths (B,), got "
            f"{tuple(log_probs.shape)} and {tuple(lengths.shape)}"
        )
    if not 0 <= blank < log_probs.shape[2]:
        raise ValueError(f"blank={blank} lies outside the vocabulary of {log_probs.shape[2]}")
    data = log_probs.detach().cpu()
    if data.dtype.itemsize < 4:
        data = data.float()
    items = []
    for index, length in enumerate(lengths.tolist()):
        if not 0 <= length <= log_probs.shape[1]:
            raise ValueError(f"item {index}: length {length} outside 0..{log_probs.shape[1]}")
        item = data[index, :length].numpy()
        peaks = item.max(axis=1) if length else np.zeros(0)
        if not np.isfinite(peaks).all():
            frame = int(np.flatnonzero(~np.isfinite(peaks))[0])
            raise ValueError(
                f"item {index}, frame {frame}: the log-probabilities hold NaN or no finite value; "
                "look at the model's output and at its input audio"
            )
        items.append(item)
    return items
