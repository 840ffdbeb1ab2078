"""Our Conv-TasNet against asteroid's, with the same random weights: masks, gradients, estimates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.models.separator import Separator
from speechkit.nn.filterbank import FilterbankDecoder, FilterbankEncoder
from speechkit.nn.tcn import ConvTasNetMasker

FILTERS, BLOCKS, REPEATS = 12, 3, 2
SIZES = {"bottleneck_size": 8, "hidden_size": 10, "skip_size": 6}
THEIR_SIZES = {"bn_chan": 8, "hid_chan": 10, "skip_chan": 6}
BLOCK = {
    "expand": "shared_block.0",
    "activation1": "shared_block.1",
    "norm1": "shared_block.2",
    "depthwise": "shared_block.3",
    "activation2": "shared_block.4",
    "norm2": "shared_block.5",
}


def _copy(theirs: dict[str, Tensor], ours: nn.Module) -> None:
    """Give our mask network the weights of asteroid's."""
    state: dict[str, Tensor] = {}

    def take(target: str, source: str) -> None:
        for part, name in (("weight", "gamma"), ("bias", "beta")):
            value = theirs.get(f"{source}.{part}", theirs.get(f"{source}.{name}"))
            if value is not None:
                state[f"{target}.{part}"] = value

    take("norm", "bottleneck.0")
    take("bottleneck", "bottleneck.1")
    take("activation", "mask_net.0")
    take("output", "mask_net.1")
    for index in range(BLOCKS * REPEATS):
        for target, source in BLOCK.items():
            take(f"blocks.{index}.{target}", f"TCN.{index}.{source}")
        for part in ("weight", "bias"):
            both = [theirs[f"TCN.{index}.{name}_conv.{part}"] for name in ("res", "skip")]
            state[f"blocks.{index}.reduce.{part}"] = torch.cat(both)
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes.keys() == state.keys()
    ours.load_state_dict({name: value.reshape(shapes[name]) for name, value in state.items()})


def _pair(kind: str, *, sources: int = 3) -> tuple[Any, ConvTasNetMasker]:
    peer = pytest.importorskip("asteroid.masknn.convolutional")
    torch.manual_seed(0)
    theirs = peer.TDConvNet(
        FILTERS,
        sources,
        n_blocks=BLOCKS,
        n_repeats=REPEATS,
        mask_act=kind,
        **THEIR_SIZES,
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours = ConvTasNetMasker(
        num_features=FILTERS,
        num_sources=sources,
        num_blocks=BLOCKS,
        num_repeats=REPEATS,
        mask=kind,
        **SIZES,
    )
    _copy(theirs.state_dict(), ours)
    return theirs, ours


@pytest.mark.parametrize("kind", ["relu", "sigmoid", "softmax"])
@pytest.mark.parametrize("frames", [1, 2, 50])
def test_masks_and_gradients(kind: str, frames: int) -> None:
    theirs, ours = _pair(kind)
    x = torch.rand(2, frames, FILTERS, requires_grad=True)
    got = ours(x, torch.tensor([frames, frames]))
    want = theirs(x.transpose(1, 2)).transpose(2, 3)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-3)


def test_the_whole_separator() -> None:
    """Filter banks included; asteroid's loses samples that no whole kernel covers."""
    models = pytest.importorskip("asteroid.models")
    torch.manual_seed(0)
    theirs = models.ConvTasNet(
        2,
        n_filters=FILTERS,
        kernel_size=8,
        stride=4,
        n_blocks=BLOCKS,
        n_repeats=REPEATS,
        mask_act="relu",
        encoder_activation="relu",
        **THEIR_SIZES,
    ).eval()
    ours = Separator(
        sample_rate=8000,
        encoder=FilterbankEncoder(num_filters=FILTERS, kernel_size=8, stride=4),
        masker=ConvTasNetMasker(
            num_features=FILTERS, num_sources=2, num_blocks=BLOCKS, num_repeats=REPEATS, **SIZES
        ),
        decoder=FilterbankDecoder(num_filters=FILTERS, kernel_size=8, stride=4),
    )
    _copy(theirs.masker.state_dict(), ours.masker)
    with torch.no_grad():
        ours.encoder.conv.weight.copy_(theirs.encoder.filterbank._filters)
        ours.decoder.conv.weight.copy_(theirs.decoder.filterbank._filters)
        x = torch.randn(2, 400)
        got = ours(x, torch.tensor([400, 400])).estimates
        want = theirs(x)
    assert want.abs().max() > 1e-2
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
