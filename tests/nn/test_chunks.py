"""Chunked and causal encoders: streamed outputs are the offline ones, and the future is unseen."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from speechkit.nn.chunks import chunk_mask, draw_chunk_size
from speechkit.nn.conformer import ConformerConv, ConformerEncoder
from speechkit.nn.conv import ConvBlock, ConvEncoder, ConvSubsampling
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack
from speechkit.nn.streaming import Stream, open_stream
from speechkit.nn.transformer import TransformerEncoder

INPUT_SIZE = 8
_SMALL: dict[str, Any] = {"embed_dim": 12, "num_heads": 3, "num_layers": 3, "feedforward_size": 20}


def _transformer(**changes: Any) -> nn.Module:
    sizes = {"input_size": INPUT_SIZE, "chunk_size": 4, "left_chunks": 2, **_SMALL, **changes}
    return TransformerEncoder(**sizes)


def _conformer(**changes: Any) -> nn.Module:
    sizes = {"input_size": INPUT_SIZE, "chunk_size": 4, "left_chunks": 2, "kernel_size": 5}
    return ConformerEncoder(**{**sizes, "causal": True, **_SMALL, **changes})


def _subsampling(**changes: Any) -> nn.Module:
    sizes: dict = {"channels": (3, 4), "strides": (2, 2), "output_size": 12, **changes}
    return ConvSubsampling(input_size=INPUT_SIZE, **sizes)


def _lstm(**changes: Any) -> nn.Module:
    sizes = {"input_size": INPUT_SIZE, "hidden_size": 6, "num_layers": 2, "bidirectional": False}
    return RecurrentEncoder(**{**sizes, **changes})


def _conv(**changes: Any) -> nn.Module:
    return ConvEncoder(
        input_size=INPUT_SIZE, channels=(10, 12), strides=(2, 3), kernel_size=5, **changes
    )


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "transformer": _transformer,
    "transformer_post_norm": lambda: _transformer(pre_norm=False, activation="gelu"),
    "transformer_own_chunk": lambda: _transformer(left_chunks=0, chunk_size=5),
    "transformer_all_chunks": lambda: _transformer(left_chunks=None),
    "transformer_one_frame": lambda: _transformer(chunk_size=1, left_chunks=6),
    "conformer": _conformer,
    "conformer_batch_norm": lambda: _conformer(norm="batch"),
    "conformer_own_chunk": lambda: _conformer(left_chunks=0, kernel_size=1),
    "conformer_all_chunks": lambda: _conformer(left_chunks=None, bias=False),
    "conformer_one_frame": lambda: _conformer(chunk_size=1, left_chunks=6),
    "conformer_wide_kernel": lambda: _conformer(kernel_size=31, chunk_size=3),
    "conv_block": lambda: ConvBlock(input_size=INPUT_SIZE, output_size=5, kernel_size=3, stride=5),
    "conv": _conv,
    "subsampling": _subsampling,
    "subsampling_norm": lambda: _subsampling(norm=True, strides=(3, 1), kernel_size=5),
    "subsampling_wide_stride": lambda: _subsampling(strides=(4, 2), kernel_size=1),
    "lstm": _lstm,
    "lstm_projected": lambda: _lstm(projection_size=5),
    "gru": lambda: _lstm(cell="gru"),
    "subsampled_conformer": lambda: Stack([_subsampling(), _conformer(input_size=12)]),
    "subsampled_transformer": lambda: Stack([_subsampling(), _transformer(input_size=12)]),
    "cnn_lstm": lambda: Stack([_conv(), _lstm(input_size=12)]),
}


def _make(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = ENCODERS[name]()
    with torch.no_grad():  # biases and norms start at 0 and 1: faults would hide behind them
        for tensor in [*model.parameters()]:
            tensor.add_(0.1 * torch.randn_like(tensor))
        for buffer in model.buffers():
            buffer.add_(torch.rand_like(buffer))
    return model.eval()


def _offline(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x, torch.full((len(x),), x.shape[1])).data


def _streamed(model: nn.Module, x: Tensor, cuts: list[int]) -> tuple[list[Tensor], Stream]:
    stream = open_stream(model, batch_size=len(x))
    places = [0, *sorted(cuts), x.shape[1]]
    parts = [stream.push(x[:, a:b]) for a, b in itertools.pairwise(places)]
    return [*parts, stream.finish()], stream


# ---------------------------------------------------------------- streamed equals offline


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=8)
@given(data=st.data())
def test_streamed_equals_offline_however_it_is_cut(name: str, data: st.DataObject) -> None:
    model = _make(name)
    size = data.draw(st.integers(0, 45), label="frames")
    cuts = data.draw(st.lists(st.integers(0, size), max_size=9), label="cuts")
    x = torch.randn(2, size, INPUT_SIZE, generator=torch.Generator().manual_seed(size))
    joined = torch.cat(_streamed(model, x, cuts)[0], dim=1)
    expected = int(model.num_frames(torch.tensor([size])))  # type: ignore[operator]
    assert joined.shape == (2, expected, model.output_size)
    if size:
        torch.testing.assert_close(joined, _offline(model, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_each_frame_comes_when_its_lookahead_is_there_and_never_changes(name: str) -> None:
    """The latency that is stated is the latency: no frame later, none that the future changes."""
    model = _make(name)
    x = torch.randn(1, 64, INPUT_SIZE)
    stream = open_stream(model)
    whole = _offline(model, x)
    given_frames, waited = 0, False
    for size in range(1, 65):
        given_frames += stream.push(x[:, size - 1 : size]).shape[1]
        known = torch.arange(whole.shape[1]) * stream.stride + stream.lookahead < size
        if "former" in name:  # a chunk's first frames wait longest, the others less
            assert given_frames >= int(known.sum())
        else:
            assert given_frames == int(known.sum())
        waited = waited or given_frames < -(-size // stream.stride)
        if size % 5:  # all pushes count; to compare after each would take long
            continue
        other = x.clone()
        other[:, size:] = 50.0
        changed = _offline(model, other)[:, :given_frames]
        torch.testing.assert_close(changed, whole[:, :given_frames], atol=1e-5, rtol=1e-5)
    assert given_frames > 0
    assert waited == (stream.lookahead > 0)


@pytest.mark.parametrize("name", [name for name in ENCODERS if "all_chunks" not in name])
def test_state_does_not_grow(name: str) -> None:
    sizes = []
    stream = open_stream(_make(name))
    for index in range(8):
        stream.push(torch.randn(1, 60, INPUT_SIZE))
        if index in (3, 7):
            sizes.append(_state_bytes(stream))
    assert sizes[0] == sizes[1]


def test_state_grows_where_all_chunks_are_seen() -> None:
    stream = open_stream(_make("transformer_all_chunks"))
    stream.push(torch.randn(1, 24, INPUT_SIZE))
    before = _state_bytes(stream)
    stream.push(torch.randn(1, 240, INPUT_SIZE))
    assert _state_bytes(stream) > 5 * before


def test_a_long_piece_leaves_no_trace_in_memory() -> None:
    for name in ("subsampled_conformer", "cnn_lstm"):
        stream = open_stream(_make(name))
        stream.push(torch.randn(1, 7, INPUT_SIZE))
        stream.push(torch.randn(1, 1000, INPUT_SIZE))
        assert _state_bytes(stream) < 1000 * INPUT_SIZE * 4 / 2


def _state_bytes(value: Any) -> int:
    """Bytes that a stream keeps alive, those behind views included; modules are not its own."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, nn.Module) or not (hasattr(value, "__dict__") or _is_sequence(value)):
        return 0
    parts = value if _is_sequence(value) else vars(value).values()
    return sum(_state_bytes(part) for part in parts)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("left", [None, 0, 1, 3])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_mask_is_own_chunk_and_those_before(chunk: int, left: int | None) -> None:
    mask = chunk_mask(11, chunk, left)
    for query in range(11):
        for key in range(11):
            distance = query // chunk - key // chunk
            assert mask[query, key] == (0 <= distance <= (99 if left is None else left))


@pytest.mark.parametrize("make", [_transformer, _conformer])
def test_one_chunk_for_all_is_no_chunk(make: Callable[..., nn.Module]) -> None:
    chunked, free = make(chunk_size=20), make(chunk_size=None, left_chunks=None)
    free.load_state_dict(chunked.state_dict())
    x = torch.randn(1, 20, INPUT_SIZE)
    torch.testing.assert_close(_offline(chunked.eval(), x), _offline(free.eval(), x))


@pytest.mark.parametrize("make", [_transformer, _conformer])
def test_padding_changes_nothing_and_a_mask_of_the_caller_counts(
    make: Callable[..., nn.Module],
) -> None:
    model = make().eval()
    x = torch.randn(2, 30, INPUT_SIZE)
    x[1, 6:] = float("nan")
    out = model(x, torch.tensor([30, 6])).data
    torch.testing.assert_close(out[1:, :6], _offline(model, x[1:, :6]), atol=1e-5, rtol=1e-5)
    assert (out[1, 6:] == 0).all()
    mask = torch.eye(30, dtype=torch.bool)
    limited = model(x[:1], torch.tensor([30]), attn_mask=mask).data
    assert not torch.allclose(limited, out[:1])


def test_causal_convolution_looks_back_only() -> None:
    conv = ConformerConv(embed_dim=6, kernel_size=5, causal=True)
    x = torch.randn(1, 12, 6, requires_grad=True)
    conv(x, torch.tensor([12]))[0, 7].sum().backward()
    assert x.grad is not None
    touched = x.grad[0].abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("make", [_transformer, _conformer])
def test_dynamic_chunks_are_drawn_in_training_only(
    make: Callable[..., nn.Module],
) -> None:
    model = make(dynamic_chunks=True, left_chunks=None)
    fixed = make(left_chunks=None)
    fixed.load_state_dict(model.state_dict())
    x, lengths = torch.randn(1, 40, INPUT_SIZE), torch.tensor([40])
    torch.testing.assert_close(_offline(model.eval(), x), _offline(fixed.eval(), x))
    model.train()
    outputs = {round(float(model(x, lengths).data[0, 0, 0].detach()), 4) for _ in range(20)}
    assert len(outputs) > 3
    torch.manual_seed(5)
    first = model(x, lengths).data
    torch.manual_seed(5)
    assert torch.equal(first, model(x, lengths).data), "repeats with torch's generator"
    drawn = {draw_chunk_size() for _ in range(2000)}
    assert drawn == {None, *range(1, 26)}


def test_dynamic_chunks_stream_at_any_size() -> None:
    model = _conformer(dynamic_chunks=True, chunk_size=None, left_chunks=3).eval()
    with pytest.raises(ValueError, match=r"chunk_size=None\) and cannot stream; set encoder.chunk"):
        open_stream(model)
    x = torch.randn(1, 23, INPUT_SIZE)
    for size in (2, 7):
        model.chunk_size = size  # type: ignore[assignment]
        joined = torch.cat(_streamed(model, x, [9])[0], dim=1)
        torch.testing.assert_close(joined, _offline(model, x), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _transformer(chunk_size=None, left_chunks=None), "attends to the whole recording"),
        (lambda: _conformer(chunk_size=None, left_chunks=None), "train one with chunk_size"),
        (lambda: _lstm(bidirectional=True), "train one with bidirectional=False"),
        (lambda: nn.Linear(2, 2), "Linear cannot stream: open_stream knows .*ConvEncoder"),
        (lambda: Stack([_conv(), _lstm(input_size=12, bidirectional=True)]), "bidirectional"),
    ],
)
def test_what_cannot_stream_says_so(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_stream(make().eval())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be at least 1 frame, or None for no chunks: 0"),
        ({"left_chunks": -1}, "left_chunks must be at least 0, or None for all: -1"),
        ({"chunk_size": None}, "left_chunks=2 needs chunks"),
    ],
)
@pytest.mark.parametrize("make", [_transformer, _conformer])
def test_settings_that_make_no_sense(
    make: Callable[..., nn.Module], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_chunks_with_convolutions_that_look_ahead_are_refused() -> None:
    with pytest.raises(ValueError, match="5 frames in 3 layers would look beyond the chunk"):
        _conformer(causal=False)


def test_a_stream_refuses_misuse() -> None:
    model = _transformer()
    with pytest.raises(ValueError, match=r"in training mode.*call .eval\(\) first"):
        open_stream(model)
    stream = open_stream(model.eval())
    with pytest.raises(ValueError, match="opened with batch_size=1, and this piece has 2"):
        stream.push(torch.randn(2, 3, INPUT_SIZE))
    stream.finish()
    with pytest.raises(ValueError, match="the stream is finished"):
        stream.push(torch.randn(1, 3, INPUT_SIZE))
    with pytest.raises(ValueError, match="finished already"):
        stream.finish()
