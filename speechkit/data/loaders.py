"""The data of a run: its splits, and loaders that resume anywhere and touch no global state."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from speechkit.data.batch import Batch, Failure
from speechkit.data.dataset import SpeechDataset, Transform
from speechkit.data.manifest import DataError, Utterance, manifest_sha256, read_manifest
from speechkit.data.randomness import item_seed
from speechkit.data.sampler import BucketBatchSampler, shard
from speechkit.data.transfer import Collate

logger = logging.getLogger(__name__)

_PREFETCH = 2
L = TypeVar("L", bound="DataLoader[Batch]")
Keys = list[list[tuple[int, int]]]


class _WholeLoader(DataLoader[Batch]):
    """Leaves nothing out: raises here, not in a worker, whose errors come with its traceback."""

    manifest: str | os.PathLike[str]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if batch.failures:
                rows = "\n  ".join(f"utterance {f.id!r}: {f.message}" for f in batch.failures)
                raise DataError(
                    f"{self.manifest}: a score must not leave any utterance out\n  {rows}\nRepair "
                    "the data or remove these rows; `speechkit check --decode "
                    f"{self.manifest}` lists all audio that cannot be read"
                )
            yield batch


class SpeechData:
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
        and leave augmentation out: a model that cannot learn these by heart has a fault.
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
        train: str | os.PathLike[str] | None = None,
        valid: str | os.PathLike[str] | None = None,
        test: Mapping[str, str | os.PathLike[str]] | None = None,
        transforms: Sequence[Transform],
        augment: Sequence[Transform] = (),
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
        self.transforms = list(transforms)
        self.augment = list(augment) if overfit is None else []
        self.max_batch_seconds = max_batch_seconds
        self.max_utterance_seconds = max_utterance_seconds
        self.num_workers = num_workers
        self.max_batch_size = max_batch_size
        self.max_bad_share = max_bad_share
        self.limit = limit if overfit is None else overfit
        self.overfit = overfit
        self.eval_batch_seconds = eval_batch_seconds or max_batch_seconds
        self.seed = seed
        self.paths = _split_paths(train, valid, test or {})
        self.utterances = {name: read_manifest(path) for name, path in self.paths.items()}
        self._bad: set[str] = set()
        self._train: list[Utterance] = []
        if "train" in self.paths:
            self._train = self._select_train(self.utterances["train"])
        if overfit is not None:
            self.utterances = dict.fromkeys(self.paths, self._train)
        self.sampler = BucketBatchSampler(
            [utterance.duration for utterance in self._train],
            max_batch_seconds=max_batch_seconds,
            num_buckets=num_buckets,
            max_batch_size=max_batch_size,
            seed=seed,
        )

    @property
    def splits(self) -> list[str]:
        """Names of the splits: train, valid and the test splits, as far as given."""
        return list(self.paths)

    @property
    def test_splits(self) -> list[str]:
        """Names of the test splits."""
        return [name for name in self.paths if name not in ("train", "valid")]

    @property
    def num_train_utterances(self) -> int:
        """How many utterances an epoch has, after ``limit`` and ``max_utterance_seconds``."""
        return len(self._train)

    def manifest_sha256(self, split: str) -> str:
        """Return the SHA-256 of a split's manifest."""
        return manifest_sha256(self.paths[self._known(split)])

    def num_train_batches(self, epoch: int, world_size: int = 1) -> int:
        """Return how many batches every rank gets in an epoch."""
        return -(-len(self.sampler.batches(epoch)) // world_size)

    def train_loader(
        self,
        epoch: int,
        *,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> DataLoader[Batch]:
        """Return a loader over one training epoch of one rank.

        Parameters
        ----------
        epoch : int
            Which epoch; everything random in it follows from (seed, epoch, id).
        start_batch : int
            Skip so many of this rank's batches, without reading anything of them.
        rank, world_size : int
            This process's part; every rank gets the same number of batches.
        pin_memory : bool
            For training on a GPU.

        Returns
        -------
        DataLoader
            Of `Batch`. Unreadable utterances are in ``batch.failures``; hand them to
            `note_failures`. A batch may have no rows where all its utterances failed.
        """
        self._known("train")
        batches = shard(self.sampler.batches(epoch), rank, world_size)[start_batch:]
        dataset = SpeechDataset(
            self._train,
            transforms=[*self.transforms, *self.augment],
            seed=self.seed,
            skip_bad=True,
        )
        return self._loader(dataset, batches, epoch, pin_memory)

    def eval_loader(
        self, split: str, *, rank: int = 0, world_size: int = 1, pin_memory: bool = False
    ) -> DataLoader[Batch]:
        """Return a loader over a split without augmentation; each utterance is on one rank only.

        Parameters
        ----------
        split : str
            One of `splits`. Of ``"train"``, the utterances that training uses.
        rank, world_size : int
            This process's part; ranks may get different numbers of batches.
        pin_memory : bool
            For evaluation on a GPU.

        Raises
        ------
        ValueError
            When there is no such split.
        DataError
            While iterating, when an utterance is unreadable: a score must not leave it out.
        """
        self._known(split)
        utterances = self._train if split == "train" else self.utterances[split]
        sampler = BucketBatchSampler(
            [utterance.duration for utterance in utterances],
            max_batch_seconds=self.eval_batch_seconds,
            max_batch_size=self.max_batch_size,
            shuffle=False,
            long_alone=True,
        )
        dataset = SpeechDataset(
            utterances, transforms=self.transforms, seed=self.seed, skip_bad=True
        )
        batches = shard(sampler.batches(0), rank, world_size, even=False)
        loader = self._loader(dataset, batches, 0, pin_memory, _WholeLoader)
        loader.manifest = self.paths[split]
        return loader

    def note_failures(self, failures: Iterable[Failure]) -> None:
        """Log the unreadable utterances of a training batch, and stop where they are too many.

        Raises
        ------
        DataError
            When more than ``max_bad_share`` of the training utterances have failed.
        """
        failures = list(failures)
        for failure in failures:
            if failure.id not in self._bad:
                self._bad.add(failure.id)
                logger.warning("skipped utterance %s: %s", failure.id, failure.message)
        if failures and len(self._bad) > self.max_bad_share * len(self._train):
            raise DataError(
                f"{len(self._bad)} of {len(self._train)} training utterances could not be used, "
                f"more than max_bad_share={self.max_bad_share:g} allows; the last: "
                f"{failures[-1].id!r}: {failures[-1].message}. Run `speechkit check "
                f"{self.paths['train']}`, repair the data, or raise max_bad_share"
            )

    def _known(self, split: str) -> str:
        if split not in self.paths:
            raise ValueError(f"no split {split!r}; the data has: {', '.join(self.paths) or 'none'}")
        return split

    def _select_train(self, utterances: list[Utterance]) -> list[Utterance]:
        if self.max_utterance_seconds is not None:
            kept = [u for u in utterances if u.duration <= self.max_utterance_seconds]
            dropped = len(utterances) - len(kept)
            if dropped:
                logger.info(
                    "left out %d of %d training utterances longer than max_utterance_seconds=%g",
                    dropped,
                    len(utterances),
                    self.max_utterance_seconds,
                )
            utterances = kept
        utterances = utterances[: self.limit]
        long = [u.id for u in utterances if u.duration > self.max_batch_seconds]
        if long:
            raise DataError(
                f"{self.paths['train']}: {len(long)} utterances are longer than "
                f"max_batch_seconds={self.max_batch_seconds:g}: {', '.join(long[:20])}"
                f"{', ...' if len(long) > 20 else ''}; raise max_batch_seconds, or set "
                "max_utterance_seconds to leave them out"
            )
        if not utterances:
            raise DataError(
                f"{self.paths['train']}: no training utterances are left with "
                f"max_utterance_seconds={self.max_utterance_seconds}, limit={self.limit}"
            )
        return utterances

    def _loader(
        self,
        dataset: SpeechDataset,
        batches: list[list[int]],
        epoch: int,
        pin_memory: bool,
        kind: type[L] = DataLoader,  # type: ignore[assignment]
    ) -> L:
        keys: Keys = [[(epoch, index) for index in batch] for batch in batches]
        # Its own generator: the loader draws its workers' seeds here, not from the global one.
        generator = torch.Generator()
        generator.manual_seed(item_seed(self.seed, epoch, "speechkit/workers"))
        options: dict[str, Any] = {"prefetch_factor": _PREFETCH} if self.num_workers else {}
        return kind(
            dataset,  # type: ignore[arg-type]
            batch_sampler=keys,
            collate_fn=Collate(epoch=epoch, prefetch_factor=_PREFETCH),
            num_workers=self.num_workers,
            generator=generator,
            pin_memory=pin_memory,
            **options,
        )


def in_groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of ``size`` batches, those that make one update; the last may be shorter."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _split_paths(
    train: str | os.PathLike[str] | None,
    valid: str | os.PathLike[str] | None,
    test: Mapping[str, str | os.PathLike[str]],
) -> dict[str, str | os.PathLike[str]]:
    taken = {"train", "valid"} & set(test)
    if taken:
        raise ValueError(f"a test split cannot be named {', '.join(sorted(taken))}")
    paths = {"train": train, "valid": valid, **test}
    return {name: path for name, path in paths.items() if path is not None}
