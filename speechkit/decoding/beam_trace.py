"""From the labels and parents of every step of a beam search to its hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechkit.decoding.alignment import forced_align
from speechkit.decoding.ctc_prefix import LOG_FLOOR
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.decoding.step_scorer import SearchBatch
from speechkit.losses.ctc import min_frames


class Trace:
    """What each step of a search chose; step ``u`` writes label ``u`` of K prefixes ``(B, K)``.

    A sequence of ``u`` labels that ended without (1) or with (0) being forced, in place ``k`` of
    the beam, has the code ``(u * beam_size + k) * 2 + forced``.
    """

    def __init__(self, beam_size: int) -> None:
        self.beam_size = beam_size
        self.scores: list[Tensor] = []  # of the prefixes before each step
        self.tokens: list[Tensor] = []
        self.parents: list[Tensor] = []
        self.log_probs: list[Tensor] = []  # of the tokens
        self.peaks: list[Tensor] = []  # frames at which the parents looked

    def append(
        self, tokens: Tensor, parents: Tensor, log_probs: Tensor, peaks: Tensor | None
    ) -> None:
        """Keep a step."""
        self.tokens.append(tokens)
        self.parents.append(parents)
        self.log_probs.append(log_probs)
        if peaks is not None:
            self.peaks.append(peaks)


class _Paths(NamedTuple):
    """Sequences of B utterances, N each, of at most U labels; rows end at ``sizes``."""

    sizes: np.ndarray  # (B, N)
    tokens: np.ndarray  # (B, N, U)
    log_probs: np.ndarray  # (B, N, U)
    frames: np.ndarray | None  # (B, N, U + 1): of the labels, then of the end


def read_hypotheses(
    trace: Trace,
    ranks: Tensor,
    codes: Tensor,
    normalization: float,
    sizes: Sequence[int],
    batch: SearchBatch,
) -> list[list[Hypothesis]]:
    """Read off the sequences of a pool.

    Parameters
    ----------
    trace : Trace
        All steps.
    ranks : Tensor
        Shape ``(B, N)``, falling; -inf where the pool has no sequence.
    codes : Tensor
        Shape ``(B, N)``, as `Trace` says.
    normalization : float
        Exponent of the length.
    sizes : sequence of int
        Frames of each utterance.
    batch : SearchBatch
        For the CTC posteriors, which place labels where there is no attention.

    Returns
    -------
    list of list of Hypothesis
        Where an utterance's pool is empty, since every end was impossible: its last prefixes.
    """
    found, codes_found = ranks.cpu().numpy().copy(), codes.cpu().numpy().copy()
    if np.isneginf(found[:, 0]).any():
        _fill_empty(trace, found, codes_found, normalization)
    paths = _trace_back(trace, codes_found)
    results = []
    for item, size in enumerate(sizes):
        places = [n for n in range(found.shape[1]) if found[item, n] > -np.inf]
        texts = [paths.tokens[item, n, : paths.sizes[item, n]] for n in places]
        if paths.frames is None:
            spans = _spans_by_ctc(texts, size, item, batch)
        else:
            spans = [
                _spans(paths.frames[item, n, : len(t) + 1], size) for n, t in zip(places, texts)
            ]
        results.append([
            Hypothesis(
                text.tolist(),
                float(found[item, n]),
                *span,
                np.exp(np.minimum(paths.log_probs[item, n, : len(text)], 0.0)).tolist(),
                not codes_found[item, n] % 2,
            )
            for n, text, span in zip(places, texts, spans)
        ])  # fmt: skip
    return results


def _fill_empty(trace: Trace, ranks: np.ndarray, codes: np.ndarray, normalization: float) -> None:
    """Put the last prefixes that were possible into pools without a sequence, as forced."""
    waiting = np.isneginf(ranks[:, 0])
    for step in range(len(trace.scores) - 1, -1, -1):
        scores = trace.scores[step].cpu().numpy()
        for item in np.flatnonzero(waiting & (scores.max(1) > -np.inf)):
            order = np.argsort(-scores[item], kind="stable")[: ranks.shape[1]]
            ranks[item, : len(order)] = scores[item, order] / (step + 1) ** normalization
            codes[item, : len(order)] = (step * trace.beam_size + order) * 2 + 1
            waiting[item] = False


def _trace_back(trace: Trace, codes: np.ndarray) -> _Paths:
    """Follow the parents of all sequences at once, from their ends."""
    sizes, place = np.divmod(codes // 2, trace.beam_size)
    longest, rows = int(sizes.max()), np.arange(len(codes))[:, None]
    tokens, parents, log_probs, peaks = (
        _to_host(steps) for steps in (trace.tokens, trace.parents, trace.log_probs, trace.peaks)
    )
    labels = np.zeros((*codes.shape, longest), dtype=np.int64)
    logs = np.zeros((*codes.shape, longest))
    frames = np.zeros((*codes.shape, longest + 1), dtype=np.int64)
    for step in range(min(longest, len(tokens) - 1), -1, -1):
        if peaks:  # the last look, before the end
            ending = np.minimum(place, peaks[step].shape[1] - 1)
            frames[..., step] = np.where(sizes == step, peaks[step][rows, ending], 0)
        if step == longest:
            continue
        inside = sizes > step
        here = np.where(inside, place, 0)
        labels[..., step] = np.where(inside, tokens[step][rows, here], 0)
        logs[..., step] = np.where(inside, log_probs[step][rows, here], 0.0)
        before = parents[step][rows, here]
        if peaks:
            frames[..., step] = np.where(inside, peaks[step][rows, before], frames[..., step])
        place = np.where(inside, before, place)
    return _Paths(sizes, labels, logs, frames if peaks else None)


def _to_host(steps: list[Tensor]) -> list[np.ndarray]:
    """Bring the tensors ``(B, K)`` of all steps over in one transfer."""
    if not steps:
        return []
    whole = torch.cat(steps, 1).cpu().numpy()
    return np.split(whole, np.cumsum([step.shape[1] for step in steps])[:-1], axis=1)


def _spans(frames: np.ndarray, size: int) -> tuple[list[int], list[int]]:
    """Make looks ``(U + 1,)``, that before the end last, to frames ``[start, end)`` of U labels."""
    rising = np.minimum(np.maximum.accumulate(frames), size - 1)
    return rising[:-1].tolist(), np.maximum(rising[1:], rising[:-1] + 1).tolist()


def _spans_by_ctc(
    texts: list[np.ndarray], size: int, item: int, batch: SearchBatch
) -> list[tuple[list[int], list[int]]]:
    """Place labels by the CTC posteriors; evenly where there are none or the frames too few."""
    spans = [_spans(np.arange(len(t) + 1) * size // max(len(t), 1), size) for t in texts]
    if batch.ctc_log_probs is None:
        return spans
    log_probs = batch.ctc_log_probs[item : item + 1, :size].float().clamp_min(LOG_FLOOR)
    for place, text in enumerate(texts):
        labels = torch.from_numpy(text)
        if min_frames(labels) <= size:
            one = forced_align(
                log_probs, torch.tensor([size]), labels[None], torch.tensor([len(labels)])
            )[0]
            spans[place] = (one.starts, one.ends)
    return spans
