"""Pictures of speech that was made of text: its mel, and of which symbols each frame was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from speechkit.page import INK
from speechkit.plots import MAX_LABELS

_MAX_FRAMES = 600  # columns of a picture; more cannot be seen


def speech_figure(
    mel: np.ndarray,
    alignment: np.ndarray | None,
    pieces: Sequence[str] = (),
    *,
    seconds: float | None = None,
    width: float = 9.6,
) -> Any:
    """Draw a mel spectrogram and, below it, an alignment on the same time.

    Parameters
    ----------
    mel : np.ndarray
        Shape ``(T, num_mels)``, logarithmic.
    alignment : np.ndarray, optional
        Shape ``(T', U)``; its frames may be other ones over the same time.
    pieces : sequence of str
        The U symbols.
    seconds : float, optional
        Of the speech; without it time is in frames.
    width : float
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = speech_figure(np.zeros((20, 8)), np.eye(4), ["a", "b", "c", "d"])
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['mel band', 'symbol']
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    heights = [2.0]
    if alignment is not None:
        labeled = len(pieces) == alignment.shape[1] <= MAX_LABELS
        heights.append(max(1.6, 0.145 * len(pieces)) if labeled else 2.0)  # each has its line
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout=ConstrainedLayoutEngine())
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    end = seconds if seconds is not None else float(len(mel))
    panels[0].imshow(
        thinned(mel).astype(np.float32).T, aspect="auto", origin="lower", cmap="magma",
        extent=(0, end, 0, mel.shape[1]), interpolation="nearest",
    )  # fmt: skip
    panels[0].set_ylabel("mel band", color=INK, fontsize=10)
    if alignment is not None:
        symbols = alignment.shape[1]
        panels[1].imshow(
            thinned(alignment).astype(np.float32).T, aspect="auto", origin="lower", cmap="magma",
            extent=(0, end, -0.5, symbols - 0.5), interpolation="nearest", vmin=0.0,
        )  # fmt: skip
        panels[1].set_ylabel("symbol", color=INK, fontsize=10)
        if labeled:
            shown = [piece.replace("$", r"\$") for piece in pieces]
            panels[1].set_yticks(range(symbols), shown)
    panels[-1].set_xlabel("seconds" if seconds is not None else "frames", color=INK, fontsize=10)
    for axes in panels:
        axes.tick_params(colors=INK, labelsize=8, length=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def thinned(frames: np.ndarray, most: int = _MAX_FRAMES) -> np.ndarray:
    """Average neighbouring frames of ``(T, F)`` until there are few enough.

    Examples
    --------
    >>> thinned(np.arange(5.0)[:, None], most=3).ravel().tolist()
    [0.5, 2.5, 4.0]
    """
    group = -(-len(frames) // most)
    if group <= 1:
        return frames
    starts = np.arange(0, len(frames), group)
    sizes = np.diff([*starts, len(frames)])
    mean: np.ndarray = np.add.reduceat(frames.astype(np.float32), starts) / sizes[:, None]
    return mean
