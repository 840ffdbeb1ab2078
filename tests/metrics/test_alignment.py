"""Blank rate, diagonality and entropy against their definitions, and what is said of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.metrics.alignment import (
    attention_diagonality,
    attention_entropy,
    blank_rate,
    diagnose,
)

Measure = type(attention_entropy)
MEASURES = pytest.mark.parametrize("measure", [attention_diagonality, attention_entropy])


def of_one(measure: Measure, weights: Tensor) -> float:
    rows, frames = weights.shape
    return float(measure(weights.unsqueeze(0), torch.tensor([rows]), torch.tensor([frames])))


def looks_at(frames: list[int], num_frames: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(frames), num_frames).float()


def test_blank_rate_counts_valid_frames_only() -> None:
    best = torch.tensor([[0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]])
    scores = torch.nn.functional.one_hot(best, 3).float().log_softmax(dim=-1)
    rates = blank_rate(scores, torch.tensor([4, 1, 0]))
    assert rates[:2].tolist() == [0.75, 0.0]
    assert rates[2].isnan()
    assert blank_rate(scores, torch.tensor([4, 4, 4]), blank=2).tolist() == [0.0, 0.25, 0.0]


@pytest.mark.parametrize("rows", [2, 5, 40])
@pytest.mark.parametrize("frames", [2, 7, 600])
def test_flat_attention_has_no_diagonal_and_all_entropy(rows: int, frames: int) -> None:
    flat = torch.full((rows, frames), 1 / frames)
    assert of_one(attention_diagonality, flat) == pytest.approx(0.0, abs=1e-5)
    assert of_one(attention_entropy, flat) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("slope", [1, 3, 50])
@pytest.mark.parametrize("begin", [0, 9])
def test_a_straight_line_has_diagonality_1_whatever_its_slope_and_beginning(
    slope: int, begin: int
) -> None:
    frames = [begin + slope * i for i in range(12)]
    line = looks_at(frames, frames[-1] + 30)
    assert of_one(attention_diagonality, line) == pytest.approx(1.0, abs=1e-5)
    assert of_one(attention_diagonality, line.flip(0)) == pytest.approx(-1.0, abs=1e-5)
    assert of_one(attention_entropy, line) == 0.0


def test_attention_that_is_stuck_has_no_diagonal() -> None:
    assert of_one(attention_diagonality, looks_at([999] * 20, 1000)) == 0.0
    both_ends = 0.5 * (looks_at([0] * 20, 1000) + looks_at([999] * 20, 1000))
    assert of_one(attention_diagonality, both_ends) == pytest.approx(0.0, abs=1e-5)


def test_a_bent_and_blurred_alignment_is_still_good_and_a_shuffled_one_is_not() -> None:
    pace = torch.tensor([2.0, 2, 2, 9, 2, 1, 1, 6, 3, 2, 12, 1]).cumsum(0)
    blurred = (-((torch.arange(60) - pace.unsqueeze(1)) ** 2) / 8).softmax(dim=1)
    assert of_one(attention_diagonality, blurred) > 0.9
    chance = torch.stack([blurred[torch.randperm(12)] for _ in range(400)])
    values = attention_diagonality(chance, torch.full((400,), 12), torch.full((400,), 60))
    assert abs(float(values.mean())) < 0.05
    assert 0.2 < float(values.std()) < 0.4  # 1 / sqrt(12) = 0.29


@settings(max_examples=40)
@given(st.integers(2, 9), st.integers(2, 20), st.integers(0, 10**6))
def test_diagonality_is_the_correlation_of_samples(rows: int, frames: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (rows, frames), generator=generator)
    counts[0, 0] += 1
    counts[-1, -1] += 1
    u, t = (np.repeat(axis, counts.flatten()) for axis in np.indices((rows, frames)).reshape(2, -1))
    expected = np.corrcoef(u, t)[0, 1]
    found = of_one(attention_diagonality, counts.float() / counts.sum())
    assert found == pytest.approx(expected, abs=1e-4)
    assert -1 <= found <= 1


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(2, 20), st.integers(0, 10**6))
def test_entropy_is_that_of_torch(rows: int, frames: int, seed: int) -> None:
    weights = (3 * torch.randn(rows, frames, generator=torch.Generator().manual_seed(seed))).exp()
    weights = weights / weights.sum(dim=1, keepdim=True)
    expected = torch.distributions.Categorical(weights).entropy().mean() / math.log(frames)
    assert of_one(attention_entropy, weights) == pytest.approx(float(expected), abs=1e-5)


@MEASURES
def test_what_lies_in_the_padding_changes_nothing(measure: Measure) -> None:
    token_lengths, lengths = torch.tensor([3, 6, 4]), torch.tensor([9, 5, 12])
    padded = torch.full((3, 6, 12), math.nan)
    alone = []
    for i, (rows, frames) in enumerate(zip(token_lengths.tolist(), lengths.tolist())):
        padded[i, :rows, :frames] = torch.randn(rows, frames).softmax(dim=1)
        alone.append(of_one(measure, padded[i, :rows, :frames]))
    assert measure(padded, token_lengths, lengths).tolist() == pytest.approx(alone, abs=1e-6)


@MEASURES
def test_half_precision_is_measured_in_full(measure: Measure) -> None:
    weights = torch.randn(1, 30, 400).softmax(dim=-1).bfloat16()
    sizes = torch.tensor([30]), torch.tensor([400])
    assert measure(weights, *sizes).dtype is torch.float32
    assert torch.equal(measure(weights, *sizes), measure(weights.float(), *sizes))


def test_what_has_no_diagonal_or_no_entropy_is_nan() -> None:
    weights = torch.ones(3, 2, 2) / 2
    token_lengths, lengths = torch.tensor([1, 2, 0]), torch.tensor([2, 1, 2])
    assert attention_diagonality(weights, token_lengths, lengths).isnan().all()
    entropy = attention_entropy(weights, token_lengths, lengths)
    assert entropy.isnan().tolist() == [False, True, True]


def kinds(**values: float) -> list[str]:
    return [finding.kind for finding in diagnose(values)]


def test_diagnosis_tells_the_failures_apart() -> None:
    assert kinds() == []
    assert kinds(blank_rate=0.95) == []  # usual where frames are many
    assert kinds(blank_rate=0.999) == ["all blank"]
    assert kinds(attention_diagonality=0.01, attention_entropy=0.99) == ["flat attention"]
    assert kinds(attention_diagonality=-0.1, attention_entropy=0.3) == ["stray attention"]
    assert kinds(attention_diagonality=0.6, attention_entropy=0.95) == []  # heads that are averaged
    both = kinds(blank_rate=1.0, attention_diagonality=0.0, attention_entropy=1.0)
    assert both == ["all blank", "flat attention"]


def test_diagnosis_gives_the_numbers_and_the_meaning() -> None:
    blank, flat = diagnose(
        {"blank_rate": 0.9971, "attention_diagonality": -0.001, "attention_entropy": 0.98}
    )
    assert "99.7 %" in blank.what
    assert "plateau" in blank.advice
    assert "entropy 0.98 of 1, diagonality 0.00" in flat.what
    assert "language model" in flat.advice
    assert "CTC" in flat.advice
