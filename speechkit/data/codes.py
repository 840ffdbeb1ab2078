"""Codes of a codec as the data of a run: `CodeData`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from speechkit.data.batch import Failure
from speechkit.data.code_files import CodedUtterance, CodeLayout, read_codes
from speechkit.data.errors import DataError
from speechkit.data.randomness import item_generator
from speechkit.data.sampler import BucketBatchSampler
from speechkit.data.splits import File, SplitData


class CodeCrop(NamedTuple):
    """A piece of an utterance: the one with this number, of several side by side."""

    id: str
    utterance: CodedUtterance
    number: int
    num_crops: int
    num_frames: int


class CodeCrops(Dataset[dict[str, Any] | Failure]):
    """Pieces of utterances as items ``{"id", "codes"}``, the codes ``(T, Q)`` int64.

    Parameters
    ----------
    crops : sequence of CodeCrop
        What there is.
    frames : np.ndarray
        Of the file.
    seed : int, optional
        Shifts the pieces of an utterance, all alike, by what it does not fill; drawn for (seed,
        epoch, id). None leaves them at its start.
    """

    def __init__(self, crops: Sequence[CodeCrop], frames: np.ndarray, seed: int | None) -> None:
        self.crops = crops
        self.frames = frames
        self.seed = seed

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the item of (epoch, index)."""
        crop = self.crops[key[1]]
        start = crop.utterance.start + crop.number * crop.num_frames
        spare = crop.utterance.num_frames - crop.num_crops * crop.num_frames
        if self.seed is not None and spare:
            generator = item_generator(self.seed, key[0], crop.utterance.id)
            start += int(torch.randint(spare + 1, (), generator=generator))
        codes = self.frames[start : start + crop.num_frames].astype(np.int64)
        return {"id": crop.id, "codes": torch.from_numpy(codes)}


class CodeData(SplitData):
    """Codes as the data of a run: what `SpeechData` is for recordings.

    A batch's ``codes`` are padded along time, ``(B, T, Q)``. In training, an utterance gives as
    many pieces of ``crop_frames`` as fit, at another place every epoch; in evaluation it is whole.

    Parameters
    ----------
    train, valid : path, optional
        The ``.json`` of `speechkit.data.code_files.write_codes`.
    test : mapping of name to path, optional
        The test splits.
    crop_frames : int, optional
        Frames of a training piece; shorter utterances stay as they are. By default all do.
    max_batch_frames : int
        Longest item times number of items of a training batch stays within it.
    max_utterance_frames : int, optional
        Leave longer training utterances out; where they are cropped, it is of no use.
    num_buckets, max_batch_size : int, optional
        See `BucketBatchSampler`.
    limit, overfit : int, optional
        As in `SpeechData`.
    eval_batch_frames : int, optional
        The budget of evaluation, by default as in training; a longer utterance is alone.
    seed : int
        Of the run.

    Attributes
    ----------
    layout : CodeLayout
        Of the codec, the same in every split.

    Raises
    ------
    DataError
        When a file cannot be read, or splits are of different codecs.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from speechkit.data.code_files import Rate, write_codes
    >>> layout = CodeLayout(codec_id="00" * 8, sample_rate=8000, channels=1, hop_length=80,
    ...                     num_codebooks=2, codebook_size=16, rates=(Rate(0.8, 2),))
    >>> path = Path(tempfile.mkdtemp()) / "train.json"
    >>> codes = [("a", np.ones((2, 7))), ("b", np.zeros((2, 3)))]
    >>> _ = write_codes(path, layout, codes, manifest_sha256="")
    >>> data = CodeData(train=path, crop_frames=3, max_batch_frames=9)
    >>> batch = next(iter(data.train_loader(0)))
    >>> sorted(batch.ids), batch.codes.data.shape
    (['a#0', 'a#1', 'b#0'], torch.Size([3, 3, 2]))
    """

    def __init__(
        self,
        *,
        train: File | None = None,
        valid: File | None = None,
        test: Mapping[str, File] | None = None,
        crop_frames: int | None = None,
        max_batch_frames: int,
        max_utterance_frames: int | None = None,
        num_buckets: int | None = None,
        max_batch_size: int | None = None,
        limit: int | None = None,
        overfit: int | None = None,
        eval_batch_frames: int | None = None,
        seed: int = 0,
    ) -> None:
        # Items lie ready on the disk: workers would only carry them about. None of them can fail.
        super().__init__(
            train=train, valid=valid, test=test, num_workers=0, max_bad_share=0.0, seed=seed
        )
        if crop_frames is not None and crop_frames < 1:
            raise ValueError(f"crop_frames must be at least 1, is {crop_frames}")
        self.crop_frames = crop_frames
        self.max_batch_frames = max_batch_frames
        self.max_utterance_frames = max_utterance_frames
        self.max_batch_size = max_batch_size
        self.limit = limit if overfit is None else overfit
        self.overfit = overfit
        self.eval_batch_frames = eval_batch_frames or max_batch_frames
        self.files = {name: read_codes(path) for name, path in self.paths.items()}
        self.layout = self._one_layout()
        self.train_items: list[CodeCrop] = []
        if "train" in self.paths:
            self.train_items = self._train_crops()
        self.sampler = self._make_sampler(
            self.train_items, max_batch_frames, num_buckets=num_buckets, seed=seed
        )

    def items(self, split: str, *, training: bool) -> CodeCrops:
        """Return a split's pieces for training, or its utterances as they are."""
        if training:
            seed = self.seed if self.overfit is None else None
            return CodeCrops(self.train_items, self.files["train"].frames, seed)
        source = split if self.overfit is None else "train"
        return CodeCrops(self._whole(split), self.files[source].frames, None)

    def eval_sampler(self, split: str) -> BucketBatchSampler:
        """Return the sampler of a split in evaluation: not shuffled, nothing left out."""
        return self._make_sampler(
            self._whole(split), self.eval_batch_frames, shuffle=False, long_alone=True
        )

    def advice(self, split: str, *, training: bool) -> str:
        """Return what to do about codes that cannot be used."""
        return f"Remove {self.paths[split]}, and it is made anew"

    def _one_layout(self) -> CodeLayout:
        if not self.files:
            raise ValueError("give at least one split: train, valid or test")
        first, *others = self.files.items()
        for name, file in others:
            if file.layout != first[1].layout:
                raise DataError(
                    f"{self.paths[name]} is not of the codec of {self.paths[first[0]]}: "
                    f"{file.layout} and {first[1].layout}; prepare both with one codec"
                )
        return first[1].layout

    def _train_crops(self) -> list[CodeCrop]:
        kept = self.select_train(
            self.files["train"].utterances,
            lambda utterance: utterance.num_frames,
            longest=("max_utterance_frames", self.max_utterance_frames),
            budget=("max_batch_frames", self.max_batch_frames if self.crop_frames is None else 1e9),
            limit=self.limit,
        )
        crops = []
        for utterance in kept:
            size = min(self.crop_frames or utterance.num_frames, utterance.num_frames)
            count = utterance.num_frames // size
            crops += [
                CodeCrop(f"{utterance.id}#{number}", utterance, number, count, size)
                for number in range(count)
            ]
        return crops

    def _whole(self, split: str) -> list[CodeCrop]:
        """Give the utterances of a split; of the training split, those that training uses."""
        if split == "train" or self.overfit is not None:
            utterances = list({crop.utterance: None for crop in self.train_items})
        else:
            utterances = self.files[split].utterances
        return [CodeCrop(u.id, u, 0, 1, u.num_frames) for u in utterances]

    def _make_sampler(
        self, crops: Sequence[CodeCrop], max_frames: int, **options: Any
    ) -> BucketBatchSampler:
        return BucketBatchSampler(
            [crop.num_frames for crop in crops],
            max_batch_seconds=max_frames,
            max_batch_size=self.max_batch_size,
            **options,
        )


def cut_blocks(codes: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut padded codes into blocks that are coded one by one, as an ``.skc`` file does.

    Parameters
    ----------
    codes : Tensor
        Shape ``(B, Q, T)``.
    lengths : Tensor
        Shape ``(B,)``: valid frames.
    size : int
        Frames of a block; the last one of an item may be shorter.

    Returns
    -------
    tuple of Tensor
        The blocks ``(N, Q, size)``, item after item; their valid frames ``(N,)``, all above 0; and
        from which item each is ``(N,)``.

    Examples
    --------
    >>> codes = torch.arange(6).view(1, 1, 6).repeat(2, 1, 1)
    >>> blocks, frames, owners = cut_blocks(codes, torch.tensor([6, 3]), 4)
    >>> blocks[:, 0].tolist(), frames.tolist(), owners.tolist()
    ([[0, 1, 2, 3], [4, 5, 0, 0], [0, 1, 2, 3]], [4, 2, 3], [0, 0, 1])
    """
    B, Q, T = codes.shape
    count = -(-T // size)
    padded = F.pad(codes, (0, count * size - T))
    blocks = padded.view(B, Q, count, size).transpose(1, 2).reshape(B * count, Q, size)
    starts = torch.arange(count, device=codes.device) * size
    frames = (lengths.unsqueeze(1) - starts).clamp(0, size).flatten()
    owners = torch.arange(B, device=codes.device).repeat_interleave(count)
    kept = frames > 0
    return blocks[kept], frames[kept], owners[kept]
