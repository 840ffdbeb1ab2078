"""An n-gram model as arrays: a tree of contexts in which children are found by binary search."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

BEGIN, FINISH, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -99.0
"""Logarithm to base 10 that ARPA files write for a probability of zero."""


class NgramTables(NamedTuple):
    """All n-grams of a model; each is a node, and its first n - 1 words are its parent.

    Node 0 is the empty n-gram. The nodes of order n follow those of order n - 1 and are sorted by
    (parent, word), so that word ``w`` is node ``w + 1`` and the children of a node are neighbors.

    Attributes
    ----------
    words : list of str
        The vocabulary with ``<s>``, ``</s>`` and ``<unk>``.
    starts : list of int
        ``order + 1`` numbers: nodes ``starts[n - 1]`` to ``starts[n]`` are of order n.
    keys : array
        Shape ``(nodes - 1,)``, int64, rising: ``parent * len(words) + word`` of nodes 1, 2, ...
    log_probs : array
        Shape ``(nodes,)``, float32: logarithm to base 10 of the last word after the others.
    backoffs : array
        Shape ``(nodes,)``, float32: logarithm to base 10 of what a word that never followed costs.
    suffixes : array
        Shape ``(nodes,)``, int64: the node of the longest known n-gram that ends alike.
    """

    words: list[str]
    starts: list[int]
    keys: np.ndarray
    log_probs: np.ndarray
    backoffs: np.ndarray
    suffixes: np.ndarray

    @property
    def order(self) -> int:
        """Number of words of the longest n-grams."""
        return len(self.starts) - 1


def find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the nodes that have some keys, 0 where there is none.

    Parameters
    ----------
    keys : array
        As in `NgramTables`.
    wanted : array
        Of any shape, int64.

    Returns
    -------
    array
        Of the shape of ``wanted``.

    Examples
    --------
    >>> find(np.array([0, 1, 4]), np.array([4, 3, 0])).tolist()
    [3, 0, 1]
    """
    place = np.searchsorted(keys, wanted)
    inside = np.minimum(place, len(keys) - 1)
    return np.where(keys[inside] == wanted, inside + 1, 0)


def link_suffixes(keys: np.ndarray, starts: list[int], num_words: int) -> np.ndarray:
    """Find for each n-gram the longest known one that ends alike.

    Parameters
    ----------
    keys, starts
        As in `NgramTables`.
    num_words : int
        Size of the vocabulary.

    Returns
    -------
    array
        As ``suffixes`` of `NgramTables`.

    Examples
    --------
    Words 0 and 1, and the bigrams (0, 0) and (0, 1):

    >>> link_suffixes(np.array([0, 1, 2, 3]), [1, 3, 5], 2).tolist()
    [0, 0, 0, 1, 2]
    """
    suffixes = np.zeros(len(keys) + 1, dtype=np.int64)
    for start, stop in pairwise(starts[1:]):
        parents, words = np.divmod(keys[start - 1 : stop - 1], num_words)
        links = np.zeros(stop - start, dtype=np.int64)
        context = suffixes[parents]
        missing = np.arange(stop - start)
        while len(missing):
            found = find(keys, context[missing] * num_words + words[missing])
            links[missing] = found
            missing = missing[found == 0]
            context[missing] = suffixes[context[missing]]
        suffixes[start:stop] = links
    return suffixes


def minimal_states(tables: NgramTables, first_child: np.ndarray) -> np.ndarray:
    """Find for each n-gram the shortest one after which all words are as probable as after it.

    Parameters
    ----------
    tables : NgramTables
        The model.
    first_child : array
        Shape ``(nodes + 1,)``: where the children of each node begin in ``keys``.

    Returns
    -------
    array
        Shape ``(nodes,)``, int64.
    """
    needed = (np.diff(first_child) > 0) | (tables.backoffs != 0.0)
    states = np.arange(len(tables.log_probs))
    for start, stop in pairwise(tables.starts):
        shorter = states[tables.suffixes[start:stop]]
        states[start:stop] = np.where(needed[start:stop], states[start:stop], shorter)
    return states
