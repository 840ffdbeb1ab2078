"""Making WSJ0-mix from WSJ0 and the published lists (Hershey et al., ICASSP 2016)."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechkit.data.audio import audio_info
from speechkit.data.manifest import DataError
from speechkit.data.speech_level import active_speech_level
from speechkit.datasets import preparation
from speechkit.datasets.mixture_folder import (
    Place,
    Samples,
    rate_name,
    read_samples,
    render_missing,
    scipy_signal,
)
from speechkit.files import file_digest

MODES = ("min", "max")
LEVELS = ("active", "rms")
SAMPLE_RATE = 16000  # of WSJ0, in Hz
_ENDINGS = (".wav", ".flac", ".wv1", ".sph", ".WV1")
_FORMAT = 1  # raised when the same lists give other files than before
_STAMP = ".wsj0mix.json"


class Mixture(NamedTuple):
    """One row of a list: `number` from 1."""

    number: int
    id: str
    sources: tuple[str, ...]
    gains: tuple[float, ...]


def make(
    lists: str | os.PathLike[str],
    wsj0: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    num_speakers: int = 2,
    sample_rates: Sequence[int] = (8000,),
    modes: Sequence[str] = ("min",),
    level: str = "active",
    splits: Sequence[str] = ("tr", "cv", "tt"),
) -> Path:
    """Make the mixtures as ``create_wav_2speakers.m`` (and ``3speakers``) does.

    At 8 kHz, each source is divided by the root of its active speech level (ITU-T P.56, measured
    at 8 kHz) and multiplied by its gain; the sources are cut to the shortest or padded to the
    longest and summed, and one factor brings the largest amplitude of mixture and sources to 0.9,
    up or down. At 16 kHz the sources are not resampled; level and gain are those of 8 kHz, the
    last factor is its own. Samples are rounded to 16 bits as Matlab rounds.

    What is equal to the original and what is not: gains, order of steps, factors and names are.
    Matlab's ``resample`` and ``scipy.signal.resample_poly`` design the same filter (an ideal
    low-pass of 20 max(p, q) + 1 taps under a Kaiser window of beta 5), and lengths are the same;
    samples differ by rounding. The level follows VOICEBOX's ``activlev`` (2012), which the scripts
    ship; neither was compared with Matlab here, so expect equality within rounding, not bits.

    Files that are there are kept; a folder that was made here from another list or by another level
    is made anew.

    Parameters
    ----------
    lists : path
        The folder of ``mix_<N>_spk_<split>.txt`` (or ``.txt.gz``).
    wsj0 : path
        The folder that holds ``wsj0/``, or that folder. A listed file may have another ending:
        .wav, .flac, .wv1 or .sph (uncompressed, as libsndfile reads it).
    out : path
        Where ``<N>speakers`` appears (or that folder itself).
    num_speakers : int
        Which lists.
    sample_rates : sequence of int
        8000, 16000 or both, in Hz.
    modes : sequence of str
        ``"min"``, ``"max"`` or both.
    level : str
        ``"active"``; ``"rms"`` for lists whose gains mean root mean squares (of the whole source).
    splits : sequence of str
        Which lists and folders.

    Returns
    -------
    Path
        ``<out>/<N>speakers``.

    Raises
    ------
    DataError
        When lists or files are missing or unreadable; list, row and file are named.
    ValueError
        When a number or a word makes no sense.
    ImportError
        When scipy is not there.
    """
    check_choices(num_speakers, sample_rates, modes, level)
    lists, wsj0, out = (Path(path).absolute() for path in (lists, wsj0, out))
    name = f"{num_speakers}speakers"
    corpus = out if out.name == name else out / name
    for split in splits:
        path = find_list(lists, num_speakers, split)
        _make_split(
            path,
            read_list(path, num_speakers),
            wsj0,
            {
                (rate, mode): corpus / rate_name(rate) / mode / split
                for rate, mode in product(sample_rates, modes)
            },
            level,
        )
    return corpus


def _make_split(
    path: Path,
    mixtures: Sequence[Mixture],
    wsj0: Path,
    targets: Mapping[Place, Path],
    level: str,
) -> None:
    found: dict[str, Path | None] = {}

    def check(todo: Sequence[int]) -> None:
        find_sources(path, [mixtures[number] for number in todo], wsj0, found)

    def render(number: int, places: Sequence[Place]) -> dict[Place, dict[str, Samples]]:
        files = [found[name] for name in mixtures[number].sources]
        return _render([file for file in files if file], mixtures[number].gains, level, places)

    render_missing(
        [mixture.id for mixture in mixtures],
        targets,
        ["mix", *(f"s{i + 1}" for i in range(len(mixtures[0].sources)))],
        stamp=_STAMP,
        settings={
            "format": _FORMAT,
            "list": file_digest(path),
            "name": path.name,
            "level": level,
        },
        check=check,
        render=render,
    )


def _render(
    files: Sequence[Path], gains: Sequence[float], level: str, places: Sequence[Place]
) -> dict[Place, dict[str, Samples]]:
    resample_poly = scipy_signal("making WSJ0-mix").resample_poly
    at_16k = [_read_16k(path) for path in files]
    at_8k = [resample_poly(x, 1, 2) for x in at_16k]
    factors = []
    for path, x, gain in zip(files, at_8k, gains):
        power = float(np.mean(x**2))
        if level == "active":
            power = active_speech_level(torch.from_numpy(x), 8000).power
        if power == 0.0:
            raise DataError(f"{path}: is silent, so it cannot be brought to a level; replace it")
        factors.append(10 ** (gain / 20) / math.sqrt(power))
    rendered = {}
    for rate, mode in places:
        signals = [x * f for x, f in zip(at_8k if rate == 8000 else at_16k, factors)]
        lengths = [len(x) for x in signals]
        length = min(lengths) if mode == "min" else max(lengths)
        signals = [np.pad(x[:length], (0, max(0, length - len(x)))) for x in signals]
        own = {f"s{i + 1}": x for i, x in enumerate(signals)}
        own["mix"] = np.sum(signals, axis=0)
        scale = 0.9 / max(float(np.abs(x).max()) for x in own.values())
        rendered[rate, mode] = {part: _to_int16(x * scale) for part, x in own.items()}
    return rendered


def _to_int16(x: Samples) -> Samples:
    # Matlab's round takes halves away from zero, numpy's to the even side.
    return (np.sign(x) * np.floor(np.abs(x) * 32768 + 0.5)).astype(np.int16)


def _read_16k(path: Path) -> Samples:
    rate = audio_info(path).sample_rate
    if rate != SAMPLE_RATE:
        raise DataError(f"{path}: has {rate} Hz; WSJ0-mix is made of files of {SAMPLE_RATE} Hz")
    return read_samples(path).astype(np.float64)


def find_list(lists: Path, num_speakers: int, split: str) -> Path:
    """Find the list of a split, or name those that are there."""
    name = f"mix_{num_speakers}_spk_{split}.txt"
    for path in (lists / name, lists / f"{name}.gz"):
        if path.is_file():
            return path
    there = sorted(path.name for path in lists.glob("mix_*_spk_*"))
    raise DataError(
        f"{lists}: no {name} or {name}.gz here (found: {', '.join(there) or 'no lists'}). The "
        "lists come with the original scripts, create-speaker-mixtures.zip"
    )


def read_list(path: Path, num_speakers: int) -> list[Mixture]:
    """Read and check all rows of a list."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    mixtures: list[Mixture] = []
    problems: list[str] = []
    first_row: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        gains = [_number(field) for field in fields[1::2]]
        if len(fields) != 2 * num_speakers or not all(map(math.isfinite, gains)):
            problems.append(f"row {number}: not {num_speakers} times 'path gain': {line!r}")
            continue
        named = zip(fields[::2], gains)
        item = "_".join(f"{Path(source).stem}_{_num2str(gain)}" for source, gain in named)
        if item in first_row:
            problems.append(f"row {number}: the mixture of row {first_row[item]} again: {item}")
        first_row.setdefault(item, number)
        mixtures.append(Mixture(number, item, tuple(fields[::2]), tuple(gains)))
    if not mixtures and not problems:
        problems.append("no rows")
    preparation.raise_problems(path, problems, "Take the list as it is published")
    return mixtures


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _num2str(value: float) -> str:
    """Write a number as Matlab's num2str does: five significant digits, more from 10 on."""
    digits = max(math.floor(math.log10(abs(value))), 0) + 5 if value else 1
    return f"{value:.{digits}g}"


def find_sources(
    path: Path, mixtures: Sequence[Mixture], wsj0: Path, found: dict[str, Path | None]
) -> None:
    """Find the file of each listed path, in any ending, or name all that are missing."""
    problems = []
    for mixture in mixtures:
        for position, name in enumerate(mixture.sources, start=1):
            if name not in found:
                found[name] = _find_audio(wsj0, name)
            if found[name] is None:
                problems.append(f"row {mixture.number}, source {position}: no file {wsj0 / name}")
    preparation.raise_problems(
        path,
        problems,
        f"Any of the endings {', '.join(_ENDINGS)} will do. Put the files there, or correct the "
        "folder",
    )


def _find_audio(wsj0: Path, name: str) -> Path | None:
    parts = Path(name)
    for place in (wsj0 / parts, wsj0.joinpath(*parts.parts[1:])):
        for candidate in (place, *(place.with_suffix(ending) for ending in _ENDINGS)):
            if candidate.is_file():
                return candidate
    return None


def check_choices(
    num_speakers: int, rates: Sequence[int], modes: Sequence[str], level: str
) -> None:
    """Raise ValueError where a number, mode or level is none that there is."""
    wrong: list[str] = []
    checks: list[tuple[str, Sequence[object], Callable[[object], bool], str]] = [
        ("num_speakers", [num_speakers], lambda x: isinstance(x, int) and x >= 2, "2 or more"),
        ("sample_rate", rates, lambda x: x in (8000, SAMPLE_RATE), "8000 or 16000"),
        ("mode", modes, lambda x: x in MODES, "min or max"),
        ("level", [level], lambda x: x in LEVELS, "active or rms"),
    ]
    for name, values, is_good, wanted in checks:
        bad = [value for value in values if not is_good(value)]
        if bad or not values:
            wrong.append(f"{name} must be {wanted}, got {bad}")
    if wrong:
        raise ValueError("; ".join(wrong))
