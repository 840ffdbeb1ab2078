"""Blocks of the acoustic models: padding changes nothing, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.acoustic_checks import check_mels, check_positive, check_symbols
from speechkit.nn.aligner import Aligner
from speechkit.nn.convnext import ConvNeXtBlock, ConvNeXtEncoder
from speechkit.nn.symbol_encoder import ScaledPositions, SymbolEncoder


def _convnext() -> nn.Module:
    return ConvNeXtEncoder(input_size=6, embed_dim=8, num_layers=3, hidden_size=12, kernel_size=5)


def test_convnext_in_a_batch_is_convnext_alone() -> None:
    torch.manual_seed(0)
    encoder = _convnext()
    x, lengths = torch.randn(3, 20, 6), torch.tensor([20, 1, 9])
    for i, length in enumerate(lengths.tolist()):
        x[i, length:] = math.nan
    out = encoder(x, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = encoder(x[i : i + 1, :length], lengths[i : i + 1]).data[0]
        torch.testing.assert_close(out.data[i, :length], alone, atol=1e-5, rtol=1e-5)
        assert float(out.data[i, length:].detach().abs().sum()) == 0
    out.data.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_convnext_sees_as_far_as_it_says() -> None:
    torch.manual_seed(0)
    encoder = _convnext()
    x = torch.randn(1, 40, 6, requires_grad=True)
    encoder(x, torch.tensor([40])).data[0, 20].sum().backward()
    seen = x.grad[0].abs().sum(dim=1).nonzero().flatten().tolist()
    assert seen == list(range(20 - 6, 20 + 7))  # 3 x (5 - 1) + 1 frames


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConvNeXtBlock(embed_dim=4, hidden_size=8, kernel_size=4),
        lambda: Aligner(symbol_size=4, num_mels=8, kernel_size=2),
    ],
)
def test_even_kernels_are_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        build()


def test_convnext_needs_a_layer() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1, not 0"):
        ConvNeXtEncoder(input_size=6, embed_dim=8, num_layers=0, hidden_size=12)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("prior_scale", [None, 1.0])
def test_aligner_in_a_batch_is_the_aligner_alone(
    kernel_size: int, prior_scale: float | None
) -> None:
    torch.manual_seed(0)
    aligner = Aligner(
        symbol_size=5,
        num_mels=7,
        attention_size=4,
        kernel_size=kernel_size,
        prior_scale=prior_scale,
    )
    symbols, token_lengths = torch.randn(2, 4, 5), torch.tensor([4, 2])
    mels, mel_lengths = torch.randn(2, 9, 7), torch.tensor([9, 6])
    symbols[1, 2:], mels[1, 6:] = math.nan, math.nan
    out = aligner(symbols, token_lengths, mels, mel_lengths)
    alone = aligner(symbols[1:, :2], token_lengths[1:], mels[1:, :6], mel_lengths[1:])
    torch.testing.assert_close(out[1, :6, :2], alone[0], atol=1e-5, rtol=1e-5)
    assert bool((out[1, :6, 2:] == -math.inf).all())
    assert float(out[1, 6:].detach().abs().sum()) == 0
    sums = out[0].exp().sum(dim=1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    out[0].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in aligner.parameters())


def test_aligner_is_a_softmax_of_squared_distances() -> None:
    aligner = Aligner(symbol_size=3, num_mels=4, attention_size=6, prior_scale=None)
    symbols, mels = torch.randn(1, 5, 3), torch.randn(1, 8, 4)
    keys, queries = symbols.transpose(1, 2), mels.transpose(1, 2)
    keys = aligner.keys[1](aligner.keys[0](keys).relu()).transpose(1, 2)
    hidden = aligner.queries[1](aligner.queries[0](queries).relu())
    queries = aligner.queries[2](hidden.relu()).transpose(1, 2)
    expected = (-torch.cdist(queries, keys).square() / 6).log_softmax(dim=2)
    out = aligner(symbols, torch.tensor([5]), mels, torch.tensor([8]))
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def _symbol_encoder(pre_norm: bool) -> SymbolEncoder:
    return SymbolEncoder(
        num_symbols=9,
        embed_dim=8,
        num_heads=2,
        num_layers=2,
        feedforward_size=12,
        pre_norm=pre_norm,
    )


@pytest.mark.parametrize("pre_norm", [True, False])
def test_symbol_encoder_in_a_batch_is_the_encoder_alone(pre_norm: bool) -> None:
    torch.manual_seed(0)
    encoder = _symbol_encoder(pre_norm).eval()
    tokens, lengths = torch.tensor([[1, 2, 3, 4], [5, 6, 99, -7]]), torch.tensor([4, 2])
    out = encoder(tokens, lengths)
    alone = encoder(tokens[1:, :2], lengths[1:]).data
    torch.testing.assert_close(out.data[1, :2], alone[0], atol=1e-5, rtol=1e-5)
    assert float(out.data[1, 2:].detach().abs().sum()) == 0


def test_positions_are_scaled_by_what_is_learned() -> None:
    positions = ScaledPositions(embed_dim=6)
    with torch.no_grad():
        positions.scale.fill_(0.5)
    x = torch.randn(2, 7, 6)
    added = positions(x) - x
    torch.testing.assert_close(added[0, 3, 0], torch.tensor(0.5 * math.sin(3)))
    torch.testing.assert_close(positions(x[:, 4:], 4), positions(x)[:, 4:])
    positions(x).sum().backward()
    assert float(positions.scale.grad.abs()) > 0


@pytest.mark.parametrize(
    ("tokens", "lengths", "words"),
    [
        (torch.tensor([1, 2]), torch.tensor([2]), "must be"),
        (torch.tensor([[1, 2]]), torch.tensor([2, 2]), "must be"),
        (torch.tensor([[1, 2]]), torch.tensor([0]), "item 0 has 0 symbols"),
        (torch.tensor([[1, 2]]), torch.tensor([3]), "item 0 has 3 symbols"),
        (torch.tensor([[1, 2], [1, -1]]), torch.tensor([2, 2]), "item 1: symbol -1 at 1"),
    ],
)
def test_wrong_symbols(tokens: Tensor, lengths: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_symbols(tokens, lengths, 5)


@pytest.mark.parametrize(
    ("shape", "lengths", "words"),
    [
        ((2, 5), [5, 5], "mels must be"),
        ((1, 5, 8), [5], "mels must be"),
        ((2, 5, 7), [5, 5], "mels must be"),
        ((2, 5, 8), [5], "mels must be"),
        ((2, 5, 8), [5, 0], "item 1 has 0 frames"),
        ((2, 5, 8), [6, 5], "item 0 has 6 frames"),
    ],
)
def test_wrong_mels(shape: tuple[int, ...], lengths: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_mels(torch.zeros(shape), torch.tensor(lengths), 2, 8)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_positive(value: float) -> None:
    with pytest.raises(ValueError, match="speed must be above zero"):
        check_positive("speed", value)
