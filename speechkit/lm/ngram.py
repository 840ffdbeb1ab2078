"""N-gram language models with back-off."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from speechkit.data.errors import DataError
from speechkit.lm.arpa import arpa_bytes, read_arpa, write_arpa
from speechkit.lm.kneser_ney import Text, estimate, split_text
from speechkit.lm.tables import BEGIN, FINISH, UNKNOWN, NgramTables, minimal_states

_LN10 = math.log(10.0)


class NgramModel:
    """An n-gram model, estimated from text or read from an ARPA file.

    Probabilities are natural logarithms. A *state* is a number that stands for the words so far, as
    far as they matter: equal states mean equal probabilities of all that may follow.

    Parameters
    ----------
    arpa : bytes
        An ARPA file, gzipped or not; `load`, `estimate` make a model from other things.

    Raises
    ------
    DataError
        If the ARPA file is malformed: the line, and what was expected there.

    Examples
    --------
    >>> model = NgramModel.estimate(["a b a", "b a"], order=2)
    >>> model.order, model.vocabulary
    (2, ('</s>', '<s>', '<unk>', 'a', 'b'))
    >>> probs = [math.exp(model.log_prob(("b",), word)) for word in model.vocabulary]
    >>> round(sum(probs), 5), max(model.vocabulary, key=lambda word: model.log_prob(("b",), word))
    (1.0, 'a')
    """

    def __init__(self, *, arpa: bytes) -> None:
        self._set(read_arpa(arpa))

    @classmethod
    def estimate(
        cls,
        texts: Iterable[Text],
        *,
        order: int = 3,
        vocabulary: Iterable[str] | None = None,
        discount_fallback: Sequence[float] = (0.5, 1.0, 1.5),
    ) -> NgramModel:
        """Estimate a model by interpolated modified Kneser-Ney smoothing.

        Parameters
        ----------
        texts : iterable of str or of sequences of str
            Sentences, whose words are parted by white space, or already parted. All are held in
            memory, as about 50 bytes a word.
        order : int
            Number of words of the longest n-grams.
        vocabulary : iterable of str, optional
            All known words: others are counted as ``<unk>``. By default all that occur.
        discount_fallback : three floats
            Discounts of counts 1, 2 and more for an order whose counts of counts give none; a
            warning is logged then.

        Returns
        -------
        NgramModel
            The same texts in any order give the same model.

        Raises
        ------
        DataError
            Without any text, or where it holds ``<s>``, ``</s>`` or (without a vocabulary)
            ``<unk>``.
        ValueError
            For an order or discounts that make no sense.

        References
        ----------
        Chen and Goodman (1999), "An empirical study of smoothing techniques for language
        modeling", section 2.8 and equation 26; Heafield et al. (2013), "Scalable modified
        Kneser-Ney language model estimation".
        """
        return cls._from_tables(
            estimate(texts, order=order, vocabulary=vocabulary, discount_fallback=discount_fallback)
        )

    @classmethod
    def load(cls, path: str | Path, *, backend: Literal["speechkit", "kenlm"] = "speechkit") -> Any:
        """Read an ARPA file, gzipped or not.

        Parameters
        ----------
        path : str or Path
            The file.
        backend : {"speechkit", "kenlm"}
            Who reads and scores. kenlm (an extra, ``pip install speechkit[lm]``) needs less memory
            for large models, reads its own binary files too, and gives the same numbers.

        Returns
        -------
        NgramModel, or KenlmModel with the same methods
            The model.

        Raises
        ------
        DataError
            If the file is malformed.
        OSError
            If it cannot be opened.
        ImportError
            If kenlm is asked for and not installed.
        """
        if backend not in ("speechkit", "kenlm"):
            raise ValueError(f"backend must be 'speechkit' or 'kenlm', got {backend!r}")
        if backend == "kenlm":
            from speechkit.lm.kenlm_model import KenlmModel

            return KenlmModel(path=str(path))
        return cls._from_tables(read_arpa(path))

    @classmethod
    def _from_tables(cls, tables: NgramTables) -> NgramModel:
        model = cls.__new__(cls)
        model._set(tables)
        return model

    def _set(self, tables: NgramTables) -> None:
        self._tables = tables
        self._size = len(tables.words)
        self._ids = {word: i for i, word in enumerate(tables.words)}
        self._unknown = self._ids[UNKNOWN]
        firsts = np.arange(len(tables.log_probs) + 1, dtype=np.int64) * self._size
        self._first_child = np.searchsorted(tables.keys, firsts)
        states = minimal_states(tables, self._first_child)
        # single numbers come faster out of a memoryview than out of an array
        self._keys, self._children = tables.keys.data, self._first_child.data
        self._log_probs = tables.log_probs.data
        self._backoffs, self._states = tables.backoffs.data, states.data
        self._suffixes = tables.suffixes.data

    def __getstate__(self) -> NgramTables:
        return self._tables

    def __setstate__(self, tables: NgramTables) -> None:
        self._set(tables)

    def save(self, path: str | Path) -> None:
        """Write an ARPA file (gzipped where the name ends in ``.gz``), which kenlm reads too."""
        write_arpa(self._tables, path)

    @property
    def arpa(self) -> bytes:
        """The model as a gzipped ARPA file; the same model gives the same bytes."""
        return arpa_bytes(self._tables)

    @property
    def order(self) -> int:
        """Number of words of the longest n-grams."""
        return self._tables.order

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words, with ``<s>``, ``</s>`` and ``<unk>``."""
        return tuple(self._tables.words)

    def num_ngrams(self) -> list[int]:
        """Return how many n-grams of each order there are."""
        return [int(n) for n in np.diff(self._tables.starts)]

    def start(self) -> int:
        """Return the state at the beginning of a sentence."""
        return self._states[1 + self._ids[BEGIN]]

    def step(self, state: int, word: str) -> tuple[float, int]:
        """Return the natural log-probability of a word, and the state after it.

        Parameters
        ----------
        state : int
            From `start` or `step`.
        word : str
            Unknown ones are ``<unk>``.

        Returns
        -------
        tuple of (float, int)
            Log-probability and state.
        """
        index = self._ids.get(word, self._unknown)
        total = 0.0
        while state:
            key = state * self._size + index
            stop = self._children[state + 1]
            place = bisect_left(self._keys, key, self._children[state], stop)
            if place < stop and self._keys[place] == key:
                total += self._log_probs[place + 1]
                return total * _LN10, self._states[place + 1]
            total += self._backoffs[state]
            state = self._suffixes[state]
        total += self._log_probs[index + 1]
        return total * _LN10, self._states[index + 1]

    def finish(self, state: int) -> float:
        """Return the natural log-probability of the sentence's end."""
        return self.step(state, FINISH)[0]

    def log_probs(self, state: int) -> np.ndarray:
        """Return the natural log-probabilities of all words of the vocabulary after a state.

        Parameters
        ----------
        state : int
            From `start` or `step`.

        Returns
        -------
        array
            Shape ``(len(vocabulary),)``, float64.
        """
        contexts = []
        while state:
            contexts.append(state)
            state = self._suffixes[state]
        tables = self._tables
        row = tables.log_probs[1 : self._size + 1].astype(np.float64)
        for context in reversed(contexts):
            row += self._backoffs[context]
            first, last = self._first_child[context : context + 2]
            words = tables.keys[first:last] - context * self._size
            row[words] = tables.log_probs[first + 1 : last + 1]
        return row * _LN10

    def log_prob(self, context: Sequence[str], word: str) -> float:
        """Return the natural log-probability of a word after others.

        Parameters
        ----------
        context : sequence of str
            The words before, the nearest last; ``<s>`` is given where a sentence begins.
        word : str
            A word, ``</s>`` or ``<unk>``.
        """
        state = 0
        for known in context:
            state = self.step(state, known)[1]
        return self.step(state, word)[0]

    def score(self, texts: Iterable[Text]) -> list[float]:
        """Return the natural log-probability of each text, ``</s>`` included.

        Parameters
        ----------
        texts : iterable of str or of sequences of str
            Words parted by white space, or already parted.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be an iterable of texts, got one string: {texts[:40]!r}")
        return [self._score(split_text(text)) for text in texts]

    def _score(self, words: Sequence[str]) -> float:
        state, total = self.start(), 0.0
        for word in words:
            gained, state = self.step(state, word)
            total += gained
        return total + self.finish(state)

    def perplexity(self, texts: Iterable[Text]) -> float:
        """Return the perplexity per word, where each ``</s>`` counts and unknown words too.

        Raises
        ------
        DataError
            If there are no texts.
        """
        parted = [split_text(text) for text in texts]
        if not parted:
            raise DataError("no text to compute a perplexity of; give it at least one sentence")
        tokens = sum(len(words) + 1 for words in parted)
        return math.exp(-sum(self._score(words) for words in parted) / tokens)


def as_tokens(text: str, tokenizer: Any) -> list[str]:
    """Turn a text into the words of an n-gram model over a tokenizer's labels.

    Parameters
    ----------
    text : str
        Made of what the tokenizer knows.
    tokenizer : tokenizer
        With ``encode`` and ``pieces``.

    Returns
    -------
    list of str
        The pieces; spaces in them are written as U+2581, since a word has none.

    Examples
    --------
    >>> from speechkit.data.tokenizer import CharTokenizer
    >>> as_tokens("a b", CharTokenizer(symbols=["a", "b", " "]))
    ['a', '▁', 'b']
    """
    return [tokenizer.pieces[i].replace(" ", "\u2581") for i in tokenizer.encode(text)]
