"""Long text in parts that a synthesizer can speak."""

from __future__ import annotations

import logging
import re

logger = logging.getLogger(__name__)

_END = re.compile(r"(?<=[.!?…;:])[\"')\]”’]*\s+|\n{2,}")
_SHORTENED = re.compile(
    r"(?:^|[\s(\"'])(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|[a-z])\.$",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(?:^|[\s(\"'])(?:no|nos|vol|fig|pp)\.$", re.IGNORECASE)
_WEAK = re.compile(r"(?<=[,–—])\s+|\s+(?=[(–—])")


def split_sentences(text: str, *, max_characters: int = 250) -> list[str]:
    """Cut text at the ends of its sentences; a longer one at commas, else between words.

    A point after "Mr." and its like, a single letter, or "No." and its like before a number ends
    nothing. A word that is too long by itself is cut inside, and the log says so.

    Parameters
    ----------
    text : str
        Of any length.
    max_characters : int
        No part is longer.

    Returns
    -------
    list of str
        In order, without surrounding space; none of nothing.

    Raises
    ------
    ValueError
        If ``max_characters`` is below 1.

    Examples
    --------
    >>> split_sentences("Mr. Hall left. Why? Nobody, so far, knows.", max_characters=15)
    ['Mr. Hall left.', 'Why?', 'Nobody, so far,', 'knows.']
    """
    if max_characters < 1:
        raise ValueError(f"max_characters must be at least 1, got {max_characters}")
    sentences: list[str] = []
    start = 0
    for match in _END.finditer(text):
        head = text[start : match.start()]
        goes_on = _SHORTENED.search(head) or (
            _NUMBERED.search(head) and text[match.end() : match.end() + 1].isdigit()
        )
        if match.group().startswith("\n\n") or not goes_on:
            sentences.append(text[start : match.end()])
            start = match.end()
    sentences.append(text[start:])
    parts: list[str] = []
    for sentence in sentences:
        words = " ".join(sentence.split())
        parts.extend(_shortened(words, max_characters) if words else [])
    return parts


def _shortened(sentence: str, most: int) -> list[str]:
    """Cut one sentence at commas where it is too long, and at spaces where that is not enough."""
    if len(sentence) <= most:
        return [sentence]
    clauses = _packed(_WEAK.split(sentence), most)
    return [part for clause in clauses for part in _packed(_words(clause, most), most)]


def _words(clause: str, most: int) -> list[str]:
    """Cut a clause between words, and inside those that are too long."""
    words = []
    for word in clause.split(" "):
        parts = [word[start : start + most] for start in range(0, len(word), most)]
        if len(parts) > 1:
            logger.warning(
                "a word of %d characters, %r, is cut into %d parts of at most %d, which are spoken "
                "one by one; put spaces where it may be cut",
                len(word), f"{word[:30]}...", len(parts), most,
            )  # fmt: skip
        words += parts
    return words


def _packed(pieces: list[str], most: int) -> list[str]:
    """Join neighbours as long as they fit."""
    lines = [pieces[0]]
    for piece in pieces[1:]:
        joined = f"{lines[-1]} {piece}"
        if len(joined) <= most:
            lines[-1] = joined
        else:
            lines.append(piece)
    return lines
