"""Joint beam search: what a user sets, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.decoding.beam_run import BeamRun, Limits
from speechkit.decoding.ctc_prefix import CTCPrefixScorer
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.decoding.step_scorer import (
    AttentionScorer,
    CoverageBonus,
    LanguageModelScorer,
    LengthBonus,
    SearchBatch,
    StepScorer,
)
from speechkit.nn.stepping import StepDecoder


class BeamSearch:
    """Search for the label sequences of the highest joint score.

    The score is ``(1 - ctc_weight) log p_attention + ctc_weight log p_ctc + lm_weight log p_lm``,
    of all labels and the end, plus ``length_bonus`` for each label and ``coverage_weight`` for each
    frame that was looked at. A sequence that has ended leaves its place in the beam to others; the
    search stops where nothing in the beam can become better than the ``nbest`` that have ended.

    Parameters
    ----------
    beam_size : int
        How many prefixes survive a step; 1 is greedy. At most the number of labels.
    nbest : int
        How many hypotheses to return at most.
    ctc_weight : float
        In [0, 1]; 1 searches by the CTC prefix scores alone, without the decoder.
    lm : language model, optional
        A step decoder without memory, over the labels of the recogniser. It is set to evaluation
        here, and brought to the device of the memory in each call.
    lm_weight : float
        At least 0; 0 is as good as no language model.
    length_normalization : float
        Ranks by the score divided by ``(labels + 1) ** length_normalization``; 0 is off.
    length_bonus : float
        Natural logarithm for each label.
    coverage_weight : float
        At least 0, for each frame whose summed attention exceeds ``coverage_threshold``: the
        coverage of Chorowski and Jaitly (2017).
    coverage_threshold : float
        Above 0.
    end_threshold : float, optional
        A sequence ends only where ``log p(end) > end_threshold * max log p(other)`` in the
        attention decoder (Hannun et al., 2019, use 1.5; it is a ratio of negative numbers).
    max_length_ratio, min_length_ratio : float
        Bounds of the number of labels, relative to the utterance's frames in ``memory``.
    num_candidates : int, optional
        Partial scoring: only so many labels of each prefix, the decoder's best, and the end are
        scored by CTC and language model. All by default.

    Raises
    ------
    ValueError
        Where options make no sense or contradict each other; all of them are named.

    References
    ----------
    Watanabe et al. (2017), "Hybrid CTC/attention architecture for end-to-end speech recognition",
    section II-C; Hannun, Lee, Xu and Collobert (2019), "Sequence-to-sequence speech recognition
    with time-depth separable convolutions", section 3.1.2.

    Examples
    --------
    Without a decoder, by CTC alone: three paths together make label 1 (0.64).

    >>> log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    >>> search = BeamSearch(beam_size=2, nbest=2, ctc_weight=1.0)
    >>> found = search(None, torch.zeros(1, 2, 3), torch.tensor([2]), log_probs)[0]
    >>> [(h.tokens, round(torch.tensor(h.score).exp().item(), 4)) for h in found]
    [([1], 0.64), ([], 0.36)]
    """

    def __init__(
        self,
        *,
        beam_size: int = 10,
        nbest: int = 1,
        ctc_weight: float = 0.0,
        lm: Any = None,
        lm_weight: float = 0.0,
        length_normalization: float = 0.0,
        length_bonus: float = 0.0,
        coverage_weight: float = 0.0,
        coverage_threshold: float = 0.5,
        end_threshold: float | None = None,
        max_length_ratio: float = 1.0,
        min_length_ratio: float = 0.0,
        num_candidates: int | None = None,
    ) -> None:
        self.beam_size = beam_size
        self.nbest = nbest
        self.ctc_weight = ctc_weight
        self.lm = lm
        self.lm_weight = lm_weight
        self.length_normalization = length_normalization
        self.length_bonus = length_bonus
        self.coverage_weight = coverage_weight
        self.coverage_threshold = coverage_threshold
        self.end_threshold = end_threshold
        self.max_length_ratio = max_length_ratio
        self.min_length_ratio = min_length_ratio
        self.num_candidates = num_candidates
        problems = [*self._wrong_values(), *self._contradictions()]
        if problems:
            raise ValueError("BeamSearch: " + "; ".join(problems))
        if isinstance(lm, nn.Module):
            lm.eval()

    def __call__(
        self,
        decoder: StepDecoder | None,
        memory: Tensor,
        lengths: Tensor,
        ctc_log_probs: Tensor | None = None,
        *,
        pieces: Sequence[str] | None = None,
    ) -> list[list[Hypothesis]]:
        """Search each utterance of a batch.

        Parameters
        ----------
        decoder : StepDecoder or None
            As in `speechkit.nn.stepping`, in evaluation mode; None only with ``ctc_weight=1``.
        memory : Tensor
            Shape ``(B, T, D)``, the encoder's output.
        lengths : Tensor
            Shape ``(B,)``, integer: valid frames; what lies beyond changes nothing.
        ctc_log_probs : Tensor, optional
            Shape ``(B, T, V)``, log-posteriors of the CTC head, blank 0. Without an attention map
            they also say at which frames the labels lie.
        pieces : sequence of str, optional
            The recogniser's labels, to be compared with those of the language model's tokenizer.

        Returns
        -------
        list of list of Hypothesis
            For each item 1 to ``nbest`` hypotheses, the best first. A hypothesis that has reached
            the maximum length and did not want to end there has ``stopped=False``. Frames are
            where the attention peaks, made monotone; else those of the CTC alignment; else spread
            evenly. Confidences are the probabilities that the decoder gave to the labels.

        Raises
        ------
        ValueError
            Where shapes disagree, the beam is wider than the vocabulary, the language model has
            other labels, CTC posteriors are missing, or scores are NaN.
        """
        sizes = _sizes(memory, lengths)
        vocab_size = self._vocab_size(decoder, ctc_log_probs, memory)
        self.check_vocabulary(vocab_size, pieces)
        results = [[Hypothesis([], 0.0, [], [], [])] for _ in sizes]
        items = [item for item, size in enumerate(sizes) if size]  # no frames: no labels
        if not items:
            return results
        batch = SearchBatch(memory, lengths.to(memory.device, torch.int64), ctc_log_probs)
        if len(items) < len(sizes):
            batch = _keep(batch, items)
        scorers = self._scorers(decoder, vocab_size, memory)
        with torch.no_grad():
            run = BeamRun(self._limits(), scorers, batch, {item: sizes[item] for item in items})
            for item, found in zip(items, run.search()):
                results[item] = found
        return results

    def _scorers(
        self, decoder: StepDecoder | None, vocab_size: int, memory: Tensor
    ) -> list[StepScorer]:
        """Give all scorers that have a say, the one whose probabilities are confidences first."""
        scorers: list[StepScorer] = []
        if self.ctc_weight < 1.0:
            assert decoder is not None
            scorers.append(AttentionScorer(decoder=decoder, weight=1.0 - self.ctc_weight))
        if self.ctc_weight > 0.0:
            scorers.append(CTCPrefixScorer(weight=self.ctc_weight))
        if self.lm is not None and self.lm_weight > 0.0:
            if isinstance(self.lm, nn.Module):
                self.lm.to(memory.device)
            scorers.append(LanguageModelScorer(lm=self.lm, weight=self.lm_weight))
        if self.length_bonus != 0.0:
            scorers.append(LengthBonus(vocab_size=vocab_size, weight=self.length_bonus))
        if self.coverage_weight > 0.0:
            scorers.append(
                CoverageBonus(weight=self.coverage_weight, threshold=self.coverage_threshold)
            )
        return scorers

    def _limits(self) -> Limits:
        return Limits(
            self.beam_size,
            self.nbest,
            self.length_normalization,
            self.end_threshold,
            self.max_length_ratio,
            self.min_length_ratio,
            self.num_candidates,
        )

    def _wrong_values(self) -> list[str]:
        least = {"lm_weight": 0.0, "length_normalization": 0.0, "coverage_weight": 0.0}
        problems = [
            f"{name} must be at least 0, got {getattr(self, name)}"
            for name in least
            if not getattr(self, name) >= 0.0
        ]
        if self.beam_size < 1 or not 1 <= self.nbest <= self.beam_size:
            problems.append(
                "1 <= nbest <= beam_size must hold, got "
                f"nbest={self.nbest}, beam_size={self.beam_size}"
            )
        if not 0.0 <= self.ctc_weight <= 1.0:
            problems.append(f"ctc_weight must lie in [0, 1], got {self.ctc_weight}")
        if not 0.0 <= self.min_length_ratio <= self.max_length_ratio or self.max_length_ratio <= 0:
            problems.append(
                "0 <= min_length_ratio <= max_length_ratio and 0 < max_length_ratio must hold, got "
                f"{self.min_length_ratio} and {self.max_length_ratio}"
            )
        if self.num_candidates is not None and self.num_candidates < 1:
            problems.append(f"num_candidates must be at least 1, got {self.num_candidates}")
        for name in ("end_threshold", "coverage_threshold"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                problems.append(f"{name} must be above 0, got {value}")
        return problems

    def _contradictions(self) -> list[str]:
        problems = []
        if self.lm is None and self.lm_weight > 0.0:
            problems.append(f"lm_weight={self.lm_weight} without an lm")
        if self.length_normalization > 0.0 and self.length_bonus != 0.0:
            problems.append(
                f"length_normalization={self.length_normalization} undoes "
                f"length_bonus={self.length_bonus}: choose one"
            )
        if self.ctc_weight == 1.0:  # what needs the attention decoder
            asked = {
                "coverage_weight": self.coverage_weight > 0.0,
                "end_threshold": self.end_threshold is not None,
                "num_candidates": self.num_candidates is not None,
            }
            problems += [
                f"{name}={getattr(self, name)} needs the attention decoder, which has no say with "
                "ctc_weight=1"
                for name, given in asked.items()
                if given
            ]
        return problems

    def _vocab_size(
        self, decoder: StepDecoder | None, ctc_log_probs: Tensor | None, memory: Tensor
    ) -> int:
        if decoder is None and self.ctc_weight < 1.0:
            raise ValueError(f"ctc_weight={self.ctc_weight} needs a decoder; without one it is 1")
        if ctc_log_probs is None:
            if self.ctc_weight > 0.0 or decoder is None:
                raise ValueError(
                    f"ctc_weight={self.ctc_weight} needs ctc_log_probs: give those of the CTC "
                    "head, or set it to 0 for a recogniser that has none"
                )
            return decoder.vocab_size
        if ctc_log_probs.dim() != 3 or ctc_log_probs.shape[:2] != memory.shape[:2]:
            raise ValueError(
                "ctc_log_probs must be (B, T, V) with the B and T of memory, got "
                f"{tuple(ctc_log_probs.shape)} and {tuple(memory.shape)}"
            )
        vocab_size = ctc_log_probs.shape[2]
        if decoder is not None and decoder.vocab_size != vocab_size:
            raise ValueError(
                f"the decoder has {decoder.vocab_size} labels, but ctc_log_probs {vocab_size}"
            )
        return vocab_size

    def check_vocabulary(self, vocab_size: int, pieces: Sequence[str] | None) -> None:
        """Raise a ValueError where the beam or the language model does not fit a recogniser.

        Parameters
        ----------
        vocab_size : int
            Labels of the recogniser.
        pieces : sequence of str, optional
            The string of each label.
        """
        if self.beam_size > vocab_size:
            raise ValueError(
                f"beam_size={self.beam_size} is wider than the vocabulary of {vocab_size} labels: "
                f"take a beam of at most {vocab_size}"
            )
        if self.lm is None:
            return
        size = self.lm.vocab_size
        theirs = getattr(getattr(self.lm, "tokenizer", None), "pieces", None)
        where = ""
        if pieces is not None and theirs is not None:
            pairs = enumerate(zip(pieces, theirs))
            different = next(((i, a, b) for i, (a, b) in pairs if a != b), None)
            if different is not None:
                where = "; label {} is {!r} in the recogniser, {!r} in the lm".format(*different)
        if size != vocab_size or where:
            raise ValueError(
                f"the lm has other labels: {size} against {vocab_size} of the recogniser{where}; "
                "train it with the recogniser's tokenizer"
            )


def _sizes(memory: Tensor, lengths: Tensor) -> list[int]:
    """Check a batch; return its lengths."""
    if memory.dim() != 3 or lengths.shape != memory.shape[:1]:
        raise ValueError(
            "memory must be (B, T, D) and lengths (B,), got "
            f"{tuple(memory.shape)} and {tuple(lengths.shape)}"
        )
    sizes = [int(size) for size in lengths.tolist()]
    for index, size in enumerate(sizes):
        if not 0 <= size <= memory.shape[1]:
            raise ValueError(f"item {index}: length {size} outside 0..{memory.shape[1]}")
    return sizes


def _keep(batch: SearchBatch, items: list[int]) -> SearchBatch:
    """Keep some utterances of a batch."""
    index = torch.tensor(items, device=batch.memory.device)
    posteriors = batch.ctc_log_probs
    return SearchBatch(
        batch.memory[index],
        batch.lengths[index],
        None if posteriors is None else posteriors[index.to(posteriors.device)],
    )
