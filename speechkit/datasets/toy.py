"""The embedded corpus: spoken commands by espeak-ng in the layout of LibriSpeech.

Small enough to make in seconds and to learn in a minute, yet it takes the same way through the code
as a real corpus: FLAC files, ``*.trans.txt`` and ``SPEAKERS.TXT``. Readers and sentences of ``dev``
and ``test`` do not occur in ``train``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechkit.data.audio import resample, write_audio
from speechkit.datasets import espeak, librispeech, preparation

SAMPLE_RATE = 16000
STAMP_NAME = "toy_corpus.json"
_FORMAT = 1  # raised when the same settings give other audio than before
_CHAPTER_SIZE = 50  # utterances a chapter


class Voice(NamedTuple):
    """A synthetic reader: an accent with a variant, at a pitch (0-99) and a rate (words/min)."""

    reader: int
    subset: str
    gender: str
    name: str
    pitch: int
    rate: int


VOICES = (
    Voice(101, "train", "M", "en-us+m1", 45, 165),
    Voice(102, "train", "F", "en-us+f1", 50, 170),
    Voice(103, "train", "M", "en+m2", 40, 160),
    Voice(104, "train", "F", "en+f3", 55, 175),
    Voice(105, "train", "M", "en-gb-scotland+m4", 50, 170),
    Voice(106, "train", "F", "en-gb-x-rp+f4", 45, 160),
    Voice(107, "train", "M", "en-us+m7", 55, 180),
    Voice(108, "train", "M", "en-gb-x-rp+m3", 35, 165),
    Voice(109, "train", "F", "en-us+f2", 60, 165),
    Voice(110, "train", "F", "en-us-nyc+f1", 40, 180),
    Voice(201, "dev", "M", "en-us+m6", 50, 165),
    Voice(202, "dev", "F", "en+f2", 50, 170),
    Voice(301, "test", "M", "en-us+m3", 48, 170),
    Voice(302, "test", "F", "en-gb-x-rp+f3", 52, 165),
)

# Words are chosen to sound different: no "fourteen" beside "forty", no "close" with its two sounds.
_NAMES = (
    "alice robert maria thomas victoria oliver sophia william julia edward martin hannah gregory "
    "isabel peter susan"
).split()
_DIGITS = "zero one two three four five six seven eight nine".split()
_TENS = "twenty thirty forty fifty sixty eighty ninety".split()
_SMALL = "ten eleven twelve".split()
_ROOMS = "kitchen bedroom garage office garden bathroom".split()
_DEVICES = "lamp heater radio television computer fan".split()
_COLOURS = "red green blue yellow orange purple".split()
_OBJECTS = "door window box bottle basket umbrella".split()
_THINGS = "messages letters flowers apples pictures".split()
_WAYS = "left right forward back".split()


class _Writer:
    """Draws sentences of the command grammar from a random source."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.forms: tuple[Callable[[], str], ...] = (
            lambda: f"call {self.pick(_NAMES)} and {self.pick(_NAMES)}",
            lambda: f"dial {' '.join(self.pick(_DIGITS) for _ in range(self.count(3, 5)))}",
            lambda: f"send {self.pick(_NAMES)} {self.number()} {self.pick(_THINGS)}",
            lambda: f"turn {self.pick(['on', 'off'])} the {self.pick(_ROOMS)} {self.pick(_DEVICES)}",
            lambda: f"{self.pick(['open', 'shut'])} the {self.pick(_COLOURS)} {self.pick(_OBJECTS)}",
            lambda: f"set the {self.pick(_DEVICES)} to {self.number()}",
            lambda: f"move {self.pick(_WAYS)} {self.number()} steps",
            lambda: f"add {self.number()} and {self.number()}",
            lambda: f"play track {self.number()} for {self.pick(_NAMES)}",
            lambda: f"bring {self.pick(_NAMES)} the {self.pick(_COLOURS)} {self.pick(_OBJECTS)}",
            lambda: f"show {self.pick(_THINGS)} from {self.pick(_NAMES)}",
            lambda: f"{self.pick(_NAMES)} is in the {self.pick(_ROOMS)}",
            lambda: f"{self.pick(['stop', 'start'])} the {self.pick(_DEVICES)} please",
        )

    def count(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def pick(self, words: list[str]) -> str:
        return words[self.count(0, len(words) - 1)]

    def number(self) -> str:
        kind = self.count(0, 4)
        if kind <= 2:
            return self.pick((_DIGITS, _SMALL, _TENS)[kind])
        return f"{self.pick(_TENS)} {self.pick(_DIGITS[1:])}"

    def sentence(self) -> str:
        return self.forms[self.count(0, len(self.forms) - 1)]()


def write_sentences(*, seed: int, num_train: int, num_dev: int, num_test: int) -> dict[str, list[str]]:
    """Draw the sentences of the three subsets from the command grammar.

    Parameters
    ----------
    seed : int
        Decides every sentence.
    num_train, num_dev, num_test : int
        Sentences of each subset.

    Returns
    -------
    dict
        Subset to sentences, in lower case. Sentences of ``dev`` and ``test`` occur once and not in
        ``train``, and all of their words do.

    Raises
    ------
    ValueError
        When a number is not positive, or `num_train` is too small to hold the words of the others.

    >>> texts = write_sentences(seed=0, num_train=100, num_dev=5, num_test=5)
    >>> set(texts["test"]) & set(texts["train"])
    set()
    """
    sizes = {"train": num_train, "dev": num_dev, "test": num_test}
    if min(sizes.values()) < 1:
        raise ValueError(f"each subset needs at least one utterance, got {sizes}")
    writer = _Writer(np.random.default_rng([seed, 1]))
    train = [writer.sentence() for _ in range(num_train)]
    used, vocabulary = set(train), set(" ".join(train).split())
    texts = {"train": train}
    for subset in ("dev", "test"):
        texts[subset] = list(_new_sentences(writer, sizes[subset], used, vocabulary))
    return texts


def _new_sentences(
    writer: _Writer, count: int, used: set[str], vocabulary: set[str]
) -> Iterator[str]:
    """Draw sentences that are not in `used`, which grows, and hold only known words."""
    for _ in range(200 * count + 2000):
        text = writer.sentence()
        if text not in used and vocabulary >= set(text.split()):
            used.add(text)
            yield text
            count -= 1
            if count == 0:
                return
    raise ValueError(
        f"the {len(vocabulary)} words of the training sentences leave too few other sentences "
        f"({count} more wanted): raise num_train, or ask for fewer in dev and test"
    )


class _Line(NamedTuple):
    """One utterance of the corpus: who says what, and where it is kept."""

    voice: Voice
    chapter: int
    index: int
    text: str

    @property
    def id(self) -> str:
        return f"{self.voice.reader}-{self.chapter}-{self.index:04d}"

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
            rate=int(line.voice.rate * random.uniform(0.93, 1.08)),
            pitch=int(np.clip(line.voice.pitch + random.integers(-6, 7), 0, 99)),
            pitch_range=int(random.integers(35, 66)),
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
    settings = {"format": _FORMAT, "seed": seed, "num_train": num_train}
    settings |= {"num_dev": num_dev, "num_test": num_test}
    num_files = num_train + num_dev + num_test
    if preparation.is_current(root / STAMP_NAME, settings):
        if sum(1 for _ in root.glob("*/*/*/*.flac")) == num_files:
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
        preparation.replace_folder(partial, root)
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
    root = make_toy_corpus(
        root, seed=seed, num_train=num_train, num_dev=num_dev, num_test=num_test
    )
    return librispeech.prepare(root, out, subsets=("train", "dev", "test"))
