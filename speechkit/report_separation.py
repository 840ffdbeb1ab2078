"""The page's section on separation: how well it went over a split, and what it sounds like."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from speechkit.data.audio import audio_info, read_audio
from speechkit.data.manifest import DataError
from speechkit.page import (
    COLOURS,
    INK,
    escape,
    figure_svg,
    new_axes,
    sound_card,
    table,
)
from speechkit.report_run import Run

LISTED = 5  # best and worst utterances of each split
SECONDS = 6.0  # of each player and picture; an utterance has several
PEAK = 0.99  # of a player's sound

LEGEND = (
    '<p class="legend">The estimates stand in the order of the sources. For listening, each is '
    "brought to the level of its source (and lower where it would clip): SI-SNR does not measure "
    "the level. A picture is as bright as its own loudest point.</p>"
)


def separation(run: Run) -> str:
    """Show a separator's splits: the spread of SI-SNRi, worst and best, and the sound of some."""
    splits = [
        (split, [row for row in rows if "si_snri" in row or "estimates" in row])
        for split, rows in run.splits()
    ]
    splits = [(split, rows) for split, rows in splits if rows]
    parts = []
    for index, (split, rows) in enumerate(splits):
        left = len(splits) - index  # the last split has its players too
        shown = examples(run, rows, run.players // left, run.media_bytes // left)
        parts.append(f"<h3>{escape(split)}</h3>{spread(rows)}{shown}")
    return f"<h2>Separation</h2>{''.join(parts)}" if parts else ""


# ---------------------------------------------------------------- a split


def spread(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw how SI-SNRi is spread over utterances, and list the worst and the best of them."""
    graded = [(mean, row) for row in rows if (mean := mean_of(row, "si_snri")) is not None]
    if not graded:
        return "<p>No utterance has an SI-SNRi.</p>"
    graded.sort(key=lambda pair: pair[0])
    head = ("utterance", "SI-SNRi", "of each source", "SDRi", "seconds")

    def cells(mean: float, row: Mapping[str, Any]) -> tuple[str, ...]:
        each = " · ".join(_decibels(value) for value in values_of(row, "si_snri"))
        duration = row.get("duration")
        seconds = f"{duration:.1f}" if isinstance(duration, (int, float)) else ""
        name = escape(row.get("id", "?"))
        return (name, _decibels(mean), each, _decibels(mean_of(row, "sdri")), seconds)

    def listed(title: str, chosen: Sequence[tuple[float, Mapping[str, Any]]]) -> str:
        made = table(head, [cells(*pair) for pair in chosen], range(1, len(head)))
        return f"<h4>{title}</h4>{made}"

    if len(graded) > 2 * LISTED:
        tables = listed("Worst", graded[:LISTED]) + listed("Best", graded[: -LISTED - 1 : -1])
    else:
        tables = listed("From worst to best", graded)
    return histogram([mean for mean, _ in graded]) + tables


def histogram(values: Sequence[float]) -> str:
    """Draw how many utterances have which SI-SNRi (mean over their sources, in dB), as SVG.

    Examples
    --------
    >>> 'aria-label="SI-SNRi of 3 utterances: 1.0 to 6.0 dB, median 2.0, mean 3.0"' in histogram(
    ...     [1.0, 2.0, 6.0]
    ... )
    True
    """
    from matplotlib.ticker import MaxNLocator

    mean, median = statistics.fmean(values), statistics.median(values)
    low, high = min(values), max(values)
    figure, axes = new_axes(4.6, 2.4)
    bins = min(30, max(4, math.ceil(2 * math.sqrt(len(values)))))
    span = (low, high) if high > low else (low - 0.5, low + 0.5)
    axes.hist(values, bins=bins, range=span, color=COLOURS[0], rwidth=0.92)
    axes.axvline(mean, color=COLOURS[1], linewidth=1.6, label=f"mean {mean:.1f} dB")
    axes.set_xlabel("SI-SNRi in dB", color=INK)
    axes.set_ylabel("utterances", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    told = f"{low:.1f} to {high:.1f} dB, median {median:.1f}, mean {mean:.1f}"
    return figure_svg(figure, f"SI-SNRi of {len(values)} utterances: {told}")


def examples(run: Run, rows: Sequence[Mapping[str, Any]], players: int, size: int) -> str:
    """Show the utterances of a split whose estimates were kept, within its share of the page."""
    heard = [row for row in rows if row.get("estimates")]
    parts: list[str] = []
    for row in heard:
        shown, needed = utterance(run, row)
        if needed > players or len(shown) > size or not run.take(needed, len(shown)):
            shown = f"{len(parts)} of the {len(heard)} that were kept are shown"
            parts.append(f'<p class="label">The page is full: {shown}.</p>')
            break
        players, size = players - needed, size - len(shown)
        parts.append(shown)
    return f"<h4>Some to hear</h4>{LEGEND}{''.join(parts)}" if parts else ""


# ---------------------------------------------------------------- an utterance


def utterance(run: Run, row: Mapping[str, Any]) -> tuple[str, int]:
    """Show an utterance's mixture, sources and estimates; also, how many players that takes."""
    paths = {key: _strings(row, key) for key in ("sources", "estimates")}
    if len(paths["sources"]) != len(paths["estimates"]):
        raise DataError(
            f"the row {row.get('id')!r} has {len(paths['sources'])} sources and "
            f"{len(paths['estimates'])} estimates: test again"
        )
    name = escape(row.get("id", "?"))
    duration = row.get("duration")
    facts = f"{duration:.2f} s" if isinstance(duration, (int, float)) else ""
    heading = f'<h5>{name} <span class="label">{facts}</span></h5>'
    try:
        shown = _sounds(run.folder, row, paths["sources"], paths["estimates"])
    except DataError as error:  # moved since: the page says so and shows the rest
        return f'<article>{heading}<p class="label">No sound: {escape(error)}</p></article>', 0
    long = isinstance(duration, (int, float)) and duration > SECONDS
    cut = f'<p class="label">The first {SECONDS:.0f} s.</p>' if long else ""
    return f"<article>{heading}{shown}{cut}</article>", 1 + 2 * len(paths["sources"])


def _sounds(
    folder: Path, row: Mapping[str, Any], sources: Sequence[str], estimates: Sequence[str]
) -> str:
    """Read and show everything of an utterance, at the sample rate of its estimates."""
    rate = audio_info(folder / estimates[0]).sample_rate
    start, duration = float(row.get("start") or 0.0), row.get("duration")
    seconds = SECONDS if duration is None else min(SECONDS, float(duration))

    def read(path: str, start: float) -> Tensor:
        return read_audio(folder / path, start=start, duration=seconds, sample_rate=rate)[0]

    name, speakers = row.get("id", "?"), row.get("speakers") or []
    parts = []
    if row.get("audio"):
        mixture = sound_card(
            read(str(row["audio"]), start), rate, "Mixture", "", f"{name}, mixture"
        )
        parts.append(f'<div class="grid">{mixture}<div></div></div>')  # as wide as those below
    scores = {key: values_of(row, key) for key in ("si_snri", "sdri")}
    for n, (path, estimated) in enumerate(zip(sources, estimates)):
        source, estimate = read(path, start), read(estimated, 0.0)
        number = f" {n + 1}" if len(sources) > 1 else ""
        who = f"speaker {speakers[n]}" if len(speakers) == len(sources) else ""
        said = " · ".join(
            f"{metric} {_decibels(scores[key][n])} dB"
            for key, metric in (("si_snri", "SI-SNRi"), ("sdri", "SDRi"))
            if n < len(scores[key]) and scores[key][n] is not None
        )
        pair = (
            sound_card(source, rate, f"Source{number}", who, f"{name}, source{number}"),
            sound_card(
                at_level_of(estimate, source), rate, f"Estimate{number}", said,
                f"{name}, estimate{number}",
            ),
        )  # fmt: skip
        parts.append(f'<div class="grid">{"".join(pair)}</div>')
    return "".join(parts)


def at_level_of(estimate: Tensor, source: Tensor) -> Tensor:
    """Bring an estimate to its source's mean power, and lower where it would clip.

    Parameters
    ----------
    estimate, source : Tensor
        Shape ``(T,)`` each, of any length. Where one is silent, the estimate stays as it is.

    Examples
    --------
    >>> import torch
    >>> at_level_of(torch.tensor([4.0, -4.0]), torch.tensor([0.5, 0.5]))
    tensor([ 0.5000, -0.5000])
    >>> at_level_of(torch.tensor([4.0, 0.0, 0.0, 0.0]), torch.full((4,), 0.9)).max()
    tensor(0.9900)
    """
    powers = [float(x.double().square().mean()) if len(x) else 0.0 for x in (estimate, source)]
    if min(powers) > 0.0:
        estimate = estimate * math.sqrt(powers[1] / powers[0])
    peak = float(estimate.abs().max()) if len(estimate) else 0.0
    return estimate * (PEAK / peak) if peak > PEAK else estimate


# ---------------------------------------------------------------- numbers of a row


def values_of(row: Mapping[str, Any], key: str) -> list[float | None]:
    """Give a metric of each source of a row; None where it has no value.

    Raises
    ------
    DataError
        When the row has something else there.

    Examples
    --------
    >>> values_of({"si_snri": [1.5, None]}, "si_snri")
    [1.5, None]
    """
    values = row.get(key, [])
    good = isinstance(values, list) and all(
        value is None or (isinstance(value, (int, float)) and math.isfinite(value))
        for value in values
    )
    if not good:
        raise DataError(
            f"the row {row.get('id')!r} has {key}={values!r}: a list of numbers is needed"
        )
    return list(values)


def mean_of(row: Mapping[str, Any], key: str) -> float | None:
    """Give a metric's mean over the sources that have it."""
    values = [value for value in values_of(row, key) if value is not None]
    return statistics.fmean(values) if values else None


def _strings(row: Mapping[str, Any], key: str) -> list[str]:
    values = row.get(key)
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        return values
    raise DataError(f"the row {row.get('id')!r} has {key}={values!r}: a list of paths is needed")


def _decibels(value: float | None) -> str:
    return "none" if value is None else f"{value + 0.0:.1f}"
