"""What a language model, a word list or a length bonus must offer to a search over prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class PrefixScorer(Protocol):
    """Adds to the score of a prefix, token by token, with a state of its own for each prefix.

    The search asks for the scores of all prefixes and tokens of a frame at once, so that a neural
    model can batch them, and keeps states only for prefixes in the beam. Scores are natural
    logarithms, already weighted. A scorer of words looks at a token's piece: it keeps the
    unfinished word in its state, may add a guess for it, and corrects that guess once the word is
    complete.
    """

    def start(self) -> Any:
        """Return the state of the empty prefix."""
        ...

    def score(self, states: Sequence[Any], tokens: Sequence[int]) -> np.ndarray:
        """Return what each prefix gains from each token: shape ``(len(states), len(tokens))``."""
        ...

    def extend(self, state: Any, token: int) -> Any:
        """Return the state of a prefix with one more token."""
        ...

    def finish(self, state: Any) -> float:
        """Return what a prefix gains from being the whole utterance."""
        ...
