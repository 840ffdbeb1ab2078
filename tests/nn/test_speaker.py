"""Encoders and pooling of speaker models: padding, sizes as published, edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.ecapa import ECAPAEncoder, Res2NetLayer
from speechkit.nn.masking import length_mask
from speechkit.nn.pooling import AttentiveStatisticsPooling, EmbeddingLayer, StatisticsPooling
from speechkit.nn.resnet import ResNetEncoder
from speechkit.nn.tdnn import FrameBatchNorm, TDNNLayer, frame_conv, mirror_frames
from speechkit.nn.xvector import XVectorEncoder

INPUT_SIZE = 9
LENGTHS = (23, 17, 4, 1)
GARBAGE = {"zeros": 0.0, "large": 1e4, "nan": float("nan"), "inf": float("inf")}


class _Pooled(nn.Module):
    """An encoder, a pooling and an embedding, as in a model."""

    def __init__(self, encoder: Any, pooling: type[nn.Module], **settings: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling(input_size=encoder.output_size, **settings)
        self.projection = EmbeddingLayer(
            input_size=2 * encoder.output_size, embed_dim=5, norm_input=True, norm_output=True
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.projection(self.pooling(*self.encoder(x, lengths)))


def _ecapa(**changes: Any) -> ECAPAEncoder:
    sizes: dict = {"channels": 8, "output_size": 6, "scale": 4, "se_size": 3, **changes}
    return ECAPAEncoder(input_size=INPUT_SIZE, **sizes)


def _xvector(**changes: Any) -> XVectorEncoder:
    sizes: dict = {"channels": (4, 5, 6), "kernel_sizes": (5, 3, 1), "dilations": (1, 3, 1)}
    return XVectorEncoder(input_size=INPUT_SIZE, **sizes, **changes)


def _resnet() -> ResNetEncoder:
    return ResNetEncoder(input_size=INPUT_SIZE, channels=2, num_blocks=(1, 2, 1))


ATTENTIVE = {"attention_size": 4}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "ecapa": lambda: _Pooled(_ecapa(), AttentiveStatisticsPooling, **ATTENTIVE),
    "ecapa_reflect": lambda: _Pooled(
        _ecapa(padding="reflect", sum_inputs=False), AttentiveStatisticsPooling, **ATTENTIVE
    ),
    "ecapa_no_context": lambda: _Pooled(
        _ecapa(dilations=(2,)), AttentiveStatisticsPooling, context=False, **ATTENTIVE
    ),
    "xvector": lambda: _Pooled(_xvector(), StatisticsPooling),
    "xvector_reflect": lambda: _Pooled(
        _xvector(padding="reflect", activation="leaky_relu"), StatisticsPooling, correction=1
    ),
    "resnet": lambda: _Pooled(_resnet(), StatisticsPooling),
}


@pytest.fixture(params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    model: nn.Module = MODELS[request.param]()
    with torch.no_grad():  # biases and norms start at 0 and 1: faults would hide behind them
        for value in model.state_dict().values():
            value.add_(0.2 * torch.rand_like(value))
    return model


def _items(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, length, INPUT_SIZE, generator=generator) for length in lengths]


def _batch(items: list[Tensor], extra: int, garbage: float) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([item.shape[1] for item in items])
    x = torch.full((len(items), int(lengths.max()) + extra, INPUT_SIZE), garbage)
    for row, item in zip(x, items):
        row[: item.shape[1]] = item[0]
    return x, lengths


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("extra", [0, 7])
def test_padding_changes_nothing(model: nn.Module, extra: int, garbage: float) -> None:
    """Each item of a padded batch gives what it gives alone; gradients too."""
    model.eval()
    items = _items()
    alone = torch.cat([model(item, torch.tensor([item.shape[1]])) for item in items])
    x, lengths = _batch(items, extra, garbage)
    x.requires_grad_()
    got = model(x, lengths)
    torch.testing.assert_close(got, alone, atol=1e-4, rtol=1e-4)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(got.square().sum(), [x, *parameters])
    for ours, want in zip(grads[1:], torch.autograd.grad(alone.square().sum(), parameters)):
        torch.testing.assert_close(ours, want, atol=2e-3, rtol=1e-3)
    assert (grads[0][~length_mask(lengths, x.shape[1])] == 0).all()


def test_padding_changes_nothing_in_training(model: nn.Module) -> None:
    """The batch's statistics are those of its valid frames, and so are the running ones."""
    items = [item[:, :12] for item in _items((12, 12, 12))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    want = model(torch.cat(items), torch.full((3,), 12))
    after = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(before)
    got = model(*_batch(items, 5, float("nan")))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, after[name], atol=1e-5, rtol=1e-4)
    assert not torch.equal(
        after["encoder." + _a_running_mean(model)], before["encoder." + _a_running_mean(model)]
    )


def _a_running_mean(model: nn.Module) -> str:
    return next(name for name, _ in model.encoder.named_buffers() if name.endswith("mean"))


def test_two_batches_before_one_gradient(model: nn.Module) -> None:
    """One without padding and one with it, which go through other kernels of the norms."""
    items = _items((9, 9, 6))
    losses = [model(*_batch(items[:2], 0, 0.0)), model(*_batch(items, 0, 0.0))]
    torch.cat(losses).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_an_item_without_frames_is_finite_and_disturbs_nobody(
    model: nn.Module, training: bool
) -> None:
    x = torch.randn(3, 11, INPUT_SIZE)
    want = model.train(training)(x[:2], torch.tensor([11, 7]))
    y = x.clone()
    y[2] = float("nan")
    y.requires_grad_()
    got = (
        model.encoder(y, torch.tensor([11, 7, 0]))
        if training
        else model(y, torch.tensor([11, 7, 0]))
    )
    if training:  # an embedding of nothing is part of a batch's statistics of embeddings
        assert got.lengths[2] == 0
        got = model.pooling(*got)
        want = model.pooling(*model.encoder(x[:2], torch.tensor([11, 7])))
    torch.testing.assert_close(got[:2], want, atol=1e-4, rtol=1e-4)
    assert got.isfinite().all()
    assert torch.autograd.grad(got.sum(), y)[0].isfinite().all()


def test_bfloat16_autocast_trains(model: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(*_batch(_items(), 2, float("nan")))
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_encoders_say_their_frames_and_sizes(model: nn.Module) -> None:
    encoder = model.encoder.eval()
    for frames in range(1, 30):
        out, lengths = encoder(torch.randn(1, frames, INPUT_SIZE), torch.tensor([frames]))
        assert out.shape == (1, int(lengths), encoder.output_size)
        assert torch.equal(encoder.num_frames(torch.tensor([frames])), lengths)


def _size(*modules: nn.Module) -> float:
    """Give millions of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


@pytest.mark.parametrize(("channels", "published"), [(512, 6.2), (1024, 14.7)])
def test_ecapa_has_the_published_size(channels: int, published: float) -> None:
    """Desplanques et al. 2020, table 1."""
    size = _size(
        ECAPAEncoder(channels=channels),
        AttentiveStatisticsPooling(input_size=1536),
        EmbeddingLayer(input_size=3072, embed_dim=192, norm_input=True, norm_output=True),
    )
    assert round(size, 1) == published


def test_xvector_has_the_published_size() -> None:
    """Snyder et al. 2018, section 2.2: 4.2 million parameters up to segment 6."""
    assert round(_size(XVectorEncoder(), EmbeddingLayer(input_size=3000, embed_dim=512)), 1) == 4.2


def test_resnet_has_the_published_size() -> None:
    """6.6 million with 80 bins and 256 dimensions (WeSpeaker's table: 6.63)."""
    encoder = ResNetEncoder()
    assert encoder.output_size == 2560
    assert round(_size(encoder, EmbeddingLayer(input_size=5120, embed_dim=256)), 2) == 6.63


@pytest.mark.parametrize("frames", [4, 5, 9])
def test_mirroring_equals_torch(frames: int) -> None:
    x = torch.randn(2, frames, 3)
    want = nn.functional.pad(x.transpose(1, 2), (3, 3), mode="reflect").transpose(1, 2)
    assert torch.equal(mirror_frames(x, 3), want)
    assert torch.equal(mirror_frames(x, 3, torch.full((2,), frames)), want)


def test_mirroring_is_repeated_where_an_item_is_shorter_than_the_reach() -> None:
    x = torch.tensor([[[1.0], [2.0]], [[1.0], [9.0]]])
    out = mirror_frames(x, 3, torch.tensor([2, 1])).squeeze(2)
    assert out[0].tolist() == [2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]
    assert out[1].tolist() == [1.0] * 8


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_frame_conv_equals_conv1d(padding: Any) -> None:
    conv = nn.Conv1d(4, 5, 3, dilation=2, padding=2, padding_mode=padding)
    x = torch.randn(2, 12, 4)
    got = frame_conv(x, conv.weight, conv.bias, dilation=2, padding=padding)
    torch.testing.assert_close(got, conv(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_without_padding_is_torchs(training: bool) -> None:
    ours, theirs = FrameBatchNorm(num_features=4), nn.BatchNorm1d(4)
    x = 3.0 * torch.randn(2, 9, 4) + 1.0
    for _ in range(2):
        got = ours.train(training)(x)
        want = theirs.train(training)(x.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert FrameBatchNorm(num_features=4)(torch.randn(1, 1, 4)).abs().max() < 1e-4


def test_statistics_are_those_of_torch() -> None:
    x = torch.randn(2, 9, 4)
    pooled = StatisticsPooling(input_size=4, correction=1)(x, torch.tensor([9, 5]))
    for row, item in zip(pooled, (x[0], x[1, :5])):
        torch.testing.assert_close(row, torch.cat([item.mean(0), item.std(0)]))


def test_attentive_statistics_by_their_definition() -> None:
    """Equations 1 to 4 of the paper, written out for each item; and the gradient."""
    pool = AttentiveStatisticsPooling(input_size=3, attention_size=4).eval()
    x = torch.randn(2, 7, 3, requires_grad=True)
    got = pool(x, torch.tensor([7, 4]))
    rows = []
    for item in (x[0], x[1, :4]):
        context = torch.cat([item.mean(0), item.std(0, correction=0)]).expand(len(item), -1)
        hidden = pool.hidden(torch.cat([item, context], dim=1)).relu()
        weights = pool.score(pool.norm(hidden[None])[0].tanh()).softmax(0)
        mean = (weights * item).sum(0)
        rows.append(torch.cat([mean, (weights * (item - mean) ** 2).sum(0).sqrt()]))
    want = torch.stack(rows)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    cotangent = torch.randn_like(got)
    grads = [torch.autograd.grad((y * cotangent).sum(), x)[0] for y in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_a_block_sees_the_sum_of_what_is_before_it() -> None:
    encoder = _ecapa(sum_inputs=True).eval()
    x = torch.randn(1, 9, INPUT_SIZE)
    a = encoder.first(x)
    b = encoder.blocks[0](a)
    c = encoder.blocks[1](a + b)
    d = encoder.blocks[2](a + b + c)
    want = encoder.aggregate(torch.cat([b, c, d], dim=2))
    torch.testing.assert_close(encoder(x, torch.tensor([9])).data, want)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TDNNLayer(input_size=2, output_size=2, kernel_size=4), "odd.*4"),
        (lambda: TDNNLayer(input_size=2, output_size=2, padding="same"), "'same'"),  # type: ignore
        (lambda: TDNNLayer(input_size=2, output_size=2, activation="elu"), "'elu'"),  # type: ignore
        (lambda: Res2NetLayer(num_features=10, scale=4), "10 features.*scale=4"),
        (lambda: ECAPAEncoder(dilations=()), "dilations is empty"),
        (lambda: XVectorEncoder(channels=(2,)), "same layers"),
        (lambda: ResNetEncoder(num_blocks=(2, 0)), r"\[2, 0\]"),
    ],
)
def test_sizes_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
