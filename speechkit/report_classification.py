"""The page's section on classification: what was taken for what, each label, and mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speechkit.data.audio import read_audio
from speechkit.data.manifest import DataError
from speechkit.metrics.classification import Confusion, confusion_matrix, per_label
from speechkit.page import INK, escape, figure_svg, new_axes, sound_card, table
from speechkit.report_run import Run

LISTED = 12  # mistakes of each split in the table
HEARD = 4  # of them with a picture and a player
SECONDS = 6.0  # of each player
DRAWN = 100  # labels of a matrix that one can still look at
NUMBERED = 20  # labels of a matrix whose cells have room for a number
FOLDED = 60  # labels of a table that is shown at once

Row = Mapping[str, Any]


def classification(run: Run) -> str:
    """Show a classifier's splits: the confusion matrix, each label, the surest mistakes."""
    splits = [
        (split, rows)
        for split, rows in run.splits()
        if rows and all(isinstance(row.get("scores"), dict) and "label" in row for row in rows)
    ]
    parts = []
    for index, (split, rows) in enumerate(splits):
        left = len(splits) - index  # the last split has its players too
        parts.append(f"<h3>{escape(split)}</h3>{_split(run, rows, run.players // left)}")
    return f"<h2>Classification</h2>{''.join(parts)}" if parts else ""


def _split(run: Run, rows: list[dict[str, Any]], players: int) -> str:
    if len({tuple(row["scores"]) for row in rows}) > 1:  # folds whose training had other labels
        return '<p class="label">Not all rows have the same labels: there is no table of them.</p>'
    if isinstance(rows[0]["label"], list):
        return label_table(rows)
    confusion = confusion_matrix(rows)
    drawn = matrix(confusion) if len(confusion.labels) <= DRAWN else ""
    return drawn + label_table(rows) + mistakes(run, rows, players)


def matrix(confusion: Confusion) -> str:
    """Draw a confusion matrix as SVG: a row is a label, its cells are shares of its utterances.

    Examples
    --------
    >>> import numpy as np
    >>> drawn = matrix(Confusion(["cat", "dog"], np.array([[3, 1], [0, 2]])))
    >>> "Confusion matrix of 6 utterances, 5 of them right; most often cat for dog: 1" in drawn
    False
    >>> "Confusion matrix of 6 utterances, 5 of them right; cat taken for dog: 1" in drawn
    True
    """
    labels, counts = confusion
    size = len(labels)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    inches = max(3.2, 0.32 * size + 1.6) if size <= NUMBERED else 0.16 * size + 2.0
    figure, axes = new_axes(inches, inches)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    small = 8 if size <= NUMBERED else 6
    axes.set_xticks(range(size), labels, rotation=90, fontsize=small)
    axes.set_yticks(range(size), labels, fontsize=small)
    axes.set_xlabel("found", color=INK)
    axes.set_ylabel("label", color=INK)
    if size <= NUMBERED:
        for row, column in zip(*counts.nonzero()):
            shade = "white" if shares[row, column] > 0.5 else "#1c2024"
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", color=shade,
                fontsize=8,
            )  # fmt: skip
    told = f"{counts.sum()} utterances, {counts.trace()} of them right"
    wrong = "; ".join(f"{a} taken for {b}: {count}" for count, a, b in confused(confusion)[:5])
    return figure_svg(figure, f"Confusion matrix of {told}" + (f"; {wrong}" if wrong else ""))


def confused(confusion: Confusion) -> list[tuple[int, str, str]]:
    """List what was taken for what: how often, the label, what was found; most often first.

    Examples
    --------
    >>> import numpy as np
    >>> confused(Confusion(["cat", "dog"], np.array([[3, 1], [2, 2]])))
    [(2, 'dog', 'cat'), (1, 'cat', 'dog')]
    """
    labels, counts = confusion
    cells = [
        (int(counts[row, column]), labels[row], labels[column])
        for row, column in zip(*counts.nonzero())
        if row != column
    ]
    return sorted(cells, key=lambda cell: (-cell[0], cell[1], cell[2]))


def label_table(rows: Sequence[dict[str, Any]]) -> str:
    """Write how well each label was found, in percent."""

    def share(value: float | None) -> str:
        return "none" if value is None else f"{100 * value:.1f}"

    head = ("label", "utterances", "precision", "recall", "F1", "average precision")
    cells = [
        (
            escape(score.label), f"{score.count:,}",
            *map(share, (score.precision, score.recall, score.f1, score.average_precision)),
        )
        for score in per_label(rows)
    ]  # fmt: skip
    made = table(head, cells, range(1, len(head)))
    if len(cells) > FOLDED:
        made = f"<details><summary>{len(cells)} labels</summary>{made}</details>"
    return f"<h4>Each label, in percent</h4>{made}"


# ---------------------------------------------------------------- mistakes


def mistakes(run: Run, rows: Sequence[Row], players: int) -> str:
    """List the mistakes that the model was surest of, and let the first of them be heard."""
    wrong = sorted((row for row in rows if _found(row) != row["label"]), key=_doubt)
    if not wrong:
        return "<p>No mistakes.</p>"
    head = ("utterance", "label", "found", "probability", "of the label")
    cells = [
        (
            escape(row.get("id", "?")), escape(row["label"]), escape(_found(row)),
            f"{row['scores'][_found(row)]:.3f}", f"{row['scores'][row['label']]:.3f}",
        )
        for row in wrong[:LISTED]
    ]  # fmt: skip
    note = f"{len(wrong)} of {len(rows)} utterances; those that the model was surest of first."
    heard = [row for row in wrong if row.get("audio")][: min(HEARD, players)]
    cards = []
    for row in heard:
        card = _card(run, row)
        if not run.take(1, len(card)):
            cards.append('<p class="label">The page is full: not all are shown.</p>')
            break
        cards.append(card)
    sounds = f'<div class="grid">{"".join(cards)}</div>' if cards else ""
    return f"<h4>Mistakes</h4><p>{note}</p>{table(head, cells, (3, 4))}{sounds}"


def _found(row: Row) -> str:
    scores: dict[str, float] = row["scores"]
    return max(scores, key=scores.__getitem__)


def _doubt(row: Row) -> float:
    scores = row["scores"]
    return float(scores[row["label"]] - scores[_found(row)])


def _card(run: Run, row: Row) -> str:
    duration = row.get("duration")
    seconds = min(SECONDS, float(duration)) if isinstance(duration, (int, float)) else SECONDS
    name = str(row.get("id", "?"))
    said = f"{row['label']}, found {_found(row)}"
    try:
        samples, rate = read_audio(
            run.folder / str(row["audio"]), start=float(row.get("start") or 0.0), duration=seconds
        )
    except DataError as error:  # moved since: the page says so and shows the rest
        return f'<p class="label">No sound of {escape(name)}: {escape(error)}</p>'
    return sound_card(samples, rate, name, said, f"{name}: {said}")
