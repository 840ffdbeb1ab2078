"""N-gram models read and scored by kenlm (Heafield, 2011), an optional extra."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from speechkit.data.errors import DataError
from speechkit.lm.kneser_ney import Text, split_text
from speechkit.lm.tables import FINISH

_LN10 = math.log(10.0)


class KenlmModel:
    """What `speechkit.lm.ngram.NgramModel` does, by kenlm.

    It keeps no list of its words, so that a scorer of words needs that list from elsewhere.

    Parameters
    ----------
    path : str
        An ARPA file, or a binary one of kenlm.

    Raises
    ------
    ImportError
        If kenlm is not installed.
    DataError
        If kenlm refuses the file.
    OSError
        If the file cannot be opened.
    """

    vocabulary: None = None

    def __init__(self, *, path: str) -> None:
        try:
            import kenlm  # type: ignore[import-not-found]
        except ImportError as error:
            raise ImportError(
                "kenlm is not installed: pip install 'speechkit[lm]', or leave out "
                'backend="kenlm" to read the ARPA file without it'
            ) from error
        self.path = path
        with Path(path).open("rb"):
            pass  # an unreadable file fails here, with the operating system's reason
        self._new_state = kenlm.State
        try:
            config = kenlm.Config()
            config.show_progress = False
            self._model = kenlm.Model(path, config)
        except (OSError, RuntimeError) as error:
            raise DataError(f"{path}: kenlm cannot read it: {error}") from error
        self._null = self._new_state()
        self._model.NullContextWrite(self._null)

    @property
    def order(self) -> int:
        """Number of words of the longest n-grams."""
        return int(self._model.order)

    def start(self) -> Any:
        """Return the state at the beginning of a sentence."""
        state = self._new_state()
        self._model.BeginSentenceWrite(state)
        return state

    def step(self, state: Any, word: str) -> tuple[float, Any]:
        """Return the natural log-probability of a word, and the state after it."""
        after = self._new_state()
        return self._model.BaseScore(state, word, after) * _LN10, after

    def finish(self, state: Any) -> float:
        """Return the natural log-probability of the sentence's end."""
        return self.step(state, FINISH)[0]

    def log_prob(self, context: Sequence[str], word: str) -> float:
        """Return the natural log-probability of a word after others, ``<s>`` given as such."""
        state = self._null
        for known in context:
            state = self.start() if known == "<s>" else self.step(state, known)[1]
        return self.step(state, word)[0]

    def score(self, texts: Iterable[Text]) -> list[float]:
        """Return the natural log-probability of each text, ``</s>`` included."""
        return [self._score(split_text(text)) for text in texts]

    def _score(self, words: Sequence[str]) -> float:
        state, total = self.start(), 0.0
        for word in words:
            gained, state = self.step(state, word)
            total += gained
        return total + self.finish(state)

    def perplexity(self, texts: Iterable[Text]) -> float:
        """Return the perplexity per word, where each ``</s>`` counts and unknown words too."""
        parted = [split_text(text) for text in texts]
        if not parted:
            raise DataError("no text to compute a perplexity of; give it at least one sentence")
        tokens = sum(len(words) + 1 for words in parted)
        return math.exp(-sum(self._score(words) for words in parted) / tokens)
