"""Batches of utterances of like length, within a budget of padded seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from speechkit.data.manifest import DataError
from speechkit.data.randomness import item_generator

# Padding to aim at, below the promised 5 %, and the least noise that still mixes.
_PADDING = 0.04
_LEAST_WIDTH = 0.02


class BucketBatchSampler:
    """Cut utterances into batches of like length, anew every epoch.

    Utterances are sorted by the logarithm of their duration plus uniform noise as wide as one
    bucket, and the sorted list is cut wherever the padded batch would exceed the budget. So the
    buckets slide: there are no edges, and no remainder in each of them.

    Parameters
    ----------
    durations : sequence of float
        Seconds of each utterance.
    max_batch_seconds : float
        Longest utterance times number of utterances stays within it.
    num_buckets : int, optional
        Into how many parts, equally wide in log duration, the range of lengths is divided: more
        buckets pad less and mix less. By default as few as keep the padding near 4 %.
    seed : int
        Of the run.
    shuffle : bool
        False: no noise, batches from the longest to the shortest, the same every epoch.
    max_batch_size : int, optional
        Most utterances in a batch.
    long_alone : bool
        Put an utterance longer than the budget into a batch of its own (for evaluation) instead
        of refusing it.

    Raises
    ------
    DataError
        When utterances are longer than the budget (their positions are listed).
    ValueError
        When a number makes no sense.

    Examples
    --------
    >>> sampler = BucketBatchSampler([1.0, 5.0, 1.1, 4.8, 1.2], max_batch_seconds=10.0)
    >>> batches = sampler.batches(epoch=0)
    >>> sorted(batches[0]), sorted(map(sorted, batches)) == [[0, 2, 4], [1, 3]]
    ([1, 3], True)
    """

    def __init__(
        self,
        durations: Sequence[float],
        *,
        max_batch_seconds: float,
        num_buckets: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        max_batch_size: int | None = None,
        long_alone: bool = False,
    ) -> None:
        for name, value in (
            ("max_batch_seconds", max_batch_seconds),
            ("num_buckets", num_buckets),
            ("max_batch_size", max_batch_size),
        ):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, is {value}")
        self.durations = [float(duration) for duration in durations]
        self.max_batch_seconds = float(max_batch_seconds)
        self.num_buckets = num_buckets
        self.seed = seed
        self.shuffle = shuffle
        self.max_batch_size = max_batch_size
        self.long_alone = long_alone
        self._log_width: float | None = None
        bad = [i for i, d in enumerate(self.durations) if not (0 < d < math.inf)]
        if bad:
            raise ValueError(f"durations must be above 0: wrong at positions {bad[:20]}")
        long = [i for i, d in enumerate(self.durations) if d > self.max_batch_seconds]
        if long and not long_alone:
            raise DataError(
                f"{len(long)} utterances are longer than the budget of {max_batch_seconds:g} s a "
                f"batch (positions {long[:20]}, longest {max(self.durations):.1f} s); raise "
                "max_batch_seconds or leave them out"
            )

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch, the largest first: a pure function of (seed, epoch).

        Parameters
        ----------
        epoch : int
            Any integer.

        Returns
        -------
        list of list of int
            Positions in ``durations``; each exactly once.
        """
        if not self.durations:
            return []
        seconds = torch.tensor(self.durations, dtype=torch.float64)
        keys = seconds.log()
        generator = item_generator(self.seed, epoch, "speechkit/batches")
        if self.shuffle:
            noise = torch.rand(len(keys), generator=generator, dtype=torch.float64)
            keys = keys + self._width() * noise
        order = torch.sort(keys, descending=True, stable=True).indices.tolist()
        batches = self._cut(order)
        if self.shuffle:
            permutation = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[i] for i in permutation]
        # Memory runs out in the first step of an epoch or not at all.
        largest = max(range(len(batches)), key=lambda i: self._size(batches[i]))
        batches.insert(0, batches.pop(largest))
        return batches

    def padded_seconds(self, batch: Sequence[int]) -> float:
        """Return the seconds that a batch takes with its padding."""
        return max(self.durations[i] for i in batch) * len(batch)

    def _width(self) -> float:
        """Width of a bucket in log duration."""
        if self._log_width is None and self.num_buckets is not None:
            span = math.log(max(self.durations) / min(self.durations))
            self._log_width = max(span / self.num_buckets, 1e-6)
        elif self._log_width is None:
            # Cutting the sorted list pads a little by itself; noise of width w adds about w / 2.
            order = sorted(range(len(self.durations)), key=self.durations.__getitem__, reverse=True)
            padded = sum(self.padded_seconds(batch) for batch in self._cut(order))
            spare = _PADDING - (padded / sum(self.durations) - 1.0)
            self._log_width = max(2.0 * spare, _LEAST_WIDTH)
        return self._log_width

    def _size(self, batch: list[int]) -> tuple[float, float]:
        return self.padded_seconds(batch), max(self.durations[i] for i in batch)

    def _cut(self, order: list[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        batch: list[int] = []
        longest = 0.0
        max_size = self.max_batch_size or len(order)
        for index in order:
            candidate = max(longest, self.durations[index])
            too_long = candidate * (len(batch) + 1) > self.max_batch_seconds
            if batch and (too_long or len(batch) == max_size):
                batches.append(batch)
                batch, candidate = [], self.durations[index]
            batch.append(index)
            longest = candidate
        batches.append(batch)
        return batches


def shard(
    batches: Sequence[list[int]], rank: int, world_size: int, *, even: bool = True
) -> list[list[int]]:
    """Return the batches of one rank.

    Parameters
    ----------
    batches : sequence of list of int
        The same list on every rank.
    rank, world_size : int
        Which part of how many.
    even : bool
        True (training): every rank gets the same number, for which the last group is filled up
        from the start of the list. False (evaluation): every batch goes to exactly one rank, and
        counts differ by at most one.

    Returns
    -------
    list of list of int
        Every ``world_size``-th batch, from ``rank`` on.

    Raises
    ------
    ValueError
        When the rank is not in ``[0, world_size)``.

    Examples
    --------
    >>> [shard([[0], [1], [2]], rank, 2) for rank in (0, 1)]
    [[[0], [2]], [[1], [0]]]
    >>> [shard([[0], [1], [2]], rank, 2, even=False) for rank in (0, 1)]
    [[[0], [2]], [[1]]]
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), is {rank}")
    own = list(batches[rank::world_size])
    if even and batches:
        steps = -(-len(batches) // world_size)
        if len(own) < steps:
            position = (steps - 1) * world_size + rank
            own.append(batches[position % len(batches)])
    return own
