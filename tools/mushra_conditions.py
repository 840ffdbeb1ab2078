"""The conditions of a listening test by proxy: decoded folders, Opus, anchors, the reference.

What `tools/mushra_proxy.py` measures of one item.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ENDINGS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
LOOSE_END = 0.1
"""Seconds by which a decoded file may be longer or shorter than its reference."""


@dataclass(frozen=True)
class Condition:
    """One column of a listening test.

    Attributes
    ----------
    name : str
        As the table shows it.
    folder : Path or None
        Of decoded files.
    coded : Path or None
        Of coded files, whose sizes are the bit rate.
    delay : int
        Samples by which the decoded files lag.
    gain : bool
        Whether their level is fitted.
    opus_kbps : float or None
        Run Opus at this rate.
    cutoff : float or None
        Make this anchor, in Hz.
    """

    name: str
    folder: Path | None = None
    coded: Path | None = None
    delay: int = 0
    gain: bool = False
    opus_kbps: float | None = None
    cutoff: float | None = None


@dataclass(frozen=True)
class Job:
    """One reference against all conditions.

    Attributes
    ----------
    item : str
        The reference's relative name without ending.
    path : Path
        Its file.
    conditions : tuple of Condition
        What it is compared with.
    rate : int
        Samples a second of the table.
    seconds : float or None
        How much of it, from its start.
    metrics : tuple of str
        What is measured.
    """

    item: str
    path: Path
    conditions: tuple[Condition, ...]
    rate: int
    seconds: float | None
    metrics: tuple[str, ...]


def measure_item(job: Job) -> list[dict[str, Any]]:
    """Measure an item under each condition: rows with ``id``, ``condition`` and measures."""
    from speechkit.data.audio import read_audio_channels
    from speechkit.metrics.quality import measure

    whole, _ = read_audio_channels(job.path, sample_rate=job.rate)
    reference = whole if job.seconds is None else whole[:, : round(job.seconds * job.rate)]
    rows = []
    for condition in job.conditions:
        kbps, pair = None, (reference, reference)
        if condition.cutoff is not None:
            from speechkit.metrics.quality import low_pass

            pair = (reference, low_pass(reference, job.rate, condition.cutoff))
        elif condition.opus_kbps is not None:
            estimate, kbps = through_opus(reference, job.rate, condition.opus_kbps)
            pair = (reference, estimate)
        elif condition.folder is not None:
            pair = decoded(job, condition, whole)
            kbps = on_disk(job, condition, whole.shape[1] / job.rate)
        row: dict[str, Any] = {"id": job.item, "condition": condition.name}
        if kbps is not None:
            row["kbps"] = kbps
        rows.append({**row, **measure(*pair, job.rate, metrics=job.metrics)})
    return rows


def decoded(job: Job, condition: Condition, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Read a decoded file, undo what is declared of it, and give it with its reference."""
    from speechkit.data.audio import read_audio_channels, resample
    from speechkit.data.errors import DataError
    from speechkit.metrics.quality import compensate

    assert condition.folder is not None
    path = find(condition.folder)[job.item]
    estimate, rate = read_audio_channels(path)
    if estimate.shape[0] != reference.shape[0]:
        raise DataError(
            f"{path}: {estimate.shape[0]} channels, its reference {job.path} has "
            f"{reference.shape[0]}; decode to as many"
        )
    if condition.delay >= estimate.shape[1]:
        raise DataError(f"{path}: {estimate.shape[1]} samples, the delay is {condition.delay}")
    estimate = resample(estimate[:, condition.delay :], rate, job.rate)
    gap = (estimate.shape[1] - reference.shape[1]) / job.rate
    if not -LOOSE_END - condition.delay / rate <= gap <= LOOSE_END:
        raise DataError(
            f"{path}: {gap:+.3f} s against its reference {job.path}; is it of this recording? "
            "declare the codec's delay with --delay, or cut the files"
        )
    if job.seconds is not None:
        reference = reference[:, : round(job.seconds * job.rate)]
        estimate = estimate[:, : reference.shape[1]]
    try:
        return compensate(reference, estimate, gain=condition.gain)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def on_disk(job: Job, condition: Condition, seconds: float) -> float | None:
    """Give the coded file's bits for each second of the reference, in kbps."""
    if condition.coded is None:
        return None
    return find(condition.coded, audio=False)[job.item].stat().st_size * 8 / 1000 / seconds


def through_opus(reference: Tensor, rate: int, kbps: float) -> tuple[Tensor, float]:
    """Encode and decode by opus-tools; return the audio and the file's bit rate in kbps.

    The file's pre-skip, which opusdec applies, is Opus's own declared delay.
    """
    from speechkit.data.audio import read_audio_channels, write_audio

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_audio(folder / "in.wav", reference, rate)
        call("opusenc", "--bitrate", f"{kbps:g}", "--padding", "0", "in.wav", "x.opus", cwd=folder)
        call("opusdec", "--rate", str(rate), "--float", "x.opus", "out.wav", cwd=folder)
        estimate, _ = read_audio_channels(folder / "out.wav")
        written = (folder / "x.opus").stat().st_size
    estimate = estimate[:, : reference.shape[1]]
    if estimate.shape != reference.shape:
        raise RuntimeError(f"opusdec gave {tuple(estimate.shape)}, not {tuple(reference.shape)}")
    return estimate, written * 8 / 1000 / (reference.shape[1] / rate)


def call(program: str, *arguments: str, cwd: Path) -> None:
    """Run a program; its own words if it fails."""
    done = subprocess.run(
        [program, "--quiet", *arguments], cwd=cwd, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise RuntimeError(f"{program} failed ({done.returncode}): {done.stderr.strip()}")


@lru_cache(maxsize=64)
def find(folder: Path, *, audio: bool = True) -> dict[str, Path]:
    """Find a folder's files by relative name without ending: audio, or whatever there is."""
    from speechkit.data.errors import DataError

    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or (audio and path.suffix.lower() not in ENDINGS):
            continue
        item = path.relative_to(folder).with_suffix("").as_posix()
        if item in found:
            raise DataError(f"{path} and {found[item]} have one name; remove one of them")
        found[item] = path
    return found
