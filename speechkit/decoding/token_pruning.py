"""All frames of an utterance, reduced to the tokens worth following, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Frames(NamedTuple):
    """The tokens of each frame that survive pruning, with p / max p."""

    offset: float  # sum of the logarithms of the divisors
    blanks: list[float]  # (T,), 0 where the blank is pruned
    starts: list[int]  # (T + 1,): where each frame's tokens lie in the next two
    tokens: np.ndarray
    probs: np.ndarray


def prune_tokens(log_probs: np.ndarray, token_min_logp: float, blank: int) -> Frames:
    """Keep each frame's tokens of at least ``token_min_logp``, and its best.

    Parameters
    ----------
    log_probs : array
        Shape ``(T, V)``, float32 or float64, contiguous, each frame with a finite maximum.
    token_min_logp : float
        Natural logarithm; ``-inf`` keeps all.
    blank : int
        Index of the blank.

    Returns
    -------
    Frames
        What is left.

    Examples
    --------
    >>> frames = prune_tokens(np.log([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]]), np.log(0.2), blank=0)
    >>> frames.starts, frames.tokens.tolist(), frames.probs.round(3).tolist(), frames.blanks
    ([0, 1, 1], [1], [0.8], [1.0, 1.0])
    """
    peaks = log_probs.max(axis=1)
    floor = np.minimum(peaks, np.asarray(token_min_logp, dtype=peaks.dtype))
    # flatnonzero is several times faster than a two-dimensional nonzero
    flat = np.flatnonzero(log_probs >= floor[:, None])
    rows, tokens = np.divmod(flat, log_probs.shape[1])
    peaks = peaks.astype(np.float64)
    probs = np.exp(log_probs.reshape(-1)[flat] - peaks[rows])
    is_blank = tokens == blank
    blanks = np.zeros(len(log_probs))
    blanks[rows[is_blank]] = probs[is_blank]
    others = ~is_blank
    rows, tokens, probs = rows[others], tokens[others], probs[others]
    starts = np.searchsorted(rows, np.arange(len(log_probs) + 1))
    return Frames(float(peaks.sum()), blanks.tolist(), starts.tolist(), tokens, probs)
