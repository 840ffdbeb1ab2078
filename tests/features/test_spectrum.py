"""Features: padding invariance, float32 inside autocast, edge cases."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speechkit.features.deltas import deltas
from speechkit.features.framing import pad_items
from speechkit.features.spectrum import MFCC, STFT, LogMel

MODULES = {
    "stft": STFT(n_fft=64, hop_length=20, win_length=50),
    "log_mel": LogMel(n_fft=256, hop_length=80, num_mels=20),
    "log_mel_db": LogMel(n_fft=256, hop_length=80, num_mels=20, log="db", top_db=30.0),
    "log_mel_constant": LogMel(n_fft=256, hop_length=80, num_mels=20, pad_mode="constant"),
    "log_mel_symmetric": LogMel(n_fft=256, hop_length=80, num_mels=20, filters="symmetric"),
    "mel_magnitude": LogMel(n_fft=256, hop_length=80, num_mels=20, power=1.0, log=None),
    "mfcc": MFCC(n_fft=256, hop_length=80, num_mels=20, num_ceps=8, deltas=2),
}


@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 900), min_size=1, max_size=4),
    extra=st.integers(0, 300),
    seed=st.integers(0, 99),
)
def test_a_padded_item_equals_the_item_alone(
    name: str, lengths: list[int], extra: int, seed: int
) -> None:
    module = MODULES[name]
    torch.manual_seed(seed)
    items = [torch.randn(n) * 0.1 for n in lengths]
    batch = torch.full((len(items), max(lengths) + extra), float("nan"))
    for row, item in zip(batch, items):
        row[: len(item)] = item
    out = module(batch, torch.tensor(lengths))
    assert out.data.shape[2] == module.output_size
    assert torch.equal(out.lengths, module.num_frames(torch.tensor(lengths)))
    assert torch.isfinite(torch.view_as_real(out.data) if out.data.is_complex() else out.data).all()
    for b, item in enumerate(items):
        alone = module(item.unsqueeze(0), torch.tensor([len(item)]))
        count = int(out.lengths[b])
        assert alone.data.shape[1] == count == len(item) // module.hop_length + 1
        torch.testing.assert_close(out.data[b, :count], alone.data[0], atol=1e-4, rtol=1e-4)
        assert (out.data[b, count:] == 0).all()


def test_stft_equals_torch_centred() -> None:
    x = torch.randn(3, 1001)
    ours = STFT(n_fft=128, hop_length=31, win_length=100)(x, torch.tensor([1001] * 3)).data
    window = torch.hann_window(100)
    theirs = torch.stft(x, 128, 31, 100, window, center=True, return_complex=True)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))


def test_short_items_are_mirrored_again_and_again() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [7.0, 9.0, 9.0]])
    padded = pad_items(x, torch.tensor([3, 1]), 5)
    assert padded[0].tolist() == [2, 1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2]
    assert padded[1].tolist() == [7.0] * 11 + [0.0, 0.0]


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    module = LogMel()
    x, lengths = torch.randn(2, 9000), torch.tensor([9000, 5000])
    whole = module(x, lengths).data
    monkeypatch.setattr("speechkit.features.framing._BLOCK_SAMPLES", 1000)
    torch.testing.assert_close(module(x, lengths).data, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["log_mel", "mfcc", "stft"])
def test_float32_inside_autocast(name: str) -> None:
    x, lengths = torch.randn(1, 4000), torch.tensor([4000])
    expected = MODULES[name](x, lengths).data
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = MODULES[name](x, lengths).data
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("name", ["log_mel", "mfcc"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_keeps_float32_features(name: str, dtype: torch.dtype) -> None:
    x, lengths = torch.randn(1, 4000), torch.tensor([4000])
    model = nn.Sequential(copy.deepcopy(MODULES[name]), nn.Linear(2, 2)).to(dtype)
    assert torch.equal(model[0](x, lengths).data, MODULES[name](x, lengths).data)
    assert model[1].weight.dtype == dtype


@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_finite_for_silence_and_garbage(name: str) -> None:
    x = torch.zeros(2, 800)
    x[0, :500] = torch.randn(500)
    x[0, 500:] = float("nan")
    x.requires_grad_()
    out = MODULES[name](x, torch.tensor([500, 800])).data
    (out.abs() if out.is_complex() else out).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_a_tone_lands_in_its_band() -> None:
    module = LogMel(num_mels=40)
    tone = torch.sin(2 * math.pi * 1000 / 16000 * torch.arange(16000))
    features = module(tone.unsqueeze(0), torch.tensor([16000])).data
    mel = torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), 42)[1:-1]
    centres = 700 * (10 ** (mel / 2595) - 1)
    nearest = int((centres - 1000).abs().argmin())
    assert features[0, 50].argmax() == nearest


def test_state_dict_is_empty_and_arguments_are_attributes() -> None:
    module = MFCC(num_ceps=5, deltas=1)
    assert module.state_dict() == {}
    assert (module.num_ceps, module.deltas, module.output_size) == (5, 1, 10)
    assert (module.sample_rate, module.win_length, module.f_max) == (16000, None, None)


def test_deltas_of_a_ramp_and_of_a_padded_batch() -> None:
    x = torch.randn(2, 9, 3)
    garbage = x.clone()
    garbage[1, 4:] = float("nan")
    out = deltas(garbage, torch.tensor([9, 4]))
    torch.testing.assert_close(out[1, :4], deltas(x[1:, :4], torch.tensor([4]))[0])
    assert (out[1, 4:] == 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: STFT(win_length=500), "win_length=500, n_fft=400"),
        (lambda: STFT(window="kaiser"), "'hann', 'hamming'.*'kaiser'"),
        (lambda: LogMel(f_max=9000.0), "f_max=9000.0, sample_rate=16000"),
        (lambda: LogMel(top_db=80.0), "top_db=80.0 needs"),
        (lambda: LogMel(filters="symmetric", norm="slaney"), "needs mel_scale"),
        (lambda: LogMel(floor=0.0), "positive, got 0.0"),
        (lambda: MFCC(num_ceps=90), "90 and 80"),
        (lambda: MFCC(delta_window=4), "odd and at least 3, got 4"),
        (lambda: LogMel()(torch.zeros(5), torch.tensor([5])), r"\(B, T\).*\(5,\)"),
        (lambda: LogMel()(torch.zeros(1, 5), torch.tensor([6])), r"0 \.\. 5, got 6"),
    ],
)
def test_contradictions_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
