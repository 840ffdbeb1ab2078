"""Conversations made of single utterances while training: pauses, one voice, two at once.

::

    voice a  |=======--====|                     |====
    voice b            |=========--=====|                   |=====|
    speakers  1111111001222221111110011110000000011110000000111111100

The labels come from the energy of each clean utterance by itself, before anything is mixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.data.audio import read_audio
from speechkit.data.distortion import check_range, integer, uniform
from speechkit.data.errors import DataError
from speechkit.data.labels import File
from speechkit.data.manifest import Utterance
from speechkit.data.mixing import active_power
from speechkit.data.randomness import item_generator
from speechkit.data.speakers import group_by_speaker
from speechkit.speakers.activity import energy_activity

FRAME_RATE = 100
"""Labels a second."""

_LEVEL_DBFS = -26.0


class _Turn(NamedTuple):
    """Someone speaks: what of which utterance, and where it lies, in frames."""

    utterance: Utterance
    first: int  # of the utterance
    start: int  # of the conversation; before 0, what comes earlier is not heard
    frames: int


class _Read(NamedTuple):
    """An utterance: samples ``(T,)``, which frames ``(K,)`` are speech, the power of its speech."""

    samples: Tensor
    active: Tensor
    power: float


class Conversations:
    """Set ``"waveform"``, a conversation, and ``"speakers"``, how many speak in each frame.

    The first turn is of the row's own utterance; the following ones are drawn from the manifest
    that the row is in, so that splits stay apart. Each is of another speaker than who spoke to the
    last, and at most two speak at once.

    Parameters
    ----------
    sources : path, or sequence of paths
        Manifests with ``speaker``, which hold all rows that items are made for.
    sample_rate : int
        A multiple of 100 Hz; files of another rate are resampled to it.
    seconds : float
        Length of a conversation.
    turn_seconds : tuple of float
        Range of the length of a turn; a shorter utterance is one turn.
    pause_seconds : tuple of float
        Range of the pause before a turn that does not interrupt.
    overlap_prob : float
        Probability that a turn begins during the one before.
    level_db : tuple of float
        Range of each turn's level in dB, relative to speech at -26 dB.
    fixed : bool
        Make the same conversations in every epoch and for every seed: for validation and test.
    keep_seconds : float
        Of utterances that were read once, keep so many seconds in memory, in each process that
        reads: each is read many times.

    Raises
    ------
    DataError
        If a manifest has a row without speaker, or fewer than two speakers; when called, if the row
        is in none of the manifests or a file cannot be read.
    ValueError
        If a number is out of its range.

    Examples
    --------
    >>> import tempfile
    >>> from speechkit.data.audio import write_audio
    >>> from speechkit.data.manifest import write_manifest
    >>> folder = tempfile.mkdtemp()
    >>> rows = [Utterance(n, f"{folder}/{n}.wav", 2.0, 8000, speaker=n) for n in "ab"]
    >>> for row in rows:
    ...     write_audio(row.audio, torch.rand(16000) - 0.5, 8000)
    >>> write_manifest(f"{folder}/train.jsonl", rows)
    >>> talk = Conversations(sources=f"{folder}/train.jsonl", sample_rate=8000, seconds=4.0)
    >>> item = talk({"id": "a", "utterance": rows[0]}, torch.Generator())
    >>> item["waveform"].shape, item["speakers"].shape, int(item["speakers"].max()) <= 2
    (torch.Size([32000]), torch.Size([401]), True)
    """

    def __init__(
        self,
        *,
        sources: File | Sequence[File],
        sample_rate: int,
        seconds: float = 5.0,
        turn_seconds: tuple[float, float] = (1.0, 6.0),
        pause_seconds: tuple[float, float] = (0.0, 2.0),
        overlap_prob: float = 0.5,
        level_db: tuple[float, float] = (-5.0, 5.0),
        fixed: bool = False,
        keep_seconds: float = 0.0,
    ) -> None:
        if sample_rate <= 0 or sample_rate % FRAME_RATE:
            raise ValueError(f"sample_rate must be a multiple of {FRAME_RATE}, is {sample_rate}")
        if not seconds >= 0.1 or not 0.0 <= overlap_prob <= 1.0:
            raise ValueError(f"{seconds=} must be at least 0.1 and {overlap_prob=} be in [0, 1]")
        self.sources = sources
        self.sample_rate = sample_rate
        self.seconds = seconds
        self.turn_seconds = check_range("turn_seconds", turn_seconds, low=0.1)
        self.pause_seconds = check_range("pause_seconds", pause_seconds, low=0.0)
        self.overlap_prob = overlap_prob
        self.level_db = check_range("level_db", level_db)
        self.fixed = fixed
        self.keep_seconds = keep_seconds
        paths = list(sources) if isinstance(sources, list | tuple) else [sources]
        # Of each manifest: the rows of each speaker. And which manifest a row is in.
        self._voices = [group_by_speaker(path, least=2, what="conversations") for path in paths]  # type: ignore[arg-type]
        self._split = {
            row.id: number
            for number, voices in enumerate(self._voices)
            for rows in voices.values()
            for row in rows
        }
        self._kept: dict[tuple[str, float, float], _Read] = {}
        self._room = round(keep_seconds * sample_rate)

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Make a conversation; `DataError` where that fails."""
        utterance: Utterance = item["utterance"]
        if utterance.id not in self._split:
            raise DataError(
                "the row is in none of the manifests that conversations are made of; add its "
                f"manifest to sources, which are {self.sources!r}"
            )
        if self.fixed:
            generator = item_generator(0, 0, f"{utterance.id}/conversation")
        frames = round(self.seconds * FRAME_RATE)
        hop = self.sample_rate // FRAME_RATE
        waveform = torch.zeros(frames * hop)
        speakers = torch.zeros(frames + 1, dtype=torch.int64)  # one centered at each multiple
        for turn in self._turns(utterance, generator):
            samples, active, power = self._read(turn.utterance)
            level = _LEVEL_DBFS + uniform(generator, self.level_db)
            gain = math.sqrt(10.0 ** (level / 10.0) / power) if power > 0.0 else 1.0
            skipped = max(0, -turn.start)
            first, start = turn.first + skipped, turn.start + skipped
            stop = min(start + turn.frames - skipped, frames)
            piece = samples[first * hop : (first + stop - start) * hop]
            waveform[start * hop : start * hop + len(piece)] += gain * piece
            marks = active[first : first + stop - start]
            speakers[start : start + len(marks)] += marks
        return {**item, "waveform": waveform, "speakers": speakers}

    def _turns(self, utterance: Utterance, generator: torch.Generator) -> Iterator[_Turn]:
        """Draw who speaks when."""
        total = round(self.seconds * FRAME_RATE)
        voices = self._voices[self._split[utterance.id]]
        # Some conversations have begun before, some begin later.
        start = self._frames((-self.turn_seconds[1], self.pause_seconds[1]), generator)
        ends = [(start, ""), (start, "")]  # of the two turns that last longest, and their speakers
        while start < total:
            size = max(1, int(utterance.duration * FRAME_RATE))
            count = min(size, self._frames(self.turn_seconds, generator))
            first = integer(generator, 0, size - count)
            if start + count > 0:
                yield _Turn(utterance, first, start, count)
            ends = sorted([*ends, (start + count, str(utterance.speaker))])[-2:]
            last, speaker = ends[1]
            if uniform(generator, (0.0, 1.0)) < self.overlap_prob:
                start = integer(generator, max(start, ends[0][0]), last)  # a third one waits
            else:
                start = last + self._frames(self.pause_seconds, generator)
            others = [name for name in voices if name != speaker]
            rows = voices[others[integer(generator, 0, len(others) - 1)]]
            utterance = rows[integer(generator, 0, len(rows) - 1)]

    def _frames(self, seconds: tuple[float, float], generator: torch.Generator) -> int:
        return round(uniform(generator, seconds) * FRAME_RATE)

    def _read(self, utterance: Utterance) -> _Read:
        """Read an utterance, and tell where in it is speech."""
        key = (utterance.audio, utterance.start, utterance.duration)
        if key in self._kept:
            return self._kept[key]
        path, start, duration = key
        samples, _ = read_audio(path, start=start, duration=duration, sample_rate=self.sample_rate)
        active = torch.zeros(len(samples) * FRAME_RATE // self.sample_rate + 1, dtype=torch.bool)
        for begin, end in energy_activity(samples, self.sample_rate):
            active[round(begin * FRAME_RATE) : round(end * FRAME_RATE) + 1] = True
        found = _Read(samples, active, active_power(samples, self.sample_rate))
        if len(samples) <= self._room:
            self._room -= len(samples)
            self._kept[key] = found
        return found
