"""SpecAugment: masks from each item's own generator, within bounds, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.specaugment import SpecAugment


def _generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed * 1000 + b) for b in range(count)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 120), min_size=1, max_size=4),
    extra=st.integers(0, 30),
    seed=st.integers(0, 999),
)
def test_each_item_is_masked_as_if_alone(lengths: list[int], extra: int, seed: int) -> None:
    augment = SpecAugment(num_time_masks=2, time_mask=30, num_freq_masks=2, freq_mask=5)
    x = torch.ones(len(lengths), max(lengths) + extra, 16)
    out = augment(x, torch.tensor(lengths), _generators(len(lengths), seed))
    assert (x == 1).all()
    assert out.shape == x.shape
    for b, length in enumerate(lengths):
        generator = [_generators(len(lengths), seed)[b]]
        alone = augment(x[b : b + 1, :length], torch.tensor([length]), generator)
        assert torch.equal(out[b, :length], alone[0])


@pytest.mark.parametrize("seed", range(20))
def test_widths_are_bounded(seed: int) -> None:
    x, lengths = torch.ones(2, 100, 40), torch.tensor([100, 50])
    time = SpecAugment(num_time_masks=1, time_mask=80, num_freq_masks=0, max_time_share=0.3)
    masked = (time(x, lengths, _generators(2, seed)) == 0).all(dim=2)
    assert masked[0].sum() <= 30
    assert masked[1].sum() <= 15
    assert not masked[1, 50:].any()
    freq = SpecAugment(num_time_masks=0, num_freq_masks=1, freq_mask=7)
    bands = (freq(x, lengths, _generators(2, seed)) == 0).all(dim=1)
    assert (bands.sum(dim=1) <= 7).all()
    assert not torch.equal(bands[0], bands[1]) or bands.sum() == 0 or seed != 0


def test_every_width_and_place_occurs() -> None:
    augment = SpecAugment(
        num_time_masks=1, time_mask=3, num_freq_masks=0, max_time_share=1.0, value=-5.0
    )
    x, widths, covered = torch.ones(400, 6, 2), set(), torch.zeros(6)
    masked = (augment(x, torch.full((400,), 6), _generators(400)) == -5.0)[:, :, 0]
    for row in masked:
        widths.add(int(row.sum()))
        covered += row
    assert widths == {0, 1, 2, 3}
    assert (covered > 0).all()


def test_errors_and_nothing_to_do() -> None:
    x, lengths = torch.ones(2, 5, 3), torch.tensor([5, 5])
    with pytest.raises(ValueError, match="2 items, got 1"):
        SpecAugment()(x, lengths, _generators(1))
    with pytest.raises(ValueError, match="-1"):
        SpecAugment(time_mask=-1)
    with pytest.raises(ValueError, match=r"1\.5"):
        SpecAugment(max_time_share=1.5)
    assert SpecAugment(num_time_masks=0, num_freq_masks=0)(x, lengths, _generators(2)) is x
