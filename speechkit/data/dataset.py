"""Items: a row of a manifest taken through transforms that decide its fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from speechkit.data.audio import read_audio
from speechkit.data.batch import Failure
from speechkit.data.manifest import DataError, Utterance
from speechkit.data.randomness import item_generator

# Takes an item and the item's own generator, returns the item with fields set or changed.
Transform = Callable[[dict[str, Any], torch.Generator], dict[str, Any]]


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


class LoadAudio:
    """Set ``"waveform"``: the utterance's span of its file, shape ``(T,)``, one channel.

    Parameters
    ----------
    sample_rate : int
        Files of another rate are resampled to it.
    """

    def __init__(self, *, sample_rate: int) -> None:
        self.sample_rate = sample_rate

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Read the audio; `DataError` where that fails."""
        utterance: Utterance = item["utterance"]
        item["waveform"] = read_audio(
            utterance.audio,
            start=utterance.start,
            duration=utterance.duration,
            sample_rate=self.sample_rate,
        )[0]
        return item


class EncodeText:
    """Set ``"tokens"`` (int64, shape ``(U,)``) and ``"text"``.

    Parameters
    ----------
    tokenizer : object with ``encode(text) -> list[int]``
        See `speechkit.data.tokenizer`.
    field : str
        Which field of the utterance holds the text, its own or one of ``extra``.
    """

    def __init__(self, *, tokenizer: _Encoder, field: str = "text") -> None:
        self.tokenizer = tokenizer
        self.field = field

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Encode the text; `DataError` where it is missing or has unknown characters."""
        utterance: Utterance = item["utterance"]
        text = utterance.text if self.field == "text" else utterance.extra.get(self.field)
        if not isinstance(text, str):
            raise DataError(f"no {self.field!r} in the manifest's row; add it or remove the row")
        item["text"] = text
        item["tokens"] = torch.tensor(self.tokenizer.encode(text), dtype=torch.int64)
        return item


class SpeechDataset(Dataset[dict[str, Any] | Failure]):
    """Utterances as items, made when asked for.

    Parameters
    ----------
    utterances : sequence of Utterance
        From `speechkit.data.manifest.read_manifest`.
    transforms : sequence of Transform
        Applied in turn. An item starts as ``{"id": ..., "utterance": ...}``; each transform gets
        the item and a generator that belongs to (seed, epoch, id), and returns the item.
    seed : int
        Of the run.
    skip_bad : bool
        True: an utterance whose data is at fault becomes a `Failure`. False: `DataError`.

    Examples
    --------
    >>> def draw(item, generator):
    ...     return {**item, "x": torch.rand(2, generator=generator)}
    >>> utterance = Utterance("a", "a.wav", duration=1.0, sample_rate=16000)
    >>> dataset = SpeechDataset([utterance], transforms=[draw])
    >>> torch.equal(dataset[1, 0]["x"], dataset[1, 0]["x"])  # epoch 1, index 0
    True
    >>> torch.equal(dataset[1, 0]["x"], dataset[2, 0]["x"])
    False
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        *,
        transforms: Sequence[Transform],
        seed: int = 0,
        skip_bad: bool = False,
    ) -> None:
        self.utterances = utterances
        self.transforms = list(transforms)
        self.seed = seed
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any] | Failure:
        """Return the item of (epoch, index); an index alone is of epoch 0.

        Raises
        ------
        DataError
            When the utterance's data is at fault, naming it, unless ``skip_bad``.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        utterance = self.utterances[index]
        item: dict[str, Any] = {"id": utterance.id, "utterance": utterance}
        generator = item_generator(self.seed, epoch, utterance.id)
        try:
            for transform in self.transforms:
                item = transform(item, generator)
        except DataError as error:
            if self.skip_bad:
                return Failure(utterance.id, str(error))
            raise DataError(f"utterance {utterance.id!r}: {error}") from error
        return item
