"""The encoders that the property tests run over: every one, in several configurations."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.conv import ConvBlock, ConvEncoder, ConvSubsampling
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack
from speechkit.nn.transformer import TransformerEncoder

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
    "transformer": _transformer,
    "transformer_post_norm": lambda: _transformer(pre_norm=False, activation="gelu"),
    "conformer": _conformer,
    "conformer_wide_kernel": lambda: _conformer(kernel_size=31, bias=False),
    "conformer_batch_norm": lambda: _conformer(norm="batch"),
    "conformer_same_size": lambda: _conformer(input_size=INPUT_SIZE, embed_dim=8, num_heads=2),
    "cnn_bilstm": lambda: Stack([_conv(), _recurrent(input_size=12)]),
    "subsampled_conformer": lambda: Stack([_subsampling(), _conformer(input_size=12)]),
    "subsampled_transformer": lambda: Stack([_subsampling(), _transformer(input_size=12)]),
}
"""All have dropout 0: with it, train mode may not depend on padding either."""
