"""Monotonic alignment search against brute force, and the prior against scipy's."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from speechkit.nn.alignment_search import beta_binomial_prior, search_durations


def brute_force(scores: Tensor) -> list[int]:
    """Durations of the best of all ways to cut the frames of one item ``(T, U)``."""
    frames, symbols = scores.shape
    best, found = -math.inf, []
    for cuts in itertools.combinations(range(1, frames), symbols - 1):
        ends = [0, *cuts, frames]
        total = sum(float(scores[ends[u] : ends[u + 1], u].sum()) for u in range(symbols))
        if total > best:
            best, found = total, [ends[u + 1] - ends[u] for u in range(symbols)]
    return found


SIZES = [(1, 1), (5, 1), (4, 4), (7, 3), (9, 4), (8, 5)]


@pytest.mark.parametrize(("frames", "symbols"), SIZES)
def test_search_is_brute_force(frames: int, symbols: int) -> None:
    generator = torch.Generator().manual_seed(10 * frames + symbols)
    for _ in range(5):
        scores = torch.randn(1, frames, symbols, generator=generator)
        found = search_durations(scores, torch.tensor([frames]), torch.tensor([symbols]))
        assert found[0].tolist() == brute_force(scores[0])


@pytest.mark.parametrize("garbage", [math.nan, 1e9, -math.inf])
def test_a_batch_of_many_lengths_is_each_item_alone(garbage: float) -> None:
    generator = torch.Generator().manual_seed(3)
    items = [torch.randn(*size, generator=generator) for size in SIZES]
    scores = torch.full((len(items), 9, 5), garbage)
    for row, item in zip(scores, items):
        row[: item.shape[0], : item.shape[1]] = item
    frames, symbols = torch.tensor(SIZES).unbind(1)
    found = search_durations(scores, frames, symbols)
    for durations, item in zip(found, items):
        assert durations[: item.shape[1]].tolist() == brute_force(item)
        assert int(durations[item.shape[1] :].sum()) == 0


def test_broken_scores_still_give_a_valid_alignment() -> None:
    scores = torch.full((3, 6, 3), math.nan)
    scores[1] = -math.inf
    scores[2, :, 1] = math.nan
    durations = search_durations(scores, torch.tensor([6, 5, 4]), torch.tensor([3, 3, 3]))
    assert durations.sum(dim=1).tolist() == [6, 5, 4]
    assert int(durations.min()) >= 1


def test_too_few_frames_are_named() -> None:
    scores = torch.zeros(2, 5, 4)
    with pytest.raises(ValueError, match=r"item 1 has 3 frames .* for 4 symbols"):
        search_durations(scores, torch.tensor([5, 3]), torch.tensor([4, 4]))
    with pytest.raises(ValueError, match=r"item 0 has 5 frames .* for 0 symbols"):
        search_durations(scores, torch.tensor([5, 5]), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="lengths"):
        search_durations(scores, torch.tensor([5]), torch.tensor([4, 4]))


def test_an_empty_batch() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert search_durations(torch.zeros(0, 5, 4), none, none).shape == (0, 4)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_prior_is_beta_binomial(scale: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    frames, symbols = torch.tensor([30, 12, 5]), torch.tensor([7, 1, 5])
    prior = beta_binomial_prior(frames, symbols, 33, 9, scale=scale)
    for row, count, size in zip(prior, frames.tolist(), symbols.tolist()):
        for t in range(count):
            wanted = stats.betabinom(size - 1, scale * (t + 1), scale * (count - t))
            expected = torch.tensor([wanted.logpmf(u) for u in range(size)]).float()
            torch.testing.assert_close(row[t, :size], expected, atol=2e-5, rtol=1e-5)
        assert float(row[count:].abs().sum()) == 0
        assert float(row[:, size:].abs().sum()) == 0


def test_prior_of_long_items_sums_to_one() -> None:
    prior = beta_binomial_prior(torch.tensor([2000]), torch.tensor([400]), 2000, 400)
    sums = prior.double().exp().sum(dim=2)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0)


def test_prior_needs_a_scale() -> None:
    with pytest.raises(ValueError, match="above zero: 0"):
        beta_binomial_prior(torch.tensor([3]), torch.tensor([2]), 3, 2, scale=0)
