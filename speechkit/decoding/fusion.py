"""Neural language models in a search over prefixes, sums of scorers, and rescoring of n-best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from speechkit.decoding.hypothesis import Hypothesis
from speechkit.decoding.scorer import PrefixScorer
from speechkit.nn.stepping import END, Start, StepOutput, select_beams


class StepLanguageModel(Protocol):
    """A neural language model that is asked token by token."""

    vocab_size: int

    def start(self, batch_size: int, device: torch.device) -> Start:
        """Return the state of ``batch_size`` empty prefixes: tensors ``(B, 1, ...)``."""
        ...

    def step(self, tokens: Tensor, fixed: Any, state: Any) -> StepOutput:
        """Append ``tokens`` ``(B, K)`` and score what follows."""
        ...


class _Prefix:
    """A prefix: where it comes from, and once it is scored its scores and its place in a batch."""

    __slots__ = ("index", "length", "parent", "row", "state", "token")

    def __init__(self, parent: _Prefix | None, token: int) -> None:
        self.parent, self.token = parent, token
        self.length: int = 0 if parent is None else parent.length + 1
        self.row: np.ndarray | None = None  # (V,)
        self.state: Any = None  # of all prefixes that were scored together, (1, K, ...)
        self.index = 0


class NeuralScorer:
    """Adds the score of a neural language model over the same labels.

    All new prefixes of a frame that have the same length are one batch of the model (longer ones
    have longer caches, so that lengths stay apart); what was computed for a prefix is kept with it.

    Parameters
    ----------
    model : nn.Module
        A step language model: ``vocab_size``, ``start`` and ``step`` as in
        `speechkit.nn.stepping`; token 0 begins and ends a sentence. Put into evaluation mode.
    weight : float
        Of the log-probabilities.
    token_bonus : float
        Added for each token.
    """

    def __init__(
        self, *, model: StepLanguageModel, weight: float = 0.5, token_bonus: float = 0.0
    ) -> None:
        self.model = model
        self.weight = weight
        self.token_bonus = token_bonus
        if isinstance(model, torch.nn.Module):
            model.eval()

    def start(self) -> _Prefix:
        """Return the state of the empty prefix."""
        return _Prefix(None, END)

    def score(self, states: Sequence[_Prefix], tokens: Sequence[int]) -> np.ndarray:
        """Return what each prefix gains from each token: shape ``(len(states), len(tokens))``.

        Raises
        ------
        ValueError
            For a token that the model does not have.
        """
        beyond = [token for token in tokens if token >= self.model.vocab_size]
        if beyond:
            raise ValueError(
                f"the language model has {self.model.vocab_size} labels, the recognizer more "
                f"(such as {beyond[:5]}); train it with the recognizer's tokenizer"
            )
        self._advance(states)
        columns = np.asarray(tokens, dtype=np.int64)
        gains = np.stack([_row(state)[columns] for state in states]).astype(np.float64)
        return self.weight * gains + self.token_bonus

    def extend(self, state: _Prefix, token: int) -> _Prefix:
        """Return the state of a prefix with one more token."""
        return _Prefix(state, token)

    def finish(self, state: _Prefix) -> float:
        """Return the weighted log-probability of the end."""
        self._advance([state])
        return self.weight * float(_row(state)[END])

    def _advance(self, states: Iterable[_Prefix]) -> None:
        """Score the prefixes that were not scored before, and those that they continue."""
        waiting: dict[int, dict[int, _Prefix]] = defaultdict(dict)
        for state in states:
            prefix: _Prefix | None = state
            while prefix is not None and prefix.row is None:
                waiting[prefix.length][id(prefix)] = prefix
                prefix = prefix.parent
        for length in sorted(waiting):
            self._run(list(waiting[length].values()))

    @torch.no_grad()
    def _run(self, prefixes: list[_Prefix]) -> None:
        """Score prefixes of one length whose parents are scored."""
        fixed, first = self.model.start(1, self._device())
        parents = [prefix.parent for prefix in prefixes if prefix.parent is not None]
        device = self._device()
        if parents:
            state = _gather(parents, device)
        else:
            roots = torch.zeros(1, len(prefixes), dtype=torch.int64, device=device)
            state = select_beams(first, roots)
        tokens = torch.tensor([[prefix.token for prefix in prefixes]], device=device)
        output = self.model.step(tokens, fixed, state)
        rows = output.log_probs[0].float().cpu().numpy()
        for index, (prefix, row) in enumerate(zip(prefixes, rows)):
            prefix.row, prefix.state, prefix.index = row, output.state, index
            prefix.parent = None

    def _device(self) -> torch.device:
        if isinstance(self.model, torch.nn.Module):
            for parameter in self.model.parameters():
                return parameter.device
        return torch.device("cpu")


def _row(prefix: _Prefix) -> np.ndarray:
    assert prefix.row is not None
    return prefix.row


def _gather(prefixes: list[_Prefix], device: torch.device) -> Any:
    """Put the states of some prefixes side by side: tensors (1, K, ...) in their order."""
    batches: dict[int, Any] = {id(prefix.state): prefix.state for prefix in prefixes}
    members = {key: [p for p in prefixes if id(p.state) == key] for key in batches}
    chosen = [
        select_beams(batches[key], torch.tensor([[p.index for p in group]], device=device))
        for key, group in members.items()
    ]
    if len(chosen) == 1:
        return chosen[0]
    positions = {id(p): i for i, p in enumerate(p for group in members.values() for p in group)}
    # a prefix may be the parent of several: its copies share a position
    order = torch.tensor([[positions[id(p)] for p in prefixes]], device=device)
    return select_beams(_join(chosen), order)


def _join(states: Sequence[Any]) -> Any:
    """Concatenate nested states along the axis of prefixes."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.cat(list(states), dim=1)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(_join(parts) for parts in zip(*states)))
    if isinstance(first, list | tuple):
        return type(first)(_join(parts) for parts in zip(*states))
    if isinstance(first, dict):
        return {key: _join([state[key] for state in states]) for key in first}
    return first  # a number that all prefixes of one length share, or None


class CombinedScorer:
    """Adds up several scorers: a language model and hot words, say.

    Parameters
    ----------
    scorers : sequence of PrefixScorer
        At least one.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> from speechkit.decoding.hotwords import HotWords
    >>> pieces = ["<blank>", " ", "A", "B"]
    >>> both = CombinedScorer(scorers=[
    ...     HotWords(phrases=["A"], pieces=pieces, boost=1.0),
    ...     HotWords(phrases=["AB"], pieces=pieces, boost=4.0),
    ... ])
    >>> both.score([both.start()], [1, 2, 3]).tolist()
    [[0.0, 3.0, 0.0]]
    """

    def __init__(self, *, scorers: Sequence[PrefixScorer]) -> None:
        if not scorers:
            raise ValueError("scorers is empty: give at least one")
        self.scorers = list(scorers)

    def start(self) -> tuple[Any, ...]:
        """Return the state of the empty prefix: one state a scorer."""
        return tuple(scorer.start() for scorer in self.scorers)

    def score(self, states: Sequence[tuple[Any, ...]], tokens: Sequence[int]) -> np.ndarray:
        """Return the sum of what the scorers add: shape ``(len(states), len(tokens))``."""
        total = np.zeros((len(states), len(tokens)))
        for scorer, own in zip(self.scorers, zip(*states)):
            total += scorer.score(own, tokens)
        return total

    def extend(self, state: tuple[Any, ...], token: int) -> tuple[Any, ...]:
        """Return the state of a prefix with one more token."""
        return tuple([scorer.extend(own, token) for scorer, own in zip(self.scorers, state)])

    def finish(self, state: tuple[Any, ...]) -> float:
        """Return the sum of what the scorers add at the end."""
        return sum(scorer.finish(own) for scorer, own in zip(self.scorers, state))


def rescore(
    nbest: Sequence[Hypothesis],
    score: Callable[[list[str]], Sequence[float]],
    *,
    decode: Callable[[list[int]], str],
    weight: float = 0.5,
    length_bonus: float = 0.0,
) -> list[Hypothesis]:
    """Rank an n-best list anew with a language model.

    Parameters
    ----------
    nbest : sequence of Hypothesis
        What a search returned for one utterance.
    score : callable
        From texts to their natural log-probabilities: ``model.score``.
    decode : callable
        From tokens to text: ``tokenizer.decode``.
    weight : float
        Of the log-probabilities.
    length_bonus : float
        Added for each word of the text.

    Returns
    -------
    list of Hypothesis
        With the new scores, the best first; those that are equal keep their order.

    Raises
    ------
    ValueError
        If ``score`` does not return a number for each text.

    Examples
    --------
    >>> nbest = [Hypothesis([1], -1.0, [0], [1], [0.9]), Hypothesis([2], -1.5, [0], [1], [0.9])]
    >>> best = rescore(nbest, lambda texts: [-4.0, -1.0], decode=str, weight=0.5)[0]
    >>> best.tokens, best.score
    ([2], -2.0)
    """
    texts = [decode(list(hypothesis.tokens)) for hypothesis in nbest]
    scores = list(score(texts)) if texts else []
    if len(scores) != len(texts):
        raise ValueError(f"the language model gave {len(scores)} scores for {len(texts)} texts")
    added = [weight * one + length_bonus * len(text.split()) for one, text in zip(scores, texts)]
    ranked = [one._replace(score=one.score + extra) for one, extra in zip(nbest, added)]
    return sorted(ranked, key=lambda hypothesis: -hypothesis.score)
