"""What a codec gives, and the checks of what it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.data.errors import DataError
from speechkit.nn.quantize import Quantized
from speechkit.nn.seanet_conv import mask_channels


class Encoded(NamedTuple):
    """What `speechkit.models.codec.Codec.encode` gives.

    Attributes
    ----------
    codes : Tensor
        Shape ``(B, Q, T')``, int64; 0 in the padding.
    lengths : Tensor
        Shape ``(B,)``: valid frames.
    scales : Tensor or None
        Shape ``(B, S)``: the loudness of each segment, where the codec normalises it.
    num_samples : Tensor
        Shape ``(B,)``: valid samples, for decoding to give back as many.
    """

    codes: Tensor
    lengths: Tensor
    scales: Tensor | None
    num_samples: Tensor


class CodecOutput(NamedTuple):
    """What a codec gives in training.

    Attributes
    ----------
    estimate : Tensor
        Shape ``(B, C, T)``: the reconstruction, zero in the padding.
    commitment : Tensor
        Shape ``(B,)``, see `speechkit.nn.quantize.Quantized`.
    codes : Tensor
        Shape ``(B, Q, T')``.
    lengths : Tensor
        Shape ``(B,)``: valid frames of the codes.
    """

    estimate: Tensor
    commitment: Tensor
    codes: Tensor
    lengths: Tensor


def not_quantized(latents: Tensor) -> Quantized:
    """Give latents ``(B, T, D)`` as a quantizer without codebooks does."""
    batch, frames, _ = latents.shape
    codes = torch.zeros(batch, 0, frames, dtype=torch.int64, device=latents.device)
    return Quantized(latents, codes, latents.new_zeros(batch))


def codebooks_in(kbps: float, kbps_per_codebook: float) -> int:
    """Say how many codebooks a rate pays for.

    Examples
    --------
    >>> codebooks_in(6.0, 0.75)
    8
    """
    return math.floor(kbps / kbps_per_codebook + 1e-6)


def served_rates(
    rates_kbps: Sequence[float] | None, kbps_per_codebook: float, num_codebooks: int
) -> list[float]:
    """Check the rates of a codec; by default those of 1, 2, 4, ... codebooks and of all.

    Raises
    ------
    ValueError
        If a rate needs less than one codebook, or more than there are.

    Examples
    --------
    >>> served_rates(None, 0.75, 6)
    [0.75, 1.5, 3.0, 4.5]
    """
    if rates_kbps is None:
        powers = [2**i for i in range(num_codebooks.bit_length())]
        counts = [count for count in powers if count < num_codebooks]
        return [round(count * kbps_per_codebook, 6) for count in [*counts, num_codebooks]]
    bad = [x for x in rates_kbps if not 1 <= codebooks_in(x, kbps_per_codebook) <= num_codebooks]
    if bad or not rates_kbps:
        raise ValueError(
            f"rates_kbps={list(rates_kbps)}: a codebook is worth {kbps_per_codebook:g} kbit/s, and "
            f"there are {num_codebooks} of them, so rates lie between {kbps_per_codebook:g} and "
            f"{num_codebooks * kbps_per_codebook:g}"
        )
    return list(rates_kbps)


def check_waveform(waveform: Tensor, channels: int) -> None:
    """Raise a `DataError` if a waveform is not ``(B, channels, T)``."""
    if waveform.dim() != 3 or waveform.shape[1] != channels:
        raise DataError(
            f"the codec takes waveforms (B, {channels}, T), not {tuple(waveform.shape)}: add the "
            "missing axes, or mix the channels down"
        )


def check_codes(codes: Tensor, num_codebooks: int, codebook_size: int) -> None:
    """Raise a `DataError` if codes are not ``(B, Q, T)`` of these codebooks; -1 is no code."""
    if codes.dim() != 3 or not 1 <= codes.shape[1] <= num_codebooks:
        raise DataError(
            f"codes must be (B, Q, T) with 1 to {num_codebooks} codebooks, not {tuple(codes.shape)}"
        )
    if codes.numel() == 0:
        return
    lowest, highest = int(codes.min()), int(codes.max())
    if lowest < -1 or highest >= codebook_size:
        raise DataError(
            f"codes lie between {lowest} and {highest}; the codebooks have 0 to {codebook_size - 1}"
        )


def check_parts(channels: int, encoder: Any, quantizer: Any, decoder: Any) -> None:
    """Raise a `ValueError` if a codec's parts do not fit together."""
    for name in ("channels", "hop_length", "latent_size"):
        sizes = {"encoder": getattr(encoder, name), "decoder": getattr(decoder, name)}
        if name == "channels":
            sizes["codec"] = channels
        if name == "latent_size":
            sizes["quantizer"] = quantizer.latent_size
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the parts disagree about {name}: {sizes}")


def full_lengths(lengths: Tensor | None, x: Tensor) -> Tensor:
    """Give the lengths ``(B,)`` of a batch whose last axis is time; all of it by default."""
    if lengths is not None:
        return lengths
    return torch.full((x.shape[0],), x.shape[2], device=x.device)


def loudness(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Give the root mean square of each item's mono mix, ``(B, 1, 1)``, a little above 0.

    Examples
    --------
    >>> float(loudness(torch.tensor([[[3.0, -3.0, 9.0], [1.0, -1.0, 9.0]]]), torch.tensor([2])))
    2.0
    """
    mono = mask_channels(x.mean(dim=1, keepdim=True), lengths)
    power = mono.square().sum(dim=2, keepdim=True)
    if lengths is None:
        return (power / max(x.shape[2], 1)).sqrt() + 1e-8
    return (power / lengths.clamp(min=1).view(-1, 1, 1)).sqrt() + 1e-8


def pays_in_blocks(network: nn.Module, lengths: Tensor | None, x: Tensor) -> bool:
    """Say whether a network can go through recordings in blocks, and is faster so: on a CPU."""
    return (
        bool(getattr(network, "causal", False))
        and lengths is None
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )
