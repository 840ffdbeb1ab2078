"""Folders of mixtures and their sources by equal file names, and what writing such folders shares.

WSJ0-mix, WHAM! and LibriMix all lie as ``<split>/{mix,s1,s2,noise,...}/<name>.wav``.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechkit.data.audio import audio_info
from speechkit.data.formats import AudioInfo, open_audio
from speechkit.data.manifest import DataError, Utterance
from speechkit.datasets import preparation
from speechkit.files import TEMPORARY_SUFFIX

Samples = np.ndarray[Any, Any]
Place = tuple[int, str]  # sample rate in Hz, and "min" or "max"
_FORMAT = 1  # raised when the same folders give another manifest than before


def prepare_folders(
    folders: Mapping[str, Sequence[Path]],
    out: Path,
    *,
    mixture: str,
    sources: Sequence[str],
    noise: str | None,
    sample_rate: int,
    speakers: Callable[[str], Sequence[str] | None],
    layout: str,
) -> dict[str, Path]:
    """Write one manifest of mixtures a split; does nothing for those that are up to date.

    Parameters
    ----------
    folders : mapping of str to sequence of Path
        Split to the folders that hold the sub-folders named next.
    out : Path
        Where ``<split>.jsonl`` goes.
    mixture, sources, noise : str, sequence of str, str or None
        Sub-folders. Each mixture needs a file of its name and length in all others.
    sample_rate : int
        What all files must have, in Hz.
    speakers : callable
        Turns the name of a mixture into its speakers, or None where it does not tell.
    layout : str
        What is expected, for error messages.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When folders or files are missing, unreadable, of another rate or another length: all of
        them are named (the first 20 in full).
    """
    parts = [mixture, *sources] + ([noise] if noise else [])
    manifests = {}
    for split, places in folders.items():
        files = [_list_files(place, parts, layout) for place in places]
        manifests[split], stamp = out / f"{split}.jsonl", out / f".{split}.stamp.json"
        settings = {
            "format": _FORMAT,
            "folders": [str(place) for place in places],
            "parts": [mixture, list(sources), noise],
            "sample_rate": sample_rate,
            "files": [
                preparation.listing_sha256(place, [p for own in found.values() for p in own])
                for place, found in zip(places, files)
            ],
        }
        if preparation.is_current(stamp, settings):
            continue
        rows: list[Utterance] = []
        problems: list[str] = []
        for place, found in zip(places, files):
            for name in sorted({path.name for own in found.values() for path in own}):
                try:
                    info = _read_infos(place, parts, name, sample_rate)
                except DataError as error:
                    problems.append(str(error))
                    continue
                item = name.removesuffix(".wav")
                rows.append(_row(item, place, parts, len(sources), info, speakers(item)))
        where = places[0] if len(places) == 1 else places[0].parent
        preparation.raise_problems(
            where, problems, f"{layout}. Make these files again, or remove all files of that name"
        )
        preparation.write_manifests(stamp, settings, {split: manifests[split]}, {split: rows})
    return manifests


def _row(
    item: str,
    folder: Path,
    parts: Sequence[str],
    num_sources: int,
    info: AudioInfo,
    speakers: Sequence[str] | None,
) -> Utterance:
    paths = [str(folder / part / f"{item}.wav") for part in parts]
    extra: dict[str, Any] = {"sources": paths[1 : 1 + num_sources]}
    if len(paths) > 1 + num_sources:
        extra["noise"] = paths[-1]
    if speakers:
        extra["speakers"] = list(speakers)
    return Utterance(
        id=item,
        audio=paths[0],
        duration=info.num_samples / info.sample_rate,
        sample_rate=info.sample_rate,
        extra=extra,
    )


def _list_files(folder: Path, parts: Sequence[str], layout: str) -> dict[str, list[Path]]:
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        there = sorted(path.name for path in folder.glob("*") if path.is_dir())
        raise DataError(
            f"{folder}: no {', '.join(missing)} here (found: {', '.join(there) or 'no folders'}). "
            f"{layout}"
        )
    files = {part: list((folder / part).glob("*.wav")) for part in parts}
    if not files[parts[0]]:
        raise DataError(f"{folder / parts[0]}: no .wav files here. {layout}")
    return files


def _read_infos(folder: Path, parts: Sequence[str], name: str, sample_rate: int) -> AudioInfo:
    """Return the header of a mixture whose sources and noise agree with it."""
    missing = [part for part in parts if not (folder / part / name).is_file()]
    if missing:
        raise DataError(f"{name} is not in {', '.join(missing)}")
    infos = {part: audio_info(folder / part / name) for part in parts}
    first = infos[parts[0]]
    for part, info in infos.items():
        if info.sample_rate != sample_rate:
            raise DataError(f"{part}/{name} has {info.sample_rate} Hz instead of {sample_rate}")
        if info.num_samples != first.num_samples or info.num_channels != 1:
            raise DataError(
                f"{part}/{name} has {info.num_channels} x {info.num_samples} samples, "
                f"{parts[0]}/{name} has 1 x {first.num_samples}"
            )
    if first.num_samples == 0:
        raise DataError(f"{parts[0]}/{name} holds no samples")
    return first


def prepare_singles(
    name: str, files: Mapping[str, Path], out: Path, *, speaker: Callable[[Path], str | None]
) -> Path:
    """Write a manifest of single recordings, the material that mixtures are made of.

    Parameters
    ----------
    name : str
        The manifest is ``<out>/<name>.jsonl``.
    files : mapping of str to Path
        Id to file, in the manifest's order.
    out : Path
        Where it goes.
    speaker : callable
        Turns a file's path into its speaker, or None where there is none.

    Returns
    -------
    Path
        The manifest; up-to-date ones are kept.

    Raises
    ------
    DataError
        When files are unreadable.
    """
    manifest, stamp = out / f"{name}.jsonl", out / f".{name}.stamp.json"
    root = Path(os.path.commonpath([path.parent for path in files.values()]))
    settings = {
        "format": _FORMAT,
        "root": str(root),
        "ids": list(files),
        "files": preparation.listing_sha256(root, set(files.values())),
    }
    if not preparation.is_current(stamp, settings):
        rows = []
        for item, path in files.items():
            info = audio_info(path)
            rows.append(
                Utterance(
                    id=item,
                    audio=str(path),
                    duration=info.num_samples / info.sample_rate,
                    sample_rate=info.sample_rate,
                    speaker=speaker(path),
                )
            )
        preparation.write_manifests(stamp, settings, {name: manifest}, {name: rows})
    return manifest


def render_missing(
    names: Sequence[str],
    targets: Mapping[Place, Path],
    parts: Sequence[str],
    *,
    stamp: str,
    settings: Mapping[str, Any],
    check: Callable[[Sequence[int]], None],
    render: Callable[[int, Sequence[Place]], Mapping[Place, Mapping[str, Samples]]],
) -> None:
    """Write the files of mixtures that are not there yet; folders made otherwise are made anew.

    Files in a folder without a stamp are the original scripts' work and stay.

    Parameters
    ----------
    names : sequence of str
        The mixtures: files are ``<target>/<part>/<name>.wav``.
    targets : mapping of (sample rate, mode) to Path
        The folders.
    parts : sequence of str
        Their sub-folders.
    stamp, settings : str, mapping
        The file in each folder that says how it was made, and what it must say.
    check : callable
        Gets the positions in `names` of all mixtures to be made, before the first; may raise.
    render : callable
        Turns a position and places into the signals of each place and part.
    """
    from tqdm import tqdm

    for folder in targets.values():
        path = folder / stamp
        if path.is_file() and not preparation.is_current(path, settings):
            shutil.rmtree(folder)
        if not folder.exists():
            preparation.write_stamp(path, settings)
        for part in parts:
            (folder / part).mkdir(parents=True, exist_ok=True)
    there = {
        (place, part): {file.name for file in (folder / part).iterdir()}
        for place, folder in targets.items()
        for part in parts
    }
    todo: dict[int, dict[Place, list[str]]] = {}
    for number, name in enumerate(names):
        lacking = {
            place: [part for part in parts if f"{name}.wav" not in there[place, part]]
            for place in targets
        }
        if any(lacking.values()):
            todo[number] = {place: own for place, own in lacking.items() if own}
    check(list(todo))
    for number, lacking in tqdm(todo.items(), desc="mixing", unit="mix", disable=None):
        rendered = render(number, list(lacking))
        for place, own in lacking.items():
            for part in own:
                path = targets[place] / part / f"{names[number]}.wav"
                write_pcm16(path, rendered[place][part], place[0])


def find_rates(root: Path, name: str, layout: str) -> Path:
    """Find the folder that holds ``wav8k``: the root, or the one of this name in it.

    Raises
    ------
    DataError
        When it is neither.
    """
    for corpus in (root / name, root):
        if any(corpus.glob("wav*k")):
            return corpus
    raise DataError(f"{root}: no wav8k or wav16k here, nor in {name}/. {layout}")


def rate_name(sample_rate: int) -> str:
    """Name the folder of a rate.

    >>> rate_name(8000)
    'wav8k'
    """
    return f"wav{sample_rate // 1000}k"


def split_folders(place: Path, splits: Mapping[str, str | Sequence[str]]) -> dict[str, list[Path]]:
    """Turn splits, each of one folder or several, into paths.

    >>> split_folders(Path("min"), {"valid": "cv"}) == {"valid": [Path("min") / "cv"]}
    True
    """
    return {
        split: [place / name for name in ([names] if isinstance(names, str) else names)]
        for split, names in splits.items()
    }


def read_samples(path: Path, *, first_channel: bool = False, most: int | None = None) -> Samples:
    """Read a file as float32 samples ``(T,)``, or at most so many of them from the beginning.

    Raises
    ------
    DataError
        When it cannot be read, or has several channels and `first_channel` is False.
    """
    with open_audio(path) as reader:
        info = reader.info
        if info.num_channels != 1 and not first_channel:
            raise DataError(f"{path}: has {info.num_channels} channels, one is expected")
        count = info.num_samples if most is None else min(most, info.num_samples)
        samples = reader.read(0, count)
    if len(samples) < count or not count:
        raise DataError(f"{path}: empty or truncated: {len(samples)} samples of {info.num_samples}")
    return np.ascontiguousarray(samples[:, 0].numpy())


def write_pcm16(path: Path, samples: Samples, sample_rate: int) -> None:
    """Write a 16-bit WAV as ``soundfile.write`` does; a kill leaves no half file under its name.

    Parameters
    ----------
    path : Path
        Where; its folder must be there.
    samples : array
        Shape ``(T,)``: floats in [-1, 1], clipped beyond, or int16.
    sample_rate : int
        In Hz.
    """
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype="PCM_16")
    # Not synced as `atomic_write` does it: these are many files that can be made again, and a
    # preparation reads all their headers.
    partial = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def scipy_signal(purpose: str) -> Any:
    """Import ``scipy.signal``.

    Raises
    ------
    ImportError
        When scipy is not installed: what needs it, and how to get it.
    """
    try:
        import scipy.signal
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs scipy, which is not installed: pip install 'speechkit[separation]'"
        ) from error
    return scipy.signal
