"""Causal SEANets piece by piece, with what a piece needs of those before it.

Whatever the sizes of the pieces, the outputs joined are the network's output for the joined input
(to rounding). `encode_blocks` and `decode_blocks` use the same for whole recordings: each stage
goes through its input in blocks that stay in a CPU's cache, and memory does not grow with the
recording.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder
from speechkit.nn.seanet_stream_parts import (
    ActivationStream,
    Blocks,
    ConvolutionStream,
    InverseSTFTStream,
    Part,
    RecurrenceStream,
    Sequence,
    TransposedStream,
    UnitStream,
)
from speechkit.nn.seanet_units import InverseSTFTHead

BLOCK_FRAMES = 750
"""Latents of the blocks that go through a network one after the other: 10 s of EnCodec's."""


class _Network:
    """A network's parts one after the other."""

    def __init__(self, module: SEANetEncoder | SEANetDecoder, batch_size: int) -> None:
        if not module.causal:
            raise ValueError(
                f"{type(module).__name__}(causal=False) looks at the whole recording and cannot "
                "stream; train one with causal=True"
            )
        self.module = module
        self.batch_size = batch_size
        self.finished = False
        self.parts = Sequence(self._parts())

    def _parts(self) -> list[Part]:
        raise NotImplementedError

    def _recurrence(self) -> list[Part]:
        return [] if self.module.lstm is None else [RecurrenceStream(self.module.lstm)]

    def _take(self, x: Tensor, last: bool) -> Tensor:
        if self.finished:
            raise ValueError("the stream is finished: open a new one for another recording")
        if x.shape[0] != self.batch_size:
            raise ValueError(
                f"the stream was opened with batch_size={self.batch_size}, and this piece has "
                f"{x.shape[0]}: {tuple(x.shape)}"
            )
        self.finished = last
        return self.parts.push(x, last)


class EncoderStream(_Network):
    """The latents of a waveform that comes in pieces.

    Weights are taken when it is opened: weight norm costs nothing afterwards.

    Parameters
    ----------
    module : SEANetEncoder
        A causal one.
    batch_size : int
        Recordings that come side by side.

    Raises
    ------
    ValueError
        If the encoder is not causal; later, if pieces have another batch size or come after the
        last one.

    Examples
    --------
    >>> encoder = SEANetEncoder(num_filters=2, latent_size=6, strides=(2, 5))
    >>> x = torch.randn(1, 1, 47)
    >>> stream = EncoderStream(encoder)
    >>> parts = [stream.push(x[..., :20]), stream.push(x[..., 20:], last=True)]
    >>> [part.shape[1] for part in parts]
    [2, 3]
    >>> torch.allclose(torch.cat(parts, 1), encoder(x).data, atol=1e-5)
    True
    """

    module: SEANetEncoder

    def __init__(self, module: SEANetEncoder, batch_size: int = 1) -> None:
        super().__init__(module, batch_size)

    def _parts(self) -> list[Part]:
        module, size = self.module, self.batch_size
        parts: list[Part] = []
        first: list[Part] = [ConvolutionStream(module.input, size)]
        for stage in module.stages:
            block: list[Part] = [UnitStream(unit, size) for unit in stage.units]  # type: ignore
            block.append(ActivationStream(stage.activation))  # type: ignore[arg-type]
            block.append(ConvolutionStream(stage.resample, size))  # type: ignore[arg-type]
            parts.append(Blocks(first + block))
            first = []
        parts += self._recurrence()
        parts.append(ActivationStream(module.output_activation))
        return [*parts, ConvolutionStream(module.output, size)]

    @torch.no_grad()
    def push(self, waveform: Tensor, *, last: bool = False) -> Tensor:
        """Take ``(B, channels, t)`` with any ``t``; give the latents that are settled."""
        return self._take(waveform.transpose(1, 2), last)


class DecoderStream(_Network):
    """The waveform of latents that come in pieces.

    Parameters
    ----------
    module : SEANetDecoder
        A causal one.
    batch_size : int
        Recordings that come side by side.

    Raises
    ------
    ValueError
        As for `EncoderStream`.

    Examples
    --------
    >>> decoder = SEANetDecoder(num_filters=2, latent_size=6, strides=(5, 2))
    >>> x = torch.randn(1, 7, 6)
    >>> stream = DecoderStream(decoder)
    >>> parts = [stream.push(x[:, :1]), stream.push(x[:, 1:], last=True)]
    >>> [part.shape[2] for part in parts]
    [10, 60]
    >>> torch.allclose(torch.cat(parts, 2), decoder(x).data, atol=1e-5)
    True
    """

    module: SEANetDecoder

    def __init__(self, module: SEANetDecoder, batch_size: int = 1) -> None:
        super().__init__(module, batch_size)

    def _parts(self) -> list[Part]:
        module, size = self.module, self.batch_size
        parts: list[Part] = [ConvolutionStream(module.input, size), *self._recurrence()]
        block: list[Part] = []
        for stage in module.stages:
            block.append(ActivationStream(stage.activation))  # type: ignore[arg-type]
            block.append(TransposedStream(stage.resample, size))  # type: ignore[arg-type]
            parts.append(Blocks(block))
            block = [UnitStream(unit, size) for unit in stage.units]  # type: ignore
        block.append(ActivationStream(module.output_activation))
        head = module.output
        if isinstance(head, InverseSTFTHead):
            block.append(InverseSTFTStream(head, size))
        else:
            block.append(ConvolutionStream(head, size))
        return [*parts, Blocks(block)]

    @torch.no_grad()
    def push(self, latents: Tensor, *, last: bool = False) -> Tensor:
        """Take ``(B, t, latent_size)`` with any ``t``; give the samples that are settled."""
        return self._take(latents, last).transpose(1, 2)


@torch.no_grad()
def encode_blocks(module: SEANetEncoder, waveform: Tensor) -> Tensor:
    """Encode whole recordings block by block, faster than ``module(waveform)`` on a CPU.

    Parameters
    ----------
    module : SEANetEncoder
        A causal one.
    waveform : Tensor
        Shape ``(B, channels, T)``, all of it valid.

    Returns
    -------
    Tensor
        Latents ``(B, T', latent_size)``.

    Examples
    --------
    >>> encoder = SEANetEncoder(num_filters=2, latent_size=6, strides=(2, 5))
    >>> x = torch.randn(2, 1, 1003)
    >>> torch.allclose(encode_blocks(encoder, x), encoder(x).data, atol=1e-5)
    True
    """
    stream = EncoderStream(module, waveform.shape[0])
    blocks = waveform.split(module.hop_length * BLOCK_FRAMES, dim=2)
    final = len(blocks) - 1
    parts = [stream.push(block, last=i == final) for i, block in enumerate(blocks)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def decode_blocks(module: SEANetDecoder, latents: Tensor) -> Tensor:
    """Decode latents ``(B, T', latent_size)`` block by block to ``(B, channels, T)``.

    Examples
    --------
    >>> decoder = SEANetDecoder(num_filters=2, latent_size=6, strides=(5, 2))
    >>> x = torch.randn(2, 103, 6)
    >>> torch.allclose(decode_blocks(decoder, x), decoder(x).data, atol=1e-5)
    True
    """
    stream = DecoderStream(module, latents.shape[0])
    blocks = latents.split(BLOCK_FRAMES, dim=1)
    final = len(blocks) - 1
    return torch.cat([stream.push(block, last=i == final) for i, block in enumerate(blocks)], dim=2)
