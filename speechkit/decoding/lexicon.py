"""A word list as a scorer: for tasks whose words are all known, such as digits or commands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_UNKNOWN = "\0"
"""State of a prefix inside a word that the list does not have."""


class Lexicon:
    """Makes a search pay for every word that is not in a list.

    A prefix pays once, at the token with which its last word stops being the beginning of any
    listed word, or at the word's end where it stops too early.

    Parameters
    ----------
    words : sequence of str
        The list.
    pieces : sequence of str
        The string of each label, as a tokenizer's ``pieces``: a space or U+2581 begins a word.
    penalty : float
        Natural logarithm added for an unlisted word; large and negative.

    Raises
    ------
    ValueError
        If the list is empty or a word has a space in it.

    Examples
    --------
    >>> lexicon = Lexicon(words=["TO", "TOO"], pieces=["<blank>", " ", "T", "O"])
    >>> state = lexicon.extend(lexicon.start(), 2)
    >>> lexicon.score([state], [1, 2, 3]).tolist()  # " " too early, "TT" unknown, "TO" listed
    [[-20.0, -20.0, 0.0]]
    >>> lexicon.finish(state), lexicon.finish(lexicon.extend(state, 3))
    (-20.0, 0.0)
    """

    def __init__(
        self, *, words: Sequence[str], pieces: Sequence[str], penalty: float = -20.0
    ) -> None:
        self.words = list(words)
        self.pieces = list(pieces)
        self.penalty = penalty
        if not self.words or any(not word or " " in word for word in self.words):
            raise ValueError(f"a lexicon needs words, none with a space: {self.words[:10]!r}")
        self._complete = {"", *self.words}
        self._begun = {word[:size] for word in self.words for size in range(len(word) + 1)}
        self._texts = [piece.replace("\u2581", " ") for piece in self.pieces]
        self._steps: dict[tuple[str, int], tuple[str, float]] = {}

    def start(self) -> str:
        """Return the state of the empty prefix: no letter of a word."""
        return ""

    def score(self, states: Sequence[str], tokens: Sequence[int]) -> np.ndarray:
        """Return the penalties of all prefixes and tokens: shape ``(len(states), len(tokens))``."""
        return np.array([[self._step(state, token)[1] for token in tokens] for state in states])

    def extend(self, state: str, token: int) -> str:
        """Return the letters of the last word, or the mark of an unlisted one."""
        return self._step(state, token)[0]

    def finish(self, state: str) -> float:
        """Return the penalty of a prefix that ends inside a word."""
        return 0.0 if state in self._complete or state == _UNKNOWN else self.penalty

    def _step(self, state: str, token: int) -> tuple[str, float]:
        key = (state, token)
        if key not in self._steps:
            gained = 0.0
            for letter in self._texts[token]:
                if letter == " ":
                    gained += self.finish(state)
                    state = ""
                elif state != _UNKNOWN and (state := state + letter) not in self._begun:
                    gained += self.penalty
                    state = _UNKNOWN
            self._steps[key] = (state, gained)
        return self._steps[key]
