"""One batched beam search for every decoder that writes one label after another.

All beams of all utterances advance together, as tensors ``(B, K, ...)``. A step::

    scores (B, K, V) of all scorers -> the K best (prefix, label) of each utterance
        label is END:  into the pool of the n best finished sequences, its place falls free
        otherwise:     a new prefix; every scorer gathers the states of the parents

Labels are not copied along: each step keeps its labels and parents, and the sequences are read off
backwards at the end. The device is waited for once per step, to know whether to go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from speechkit.decoding.beam_trace import Trace, read_hypotheses
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.decoding.step_scorer import SearchBatch, StepScorer
from speechkit.nn.stepping import END

_NEVER = float("-inf")


class Limits(NamedTuple):
    """What a search is bounded by, as in `speechkit.decoding.beam_search.BeamSearch`."""

    beam_size: int
    nbest: int
    length_normalization: float = 0.0
    end_threshold: float | None = None
    max_length_ratio: float = 1.0
    min_length_ratio: float = 0.0
    num_candidates: int | None = None


class BeamRun:
    """One search: the beams and the pool of a batch of B utterances of at least one frame.

    Parameters
    ----------
    limits : Limits
        What bounds it.
    scorers : sequence of StepScorer
        All that have a say; candidates and confidences are the first one's.
    batch : SearchBatch
        What is searched.
    frames : mapping of int to int
        Of each utterance, by what to call it in errors; in the order of the batch.
    """

    def __init__(
        self,
        limits: Limits,
        scorers: Sequence[StepScorer],
        batch: SearchBatch,
        frames: Mapping[int, int],
    ) -> None:
        self.limits = limits
        self.scorers = scorers
        self.batch = batch
        self.items, self.sizes = list(frames), list(frames.values())
        sizes = self.sizes
        starts = [scorer.start(batch) for scorer in scorers]
        self.fixed = [start.fixed for start in starts]
        self.states = [start.state for start in starts]
        device = batch.memory.device
        self.longest = [max(1, int(limits.max_length_ratio * size)) for size in sizes]
        self.max_lengths = torch.tensor(self.longest, device=device).unsqueeze(1)
        shortest = [int(limits.min_length_ratio * size) for size in sizes]
        self.shortest = max(shortest)
        self.min_lengths = torch.tensor(shortest, device=device).unsqueeze(1)
        self.tokens = torch.full((len(sizes), 1), END, device=device)
        self.live = torch.zeros((len(sizes), 1), dtype=torch.float64, device=device)
        self.ranks = torch.full(
            (len(sizes), limits.nbest), _NEVER, dtype=torch.float64, device=device
        )
        self.codes = torch.zeros((len(sizes), limits.nbest), dtype=torch.int64, device=device)
        self.trace = Trace(limits.beam_size)

    def search(self) -> list[list[Hypothesis]]:
        """Advance until nothing can change; read off what was found."""
        for step in range(max(self.longest) + 1):
            self.trace.scores.append(self.live)
            if self._advance(step):
                break
        normalization = self.limits.length_normalization
        return read_hypotheses(
            self.trace, self.ranks, self.codes, normalization, self.sizes, self.batch
        )

    def _advance(self, step: int) -> bool:
        """Append one label to every prefix; return whether that was the last step."""
        leading, scores, candidates, attention = self._score()
        forced = self._restrict(step, leading, scores)
        best, columns = scores.topk(min(self.limits.beam_size, scores.shape[-1]), sorted=False)
        dead = (self.live == _NEVER).unsqueeze(-1)  # their scores mean nothing, NaN included
        totals = (self.live.unsqueeze(-1) + best).masked_fill_(dead, _NEVER).flatten(1)
        live, index = totals.topk(min(self.limits.beam_size, totals.shape[1]))
        parents = index // best.shape[-1]
        columns = columns.flatten(1).gather(1, index)
        places = columns + parents * scores.shape[-1]
        tokens = columns if candidates is None else candidates.flatten(1).gather(1, places)
        self.trace.append(
            tokens,
            parents,
            leading.flatten(1).gather(1, places),
            None if attention is None else attention.argmax(-1),
        )
        ended = tokens == END
        codes = (step * self.limits.beam_size + parents) * 2
        if forced is not None:
            codes += forced.gather(1, parents)
        self._pool(step, live.masked_fill(~ended, _NEVER), codes)
        return self._go_on(step, live.masked_fill(ended, _NEVER), parents, tokens)

    def _score(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Ask all scorers: the first one's scores, all scores ``(B, K, C)``, labels, attention."""
        wanted = self.limits.num_candidates
        first = self.scorers[0]
        out = first.score(self.fixed[0], self.states[0], self.tokens, None, None)
        leading, states = out.log_probs, [out.state]
        candidates: Tensor | None = None
        if wanted is not None and wanted < leading.shape[-1] - 1:
            labels = leading[..., 1:].topk(wanted, sorted=False).indices + 1
            candidates = pad(labels, (1, 0), value=END)
            leading = leading.gather(-1, candidates)
        scores, attention = leading * first.weight, out.attention
        for scorer, fixed, state in zip(self.scorers[1:], self.fixed[1:], self.states[1:]):
            out = scorer.score(fixed, state, self.tokens, candidates, attention)
            scores.add_(out.log_probs, alpha=scorer.weight)
            states.append(out.state)
        self.states = states
        return leading, scores, candidates, attention

    def _restrict(self, step: int, leading: Tensor, scores: Tensor) -> Tensor | None:
        """Forbid ends and labels, in place; return which prefixes are forced to end, if any."""
        ends = scores[..., 0]
        at_limit = step in self.longest
        last = ends.clone() if at_limit else None
        if self.limits.end_threshold is not None:
            others = leading[..., 1:].amax(-1)
            ends.masked_fill_(leading[..., 0] <= self.limits.end_threshold * others, _NEVER)
        if step < self.shortest:
            ends.masked_fill_(self.min_lengths > step, _NEVER)
        if last is None:
            return None
        full = self.max_lengths == step
        forced = (scores.argmax(-1) != 0) & full
        scores.masked_fill_(full.unsqueeze(-1), _NEVER)
        ends.copy_(torch.where(full, last, ends))
        return forced

    def _pool(self, step: int, ended: Tensor, codes: Tensor) -> None:
        """Merge what has ended in this step into the pool of the best."""
        ranks = ended / (step + 1) ** self.limits.length_normalization
        self.ranks, order = torch.cat((self.ranks, ranks), 1).topk(self.limits.nbest)
        self.codes = torch.cat((self.codes, codes), 1).gather(1, order)

    def _go_on(self, step: int, live: Tensor, parents: Tensor, tokens: Tensor) -> bool:
        """Take the next beam, unless no continuation can enter the pool; return whether so.

        The bound: log-probabilities only fall, bonuses are taken in full, and a negative score is
        divided by the largest length that it may reach, a positive one by the smallest.
        """
        states = [
            scorer.select(fixed, state, parents, tokens)
            for scorer, fixed, state in zip(self.scorers, self.fixed, self.states)
        ]
        remaining = (self.max_lengths - (step + 1)).clamp_min(0)
        bound = live
        for scorer, fixed, state in zip(self.scorers, self.fixed, states):
            bound = bound + scorer.headroom(fixed, state, remaining)
        best = bound.amax(1, keepdim=True)
        power = self.limits.length_normalization
        if power:
            longest = (self.max_lengths + 1.0) ** power
            best = torch.where(best < 0.0, best / longest, best / (step + 2) ** power)
        done = best <= self.ranks[:, -1:]
        over, broken = torch.stack((done.all(), live.isnan().any())).tolist()
        if broken:
            items = live.isnan().any(1).nonzero().flatten().tolist()
            raise ValueError(
                f"item {self.items[items[0]]}: the scores of label {step + 1} are NaN; look at the "
                "encoder's output, at the decoder and at the language model"
            )
        self.states, self.tokens = states, tokens
        self.live = live.masked_fill_(done, _NEVER)
        return bool(over)
