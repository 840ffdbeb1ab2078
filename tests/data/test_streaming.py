"""Resampling in pieces gives what resampling the whole gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.audio import resample
from speechkit.data.streaming import StreamResampler


@pytest.mark.parametrize(
    "rates", [(8000, 16000), (44100, 16000), (48000, 16000), (16000, 16000), (11025, 8000)]
)
@settings(max_examples=15)
@given(data=st.data())
def test_pieces_join_to_the_whole(rates: tuple[int, int], data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 9000), label="samples")
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=9), label="cuts"))
    x = torch.randn(size, generator=torch.Generator().manual_seed(size))
    resampler = StreamResampler(*rates)
    places = [0, *cuts, size]
    parts = [resampler.push(x[a:b]) for a, b in itertools.pairwise(places)]
    joined = torch.cat([*parts, resampler.finish()])
    expected = resample(x, *rates) if size else x
    torch.testing.assert_close(joined, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rates", [(8000, 16000), (44100, 16000)])
def test_waits_no_longer_than_it_says_and_keeps_no_more_than_that(rates: tuple[int, int]) -> None:
    resampler, given_samples, block = StreamResampler(*rates), 0, 100
    for index in range(1, 400):
        given_samples += len(resampler.push(torch.randn(block)))
        waiting = index * block / rates[0] - given_samples / rates[1]
        assert -1e-9 <= waiting <= resampler.lookahead
    assert resampler.lookahead < 0.05
    assert resampler._buffer.untyped_storage().nbytes() <= 4 * (block + 0.1 * rates[0])
