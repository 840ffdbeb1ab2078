"""Pictures of what a model does, as matplotlib figures for the report and for TensorBoard."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechkit.page import INK

MAX_LABELS = 32  # written beside a picture, each in a line of its own
MAX_FRAMES = 256  # columns of a picture; more cannot be seen


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Where one utterance's labels looked, at one epoch.

    Parameters
    ----------
    id : str
        The utterance.
    epoch : int
        Number of the epoch, from 1.
    weights : np.ndarray
        Shape ``(U, T)``, float32, rows sum to 1.
    pieces : sequence of str
        The label of each row.
    seconds : float
        Length of the utterance.
    diagonality : float
        See `speechkit.metrics.alignment.attention_diagonality`; NaN where it has none.

    Examples
    --------
    >>> shown = AttentionMap("u1", 3, np.eye(2, dtype=np.float32), ["a", "b"], 0.5, 1.0)
    >>> shown.label
    'epoch 3, diagonality 1.00'
    """

    id: str
    epoch: int
    weights: np.ndarray
    pieces: Sequence[str]
    seconds: float
    diagonality: float

    @property
    def label(self) -> str:
        """The picture's heading."""
        known = self.diagonality == self.diagonality
        return f"epoch {self.epoch}" + (
            f", diagonality {round(self.diagonality, 2) + 0.0:.2f}" if known else ""
        )


def pooled(weights: np.ndarray, max_frames: int = MAX_FRAMES) -> np.ndarray:
    """Add up neighbouring frames until there are few enough; rows keep their sums.

    Parameters
    ----------
    weights : np.ndarray
        Shape ``(U, T)``.
    max_frames : int
        At most so many columns are left.

    Examples
    --------
    >>> pooled(np.ones((1, 5)), max_frames=3).tolist()
    [[2.0, 2.0, 1.0]]
    """
    group = -(-weights.shape[1] // max_frames)
    if group <= 1:
        return weights
    missing = -weights.shape[1] % group
    padded = np.pad(weights, ((0, 0), (0, missing)))
    return padded.reshape(len(weights), -1, group).sum(axis=2)


def attention_figure(maps: Sequence[AttentionMap], *, width: float = 9.6) -> Any:
    """Draw attention maps of one utterance side by side, on one scale of colours.

    Parameters
    ----------
    maps : sequence of AttentionMap
        Usually of a few epochs, in their order; at least one.
    width : float
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Labels downwards, seconds to the right. `speechkit.page.figure_svg` makes it a part of a
        page, `figure_png` a file.

    Raises
    ------
    ValueError
        If there is nothing to draw.

    Examples
    --------
    >>> shown = AttentionMap("u1", 3, np.eye(2, dtype=np.float32), ["a", "b"], 0.5, 1.0)
    >>> figure = attention_figure([shown])
    >>> figure.axes[0].get_title(loc="left")
    'epoch 3, diagonality 1.00'
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not maps:
        raise ValueError("no attention maps to draw: give at least one")
    rows = max(len(item.weights) for item in maps)
    height = 0.9 + min(max(0.155 * rows, 1.3), 4.5)
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08))
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    # One scale for all epochs: a flat map beside a sharp one has to look flat. The root of the
    # weight, as the eye would see nothing of what is spread over ten frames otherwise.
    scale = PowerNorm(0.5, vmin=0.0, vmax=max(float(item.weights.max()) for item in maps) or 1.0)
    for axes, item in zip(panels, maps):
        image = axes.imshow(
            item.weights, aspect="auto", cmap="magma", norm=scale, interpolation="nearest",
            extent=(0, item.seconds, len(item.weights) - 0.5, -0.5),
        )  # fmt: skip
        axes.set_title(item.label, color=INK, fontsize=10, loc="left")
        axes.set_xlabel("seconds", color=INK, fontsize=10)
        axes.tick_params(colors=INK, labelsize=9, length=2)
        axes.locator_params(axis="x", nbins=5)
        for spine in axes.spines.values():
            spine.set_visible(False)
    _write_labels(panels[0], maps[0].pieces)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.9, pad=0.015, aspect=25)
    bar.set_label("weight", color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.ax.locator_params(nbins=5)
    bar.outline.set_visible(False)
    return figure


def _write_labels(axes: Any, pieces: Sequence[str]) -> None:
    if len(pieces) > MAX_LABELS:
        axes.set_ylabel(f"label, of {len(pieces)}", color=INK, fontsize=10)
        return
    # Dollars are no formulas here.
    names = [piece if len(piece) <= 12 else f"{piece[:11]}…" for piece in pieces]
    axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=8.5)
    axes.tick_params(axis="y", length=0, pad=3)


def figure_png(figure: Any, *, dpi: int = 90) -> bytes:
    """Draw a figure as a PNG file, on white.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What is drawn.
    dpi : int
        Pixels of an inch.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Scripts that matplotlib's own font does not have are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def figure_pixels(figure: Any, *, dpi: int = 64, colors: int = 64) -> np.ndarray:
    """Draw a figure as an array of pixels, on white.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What is drawn.
    dpi : int
        Pixels of an inch.
    colors : int
        At most so many are used, up to 256: few make a small PNG.

    Returns
    -------
    np.ndarray
        Shape ``(H, W, 3)``, uint8.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> figure_pixels(Figure(figsize=(2, 1)), dpi=50).shape
    (50, 100, 3)
    """
    from PIL import Image

    with Image.open(io.BytesIO(figure_png(figure, dpi=dpi))) as image:
        return np.array(image.convert("RGB").quantize(colors).convert("RGB"))
