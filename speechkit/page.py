"""Parts of a self-contained HTML page: tables, figures as inline SVG, players, and the style."""

from __future__ import annotations

import base64
import html
import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

INK = "#010203"
"""Stands for the colour of the page's text in a figure, light or dark."""

COLOURS = ("#3b82c4", "#d9822b", "#2f9e6e", "#b565c7", "#c74a5b", "#7a7f87")


def escape(value: object) -> str:
    """Make text safe in HTML.

    Examples
    --------
    >>> escape("<b> & '")
    '&lt;b&gt; &amp; &#x27;'
    """
    return html.escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Write a table of cells that are HTML already, the first of each row being its header.

    The cells of the columns ``numeric`` stand on the right.
    """

    def line(cells: Sequence[str], scope: str) -> str:
        made = []
        for i, text in enumerate(cells):
            kind = ' class="numeric"' if i in numeric else ""
            is_header = scope == "col" or i == 0
            tag = f'th scope="{scope}"' if is_header else "td"
            made.append(f"<{tag}{kind}>{text}</{tag[:2]}>")
        return f"<tr>{''.join(made)}</tr>"

    top = line([escape(text) for text in head], "col")
    body = "".join(line(row, "row") for row in rows)
    return f'<div class="wide"><table><thead>{top}</thead><tbody>{body}</tbody></table></div>'


# ---------------------------------------------------------------- figures


def figure_svg(figure: Any, label: str, *, wide: bool = False) -> str:
    """Turn a matplotlib figure into inline SVG that takes the page's colours and font.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What is drawn in `INK` takes the colour of the page's text.
    label : str
        What the picture says, for those who do not see it.
    wide : bool
        Whether it takes the page's whole width; on a narrow screen it then scrolls.
    """
    import matplotlib

    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": label}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The page's font has what matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # the same in every figure
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    role = f'<svg role="img" aria-label="{escape(label)}" '
    kind = ' class="wide" tabindex="0"' if wide else ""
    return f"<figure{kind}>{svg.replace('<svg ', role, 1)}</figure>"


def new_axes(width: float, height: float) -> tuple[Any, Any]:
    """Give a figure and its only axes, in the page's ink."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set(color=INK, alpha=0.4)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def line_plot(lines: Mapping[str, Sequence[tuple[float, float]]], x: str, title: str) -> str:
    """Draw lines of ``(x, y)`` points.

    Parameters
    ----------
    lines : mapping of str to sequence of (float, float)
        A line for each name.
    x : str
        What the horizontal axis is.
    title : str
        What is drawn, for those who do not see it; the lines' first and last values follow.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> plot = line_plot({"train": [(1, 2), (2, 1)]}, "step", "loss")
    >>> 'aria-label="loss: train from 2 to 1"' in plot
    True
    """
    figure, axes = new_axes(4.6, 2.8)
    for i, (key, points) in enumerate(lines.items()):
        axes.plot(
            *zip(*points), label=key, color=COLOURS[i % len(COLOURS)], linewidth=1.6,
            marker="o" if len(points) < 30 else None, markersize=3,
        )  # fmt: skip
    axes.set_xlabel(x, color=INK)
    axes.grid(color=INK, alpha=0.12)
    if all(value >= 0 for points in lines.values() for _, value in points):
        axes.set_ylim(bottom=0)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    told = "; ".join(
        f"{key} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for key, points in lines.items()
    )
    return figure_svg(figure, f"{title}: {told}")


def spectrogram(samples: Tensor, sample_rate: int, what: str = "") -> str:
    """Draw a log-mel spectrogram, in seconds and kHz.

    Parameters
    ----------
    samples : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.
    what : str
        Ends the picture's description: "of utterance 7".
    """
    from torchaudio.functional import melscale_fbanks

    n_fft = 2 ** (int(sample_rate * 0.032) - 1).bit_length()
    hop, num_mels, top = sample_rate // 100, 64, sample_rate / 2
    padded = torch.nn.functional.pad(samples, (0, max(0, n_fft - len(samples))))
    window = torch.hann_window(n_fft)
    power = torch.stft(padded, n_fft, hop, window=window, return_complex=True).abs().square()
    bank = melscale_fbanks(n_fft // 2 + 1, 0.0, top, num_mels, sample_rate)
    level = 10 * (power.T @ bank).clamp(min=1e-10).log10()
    figure, axes = new_axes(5.0, 1.8)
    high = float(level.max())
    seconds = len(padded) / sample_rate
    axes.imshow(
        level.T.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=high - 70, vmax=high,
        extent=(0, seconds, 0, num_mels), interpolation="nearest",
    )  # fmt: skip
    ticks = [kilohertz for kilohertz in (0, 0.5, 1, 2, 4, 8, 16) if kilohertz * 1000 <= top]
    axes.set_yticks(
        [num_mels * _mel(1000 * k) / _mel(top) for k in ticks], [f"{k:g}" for k in ticks]
    )
    axes.tick_params(labelsize=10)
    axes.set_xlabel("seconds", color=INK, fontsize=10)
    axes.set_ylabel("kHz", color=INK, fontsize=10)
    label = f"Log-mel spectrogram {what}, {seconds:.2f} s, 0 to {top / 1000:g} kHz"
    return figure_svg(figure, label)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def audio_player(samples: Tensor, sample_rate: int, label: str) -> str:
    """Put sound into the page, as FLAC.

    Parameters
    ----------
    samples : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.
    label : str
        What one hears.
    """
    import soundfile

    buffer = io.BytesIO()
    pcm = samples.clamp(-1, 1).numpy()
    soundfile.write(buffer, pcm, sample_rate, format="FLAC", subtype="PCM_16")
    source = f"data:audio/flac;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        f'<audio controls preload="metadata" aria-label="{escape(label)}" src="{source}"></audio>'
    )


def sound_card(samples: Tensor, sample_rate: int, title: str, note: str, what: str) -> str:
    """Show sound as a titled spectrogram with its player.

    Parameters
    ----------
    samples : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.
    title, note : str
        Above the picture; the note may be empty.
    what : str
        What one sees and hears, for those who do not see it.
    """
    said = f' <span class="label">{escape(note)}</span>' if note else ""
    picture = spectrogram(samples, sample_rate, f"of {what}")
    player = audio_player(samples, sample_rate, what)
    return f"<div><p><strong>{escape(title)}</strong>{said}</p>{picture}{player}</div>"


# ---------------------------------------------------------------- the page

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b636d; --line: #dfe3e8; --paper: #fff;
  --card: #f6f7f9; --sub: #8a5300; --sub-bg: #fdf0d5; --ins: #1457a8; --ins-bg: #e1edfb; --del:
  #a8202f; --del-bg: #fce4e6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3ad; --line: #333a42;
  --paper: #15181c; --card: #1d2126; --sub: #f0bd6a; --sub-bg: #3d2f14; --ins: #8fc0f7; --ins-bg:
  #16304d; --del: #f5939d; --del-bg: #4a1c22; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 64rem; color:
  var(--ink); background: var(--paper); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid
  var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
h4 { font-size: .95rem; margin: 1rem 0 .25rem; overflow-wrap: anywhere; }
code, pre { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
pre { padding: 1rem; overflow-x: auto; overflow-wrap: normal; background: var(--card);
  border-radius: 8px; }
summary { cursor: pointer; }
.label { color: var(--soft); font-size: .85rem; font-weight: 400; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; margin: 1rem 0; list-style:
  none; }
.cards li { display: flex; flex-direction: column; padding: .75rem 1rem; min-width: 9rem;
  background: var(--card); border-radius: 8px; overflow-wrap: anywhere; }
.number { font-size: 1.7rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.unit { font-size: .6em; color: var(--soft); }
.facts { margin: 0; font-size: .9rem; }
.facts div { display: flex; gap: 1rem; padding: .15rem 0; }
dt { flex: 0 0 5.5rem; color: var(--soft); }
dd { margin: 0; min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; }
th, td { padding: .35rem 1.5rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line);
  }
thead th { color: var(--soft); } th { font-weight: 500; }
.numeric { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td .unit { font-size: .9em; }
.grid { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%,
  22rem), 1fr)); }
figure { margin: 0; max-width: 36rem; }
figure svg { display: block; width: 100%; height: auto; }
figure.wide { max-width: none; }
figure.wide svg { min-width: 44rem; }
article { margin: 1rem 0; padding: 1rem; background: var(--card); border-radius: 8px; }
.aligned { margin: .25rem 0 .75rem; font-size: 1.05rem; overflow-wrap: anywhere; }
article > :first-child { margin-top: 0; }
article > :last-child { margin-bottom: 0; }
audio { display: block; width: 100%; max-width: 36rem; height: 2.5rem; margin-top: .5rem; }
ins { text-decoration: none; font-weight: 600; }
del { text-decoration: line-through; }
.sub, .ins, .del { padding: .05em .3em; border-radius: 4px; box-decoration-break: clone; }
.sub { color: var(--sub); background: var(--sub-bg); }
.ins { color: var(--ins); background: var(--ins-bg); }
.del { color: var(--del); background: var(--del-bg); }
@media (max-width: 30rem) { .facts div { display: block; } article { padding: .75rem; } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
