"""What scores the labels in a search that writes one label after another.

Every scorer keeps, as step decoders do, what belongs to an utterance (``fixed``) apart from what
belongs to a prefix (``state``, leading axes ``(B, K)``). In each step the search calls ``score`` of
every scorer, adds the scores up with their weights, keeps the best prefixes, and calls ``select``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from speechkit.nn.masking import mask_padding
from speechkit.nn.stepping import END, Start, StepDecoder, StepOutput, select_beams


class SearchBatch(NamedTuple):
    """What a search is about.

    Attributes
    ----------
    memory : Tensor
        Shape ``(B, T, D)``, the encoder's output.
    lengths : Tensor
        Shape ``(B,)``, int64, on the device of ``memory``: valid frames.
    ctc_log_probs : Tensor or None
        Shape ``(B, T, V)``, log-posteriors of the encoder's CTC head.
    """

    memory: Tensor
    lengths: Tensor
    ctc_log_probs: Tensor | None = None


class StepScorer(Protocol):
    """Adds to the scores of prefixes, label by label; scores are natural logarithms."""

    weight: float
    """What the search multiplies the scores by."""

    def start(self, batch: SearchBatch) -> Start:
        """Return what belongs to the utterances, and the state of one empty prefix for each."""
        ...

    def score(
        self,
        fixed: Any,
        state: Any,
        tokens: Tensor,
        candidates: Tensor | None,
        attention: Tensor | None,
    ) -> StepOutput:
        """Score what may follow each prefix.

        ``tokens`` ``(B, K)`` are the last labels (`END` at the beginning). With ``candidates``
        ``(B, K, C)``, of which the first is `END`, only those are scored: ``(B, K, C)``, otherwise
        all labels: ``(B, K, V)``, or what broadcasts to it. ``attention`` ``(B, K, T)`` is where
        the decoder looked in this step.
        """
        ...

    def select(self, fixed: Any, state: Any, parents: Tensor, tokens: Tensor) -> Any:
        """Return the state of prefixes ``parents`` ``(B, K')`` with ``tokens`` appended."""
        ...

    def headroom(self, fixed: Any, state: Any, remaining: Tensor) -> Tensor | float:
        """Return the most that any continuation may gain, weight included.

        ``remaining`` ``(B, 1)`` counts the labels that may still come; the answer broadcasts to
        ``(B, K)``. Log-probabilities gain nothing: 0. The search ends early by this.
        """
        ...


class _Stepped:
    """What scorers share whose state is a step decoder's and whose scores are log-probabilities."""

    def select(self, fixed: Any, state: Any, parents: Tensor, tokens: Tensor) -> Any:
        """Gather the states of the parents."""
        return select_beams(state, parents)

    def headroom(self, fixed: Any, state: Any, remaining: Tensor) -> Tensor | float:
        """Return 0."""
        return 0.0


class AttentionScorer(_Stepped):
    """The attention decoder's log-probabilities.

    Parameters
    ----------
    decoder : StepDecoder
        As in `speechkit.nn.stepping`.
    weight : float
        What the search multiplies the scores by.
    """

    def __init__(self, *, decoder: StepDecoder, weight: float = 1.0) -> None:
        self.decoder = decoder
        self.weight = weight

    def start(self, batch: SearchBatch) -> Start:
        """Start the decoder."""
        return self.decoder.start(batch.memory, batch.lengths)

    def score(
        self,
        fixed: Any,
        state: Any,
        tokens: Tensor,
        candidates: Tensor | None,
        attention: Tensor | None,
    ) -> StepOutput:
        """Step the decoder."""
        return _only(self.decoder.step(tokens, fixed, state), candidates)


class StepLanguageModel(Protocol):
    """A language model as a search sees it."""

    vocab_size: int

    def start(self, batch_size: int, device: torch.device) -> Start:
        """Return the state of one empty sentence for each item."""
        ...

    def step(self, tokens: Tensor, fixed: Any, state: Any) -> StepOutput:
        """Append ``tokens`` ``(B, K)`` to the sentences and score what follows."""
        ...


class LanguageModelScorer(_Stepped):
    """A language model's log-probabilities: shallow fusion.

    Parameters
    ----------
    lm : StepLanguageModel
        With the labels of the recogniser.
    weight : float
        What the search multiplies the scores by.

    References
    ----------
    Gulcehre et al. (2015), "On using monolingual corpora in neural machine translation".
    """

    def __init__(self, *, lm: StepLanguageModel, weight: float) -> None:
        self.lm = lm
        self.weight = weight

    def start(self, batch: SearchBatch) -> Start:
        """Start the language model."""
        return self.lm.start(len(batch.memory), batch.memory.device)

    def score(
        self,
        fixed: Any,
        state: Any,
        tokens: Tensor,
        candidates: Tensor | None,
        attention: Tensor | None,
    ) -> StepOutput:
        """Step the language model."""
        return _only(self.lm.step(tokens, fixed, state), candidates)


class LengthBonus:
    """A constant for every label, the end excepted: against the bias for short sequences.

    Parameters
    ----------
    vocab_size : int
        Labels, `END` included.
    weight : float
        Natural logarithm for each label; negative values make sequences shorter.

    Examples
    --------
    >>> bonus = LengthBonus(vocab_size=3, weight=0.5)
    >>> fixed, state = bonus.start(SearchBatch(torch.zeros(1, 4, 2), torch.tensor([4])))
    >>> bonus.score(fixed, state, torch.tensor([[0]]), None, None).log_probs.tolist()
    [0.0, 1.0, 1.0]
    """

    def __init__(self, *, vocab_size: int, weight: float) -> None:
        self.vocab_size = vocab_size
        self.weight = weight

    def start(self, batch: SearchBatch) -> Start:
        """Return the gains of all labels."""
        gains = torch.ones(self.vocab_size, device=batch.memory.device)
        gains[END] = 0.0
        return Start(gains, None)

    def score(
        self,
        fixed: Tensor,
        state: None,
        tokens: Tensor,
        candidates: Tensor | None,
        attention: Tensor | None,
    ) -> StepOutput:
        """Return 1 for every label."""
        return StepOutput(fixed if candidates is None else (candidates != END).float(), None)

    def select(self, fixed: Tensor, state: None, parents: Tensor, tokens: Tensor) -> None:
        """Return nothing: there is no state."""

    def headroom(self, fixed: Tensor, state: None, remaining: Tensor) -> Tensor | float:
        """Return the bonuses of all labels that may still come."""
        return remaining * max(self.weight, 0.0)


class CoverageBonus:
    """Counts the frames that the decoder has looked at: against loops and skipped words.

    The coverage of Chorowski and Jaitly (2017), "Towards better decoding and language model
    integration in sequence to sequence models", equation 11 (not the penalty of Wu et al., 2016):
    the number of frames whose attention, summed over all steps, exceeds a threshold. Looking again
    at a covered frame gains nothing.

    Parameters
    ----------
    weight : float
        Natural logarithm for each frame, at least 0.
    threshold : float
        From which sum of attention on a frame counts.

    Examples
    --------
    >>> bonus = CoverageBonus(weight=0.1)
    >>> fixed, state = bonus.start(SearchBatch(torch.zeros(1, 3, 2), torch.tensor([3])))
    >>> look, token = torch.tensor([[[0.1, 0.9, 0.0]]]), torch.tensor([[0]])
    >>> first = bonus.score(fixed, state, token, None, look)
    >>> first.log_probs.item(), bonus.score(fixed, first.state, token, None, look).log_probs.item()
    (1.0, 0.0)
    """

    def __init__(self, *, weight: float, threshold: float = 0.5) -> None:
        self.weight = weight
        self.threshold = threshold

    def start(self, batch: SearchBatch) -> Start:
        """Return the frames' number, and that none is covered."""
        seen = batch.memory.new_zeros((len(batch.memory), 1, batch.memory.shape[1]))
        return Start(batch.lengths, (seen.float(), batch.lengths.new_zeros((len(seen), 1))))

    def score(
        self,
        fixed: Tensor,
        state: tuple[Tensor, Tensor],
        tokens: Tensor,
        candidates: Tensor | None,
        attention: Tensor | None,
    ) -> StepOutput:
        """Return how many frames this step covers, ``(B, K, 1)``: the same for all labels.

        Raises
        ------
        ValueError
            Where the decoder gives no attention.
        """
        if attention is None:
            raise ValueError(
                "coverage_weight needs a decoder that gives its attention: set it to 0"
            )
        looks = mask_padding(attention.float().transpose(1, 2), fixed).transpose(1, 2)
        seen = state[0] + looks
        count = (seen > self.threshold).sum(-1)
        return StepOutput((count - state[1]).unsqueeze(-1).float(), (seen, count))

    def select(
        self, fixed: Tensor, state: tuple[Tensor, Tensor], parents: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gather the sums of the parents."""
        return select_beams(state, parents)

    def headroom(
        self, fixed: Tensor, state: tuple[Tensor, Tensor], remaining: Tensor
    ) -> Tensor | float:
        """Return the gain from covering all frames that are not covered."""
        return (fixed.unsqueeze(1) - state[1]) * self.weight


def _only(out: StepOutput, candidates: Tensor | None) -> StepOutput:
    if candidates is None:
        return out
    return out._replace(log_probs=out.log_probs.gather(-1, candidates))
