"""Features against torchaudio and SpeechBrain, where the settings agree.

- `LogMel(log=None)` and `LogMel` against `torchaudio.transforms.MelSpectrogram`, then log.
- `MFCC` against `torchaudio.transforms.MFCC`, deltas against its `compute_deltas`.
- `LogMel` and `MFCC` with decibels, symmetric filters, Hamming window and zero padding against
  SpeechBrain's `Fbank` (features that its published models were trained on), `MFCC` and `Deltas`.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from speechkit.features.deltas import deltas
from speechkit.features.spectrum import MFCC, LogMel

LENGTH = 12345
SETTINGS = [
    {"n_fft": 400, "hop_length": 160, "num_mels": 80},
    {"n_fft": 512, "hop_length": 200, "win_length": 400, "num_mels": 40, "f_min": 60.0},
    {"n_fft": 512, "num_mels": 40, "f_max": 7000.0, "mel_scale": "slaney", "norm": "slaney"},
    {"n_fft": 400, "num_mels": 64, "power": 1.0},
]


def _waveform(length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, length, generator=generator)
    tone = torch.sin(torch.arange(length) * 0.3)
    return 0.05 * noise + torch.tensor([[0.3], [0.0]]) * tone


def _lengths(x: Tensor) -> Tensor:
    return torch.full((len(x),), x.shape[1])


def _torchaudio_arguments(settings: dict) -> dict:
    arguments = {"hop_length": 160, "win_length": None, **settings}
    arguments["n_mels"] = arguments.pop("num_mels")
    return arguments


@pytest.mark.parametrize("settings", SETTINGS)
def test_log_mel_equals_torchaudio_mel_spectrogram(settings: dict) -> None:
    transforms = pytest.importorskip("torchaudio.transforms")
    x = _waveform()
    theirs = transforms.MelSpectrogram(16000, **_torchaudio_arguments(settings))(x).transpose(1, 2)
    ours = LogMel(**settings, log=None)(x, _lengths(x)).data
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    log_ours = LogMel(**settings, floor=1e-6)(x, _lengths(x)).data
    torch.testing.assert_close(log_ours, theirs.clamp_min(1e-6).log(), rtol=1e-4, atol=1e-4)


def test_mfcc_equals_torchaudio_mfcc_with_deltas() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    x = _waveform()
    mel = {"n_fft": 400, "hop_length": 160, "n_mels": 40}
    theirs = torchaudio.transforms.MFCC(16000, n_mfcc=13, melkwargs=mel)
    ours = MFCC(num_mels=40, num_ceps=13, deltas=2)(x, _lengths(x)).data
    for b in range(2):  # torchaudio takes the 80 dB below the maximum of the whole batch
        first = theirs(x[b])
        second = torchaudio.functional.compute_deltas(first)
        third = torchaudio.functional.compute_deltas(second)
        expected = torch.cat([first, second, third]).T
        torch.testing.assert_close(ours[b], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("window", [3, 5, 9])
def test_deltas_equal_torchaudio_and_speechbrain(window: int) -> None:
    torchaudio = pytest.importorskip("torchaudio")
    x = torch.randn(2, 30, 7)
    ours = deltas(x, torch.tensor([30, 30]), window=window)
    theirs = torchaudio.functional.compute_deltas(x.transpose(1, 2), win_length=window)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=1e-5, atol=1e-5)
    features = _speechbrain("speechbrain.processing.features")
    torch.testing.assert_close(
        ours, features.Deltas(7, window_length=window)(x), rtol=1e-5, atol=1e-5
    )


def _speechbrain(module: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module)


SPEECHBRAIN = {
    "window": "hamming",
    "pad_mode": "constant",
    "filters": "symmetric",
    "log": "db",
    "floor": 1e-10,
    "top_db": 80.0,
}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"n_mels": 80}, {"num_mels": 80}),
        ({"n_mels": 40, "n_fft": 512}, {"num_mels": 40, "n_fft": 512, "win_length": 400}),
        (
            {"n_mels": 40, "f_min": 50, "f_max": 7600, "win_length": 20},
            {"num_mels": 40, "f_min": 50.0, "f_max": 7600.0, "win_length": 320},
        ),
        (
            {"sample_rate": 8000, "f_max": 4000, "n_fft": 200, "n_mels": 40},
            {"sample_rate": 8000, "n_fft": 200, "hop_length": 80, "num_mels": 40},
        ),
    ],
)
def test_log_mel_equals_speechbrain_fbank(theirs: dict, ours: dict) -> None:
    features = _speechbrain("speechbrain.lobes.features")
    x = _waveform()
    expected = features.Fbank(**theirs)(x)
    module = LogMel(**{**SPEECHBRAIN, **ours})
    torch.testing.assert_close(module(x, _lengths(x)).data, expected, rtol=1e-4, atol=1e-3)


def test_a_padded_batch_gives_speechbrain_fbank_of_each_item() -> None:
    features = _speechbrain("speechbrain.lobes.features")
    x = _waveform()
    out = LogMel(**SPEECHBRAIN, num_mels=40)(x, torch.tensor([LENGTH, 5000]))
    expected = features.Fbank(n_mels=40)(x[1:, :5000])[0]
    count = int(out.lengths[1])
    torch.testing.assert_close(out.data[1, :count], expected, rtol=1e-4, atol=1e-3)


def test_mfcc_equals_speechbrain_mfcc() -> None:
    features = _speechbrain("speechbrain.lobes.features")
    x = _waveform()
    theirs = features.MFCC(n_mels=23, n_mfcc=20, deltas=True, context=False)(x)
    ours = MFCC(**SPEECHBRAIN, num_mels=23, num_ceps=20, deltas=2)(x, _lengths(x)).data
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
