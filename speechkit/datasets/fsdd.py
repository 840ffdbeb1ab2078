"""Free Spoken Digit Dataset: single digits at 8 kHz, and connected digits joined from them.

The folder holds ``recordings/{digit}_{speaker}_{take}.wav``. Upstream's own test split is takes 0-4
of every speaker; here takes 5-9 are the validation takes and the later ones train. Any part of the
recordings will do.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import chain, cycle, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechkit.data.audio import audio_info, read_audio, write_audio
from speechkit.data.manifest import DataError, Utterance
from speechkit.data.trim import sound_span
from speechkit.datasets import preparation
from speechkit.files import replace_folder

SAMPLE_RATE = 8000
WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
SPLITS = ("train", "valid", "test-unseen-takes", "test-unseen-speaker")
_TEST_TAKES, _VALID_TAKES = range(5), range(5, 10)
_STAMP = "fsdd_strings.json"
_FORMAT = 1  # raised when the same recordings give other strings than before
_NAME = re.compile(r"([0-9])_([^_]+)_([0-9]+)\.wav")
_LAYOUT = (
    "Expected <root>/recordings/{digit}_{speaker}_{take}.wav, as in "
    "https://github.com/Jakobovski/free-spoken-digit-dataset"
)


class _Take(NamedTuple):
    """One recording of one digit."""

    digit: int
    speaker: str
    number: int
    path: Path


def _find_takes(root: Path) -> list[_Take]:
    folder = root / "recordings"
    paths = sorted(folder.glob("*.wav"))
    if not paths:
        raise DataError(f"{folder}: no recordings here. {_LAYOUT}")
    takes, strange = [], []
    for path in paths:
        if match := _NAME.fullmatch(path.name):
            takes.append(_Take(int(match[1]), match[2], int(match[3]), path))
        else:
            strange.append(f"{path.name} is not named {{digit}}_{{speaker}}_{{take}}.wav")
    preparation.raise_problems(folder, strange, f"{_LAYOUT}. Rename or remove these files")
    return sorted(takes)


def _split_takes(takes: Sequence[_Take], root: Path, unseen_speaker: str) -> dict[str, list[_Take]]:
    """Give each take to exactly one split; every split needs each digit."""
    speakers = sorted({take.speaker for take in takes})
    if unseen_speaker not in speakers:
        raise DataError(
            f"{root}: no speaker {unseen_speaker!r} to leave out; found: {', '.join(speakers)}"
        )
    if len(speakers) < 2:
        raise DataError(f"{root}: only {unseen_speaker!r} is here, nobody is left to train on")
    splits: dict[str, list[_Take]] = {split: [] for split in SPLITS}
    for take in takes:
        if take.speaker == unseen_speaker:
            splits["test-unseen-speaker"].append(take)
        elif take.number in _TEST_TAKES:
            splits["test-unseen-takes"].append(take)
        elif take.number in _VALID_TAKES:
            splits["valid"].append(take)
        else:
            splits["train"].append(take)
    problems = []
    for split, members in splits.items():
        those = {take.speaker for take in members} or {"(nobody)"}
        for speaker in sorted(those):
            digits = {take.digit for take in members if take.speaker == speaker}
            lacking = [WORDS[digit] for digit in range(10) if digit not in digits]
            if lacking:
                problems.append(f"{split}: {speaker} has no take of {', '.join(lacking)}")
    preparation.raise_problems(
        root,
        problems,
        "Takes 0-4 are for testing, 5-9 for validation, later ones for training: add recordings, "
        "or leave out another speaker",
    )
    return splits


_Join = Callable[[Sequence[np.ndarray], np.random.Generator], np.ndarray]


class _String(NamedTuple):
    """A planned utterance: takes of one speaker, in order."""

    id: str
    speaker: str
    takes: tuple[_Take, ...]


def _plan_strings(
    split: str,
    takes: Sequence[_Take],
    count: int,
    lengths: tuple[int, int],
    random: np.random.Generator,
) -> list[_String]:
    """Choose takes so that speakers, lengths, digits and takes all occur equally often."""
    speakers = sorted({take.speaker for take in takes})
    sizes = np.resize(np.arange(lengths[0], lengths[1] + 1), count)
    random.shuffle(sizes)
    strings = []
    for position, speaker in enumerate(speakers):
        own_sizes = sizes[position :: len(speakers)]
        # A shuffled deck, not shuffled tens: "five five" must occur as often as "five six".
        deck = np.resize(np.arange(10), int(own_sizes.sum()))
        random.shuffle(deck)
        piles = {}
        for digit in range(10):
            pile = [take for take in takes if (take.speaker, take.digit) == (speaker, digit)]
            random.shuffle(pile)
            piles[digit] = cycle(pile)
        begins = np.concatenate([[0], np.cumsum(own_sizes)])
        for number, (begin, end) in enumerate(pairwise(begins)):
            chosen = tuple(next(piles[int(digit)]) for digit in deck[begin:end])
            strings.append(_String(f"{split}-{speaker}-{number:04d}", speaker, chosen))
    return strings


def _join(waveforms: Sequence[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """Join takes into one utterance with pauses, levels between raw and equal, and a noise floor.

    Takes of one speaker come from several sessions, up to 30 dB apart. How far they are brought to
    one level is drawn for each string, from not at all to fully; so is the level of the whole.
    """
    levels = np.array([10 * np.log10(np.mean(x**2) + 1e-12) for x in waveforms])
    target = random.uniform(-30.0, -18.0)  # dB of full scale
    levelling = random.uniform(0.0, 1.0)
    gains = target - (levelling * levels + (1 - levelling) * levels.max())
    gains += random.uniform(-2.0, 2.0, size=len(levels))
    fade = np.linspace(0.0, 1.0, 24)  # 3 ms against clicks at the cuts
    pieces = [np.zeros(int(SAMPLE_RATE * random.uniform(0.05, 0.25)))]
    for waveform, gain in zip(waveforms, gains):
        piece = waveform * 10 ** (gain / 20)
        piece[: len(fade)] *= fade
        piece[-len(fade) :] *= fade[::-1]
        pieces += [piece, np.zeros(int(SAMPLE_RATE * random.uniform(0.02, 0.25)))]
    samples = np.concatenate(pieces)
    floor = (levels + gains).min() - random.uniform(25.0, 50.0)
    samples += random.standard_normal(len(samples)) * 10 ** (floor / 20)
    return samples * min(1.0, 0.95 / np.abs(samples).max())


def _join_clearly(waveforms: Sequence[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """Join takes as a speaking model should: each trimmed and of one level, with short pauses."""
    pieces = [np.zeros(int(SAMPLE_RATE * 0.05))]
    for waveform in waveforms:
        first, last = sound_span(torch.from_numpy(waveform), SAMPLE_RATE, threshold_db=30.0)
        piece = waveform[first:last]
        piece = piece * 10 ** (-24.0 / 20) / np.sqrt(np.mean(piece**2) + 1e-12)
        fade = np.linspace(0.0, 1.0, min(24, len(piece)))
        piece[: len(fade)] *= fade
        piece[len(piece) - len(fade) :] *= fade[::-1]
        pieces += [piece, np.zeros(int(SAMPLE_RATE * random.uniform(0.05, 0.1)))]
    samples = np.concatenate(pieces)
    return samples * min(1.0, 0.95 / np.abs(samples).max())


def _write_strings(
    folder: Path, final: Path, strings: Sequence[_String], seed: Sequence[int], join: _Join
) -> list[Utterance]:
    """Write the audio under `folder`; the rows name where it will be, under `final`."""
    cache: dict[Path, np.ndarray] = {}
    rows = []
    folder.mkdir(parents=True)
    for number, string in enumerate(strings):
        for take in string.takes:
            if take.path not in cache:
                samples, _ = read_audio(take.path, sample_rate=SAMPLE_RATE)
                cache[take.path] = samples.numpy().astype(np.float64)
        random = np.random.default_rng([*seed, number])
        samples = torch.from_numpy(join([cache[take.path] for take in string.takes], random))
        write_audio(folder / f"{string.id}.flac", samples.float(), SAMPLE_RATE)
        rows.append(
            Utterance(
                id=string.id,
                audio=str(final / f"{string.id}.flac"),
                duration=len(samples) / SAMPLE_RATE,
                sample_rate=SAMPLE_RATE,
                text=" ".join(WORDS[take.digit] for take in string.takes),
                speaker=string.speaker,
                extra={"takes": [take.path.stem for take in string.takes]},
            )
        )
    return rows


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    unseen_speaker: str,
    seed: int = 0,
    num_train: int = 2000,
    num_valid: int = 150,
    num_test: int = 200,
    min_digits: int = 3,
    max_digits: int = 7,
    min_train_digits: int | None = None,
    clear: bool = False,
) -> dict[str, Path]:
    """Join takes into strings of connected digits and write a manifest for each split.

    ``test-unseen-speaker`` has all takes of the speaker that is left out, ``test-unseen-takes``
    takes 0-4 of the others, ``valid`` their takes 5-9 and ``train`` the rest: no take is in two
    splits. Each string is of one speaker; digits, string lengths, speakers and takes are balanced.
    Row: ``text`` in words ("SEVEN ZERO"), ``speaker``, and in ``extra`` the ``takes``.

    Parameters
    ----------
    root : path
        The folder that holds ``recordings/``.
    out : path
        Where ``audio/<split>/*.flac`` (8 kHz) and ``<split>.jsonl`` go. Done work with the same
        settings is kept; other settings replace it.
    unseen_speaker : str
        Who is left out of training.
    seed : int
        Decides the strings, their pauses and levels.
    num_train, num_valid, num_test : int
        Strings of each split (`num_test` for either test).
    min_digits, max_digits : int
        Length of a string, both included.
    min_train_digits : int, optional
        `min_digits` of the training strings; the same by default. An attention decoder finds its
        alignment much earlier when some strings are single digits.
    clear : bool
        Takes are trimmed and brought to one level, with short pauses and no noise: what a speaking
        model should learn, where a recogniser should hear all kinds.

    Returns
    -------
    dict
        Split (`SPLITS`) to manifest.

    Raises
    ------
    DataError
        When recordings are missing, wrongly named or unreadable, the speaker is not there, or
        ``<out>/audio`` holds something else.
    ValueError
        When a number makes no sense.
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    counts = dict(zip(SPLITS, (num_train, num_valid, num_test, num_test)))
    shortest = dict.fromkeys(SPLITS, min_digits)
    shortest["train"] = min_digits if min_train_digits is None else min_train_digits
    if min(counts.values()) < 1 or not all(1 <= n <= max_digits for n in shortest.values()):
        raise ValueError(
            f"need at least one string a split and 1 <= min_digits <= max_digits, got {counts}, "
            f"min_digits={min_digits}, max_digits={max_digits}, min_train_digits={min_train_digits}"
        )
    takes = _find_takes(root)
    splits = _split_takes(takes, root, unseen_speaker)
    settings = {
        "format": _FORMAT,
        "recordings": preparation.listing_sha256(root, [take.path for take in takes]),
        "unseen_speaker": unseen_speaker,
        "seed": seed,
        "counts": counts,
        "digits": [shortest["train"], min_digits, max_digits],
        **({"clear": True} if clear else {}),
    }
    manifests = {split: out / f"{split}.jsonl" for split in SPLITS}
    audio, stamp = out / "audio", out / f".{_STAMP}"
    stamps = (audio / _STAMP, stamp)
    if len(list(audio.glob("*/*.flac"))) == sum(counts.values()) and all(
        preparation.is_current(path, settings) for path in stamps
    ):
        return manifests
    preparation.check_replaceable(audio, _STAMP)
    partial = out / f".audio.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    rows: dict[str, list[Utterance]] = {}
    try:
        for number, split in enumerate(SPLITS):
            random = np.random.default_rng([seed, number, 0])
            lengths = (shortest[split], max_digits)
            strings = _plan_strings(split, splits[split], counts[split], lengths, random)
            key = (seed, number, 1)
            with preparation.one_thread():
                join = _join_clearly if clear else _join
                rows[split] = _write_strings(partial / split, audio / split, strings, key, join)
        preparation.write_stamp(partial / _STAMP, settings)
        replace_folder(partial, audio)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    preparation.write_manifests(stamp, settings, manifests, rows)
    return manifests


def prepare_digits(
    root: str | os.PathLike[str], out: str | os.PathLike[str], *, unseen_speaker: str
) -> dict[str, Path]:
    """Write manifests of the single digits, with the splits of `prepare`; no audio is written.

    Parameters
    ----------
    root : path
        The folder that holds ``recordings/``.
    out : path
        Where ``digits-<split>.jsonl`` goes. Row: ``text`` ("SEVEN"), ``speaker``, and in ``extra``
        the ``label`` ("7") and the ``take``.
    unseen_speaker : str
        Who is left out of training.

    Returns
    -------
    dict
        Split (`SPLITS`) to manifest.

    Raises
    ------
    DataError
        When recordings are missing, wrongly named or unreadable, or the speaker is not there.
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    takes = _find_takes(root)
    splits = _split_takes(takes, root, unseen_speaker)
    manifests = {split: out / f"digits-{split}.jsonl" for split in SPLITS}
    stamp = out / ".fsdd_digits.json"
    settings = {
        "format": _FORMAT,
        "root": str(root),
        "recordings": preparation.listing_sha256(root, [take.path for take in takes]),
        "unseen_speaker": unseen_speaker,
    }
    if preparation.is_current(stamp, settings):
        return manifests
    rows: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    problems: list[str] = []
    for split, take in chain.from_iterable([(s, t) for t in splits[s]] for s in SPLITS):
        try:
            info = audio_info(take.path)
        except DataError as error:
            problems.append(str(error))
            continue
        row = Utterance(
            id=take.path.stem,
            audio=str(take.path),
            duration=info.num_samples / info.sample_rate,
            sample_rate=info.sample_rate,
            text=WORDS[take.digit],
            speaker=take.speaker,
            extra={"label": str(take.digit), "take": take.number},
        )
        rows[split].append(row)
    preparation.raise_problems(root, problems, "Replace or remove these files")
    preparation.write_manifests(stamp, settings, manifests, rows)
    return manifests
