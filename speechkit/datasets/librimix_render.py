"""Rendering LibriMix from LibriSpeech, WHAM! noise and the published metadata.

The samples are those of LibriMix's ``create_librimix_from_metadata.py`` (Cosentino et al., 2020).
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechkit.data.audio import audio_info
from speechkit.data.manifest import DataError
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

TYPES = ("mix_clean", "mix_both", "mix_single")
MODES = ("min", "max")
SAMPLE_RATE = 16000  # of LibriSpeech and WHAM!'s noise, in Hz
_FORMAT = 1  # raised when the same metadata give other files than before
_STAMP = ".librimix.json"


class Mixture(NamedTuple):
    """One row of a metadata file; `number` counts rows from 1, without the header."""

    number: int
    id: str
    sources: tuple[str, ...]
    gains: tuple[float, ...]
    noise: str
    noise_gain: float


def make(
    metadata: str | os.PathLike[str],
    librispeech: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    noise: str | os.PathLike[str] | None = None,
    num_speakers: int = 2,
    sample_rates: Sequence[int] = (8000,),
    modes: Sequence[str] = ("min",),
    types: Sequence[str] = ("mix_clean",),
    subsets: Sequence[str] | None = None,
) -> Path:
    """Render mixtures from metadata, sample for sample as LibriMix's own script does.

    Each source is multiplied by its gain at 16 kHz in single precision, resampled by
    ``scipy.signal.resample_poly``, cut to the shortest or padded to the longest, and summed; all
    are written as 16-bit WAV. Noise is cut to the longest source before it is resampled; where it
    is shorter, it goes on with itself over a cross-fade of half a second.

    Files that are there are kept. A subset that was rendered here from other metadata is rendered
    anew.

    Parameters
    ----------
    metadata, librispeech, noise, num_speakers
        As `speechkit.datasets.librimix.prepare` takes them.
    out : path
        Where ``Libri<N>Mix`` appears (or that folder itself).
    sample_rates : sequence of int
        Multiples of 1000 Hz; 16000 keeps LibriSpeech's own.
    modes : sequence of str
        ``"min"``, ``"max"`` or both.
    types : sequence of str
        Some of `TYPES`.
    subsets : sequence of str, optional
        Such as ``["train-100", "dev"]``; all that the metadata have by default.

    Returns
    -------
    Path
        ``<out>/Libri<N>Mix``.

    Raises
    ------
    DataError, ValueError, ImportError
        As `speechkit.datasets.librimix.prepare`.
    """
    check_choices(sample_rates, modes, types)
    noisy = [name for name in types if name != "mix_clean"]
    if noisy and noise is None:
        raise ValueError(f"{', '.join(noisy)} needs the folder of the noise: give noise")
    files = find_metadata(Path(metadata).absolute(), num_speakers)
    wanted = sorted(files) if subsets is None else list(subsets)
    missing = [name for name in wanted if name not in files]
    if missing or not wanted:
        raise DataError(
            f"{metadata}: no metadata of {', '.join(missing) or 'anything'} for {num_speakers} "
            f"speakers (found: {', '.join(sorted(files)) or 'none'}). Expected "
            f"libri{num_speakers}mix_<subset>.csv, such as libri{num_speakers}mix_dev-clean.csv"
        )
    out = Path(out).absolute()
    name = f"Libri{num_speakers}Mix"
    corpus = out if out.name == name else out / name
    roots = (Path(librispeech).absolute(), None if noise is None else Path(noise).absolute())
    parts = [f"s{i + 1}" for i in range(num_speakers)] + (["noise"] if noise else []) + [*types]
    for subset in wanted:
        targets = {
            (rate, mode): corpus / rate_name(rate) / mode / subset
            for rate, mode in product(sample_rates, modes)
        }
        _make_subset(files[subset], num_speakers, roots, targets, parts)
    return corpus


def _make_subset(
    path: Path,
    num_speakers: int,
    roots: tuple[Path, Path | None],
    targets: Mapping[Place, Path],
    parts: Sequence[str],
) -> None:
    mixtures = read_metadata(path, num_speakers)
    render_missing(
        [mixture.id for mixture in mixtures],
        targets,
        parts,
        stamp=_STAMP,
        settings={"format": _FORMAT, "metadata": file_digest(path), "name": path.name},
        check=lambda todo: check_files(path, [mixtures[number] for number in todo], roots),
        render=lambda number, places: _render(mixtures[number], roots, places),
    )


def _render(
    mixture: Mixture, roots: tuple[Path, Path | None], places: Sequence[Place]
) -> dict[Place, dict[str, Samples]]:
    """Return all signals of a mixture for each rate and mode."""
    resample_poly = scipy_signal("rendering LibriMix").resample_poly
    sources = [_read_16k(roots[0] / name) for name in mixture.sources]
    gains = list(mixture.gains)
    if roots[1] is not None:
        longest = max(len(source) for source in sources)
        sources.append(_read_noise(roots[1] / mixture.noise, longest))
        gains.append(mixture.noise_gain)
    scaled = [source * gain for source, gain in zip(sources, gains)]
    rendered = {}
    for rate, mode in places:
        signals = [resample_poly(x, rate, SAMPLE_RATE) for x in scaled]
        lengths = [len(x) for x in signals]
        length = min(lengths) if mode == "min" else max(lengths)
        signals = [np.pad(x[:length], (0, max(0, length - len(x)))) for x in signals]
        speech = signals[: len(mixture.sources)]
        own = {f"s{i + 1}": x for i, x in enumerate(speech)}
        own["mix_clean"] = _sum(speech)
        if roots[1] is not None:
            own["noise"] = signals[-1]
            own["mix_both"] = _sum(signals)
            own["mix_single"] = _sum([signals[0], signals[-1]])
        rendered[rate, mode] = own
    return rendered


def _sum(signals: Sequence[Samples]) -> Samples:
    # In the first signal's precision, as in LibriMix: noise that was extended is in double.
    total = np.zeros_like(signals[0])
    for signal in signals:
        total += signal
    return total


def _read_16k(path: Path) -> Samples:
    rate = audio_info(path).sample_rate
    if rate != SAMPLE_RATE:
        raise DataError(f"{path}: has {rate} Hz; LibriMix mixes files of {SAMPLE_RATE} Hz")
    return read_samples(path)


def _read_noise(path: Path, length: int) -> Samples:
    """Read noise of this many samples; short noise repeats itself with Hann cross-fades."""
    rate = audio_info(path).sample_rate
    if rate != SAMPLE_RATE:
        raise DataError(f"{path}: has {rate} Hz; LibriMix mixes files of {SAMPLE_RATE} Hz")
    noise = read_samples(path, first_channel=True, most=length)
    rise = np.hanning(SAMPLE_RATE + 1)[: SAMPLE_RATE // 2 + 1]
    overlap = len(rise)
    if len(noise) < length and len(noise) <= overlap:
        raise DataError(
            f"{path}: {len(noise)} samples of noise are too few to go on for {length}: more than "
            f"{overlap} are needed"
        )
    whole = noise
    while len(whole) < length:
        joint = whole[-overlap:] * rise[::-1] + noise[:overlap] * rise
        whole = np.concatenate([whole[:-overlap], joint, noise[overlap:]])
    return whole[:length]


def check_files(path: Path, mixtures: Sequence[Mixture], roots: tuple[Path, Path | None]) -> None:
    """Name every file of the metadata that is not there, before anything is rendered.

    The gain of a noise counts where there is noise: silent noise has none ("nan").
    """
    there: dict[Path, bool] = {}
    problems = []
    for mixture in mixtures:
        named = [(f"source_{i + 1}_path", roots[0], x) for i, x in enumerate(mixture.sources)]
        if roots[1] is not None:
            named.append(("noise_path", roots[1], mixture.noise))
            if not math.isfinite(mixture.noise_gain):
                problems.append(f"row {mixture.number} ({mixture.id}), noise_gain: no number")
        for column, root, name in named:
            file = root / name
            if file not in there:
                there[file] = file.is_file()
            if not there[file]:
                problems.append(f"row {mixture.number} ({mixture.id}), {column}: no file {file}")
    preparation.raise_problems(
        path, problems, "Put the missing files there, correct the folders, or remove the rows"
    )


def read_metadata(path: Path, num_speakers: int) -> list[Mixture]:
    """Read and check all rows of a metadata file (``.csv`` or ``.csv.gz``)."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    reader = csv.DictReader(io.StringIO(text))
    columns = [f"source_{i + 1}_{x}" for i in range(num_speakers) for x in ("path", "gain")]
    columns = ["mixture_ID", *columns, "noise_path", "noise_gain"]
    lacking = [name for name in columns if name not in (reader.fieldnames or [])]
    if lacking:
        raise DataError(f"{path}: no column {', '.join(lacking)}; found: {reader.fieldnames}")
    mixtures: list[Mixture] = []
    problems: list[str] = []
    first_row: dict[str, int] = {}
    for number, row in enumerate(reader, start=1):
        item, problem = row["mixture_ID"], None
        gains = [_gain(row[name]) for name in columns if name.endswith("gain")]
        paths = [row[name] for name in columns if name.endswith("path")]
        if not item or "/" in item:
            problem = f"mixture_ID {item!r} is no file name"
        elif item in first_row:
            problem = f"mixture_ID {item!r} is in row {first_row[item]} already"
        elif not all(paths) or not all(math.isfinite(gain) for gain in gains[:-1]):
            problem = f"({item}): each path must be filled and each gain a number, got {row}"
        if problem:
            problems.append(f"row {number}: {problem}")
            continue
        first_row[item] = number
        mixtures.append(
            Mixture(number, item, tuple(paths[:-1]), tuple(gains[:-1]), paths[-1], gains[-1])
        )
    if not mixtures and not problems:
        problems.append("no rows")
    preparation.raise_problems(path, problems, "Take the file as LibriMix publishes it")
    return mixtures


def _gain(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def find_metadata(folder: Path, num_speakers: int) -> dict[str, Path]:
    """Find the metadata file of each subset, by the name of its rendered folder."""
    prefix, found = f"libri{num_speakers}mix_", {}
    for place in (folder, folder / f"Libri{num_speakers}Mix"):
        for ending in (".csv.gz", ".csv"):  # the plain file is taken where there are both
            for path in sorted(place.glob(f"{prefix}*{ending}")):
                if "info" not in path.name:
                    subset = path.name.removeprefix(prefix).removesuffix(ending)
                    found[subset.replace("-clean", "")] = path
    return found


def check_choices(rates: Sequence[int], modes: Sequence[str], types: Sequence[str]) -> None:
    """Raise ValueError where a rate, mode or type is none that LibriMix has."""
    if not rates or not all(rate > 0 and rate % 1000 == 0 for rate in rates):
        raise ValueError(f"sample rates must be multiples of 1000 Hz, got {list(rates)}")
    for given, known, what in ((modes, MODES, "mode"), (types, TYPES, "mixture")):
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise ValueError(f"unknown {what} {unknown}; known: {', '.join(known)}")
