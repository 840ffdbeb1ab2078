"""Encoders of sounds: padding changes nothing, lengths are what they say, sizes as published."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.ast import AudioSpectrogramTransformer, TokenPooling
from speechkit.nn.cnn14 import CNN14, MaxMeanPooling
from speechkit.nn.conv2d_classifier import Conv2dEncoder
from speechkit.nn.masking import length_mask

INPUT_SIZE = 16
LENGTHS = (43, 30, 17, 3, 1)
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "conv2d": lambda: Conv2dEncoder(input_size=INPUT_SIZE, channels=(3, 4), pools=(2, 4)),
    "conv2d_mean": lambda: Conv2dEncoder(
        input_size=INPUT_SIZE, channels=(3, 5), pools=(3, 1), kernel_size=5, pool_kind="mean"
    ),
    "cnn14": lambda: CNN14(input_size=INPUT_SIZE, channels=(3, 4, 4, 5), dropout=0.0),
    "ast": lambda: AudioSpectrogramTransformer(
        input_size=INPUT_SIZE, max_frames=60, patch_size=6, stride=4, embed_dim=12, num_heads=3,
        num_layers=2, feedforward_size=20,
    ),
}  # fmt: skip


@pytest.fixture(params=ENCODERS, ids=str)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    model = ENCODERS[request.param]()
    with torch.no_grad():  # norms start at 0 and 1: faults would hide behind them
        for name, value in model.state_dict().items():
            noise = 0.1 * torch.randn_like(value)
            value.add_(noise.abs() if "running_var" in name else noise)
    return model


def _batch(extra: int, garbage: float) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    items = [torch.randn(1, n, INPUT_SIZE, generator=generator) for n in LENGTHS]
    x = torch.full((len(items), max(LENGTHS) + extra, INPUT_SIZE), garbage)
    for row, item in zip(x, items):
        row[: item.shape[1]] = item[0]
    return items, x, torch.tensor(LENGTHS)


@pytest.mark.parametrize(("extra", "garbage"), [(0, float("nan")), (30, float("inf")), (9, 1e4)])
def test_padding_changes_nothing(encoder: nn.Module, extra: int, garbage: float) -> None:
    encoder.eval()
    items, x, lengths = _batch(extra, garbage)
    x.requires_grad_()
    out, out_lengths = encoder(x, lengths)
    alone = [encoder(item, torch.tensor([item.shape[1]])).data for item in items]
    assert out_lengths.tolist() == [a.shape[1] for a in alone]
    assert out_lengths.tolist() == encoder.num_frames(lengths).tolist()
    for row, length, expected in zip(out, out_lengths, alone):
        torch.testing.assert_close(row[:length], expected[0], atol=1e-5, rtol=1e-4)
    assert (out[~length_mask(out_lengths, out.shape[1])] == 0).all()
    out.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad[~length_mask(lengths, x.shape[1])] == 0).all()


def test_training_statistics_are_those_of_the_valid_frames(encoder: nn.Module) -> None:
    encoder.train()
    items = torch.randn(3, 24, INPUT_SIZE)
    lengths = torch.full((3,), 24)
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    full = encoder(items, lengths).data
    after = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.load_state_dict(state)
    longer = torch.cat([items, torch.full((3, 16, INPUT_SIZE), float("nan"))], dim=1)
    padded = encoder(longer, lengths)
    torch.testing.assert_close(padded.data[:, : full.shape[1]], full, atol=1e-4, rtol=1e-4)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, after[name], atol=1e-4, rtol=1e-3)


def test_an_empty_item_beside_others_is_finite(encoder: nn.Module) -> None:
    x = torch.randn(2, 11, INPUT_SIZE, requires_grad=True)
    out, lengths = encoder(x, torch.tensor([11, 0]))
    out.sum().backward()
    assert lengths[1] == 0
    assert (out[1] == 0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert out.shape[-1] == encoder.output_size


@pytest.mark.parametrize("pooling", [MaxMeanPooling, TokenPooling])
def test_pooling_ignores_padding(pooling: type[nn.Module]) -> None:
    pool = pooling(input_size=5)
    x = torch.randn(3, 9, 5)
    lengths = torch.tensor([9, 4, 2])
    garbage = x.masked_fill(~length_mask(lengths, 9).unsqueeze(2), float("nan"))
    out = pool(garbage, lengths)
    for row, item, length in zip(out, x, lengths.tolist()):
        torch.testing.assert_close(row, pool(item[None, :length], lengths.new_tensor([length]))[0])


def test_max_mean_pooling_by_hand() -> None:
    x = torch.tensor([[[-3.0, 2.0], [-1.0, 6.0]], [[5.0, 5.0], [9.0, 9.0]]])
    out = MaxMeanPooling(input_size=2)(x, torch.tensor([2, 0]))
    assert out.tolist() == [[-3.0, 10.0], [0.0, 0.0]]


def _size(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_cnn14_has_the_published_size() -> None:
    with torch.device("meta"):
        assert _size(CNN14(), nn.Linear(2048, 2048), nn.Linear(2048, 527)) == 80_753_615


def test_ast_has_the_published_size() -> None:
    with torch.device("meta"):
        encoder = AudioSpectrogramTransformer()
        assert _size(encoder) == 86_187_264
        assert _size(encoder, TokenPooling(input_size=768), nn.Linear(768, 527)) == 86_594_063
    assert encoder.num_frames(torch.tensor([1024])).tolist() == [1214]  # 12 x 101 and two tokens


def test_ast_refuses_what_has_no_position() -> None:
    encoder = ENCODERS["ast"]()
    x = torch.randn(1, 63, INPUT_SIZE)  # 14 steps of 4 end at 58, a fifteenth would at 62
    with pytest.raises(ValueError, match=r"has 63 frames, .* max_frames=60: crop it"):
        encoder(x, torch.tensor([63]))
    assert encoder(x, torch.tensor([50])).lengths.tolist() == [2 + 12 * 3]


def test_ast_knows_where_a_patch_is() -> None:
    torch.manual_seed(0)
    encoder = ENCODERS["ast"]().eval()
    x = torch.randn(1, 46, INPUT_SIZE)
    first = encoder(x, torch.tensor([46])).data[:, :2]
    turned = encoder(x.flip(1), torch.tensor([46])).data[:, :2]
    assert float((first - turned).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Conv2dEncoder(input_size=8, channels=(2,), pools=(2, 2)), "1 channels .* 2 pools"),
        (lambda: Conv2dEncoder(input_size=8, kernel_size=4), "kernel_size must be odd"),
        (lambda: Conv2dEncoder(input_size=8), "leave a bin of 8 features"),
        (lambda: Conv2dEncoder(input_size=8, channels=(2,), pools=(2,), pool_kind="sum"), "'sum'"),
        (lambda: CNN14(input_size=16), "leave a bin of 16 features"),
        (lambda: CNN14(channels=()), "one block at least"),
        (lambda: AudioSpectrogramTransformer(input_size=8), "patch_size <= input_size"),
    ],
)  # fmt: skip
def test_bad_arguments(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
