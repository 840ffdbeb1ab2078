"""The bucketed sampler: its budget, its padding, its order, its shards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.manifest import DataError
from speechkit.data.sampler import BucketBatchSampler, shard


def log_normal(count: int, seed: int = 0, sigma: float = 0.6) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    lengths = (torch.randn(count, generator=generator) * sigma + 1.8).exp()
    return lengths.clamp(0.5, 35.0).tolist()


@settings(deadline=None)
@given(
    durations=st.lists(st.floats(0.01, 20.0), min_size=1, max_size=200),
    budget=st.floats(20.0, 100.0),
    num_buckets=st.none() | st.integers(1, 50),
    max_batch_size=st.none() | st.integers(1, 10),
    shuffle=st.booleans(),
    epoch=st.integers(0, 5),
)
def test_each_once_within_the_budget_largest_first(
    durations, budget, num_buckets, max_batch_size, shuffle, epoch
):
    sampler = BucketBatchSampler(
        durations,
        max_batch_seconds=budget,
        num_buckets=num_buckets,
        max_batch_size=max_batch_size,
        shuffle=shuffle,
    )
    batches = sampler.batches(epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(durations)))
    costs = [max(durations[i] for i in batch) * len(batch) for batch in batches]
    assert max(costs) <= budget
    assert costs[0] == max(costs) == sampler.padded_seconds(batches[0])
    assert max(map(len, batches)) <= (max_batch_size or len(durations))
    assert batches == sampler.batches(epoch)


@pytest.mark.parametrize("budget", [40.0, 120.0, 400.0])
@pytest.mark.parametrize("count", [2000, 20000])
@pytest.mark.parametrize("sigma", [0.4, 0.6, 0.9])
def test_padding_on_log_normal_lengths(budget, count, sigma):
    durations = log_normal(count, sigma=sigma)
    sampler = BucketBatchSampler(durations, max_batch_seconds=budget)
    for epoch in range(3):
        padded = sum(map(sampler.padded_seconds, sampler.batches(epoch)))
        assert padded / sum(durations) <= 1.05


def test_few_small_batches_are_left_over():
    durations = log_normal(20000)
    sampler = BucketBatchSampler(durations, max_batch_seconds=120.0)
    assert len(sampler.batches(0)) <= 1.15 * sum(durations) / 120.0


def test_epochs_differ_in_batches_and_in_their_order():
    durations = log_normal(3000)
    sampler = BucketBatchSampler(durations, max_batch_seconds=120.0)
    first, second = sampler.batches(0), sampler.batches(1)
    pairs = [{frozenset(b) for b in batches} for batches in (first, second)]
    assert len(pairs[0] & pairs[1]) <= 2
    # Batches of all lengths from the beginning to the end.
    longest = torch.tensor([max(durations[i] for i in batch) for batch in first[1:]])
    halves = longest.chunk(2)
    assert abs(halves[0].mean() - halves[1].mean()) < 0.3 * longest.mean()
    # Utterances meet new ones: few of one batch are together again.
    where = {i: n for n, batch in enumerate(second) for i in batch}
    together = [
        max(map([where[i] for i in b].count, {where[i] for i in b})) / len(b) for b in first
    ]
    assert sum(together) / len(together) < 0.7


def test_a_pure_function_of_seed_and_epoch():
    durations = log_normal(500)
    make = lambda seed: BucketBatchSampler(durations, max_batch_seconds=60.0, seed=seed)  # noqa: E731
    sampler = make(1)
    sampler.batches(0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert sampler.batches(3) == make(1).batches(3) != make(2).batches(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_lengths_are_shuffled_too():
    sampler = BucketBatchSampler([3.0] * 100, max_batch_seconds=30.0)
    assert sampler.batches(0)[0] != sampler.batches(1)[0]
    assert all(len(batch) == 10 for batch in sampler.batches(0))


def test_longer_than_the_budget():
    with pytest.raises(DataError, match=r"1 utterances .* 30 s .*positions \[1\].*40\.0 s"):
        BucketBatchSampler([1.0, 40.0], max_batch_seconds=30.0)
    sampler = BucketBatchSampler([1.0, 40.0, 2.0], max_batch_seconds=30.0, long_alone=True)
    assert sorted(map(sorted, sampler.batches(0))) == [[0, 2], [1]]


@pytest.mark.parametrize(
    "wrong", [{"max_batch_seconds": 0.0}, {"num_buckets": 0}, {"max_batch_size": -1}]
)
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BucketBatchSampler([1.0], **{"max_batch_seconds": 5.0, **wrong})
    with pytest.raises(ValueError, match=r"positions \[1, 2\]"):
        BucketBatchSampler([1.0, 0.0, float("nan")], max_batch_seconds=5.0)


def test_no_utterances():
    assert BucketBatchSampler([], max_batch_seconds=5.0).batches(0) == []


@given(count=st.integers(0, 40), world_size=st.integers(1, 7))
def test_shards(count, world_size):
    batches = [[n] for n in range(count)]
    train = [shard(batches, rank, world_size) for rank in range(world_size)]
    assert {len(part) for part in train} == {-(-count // world_size)}
    flat = [batch[0] for part in train for batch in part]
    assert set(flat) == set(range(count))
    assert len(flat) - count < world_size
    once = [
        batch[0] for r in range(world_size) for batch in shard(batches, r, world_size, even=False)
    ]
    assert sorted(once) == list(range(count))
    with pytest.raises(ValueError, match="rank"):
        shard(batches, world_size, world_size)
