"""Our HiFi-GAN against SpeechBrain's, with the same random weights, through the conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from speechkit import pretrained
from speechkit.convert.hifigan import convert_hifigan, load_hifigan, published_mel
from speechkit.data.errors import DataError
from speechkit.nn.discriminators_scale import MultiScaleDiscriminator
from speechkit.nn.hifigan import HiFiGANGenerator

SIZES: dict[str, dict[str, Any]] = {
    "1": {
        "upsample_initial_channel": 16,
        "upsample_factors": [8, 8, 2, 2],
        "upsample_kernel_sizes": [16, 16, 4, 4],
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    },
    "2": {
        "upsample_initial_channel": 16,
        "upsample_factors": [8, 8, 4],
        "upsample_kernel_sizes": [16, 16, 8],
        "resblock_kernel_sizes": [3, 5, 7],
        "resblock_dilation_sizes": [[1, 2], [2, 6], [3, 12]],
    },
}


def _peer(kind: str) -> Any:
    peer = pytest.importorskip("speechbrain.lobes.models.HifiGAN")
    torch.manual_seed(0)
    sizes = dict(SIZES[kind])
    if kind == "2":  # their block of this kind takes two dilations
        sizes["resblock_dilation_sizes"] = [d[:2] for d in sizes["resblock_dilation_sizes"]]
    return peer.HifiganGenerator(in_channels=80, out_channels=1, resblock_type=kind, **sizes)


def _ours(theirs: Any) -> HiFiGANGenerator:
    state, settings = convert_hifigan(theirs.state_dict())
    ours = HiFiGANGenerator(**settings)
    ours.load_state_dict(state)
    return ours


@pytest.mark.parametrize("kind", ["1", "2"])
@pytest.mark.parametrize("frames", [5, 33])
def test_generator_and_gradients_are_speechbrains(kind: str, frames: int) -> None:
    theirs = _peer(kind)
    ours = _ours(theirs)
    assert ours.pad_mode == "reflect"
    mel, mel_too = (torch.randn(2, 80, frames, generator=_seed()).requires_grad_() for _ in "ab")
    got, want = ours(mel), theirs(mel_too)
    assert got.shape == want.shape == (2, 1, 256 * frames)
    scale = want.abs().max().item()
    torch.testing.assert_close(got, want, atol=1e-4 * scale, rtol=1e-4)
    got.square().sum().backward()
    want.square().sum().backward()
    assert mel.grad is not None
    assert mel_too.grad is not None
    scale = mel_too.grad.abs().max().item()
    torch.testing.assert_close(mel.grad, mel_too.grad, atol=1e-4 * scale, rtol=1e-3)


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_speechbrains_file_becomes_a_model_folder(tmp_path: Path) -> None:
    theirs = _peer("1")
    torch.save(theirs.state_dict(), tmp_path / "generator.ckpt")
    model = load_hifigan(tmp_path / "generator.ckpt")
    mel = torch.randn(1, 9, 80)
    with torch.no_grad():
        want = theirs(mel.transpose(1, 2)).squeeze(1)
        got = model(mel).data
        scale = want.abs().max().item()
        torch.testing.assert_close(got, want, atol=1e-4 * scale, rtol=1e-3)
        pretrained.save(model, tmp_path / "model")
        assert torch.equal(pretrained.load(tmp_path / "model")(mel).data, got)


def _authors(ours: HiFiGANGenerator, blocks: int) -> dict[str, torch.Tensor]:
    """Give the weights the names of the authors' checkpoints."""
    state = {}
    for name, value in ours.state_dict().items():
        layer, _, part = name.partition(".")
        if layer == "blocks":
            stage, block, side, step, part = part.split(".", 4)
            convs = {"first": "convs1", "second": "convs2"}[side]
            layer = f"resblocks.{int(stage) * blocks + int(block)}.{convs}.{step}"
        elif layer == "upsamplers":
            index, _, part = part.partition(".")
            layer = f"ups.{index}"
        else:
            layer = {"input": "conv_pre", "output": "conv_post"}[layer]
        part = part.replace("parametrizations.weight.original0", "weight_g")
        state[f"{layer}.{part.replace('parametrizations.weight.original1', 'weight_v')}"] = value
    return state


def test_the_authors_file_and_configuration(tmp_path: Path) -> None:
    ours = HiFiGANGenerator(
        channels=8, upsample_rates=(8, 4), upsample_kernels=(16, 10), block_kernels=(3, 5),
        block_dilations=((1, 2), (2, 3)), num_mels=20,
    )  # fmt: skip
    torch.save({"generator": _authors(ours, 2)}, tmp_path / "g_1")
    config = {
        "sampling_rate": 16000, "n_fft": 128, "hop_size": 32, "win_size": 100, "num_mels": 20,
        "fmin": 50, "fmax": 7000, "upsample_rates": [8, 4],
        "resblock_dilation_sizes": [[1, 2], [2, 3]],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_hifigan(tmp_path / "g_1")
    assert (model.sample_rate, model.features.win_length, model.features.f_max) == (
        16000,
        100,
        7000,
    )
    assert model.generator.pad_mode == "constant"
    mel = torch.randn(1, 6, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(mel).data, ours(mel.transpose(1, 2)).squeeze(1))


def test_what_is_no_hifigan_is_refused(tmp_path: Path) -> None:
    state = _authors(HiFiGANGenerator(channels=16), 3)
    with pytest.raises(DataError, match=r"does not have:\n  'encoder\.weight'"):
        convert_hifigan({**state, "encoder.weight": torch.zeros(1)})
    short = {name: value for name, value in state.items() if not name.startswith("ups.3.")}
    with pytest.raises(DataError, match="not a whole HiFi-GAN"):
        convert_hifigan(short)
    less = {name: value for name, value in state.items() if name != "resblocks.4.convs1.1.bias"}
    with pytest.raises(DataError, match=r"lacks what becomes:\n  blocks\.1\.1\.first\.1\.bias"):
        convert_hifigan(less)
    with pytest.raises(DataError, match="do not fit HiFi-GAN's other weights"):
        convert_hifigan({**state, "conv_post.bias": torch.zeros(2)})
    torch.save({"generator": state}, tmp_path / "g")
    with pytest.raises(DataError, match="hop_length=200; give the features"):
        load_hifigan(tmp_path / "g", features=published_mel(hop_length=200))
    with pytest.raises(DataError, match="cannot be read"):
        load_hifigan(tmp_path / "nothing")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(DataError, match="not a file of tensors alone"):
        load_hifigan(tmp_path / "text")


def test_multi_scale_discriminator_is_speechbrains() -> None:
    peer = pytest.importorskip("speechbrain.lobes.models.HifiGAN")
    torch.manual_seed(0)
    theirs, ours = peer.MultiScaleDiscriminator().eval(), MultiScaleDiscriminator().eval()
    pairs = zip(_convolutions(ours), _convolutions(theirs), strict=True)
    for own, other in pairs:
        with torch.no_grad():
            if hasattr(other, "weight_orig"):  # the old spectral norm
                vectors = own.parametrizations.weight[0]
                own.parametrizations.weight.original.copy_(other.weight_orig)
                vectors._u.copy_(other.weight_u)
                vectors._v.copy_(other.weight_v)
            else:
                own.weight = other.weight.detach().clone()
            own.bias.copy_(other.bias)
    x = torch.randn(1, 1, 2001)
    judgement, (scores, maps) = ours(x), theirs(x)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    for k, want in enumerate(scores):
        torch.testing.assert_close(judgement.logits[k].flatten(1), want, atol=1e-5, rtol=1e-3)
        for ours_map, theirs_map in zip(judgement.features[k], maps[k][:-1], strict=True):
            scale = theirs_map.abs().max().item()
            torch.testing.assert_close(
                ours_map.squeeze(3), theirs_map, atol=1e-4 * scale, rtol=1e-3
            )


def _convolutions(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, nn.Conv1d)]
