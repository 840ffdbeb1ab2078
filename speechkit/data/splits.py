"""What the data of every task shares: splits, loaders that resume anywhere, faults counted."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from speechkit.data.batch import Batch, Failure
from speechkit.data.manifest import DataError, manifest_sha256
from speechkit.data.randomness import item_seed
from speechkit.data.sampler import BucketBatchSampler, shard
from speechkit.data.transfer import Collate

logger = logging.getLogger(__name__)

_PREFETCH = 2
T = TypeVar("T")
L = TypeVar("L", bound="DataLoader[Batch]")
Keys = list[list[tuple[int, int]]]
File = str | os.PathLike[str]
Items = Dataset[dict[str, Any] | Failure]


class _WholeLoader(DataLoader[Batch]):
    """Leaves nothing out: raises here, not in a worker, whose errors come with its traceback."""

    source: File
    advice: str

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if batch.failures:
                rows = "\n  ".join(f"utterance {f.id!r}: {f.message}" for f in batch.failures)
                raise DataError(
                    f"{self.source}: a score must not leave any utterance out\n  {rows}\n"
                    f"{self.advice}"
                )
            yield batch


class SplitData:
    """The data of a run as the training loop sees it; a task's data says what an item is.

    A subclass sets ``sampler`` (of training) and ``train_items`` in its constructor, after this
    one's, and defines :meth:`items`, :meth:`eval_sampler` and :meth:`advice`.

    Parameters
    ----------
    train, valid : path, optional
        Their files.
    test : mapping of name to path, optional
        Files of the test splits.
    num_workers : int
        Processes that make items; 0 makes them in this one. The items are the same.
    max_bad_share : float
        Share of the training utterances that may be unusable before training stops.
    seed : int
        Of the run.

    Attributes
    ----------
    paths : dict
        Split to file.
    sampler : BucketBatchSampler
        Of the training split.
    train_items : sequence
        What an epoch goes through.
    """

    sampler: BucketBatchSampler
    train_items: Sequence[Any]

    def __init__(
        self,
        *,
        train: File | None,
        valid: File | None,
        test: Mapping[str, File] | None,
        num_workers: int,
        max_bad_share: float,
        seed: int,
    ) -> None:
        self.paths = _split_paths(train, valid, test or {})
        self.num_workers = num_workers
        self.max_bad_share = max_bad_share
        self.seed = seed
        self._bad: set[str] = set()

    # ---------------------------------------------------------------- what a task defines

    def items(self, split: str, *, training: bool) -> Items:
        """Return a split's items, asked for by ``(epoch, index)``; ``training`` augments them."""
        raise NotImplementedError(f"{type(self).__name__} must define items")

    def eval_sampler(self, split: str) -> BucketBatchSampler:
        """Return the sampler of a split in evaluation: not shuffled, nothing left out."""
        raise NotImplementedError(f"{type(self).__name__} must define eval_sampler")

    def advice(self, split: str, *, training: bool) -> str:
        """Return what to do about items of a split that cannot be used, for errors."""
        raise NotImplementedError(f"{type(self).__name__} must define advice")

    # ---------------------------------------------------------------- what the loop uses

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
        """How many utterances an epoch has, after those that were left out."""
        return len(self.train_items)

    def manifest_sha256(self, split: str) -> str:
        """Return the SHA-256 of a split's file."""
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
        return self._loader(self.items("train", training=True), batches, epoch, pin_memory)

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
        batches = shard(self.eval_sampler(split).batches(0), rank, world_size, even=False)
        items = self.items(split, training=False)
        loader = self._loader(items, batches, 0, pin_memory, _WholeLoader)
        loader.source = self.paths[split]
        loader.advice = self.advice(split, training=False)
        return loader

    def note_failures(self, failures: Iterable[Failure]) -> None:
        """Log the unusable utterances of a training batch, and stop where they are too many.

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
        if failures and len(self._bad) > self.max_bad_share * len(self.train_items):
            raise DataError(
                f"{len(self._bad)} of {len(self.train_items)} training utterances could not be "
                f"used, more than max_bad_share={self.max_bad_share:g} allows; the last: "
                f"{failures[-1].id!r}: {failures[-1].message}. "
                f"{self.advice('train', training=True)}, or raise max_bad_share"
            )

    def select_train(
        self,
        items: Sequence[T],
        size: Callable[[T], float],
        *,
        longest: tuple[str, float | None],
        budget: tuple[str, float],
        limit: int | None,
    ) -> list[T]:
        """Choose the training items: not too long, and the first ``limit`` of them.

        Parameters
        ----------
        items : sequence
            All of the split; each has an ``id``.
        size : callable
            Gives an item's length.
        longest, budget : (str, float)
            Name and value of the options that bound an item (longer ones are left out, and counted
            in the log) and a batch.
        limit : int, optional
            How many to keep.

        Raises
        ------
        DataError
            When an item is longer than the budget, or nothing is left.
        """
        bound = longest[1]
        kept = [item for item in items if bound is None or size(item) <= bound]
        if len(kept) < len(items):
            logger.info(
                "left out %d of %d training utterances longer than %s=%g",
                len(items) - len(kept), len(items), *longest,
            )  # fmt: skip
        kept = kept[:limit]
        long = [str(getattr(item, "id", "?")) for item in kept if size(item) > budget[1]]
        if long:
            raise DataError(
                f"{self.paths['train']}: {len(long)} utterances are longer than "
                f"{budget[0]}={budget[1]:g}: {', '.join(long[:20])}"
                f"{', ...' if len(long) > 20 else ''}; raise {budget[0]}, or set "
                f"{longest[0]} to leave them out"
            )
        if not kept:
            raise DataError(
                f"{self.paths['train']}: no training utterances are left with "
                f"{longest[0]}={bound}, limit={limit}"
            )
        return kept

    def _known(self, split: str) -> str:
        if split not in self.paths:
            raise ValueError(f"no split {split!r}; the data has: {', '.join(self.paths) or 'none'}")
        return split

    def _loader(
        self,
        items: Items,
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
            items,  # type: ignore[arg-type]
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
    train: File | None, valid: File | None, test: Mapping[str, File]
) -> dict[str, File]:
    taken = {"train", "valid"} & set(test)
    if taken:
        raise ValueError(f"a test split cannot be named {', '.join(sorted(taken))}")
    paths = {"train": train, "valid": valid, **test}
    return {name: path for name, path in paths.items() if path is not None}
