"""Recordings as the data of a run: `SpeechData`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from speechkit.data.dataset import SpeechDataset, Transform
from speechkit.data.manifest import Utterance, read_manifest
from speechkit.data.sampler import BucketBatchSampler
from speechkit.data.splits import File, SplitData, in_groups

__all__ = ["SpeechData", "in_groups"]


class SpeechData(SplitData):
    """The data of a run.

    Parameters
    ----------
    train, valid : path, optional
        Manifests.
    test : mapping of name to path, optional
        Manifests of the test splits.
    transforms : sequence of Transform
        Applied to the items of every split; they decide the fields of a batch.
    augment : sequence of Transform
        Applied after them, to training items only.
    train_transforms : sequence of Transform, optional
        In the place of ``transforms`` for training items: crops, or mixing on the fly.
    crop_seconds : float, optional
        What ``train_transforms`` leave of an utterance at most; the budget of training batches
        counts that. Evaluation takes whole utterances.
    max_batch_seconds : float
        Longest utterance times number of utterances of a training batch stays within it.
    max_utterance_seconds : float, optional
        Longer training utterances are left out, and counted in the log.
    num_workers : int
        Processes that make items; 0 makes them in this one. The items are the same.
    num_buckets, max_batch_size : int, optional
        See `BucketBatchSampler`.
    max_bad_share : float
        Share of the training utterances that may be unreadable before training stops.
    limit : int, optional
        Keep the first so many training utterances.
    overfit : int, optional
        Keep the first so many training utterances, put them in the place of every other split too,
        and leave ``augment`` and ``train_transforms`` out: a model that cannot learn these by heart
        has a fault.
    eval_batch_seconds : float, optional
        The budget of evaluation, by default as in training; a longer utterance is alone.
    seed : int
        Of the run.

    Raises
    ------
    DataError
        When a manifest is wrong, or training utterances are longer than the budget.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from pathlib import Path
    >>> from speechkit.data.manifest import write_manifest
    >>> path = Path(tempfile.mkdtemp()) / "train.jsonl"
    >>> write_manifest(path, [Utterance(f"u{n}", "-", 1.0 + n, 16000) for n in range(4)])
    >>> def ones(item, generator):
    ...     return {"id": item["id"], "x": torch.ones(int(item["utterance"].duration))}
    >>> data = SpeechData(train=path, transforms=[ones], max_batch_seconds=6.0)
    >>> [batch.ids for batch in data.eval_loader("train")]
    [['u2', 'u1'], ['u3'], ['u0']]
    >>> sorted(i for batch in data.train_loader(epoch=1) for i in batch.ids)
    ['u0', 'u1', 'u2', 'u3']
    """

    def __init__(
        self,
        *,
        train: File | None = None,
        valid: File | None = None,
        test: Mapping[str, File] | None = None,
        transforms: Sequence[Transform],
        augment: Sequence[Transform] = (),
        train_transforms: Sequence[Transform] | None = None,
        crop_seconds: float | None = None,
        max_batch_seconds: float,
        max_utterance_seconds: float | None = None,
        num_workers: int = 0,
        num_buckets: int | None = None,
        max_batch_size: int | None = None,
        max_bad_share: float = 0.01,
        limit: int | None = None,
        overfit: int | None = None,
        eval_batch_seconds: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            train=train, valid=valid, test=test, num_workers=num_workers,
            max_bad_share=max_bad_share, seed=seed,
        )  # fmt: skip
        self.transforms = list(transforms)
        self.augment = list(augment) if overfit is None else []
        self.train_transforms = self.transforms
        self.crop_seconds = crop_seconds or math.inf
        if overfit is not None:
            self.crop_seconds = math.inf
        elif train_transforms is not None:
            self.train_transforms = list(train_transforms)
        self.max_batch_seconds = max_batch_seconds
        self.max_utterance_seconds = max_utterance_seconds
        self.max_batch_size = max_batch_size
        self.limit = limit if overfit is None else overfit
        self.overfit = overfit
        self.eval_batch_seconds = eval_batch_seconds or max_batch_seconds
        self.utterances = {name: read_manifest(path) for name, path in self.paths.items()}
        self.train_items: list[Utterance] = []
        if "train" in self.paths:
            self.train_items = self.select_train(
                self.utterances["train"],
                self._train_seconds,
                longest=("max_utterance_seconds", max_utterance_seconds),
                budget=("max_batch_seconds", max_batch_seconds),
                limit=self.limit,
            )
        if overfit is not None:
            self.utterances = dict.fromkeys(self.paths, self.train_items)
        self.sampler = BucketBatchSampler(
            [self._train_seconds(utterance) for utterance in self.train_items],
            max_batch_seconds=max_batch_seconds,
            num_buckets=num_buckets,
            max_batch_size=max_batch_size,
            seed=seed,
        )

    def _train_seconds(self, utterance: Utterance) -> float:
        return min(utterance.duration, self.crop_seconds)

    def items(self, split: str, *, training: bool) -> SpeechDataset:
        """Return a split's utterances taken through the transforms, and augmented in training."""
        return SpeechDataset(
            self.train_items if split == "train" else self.utterances[split],
            transforms=[*self.train_transforms, *self.augment] if training else self.transforms,
            seed=self.seed,
            skip_bad=True,
        )

    def eval_sampler(self, split: str) -> BucketBatchSampler:
        """Return the sampler of a split in evaluation: not shuffled, nothing left out."""
        utterances = self.train_items if split == "train" else self.utterances[split]
        return BucketBatchSampler(
            [utterance.duration for utterance in utterances],
            max_batch_seconds=self.eval_batch_seconds,
            max_batch_size=self.max_batch_size,
            shuffle=False,
            long_alone=True,
        )

    def advice(self, split: str, *, training: bool) -> str:
        """Return what to do about utterances of a split that cannot be read."""
        if training:
            return f"Run `speechkit check {self.paths[split]}`, repair the data"
        return (
            "Repair the data or remove these rows; `speechkit check --decode "
            f"{self.paths[split]}` lists all audio that cannot be read"
        )
