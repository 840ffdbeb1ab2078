"""Which frames belong to which symbol: the best monotonic alignment, and a prior over all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from speechkit.nn.masking import length_mask

_WORST = -1e30
"""Score in place of NaN and -inf: a sum of many is still a float32, and comparisons stay valid."""


def search_durations(scores: Tensor, frame_lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """Find the monotonic alignment with the largest sum of scores.

    The first frame belongs to the first symbol, the last to the last, and from a frame to the next
    the symbol stays or moves on by one; so each symbol has at least one frame. With
    ``Q[t, u]`` the best sum over the first ``t + 1`` frames that ends in symbol ``u``::

        Q[t, u] = scores[t, u] + max(Q[t-1, u], Q[t-1, u-1])

    Kim et al. 2020, "Glow-TTS: A generative flow for text-to-speech via monotonic alignment
    search", algorithm 1. Computed on the CPU, for the whole batch in each step; no gradient. Of
    equal paths it takes the one that gives the later symbols more frames.

    Parameters
    ----------
    scores : Tensor
        Shape ``(B, T, U)``: larger is better, such as log-probabilities. What lies beyond the
        lengths means nothing; NaN and -inf are the worst.
    frame_lengths, token_lengths : Tensor
        Shape ``(B,)``: valid frames and symbols.

    Returns
    -------
    Tensor
        Shape ``(B, U)``, int64: frames of each symbol, which sum to ``frame_lengths``; zero beyond
        ``token_lengths``.

    Raises
    ------
    ValueError
        If an item has no symbol, or fewer frames than symbols.

    Examples
    --------
    >>> scores = torch.tensor([[[0.0, -9], [0, -9], [-9, 0], [-9, 0], [-9, 0]]])
    >>> search_durations(scores, torch.tensor([5]), torch.tensor([2])).tolist()
    [[2, 3]]
    """
    _check(scores, frame_lengths, token_lengths)
    frames, symbols = frame_lengths.cpu().numpy(), token_lengths.cpu().numpy()
    values = scores.detach().float().nan_to_num(_WORST, neginf=_WORST).cpu().numpy()
    if len(frames) == 0:
        return torch.zeros(0, scores.shape[2], dtype=torch.int64, device=scores.device)
    durations = _backtrack(_moves(values, int(frames.max())), frames, symbols)
    return torch.from_numpy(durations).to(scores.device)


def _moves(scores: np.ndarray, num_frames: int) -> np.ndarray:
    """``(T, B, U)``: whether the best path into symbol ``u`` at frame ``t`` came from ``u - 1``."""
    batch_size, _, num_symbols = scores.shape
    moved = np.zeros((num_frames, batch_size, num_symbols), dtype=bool)
    # One column more on the left, from which nothing ever comes.
    best = np.full((batch_size, num_symbols + 1), -np.inf, dtype=np.float64)
    best[:, 1] = scores[:, 0, 0]
    for t in range(1, num_frames):
        np.greater(best[:, :-1], best[:, 1:], out=moved[t])
        # The right side is complete before the left is written.
        best[:, 1:] = np.maximum(best[:, :-1], best[:, 1:]) + scores[:, t]
    return moved


def _backtrack(moved: np.ndarray, frames: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    num_frames, batch_size, num_symbols = moved.shape
    durations = np.zeros((batch_size, num_symbols), dtype=np.int64)
    rows = np.arange(batch_size)
    symbol = symbols - 1
    for t in range(num_frames - 1, -1, -1):
        valid = t < frames
        durations[rows, symbol] += valid
        symbol = symbol - (moved[t, rows, symbol] & valid)
    return durations


def _check(scores: Tensor, frame_lengths: Tensor, token_lengths: Tensor) -> None:
    batch_size, num_frames, num_symbols = scores.shape
    if frame_lengths.shape != (batch_size,) or token_lengths.shape != (batch_size,):
        raise ValueError(
            f"scores are of {batch_size} items, the lengths {tuple(frame_lengths.shape)} and "
            f"{tuple(token_lengths.shape)}"
        )
    wrong = (token_lengths < 1) | (token_lengths > num_symbols)
    wrong |= (frame_lengths < token_lengths) | (frame_lengths > num_frames)
    if bool(wrong.any()):
        item = int(wrong.nonzero()[0])
        raise ValueError(
            f"item {item} has {int(frame_lengths[item])} frames (of {num_frames}) for "
            f"{int(token_lengths[item])} symbols (of {num_symbols}): each symbol needs a frame. "
            "Leave such items out, or make frames with a shorter hop"
        )


def beta_binomial_prior(
    frame_lengths: Tensor,
    token_lengths: Tensor,
    num_frames: int,
    num_symbols: int,
    *,
    scale: float = 1.0,
) -> Tensor:
    """Log-probabilities of the symbols at each frame for speech of an even pace.

    At frame ``t`` of ``T`` (from 1) the symbol (from 0) is beta-binomial on ``0 .. U - 1`` with
    ``alpha = scale * t`` and ``beta = scale * (T + 1 - t)``: a wide cigar around the diagonal.
    Badlani et al. 2021, "One TTS alignment to rule them all", section 2.

    Parameters
    ----------
    frame_lengths, token_lengths : Tensor
        Shape ``(B,)``: valid frames and symbols.
    num_frames, num_symbols : int
        T and U of the result.
    scale : float
        Above zero; the larger, the narrower.

    Returns
    -------
    Tensor
        Shape ``(B, T, U)``, float32. The valid frames' probabilities of the valid symbols sum to
        one; zero (not -inf) elsewhere.

    Raises
    ------
    ValueError
        If ``scale`` is not above zero.

    Examples
    --------
    >>> prior = beta_binomial_prior(torch.tensor([3]), torch.tensor([2]), 3, 2)
    >>> prior.exp()[0].mul(4).round().int().tolist()  # quarters
    [[3, 1], [2, 2], [1, 3]]
    """
    if not scale > 0:
        raise ValueError(f"the scale of the prior must be above zero: {scale}")
    device = frame_lengths.device
    t = torch.arange(1, num_frames + 1, device=device)
    alpha = (scale * t).view(1, -1, 1)
    beta = (scale * (frame_lengths.view(-1, 1) + 1 - t)).unsqueeze(2)  # (B, T, 1)
    k = torch.arange(num_symbols, device=device).view(1, 1, -1)
    last = (token_lengths - 1).view(-1, 1, 1)
    # p(k + 1) / p(k) = (n - k) (k + alpha) / ((k + 1) (n - k - 1 + beta)): one cumulative sum of
    # logarithms instead of six log-gammas for each value, then a norm.
    inside = length_mask(frame_lengths, num_frames).unsqueeze(2) & (k < last)
    ratio = (last - k) * (k + alpha) / ((k + 1) * (last - k - 1 + beta))
    steps = torch.where(inside, ratio, 1.0).log()
    log_odds = torch.cat([torch.zeros_like(steps[..., :1]), steps.cumsum(dim=2)[..., :-1]], dim=2)
    valid = length_mask(frame_lengths, num_frames).unsqueeze(2) & (k <= last)
    log_probs = log_odds.masked_fill(~valid, -torch.inf).log_softmax(dim=2)
    return log_probs.masked_fill(~valid, 0.0)
