"""N-gram language models of words in a search over prefixes of characters or word pieces."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np

from speechkit.decoding.ngram_fusion import MAX_CELLS, UNKNOWN, NgramLike, letters_of

_ROOT, _LOST = 0, 1  # what a word has: no letter yet; letters that begin no known word
_SPECIAL = frozenset({"<s>", "</s>", UNKNOWN})
_MAX_STATES = 200_000


class WordNgramScorer:
    """Adds the score of a word n-gram model to prefixes of characters or word pieces.

    A word costs ``weight * log p(word | words before) + word_bonus``, and ``unknown_penalty`` on
    top where it is not known. That is due when the word ends; a guess can be taken before, and the
    total stays the same, so that prefixes meet the beam with more of their cost.

    One object serves one search at a time.

    Parameters
    ----------
    model : NgramModel
        A model of words.
    pieces : sequence of str
        The string of each label, as a tokenizer's ``pieces``: a space or U+2581 parts words.
    weight : float
        Of the model's log-probabilities ("alpha").
    word_bonus : float
        Added for each word ("beta"): a model by itself favors few words.
    unknown_penalty : float
        Added for each word that is not known; 0 or less.
    guess : {"none", "unknown", "best"}
        When a word is charged: only at its end; an unknown one as soon as its letters begin no
        known word; or also each letter with the best unigram among the words it can become.
    words : sequence of str, optional
        The known words; by default the model's vocabulary.

    Raises
    ------
    ValueError
        Where an option makes no sense, or the pieces cannot write a single known word.

    Examples
    --------
    >>> from speechkit.lm.ngram import NgramModel
    >>> model = NgramModel.estimate(["A BAD DAB", "A DAB"], order=2)
    >>> scorer = WordNgramScorer(model=model, pieces=["<blank>", " ", "A", "B", "D"],
    ...                          weight=1.0, unknown_penalty=-5.0)
    >>> after_a = scorer.extend(scorer.start(), 2)
    >>> bool(scorer.score([after_a], [1])[0, 0] == model.log_prob(("<s>",), "A"))
    True
    >>> scorer.score([after_a], [2]).item() < -5.0  # no word begins with "AA"
    True
    """

    def __init__(
        self,
        *,
        model: NgramLike,
        pieces: Sequence[str],
        weight: float = 0.5,
        word_bonus: float = 0.0,
        unknown_penalty: float = -10.0,
        guess: Literal["none", "unknown", "best"] = "unknown",
        words: Sequence[str] | None = None,
    ) -> None:
        if guess not in ("none", "unknown", "best"):
            raise ValueError(f"guess must be 'none', 'unknown' or 'best', got {guess!r}")
        if not (-math.inf < unknown_penalty <= 0.0 and 0.0 <= weight < math.inf):
            raise ValueError(
                "weight and unknown_penalty must be finite, the first at least and the second at "
                f"most 0; got {weight} and {unknown_penalty}"
            )
        self.model = model
        self.pieces = list(pieces)
        self.weight = weight
        self.word_bonus = word_bonus
        self.unknown_penalty = unknown_penalty
        self.guess = guess
        self.words = None if words is None else list(words)
        self._set_words(model.vocabulary if words is None else words)
        # " AB" is ["", "AB"]: what is behind a space belongs to the next word
        self._segments = [piece.replace("\u2581", " ").split(" ") for piece in self.pieces]
        self._opens = np.array([len(s) == 2 and not s[0] for s in self._segments])
        self._slow = np.array([len(s) > 1 for s in self._segments]) & ~self._opens
        rests = [s[1] for s, opens in zip(self._segments, self._opens) if opens]
        self._opens_lost = any(rest and rest not in self._prefixes for rest in rests)
        self._clear()

    def _set_words(self, words: Sequence[str] | None) -> None:
        if words is None:
            raise ValueError("this model cannot tell its words; give them: words=[...]")
        self._known = {word for word in words if word not in _SPECIAL}
        letters = letters_of(self.pieces)
        if not any(letters.issuperset(word) for word in self._known):
            raise ValueError(
                f"the pieces cannot write a single word of the language model: it has "
                f"{sorted(self._known)[:5]!r}, the pieces are {self.pieces[:30]!r}; take a model "
                "of the same writing (upper or lower case)"
            )
        self._prefixes: dict[str, int] = {"": _ROOT}
        best: list[float] = [0.0, 0.0]
        for word in sorted(self._known):
            score = self.weight * self.model.log_prob((), word) if self.guess == "best" else 0.0
            for size in range(1, len(word) + 1):
                node = self._prefixes.setdefault(word[:size], len(best))
                if node == len(best):
                    best.append(score)
                elif score > best[node]:
                    best[node] = score
        self._paid = best  # at each node, of the unfinished word
        self._letters = ["", ""]
        self._letters.extend(prefix for prefix in self._prefixes if prefix)

    def _clear(self) -> None:
        """Forget all states: they are numbers of (model's state, node), found as they come."""
        self._numbers: dict[tuple[Hashable, int], int] = {}
        self._parts: list[tuple[Any, int]] = []  # the model's state, the node
        self._after: list[Any] = []  # the model's state once the word has ended
        self._costs = np.zeros((256, 3))  # of the word's end, of losing the word, the next word
        self._row_of_state = np.zeros(256, dtype=np.int64)
        self._steps: dict[int, int] = {}
        self._unknowns: dict[Hashable, tuple[float, Hashable]] = {}
        self._rows: dict[int, int] = {}  # node: its row in the tables, NaN where not asked for yet
        self._row_nodes: list[int] = []
        self._gains = np.full((64, len(self.pieces)), np.nan)
        self._lost = np.zeros((64, len(self.pieces)), dtype=bool)

    def start(self) -> int:
        """Return the state of the empty prefix."""
        if len(self._parts) > _MAX_STATES or self._gains.size > MAX_CELLS:
            self._clear()
        return self._number(self.model.start(), _ROOT)

    def score(self, states: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Return what each prefix gains from each token: shape ``(len(states), len(tokens))``."""
        ids, columns = np.asarray(states, dtype=np.int64), np.asarray(tokens, dtype=np.int64)
        costs, rows = self._costs[ids], self._row_of_state[ids, None]
        gains = self._gains[rows, columns]  # (N, K)
        if np.isnan(gains).any():
            self._fill(rows, columns, np.isnan(gains))
            gains = self._gains[rows, columns]
        lost = self._lost[rows, columns]
        if lost.any():
            gains += lost * costs[:, 1:2]
        for column in np.flatnonzero(self._opens[columns]).tolist():
            gains[:, column] += costs[:, 0]
            if self._opens_lost and self._lost[0, columns[column]]:
                gains[:, column] += costs[:, 2] - costs[:, 1]
        for column in np.flatnonzero(self._slow[columns]).tolist():
            gains[:, column] = [self._walk(state, tokens[column])[0] for state in states]
        return gains

    def extend(self, state: int, token: int) -> int:
        """Return the state of a prefix with one more token."""
        key = state * len(self.pieces) + token
        found = self._steps.get(key)
        if found is None:
            found = self._steps[key] = self._walk(state, token)[1]
        return found

    def finish(self, state: int) -> float:
        """Return the cost of the last word's end and of the sentence's."""
        ended = self.weight * self.model.finish(self._after[state])
        return float(self._costs[state, 0]) + ended

    def _walk(self, state: int, token: int) -> tuple[float, int]:
        """Take a token letter by letter: what is gained, and the state after it."""
        gained = 0.0
        for place, letters in enumerate(self._segments[token]):
            if place:
                gained += float(self._costs[state, 0])
                state = self._number(self._after[state], _ROOT)
            if letters:
                after, node = self._parts[state]
                new = self._child(node, letters)
                gained += self._paid[new] - self._paid[node]
                if new == _LOST != node:
                    gained += float(self._costs[state, 1])
                state = self._number(after, new)
        return gained, state

    def _child(self, node: int, letters: str) -> int:
        if node == _LOST:
            return _LOST
        return self._prefixes.get(self._letters[node] + letters, _LOST)

    def _number(self, state: Hashable, node: int) -> int:
        """Return the number of a state, and compute its costs where it is new."""
        number = self._numbers.get((state, node))
        if number is not None:
            return number
        number = self._numbers[state, node] = len(self._parts)
        if number == len(self._costs):
            self._costs = np.concatenate([self._costs, np.zeros_like(self._costs)])
            more = np.zeros_like(self._row_of_state)
            self._row_of_state = np.concatenate([self._row_of_state, more])
        early = self.guess != "none"
        lost, after = self._unknown(state)
        end = 0.0
        if node == _ROOT:
            after = state
        elif node == _LOST:
            end = 0.0 if early else lost
        elif (word := self._letters[node]) in self._known:
            log_prob, after = self.model.step(state, word)
            end = self.weight * log_prob + self.word_bonus - self._paid[node]
        else:
            end = lost - self._paid[node]
        self._parts.append((state, node))
        self._after.append(after)
        later = self._unknown(after)[0] if self._opens_lost else 0.0
        self._costs[number] = (end, lost, later) if early else (end, 0.0, 0.0)
        self._row_of_state[number] = self._row(node)
        return number

    def _unknown(self, state: Hashable) -> tuple[float, Hashable]:
        """Return the cost of an unknown word, and the model's state after it."""
        found = self._unknowns.get(state)
        if found is None:
            log_prob, after = self.model.step(state, UNKNOWN)
            cost = self.weight * log_prob + self.word_bonus + self.unknown_penalty
            found = self._unknowns[state] = (cost, after)
        return found

    def _row(self, node: int) -> int:
        """Return the row of a node in the tables; the first is that of a new word."""
        row = self._rows.setdefault(node, len(self._rows))
        if row == len(self._row_nodes):
            self._row_nodes.append(node)
            if row == len(self._gains):
                self._gains = np.concatenate([self._gains, np.full_like(self._gains, np.nan)])
                self._lost = np.concatenate([self._lost, np.zeros_like(self._lost)])
        return row

    def _fill(self, rows: np.ndarray, columns: np.ndarray, missing: np.ndarray) -> None:
        """Fill in what letters add at a node, without what depends on the words before."""
        which, place = missing.nonzero()
        pairs = set(zip(rows[which, 0].tolist(), columns[place].tolist()))
        for row, token in pairs:
            node = self._row_nodes[row]
            if self._opens[token]:  # a new word, whatever the old one was; its end is added later
                node = _ROOT
            letters = self._segments[token][-1]
            new = self._child(node, letters) if letters else node
            self._gains[row, token] = self._paid[new] - self._paid[node]
            self._lost[row, token] = new == _LOST != node
            if self._opens[token]:
                self._lost[0, token] = self._lost[row, token]
