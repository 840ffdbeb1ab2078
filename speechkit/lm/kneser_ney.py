"""Interpolated modified Kneser-Ney estimation (Chen & Goodman, 1999), as kenlm's lmplz does it.

- A sentence is ``<s> words </s>``. Orders below the highest count the different words to the left
  of an n-gram instead of its occurrences, except where it begins with ``<s>``, which nothing
  precedes.
- Each order has three discounts, for counts of 1, 2 and more, from its counts of counts
  (equation 26).
- Unigrams are interpolated with the uniform distribution over all words, ``</s>`` and ``<unk>``;
  ``<unk>`` gets that share alone where the text never holds it. ``<s>`` is never predicted.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from speechkit.data.errors import DataError
from speechkit.lm.tables import BEGIN, FINISH, NEVER, UNKNOWN, NgramTables

logger = logging.getLogger(__name__)

Text = str | Sequence[str]
_SPECIAL = (UNKNOWN, BEGIN, FINISH)


def split_text(text: Text) -> Sequence[str]:
    """Part a text at white space; a sequence is already parted."""
    return text.split() if isinstance(text, str) else text


def estimate(
    texts: Iterable[Text],
    *,
    order: int,
    vocabulary: Iterable[str] | None,
    discount_fallback: Sequence[float],
) -> NgramTables:
    """Estimate a model; see `speechkit.lm.ngram.NgramModel.estimate`."""
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    fallback = np.array([0.0, *discount_fallback])
    if len(fallback) != 4 or not all(0.0 < fallback[k] <= k for k in (1, 2, 3)):
        raise ValueError(
            f"discount_fallback must be three numbers above 0, at most 1, 2 and 3, for counts of "
            f"1, 2 and more; got {list(discount_fallback)}"
        )
    words, tokens = _number(texts, vocabulary)
    levels = _count(tokens, len(words), words.index(BEGIN), order)
    _adjust(levels, words.index(BEGIN))
    return _interpolate(levels, words, fallback)


def discounts(counts: np.ndarray) -> np.ndarray | None:
    """Compute the discounts of counts 0, 1, 2 and 3 or more (Chen & Goodman, 1999, equation 26).

    Parameters
    ----------
    counts : array
        The adjusted counts of all n-grams of an order.

    Returns
    -------
    array or None
        Shape ``(4,)``; None where the counts of counts give no discount in [0, count].

    Examples
    --------
    >>> discounts(np.array([1] * 8 + [2] * 4 + [3] * 2 + [4])).tolist()
    [0.0, 0.5, 1.25, 2.0]
    """
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if 0 in (n1, n2, n3):
        return None
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return found if (found >= 0.0).all() and (found <= np.arange(4)).all() else None


class _Level:
    """The n-grams of an order: sorted keys, counts, suffixes and whether ``<s>`` is the first."""

    def __init__(self, keys: np.ndarray, first: int) -> None:
        self.keys = keys
        self.first = first  # node of the first of them
        self.counts = np.zeros(len(keys), dtype=np.int64)
        self.suffixes = np.zeros(len(keys), dtype=np.int64)
        self.begins = np.zeros(len(keys), dtype=bool)


class _Numbered(NamedTuple):
    words: list[str]
    tokens: np.ndarray


def _number(texts: Iterable[Text], vocabulary: Iterable[str] | None) -> _Numbered:
    """Turn texts into one array of word ids, sentences between ``<s>`` and ``</s>``."""
    if isinstance(texts, str):
        raise TypeError(f"texts must be an iterable of texts, got one string: {texts[:40]!r}")
    ids = {word: i for i, word in enumerate(_SPECIAL)}
    if vocabulary is not None:
        for word in vocabulary:
            ids.setdefault(word, len(ids))
    tokens = array("i")
    lines = 0
    for lines, text in enumerate(texts, 1):
        tokens.append(1)
        for word in split_text(text):
            index = ids.get(word)
            if index is None:
                index = 0 if vocabulary is not None else ids.setdefault(word, len(ids))
            elif index < 3 and not (index == 0 and vocabulary is not None):
                raise DataError(
                    f"text {lines} holds {word!r}, which a language model keeps for itself; "
                    "leave it out of the text"
                )
            tokens.append(index)
        tokens.append(2)
    if not lines:
        raise DataError("no text to estimate a language model from; give it at least one sentence")
    wrong = [word for word in ids if not word or any(c in word for c in " \t\r\n")]
    if wrong:
        raise DataError(
            f"words that an ARPA file cannot hold: {wrong[:10]!r}; words are not empty and have no "
            "white space in them (write a space as U+2581)"
        )
    words = sorted(ids)
    rank = np.empty(len(words), dtype=np.int64)
    for new, word in enumerate(words):
        rank[ids[word]] = new
    return _Numbered(words, rank[np.frombuffer(tokens, dtype=np.int32)])


def _count(tokens: np.ndarray, num_words: int, begin: int, order: int) -> list[_Level]:
    """Count the n-grams of each order."""
    level = _Level(np.arange(num_words), first=1)
    level.counts = np.bincount(tokens, minlength=num_words)
    level.begins[begin] = True
    levels = [level]
    node_at = tokens + 1  # the n-gram that ends at each token, 0 where none does
    for _ in range(order - 1):
        ends = 1 + np.flatnonzero((node_at[:-1] > 0) & (tokens[1:] != begin))
        keys, places, counts = np.unique(
            node_at[ends - 1] * num_words + tokens[ends], return_inverse=True, return_counts=True
        )
        new = _Level(keys, first=level.first + len(level.keys))
        new.counts = counts
        new.suffixes[places] = node_at[ends]
        new.begins = level.begins[keys // num_words - level.first]
        node_at = np.zeros_like(node_at)
        node_at[ends] = new.first + places
        levels.append(new)
        level = new
    return levels


def _adjust(levels: list[_Level], begin: int) -> None:
    """Replace the counts of lower orders by the numbers of different words to the left."""
    for level, longer in pairwise(levels):
        left = np.bincount(longer.suffixes - level.first, minlength=len(level.keys))
        level.counts = np.where(level.begins, level.counts, left)
    levels[0].counts[begin] = 0


def _interpolate(levels: list[_Level], words: list[str], fallback: np.ndarray) -> NgramTables:
    """Turn counts into probabilities, from the lowest order up."""
    nodes = levels[-1].first + len(levels[-1].keys)
    probs = np.empty(nodes)  # float64 until all orders are done
    probs[0] = 1.0 / (len(words) - 1)  # all but <s>
    backoffs = np.zeros(nodes)
    for order, level in enumerate(levels, 1):
        found = discounts(level.counts)
        if found is None:
            logger.warning(
                "the counts of %d-grams give no discounts (little or artificial text): %s are "
                "taken for counts of 1, 2, 3 and more",
                order,
                fallback[1:].tolist(),
            )
            found = fallback
        taken = found[np.minimum(level.counts, 3)]
        parents = level.keys // len(words)
        totals = np.bincount(parents, level.counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.bincount(parents, taken) / totals  # NaN where nothing follows
            logs = np.log10(shares)
        here = slice(level.first, level.first + len(level.keys))
        probs[here] = (level.counts - taken) / totals[parents]
        probs[here] += shares[parents] * probs[level.suffixes]
        backoffs[: len(shares)][totals > 0] = logs[totals > 0]
    with np.errstate(divide="ignore"):
        log_probs = np.maximum(np.log10(probs), NEVER)
    log_probs[1 + words.index(BEGIN)] = NEVER
    log_probs[0] = backoffs[0] = 0.0
    return NgramTables(
        words,
        [level.first for level in levels] + [nodes],
        np.concatenate([level.keys for level in levels]),
        log_probs.astype(np.float32),
        np.maximum(backoffs, NEVER).astype(np.float32),
        np.concatenate([np.zeros(1, dtype=np.int64), *(level.suffixes for level in levels)]),
    )
