"""Every module keeps its constructor's arguments as attributes, so that a folder can rebuild it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
from torch import nn

import speechkit.nn
from speechkit.nn.contexts import MeanContext
from speechkit.nn.convnext import ConvNeXtEncoder
from speechkit.nn.discriminators_scale import ScaleDiscriminator
from speechkit.nn.discriminators_vocoder import PeriodDiscriminator
from speechkit.nn.dual_path import DualPathBlock
from speechkit.nn.dual_path_blocks import RNNBlock
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.seanet_conv import SEANetConv, SEANetTransposedConv

_BLOCK: dict[str, Any] = {
    "embed_dim": 12,
    "num_heads": 3,
    "feedforward_size": 20,
    "dropout": 0.25,
}
_CONV: dict[str, Any] = {"channels": (3, 4), "strides": (2, 3), "kernel_size": 5, "dropout": 0.25}
_ATTENTION: dict[str, Any] = {
    "memory_size": 6,
    "query_size": 7,
    "attention_size": 4,
    "value_size": 5,
}

_TOKENS: dict[str, Any] = {
    **_BLOCK,
    "vocab_size": 7,
    "num_layers": 2,
    "pre_norm": False,
    "activation": "gelu",
    "tie_embeddings": True,
}

_FILTERS: dict[str, Any] = {"num_filters": 6, "kernel_size": 5, "stride": 3}
_NORM: dict[str, Any] = {"num_features": 4, "eps": 1e-3}
_TCN: dict[str, Any] = {"hidden_size": 5, "skip_size": 3, "kernel_size": 5, "causal": True}
_MASKER: dict[str, Any] = {"num_features": 6, "num_sources": 3, "checkpointing": True}
_DUAL_PATH: dict[str, Any] = {
    **_MASKER,
    "bottleneck_size": 12,
    "chunk_size": 8,
    "norm": "frame",
    "bottleneck_bias": False,
    "mask": "sigmoid",
}
_CELL: dict[str, Any] = {
    "hidden_size": 5,
    "num_layers": 2,
    "cell": "gru",
    "bidirectional": False,
    "dropout": 0.25,
}
_LAYERS: dict[str, Any] = {
    "num_heads": 3,
    "feedforward_size": 20,
    "dropout": 0.25,
    "pre_norm": False,
    "activation": "gelu",
    "positions": False,
    "linear": True,
}


def _block() -> DualPathBlock:
    return DualPathBlock(
        intra=RNNBlock(embed_dim=12, **_CELL), inter=RNNBlock(embed_dim=12, **_CELL)
    )


_TDNN: dict[str, Any] = {"kernel_size": 5, "dilation": 2, "padding": "reflect"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "FilterbankEncoder": {**_FILTERS, "activation": "none"},
    "FilterbankDecoder": _FILTERS,
    "GlobalLayerNorm": _NORM,
    "CumulativeLayerNorm": _NORM,
    "FrameLayerNorm": _NORM,
    "PReLU": {},
    "TCNBlock": {**_TCN, "num_features": 4, "dilation": 2},
    "ConvTasNetMasker": {
        **_MASKER,
        **_TCN,
        "bottleneck_size": 4,
        "num_blocks": 2,
        "num_repeats": 1,
        "mask": "softmax",
    },
    "RNNBlock": {"embed_dim": 12, **_CELL},
    "TransformerBlock": {"embed_dim": 12, "num_layers": 2, **_LAYERS},
    "DualPathBlock": {
        "intra": RNNBlock(embed_dim=12, **_CELL),
        "inter": RNNBlock(embed_dim=12, **_CELL),
        "norm": "frame",
        "skip_intra": False,
    },
    "DualPathMasker": {
        **_DUAL_PATH,
        "blocks": [_block()],
        "margin": "chunk",
        "global_positions": True,
    },
    "DualPathRNNMasker": {**_DUAL_PATH, **_CELL, "num_blocks": 2, "margin": "half"},
    "SepFormerMasker": {
        **_DUAL_PATH,
        **_LAYERS,
        "num_blocks": 2,
        "intra_layers": 2,
        "inter_layers": 1,
        "skip_intra": False,
        "global_positions": True,
    },
    "LightSepFormerMasker": {
        **_MASKER,
        "chunk_size": 8,
        "num_blocks": 3,
        "num_layers": 2,
        "num_heads": 3,
        "feedforward_size": 20,
        "dropout": 0.25,
        "mask": "sigmoid",
    },
    "ConvBlock": {
        "input_size": 8,
        "output_size": 5,
        "kernel_size": 5,
        "stride": 3,
        "dropout": 0.25,
    },
    "ConvEncoder": {"input_size": 8, **_CONV},
    "ConvSubsampling": {"input_size": 8, "output_size": 6, "norm": True, **_CONV},
    "MaskedBatchNorm": {"num_features": 4, "eps": 1e-3, "momentum": 0.2},
    "Dropout": {"p": 0.25},
    "RecurrentEncoder": {
        "input_size": 8,
        "hidden_size": 5,
        "num_layers": 2,
        "cell": "gru",
        "bidirectional": False,
        "dropout": 0.25,
        "projection_size": 3,
    },
    "MultiHeadAttention": {"embed_dim": 12, "num_heads": 3, "dropout": 0.25, "bias": False},
    "RelPosMultiHeadAttention": {"embed_dim": 12, "num_heads": 3, "dropout": 0.25, "bias": False},
    "FeedForward": {"embed_dim": 12, "hidden_size": 20, "dropout": 0.25, "activation": "gelu"},
    "TransformerLayer": {**_BLOCK, "pre_norm": False, "activation": "gelu"},
    "TransformerDecoderLayer": {
        **_BLOCK,
        "pre_norm": False,
        "activation": "gelu",
        "cross_attention": False,
    },
    "CausalTransformer": _TOKENS,
    "TransformerDecoder": {**_TOKENS, "memory_size": 8},
    "TransformerEncoder": {
        **_BLOCK,
        "input_size": 8,
        "num_layers": 2,
        "pre_norm": False,
        "activation": "gelu",
        "chunk_size": 4,
        "left_chunks": 2,
        "dynamic_chunks": True,
    },
    "ConformerConv": {"embed_dim": 12, "kernel_size": 5, "norm": "batch", "causal": True},
    "ConformerLayer": {
        **_BLOCK,
        "kernel_size": 5,
        "norm": "batch",
        "bias": False,
        "causal": True,
    },
    "ConformerEncoder": {
        **_BLOCK,
        "input_size": 8,
        "num_layers": 2,
        "kernel_size": 5,
        "norm": "batch",
        "bias": False,
        "causal": True,
        "chunk_size": 4,
        "left_chunks": 2,
        "dynamic_chunks": True,
    },
    "PyramidalEncoder": {
        "input_size": 8,
        "hidden_size": 5,
        "num_layers": 2,
        "cell": "gru",
        "dropout": 0.25,
    },
    "DotContext": _ATTENTION,
    "AdditiveContext": _ATTENTION,
    "LocationContext": {
        **_ATTENTION,
        "channels": 4,
        "kernel_size": 7,
        "sharpening": 1.5,
        "cumulative": True,
    },
    "MeanContext": {"memory_size": 6, "value_size": 5},
    "RNNDecoder": {
        "vocab_size": 9,
        "memory_size": 6,
        "context": MeanContext(memory_size=6),
        "embed_dim": 3,
        "hidden_size": 7,
        "num_layers": 2,
        "cell": "lstm",
        "dropout": 0.25,
        "scheduled_sampling": 0.5,
    },
    "Stack": {"layers": [RecurrentEncoder(input_size=8, hidden_size=5, num_layers=1)]},
}


_NET: dict[str, Any] = {"causal": False, "norm": "time_group", "pad_mode": "reflect"}
_SEANET: dict[str, Any] = {
    "channels": 2, "num_filters": 4, "latent_size": 6, "strides": (2, 3), "residual_layers": 2,
    "dilation_base": 3, "kernel_size": 5, "last_kernel_size": 3, "residual_kernel_size": 5,
    "compress": 4, "lstm_layers": 1, "activation": "snake", **_NET,
}  # fmt: skip
_BOOK: dict[str, Any] = {
    "latent_size": 6, "codebook_size": 8, "codebook_dim": 3, "cosine": True, "decay": 0.9,
    "threshold_dead": 1.0,
}  # fmt: skip
_STAGE: dict[str, Any] = {"units": nn.ModuleList(), "activation": nn.ELU()}
_DOWN = SEANetConv(in_channels=2, out_channels=4, kernel_size=4, stride=2)
_UP = SEANetTransposedConv(in_channels=4, out_channels=2, stride=3)

ARGUMENTS |= {
    "SEANetEncoder": _SEANET,
    "SEANetDecoder": {**_SEANET, "istft_stages": 1},
    "SEANetConv": {
        "in_channels": 2, "out_channels": 3, "kernel_size": 4, "stride": 2, "dilation": 1, **_NET,
    },
    "SEANetTransposedConv": {
        "in_channels": 4, "out_channels": 2, "stride": 3, "causal": False, "norm": "none",
    },
    "TimeGroupNorm": {"num_features": 4, "eps": 1e-3},
    "Snake": {"channels": 3},
    "ResidualUnit": {
        "channels": 8, "kernel_size": 5, "dilation": 3, "compress": 4, "activation": "snake",
        **_NET,
    },
    "SkipLSTM": {"channels": 4, "num_layers": 1},
    "EncoderStage": {**_STAGE, "resample": _DOWN},
    "DecoderStage": {**_STAGE, "resample": _UP},
    "InverseSTFTHead": {
        "in_channels": 3, "channels": 2, "hop_length": 4, "kernel_size": 5, **_NET,
    },
    "VectorQuantizer": _BOOK,
    "ResidualVectorQuantizer": {
        **_BOOK, "num_codebooks": 2, "kmeans_iterations": 3, "dropout": 0.5,
    },
    "FiniteScalarQuantizer": {"latent_size": 6, "levels": (4, 3), "num_codebooks": 2},
}  # fmt: skip

_SPECTRUM: dict[str, Any] = {
    "channels": 2, "num_filters": 3, "kernel_size": (3, 5), "stride": 3, "negative_slope": 0.3,
}  # fmt: skip
_PERIOD: dict[str, Any] = {
    "channels": 2, "widths": (4, 5), "kernel_size": 3, "stride": 2, "negative_slope": 0.3,
}  # fmt: skip

ARGUMENTS |= {
    "SpectrogramDiscriminator": {
        **_SPECTRUM, "n_fft": 64, "hop_length": 12, "win_length": 50, "dilations": (1, 2),
        "representation": "magnitude", "normalize": False, "pad_mode": "reflect",
        "bands": (0.0, 0.5, 1.0),
    },
    "MultiScaleSTFTDiscriminator": {**_SPECTRUM, "windows": (64, 32), "dilations": (1, 2)},
    "PeriodDiscriminator": {**_PERIOD, "period": 3},
    "MultiPeriodDiscriminator": {**_PERIOD, "periods": (2, 3)},
    "MultiResolutionDiscriminator": {
        "resolutions": ((64, 12, 50),), "channels": 2, "num_filters": 3,
        "representation": "complex", "bands": (0.0, 0.5, 1.0), "negative_slope": 0.3,
    },
    "Discriminators": {"parts": [PeriodDiscriminator(period=3, widths=(4,))]},
    "FrameBatchNorm": {"num_features": 4, "eps": 1e-3, "momentum": 0.2},
    "TDNNLayer": {**_TDNN, "input_size": 3, "output_size": 4, "activation": "leaky_relu"},
    "StatisticsPooling": {"input_size": 3, "correction": 1, "eps": 1e-8},
    "AttentiveStatisticsPooling": {
        "input_size": 3, "attention_size": 4, "context": False, "eps": 1e-8,
    },
    "EmbeddingLayer": {"input_size": 4, "embed_dim": 3, "norm_input": True, "norm_output": True},
    "Res2NetLayer": {**_TDNN, "num_features": 6, "scale": 3},
    "SqueezeExcitation": {"num_features": 4, "hidden_size": 3},
    "SERes2NetBlock": {**_TDNN, "num_features": 6, "scale": 3, "se_size": 4},
    "ECAPAEncoder": {
        "input_size": 5, "channels": 6, "output_size": 7, "kernel_size": 5, "dilations": (1, 2),
        "first_kernel_size": 3, "scale": 3, "se_size": 4, "padding": "reflect",
        "sum_inputs": False,
    },
    "XVectorEncoder": {
        "input_size": 5, "channels": (6, 7), "kernel_sizes": (3, 1), "dilations": (2, 1),
        "padding": "reflect", "activation": "leaky_relu",
    },
    "ResidualBlock": {"in_channels": 2, "out_channels": 3, "stride": 2},
    "ResNetEncoder": {"input_size": 9, "channels": 2, "num_blocks": (1, 2)},
    "Conv2dEncoder": {
        "input_size": 16, "channels": (3, 4), "pools": (2, 4), "kernel_size": 5,
        "pool_kind": "mean", "dropout": 0.25,
    },
    "CNN14Block": {"in_channels": 2, "out_channels": 3, "pool": 3},
    "CNN14": {"input_size": 16, "channels": (3, 4, 5), "dropout": 0.25},
    "MaxMeanPooling": {"input_size": 5},
    "AudioSpectrogramTransformer": {
        "input_size": 16, "max_frames": 40, "patch_size": 6, "stride": 4, "embed_dim": 12,
        "num_heads": 3, "num_layers": 2, "feedforward_size": 20, "dropout": 0.25,
    },
    "TokenPooling": {"input_size": 5, "num_tokens": 1},
}  # fmt: skip

ARGUMENTS |= {
    "ConvNeXtBlock": {
        "embed_dim": 4, "hidden_size": 6, "kernel_size": 5, "dropout": 0.25, "layer_scale": 0.5,
    },
    "ConvNeXtEncoder": {
        "input_size": 3, "embed_dim": 4, "num_layers": 2, "hidden_size": 6, "kernel_size": 5,
        "dropout": 0.25,
    },
    "Aligner": {
        "symbol_size": 3, "num_mels": 4, "attention_size": 5, "kernel_size": 3, "prior_scale": 0.5,
    },
    "ScaledPositions": {"embed_dim": 4},
    "SymbolEncoder": {
        **_BLOCK, "num_symbols": 9, "num_layers": 2, "num_convs": 1, "kernel_size": 3,
        "conv_dropout": 0.1, "pre_norm": False,
    },
}  # fmt: skip
ARGUMENTS |= {
    "LocationAttention": {
        "memory_size": 5, "query_size": 6, "attention_size": 4, "channels": 3, "kernel_size": 5,
    },
    "NormedConv": {"input_size": 3, "output_size": 4, "kernel_size": 5, "gain": "tanh"},
    "TacotronEncoder": {
        "num_symbols": 7, "embed_dim": 5, "output_size": 6, "num_convs": 2, "kernel_size": 3,
        "dropout": 0.25,
    },
    "Prenet": {"input_size": 4, "sizes": (5, 3), "dropout": 0.25},
    "PostNet": {"num_mels": 4, "size": 5, "num_convs": 2, "kernel_size": 3, "dropout": 0.25},
    "TacotronDecoder": {
        "num_mels": 4, "memory_size": 6, "reduction_factor": 2, "prenet_sizes": (5, 3),
        "prenet_dropout": 0.25, "attention_size": 4, "location_channels": 3,
        "location_kernel": 5, "attention_lstm_size": 7, "decoder_lstm_size": 8,
        "attention_dropout": 0.2, "decoder_dropout": 0.3,
    },
}  # fmt: skip

_LAYERS = ((4, 15, 1, 1), (8, 41, 4, 2))
ARGUMENTS |= {
    "ScaleDiscriminator": {"layers": _LAYERS, "norm": "spectral", "negative_slope": 0.2},
    "MultiScaleDiscriminator": {"num_scales": 2, "layers": _LAYERS, "negative_slope": 0.2},
    "CombinedDiscriminator": {"parts": [ScaleDiscriminator(layers=_LAYERS)]},
    "HiFiGANBlock": {
        "channels": 4, "kernel_size": 5, "dilations": (1, 3), "kind": "2", "norm": "none",
        "pad_mode": "reflect", "weight_std": None,
    },
    "HiFiGANGenerator": {
        "num_mels": 5, "channels": 16, "upsample_rates": (4, 2), "upsample_kernels": (8, 4),
        "block_kind": "2", "block_kernels": (3,), "block_dilations": ((1, 2),), "istft_hop": 4,
        "norm": "none", "pad_mode": "reflect", "weight_std": None,
    },
    "SourceFilterGenerator": {
        "sample_rate": 8000, "num_mels": 5, "hop_length": 10, "num_bands": 9, "n_fft": 64,
        "encoder": ConvNeXtEncoder(input_size=5, embed_dim=4, num_layers=1, hidden_size=6),
    },
}  # fmt: skip


def _classes() -> list[type[nn.Module]]:
    found = []
    for info in pkgutil.iter_modules(speechkit.nn.__path__):
        module = importlib.import_module(f"speechkit.nn.{info.name}")
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and issubclass(value, nn.Module) and not name.startswith("_"):
                found.append(value)
    return found


@pytest.mark.parametrize("cls", _classes(), ids=lambda cls: cls.__name__)
def test_constructor_arguments_are_attributes(cls: type[nn.Module]) -> None:
    assert cls.__name__ in ARGUMENTS, f"give {cls.__name__} an entry in ARGUMENTS of this test"
    given = ARGUMENTS[cls.__name__]
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    assert parameters.keys() == given.keys(), "name every argument, to see that none is lost"
    kinds = {p.kind for p in parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    module = cls(**given)
    for name, value in given.items():
        kept = getattr(module, name)
        if isinstance(value, list | tuple):
            kept, value = list(kept), list(value)
        assert kept == value, name
    rebuilt = cls(**{name: getattr(module, name) for name in given})
    assert [p.shape for p in rebuilt.parameters()] == [p.shape for p in module.parameters()]
