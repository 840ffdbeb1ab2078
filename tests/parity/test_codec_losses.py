"""Our discriminators and losses against the peers' own code, with the same random weights.

EnCodec's package has the multi-scale STFT discriminator. SpeechBrain has HiFi-GAN's multi-period
discriminator, but mirrors the rows at their ends where HiFi-GAN and we have zeros: its convolutions
are told to pad with zeros here. Its feature maps count the logits as one. Feature matching in
SpeechBrain (MelGAN's) adds up layers where we take their mean, and its losses of logits are those
of one sub-discriminator.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from speechkit.nn.discriminators import MultiScaleSTFTDiscriminator
from speechkit.nn.discriminators_vocoder import MultiPeriodDiscriminator


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


@torch.no_grad()
def _copy_weights(ours: nn.Module, theirs: Any) -> None:
    pairs = list(zip(_convolutions(ours), _convolutions(theirs), strict=True))
    assert pairs
    for own, peer in pairs:
        own.weight = peer.weight.detach().clone()
        own.bias.copy_(peer.bias)


def _assert_equal(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
def test_multi_scale_stft_discriminator_is_encodecs(channels: int) -> None:
    peer = pytest.importorskip("encodec.msstftd")
    torch.manual_seed(0)
    windows = [2048, 1024, 512, 256, 128]
    hops = [w // 4 for w in windows]
    theirs = peer.MultiScaleSTFTDiscriminator(
        filters=8, in_channels=channels, n_ffts=windows, hop_lengths=hops, win_lengths=windows
    )
    ours = MultiScaleSTFTDiscriminator(channels=channels, num_filters=8, windows=windows)
    _copy_weights(ours, theirs)
    x = torch.randn(2, channels, 6001, requires_grad=True)
    judgement, (logits, maps) = ours(x), theirs(x)
    assert len(logits) == len(judgement.logits) == 5
    for k, want in enumerate(logits):
        _assert_equal(judgement.logits[k], want)
        assert len(maps[k]) == len(judgement.features[k]) == 5
        for got, expected in zip(judgement.features[k], maps[k]):
            _assert_equal(got, expected)
    sums = [sum(y.square().mean() for y in ys) for ys in (judgement.logits, logits)]
    gradients = [torch.autograd.grad(total, x)[0] for total in sums]
    _assert_equal(gradients[0] / gradients[1].std(), gradients[1] / gradients[1].std())


def test_default_size_is_encodecs() -> None:
    peer = pytest.importorskip("encodec.msstftd")
    theirs = peer.MultiScaleSTFTDiscriminator(filters=32)  # three windows; all are of one size
    count = sum(p.numel() for p in theirs.parameters()) // 3
    # Their first layer has no weight norm, hence no 32 gains.
    ours = sum(p.numel() for p in MultiScaleSTFTDiscriminator().parameters())
    assert ours == 5 * (count + 32)


def test_multi_period_discriminator_is_hifigans() -> None:
    peer = pytest.importorskip("speechbrain.lobes.models.HifiGAN")
    torch.manual_seed(0)
    theirs = peer.DiscriminatorP(period=5)
    for layer in [*theirs.convs, theirs.conv_post]:
        layer.padding_mode = "constant"
    ours = MultiPeriodDiscriminator(periods=(5,))
    _copy_weights(ours, theirs)
    x = torch.randn(2, 1, 1203)
    with torch.no_grad():
        judgement, (logits, maps) = ours(x), theirs(x)
    _assert_equal(judgement.logits[0].flatten(1), logits)
    for got, want in zip([*judgement.features[0], judgement.logits[0]], maps, strict=True):
        _assert_equal(got, want)


def test_losses_are_speechbrains() -> None:
    peer = pytest.importorskip("speechbrain.lobes.models.HifiGAN")
    torch.manual_seed(0)
    judge = MultiPeriodDiscriminator(periods=(3,), widths=(4, 6))
    real, fake = judge(torch.randn(2, 1, 400)), judge(torch.randn(2, 1, 400))
    x, y = real.logits[0], fake.logits[0]
    _assert_equal(discriminator_loss(real, fake).mean(), peer.HingeDLoss()(y, x)[0])
    squares = discriminator_loss(real, fake, kind="least_squares").mean()
    _assert_equal(squares, peer.MSEDLoss()(y, x)[0])
    _assert_equal(generator_loss(fake, kind="least_squares").mean(), peer.MSEGLoss()(y))
    plain = feature_matching_loss(fake, real, scale="none").mean()
    want = nn.functional.l1_loss(fake.features[0][0], real.features[0][0])
    want = want + nn.functional.l1_loss(fake.features[0][1], real.features[0][1])
    _assert_equal(2 * plain, want)
