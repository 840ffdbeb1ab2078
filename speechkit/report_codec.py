"""The page's section on codecs: the same utterance at every bit rate, to see and to hear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from speechkit.data.audio import read_audio
from speechkit.data.manifest import DataError
from speechkit.page import COLOURS, INK, escape, figure_svg, new_axes, sound_card
from speechkit.report_run import Run

SECONDS = 4.0  # of each player and picture; an utterance has many
CURVES = (
    ("pesq", "PESQ-WB, MOS"),
    ("visqol_audio", "ViSQOL audio, MOS"),
    ("visqol_speech", "ViSQOL speech, MOS"),
    ("stoi", "STOI"),
    ("si_snr", "SI-SNR in dB"),
    ("mel", "mel distance"),
)
Row = Mapping[str, Any]


def codec(run: Run) -> str:
    """Show a codec's conditions: each measure against the bit rate, and the sound of some."""
    splits: dict[str, dict[str, list[Row]]] = {}
    for name, rows in run.splits():
        split, _, condition = name.partition("@")
        kept: list[Row] = [row for row in rows if row.get("condition") == condition]
        if condition and kept:
            splits.setdefault(split, {})[condition] = kept
    # Other tasks have conditions too: a codec's have bit rates.
    splits = {split: found for split, found in splits.items() if _has_rates(found)}
    parts = []
    for split, conditions in splits.items():
        ordered = dict(sorted(conditions.items(), key=_order))
        parts.append(f"<h3>{escape(split)}</h3>{curves(ordered)}{examples(run, ordered)}")
    return f"<h2>Quality at each bit rate</h2>{''.join(parts)}" if parts else ""


def _has_rates(conditions: Mapping[str, Sequence[Row]]) -> bool:
    return any("kbps" in row for rows in conditions.values() for row in rows)


def _order(pair: tuple[str, list[Row]]) -> tuple[bool, float, str]:
    """Bit rates first, from low to high, then the anchors and the reference."""
    name, rows = pair
    rate = rows[0].get("kbps")
    return (rate is None, float(rate or 0.0), name)


def curves(conditions: Mapping[str, Sequence[Row]]) -> str:
    """Draw the mean of each measure against the bit rate; anchors are level lines."""
    figures = []
    for key, title in CURVES:
        means = {name: mean for name, rows in conditions.items() if (mean := _mean(rows, key))}
        rates = {name: float(conditions[name][0].get("kbps") or 0.0) for name in means}
        points = [(rates[name], means[name]) for name in means if rates[name]]
        if len(points) < 2:
            continue
        figure, axes = new_axes(4.6, 2.8)
        axes.plot(*zip(*points), color=COLOURS[0], marker="o", markersize=4, linewidth=1.6)
        level = [name for name in means if not rates[name] and name != "reference"]
        for index, name in enumerate(level, start=1):
            axes.axhline(means[name], color=COLOURS[index % len(COLOURS)], ls="--", label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks([rate for rate, _ in points], [f"{rate:.2g}" for rate, _ in points])
        axes.set_xlabel("kbit/s", color=INK)
        axes.grid(color=INK, alpha=0.12)
        if level:
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        told = ", ".join(f"{value:.3g} at {rate:.2g} kbit/s" for rate, value in points)
        picture = figure_svg(figure, f"{title}: {told}")
        figures.append(f"<div><h4>{escape(title)}</h4>{picture}</div>")
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [float(row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    return sum(values) / len(values) if values else None


def examples(run: Run, conditions: Mapping[str, Sequence[Row]]) -> str:
    """Show the utterances whose sound was kept, within what the page may still take."""
    heard: dict[str, list[Row]] = {}
    for rows in conditions.values():
        for row in rows:
            if row.get("estimate"):
                heard.setdefault(str(row.get("id", "?")), []).append(row)
    parts: list[str] = []
    for name, rows in heard.items():
        shown = utterance(run, name, rows)
        if not run.take(len(rows), len(shown)):
            full = f"{len(parts)} of the {len(heard)} that were kept are shown"
            parts.append(f'<p class="label">The page is full: {full}.</p>')
            break
        parts.append(shown)
    return f"<h4>Some to hear</h4>{''.join(parts)}" if parts else ""


def utterance(run: Run, name: str, rows: Sequence[Row]) -> str:
    """Show one utterance in all its conditions."""
    cards = []
    for row in rows:
        condition = str(row["condition"])
        try:
            samples, rate = _read(run, row)
        except DataError as error:  # moved since: the page says so and shows the rest
            cards.append(f'<p class="label">No sound of {condition}: {escape(error)}</p>')
            continue
        said = " · ".join(
            f"{title.split(',')[0]} {row[key]:.3g}"
            for key, title in CURVES
            if isinstance(row.get(key), (int, float)) and condition != "reference"
        )
        cards.append(sound_card(samples, rate, condition, said, f"{name}, {condition}"))
    facts = f"The first {SECONDS:g} s" if _long(rows[0]) else ""
    heading = f'<h5>{escape(name)} <span class="label">{facts}</span></h5>'
    return f'<article>{heading}<div class="grid">{"".join(cards)}</div></article>'


def _read(run: Run, row: Row) -> tuple[Tensor, int]:
    path = run.folder / str(row["estimate"])
    duration = row.get("duration")
    seconds = min(SECONDS, float(duration)) if isinstance(duration, (int, float)) else None
    return read_audio(path, duration=seconds)


def _long(row: Row) -> bool:
    duration = row.get("duration")
    return isinstance(duration, (int, float)) and duration > SECONDS
