"""Tests in conditions: one split heard in several ways, each with its own rows and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from speechkit.data.audio import write_audio
from speechkit.data.manifest import Utterance
from speechkit.metrics.quality import measure


def split_name(split: str, condition: str) -> str:
    """Name a split as a condition of a test; the one without a name is the split itself.

    Examples
    --------
    >>> split_name("test", "recording"), split_name("test", "")
    ('test@recording', 'test')
    """
    return f"{split}@{condition}" if condition else split


def by_condition(
    split: str, rows: Iterable[Mapping[str, Any]], key: str = "condition"
) -> dict[str, list[dict[str, Any]]]:
    """Divide the rows of a split by what they have under ``key``: what a task's ``parts`` gives.

    Examples
    --------
    >>> by_condition("test", [{"id": "a", "condition": ""}, {"id": "a", "condition": "x"}])
    {'test': [{'id': 'a', 'condition': ''}], 'test@x': [{'id': 'a', 'condition': 'x'}]}
    """
    made: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        made.setdefault(split_name(split, str(row[key])), []).append(dict(row))
    return made


def quality_row(
    utterance: Utterance,
    reference: Tensor,
    estimate: Tensor,
    sample_rate: int,
    *,
    metrics: Sequence[str],
) -> dict[str, Any]:
    """Measure what became of an utterance, and say which one it was.

    Parameters
    ----------
    utterance : Utterance
        Whose recording it is.
    reference, estimate : Tensor
        Shape ``(C, T)``: the recording, and what was made of it.
    sample_rate : int
        Hz.
    metrics : sequence of str
        As `speechkit.metrics.quality.measure` takes them.
    """
    return {
        "id": utterance.id,
        **measure(reference, estimate, sample_rate, metrics=metrics),
        "speaker": utterance.speaker,
        "audio": utterance.audio,
        "start": utterance.start,
        "duration": utterance.duration,
    }


def example_numbers(utterances: Sequence[Utterance], count: int) -> dict[str, int]:
    """Choose whose sound is kept, the first of a split: ids to numbers."""
    return {utterance.id: number for number, utterance in enumerate(utterances[:count])}


def keep_example(
    folder: Path, split: str, number: int | None, waveform: Tensor, sample_rate: int
) -> dict[str, str]:
    """Write what was heard of a chosen utterance, to be played in the report.

    Parameters
    ----------
    folder : Path
        Of the run.
    split : str
        With its condition, see `split_name`.
    number : int, optional
        Of `example_numbers`; None keeps nothing.
    waveform : Tensor
        Shape ``(C, T)``.
    sample_rate : int
        Hz.

    Returns
    -------
    dict
        ``{"estimate": path}`` relative to the run's folder, for the row; empty if nothing was kept.
    """
    if number is None:
        return {}
    path = Path("test", split, "audio", f"{number:03d}.wav")
    write_audio(folder / path, waveform, sample_rate)
    return {"estimate": path.as_posix()}
