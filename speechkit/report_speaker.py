"""The page's sections on speakers: who is told from whom, and who speaks when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speechkit.metrics.diarization import Turn, diarization_errors, speaker_mapping
from speechkit.metrics.verification import det_curve, det_points, equal_error_rate, min_dcf
from speechkit.page import COLOURS, INK, escape, figure_svg, new_axes, table
from speechkit.report_run import Run

Row = Mapping[str, Any]
SIDES = ("reference", "hypothesis")
DET_TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4)
MAX_TIMELINES = 12
CAPTION = (
    '<p class="legend">Both axes are normal deviates, so that scores of two normal distributions '
    "make a straight line. Lower is better; the diagonal is crossed at the EER.</p>"
)


def speaker(run: Run) -> str:
    """Show a speaker model's conditions: DET curves, a table, and how scores are spread."""
    splits: dict[str, dict[str, list[Row]]] = {}
    for name, rows in run.splits():
        split, _, condition = name.partition("@")
        kept: list[Row] = [row for row in rows if "score" in row and "target" in row]
        if kept:
            splits.setdefault(split, {})[condition or "whole"] = kept
    parts = []
    for split, conditions in splits.items():
        ordered = dict(sorted(conditions.items(), key=lambda pair: pair[0] != "whole"))
        first = next(iter(ordered.values()))
        parts.append(
            f"<h3>{escape(split)}</h3>{rates(ordered)}"
            f'<div class="grid"><div><h4>DET</h4>{det_plot(ordered)}</div>'
            f"<div><h4>Scores</h4>{histogram(first)}</div></div>"
        )
    return f"<h2>Speaker verification</h2>{CAPTION}{''.join(parts)}" if parts else ""


def _trials(rows: Sequence[Row]) -> tuple[list[float], list[bool]]:
    return [float(row["score"]) for row in rows], [bool(row["target"]) for row in rows]


def rates(conditions: Mapping[str, Sequence[Row]]) -> str:
    """Make a table of the conditions."""
    lines = []
    for name, rows in conditions.items():
        scores, targets = _trials(rows)
        eer = equal_error_rate(scores, targets)
        cost = min_dcf(scores, targets)
        numbers = (f"{100 * eer.value:.2f}", f"{eer.threshold:.3f}", f"{cost.value:.3f}")
        lines.append((name, *numbers, str(sum(targets)), str(len(targets) - sum(targets))))
    head = ("condition", "EER, %", "at score", "minDCF(0.01)", "same speaker", "different")
    return table(head, lines, numeric=range(1, len(head)))


def det_plot(conditions: Mapping[str, Sequence[Row]]) -> str:
    """Draw false rejection against false acceptance."""
    figure, axes = new_axes(4.8, 4.2)
    told = []
    for index, (name, rows) in enumerate(conditions.items()):
        scores, targets = _trials(rows)
        points = det_points(det_curve(scores, targets))
        colour = COLOURS[index % len(COLOURS)]
        line = "-" if index < len(COLOURS) else "--"
        axes.plot(*zip(*points), color=colour, linewidth=1.6, linestyle=line, label=name)
        told.append(f"{name} {100 * equal_error_rate(scores, targets).value:.1f} %")
    places = torch.special.ndtri(torch.tensor(DET_TICKS, dtype=torch.float64)).tolist()
    names = [f"{100 * tick:g}" for tick in DET_TICKS]
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    axes.axline((0, 0), slope=1, color=INK, alpha=0.25, linewidth=0.8)
    axes.set_xlim(places[0], 0.3)
    axes.set_ylim(places[0], 0.3)
    axes.set_xlabel("false acceptance, %", color=INK)
    axes.set_ylabel("false rejection, %", color=INK)
    axes.grid(color=INK, alpha=0.12)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure_svg(figure, f"DET curves, EER: {', '.join(told)}")


def histogram(rows: Sequence[Row]) -> str:
    """Draw how the scores of both kinds of trials are spread."""
    scores, targets = _trials(rows)
    figure, axes = new_axes(4.8, 4.2)
    for kind, name, colour in (
        (False, "different", COLOURS[1]),
        (True, "same speaker", COLOURS[0]),
    ):
        own = [score for score, target in zip(scores, targets) if target is kind]
        axes.hist(own, bins=40, range=(min(scores), max(scores) + 1e-9), density=True, alpha=0.6,
                  color=colour, label=name)  # fmt: skip
    axes.set_xlabel("score", color=INK)
    axes.set_yticks([])
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    means = [
        sum(s for s, t in zip(scores, targets) if t is kind) / max(1, targets.count(kind))
        for kind in (True, False)
    ]
    label = f"Scores: same speaker {means[0]:.3f} on average, different {means[1]:.3f}"
    return figure_svg(figure, label)


# ---------------------------------------------------------------- diarization


def diarization(run: Run) -> str:
    """Show who speaks when, found and true, of the recordings that went worst."""
    parts = []
    for split, rows in run.splits():
        lists = [all(isinstance(row.get(key), list) for key in SIDES) for row in rows]
        kept: list[Row] = [row for row, good in zip(rows, lists) if good]
        if not kept:
            continue
        graded = []
        for row in kept:
            reference, found = (
                [Turn(*turn) for turn in row[k]] for k in ("reference", "hypothesis")
            )
            regions = row.get("regions")
            graded.append((diarization_errors(reference, found, regions=regions).rate, row))
        graded.sort(key=lambda pair: -pair[0])
        shown = "".join(
            f"<h4>{escape(row.get('id', '?'))}, DER {rate:.1f} %</h4>{timeline(row)}"
            for rate, row in graded[:MAX_TIMELINES]
        )
        note = f"{min(len(graded), MAX_TIMELINES)} of {len(graded)} recordings, the worst first."
        parts.append(f"<h3>{escape(split)}</h3><p>{note}</p>{shown}")
    return f"<h2>Who speaks when</h2>{''.join(parts)}" if parts else ""


def _turns(row: Row) -> tuple[list[Turn], list[Turn]]:
    reference, found = ([Turn(*turn) for turn in row[side]] for side in SIDES)
    return reference, found


def timeline(row: Row) -> str:
    """Draw the turns of the reference above those that were found; a colour is a speaker."""
    reference, found = _turns(row)
    mapping = speaker_mapping(reference, found) if reference and found else {}
    names = sorted({turn.speaker for turn in reference})
    unmapped = sorted({turn.speaker for turn in found} - set(mapping))
    names += unmapped
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    figure, axes = new_axes(9.6, 0.7 + 0.22 * max(2, 2 * len(names)))
    lines = [("reference", name, reference, name) for name in names if name not in unmapped]
    theirs = {name: other for other, name in mapping.items()}
    lines += [
        ("found", name, found, theirs.get(name, name))
        for name in names
        if name in theirs or name in unmapped
    ]
    for place, (kind, name, turns, wanted) in enumerate(lines):
        spans = [(t.start, t.end - t.start) for t in turns if t.speaker == wanted]
        alpha = 1.0 if kind == "reference" else 0.6
        axes.broken_barh(spans, (-place - 0.4, 0.8), color=colours[name], alpha=alpha)
    axes.set_yticks([-i for i in range(len(lines))], [f"{line[0]} {line[1]}" for line in lines])
    axes.tick_params(labelsize=7)
    axes.set_xlabel("s", color=INK)
    return figure_svg(figure, f"Turns of {row.get('id', '?')}", wide=True)
