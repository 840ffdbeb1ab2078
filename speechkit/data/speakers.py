"""Utterances by speaker, and the training items of speaker models: crops, voices made by speed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from speechkit.data.audio import resample
from speechkit.data.dataset import LoadAudio
from speechkit.data.errors import DataError, listing
from speechkit.data.labels import File, LabelSet, labels_of
from speechkit.data.manifest import Utterance, read_manifest

_DENOMINATOR = 100


def group_by_speaker(
    path: File, *, least: int, what: str, advice: str = ""
) -> dict[str, list[Utterance]]:
    """List the utterances of each speaker, in the manifest's order.

    Parameters
    ----------
    path : path
        A manifest with ``speaker``.
    least : int
        Speakers that there must be.
    what : str
        What is made of them, for errors.
    advice : str
        What else can be done where they are too few.

    Raises
    ------
    DataError
        If a row has no speaker, or there are too few.
    """
    rows = read_manifest(path)
    nameless = [row.id for row in rows if not row.speaker]
    if nameless:
        head = f"{path}: utterances without 'speaker': {len(nameless)}"
        raise DataError(listing(head, nameless, f"Add it: speakers of {what} must differ."))
    speakers: dict[str, list[Utterance]] = {}
    for row in rows:
        speakers.setdefault(str(row.speaker), []).append(row)
    if len(speakers) < least:
        raise DataError(
            f"{path}: {what} need {least} speakers, this has {len(speakers)} "
            f"({', '.join(speakers) or 'none'}); add utterances of others{advice and ', ' + advice}"
        )
    return speakers


class SpeakerCrops:
    """Set ``"waveform"``, a part of the utterance, and ``"speaker"``, the number of its speaker.

    With several ``factors`` one is drawn, and the part is played at that speed. A voice at another
    speed is another voice, with a number of its own (Yamamoto et al. 2019, "Speaker augmentation
    and bandwidth extension for deep speaker embedding"): speaker ``s`` of ``S`` at ``factors[k]``
    is number ``k * S + s``. What is read is longer or shorter accordingly, so that all parts are
    ``crop_seconds`` long when they are played.

    Parameters
    ----------
    manifest : path, or sequence of paths
        What is trained on; it says which speakers there are.
    sample_rate : int
        Files of another rate are resampled to it.
    crop_seconds : float
        Length of a part; a shorter utterance is taken whole.
    factors : sequence of float
        Speeds, met as fractions with denominators up to 100; 1.1 is a tenth faster and higher.
    field : str
        Which field of an utterance names its speaker.

    Attributes
    ----------
    speakers : LabelSet
        The speakers, without the other speeds.
    num_speakers : int
        How many there are to tell apart, other speeds included.

    Raises
    ------
    DataError
        If rows of the manifest have no speaker.
    ValueError
        If there are no factors, one is not in [0.5, 2], or one is there twice.

    Examples
    --------
    >>> import tempfile
    >>> from speechkit.data.manifest import Utterance, write_manifest
    >>> path = f"{tempfile.mkdtemp()}/train.jsonl"
    >>> write_manifest(path, [Utterance(f"{n}", "-", 1.0, 8000, speaker=n) for n in "ab"])
    >>> crops = SpeakerCrops(manifest=path, sample_rate=8000, crop_seconds=2, factors=[1, 0.9])
    >>> crops.num_speakers, list(crops.speakers)
    (4, ['a', 'b'])
    """

    def __init__(
        self,
        *,
        manifest: File | Sequence[File],
        sample_rate: int,
        crop_seconds: float,
        factors: Sequence[float] = (1.0,),
        field: str = "speaker",
    ) -> None:
        self.manifest = manifest
        self.sample_rate = sample_rate
        self.crop_seconds = crop_seconds
        self.factors = list(factors)
        self.field = field
        if not self.factors or not all(0.5 <= factor <= 2.0 for factor in self.factors):
            raise ValueError(f"factors must be in [0.5, 2], and some, got {self.factors}")
        self._speeds = [Fraction(f).limit_denominator(_DENOMINATOR) for f in self.factors]
        if len(set(self._speeds)) < len(self._speeds):
            raise ValueError(f"a factor is there twice, as two voices that are one: {self.factors}")
        self.speakers = LabelSet.from_manifest(manifest, field)
        self._loaders = [
            LoadAudio(sample_rate=sample_rate, crop_seconds=float(crop_seconds * speed))
            for speed in self._speeds
        ]

    @property
    def num_speakers(self) -> int:
        """Speakers to tell apart, other speeds included."""
        return len(self.factors) * len(self.speakers)

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Read a part; `DataError` where that fails or the speaker is missing or unknown."""
        number = self.speakers.encode(labels_of(item["utterance"], self.field)[0])
        place = int(torch.randint(len(self.factors), (), generator=generator))
        speed = self._speeds[place]
        item = self._loaders[place](item, generator)
        if speed != 1:
            played = resample(item["waveform"], speed.numerator, speed.denominator)
            item["waveform"] = played[: round(self.crop_seconds * self.sample_rate)]
        item["speaker"] = torch.tensor(place * len(self.speakers) + number)
        return item
