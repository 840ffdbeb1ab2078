"""Our CNN14 against the network as the paper has it, and checkpoints with the published names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit import pretrained
from speechkit.convert.panns import convert_cnn14, load_cnn14, read_audioset_labels
from speechkit.data.errors import DataError
from speechkit.features.mel import mel_filters

CHANNELS = (3, 4, 5, 6, 7, 8)
MELS, LABELS = 64, 9


def _checkpoint(n_fft: int = 512) -> dict[str, Tensor]:
    """Random weights under the names of the published files (here of the 16 kHz variant)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    state: dict[str, Tensor] = {}

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + draw(size), draw(size)
        state[f"{name}.running_mean"] = draw(size)
        state[f"{name}.running_var"] = 0.5 + draw(size).abs()
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    for part in ("real", "imag"):
        state[f"spectrogram_extractor.stft.conv_{part}.weight"] = draw(n_fft // 2 + 1, 1, n_fft)
    rate, f_max = {512: (16000, 8000.0), 1024: (32000, 14000.0), 256: (8000, 4000.0)}[n_fft]
    state["logmel_extractor.melW"] = mel_filters(
        n_fft // 2 + 1, f_min=50.0, f_max=f_max, num_mels=MELS, sample_rate=rate,
        mel_scale="slaney", norm="slaney",
    )  # fmt: skip
    norm("bn0", MELS)
    for index, (before, after) in enumerate(zip((1, *CHANNELS), CHANNELS), start=1):
        state[f"conv_block{index}.conv1.weight"] = draw(after, before, 3, 3)
        state[f"conv_block{index}.conv2.weight"] = draw(after, after, 3, 3)
        norm(f"conv_block{index}.bn1", after)
        norm(f"conv_block{index}.bn2", after)
    state["fc1.weight"], state["fc1.bias"] = draw(10, CHANNELS[-1]), draw(10)
    state["fc_audioset.weight"], state["fc_audioset.bias"] = draw(LABELS, 10), draw(LABELS)
    return state


def _paper(state: dict[str, Tensor], log_mel: Tensor) -> Tensor:
    """Table 1 of Kong et al. 2020 in evaluation, log-mel ``(B, T, F)`` to logits."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *[state[f"{name}.{part}"] for part in parts])

    x = norm(log_mel.transpose(1, 2), "bn0").transpose(1, 2).unsqueeze(1)
    for index in range(1, 7):
        for layer in (1, 2):
            name = f"conv_block{index}"
            x = F.conv2d(x, state[f"{name}.conv{layer}.weight"], padding=1)
            x = norm(x, f"{name}.bn{layer}").relu()
        x = F.avg_pool2d(x, 2 if index < 6 else 1)
    x = x.mean(3)
    x = x.amax(2) + x.mean(2)
    x = F.linear(x, state["fc1.weight"], state["fc1.bias"]).relu()
    return F.linear(x, state["fc_audioset.weight"], state["fc_audioset.bias"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    sampler = {"indexes": np.arange(3), "pointer": 2}  # as the published training keeps it
    torch.save({"iteration": 1, "model": _checkpoint(), "sampler": sampler}, tmp_path / "c.pth")
    return tmp_path / "c.pth"


@pytest.mark.parametrize("frames", [32, 100, 191])
def test_the_network_is_the_paper_s(path: Path, frames: int) -> None:
    model = load_cnn14(path)
    log_mel = 20 * torch.randn(2, frames, MELS, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([frames, frames])
    pooled = model.pooling(*model.encoder(log_mel, lengths))
    got = model.head(torch.relu(model.embedding(pooled)))
    want = _paper(_checkpoint(), log_mel)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_features_are_those_of_the_paper() -> None:
    """From the waveform: centred frames, power, mel filters, decibels with no top."""
    converted = convert_cnn14(_checkpoint(1024))
    assert converted.settings["features"] == {
        "sample_rate": 32000, "n_fft": 1024, "hop_length": 320, "f_min": 50.0, "f_max": 14000.0,
        "mel_scale": "slaney", "norm": "slaney", "num_mels": 64, "log": "db", "floor": 1e-10,
    }  # fmt: skip
    assert converted.settings["encoder"] == {"input_size": 64, "channels": list(CHANNELS)}
    state, model_state = _checkpoint(), converted.state
    wave = torch.randn(1, 6000, generator=torch.Generator().manual_seed(2))
    from speechkit.features.spectrum import LogMel

    settings = convert_cnn14(state).settings["features"]
    got = LogMel(**settings)(wave, torch.tensor([6000])).data
    spectrum = torch.stft(
        wave, 512, 160, window=torch.hann_window(512), center=True, return_complex=True
    )
    mel = spectrum.abs().square().transpose(1, 2) @ state["logmel_extractor.melW"]
    torch.testing.assert_close(got, 10 * mel.clamp_min(1e-10).log10(), atol=1e-3, rtol=1e-4)
    assert not [name for name in model_state if "extractor" in name or "tracked" in name]


def test_the_classifier_has_labels_and_becomes_a_folder(path: Path, tmp_path: Path) -> None:
    names = [f"sound {number}" for number in range(LABELS)]
    table = tmp_path / "class_labels_indices.csv"
    rows = [f'{number},/m/0{number},"{name}"' for number, name in enumerate(names)]
    table.write_text("\n".join(["index,mid,display_name", *rows]) + "\n")
    assert read_audioset_labels(table) == names
    model = load_cnn14(path, table)
    assert (model.labels, model.multi_label, model.sample_rate) == (names, True, 16000)
    assert not model.training
    assert load_cnn14(path, names).labels == names
    found = model.classify(torch.randn(8000) / 10, 8000, top=3)
    assert len(found.labels) == 3
    pretrained.save(model, tmp_path / "model")
    again = pretrained.load(tmp_path / "model")
    x, lengths = torch.randn(1, 6000), torch.tensor([6000])
    torch.testing.assert_close(again.eval()(x, lengths), model(x, lengths))


def test_what_is_no_cnn14_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="9 outputs, but there are 2 labels"):
        load_cnn14(path, ["a", "b"])
    with pytest.raises(DataError, match="is missing"):
        load_cnn14(tmp_path / "none.pth")
    state = _checkpoint()
    with pytest.raises(DataError, match=r"does not have: 'conv_block1\.conv3\.weight'"):
        convert_cnn14({**state, "conv_block1.conv3.weight": torch.zeros(1)})
    with pytest.raises(DataError, match=r"no weight 'fc1\.bias'"):
        convert_cnn14({name: value for name, value in state.items() if name != "fc1.bias"})
    with pytest.raises(DataError, match="other mel filters"):
        convert_cnn14({**state, "logmel_extractor.melW": state["logmel_extractor.melW"] * 1.1})
    partial = {n: v for n, v in state.items() if not n.startswith("conv_block2.bn1")}
    torch.save(partial, tmp_path / "partial.pth")
    with pytest.raises(DataError, match=r"not the weights of a CNN14[\s\S]*conv_block2\.bn1"):
        load_cnn14(tmp_path / "partial.pth")
    torch.save({"model": state, "hook": Path("x")}, tmp_path / "object.pth")
    with pytest.raises(DataError, match="not a file of tensors and arrays alone"):
        load_cnn14(tmp_path / "object.pth")
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="expected the columns index"):
        read_audioset_labels(tmp_path / "labels.csv")
