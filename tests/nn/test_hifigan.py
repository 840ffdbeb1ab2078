"""HiFi-GAN's generator: published sizes, padding, short inputs, folded weights, bad numbers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from speechkit.nn.hifigan import HiFiGANGenerator
from speechkit.nn.seanet_conv import fold_weight_norm

V3: dict[str, Any] = {
    "channels": 256, "upsample_rates": (8, 8, 4), "upsample_kernels": (16, 16, 8),
    "block_kind": "2", "block_kernels": (3, 5, 7), "block_dilations": ((1, 2), (2, 6), (3, 12)),
}  # fmt: skip
TINY: dict[str, Any] = {
    "num_mels": 6, "channels": 8, "upsample_rates": (4, 2), "upsample_kernels": (8, 4),
    "block_kernels": (3, 5), "block_dilations": ((1, 3), (1, 4)), "weight_std": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "millions"),
    [({}, 13.93), ({"channels": 128}, 0.93), (V3, 1.46)],
    ids=["V1", "V2", "V3"],
)
def test_published_sizes(settings: dict[str, Any], millions: float) -> None:
    # The paper counts the plain weights; weight norm has one length more for each channel.
    generator = fold_weight_norm(HiFiGANGenerator(**settings))
    count = sum(parameter.numel() for parameter in generator.parameters())
    assert round(count / 1e6, 2) == millions
    assert generator.hop_length == 256


@pytest.mark.parametrize("istft_hop", [0, 4])
@pytest.mark.parametrize("kind", ["1", "2"])
def test_padding_changes_nothing(kind: str, istft_hop: int) -> None:
    torch.manual_seed(0)
    generator = HiFiGANGenerator(**{**TINY, "block_kind": kind}, istft_hop=istft_hop)
    lengths = torch.tensor([9, 5, 1, 0])
    mel = torch.randn(4, 6, 9)
    for row, size in enumerate(lengths.tolist()):
        mel[row, :, size:] = float("nan")
    mel.requires_grad_()
    waves = generator(mel, lengths)
    hop = generator.hop_length
    assert waves.shape == (4, 1, 9 * hop)
    for row, size in enumerate(lengths.tolist()):
        alone = generator(mel[row : row + 1, :, :size])
        torch.testing.assert_close(waves[row : row + 1, :, : size * hop], alone)
        assert not waves[row, :, size * hop :].any()
    waves.square().sum().backward()
    assert mel.grad is not None
    assert mel.grad.isfinite().all()
    for parameter in generator.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("frames", [1, 2, 3, 30])
def test_mirrored_ends_take_any_number_of_frames(frames: int) -> None:
    generator = HiFiGANGenerator(**TINY, pad_mode="reflect")
    wave = generator(torch.randn(1, 6, frames))
    assert wave.shape == (1, 1, 8 * frames)
    assert wave.isfinite().all()
    with pytest.raises(ValueError, match="one by one"):
        generator(torch.randn(1, 6, frames), torch.tensor([frames]))


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize("istft_hop", [0, 4])
@pytest.mark.parametrize("kind", ["1", "2"])
def test_inference_gives_what_training_gives(kind: str, istft_hop: int, pad_mode: str) -> None:
    # Without gradients the convolutions are computed in another layout.
    torch.manual_seed(0)
    settings = {**TINY, "block_kind": kind, "pad_mode": pad_mode}
    generator = HiFiGANGenerator(**settings, istft_hop=istft_hop)
    mel = torch.randn(3, 6, 9)
    given = mel.clone()
    for lengths in (None, torch.tensor([9, 4, 0])) if generator.takes_lengths else (None,):
        want = generator(mel, lengths)
        for folded in (False, True):
            with torch.inference_mode():
                got = (fold_weight_norm(deepcopy(generator)) if folded else generator)(mel, lengths)
            assert want.requires_grad
            assert got.shape == want.shape
            torch.testing.assert_close(got.clone(), want.detach(), atol=1e-5, rtol=1e-4)
    assert torch.equal(mel, given)


def test_folded_weights_give_the_same() -> None:
    torch.manual_seed(0)
    generator = HiFiGANGenerator(**TINY, istft_hop=2)
    mel = torch.randn(2, 6, 7)
    before = generator(mel)
    fold_weight_norm(generator)
    torch.testing.assert_close(generator(mel), before)
    assert generator.norm == "none"
    again = HiFiGANGenerator(**{**TINY, "norm": "none"}, istft_hop=2)
    again.load_state_dict(generator.state_dict())
    torch.testing.assert_close(again(mel), before)


def test_weights_start_as_published() -> None:
    torch.manual_seed(0)
    generator = HiFiGANGenerator(channels=64)
    for part in (*generator.upsamplers, generator.blocks[0][0].first[0]):  # type: ignore[index]
        assert abs(part.weight.std().item() / 0.01 - 1.0) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_rates": (4,)}, "as many upsample_kernels as rates"),
        ({"upsample_kernels": (8, 3)}, r"are not: \[\(2, 3\)\]"),
        ({"channels": 6}, "channels=6 must be divisible by 2 \\*\\* 2"),
        ({"block_dilations": ((1,),)}, "dilations for each of block_kernels"),
        ({"block_dilations": ((1,), ())}, "dilations for each of block_kernels"),
        ({"block_kernels": (3, 4)}, "need odd block_kernels"),
        ({"block_kind": "3"}, "block_kind must be one of"),
        ({"pad_mode": "circular"}, "pad_mode must be one of"),
        ({"norm": "time_group"}, "norm must be one of"),
    ],
)
def test_numbers_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiFiGANGenerator(**{**TINY, **change})
