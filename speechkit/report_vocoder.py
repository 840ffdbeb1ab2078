"""The page's section on vocoders: the same utterance from each of them, to see and to hear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechkit.page import escape
from speechkit.report_codec import examples
from speechkit.report_run import Run

Row = Mapping[str, Any]


def vocoder(run: Run) -> str:
    """Show what a vocoder made of recordings, beside Griffin-Lim and the recordings."""
    splits: dict[str, dict[str, list[Row]]] = {}
    for name, rows in run.splits():
        split, _, condition = name.partition("@")
        kept: list[Row] = [
            {**row, "condition": condition} for row in rows if row.get("vocoder") == condition
        ]
        if condition and kept:
            splits.setdefault(split, {})[condition] = kept
    parts = [
        f"<h3>{escape(split)}</h3>{examples(run, conditions)}"
        for split, conditions in splits.items()
    ]
    return f"<h2>Recordings through the vocoder</h2>{''.join(parts)}" if parts else ""
