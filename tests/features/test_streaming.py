"""Features of a recording in pieces are those of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speechkit.features.normalize import GlobalNorm, UtteranceNorm
from speechkit.features.spectrum import MFCC, STFT, LogMel
from speechkit.features.streaming import open_stream

FEATURES: dict[str, Callable[[], nn.Module]] = {
    "log_mel": lambda: LogMel(n_fft=64, hop_length=16, num_mels=6),
    "log_mel_padded_window": lambda: LogMel(n_fft=64, win_length=40, hop_length=24, num_mels=6),
    "log_mel_zeros": lambda: LogMel(n_fft=64, hop_length=16, num_mels=6, pad_mode="constant"),
    "log_mel_gaps": lambda: LogMel(n_fft=32, hop_length=50, num_mels=4),
    "log_mel_wide_hop": lambda: LogMel(n_fft=64, hop_length=60, num_mels=6),
    "stft": lambda: STFT(n_fft=64, hop_length=16),
    "stft_odd": lambda: STFT(n_fft=33, hop_length=16),
    "mfcc": lambda: MFCC(n_fft=64, hop_length=16, num_mels=8, num_ceps=5, deltas=0, top_db=None),
}


@pytest.mark.parametrize("name", FEATURES)
@settings(max_examples=25)
@given(data=st.data())
def test_streamed_equals_offline_however_it_is_cut(name: str, data: st.DataObject) -> None:
    features = FEATURES[name]().eval()
    size = data.draw(st.integers(1, 400) | st.integers(1, 70), label="samples")
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=9), label="cuts"))
    x = torch.randn(2, size, generator=torch.Generator().manual_seed(size))
    stream = open_stream(features, batch_size=2)
    places = [0, *cuts, size]
    parts = [stream.push(x[:, a:b]) for a, b in itertools.pairwise(places)]
    joined = torch.cat([*parts, stream.finish()], dim=1)
    torch.testing.assert_close(
        joined, features(x, torch.tensor([size] * 2)).data, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", FEATURES)
def test_a_frame_comes_when_its_lookahead_is_there(name: str) -> None:
    stream, count = open_stream(FEATURES[name]().eval()), 0
    for size in range(1, 300):
        count += stream.push(torch.randn(1, 1)).shape[1]
        known = -(-(size - stream.lookahead) // stream.stride)
        early = -(-(size - stream.lookahead + 1) // stream.stride)  # all but a mirrored first one
        assert max(0, known) <= count <= max(0, early)
    assert stream._samples.untyped_storage().nbytes() < 4 * 200  # type: ignore[attr-defined]


def test_no_sample_at_all_gives_what_the_module_gives() -> None:
    features = FEATURES["log_mel"]().eval()
    expected = features(torch.zeros(1, 0), torch.tensor([0])).data
    torch.testing.assert_close(open_stream(features).finish(), expected)


def test_global_norm_streams() -> None:
    norm = GlobalNorm(num_features=3)
    x = 4 * torch.randn(2, 20, 3) + 1
    norm(x, torch.tensor([20, 20]))
    norm.eval()
    stream = open_stream(norm, batch_size=2)
    parts = [stream.push(x[:, :7]), stream.push(x[:, 7:7]), stream.push(x[:, 7:]), stream.finish()]
    assert [part.shape[1] for part in parts] == [7, 0, 13, 0]
    assert torch.equal(torch.cat(parts, dim=1), norm(x, torch.tensor([20, 20])))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (UtteranceNorm(), "cannot stream; train with speechkit.features.normalize.GlobalNorm"),
        (MFCC(deltas=0), "train with top_db=None"),
        (MFCC(deltas=2, top_db=None), "train with deltas=0"),
    ],
)
def test_what_needs_the_whole_recording_says_so(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_stream(module.eval())
