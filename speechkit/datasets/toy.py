"""The embedded corpus: spoken commands by espeak-ng in the layout of LibriSpeech.

Small enough to make in seconds and to learn in a minute, yet it takes the same way through the code
as a real corpus: FLAC files, ``*.trans.txt`` and ``SPEAKERS.TXT``. Readers and sentences of ``dev``
and ``test`` do not occur in ``train``.
"""

from __future__ import annotations

import os
import shutil
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechkit.data.audio import resample, write_audio
from speechkit.data.manifest import read_manifest, write_manifest
from speechkit.datasets import espeak, librispeech, preparation
from speechkit.datasets.toy_sentences import FORMS, NUMBERS, VOCABULARY, write_sentences
from speechkit.files import replace_folder

SAMPLE_RATE = 16000
STAMP_NAME = "toy_corpus.json"
_FORMAT = 1  # raised when the same settings give other audio than before
_CHAPTER_SIZE = 50  # utterances a chapter


class Voice(NamedTuple):
    """A synthetic reader: a voice with a variant, at a pitch (0-99) and a rate (words/min)."""

    reader: int
    subset: str
    gender: str
    name: str
    pitch: int
    rate: int


VOICES = (
    Voice(101, "train", "M", "en-us+m1", 45, 135),
    Voice(102, "train", "F", "en-us+f1", 50, 140),
    Voice(103, "train", "M", "en-us+m2", 40, 130),
    Voice(104, "train", "F", "en-us+f2", 60, 145),
    Voice(105, "train", "M", "en-us+m4", 50, 140),
    Voice(106, "train", "F", "en-us+f4", 45, 130),
    Voice(107, "train", "M", "en-us+m7", 55, 150),
    Voice(108, "train", "M", "en-us+m5", 35, 135),
    Voice(109, "train", "F", "en-us+f5", 55, 135),
    Voice(110, "train", "F", "en-us+belinda", 45, 145),
    Voice(201, "dev", "M", "en-us+m6", 50, 135),
    Voice(202, "dev", "F", "en-us+linda", 50, 140),
    Voice(301, "test", "M", "en-us+m3", 48, 140),
    Voice(302, "test", "F", "en-us+f3", 52, 135),
)


class _Line(NamedTuple):
    """One utterance of the corpus: who says what, and where it is kept."""

    voice: Voice
    chapter: int
    number: int
    text: str

    @property
    def id(self) -> str:
        return f"{self.voice.reader}-{self.chapter}-{self.number:04d}"

    def folder(self, root: Path) -> Path:
        return root / self.voice.subset / str(self.voice.reader) / str(self.chapter)


def _plan(texts: dict[str, list[str]]) -> list[_Line]:
    """Give the sentences of each subset to its voices in turn, ordered by reader and chapter."""
    lines = []
    for subset, sentences in texts.items():
        voices = [voice for voice in VOICES if voice.subset == subset]
        for number, voice in enumerate(voices):
            for position, text in enumerate(sentences[number :: len(voices)]):
                chapter, index = divmod(position, _CHAPTER_SIZE)
                lines.append(_Line(voice, 1000 * voice.reader + chapter, index, text))
    return lines


def _requests(lines: list[_Line], random: np.random.Generator) -> list[espeak.Request]:
    """Let pitch, liveliness and rate vary a little from one utterance to the next."""
    return [
        espeak.Request(
            text=line.text,
            voice=line.voice.name,
            rate=int(line.voice.rate * random.uniform(0.94, 1.06)),
            pitch=int(np.clip(line.voice.pitch + random.integers(-4, 5), 0, 99)),
            pitch_range=int(random.integers(40, 61)),
        )
        for line in lines
    ]


def _room(speech: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Put silence around speech, set its level, and add light noise with a sloping spectrum."""
    before, after = (int(SAMPLE_RATE * random.uniform(0.06, 0.2)) for _ in range(2))
    samples = speech.numpy().astype(np.float64)
    samples *= random.uniform(0.15, 0.6) / np.abs(samples).max()
    power = np.mean(samples**2)
    padded = np.concatenate([np.zeros(before), samples, np.zeros(after)])
    size = -(-len(padded) // 2048) * 2048  # a length whose transform is fast
    spectrum = np.fft.rfft(random.standard_normal(size))
    slope = random.uniform(0.0, 0.5)  # amplitude ~ f^-slope: between white and pink
    spectrum *= np.maximum(np.arange(len(spectrum)), len(spectrum) / 400) ** -slope
    noise = np.fft.irfft(spectrum, n=size)[: len(padded)]
    noise *= np.sqrt(power / np.mean(noise**2) * 10 ** (-random.uniform(20.0, 35.0) / 10))
    return torch.from_numpy(padded + noise).float()


def _speak(root: Path, lines: list[_Line], seed: int) -> dict[int, float]:
    """Write every utterance's FLAC; return each reader's seconds."""
    seconds = dict.fromkeys((line.voice.reader for line in lines), 0.0)
    requests = _requests(lines, np.random.default_rng([seed, 2]))
    for number, (line, samples) in enumerate(zip(lines, espeak.synthesize(requests))):
        speech = resample(
            torch.from_numpy(samples.astype(np.float32) / 32768), espeak.SAMPLE_RATE, SAMPLE_RATE
        )
        audio = _room(speech, np.random.default_rng([seed, 3, number]))
        folder = line.folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        write_audio(folder / f"{line.id}.flac", audio, SAMPLE_RATE)
        seconds[line.voice.reader] += len(audio) / SAMPLE_RATE
    return seconds


def _write_texts(root: Path, lines: list[_Line], seconds: dict[int, float]) -> None:
    """Write the ``*.trans.txt`` of each chapter and ``SPEAKERS.TXT``."""
    for folder, chapter in groupby(lines, key=lambda line: line.folder(root)):
        rows = list(chapter)
        name = f"{rows[0].voice.reader}-{rows[0].chapter}.trans.txt"
        (folder / name).write_text("".join(f"{row.id} {row.text.upper()}\n" for row in rows))
    table = "; Synthetic readers made by speechkit with espeak-ng; not recorded people.\n;\n"
    table += ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
    for voice in VOICES:
        if voice.reader in seconds:
            minutes = f"{seconds[voice.reader] / 60:.2f}"
            table += f"{voice.reader:<5}| {voice.gender} | {voice.subset:<17}| {minutes:<6}| "
            table += f"espeak-ng {voice.name}\n"
    (root / "SPEAKERS.TXT").write_text(table)


def make_toy_corpus(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    num_train: int = 1500,
    num_dev: int = 100,
    num_test: int = 150,
) -> Path:
    """Make the embedded corpus, unless it is already there with these settings.

    Ten voices read ``train``, two others ``dev`` and two others ``test``; the folder appears whole
    or not at all, and is byte-identical for the same settings on one machine.

    Parameters
    ----------
    root : path
        The corpus folder (what ``LibriSpeech/`` is to the real corpus).
    seed : int
        Decides sentences, pitch, rate, levels and noise.
    num_train, num_dev, num_test : int
        Utterances of each subset.

    Returns
    -------
    Path
        `root`, with ``train/``, ``dev/``, ``test/`` and ``SPEAKERS.TXT``.

    Raises
    ------
    ImportError
        When ``espeakng-loader`` is missing (``pip install speechkit[toy]``).
    DataError
        When `root` holds something else, which is then left alone.
    ValueError
        When the sizes cannot be met.
    """
    root = Path(root).absolute()
    settings = {
        "format": _FORMAT,
        "seed": seed,
        "num_train": num_train,
        "num_dev": num_dev,
        "num_test": num_test,
        "voices": VOICES,
        "grammar": [VOCABULARY, FORMS, NUMBERS],
    }
    num_files = num_train + num_dev + num_test
    num_found = sum(1 for _ in root.glob("*/*/*/*.flac"))
    if num_found == num_files and preparation.is_current(root / STAMP_NAME, settings):
        return root
    preparation.check_replaceable(root, STAMP_NAME)
    texts = write_sentences(seed=seed, num_train=num_train, num_dev=num_dev, num_test=num_test)
    lines = _plan(texts)
    partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with preparation.one_thread():
            seconds = _speak(partial, lines, seed)
        _write_texts(partial, lines, seconds)
        preparation.write_stamp(partial / STAMP_NAME, settings, partial.glob("*/*/*/*.txt"))
        replace_folder(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    num_train: int = 1500,
    num_dev: int = 100,
    num_test: int = 150,
) -> dict[str, Path]:
    """Make the corpus under `root` and write its manifests under `out`.

    See `make_toy_corpus` for the parameters and errors.

    Returns
    -------
    dict
        ``{"train": out/train.jsonl, "dev": ..., "test": ...}``.
    """
    root = make_toy_corpus(root, seed=seed, num_train=num_train, num_dev=num_dev, num_test=num_test)
    return librispeech.prepare(root, out, subsets=("train", "dev", "test"))


def prepare_voices(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    num_train: int = 1500,
    num_valid: int = 50,
    num_test: int = 150,
) -> dict[str, Path]:
    """Make the corpus under `root`, and the manifests of a speaking model under `out`.

    Such a model is tested on new sentences in voices that it knows, where a recogniser is tested on
    new voices. So ``valid`` are sentences of the training voices that are taken out of ``train``;
    ``test`` has the texts of the corpus's test.

    Parameters
    ----------
    root, out, seed, num_train, num_test
        As in `prepare`.
    num_valid : int
        Sentences taken out of ``train``, the voices in turn.

    Returns
    -------
    dict
        ``{"train": out/train.jsonl, "valid": ..., "test": ...}``.

    Raises
    ------
    ValueError
        If less than one sentence would be left to train on.
    """
    if not 1 <= num_valid < num_train:
        raise ValueError(f"need 1 <= num_valid < num_train, got {num_valid} and {num_train}")
    out = Path(out).absolute()
    made = prepare(root, out / "corpus", seed=seed, num_train=num_train, num_test=num_test)
    rows = sorted(read_manifest(made["train"]), key=lambda row: (row.speaker or "", row.id))
    stride = num_train / num_valid
    taken = {rows[int(number * stride)].id for number in range(num_valid)}
    splits = {
        "train": [row for row in rows if row.id not in taken],
        "valid": [row for row in rows if row.id in taken],
        "test": read_manifest(made["test"]),
    }
    manifests = {name: out / f"{name}.jsonl" for name in splits}
    for name, path in manifests.items():
        write_manifest(path, splits[name])
    return manifests
