"""The page's section on synthesized speech: what went wrong, and some of it to see and to hear."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from speechkit.data.audio import audio_info, read_audio
from speechkit.data.manifest import DataError
from speechkit.page import audio_player, escape, figure_svg, sound_card, table
from speechkit.plots_speech import speech_figure
from speechkit.report_run import MAX_SECONDS, Run

SECONDS = 6.0  # of each picture and player of a condition that the speech is compared with
LISTED = 12  # utterances with problems
KEPT = 0.6  # of the page's allowance; the worst utterances come after
FACTS = (
    ("similarity", "similarity {:.2f}"),
    ("alignment_score", "alignment {:.2f}"),
    ("mcd", "MCD {:.1f} dB"),
    ("f0_rmse_cents", "F0 {:.0f} cents off"),
    ("voicing_error", "voicing {:.0f} % off"),
    ("duration_ratio", "{:.2f} times the recording's length"),
)
Row = Mapping[str, Any]
Numbers = npt.NDArray[np.float32]


class SpeechArrays(NamedTuple):
    """What the pictures of an utterance are made of.

    Attributes
    ----------
    mel : np.ndarray
        Shape ``(T, num_mels)``, logarithmic.
    alignment : np.ndarray
        Shape ``(T', U)``.
    pieces : list of str
        The U symbols.
    """

    mel: Numbers
    alignment: Numbers
    pieces: list[str]


def tts(run: Run) -> str:
    """Show what a speaking model's tests and its last validation said."""
    found: dict[str, dict[str, list[Row]]] = {}
    for name, rows in run.splits():
        split, _, condition = name.partition("@")
        kept: list[Row] = [row for row in rows if _is_of(row, condition)]
        if kept:
            found.setdefault(split, {})[condition] = kept
    # Other tasks have conditions too: here one is the speech that was made of the text.
    splits = {split: conditions for split, conditions in found.items() if "" in conditions}
    parts = [samples(run)]
    for index, (split, conditions) in enumerate(splits.items()):
        left = len(splits) - index  # the last split has its players too
        shown = examples(run, conditions, KEPT / left)
        parts.append(f"<h3>{escape(split)}</h3>{problems(conditions[''])}{shown}")
    body = "".join(parts)
    return f"<h2>Synthesized speech</h2>{body}" if body else ""


def _is_of(row: Row, condition: str) -> bool:
    if condition:
        return row.get("condition") == condition
    return "stopped" in row or "alignment_score" in row


def samples(run: Run) -> str:
    """Let the fixed sentences of the last validation be heard."""
    cards = []
    for path in sorted((run.folder / "samples").glob("*.wav")):
        label = f"sentence {int(path.stem) + 1}" if path.stem.isdigit() else path.stem
        card = _player(path, label)
        if path.with_suffix(".npz").exists():
            card += _picture(path.with_suffix(".npz"), None, f"Mel and alignment of {label}")
        if not run.take(1, len(card)):
            break
        cards.append(f"<div>{card}</div>")
    if not cards:
        return ""
    shown = f'<div class="grid">{"".join(cards)}</div>'
    return f"<h3>Fixed sentences, at the last validation</h3>{shown}"


def problems(rows: Sequence[Row]) -> str:
    """List the utterances that did not stop, or skipped, repeated or held something."""
    faulty = [(row, faults) for row in rows if (faults := faults_of(row))]
    judged = sum(row.get("stopped") is not None or "problems" in row for row in rows)
    if not judged:
        return ""
    if not faulty:
        return f"<p>Each of {judged} utterances ended by itself and said its text in order.</p>"
    faulty.sort(key=lambda pair: float(pair[0].get("alignment_score") or 0.0))
    lines = [
        (
            escape(row.get("id", "?")),
            escape(row.get("reference", "")),
            _fact(row, "alignment_score", "{:.2f}"),
            "<br>".join(escape(fault) for fault in faults),
        )
        for row, faults in faulty[:LISTED]
    ]
    note = f"{len(faulty)} of {judged} utterances went wrong; the worst {len(lines)} first."
    return f"<p>{note}</p>{table(('utterance', 'text', 'score', 'what'), lines, [2])}"


def faults_of(row: Row) -> list[str]:
    """Say what is wrong with a row's speech, as far as its own making tells.

    Examples
    --------
    >>> faults_of({"stopped": False, "problems": ["skipped: symbols 3 to 5"]})
    ['did not stop by itself', 'skipped: symbols 3 to 5']
    """
    found = ["did not stop by itself"] if row.get("stopped") is False else []
    listed = row.get("problems") or []
    if not isinstance(listed, list):
        raise DataError(f"the row {row.get('id')!r} has problems={listed!r}: a list is needed")
    return found + [str(fault) for fault in listed]


# ---------------------------------------------------------------- some to hear


def examples(run: Run, conditions: Mapping[str, Sequence[Row]], share: float) -> str:
    """Show the utterances whose sound was kept, within a share of what the page may still take."""
    players, size = int(run.players * share), int(run.media_bytes * share)
    heard: dict[str, dict[str, Row]] = {}
    for condition, rows in conditions.items():
        for row in rows:
            if row.get("estimate"):
                heard.setdefault(str(row.get("id", "?")), {})[condition] = row
    parts: list[str] = []
    for name, rows_of in heard.items():
        shown = utterance(run, name, rows_of)
        players, size = players - len(rows_of), size - len(shown)
        if min(players, size) < 0 or not run.take(len(rows_of), len(shown)):
            full = f"{len(parts)} of the {len(heard)} that were kept are shown"
            parts.append(f'<p class="label">The page is full: {full}.</p>')
            break
        parts.append(shown)
    return f"<h4>Some to hear</h4>{''.join(parts)}" if parts else ""


def utterance(run: Run, name: str, conditions: Mapping[str, Row]) -> str:
    """Show one utterance: its text, mel, alignment and sound, and what it is compared with."""
    row = conditions.get("") or next(iter(conditions.values()))
    voice = f"voice {escape(row['voice'])}" if row.get("voice") else ""
    said = f"<p>{escape(row.get('reference', ''))}</p>"
    if isinstance(row.get("hypothesis"), str):
        said += f'<p class="label">heard as: {escape(row["hypothesis"])}</p>'
    if "" in conditions:
        said += _spoken(run, name, row)
    cards = [_card(run, name, kind, other) for kind, other in conditions.items() if kind]
    grid = f'<div class="grid">{"".join(cards)}</div>' if cards else ""
    return (
        f'<article><h5>{escape(name)} <span class="label">{voice}</span></h5>{said}{grid}</article>'
    )


def _spoken(run: Run, name: str, row: Row) -> str:
    facts = " · ".join(filter(None, (_fact(row, key, form) for key, form in FACTS)))
    shown = f'<p class="label">{facts}</p>' if facts else ""
    if row.get("arrays"):
        path = run.folder / str(row["arrays"])
        shown += _picture(path, row.get("duration"), f"Mel and alignment of {name}, synthesized")
    return shown + _player(run.folder / str(row["estimate"]), f"{name}, synthesized", MAX_SECONDS)


def _picture(path: Path, seconds: Any, label: str) -> str:
    """Draw what a file of arrays holds, over time if the seconds are known."""
    try:
        arrays = read_arrays(path)
    except DataError as error:  # moved since: the page says so and shows the rest
        return f'<p class="label">No picture: {escape(error)}</p>'
    known = float(seconds) if isinstance(seconds, (int, float)) else None
    figure = speech_figure(arrays.mel, arrays.alignment, arrays.pieces, seconds=known)
    return figure_svg(figure, label, wide=True)


def _card(run: Run, name: str, condition: str, row: Row) -> str:
    path = run.folder / str(row["estimate"])
    try:
        waveform, rate = _read(path, SECONDS)
    except DataError as error:
        return f'<p class="label">No sound of {escape(condition)}: {escape(error)}</p>'
    heard = row.get("hypothesis")
    note = f"heard as: {heard}" if isinstance(heard, str) else ""
    return sound_card(waveform, rate, condition, note, f"{name}, {condition}")


def _player(path: Path, label: str, seconds: float = MAX_SECONDS) -> str:
    try:
        waveform, rate = _read(path, seconds)
    except DataError as error:
        return f'<p class="label">No sound: {escape(error)}</p>'
    return f'<p class="label">{escape(label)}</p>{audio_player(waveform, rate, label)}'


def _read(path: Path, seconds: float) -> tuple[Tensor, int]:
    info = audio_info(path)
    return read_audio(path, duration=min(seconds, info.num_samples / info.sample_rate))


def _fact(row: Row, key: str, form: str) -> str:
    value = row.get(key)
    return form.format(value) if isinstance(value, (int, float)) else ""


def read_arrays(path: str | Path) -> SpeechArrays:
    """Read what a test kept of an utterance.

    Parameters
    ----------
    path : str or Path
        An ``.npz`` file with ``mel``, ``alignment`` and ``pieces``, read without pickle.

    Raises
    ------
    DataError
        If there is no such file, or it is another one.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mel, alignment = (arrays[key].astype(np.float32) for key in ("mel", "alignment"))
            pieces = [str(piece) for piece in arrays["pieces"].tolist()]
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no file of a mel and an alignment ({error})") from error
    if mel.ndim != 2 or alignment.ndim != 2 or 0 in mel.shape or 0 in alignment.shape:
        raise DataError(f"{path}: mel {mel.shape} and alignment {alignment.shape} are no matrices")
    return SpeechArrays(mel, alignment, pieces)
