"""Chunks, and what every dual-path mask network promises: padding, checkpointing, sizes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn import dual_path, dual_path_blocks, dual_path_light, dual_path_models
from speechkit.nn.dual_path import (
    DualPathBlock,
    DualPathMasker,
    join_chunks,
    num_chunks,
    split_chunks,
)
from speechkit.nn.dual_path_blocks import RNNBlock, TransformerBlock
from speechkit.nn.dual_path_light import LightSepFormerMasker
from speechkit.nn.dual_path_models import DualPathRNNMasker, SepFormerMasker
from speechkit.nn.norm import GlobalLayerNorm

SIZE = 8
_SEPFORMER: dict[str, Any] = {
    "num_features": SIZE,
    "num_sources": 2,
    "bottleneck_size": 12,
    "chunk_size": 6,
    "intra_layers": 2,
    "inter_layers": 2,
    "num_heads": 3,
    "feedforward_size": 20,
}
_RNN: dict[str, Any] = {
    "num_features": SIZE,
    "num_sources": 3,
    "bottleneck_size": 6,
    "hidden_size": 5,
    "chunk_size": 6,
    "num_blocks": 2,
}
_LIGHT: dict[str, Any] = {
    "num_features": SIZE,
    "num_sources": 2,
    "chunk_size": 5,
    "num_layers": 2,
    "num_heads": 2,
    "feedforward_size": 20,
}


def _sepformer(**changes: Any) -> nn.Module:
    return SepFormerMasker(**{**_SEPFORMER, **changes})


def _rnn(**changes: Any) -> nn.Module:
    return DualPathRNNMasker(**{**_RNN, **changes})


def _light(**changes: Any) -> nn.Module:
    return LightSepFormerMasker(**{**_LIGHT, **changes})


def _mixed(**changes: Any) -> nn.Module:
    block = DualPathBlock(
        intra=RNNBlock(embed_dim=6, hidden_size=4),
        inter=TransformerBlock(embed_dim=6, num_heads=2, num_layers=1, feedforward_size=8),
        norm="frame",
    )
    return DualPathMasker(
        num_features=SIZE,
        bottleneck_size=6,
        num_sources=1,
        chunk_size=4,
        blocks=[block],
        **changes,
    )


MASKERS: dict[str, Callable[..., nn.Module]] = {
    "sepformer": _sepformer,
    "sepformer_post_norm": lambda **c: _sepformer(pre_norm=False, activation="gelu", **c),
    "sepformer_options": lambda **c: _sepformer(
        linear=True, global_positions=True, skip_intra=False, mask="sigmoid", **c
    ),
    "rnn": _rnn,
    "rnn_deep": lambda **c: _rnn(num_layers=2, margin="half", norm="frame", **c),
    "gru_one_way": lambda **c: _rnn(cell="gru", bidirectional=False, mask="none", **c),
    "gru": lambda **c: _rnn(cell="gru", **c),
    "light": _light,
    "light_deep": lambda **c: _light(num_blocks=3, chunk_size=3, **c),
    "mixed": _mixed,
}
LENGTHS = (41, 23, 6, 1)
"""More and fewer chunks, exactly one chunk, one frame."""


@pytest.fixture(params=MASKERS, ids=str)
def build(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    return MASKERS[request.param]


def _randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # biases and norms start at 0 and 1: faults would hide behind them
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _batch(items: list[Tensor], extra: int, garbage: float) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([item.shape[1] for item in items])
    x = torch.full((len(items), int(lengths.max()) + extra, SIZE), garbage)
    for row, item in zip(x, items):
        row[: item.shape[1]] = item[0]
    return x, lengths


@pytest.mark.parametrize("margin", ["half", "chunk"])
@pytest.mark.parametrize("chunk_size", [2, 4, 10])
def test_every_frame_lies_in_two_chunks(chunk_size: int, margin: Any) -> None:
    for frames in range(25):
        x = torch.arange(1.0, 1 + 2 * frames).view(1, frames, 2)
        chunks = split_chunks(x, chunk_size, margin)
        assert chunks.shape == (1, num_chunks(frames, chunk_size, margin), chunk_size, 2)
        assert chunks.sum() == 2 * x.sum()
        assert torch.equal(join_chunks(chunks, frames, margin), 2 * x)
        for first, second in zip(chunks[0], chunks[0, 1:]):
            assert torch.equal(first[chunk_size // 2 :], second[: chunk_size // 2])
    assert num_chunks(torch.arange(25), chunk_size, margin).tolist() == [
        num_chunks(frames, chunk_size, margin) for frames in range(25)
    ]


@pytest.mark.parametrize("shape", [(3, 7, 6), (3, 7, 4, 6)])
def test_global_norm_is_a_group_norm(shape: tuple[int, ...]) -> None:
    """Values and gradients of torch's, with a large mean, and with a residual."""
    norm = _randomised(GlobalLayerNorm(num_features=6))
    x, residual = (10 + torch.randn(shape)).requires_grad_(), torch.randn(shape)
    want = nn.functional.group_norm(x.movedim(-1, 1), 1, norm.weight, norm.bias, 1e-8)
    want = want.movedim(1, -1) + residual
    got = norm(x, None, residual)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    weight = torch.randn(shape)
    grads = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("garbage", [0.0, 1e4, math.nan], ids=str)
@pytest.mark.parametrize("extra", [0, 9])
def test_padding_changes_nothing(
    build: Callable[..., nn.Module], extra: int, garbage: float
) -> None:
    """Each item of a padded batch gives what the item alone gives; so do the gradients."""
    model = _randomised(build())
    items = [torch.randn(1, length, SIZE) for length in LENGTHS]
    alone = [model(item, torch.tensor([item.shape[1]])) for item in items]
    sum(y.square().sum() for y in alone).backward()  # type: ignore[union-attr]
    want = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    x, lengths = _batch(items, extra, garbage)
    masks = model(x.requires_grad_(), lengths)
    assert masks.shape == (len(items), model.num_sources, x.shape[1], SIZE)
    valid = [row[:, :length] for row, length in zip(masks, LENGTHS)]
    for got, expected in zip(valid, alone):
        torch.testing.assert_close(got, expected[0], atol=1e-4, rtol=1e-4)
    sum(y.square().sum() for y in valid).backward()  # type: ignore[union-attr]
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    got_grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(got_grads) == len(want) == len(list(model.parameters()))
    for grad, expected in zip(got_grads, want):
        torch.testing.assert_close(grad, expected, atol=1e-3, rtol=1e-3)


def test_frames_of_other_chunks_matter(build: Callable[..., nn.Module]) -> None:
    """The last frame changes the mask of the first, through the inter models."""
    model = _randomised(build()).eval()
    model.mask = "none"  # a rectified mask may be zero both times
    x = torch.randn(1, 41, SIZE)
    other = x.clone()
    other[:, -1] = torch.randn(SIZE)  # not a shift: a norm of frames would take it out
    lengths = torch.tensor([41])
    change = (model(x, lengths) - model(other, lengths))[:, :, 0].abs().max()
    assert change > 0


def test_checkpointing_gives_the_same_gradients(build: Callable[..., nn.Module]) -> None:
    """With dropout too: the second forward draws what the first drew."""
    model = build()
    if "checkpointing" not in inspect.signature(type(model).__init__).parameters:
        pytest.fail("every masker has the flag")
    again = build(checkpointing=True)
    again.load_state_dict(_randomised(model).state_dict())
    for module in (*model.modules(), *again.modules()):
        if type(module).__name__ == "Dropout":
            module.p = 0.3
    x, lengths = torch.randn(2, 41, SIZE), torch.tensor([41, 30])
    results = []
    for one in (model, again):
        torch.manual_seed(7)
        masks = one(x, lengths)
        masks.square().sum().backward()
        results.append((masks.detach(), [p.grad for p in one.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=0, rtol=0)
    for got, want in zip(results[1][1], results[0][1]):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def _saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that the backward pass keeps, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x, torch.tensor([x.shape[1]]))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_checkpointing_keeps_less() -> None:
    x = torch.randn(1, 200, SIZE)
    assert _saved_bytes(_sepformer(checkpointing=True), x) < 0.25 * _saved_bytes(_sepformer(), x)
    assert _saved_bytes(_rnn(checkpointing=True), x) < 0.8 * _saved_bytes(_rnn(), x)


def test_published_sizes() -> None:
    def millions(model: nn.Module, filters: int) -> float:
        return round((sum(p.numel() for p in model.parameters()) + filters) / 1e6, 1)

    with torch.device("meta"):
        sepformer = SepFormerMasker(num_features=256, num_sources=2)
        rnn = DualPathRNNMasker(num_features=64, num_sources=2)
    assert millions(sepformer, 2 * 256 * 16) == 25.7
    assert millions(rnn, 2 * 64 * 2) == 2.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 5}, "chunk_size must be even, .* not 5"),
        ({"num_sources": 0}, "num_sources must be at least 1, not 0"),
        ({"mask": "softplus"}, "unknown mask 'softplus'"),
        ({"norm": "batch"}, r"unknown norm 'batch': choose from \['frame', 'global'\]"),
        ({"num_blocks": 0}, "at least one block"),
        ({"margin": "none"}, "unknown margin 'none'"),
        ({"cell": "rnn"}, r"unknown cell 'rnn': choose from \['gru', 'lstm'\]"),
        ({"num_layers": 0}, "num_layers must be at least 1, not 0"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _rnn(**change)


def test_blocks_must_fit() -> None:
    small, large = (RNNBlock(embed_dim=size, hidden_size=4) for size in (6, 7))
    with pytest.raises(ValueError, match="intra has 6 features and inter has 7"):
        DualPathBlock(intra=small, inter=large)
    block = DualPathBlock(intra=small, inter=RNNBlock(embed_dim=6, hidden_size=3))
    with pytest.raises(ValueError, match=r"blocks\[0\] has 6 features, bottleneck_size is 9"):
        DualPathMasker(
            num_features=SIZE, bottleneck_size=9, num_sources=2, chunk_size=4, blocks=[block]
        )
    with pytest.raises(ValueError, match="num_layers must be at least 1, not 0"):
        TransformerBlock(embed_dim=8, num_layers=0)
    with pytest.raises(ValueError, match="chunk_size=0, num_blocks=2"):
        _light(chunk_size=0)


def test_constructor_arguments_are_attributes() -> None:
    """What `describe` reads off a mask network builds the same one again."""
    for module in (dual_path, dual_path_blocks, dual_path_light, dual_path_models):
        for cls in vars(module).values():
            if inspect.isclass(cls) and issubclass(cls, nn.Module):
                kinds = {p.kind for p in inspect.signature(cls.__init__).parameters.values()}
                assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    for build in MASKERS.values():
        model = build()
        names = list(inspect.signature(type(model).__init__).parameters)[1:]
        again = type(model)(**{name: getattr(model, name) for name in names})
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
