"""Vocoders: padding, Griffin-Lim's sound, model folders and their mels' hash, wrong mels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechkit import pretrained
from speechkit.data.errors import DataError
from speechkit.features.mel_settings import mel_hash
from speechkit.features.spectrum import LogMel
from speechkit.models.vocoder import GriffinLim, NeuralVocoder, Vocoder
from speechkit.nn.convnext import ConvNeXtEncoder
from speechkit.nn.hifigan import HiFiGANGenerator
from speechkit.nn.source_filter import SourceFilterGenerator

RATE = 8000


def _features(**changes: object) -> LogMel:
    settings = {"sample_rate": RATE, "n_fft": 256, "hop_length": 64, "num_mels": 40, **changes}
    return LogMel(**settings)  # type: ignore[arg-type]


def _make(kind: str) -> Vocoder:
    torch.manual_seed(0)
    features = _features()
    if kind == "griffin-lim":
        return GriffinLim(features=features, iterations=4)
    if kind == "source-filter":
        encoder = ConvNeXtEncoder(input_size=40, embed_dim=8, num_layers=1, hidden_size=12)
        source = SourceFilterGenerator(
            sample_rate=RATE, num_mels=40, hop_length=64, num_bands=33, n_fft=512, encoder=encoder
        )
        return NeuralVocoder(features=features, generator=source, mean=-3.0, scale=2.0).eval()
    generator = HiFiGANGenerator(
        num_mels=40, channels=8, upsample_rates=(8, 8), upsample_kernels=(16, 16),
        block_kernels=(3, 5), block_dilations=((1, 3), (1, 3)), weight_std=None,
        pad_mode="reflect" if kind == "mirrored" else "constant",
    )  # fmt: skip
    return NeuralVocoder(features=features, generator=generator, mean=-3.0, scale=2.0).eval()


KINDS = ["griffin-lim", "hifi-gan", "mirrored", "source-filter"]


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str, with_gradient: bool) -> None:
    vocoder = _make(kind)
    lengths = torch.tensor([12, 7, 1, 0])
    mel = torch.randn(4, 12, 40)
    for row, size in enumerate(lengths.tolist()):
        mel[row, size:] = float("nan")
    with torch.set_grad_enabled(with_gradient):
        waves, samples = vocoder(mel, lengths)
        assert waves.shape == (4, 12 * 64)
        assert samples.tolist() == [768, 448, 64, 0]
        for row, size in enumerate(samples.tolist()):
            alone = vocoder(mel[row : row + 1, : lengths[row]]).data
            # The last bits of a pitch add up in its phase.
            near = 1e-3 if kind == "source-filter" else 1e-5
            torch.testing.assert_close(waves[row : row + 1, :size], alone, atol=near, rtol=1e-4)
            assert not waves[row, size:].any()
            assert waves[row].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches(kind: str) -> None:
    vocoder = _make(kind)
    waves, samples = vocoder(torch.zeros(0, 5, 40), torch.zeros(0, dtype=torch.int64))
    assert waves.shape == (0, 320)
    assert samples.shape == (0,)
    assert vocoder(torch.zeros(2, 0, 40), torch.tensor([0, 0])).data.shape == (2, 0)


def _voice(seconds: float = 1.0) -> Tensor:
    """A gliding tone with partials, as of a voice."""
    time = torch.arange(int(seconds * RATE)) / RATE
    phase = 2 * torch.pi * (120.0 * time + 20.0 * time.square())
    return sum(torch.sin(k * phase) / k for k in range(1, 12)).unsqueeze(0) * 0.2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"power": 1.0, "mel_scale": "slaney", "norm": "slaney", "floor": 1e-5},
        {"log": "db", "window": "hamming", "pad_mode": "constant"},
        {"log": "db", "power": 1.0, "win_length": 200},
        {"log": None},
    ],
)
def test_griffin_lim_gives_the_spectrum_back(changes: dict[str, object]) -> None:
    features = _features(**changes)
    wave, lengths = _voice(), torch.tensor([RATE])
    made = GriffinLim(features=features, iterations=60).copy_synthesis(wave, lengths)
    assert made.shape == wave.shape
    magnitudes = [
        torch.stft(x, 256, 64, window=torch.hann_window(256), return_complex=True).abs()
        for x in (wave, made)
    ]
    error = (magnitudes[0] - magnitudes[1]).norm() / magnitudes[0].norm()
    assert error < 0.3


def test_griffin_lim_is_a_function_of_its_mel() -> None:
    vocoder = _make("griffin-lim")
    mel = torch.randn(1, 9, 40)
    state = torch.get_rng_state()
    first = vocoder(mel).data
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(vocoder(mel).data, first)
    assert not torch.equal(GriffinLim(features=_features(), iterations=4, seed=1)(mel).data, first)


def test_more_iterations_are_nearer() -> None:
    features, wave, lengths = _features(), _voice(), torch.tensor([RATE])
    wanted = features(wave, lengths).data
    errors = []
    for iterations in (0, 4, 32):
        vocoder = GriffinLim(features=features, iterations=iterations)
        found = features(vocoder.copy_synthesis(wave, lengths), lengths).data
        errors.append((found - wanted).abs().mean().item())
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("kind", KINDS)
def test_folder_keeps_the_hash_of_the_mels(kind: str, tmp_path: Path) -> None:
    vocoder = _make(kind)
    pretrained.save(vocoder, tmp_path / "model")
    mel = torch.randn(1, 6, 40)
    again = pretrained.load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(mel).data, vocoder(mel).data)
    place = tmp_path / "model" / "config.json"
    config = json.loads(place.read_text())
    assert config["model"]["args"]["mel_hash"] == mel_hash(vocoder.features)
    config["model"]["args"]["features"]["args"]["f_max"] = 3000.0
    place.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="its settings were changed"):
        pretrained.load(tmp_path / "model")


def test_folded_vocoder_can_be_kept(tmp_path: Path) -> None:
    vocoder = _make("hifi-gan")
    assert isinstance(vocoder, NeuralVocoder)
    mel = torch.randn(2, 6, 40)
    with torch.no_grad():
        before = vocoder(mel).data
        torch.testing.assert_close(vocoder.fold_weight_norm()(mel).data, before)
        pretrained.save(vocoder, tmp_path / "model")
        torch.testing.assert_close(pretrained.load(tmp_path / "model")(mel).data, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40,), (5, 40), (1, 5, 39), (1, 40, 5)])
def test_wrong_mels_are_named(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"need mels \(B, T, 40\), got shape .* other settings"):
        _make(kind)(torch.zeros(shape))


def test_parts_that_do_not_fit() -> None:
    generator = HiFiGANGenerator(num_mels=40, channels=16)
    with pytest.raises(ValueError, match="40 bands and gives 256 samples a frame"):
        NeuralVocoder(features=_features(), generator=generator)
    with pytest.raises(ValueError, match="scale=0 must be above 0"):
        NeuralVocoder(features=_features(hop_length=256), generator=generator, scale=0)
    encoder = ConvNeXtEncoder(input_size=40, embed_dim=8, num_layers=1, hidden_size=12)
    source = SourceFilterGenerator(
        sample_rate=RATE + 1, num_mels=40, hop_length=64, n_fft=512, encoder=encoder
    )
    with pytest.raises(ValueError, match=f"sample_rate is {RATE + 1}, the features' {RATE}"):
        NeuralVocoder(features=_features(), generator=source)
    with pytest.raises(ValueError, match="0 <= momentum < 1"):
        GriffinLim(features=_features(), momentum=1.0)
    with pytest.raises(ValueError, match="hash 0000"):
        GriffinLim(features=_features(), mel_hash="0000")
