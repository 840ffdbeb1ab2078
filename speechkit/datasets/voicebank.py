"""VoiceBank-DEMAND: noisy speech and the same speech clean (Valentini-Botinhao et al., SSW 2016).

The folder holds ``clean_trainset_28spk_wav/``, ``noisy_trainset_28spk_wav/``,
``clean_testset_wav/`` and ``noisy_testset_wav/``, with files named ``<speaker>_<number>.wav`` at
48 kHz (or resampled to any rate), and perhaps ``trainset_28spk_txt/`` and ``testset_txt/``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechkit.data.audio import audio_info
from speechkit.data.manifest import DataError, Utterance
from speechkit.datasets import preparation

SPLITS = ("train", "valid", "test")
VALID_SPEAKERS = ("p226", "p287")  # as most published results leave out
_FORMAT = 1  # raised when the same corpus gives another manifest than before
_LAYOUT = (
    "Expected <root>/{clean,noisy}_trainset_28spk_wav/ and <root>/{clean,noisy}_testset_wav/, with "
    "the same <speaker>_<number>.wav in both, as in https://datashare.ed.ac.uk/handle/10283/2791"
)


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    train_set: str = "trainset_28spk",
    valid_speakers: Sequence[str] = VALID_SPEAKERS,
    splits: Sequence[str] = SPLITS,
) -> dict[str, Path]:
    """Write one manifest a split; does nothing for those that are up to date.

    Each row's audio is the noisy file and its ``sources`` the clean one; ``speaker`` and
    ``speakers`` name who speaks, and ``text`` is there where the transcripts are.

    Parameters
    ----------
    root : path
        The folder described above.
    out : path
        Where ``<split>.jsonl`` goes.
    train_set : str
        ``"trainset_28spk"`` or ``"trainset_56spk"``.
    valid_speakers : sequence of str
        Speakers of the training set that validate instead.
    splits : sequence of str
        Some of `SPLITS`: an excerpt may not have all.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When a split is empty, or clean and noisy files do not pair up, differ in length or rate or
        are unreadable: all of them are named (the first 20 in full).
    ValueError
        When a split is unknown.
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        raise ValueError(f"unknown split {unknown}; known: {', '.join(SPLITS)}")
    root, out = Path(root).absolute(), Path(out).absolute()
    return {
        split: _prepare_split(
            root, out, split, "testset" if split == "test" else train_set, valid_speakers
        )
        for split in splits
    }


def _prepare_split(
    root: Path, out: Path, split: str, part: str, valid_speakers: Sequence[str]
) -> Path:
    folders = {kind: root / f"{kind}_{part}_wav" for kind in ("clean", "noisy")}
    missing = [folder.name for folder in folders.values() if not folder.is_dir()]
    if missing:
        there = sorted(path.name for path in root.glob("*") if path.is_dir())
        raise DataError(
            f"{root}: no {' and no '.join(missing)} for the {split} split (found: "
            f"{', '.join(there) or 'no folders'}). {_LAYOUT}. To do without a split, name the "
            "others by splits"
        )
    files = {kind: _pick(folder, split, valid_speakers) for kind, folder in folders.items()}
    texts = root / f"{part}_txt"
    everything = [path for own in files.values() for path in own.values()]
    settings = {
        "format": _FORMAT,
        "root": str(root),
        "files": preparation.listing_sha256(root, [*everything, *texts.glob("*.txt")]),
    }
    manifest, stamp = out / f"{split}.jsonl", out / f".{split}.stamp.json"
    if everything and preparation.is_current(stamp, settings):
        return manifest
    problems, rows = [], []
    if not everything:
        problems.append(_empty(folders["noisy"], split, valid_speakers))
    for item in sorted({*files["clean"], *files["noisy"]}):
        try:
            rows.append(_row(item, files, texts))
        except DataError as error:
            problems.append(str(error))
    preparation.raise_problems(
        root, problems, f"{_LAYOUT}. Put the missing files back, or remove the other of each pair"
    )
    preparation.write_manifests(stamp, settings, {split: manifest}, {split: rows})
    return manifest


def _pick(folder: Path, split: str, valid_speakers: Sequence[str]) -> dict[str, Path]:
    """Return the files of a split by their names' stems."""
    files = {path.stem: path for path in folder.glob("*.wav")}
    if split == "test":
        return files
    held_out = {item for item in files if _speaker(item) in valid_speakers}
    return {item: path for item, path in files.items() if (item in held_out) == (split == "valid")}


def _empty(folder: Path, split: str, valid_speakers: Sequence[str]) -> str:
    speakers = sorted({_speaker(path.stem) for path in folder.glob("*.wav")})
    found = f"{folder.name} has speakers {', '.join(speakers)}" if speakers else "no files are here"
    if split == "test":
        return f"the test split is empty: {folder.name} holds no .wav files"
    return (
        f"the {split} split is empty: {found}, and for validation are "
        f"{', '.join(valid_speakers) or 'none'}; choose valid_speakers among them so that some are "
        "left to train, or name the splits you need"
    )


def _row(item: str, files: dict[str, dict[str, Path]], texts: Path) -> Utterance:
    for kind, own in files.items():
        if item not in own:
            other = "clean" if kind == "noisy" else "noisy"
            raise DataError(f"{item}: {files[other][item]} has no {kind} counterpart")
    clean, noisy = (audio_info(files[kind][item]) for kind in ("clean", "noisy"))
    if clean != noisy or noisy.num_channels != 1:
        raise DataError(
            f"{item}: clean has {clean.num_channels} x {clean.num_samples} samples at "
            f"{clean.sample_rate} Hz, noisy {noisy.num_channels} x {noisy.num_samples} at "
            f"{noisy.sample_rate} Hz; both must be the same, and one channel"
        )
    text = texts / f"{item}.txt"
    extra: dict[str, Any] = {
        "sources": [str(files["clean"][item])],
        "speakers": [_speaker(item)],
    }
    return Utterance(
        id=item,
        audio=str(files["noisy"][item]),
        duration=noisy.num_samples / noisy.sample_rate,
        sample_rate=noisy.sample_rate,
        text=text.read_text(encoding="utf-8").strip() if text.is_file() else None,
        speaker=_speaker(item),
        extra=extra,
    )


def _speaker(item: str) -> str:
    return item.partition("_")[0]
