"""Durations: expansion against plain repetition, and rounding that keeps the whole."""

from __future__ import annotations

import math

import pytest
import torch

from speechkit.nn.durations import (
    alignment_matrix,
    expand_symbols,
    mean_over_symbols,
    place_in_symbol,
    round_durations,
)

DURATIONS = torch.tensor([[2, 1, 4, 3], [1, 5, 0, 0], [3, 0, 2, 0]])


def test_expansion_is_repetition() -> None:
    x = torch.randn(3, 4, 5)
    out, lengths = expand_symbols(x, DURATIONS)
    assert lengths.tolist() == [10, 6, 5]
    for row, item, durations in zip(out, x, DURATIONS):
        plain = item.repeat_interleave(durations, dim=0)
        assert torch.equal(row[: len(plain)], plain)
        assert float(row[len(plain) :].abs().sum()) == 0


def test_expansion_to_a_given_size_and_of_padding_that_is_not_a_number() -> None:
    x = torch.randn(3, 4, 5)
    x[1, 2:] = math.nan
    out, lengths = expand_symbols(x, DURATIONS, 13)
    assert out.shape == (3, 13, 5)
    assert lengths.tolist() == [10, 6, 5]
    assert bool(out.isfinite().all())


def test_the_alignment_expands_too() -> None:
    x = torch.randn(3, 4, 5)
    alignment = alignment_matrix(DURATIONS, 11)
    out, lengths = expand_symbols(x, DURATIONS, 11)
    torch.testing.assert_close(alignment @ x, out)
    assert alignment.sum(dim=(1, 2)).tolist() == lengths.tolist()
    assert torch.equal(alignment.sum(dim=1).long(), DURATIONS)


def test_places_run_through_each_symbol() -> None:
    place = place_in_symbol(DURATIONS, 12)
    torch.testing.assert_close(place[0, 3:7, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    torch.testing.assert_close(place[0, 3:7, 1], torch.full((4,), math.log(4)))
    assert float(place[0, 10:].abs().sum()) == 0


def test_means_skip_frames_without_a_value() -> None:
    values = torch.arange(10.0).repeat(3, 1)
    values[0, 4] = math.nan
    values[1, 6:] = math.nan  # padding
    values[2, 3:5] = math.nan
    means = mean_over_symbols(values, DURATIONS)
    expected = torch.tensor([[0.5, 2, 14 / 3, 8], [0, 3, 0, 0], [1, 0, 0, 0]])
    torch.testing.assert_close(means, expected)


@pytest.mark.parametrize("seed", range(5))
def test_rounding_keeps_the_whole(seed: int) -> None:
    frames = 1 + 6 * torch.rand(2, 500, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([500, 321])
    rounded = round_durations(frames, lengths)
    for row, item, length in zip(rounded, frames, lengths.tolist()):
        assert abs(int(row.sum()) - float(item[:length].double().sum())) <= 0.501
        assert float((row[:length] - item[:length]).abs().max()) <= 1.001
        assert int(row[:length].min()) >= 1
        assert int(row[length:].sum()) == 0


def test_rounding_of_halves_leaves_no_symbol_without_a_frame() -> None:
    # Rounded to even, the ends 1.5, 2.5, 3.5 would be 2, 2, 4.
    rounded = round_durations(torch.tensor([[1.5, 1.0, 1.0, 0.0]]), torch.tensor([4]))
    assert rounded.tolist() == [[2, 1, 1, 1]]


def test_rounding_of_padding_that_is_not_a_number() -> None:
    frames = torch.tensor([[2.0, 3.0, math.nan]])
    assert round_durations(frames, torch.tensor([2])).tolist() == [[2, 3, 0]]
