"""What a search returns."""

from __future__ import annotations

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """One label sequence that a search found.

    Attributes
    ----------
    tokens : list of int
        Labels, without blanks.
    score : float
        Log-probability that the search ranks by (nats).
    frames : list of int
        Frame at which each token begins, rising.
    ends : list of int
        Frame after each token's last one: the last frame before the next token begins at which
        the token is at least as probable as the blank (at least ``frame + 1``).
    confidences : list of float
        In [0, 1] for each token: its highest posterior probability from its frame up to the next
        token's (greedy: while it is the likeliest). From an attention decoder: the probability it
        gave the token.
    stopped : bool
        Whether the search ended it by itself; False where the maximum length cut it off.

    Examples
    --------
    >>> hypothesis = Hypothesis([4, 2], -0.5, [0, 3], [2, 4], [0.9, 0.8])
    >>> len(hypothesis.tokens) == len(hypothesis.frames)
    True
    """

    tokens: list[int]
    score: float
    frames: list[int]
    ends: list[int]
    confidences: list[float]
    stopped: bool = True
