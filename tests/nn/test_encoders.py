"""Properties of every encoder: padding changes nothing, and lengths are what they say."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.conv import ConvBlock, ConvEncoder, ConvSubsampling
from speechkit.nn.convnext import ConvNeXtEncoder
from speechkit.nn.ecapa import ECAPAEncoder
from speechkit.nn.masking import length_mask
from speechkit.nn.pyramid import PyramidalEncoder
from speechkit.nn.resnet import ResNetEncoder
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack
from speechkit.nn.transformer import TransformerEncoder
from speechkit.nn.xvector import XVectorEncoder

INPUT_SIZE = 8
_SMALL = {"embed_dim": 12, "num_heads": 3, "num_layers": 2, "feedforward_size": 20}


def _subsampling(**changes: object) -> nn.Module:
    sizes: dict = {"channels": (3, 4), "strides": (2, 2), "output_size": 12, **changes}
    return ConvSubsampling(input_size=INPUT_SIZE, **sizes)


def _conformer(**changes: object) -> nn.Module:
    sizes: dict = {"input_size": INPUT_SIZE, "kernel_size": 5, **_SMALL, **changes}
    return ConformerEncoder(**sizes)


def _transformer(**changes: object) -> nn.Module:
    sizes: dict = {"input_size": INPUT_SIZE, **_SMALL, **changes}
    return TransformerEncoder(**sizes)


def _recurrent(**changes: object) -> nn.Module:
    sizes: dict = {"input_size": INPUT_SIZE, "hidden_size": 6, "num_layers": 2, **changes}
    return RecurrentEncoder(**sizes)


def _conv(**changes: object) -> nn.Module:
    sizes: dict = {"channels": (10, 12), "strides": (2, 2), "kernel_size": 5, **changes}
    return ConvEncoder(input_size=INPUT_SIZE, **sizes)


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "conv_block": lambda: ConvBlock(input_size=INPUT_SIZE, output_size=5, kernel_size=7),
    "conv_block_stride": lambda: ConvBlock(input_size=INPUT_SIZE, output_size=5, stride=3),
    "convnext": lambda: ConvNeXtEncoder(
        input_size=INPUT_SIZE, embed_dim=12, num_layers=2, hidden_size=20
    ),
    "conv": _conv,
    "conv_3_1_2": lambda: _conv(channels=(6, 7, 9), strides=(3, 1, 2), kernel_size=3),
    "subsampling": _subsampling,
    "subsampling_norm": lambda: _subsampling(norm=True),
    "subsampling_deep": lambda: _subsampling(channels=(2, 3, 4), strides=(1, 3, 2), kernel_size=5),
    "lstm": _recurrent,
    "lstm_projected": lambda: _recurrent(num_layers=3, projection_size=7),
    "lstm_one_way": lambda: _recurrent(bidirectional=False),
    "gru": lambda: _recurrent(cell="gru"),
    "gru_one_way": lambda: _recurrent(cell="gru", bidirectional=False, num_layers=1),
    "ecapa": lambda: ECAPAEncoder(
        input_size=INPUT_SIZE, channels=8, output_size=6, scale=4, se_size=3
    ),
    "ecapa_reflect": lambda: ECAPAEncoder(
        input_size=INPUT_SIZE, channels=8, output_size=6, scale=4, padding="reflect"
    ),
    "xvector": lambda: XVectorEncoder(
        input_size=INPUT_SIZE, channels=(6, 7), kernel_sizes=(5, 3), dilations=(1, 3)
    ),
    "resnet": lambda: ResNetEncoder(input_size=INPUT_SIZE, channels=2, num_blocks=(1, 2, 1)),
    "pyramid": lambda: PyramidalEncoder(input_size=INPUT_SIZE, hidden_size=6, num_layers=3),
    "transformer": _transformer,
    "transformer_post_norm": lambda: _transformer(pre_norm=False, activation="gelu"),
    "conformer": _conformer,
    "conformer_wide_kernel": lambda: _conformer(kernel_size=31, bias=False),
    "conformer_batch_norm": lambda: _conformer(norm="batch"),
    "conformer_same_size": lambda: _conformer(input_size=INPUT_SIZE, embed_dim=8, num_heads=2),
    "transformer_chunked": lambda: _transformer(chunk_size=4, left_chunks=1),
    "conformer_causal": lambda: _conformer(causal=True),
    "conformer_chunked": lambda: _conformer(causal=True, chunk_size=4, left_chunks=1),
    "cnn_bilstm": lambda: Stack([_conv(), _recurrent(input_size=12)]),
    "subsampled_conformer": lambda: Stack([_subsampling(), _conformer(input_size=12)]),
    "subsampled_transformer": lambda: Stack([_subsampling(), _transformer(input_size=12)]),
}
"""All have dropout 0: with it, train mode may not depend on padding either."""

LENGTHS = (23, 17, 6, 1)
GARBAGE = {"zeros": 0.0, "large": 1e4, "nan": float("nan"), "inf": float("inf")}


@pytest.fixture(params=ENCODERS, ids=str)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    model: nn.Module = ENCODERS[request.param]()
    with torch.no_grad():  # biases and norms start at 0 and 1: faults would hide behind them
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _items() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, length, INPUT_SIZE, generator=generator) for length in LENGTHS]


def _batch(items: list[Tensor], extra: int, garbage: float) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([item.shape[1] for item in items])
    x = torch.full((len(items), int(lengths.max()) + extra, INPUT_SIZE), garbage)
    for row, item in zip(x, items):
        row[: item.shape[1]] = item[0]
    return x, lengths


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("extra", [0, 9])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_padding_changes_nothing(
    encoder: nn.Module, training: bool, extra: int, garbage: float
) -> None:
    """Each item of a padded batch gives what the item alone gives; so do the gradients."""
    batch_statistics = training and any("BatchNorm" in type(m).__name__ for m in encoder.modules())
    encoder.train(training)
    items = _items()
    if batch_statistics:  # the items of a batch share statistics: compare with an unpadded batch
        items = [item[:, :6].repeat(1, 2, 1) for item in items[:3]]
        alone = list(encoder(torch.cat(items), torch.full((3,), 12)).data.unsqueeze(1))
    else:
        alone = [encoder(item, torch.tensor([item.shape[1]])).data for item in items]
    x, lengths = _batch(items, extra, garbage)
    x.requires_grad_()
    out, out_lengths = encoder(x, lengths)
    assert out_lengths.tolist() == [a.shape[1] for a in alone]
    for row, length, expected in zip(out, out_lengths, alone):
        torch.testing.assert_close(row[:length], expected[0], atol=1e-4, rtol=1e-4)
    padding = ~length_mask(out_lengths, out.shape[1])
    assert (out[padding] == 0).all(), "what lies in the padding is zero"

    def gradients(output: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(output, [*encoder.parameters()], allow_unused=True)
        return [torch.zeros(()) if g is None else g for g in found]

    loss = (out * torch.cos(out.detach())).sum()
    (grad_x,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert grad_x.isfinite().all()
    assert (grad_x[~length_mask(lengths, x.shape[1])] == 0).all()
    expected_loss = torch.stack([(a * torch.cos(a.detach())).sum() for a in alone]).sum()
    for got, want in zip(gradients(loss), gradients(expected_loss)):
        torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-3)


def test_num_frames_is_the_output_length(encoder: nn.Module) -> None:
    encoder.eval()
    lengths = torch.arange(1, 41)
    with torch.no_grad():
        true = [
            encoder(torch.randn(1, n, INPUT_SIZE), torch.tensor([n])).data.shape[1]
            for n in lengths.tolist()
        ]
    assert encoder.num_frames(lengths).tolist() == true
    assert encoder.num_frames(lengths).dtype == torch.int64


def test_an_empty_item_beside_others_is_finite(encoder: nn.Module) -> None:
    x = torch.randn(2, 11, INPUT_SIZE, requires_grad=True)
    out, lengths = encoder(x, torch.tensor([11, 0]))
    out.sum().backward()
    assert lengths[1] == 0
    assert (out[1] == 0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_output_size_is_the_last_axis(encoder: nn.Module) -> None:
    out = encoder(torch.randn(2, 9, INPUT_SIZE), torch.tensor([9, 4])).data
    assert out.shape[-1] == encoder.output_size
    assert encoder.input_size == INPUT_SIZE


def test_bfloat16_autocast_trains_on_a_cpu(encoder: nn.Module) -> None:
    x, lengths = _batch(_items(), 2, float("nan"))
    encoder.eval()
    with torch.no_grad():
        full = encoder(x, lengths).data
    encoder.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = encoder(x, lengths)
    out.float().square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    encoder.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = encoder(x, lengths).data.float()
    error = (low - full).norm() / full.norm()
    if not any("BatchNorm" in type(m).__name__ for m in encoder.modules()):
        assert error < 0.05
    assert low.isfinite().all()


def test_state_dict_round_trip(encoder: nn.Module) -> None:
    copy = encoder.__class__(**_arguments(encoder))
    copy.load_state_dict(encoder.state_dict())
    x, lengths = _batch(_items(), 3, 0.0)
    with torch.no_grad():
        assert torch.equal(copy.eval()(x, lengths).data, encoder.eval()(x, lengths).data)


def _arguments(module: nn.Module) -> dict:
    names = list(inspect.signature(type(module).__init__).parameters)[1:]
    return {name: getattr(module, name) for name in names}
