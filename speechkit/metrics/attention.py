"""Whether synthesized speech says its text once and in order, seen in the alignment.

The alignment of a speaking model, ``(B, T, U)``, says of which symbols each frame was made: each
frame's weights sum to one. Speech that is right goes through the symbols once, from the first to
the last. `check_alignment` finds where one utterance did not, and the other functions give numbers
of a batch that can be followed over training.

For a recognizer's attention, whose rows are labels, see `speechkit.metrics.alignment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechkit.metrics.alignment import attention_diagonality

MIN_SHARE = 0.05
"""A symbol is skipped whose weights in its turn sum to less than this share of ``T / U``."""
MAX_STAY = 12.0
"""Frames at one symbol, in medians over symbols, above which the speech stalls: about a second."""
MIN_ORDER = 0.5
"""Weight on the one pass below which the alignment as a whole is called lost."""

_Numbers = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]


class Stretch(NamedTuple):
    """Some neighbouring symbols, and when the speech was there.

    Attributes
    ----------
    first, last : int
        Symbols, the last included.
    start, stop : int
        Frames, ``stop`` not included; equal where no frame belongs to the symbols.
    """

    first: int
    last: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class AlignmentReport:
    """What `check_alignment` finds in one utterance.

    Attributes
    ----------
    score : float
        In [0, 1]: ``coverage * order * (1 - the share of frames in excess of a stall)``. One frame,
        one symbol gives 1, a bell of one symbol's standard deviation that glides along 0.87, and
        flat attention over U symbols at most ``3 / U``.
    diagonality : float
        See `alignment_diagonality`; NaN with fewer than two symbols or frames.
    coverage : float
        Share of the symbols that were not skipped, one by one.
    focus : float
        Mean over frames of the largest weight.
    order : float
        Mean over frames of the weight within one symbol of the best single pass through the text.
    skipped : tuple of Stretch
        Neighbouring symbols of which (nearly) no frame was made.
    repeated : tuple of Stretch
        Frames that are made of other symbols than those whose turn it is: speech that goes back, or
        runs ahead and comes back.
    stalled : tuple of Stretch
        Symbols where the speech stays far too long; where ``stop`` is the last frame, it never
        left.
    """

    score: float
    diagonality: float
    coverage: float
    focus: float
    order: float
    skipped: tuple[Stretch, ...]
    repeated: tuple[Stretch, ...]
    stalled: tuple[Stretch, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems()

    def problems(self, pieces: Sequence[str] | None = None) -> list[str]:
        """Say in words what was found.

        Parameters
        ----------
        pieces : sequence of str, optional
            The symbols, to be quoted.

        Returns
        -------
        list of str
            Empty where nothing was found; symbols and frames are counted from 0.
        """

        def name(stretch: Stretch) -> str:
            one = stretch.first == stretch.last
            numbers = f"{stretch.first}" if one else f"{stretch.first} to {stretch.last}"
            said = f"symbol{'' if one else 's'} {numbers}"
            if pieces is None:
                return said
            return f"{said} ({''.join(pieces[stretch.first : stretch.last + 1])!r})"

        found = []
        if self.focus and self.order < MIN_ORDER:  # without frames nothing is in disorder
            found.append(f"lost: only {self.order:.2f} of the weight lies on one pass")
        found += [f"skipped: {name(stretch)}" for stretch in self.skipped]
        found += [f"repeated: {name(s)} in frames {s.start} to {s.stop - 1}" for s in self.repeated]
        found += [f"stalled: {s.stop - s.start} frames at {name(s)}" for s in self.stalled]
        return found


def check_alignment(
    alignment: Tensor, frames: int, symbols: int, *, min_skip: int = 2, min_repeat: int = 2
) -> AlignmentReport:
    """Find what an utterance skipped, said twice, and where it stalled.

    The best single pass is the path that never goes back and gathers the most weight; all is
    measured against it.

    - **Skipped** are at least ``min_skip`` neighbouring symbols, each with less than `MIN_SHARE` of
      a symbol's mean weight over the frames where the pass is at it or at a neighbour. What lies
      evenly over all symbols does not hide it.
    - **Repeated** are frames off the pass (with more than twice the pass's weight elsewhere), if
      together they last as long as a mean symbol, and somewhere are ``min_repeat`` symbols off.
    - **Stalled** is a symbol with more frames on the pass than `MAX_STAY` medians over symbols.

    Parameters
    ----------
    alignment : Tensor
        Shape ``(T, U)``, of one utterance, padded or not: not negative, frames sum to one.
    frames, symbols : int
        How many are valid. Without frames every symbol was skipped.
    min_skip : int
        1 where each symbol is heard, as with whole words. One character alone may be silent.
    min_repeat : int
        1 counts flickering between neighbours too, where it lasts.

    Returns
    -------
    AlignmentReport
        The rest, with a score of the whole.

    Raises
    ------
    ValueError
        Where sizes disagree, there is no symbol, or a valid weight is negative or not finite.

    Examples
    --------
    >>> hard = torch.eye(6).repeat_interleave(4, dim=0)  # each symbol has four frames
    >>> check_alignment(hard, 24, 6).score
    1.0
    >>> twice = torch.cat([hard[:16], hard[4:]])  # speepeech
    >>> check_alignment(twice, 36, 6).problems("speech")
    ["repeated: symbols 1 to 2 ('pe') in frames 16 to 23"]
    >>> check_alignment(hard[:12], 12, 6).problems("speech")
    ["skipped: symbols 3 to 5 ('ech')"]
    """
    weights = _checked(alignment, frames, symbols)
    if frames == 0:
        skipped = (Stretch(0, symbols - 1, 0, 0),)
        return AlignmentReport(0.0, float("nan"), 0.0, 0.0, 0.0, skipped, (), ())
    path = _best_pass(weights)
    near = _near(weights, path)
    missing = _missing(near, path, symbols)
    coverage = 1.0 - float(missing.mean())
    order = float(near.sum(axis=1).mean())
    peaks = weights.argmax(axis=1)
    rows = np.arange(frames)
    off = weights[rows, path] < 0.5 * weights[rows, peaks]
    stalled, excess = _stalls(path, off, symbols)
    batch = torch.from_numpy(weights).unsqueeze(0)
    sizes = torch.tensor([frames]), torch.tensor([symbols])
    return AlignmentReport(
        score=float(np.clip(coverage * order * (1.0 - excess / frames), 0.0, 1.0)),
        diagonality=float(alignment_diagonality(batch, *sizes)),
        coverage=coverage,
        focus=float(weights.max(axis=1).mean()),
        order=order,
        skipped=_skips(missing, path, min_skip),
        repeated=_repeats(off, path, peaks, max(1, frames // symbols), min_repeat),
        stalled=stalled,
    )


def _checked(alignment: Tensor, frames: int, symbols: int) -> _Numbers:
    if alignment.dim() != 2:
        raise ValueError(f"alignment must be (T, U), of one item, got {tuple(alignment.shape)}")
    if not (0 <= frames <= alignment.shape[0] and 1 <= symbols <= alignment.shape[1]):
        raise ValueError(
            f"{frames} frames and {symbols} symbols do not fit an alignment of shape "
            f"{tuple(alignment.shape)}; at least one symbol is needed"
        )
    weights: _Numbers = alignment[:frames, :symbols].detach().double().cpu().numpy()
    if not np.isfinite(weights).all() or (weights < 0).any():
        place = tuple(int(n) for n in np.argwhere(~(weights >= 0) | np.isinf(weights))[0])
        raise ValueError(f"the weight at (frame, symbol) {place} is {weights[place]}")
    return weights


def _best_pass(weights: _Numbers) -> _Indices:
    """Give the symbol of each frame on the path of most weight that never goes back: ``(T,)``."""
    frames, symbols = weights.shape
    numbers = np.arange(symbols)
    best = np.zeros(symbols)
    origin = np.zeros((frames, symbols), dtype=np.int64)
    for t, row in enumerate(weights):
        reached = np.maximum.accumulate(best)  # by a path that ends at this symbol or before
        fresh = np.concatenate([[True], best[1:] >= reached[:-1]])  # of equals the first pass
        origin[t] = np.maximum.accumulate(np.where(fresh, numbers, 0))
        best = reached + row
    path = np.empty(frames, dtype=np.int64)
    place = int(best.argmax())
    for t in range(frames - 1, -1, -1):
        path[t] = place
        place = int(origin[t, place])
    return path


def _near(weights: _Numbers, path: _Indices) -> _Numbers:
    """Give the weight of each frame before, on and behind the pass: ``(T, 3)``."""
    padded = np.pad(weights, ((0, 0), (1, 1)))
    near: _Numbers = np.take_along_axis(padded, path[:, None] + np.arange(3), axis=1)
    return near


def _missing(near: _Numbers, path: _Indices, symbols: int) -> npt.NDArray[np.bool_]:
    """Mark the symbols that have next to no weight when it is their turn: ``(U,)``."""
    frames = len(path)
    turns = np.zeros(symbols + 2)  # one more at each end
    np.add.at(turns, path[:, None] + np.arange(3), near)
    missing: npt.NDArray[np.bool_] = turns[1:-1] < MIN_SHARE * frames / symbols
    return missing


def _runs(marks: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Give first and one past the last of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _skips(missing: npt.NDArray[np.bool_], path: _Indices, least: int) -> tuple[Stretch, ...]:
    found = []
    for first, stop in _runs(missing):
        if stop - first >= least:
            frame = int(np.searchsorted(path, first))  # where they should have been said
            found.append(Stretch(first, stop - 1, frame, frame))
    return tuple(found)


def _repeats(
    off: npt.NDArray[np.bool_], path: _Indices, peaks: _Indices, frames: int, distance: int
) -> tuple[Stretch, ...]:
    found = []
    for start, stop in _runs(off):
        there = peaks[start:stop]
        if stop - start >= frames and np.abs(there - path[start:stop]).max() >= distance:
            found.append(Stretch(int(there.min()), int(there.max()), start, stop))
    return tuple(found)


def _stalls(
    path: _Indices, off: npt.NDArray[np.bool_], symbols: int
) -> tuple[tuple[Stretch, ...], float]:
    """Give the stalls, and how many frames there are beyond what is allowed."""
    stays = np.bincount(path[~off], minlength=symbols)
    limit = MAX_STAY * float(np.median(stays[stays > 0])) if stays.any() else np.inf
    found = []
    for symbol in np.flatnonzero(stays > limit):
        start, stop = np.searchsorted(path, [symbol, symbol + 1])
        found.append(Stretch(int(symbol), int(symbol), int(start), int(stop)))
    excess = float(np.maximum(stays - limit, 0.0).sum())
    return tuple(found), excess


# ---------------------------------------------------------------- numbers of a batch


def alignment_diagonality(alignment: Tensor, lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """Give the correlation of symbol and time under the weights.

    Parameters
    ----------
    alignment : Tensor
        Shape ``(B, T, U)``.
    lengths, token_lengths : Tensor
        Shape ``(B,)``: valid frames and symbols.

    Returns
    -------
    Tensor
        Shape ``(B,)``, as `speechkit.metrics.alignment.attention_diagonality`: 1 on a straight
        rising line, 0 where flat, NaN with fewer than two symbols or frames.

    Examples
    --------
    >>> line = torch.eye(5).repeat_interleave(3, dim=0).unsqueeze(0)
    >>> round(float(alignment_diagonality(line, torch.tensor([15]), torch.tensor([5]))), 2)
    0.98
    """
    return attention_diagonality(alignment.transpose(1, 2), token_lengths, lengths)
