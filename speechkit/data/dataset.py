"""Items: a row of a manifest taken through transforms that decide its fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechkit.data.audio import read_audio, read_audio_channels
from speechkit.data.batch import Failure
from speechkit.data.manifest import DataError, Utterance
from speechkit.data.randomness import item_generator

# Takes an item and the item's own generator, returns the item with fields set or changed.
Transform = Callable[[dict[str, Any], torch.Generator], dict[str, Any]]


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


class LoadAudio:
    """Set ``"waveform"``: the utterance's span of its file, or a random part of it.

    Parameters
    ----------
    sample_rate : int
        Files of another rate are resampled to it.
    channels : int, optional
        Give ``(T, C)`` instead of ``(T,)``: one channel is the mean of the file's, several are
        those of the file, or copies of its only one.
    crop_seconds : float, optional
        Read a part of this length, anywhere in the utterance; a shorter one is read whole.
    keep_seconds : float
        Of whole utterances that were read once, keep so many seconds in memory, in each process
        that reads: decoding a small compressed corpus takes longer than training on it.

    Raises
    ------
    ValueError
        For numbers that are not above 0, and with both crops and something to keep.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int | None = None,
        crop_seconds: float | None = None,
        keep_seconds: float = 0.0,
    ) -> None:
        if (channels is not None and channels < 1) or (crop_seconds or 1.0) <= 0:
            raise ValueError(
                f"channels={channels} must be at least 1 and crop_seconds={crop_seconds} above 0"
            )
        if keep_seconds < 0 or (keep_seconds > 0 and crop_seconds is not None):
            raise ValueError(
                f"keep_seconds={keep_seconds} must not be negative, and crops "
                f"(crop_seconds={crop_seconds}) are never kept"
            )
        self.sample_rate = sample_rate
        self.channels = channels
        self.crop_seconds = crop_seconds
        self.keep_seconds = keep_seconds
        self._kept: dict[tuple[str, float, float], Tensor] = {}
        self._room = round(keep_seconds * sample_rate)

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Read the audio; `DataError` where that fails."""
        utterance: Utterance = item["utterance"]
        start, duration = utterance.start, utterance.duration
        if self.crop_seconds is not None and duration > self.crop_seconds:
            free = duration - self.crop_seconds
            start += free * float(torch.rand((), generator=generator, dtype=torch.float64))
            duration = self.crop_seconds
        key = (utterance.audio, start, duration)
        if key in self._kept:
            item["waveform"] = self._kept[key].clone()  # what comes after may write into it
            return item
        waveform = self._read(*key)
        if self.crop_seconds is not None:
            # Rounding to the file's samples must not make crops differ by one in length.
            waveform = waveform[: round(self.crop_seconds * self.sample_rate)]
        if len(waveform) <= self._room:
            self._room -= len(waveform)
            self._kept[key] = waveform.clone()
        item["waveform"] = waveform
        return item

    def _read(self, path: str, start: float, duration: float) -> Tensor:
        span: Any = {"start": start, "duration": duration, "sample_rate": self.sample_rate}
        if self.channels is None or self.channels == 1:
            waveform = read_audio(path, **span)[0]
            return waveform if self.channels is None else waveform.unsqueeze(1)
        waveform = read_audio_channels(path, **span)[0]
        if len(waveform) not in (1, self.channels):
            raise DataError(
                f"{path}: has {len(waveform)} channels, wanted are {self.channels} (or one, which "
                "is copied); remove it or mix it down"
            )
        return waveform.expand(self.channels, -1).T.contiguous()


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
