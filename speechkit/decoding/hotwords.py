"""Phrases that a search shall prefer: names, terms, commands."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from speechkit.decoding.ngram_fusion import letters_of


class HotWords:
    """Raises the score of every occurrence of some phrases, as whole words.

    A prefix that begins a phrase is lent a share of the boost with each letter, so that it stays in
    the beam. What is lent goes back where the phrase breaks off, and is kept where it is complete:
    a whole utterance has gained ``boost`` times the number of occurrences, and nothing else.
    Phrases that overlap, or are part of others, count each by themselves. Found by the automaton of
    Aho and Corasick (1975) over letters.

    Parameters
    ----------
    phrases : sequence of str
        One word or several.
    pieces : sequence of str
        The string of each label, as a tokenizer's ``pieces``: a space or U+2581 parts words.
    boost : float
        What an occurrence gains (nats), above 0.

    Raises
    ------
    ValueError
        For an empty phrase, one that the pieces cannot write, or a boost that is not above 0.

    Examples
    --------
    >>> words = HotWords(phrases=["AB"], pieces=["<blank>", " ", "A", "B"], boost=4.0)
    >>> state = words.extend(words.start(), 2)
    >>> words.score([words.start(), state], [1, 2, 3]).tolist()
    [[0.0, 2.0, 0.0], [-2.0, -2.0, 2.0]]
    >>> words.finish(state), words.finish(words.extend(state, 3))
    (-2.0, 0.0)
    """

    def __init__(
        self, *, phrases: Sequence[str], pieces: Sequence[str], boost: float = 5.0
    ) -> None:
        if isinstance(phrases, str):
            raise ValueError(f"phrases must be a list of phrases, got one string: {phrases[:40]!r}")
        if not 0.0 < boost < float("inf"):
            raise ValueError(f"boost must be above 0 and finite, got {boost}")
        self.phrases = list(phrases)
        self.pieces = list(pieces)
        self.boost = boost
        self._texts = [piece.replace("\u2581", " ") for piece in self.pieces]
        letters = letters_of(self._texts) | {" "}
        wrong = [p for p in self.phrases if not p.split() or not letters.issuperset(p)]
        if wrong:
            raise ValueError(
                f"phrases that are empty or that the pieces cannot write: {wrong[:10]!r}; keep to "
                f"the letters {''.join(sorted(letters))[:60]!r}"
            )
        self._build()
        self._gains = np.full((len(self._children), len(self.pieces)), np.nan)
        self._next = np.zeros((len(self._children), len(self.pieces)), dtype=np.int64)

    def _build(self) -> None:
        """Build the automaton; node 0 is a word that begins no phrase, node 1 a word's start."""
        self._children: list[dict[str, int]] = [{" ": 1}, {}]
        self._lent, done = [0.0, 0.0], [0.0, 0.0]
        self._spaces = [False, True]  # whether the last letter is a space
        for phrase in sorted({" ".join(phrase.split()) for phrase in self.phrases}):
            node = 1
            for depth, letter in enumerate(phrase + " ", 1):
                if letter not in self._children[node]:
                    self._children[node][letter] = len(self._children)
                    self._children.append({})
                    self._lent.append(0.0)
                    done.append(0.0)
                    self._spaces.append(letter == " ")
                node = self._children[node][letter]
                if depth <= len(phrase):
                    self._lent[node] = max(self._lent[node], self.boost * depth / len(phrase))
            done[node] += self.boost
        self._fails = [0] * len(done)
        queue = deque([1])
        while queue:  # shorter ones first
            node = queue.popleft()
            for letter, child in self._children[node].items():
                self._fails[child] = fail = self._follow(self._fails[node], letter)
                done[child] += done[fail]
                self._lent[child] = max(self._lent[child], self._lent[fail])
                queue.append(child)
        self._done = done

    def _follow(self, node: int, letter: str) -> int:
        while letter not in self._children[node]:
            if node == 0:
                return 0
            node = self._fails[node]
        return self._children[node][letter]

    def start(self) -> int:
        """Return the state of the empty prefix."""
        return 1

    def score(self, states: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Return what each prefix gains from each token: shape ``(len(states), len(tokens))``."""
        rows, columns = np.asarray(states)[:, None], np.asarray(tokens, dtype=np.int64)
        gains: np.ndarray = self._gains[rows, columns]
        missing = np.isnan(gains)
        if missing.any():
            which, place = missing.nonzero()
            for state, token in set(zip(rows[which, 0].tolist(), columns[place].tolist())):
                self._fill(state, token)
            gains = self._gains[rows, columns]
        return gains

    def extend(self, state: int, token: int) -> int:
        """Return the state of a prefix with one more token."""
        if np.isnan(self._gains[state, token]):
            self._fill(state, token)
        return int(self._next[state, token])

    def finish(self, state: int) -> float:
        """Return what the end of the last word gains, less what is lent."""
        gained, after = self._walk(state, " ")
        return gained - self._lent[after]

    def _fill(self, state: int, token: int) -> None:
        self._gains[state, token], self._next[state, token] = self._walk(state, self._texts[token])

    def _walk(self, state: int, text: str) -> tuple[float, int]:
        gained = -self._lent[state]
        for letter in text:
            if letter == " " and self._spaces[state]:
                continue  # several spaces are as one
            state = self._follow(state, letter)
            gained += self._done[state]
        return gained + self._lent[state], state
