"""From the rows of a test of synthesized speech to its results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from speechkit.metrics.attention import check_alignment
from speechkit.metrics.results import Result
from speechkit.metrics.separation import NotComputableError
from speechkit.metrics.tts import compare
from speechkit.metrics.wer import summarize as summarize_texts


def spoken_row(
    *,
    id: str,
    text: str,
    waveform: Tensor,
    sample_rate: int,
    recording: Tensor | None = None,
    hypothesis: str | None = None,
    similarity: float | None = None,
    other_similarity: float | None = None,
    stopped: bool | None = None,
    alignment: Tensor | None = None,
    pieces: Sequence[str] | None = None,
    voice: str | None = None,
    work_seconds: float | None = None,
) -> dict[str, Any]:
    """Measure one utterance of a test, and make its row; what was not measured is not in it.

    Parameters
    ----------
    id : str
        Of the utterance.
    text : str
        What should be said. The word errors are against it: case and punctuation count.
    waveform : Tensor
        Shape ``(N,)``: what was said.
    sample_rate : int
        Hz.
    recording : Tensor, optional
        Shape ``(N',)``: the text by a human in the same voice. See `speechkit.metrics.tts.compare`.
    hypothesis : str, optional
        What a recognizer heard.
    similarity, other_similarity : float, optional
        Cosine of speaker embeddings, in [-1, 1]: to the speaker who was asked for, and to the one
        of the others who is nearest.
    stopped : bool, optional
        Whether the model ended by itself.
    alignment : Tensor, optional
        Shape ``(T, U)``, without padding. See `speechkit.metrics.attention.check_alignment`.
    pieces : sequence of str, optional
        The U symbols, quoted where something is wrong with the alignment.
    voice : str, optional
        Who was asked for.
    work_seconds : float, optional
        How long it took to make the speech.

    Returns
    -------
    dict
        What JSON can hold: ``id, reference, duration`` (seconds of speech), and of the rest
        ``hypothesis, voice, similarity, other_similarity, stopped, work_seconds, alignment_score,
        diagonality, problems, mcd, f0_rmse_cents, voicing_error, duration_ratio``. ``notes`` says
        why distances from the recording are missing: one of the two is silent, or nothing is
        voiced.

    Raises
    ------
    ValueError
        Where a signal or the alignment is not finite or has a wrong shape.

    Examples
    --------
    >>> import torch
    >>> row = spoken_row(
    ...     id="a", text="one two", waveform=torch.zeros(12000), sample_rate=8000, stopped=True
    ... )
    >>> row
    {'id': 'a', 'reference': 'one two', 'duration': 1.5, 'stopped': True}
    """
    row: dict[str, Any] = {
        "id": id,
        "reference": text,
        "duration": waveform.numel() / sample_rate,
        "hypothesis": hypothesis,
        "voice": voice,
        "similarity": similarity,
        "other_similarity": other_similarity,
        "stopped": stopped,
        "work_seconds": work_seconds,
    }
    if alignment is not None:
        report = check_alignment(alignment, *alignment.shape)
        row |= {"alignment_score": report.score, "problems": report.problems(pieces)}
        if not math.isnan(report.diagonality):  # of one symbol there is none
            row["diagonality"] = report.diagonality
    if recording is not None:
        row |= _distances(waveform, recording, sample_rate)
    return {key: value for key, value in row.items() if value is not None}


def _distances(waveform: Tensor, recording: Tensor, sample_rate: int) -> dict[str, Any]:
    try:
        found = compare(recording, waveform, sample_rate)
    except NotComputableError as error:
        ratio = waveform.numel() / recording.numel() if recording.numel() else None
        return {"duration_ratio": ratio, "notes": [f"no distances: {error}"]}
    notes = ["no F0 error: no pair of frames is voiced"] if found.f0_rmse_cents is None else None
    return {**found._asdict(), "notes": notes}


_MEANS = (
    ("speaker similarity", "similarity", ""),
    ("similarity to others", "other_similarity", ""),
    ("alignment score", "alignment_score", ""),
    ("attention diagonality", "diagonality", ""),
    ("MCD", "mcd", "dB"),
    ("F0 RMSE", "f0_rmse_cents", "cents"),
    ("voicing error", "voicing_error", "%"),
    ("duration ratio", "duration_ratio", ""),
)
_NUMBERS = (*(key for _, key, _ in _MEANS), "duration", "work_seconds")


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a speaking model's results from its per-utterance rows.

    Parameters
    ----------
    rows : iterable of dict
        Of `spoken_row`. What a row lacks is not counted; other keys are ignored.

    Returns
    -------
    list of Result
        Those that some row allows, each with the number of rows (or words, or characters) that it
        is of: WER and CER of the recognizer; the share of utterances nearer to their speaker than
        to any other, and both mean similarities; the stop rate; the share of utterances with
        problems in their alignment, and the mean score; the means of the distances from a
        recording; the real-time factor (seconds of work for a second of speech).

    Raises
    ------
    ValueError
        Where a value is of the wrong kind or not finite (the row's number and id are named), or no
        row has anything to count.

    Examples
    --------
    >>> rows = [
    ...     {"id": "a", "reference": "one two", "hypothesis": "one too", "stopped": True},
    ...     {"id": "b", "reference": "three", "stopped": False},
    ... ]
    >>> [(r.metric, r.value, r.count) for r in summarize(rows)]
    [('WER', 50.0, 2), ('CER', 14.285714285714286, 7), ('stop rate', 50.0, 2)]
    """
    rows = list(rows)
    for number, row in enumerate(rows, start=1):
        _check(number, row)
    means = [_mean(rows, *column) for column in _MEANS]
    results = [
        *_texts(rows),
        _share("right speaker", [_right(row) for row in rows]),
        *means[:2],
        _share("stop rate", [row.get("stopped") for row in rows]),
        _share("alignment problems", [_faulty(row) for row in rows]),
        *means[2:],
        _real_time(rows),
    ]
    kept = [result for result in results if result is not None]
    if not kept:
        raise ValueError(
            f"none of {len(rows)} rows has anything to count: a hypothesis, stopped, problems, or "
            f"one of {', '.join(_NUMBERS)}"
        )
    return kept


def _check(number: int, row: dict[str, Any]) -> None:
    where = f"row {number} (id {row.get('id')!r})"
    for key in _NUMBERS:
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{where}: {key!r} is {value!r}, not a number")
        if not math.isfinite(value):
            raise ValueError(f"{where}: {key!r} is {value}")
    for key, kind in (("stopped", bool), ("problems", list), ("hypothesis", str)):
        value = row.get(key)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{where}: {key!r} is {value!r}, not a {kind.__name__}")
    if row.get("hypothesis") is not None and not isinstance(row.get("reference"), str):
        raise ValueError(f"{where}: 'hypothesis' without a text under 'reference'")


def _texts(rows: list[dict[str, Any]]) -> list[Result]:
    heard = [row for row in rows if row.get("hypothesis") is not None]
    found = summarize_texts(heard) if heard else []
    return [result for result in found if result.metric in ("WER", "CER")]


def _mean(rows: list[dict[str, Any]], metric: str, key: str, unit: str) -> Result | None:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    if not values:
        return None
    return Result(metric, math.fsum(values) / len(values), unit, len(values))


def _share(metric: str, marks: list[bool | None]) -> Result | None:
    known = [mark for mark in marks if mark is not None]
    if not known:
        return None
    return Result(metric, 100.0 * sum(known) / len(known), "%", len(known))


def _right(row: dict[str, Any]) -> bool | None:
    own, other = row.get("similarity"), row.get("other_similarity")
    return None if own is None or other is None else bool(own > other)


def _faulty(row: dict[str, Any]) -> bool | None:
    problems = row.get("problems")
    return None if problems is None else bool(problems)


def _real_time(rows: list[dict[str, Any]]) -> Result | None:
    timed = [
        (float(row["work_seconds"]), float(row["duration"]))
        for row in rows
        if row.get("work_seconds") is not None and row.get("duration") is not None
    ]
    spoken = math.fsum(seconds for _, seconds in timed)
    if spoken <= 0:
        return None
    return Result("real-time factor", math.fsum(work for work, _ in timed) / spoken, "", len(timed))
