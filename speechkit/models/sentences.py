"""Long text in parts that a synthesizer can speak."""

from __future__ import annotations

import re

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
    nothing.

    Parameters
    ----------
    text : str
        Of any length.
    max_characters : int
        No part is longer, but for a single word.

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
    return [part for clause in clauses for part in _packed(clause.split(" "), most)]


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
