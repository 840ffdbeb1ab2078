"""Small codecs of every kind with random weights, and recordings."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from speechkit.coding.code_transformer import CodeTransformer
from speechkit.models.codec import Codec
from speechkit.nn.quantize import ResidualVectorQuantizer
from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder

RATE, HOP = 8000, 80


def tiny_codec(
    kind: str = "mono", *, seed: int = 0, lstm_layers: int = 1, rate: int = RATE
) -> Codec:
    """Make a codec: mono (causal), mirror (as published), stereo (of segments), whole."""
    torch.manual_seed(seed)
    causal = kind in ("mono", "mirror")
    sizes: dict[str, Any] = {
        "num_filters": 2,
        "latent_size": 8,
        "lstm_layers": lstm_layers,
        "channels": 2 if kind == "stereo" else 1,
        "causal": causal,
        "norm": "weight" if causal else "time_group",
        "pad_mode": "constant" if kind == "mono" else "reflect",
    }
    codec = Codec(
        sample_rate=rate,
        channels=sizes["channels"],
        encoder=SEANetEncoder(strides=(8, 10), **sizes),
        quantizer=ResidualVectorQuantizer(
            latent_size=8, codebook_size=64, num_codebooks=4, kmeans_iterations=0
        ),
        decoder=SEANetDecoder(strides=(10, 8), **sizes),
        normalize=not causal,
        segment_seconds=1.0 if kind == "stereo" else None,
        overlap=0.04,
    )
    if causal:  # random weights are as loud as what they get: stay below full scale
        convolution: Any = codec.decoder.output.conv
        convolution.weight = 0.05 * convolution.weight.detach()
    return codec.eval()


def tiny_lm(seed: int = 0) -> CodeTransformer:
    torch.manual_seed(seed)
    return CodeTransformer(
        num_codebooks=4, codebook_size=64, embed_dim=8, num_heads=2, ffn_dim=16, num_layers=1
    ).eval()


def recording(seconds: float, channels: int = 1, rate: int = RATE, seed: int = 0) -> Tensor:
    """Noise that rises and falls, of exact 16-bit values: ``(C, T)``."""
    samples = round(seconds * rate)
    noise = torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))
    loudness = 0.2 + 0.15 * torch.sin(torch.arange(samples) * 6 / rate)
    return ((noise * loudness).clamp(-0.99, 0.99) * 32768).round() / 32768


class Pipe(io.RawIOBase):
    """Bytes that come in small parts and cannot be sought in."""

    def __init__(self, data: bytes, part: int = 1000) -> None:
        super().__init__()
        self.stream, self.part = io.BytesIO(data), part

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.stream.read(min(size, self.part) if size >= 0 else self.part)
