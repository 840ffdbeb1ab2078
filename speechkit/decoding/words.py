"""From tokens to words, with their times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character


class WordSpan(NamedTuple):
    """A word with its frames ``[start, end)`` and the mean score of its tokens."""

    text: str
    start: int
    end: int
    score: float


def split_words(pieces: Sequence[str]) -> list[list[int]]:
    """Part tokens into words, at spaces (character tokenizers) and SentencePiece's marks.

    Parameters
    ----------
    pieces : sequence of str
        The text of each token.

    Returns
    -------
    list of list of int
        For each word the positions of its tokens; a token that is nothing but a space is in none.

    Examples
    --------
    >>> split_words(["▁he", "y", "▁", "you"]), split_words(list("a bc"))
    ([[0, 1], [3]], [[0], [2, 3]])
    """
    words: list[list[int]] = [[]]
    for index, piece in enumerate(pieces):
        text = piece.replace(SPACE_MARK, " ")
        if text.startswith(" "):
            words.append([])
        if text.strip(" "):
            words[-1].append(index)
        if text.endswith(" "):
            words.append([])
    return [word for word in words if word]


def group_words(
    pieces: Sequence[str], starts: Sequence[int], ends: Sequence[int], scores: Sequence[float]
) -> list[WordSpan]:
    """Join tokens to words, with their times.

    Works on an `Alignment` and on a decoder's `Hypothesis` alike.

    Parameters
    ----------
    pieces : sequence of str
        The text of each token.
    starts, ends : sequence of int
        Frames ``[start, end)`` of each token.
    scores : sequence of float
        One for each token.

    Returns
    -------
    list of WordSpan
        From the first to the last token that gives the word a letter; a boundary alone has no part
        in times and scores.

    Raises
    ------
    ValueError
        Where the four differ in length.

    Examples
    --------
    >>> [tuple(word) for word in group_words(["▁he", "y", "▁", "you"], [0, 2, 5, 6], [1, 3, 6, 9],
    ...                                      [1.0, 0.5, 0.1, 0.9])]
    [('hey', 0, 3, 0.75), ('you', 6, 9, 0.9)]
    """
    if not len(pieces) == len(starts) == len(ends) == len(scores):
        raise ValueError(
            "pieces, starts, ends and scores differ in length: "
            f"{len(pieces)}, {len(starts)}, {len(ends)}, {len(scores)}"
        )
    spans = []
    for word in split_words(pieces):
        text = "".join(pieces[i] for i in word).replace(SPACE_MARK, " ").strip(" ")
        mean = sum(scores[i] for i in word) / len(word)
        spans.append(WordSpan(text, starts[word[0]], ends[word[-1]], mean))
    return spans
