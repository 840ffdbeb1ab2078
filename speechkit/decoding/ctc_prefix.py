"""CTC prefix probabilities for a search that writes label after label.

The probability ``psi`` that the labels begin with prefix `g` and then `c` needs the mass of the
paths that have written exactly `g` after each frame::

    frame             0 . . . t-1  t . . . T
    paths of g        |-----------|              total_{t-1}(g), by dynamic programming
    label c                       |-|            p_t(c)
    anything                        |---------|  1

    psi(g c) = sum over t of total_{t-1}(g) p_t(c)

so the sums of all labels are one matrix product. Only prefixes that are kept need their own
``total``; its recurrence ``x_t = a_t (x_{t-1} + b_{t-1})`` has a closed form in cumulative sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from speechkit.decoding.step_scorer import SearchBatch
from speechkit.nn.masking import length_mask
from speechkit.nn.stepping import END, Start, StepOutput

LOG_FLOOR = -1e4
"""Log-probabilities below this count as this: their cumulative sums must stay finite."""
_LOWEST = -1e300


class _Fixed(NamedTuple):
    """What belongs to an utterance. All in float64: T frames, V labels, blank 0."""

    log_probs: Tensor  # (B, V, T); in the padding the blank has probability 1
    peaks: Tensor  # (B, 1, T), log-probability of each frame's best label; -inf in the padding
    probs: Tensor  # (B, V, T), over those of the best label
    blank_sums: Tensor  # (B, 1, T + 1): sums of the blank's over the frames before each


class _State(NamedTuple):
    """What belongs to a prefix. Index t of the last axis: after t frames, natural logarithms."""

    blank: Tensor  # (B, K, T + 1): paths that end in a blank
    total: Tensor  # (B, K, T + 1): all paths of exactly this prefix
    prefix: Tensor  # (B, K): psi, that the labels begin so
    repeat: Tensor  # (B, K): psi of the prefix and its last label once more
    last: Tensor  # (B, K), int64: the last label


class CTCPrefixScorer:
    """Scores each label by the CTC probability that it comes next.

    The score of label `c` after prefix `g` is ``log psi(g c) - log psi(g)``, that of the end
    ``log p(g is all) - log psi(g)``: a finished sequence's scores sum to its log-probability.

    All labels are scored by one product ``[K, T] x [T, V]`` per utterance, in float64 and relative
    to the best label of each frame and the best frame of each prefix: what underflows is
    ``exp(-700)`` times less probable than the prefix's best continuation. It then counts as
    impossible. The forward recurrence runs for kept prefixes alone, without a loop over frames.

    Parameters
    ----------
    weight : float
        What the search multiplies the scores by.

    References
    ----------
    Watanabe, Hori, Kim, Hershey and Hayashi (2017), "Hybrid CTC/attention architecture for
    end-to-end speech recognition", algorithm 2; Hori, Watanabe and Hershey (2017), "Joint
    CTC/attention decoding for end-to-end speech recognition".

    Examples
    --------
    >>> from speechkit.decoding.step_scorer import SearchBatch
    >>> log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    >>> batch = SearchBatch(torch.zeros(1, 2, 3), torch.tensor([2]), log_probs)
    >>> scorer = CTCPrefixScorer()
    >>> fixed, state = scorer.start(batch)
    >>> scores = scorer.score(fixed, state, torch.tensor([[0]]), None, None).log_probs
    >>> scores.exp().round(decimals=4).tolist()  # blank blank ends it; the other paths have label 1
    [[[0.36, 0.64]]]
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        self.weight = weight

    def start(self, batch: SearchBatch) -> Start:
        """Prepare the posteriors of a batch; one empty prefix per utterance.

        Raises
        ------
        ValueError
            Where there are no CTC posteriors.
        """
        if batch.ctc_log_probs is None:
            raise ValueError("a CTC prefix scorer needs ctc_log_probs (B, T, V)")
        log_probs = batch.ctc_log_probs.detach().double().transpose(1, 2).clamp_min(LOG_FLOOR)
        padding = ~length_mask(batch.lengths, log_probs.shape[2]).unsqueeze(1)
        log_probs = log_probs.masked_fill(padding, LOG_FLOOR)
        log_probs[:, :1].masked_fill_(padding, 0.0)  # so the sums at T are those at the length
        log_probs = log_probs.contiguous()
        peaks = log_probs[:, 1:].amax(1, keepdim=True)
        probs = (log_probs - peaks).exp_()
        blank_sums = pad(log_probs[:, :1].cumsum(-1), (1, 0))
        fixed = _Fixed(log_probs, peaks.masked_fill(padding, float("-inf")), probs, blank_sums)
        nothing = torch.zeros_like(blank_sums[..., 0])
        last = torch.full_like(nothing, END, dtype=torch.int64)
        return Start(fixed, _State(blank_sums, blank_sums, nothing, nothing, last))

    def score(
        self,
        fixed: _Fixed,
        state: _State,
        tokens: Tensor,
        candidates: Tensor | None,
        attention: Tensor | None,
    ) -> StepOutput:
        """Score what follows each prefix: ``(B, K, V)``, or ``(B, K, C)`` for ``candidates``."""
        frames = state.total[..., :-1] + fixed.peaks  # (B, K, T)
        best = frames.amax(-1, keepdim=True).clamp_min(_LOWEST)
        weights = frames.sub_(best).exp_()
        scale = best - state.prefix.unsqueeze(-1).clamp_min(_LOWEST)
        repeat = (state.repeat - state.prefix.clamp_min(_LOWEST)).unsqueeze(-1)
        end = (state.total[..., -1] - state.prefix.clamp_min(_LOWEST)).unsqueeze(-1)
        last = state.last.unsqueeze(-1)
        if candidates is None or candidates.shape[1:].numel() >= fixed.probs.shape[1]:
            scores = weights.matmul(fixed.probs.transpose(1, 2)).log_().add_(scale)
            scores.scatter_(-1, last, repeat)
            scores[..., :1] = end
            if candidates is not None:
                scores = scores.gather(-1, candidates)
            return StepOutput(scores, state)
        rows = _rows(fixed.probs, candidates)  # (B, K, C, T)
        scores = rows.matmul(weights.unsqueeze(-1)).squeeze(-1).log_().add_(scale)
        scores = torch.where(candidates == last, repeat, scores)
        return StepOutput(torch.where(candidates == END, end, scores), state)

    def select(self, fixed: _Fixed, state: _State, parents: Tensor, tokens: Tensor) -> _State:
        """Extend the prefixes ``parents`` ``(B, K')`` by ``tokens`` ``(B, K')``: the recurrence."""
        flat = _flat(parents, state.last.shape[1])
        blank, total = (x.flatten(0, 1).index_select(0, flat) for x in state[:2])
        again = state.last.flatten().index_select(0, flat).unsqueeze(1) == tokens.reshape(-1, 1)
        before = torch.where(again, blank, total).view(*parents.shape, -1)[..., :-1]
        own = _rows(fixed.log_probs, tokens)  # (B, K', T)
        sums = own.cumsum(-1)
        labels = before - sums + own
        labels = labels.logcumsumexp(-1).add_(sums)  # (B, K', T): end in the label, frames 1..T
        prefix = (before + own).logsumexp(-1)
        # Ending in a blank after t frames: in the label after some s < t, blanks from s + 1 to t.
        late = (labels[..., :-1] - fixed.blank_sums[..., 1:-1]).logcumsumexp(-1)
        late += fixed.blank_sums[..., 2:]
        blank = pad(late, (2, 0), value=float("-inf"))
        total = torch.logaddexp(blank, pad(labels, (1, 0), value=float("-inf")))
        repeat = (blank[..., :-1] + own).logsumexp(-1)
        return _State(blank, total, prefix, repeat, tokens)

    def headroom(self, fixed: _Fixed, state: _State, remaining: Tensor) -> Tensor | float:
        """Return what the score may still gain: nothing, since it is a log-probability."""
        return 0.0


def _flat(index: Tensor, size: int) -> Tensor:
    """Turn an index ``(B, ...)`` into ``size`` rows of each item into one over all rows."""
    first = torch.arange(0, len(index) * size, size, device=index.device)
    return (index + first.view(-1, *[1] * (index.dim() - 1))).flatten()


def _rows(data: Tensor, labels: Tensor) -> Tensor:
    """Look up rows of ``(B, V, T)`` by labels ``(B, ...)``: ``(B, ..., T)``."""
    rows = data.flatten(0, 1).index_select(0, _flat(labels, data.shape[1]))
    return rows.view(*labels.shape, data.shape[2])
