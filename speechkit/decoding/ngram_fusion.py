"""N-gram language models of the labels in a search over prefixes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np

UNKNOWN = "<unk>"
MAX_CELLS = 2**24
"""A scorer forgets its tables at the start of a search where they are larger."""


def letters_of(pieces: Sequence[str]) -> set[str]:
    """Collect the letters of some pieces; names such as ``<blank>`` are no text.

    Examples
    --------
    >>> sorted(letters_of(["<blank>", "▁at", "b"]))
    ['a', 'b', 't', '▁']
    """
    names = {piece for piece in pieces if len(piece) > 2 and piece[0] == "<" and piece[-1] == ">"}
    return {letter for piece in pieces if piece not in names for letter in piece}


class NgramLike(Protocol):
    """What the scorers ask of a model; `speechkit.lm.ngram.NgramModel` has it."""

    @property
    def vocabulary(self) -> Sequence[str] | None:
        """All words, or None where the model cannot tell."""
        ...

    def start(self) -> Hashable:
        """Return the state at the beginning of a sentence."""
        ...

    def step(self, state: Any, word: str) -> tuple[float, Hashable]:
        """Return a word's natural log-probability and the state after it."""
        ...

    def finish(self, state: Any) -> float:
        """Return the natural log-probability of the sentence's end."""
        ...

    def log_prob(self, context: Sequence[str], word: str) -> float:
        """Return the natural log-probability of a word after others."""
        ...


class TokenNgramScorer:
    """Adds the score of an n-gram model of the labels themselves.

    One object serves one search at a time.

    Parameters
    ----------
    model : NgramModel
        A model whose words are the pieces, spaces written as U+2581
        (`speechkit.lm.ngram.as_tokens`).
    pieces : sequence of str
        The string of each label.
    weight : float
        Of the log-probabilities.
    token_bonus : float
        Added for each token.

    Raises
    ------
    ValueError
        If the model does not know half of the pieces: it is of another vocabulary.

    Examples
    --------
    >>> from speechkit.lm.ngram import NgramModel
    >>> model = NgramModel.estimate([["A", "B"], ["A", "▁", "B"]], order=2)
    >>> scorer = TokenNgramScorer(model=model, pieces=["<blank>", " ", "A", "B"], weight=1.0)
    >>> gains = scorer.score([scorer.start()], [2, 3])[0]
    >>> bool(np.isclose(gains[0], model.log_prob(("<s>",), "A"))), bool(gains[0] > gains[1])
    (True, True)
    """

    def __init__(
        self,
        *,
        model: NgramLike,
        pieces: Sequence[str],
        weight: float = 0.5,
        token_bonus: float = 0.0,
    ) -> None:
        self.model = model
        self.pieces = list(pieces)
        self.weight = weight
        self.token_bonus = token_bonus
        self._words = [piece.replace(" ", "\u2581") for piece in self.pieces]
        vocabulary = model.vocabulary
        self._columns: np.ndarray | None = None
        if vocabulary is not None:
            ids = {word: i for i, word in enumerate(vocabulary)}
            unknown = [piece for piece in self._words[1:] if piece not in ids]
            if 2 * len(unknown) > len(self.pieces) - 1:
                raise ValueError(
                    f"the language model does not know {len(unknown)} of {len(self.pieces) - 1} "
                    f"labels, such as {unknown[:10]!r}; estimate it from the labels of the same "
                    "tokenizer (as_tokens)"
                )
            # whoever follows the rule of NgramModel has the whole distribution at hand
            if hasattr(model, "log_probs"):
                fallback = ids[UNKNOWN]
                self._columns = np.array([ids.get(word, fallback) for word in self._words])
        self._clear()

    def _clear(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._states: list[Any] = []
        self._steps: dict[int, int] = {}
        self._table = np.zeros((64, len(self.pieces)))

    def start(self) -> int:
        """Return the state of the empty prefix."""
        if self._table.size > MAX_CELLS:
            self._clear()
        return self._number(self.model.start())

    def score(self, states: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Return what each prefix gains from each token: shape ``(len(states), len(tokens))``."""
        ids, columns = np.asarray(states, dtype=np.int64), np.asarray(tokens, dtype=np.int64)
        return self._table[ids[:, None], columns]

    def extend(self, state: int, token: int) -> int:
        """Return the state of a prefix with one more token."""
        key = state * len(self.pieces) + token
        found = self._steps.get(key)
        if found is None:
            after = self.model.step(self._states[state], self._words[token])[1]
            found = self._steps[key] = self._number(after)
        return found

    def finish(self, state: int) -> float:
        """Return the weighted log-probability of the end."""
        return self.weight * self.model.finish(self._states[state])

    def _number(self, state: Hashable) -> int:
        number = self._numbers.get(state)
        if number is None:
            number = self._numbers[state] = len(self._states)
            self._states.append(state)
            if number == len(self._table):
                self._table = np.concatenate([self._table, np.zeros_like(self._table)])
            self._table[number] = self.weight * self._log_probs(state) + self.token_bonus
        return number

    def _log_probs(self, state: Hashable) -> np.ndarray:
        if self._columns is not None:
            log_probs: np.ndarray = self.model.log_probs(state)  # type: ignore[attr-defined]
            return log_probs[self._columns]
        return np.array([self.model.step(state, word)[0] for word in self._words])
