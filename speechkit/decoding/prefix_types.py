"""What the prefix beam search is told, keeps of a beam, and finds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Entry = tuple[float, float, float, int, int, int, int]
"""A prefix: mass, ends_blank, ends_token, node, parent node, last token, trace."""


class Limits(NamedTuple):
    """What a search keeps: see ``PrefixBeamSearch`` for the meaning of each."""

    beam_size: int
    token_min_logp: float
    beam_prune_logp: float
    count_endings: bool


class Found(NamedTuple):
    """A prefix that survived: tokens, the frame at which each begins, log-probability."""

    tokens: list[int]
    frames: list[int]
    score: float


class Arrays(NamedTuple):
    """A beam of N prefixes as arrays."""

    masses: np.ndarray  # (2, N): ends_blank, ends_token
    links: np.ndarray  # (4, N): node, parent node, last token, trace
