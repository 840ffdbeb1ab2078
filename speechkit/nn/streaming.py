"""Encoders that take a recording piece by piece and give what they give for the whole.

`open_stream` turns an encoder into a `Stream`. Whatever the sizes of the pieces, the pushed
outputs joined are the encoder's output for the joined input (to rounding)::

    stream = open_stream(encoder.eval())
    first = stream.push(x[:, :40])      # the frames that no later input can change
    second = stream.push(x[:, 40:])
    last = stream.finish()              # what waited for more

What is kept between the calls does not grow with time, except where attention sees all chunks
before its own (``left_chunks=None``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import speechkit.nn.streaming_attention  # noqa: F401  (makes Transformer and Conformer known)
from speechkit.nn.conv import ConvBlock, ConvEncoder, ConvSubsampling
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack
from speechkit.nn.stream import Chain, Stream, open_stream

__all__ = ["Chain", "Stream", "open_stream"]


@open_stream.register
def _open_stack(module: Stack, batch_size: int = 1) -> Stream:
    return Chain(module, [open_stream(layer, batch_size) for layer in module.layers], batch_size)


# ---------------------------------------------------------------- convolutions


class _Kernel:
    """Cuts a stream into the stretches on which a centred kernel stands.

    ::

        kernel_size=3, stride=2      0 | a b c d e ...    zeros before the start: half a kernel
        stretch of two outputs      [0   a b]
                                         [b c d]          from d on there is more to come: e waits
    """

    def __init__(self, kernel_size: int, stride: int, first: Tensor) -> None:
        self.kernel_size = kernel_size
        self.stride = stride
        self.waiting = first  # (B, kernel_size // 2, ...), zeros
        self._skip = 0  # frames to come that no kernel looks at: strides beyond the kernel

    def push(self, frames: Tensor) -> Tensor | None:
        joined = torch.cat([self.waiting, frames.to(self.waiting.dtype)], dim=1)
        drop = min(self._skip, joined.shape[1])
        self._skip -= drop
        joined = joined[:, drop:]
        count = (joined.shape[1] - self.kernel_size) // self.stride + 1
        if count < 1:
            self.waiting = joined
            return None
        used = count * self.stride
        self._skip = max(0, used - joined.shape[1])
        self.waiting = joined[:, used:].clone()  # not a view, which would keep all of it
        return joined[:, : (count - 1) * self.stride + self.kernel_size]

    def finish(self) -> Tensor | None:
        shape = (self.waiting.shape[0], self.kernel_size // 2, *self.waiting.shape[2:])
        return self.push(self.waiting.new_zeros(shape))


class _ConvBlockStream(Stream):
    module: ConvBlock

    def __init__(self, module: ConvBlock, batch_size: int) -> None:
        super().__init__(module, batch_size)
        self.stride, half = module.stride, module.kernel_size // 2
        self.lookahead = half
        first = self._zeros(half, module.input_size)
        self.kernel = _Kernel(module.kernel_size, module.stride, first)

    def _take(self, frames: Tensor) -> Tensor:
        return self._convolve(self.kernel.push(frames))

    def _end(self) -> Tensor:
        return self._convolve(self.kernel.finish())

    def _convolve(self, x: Tensor | None) -> Tensor:
        if x is None:
            return self._nothing(None)
        block = self.module
        x = F.conv1d(x.transpose(1, 2), block.conv.weight, block.conv.bias, block.stride)
        return block.activation(block.norm(x.transpose(1, 2)))


@open_stream.register
def _open_conv_block(module: ConvBlock, batch_size: int = 1) -> Stream:
    return _ConvBlockStream(module, batch_size)


@open_stream.register
def _open_conv(module: ConvEncoder, batch_size: int = 1) -> Stream:
    return Chain(module, [open_stream(block, batch_size) for block in module.blocks], batch_size)


class _SubsamplingStream(Stream):
    module: ConvSubsampling

    def __init__(self, module: ConvSubsampling, batch_size: int) -> None:
        super().__init__(module, batch_size)
        half, bins, channels = module.kernel_size // 2, module.input_size, 1
        self.kernels: list[_Kernel] = []
        for out_channels, stride in zip(module.channels, module.strides):
            first = self._zeros(half, bins, channels)
            self.kernels.append(_Kernel(module.kernel_size, stride, first))
            self.lookahead += self.stride * half
            self.stride *= stride
            bins, channels = (bins + stride - 1) // stride, out_channels

    def _take(self, frames: Tensor) -> Tensor:
        x: Tensor | None = frames.unsqueeze(3)  # (B, t, F, C=1)
        for index, kernel in enumerate(self.kernels):
            x = self._convolve(index, kernel.push(x) if x is not None else None)
        return self._project(x)

    def _end(self) -> Tensor:
        x: Tensor | None = None
        for index, kernel in enumerate(self.kernels):
            parts = [kernel.push(x) if x is not None else None, kernel.finish()]
            made = [self._convolve(index, part) for part in parts if part is not None]
            x = torch.cat([part for part in made if part is not None], dim=1) if made else None
        return self._project(x)

    def _convolve(self, index: int, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        conv, norm = self.module.convs[index], self.module.norms[index]
        stride, half = self.module.strides[index], self.module.kernel_size // 2
        image = x.permute(0, 3, 1, 2)  # (B, C, t, F): time has its padding already
        x = F.conv2d(image, conv.weight, conv.bias, stride, (0, half)).permute(0, 2, 3, 1)  # type: ignore[arg-type]
        return torch.relu(norm(x.flatten(2)).unflatten(2, x.shape[2:]))

    def _project(self, x: Tensor | None) -> Tensor:
        return self._nothing(None) if x is None else self.module.linear(x.flatten(2))


@open_stream.register
def _open_subsampling(module: ConvSubsampling, batch_size: int = 1) -> Stream:
    return _SubsamplingStream(module, batch_size)


# ---------------------------------------------------------------- recurrent layers


class _RecurrentStream(Stream):
    module: RecurrentEncoder

    def __init__(self, module: RecurrentEncoder, batch_size: int) -> None:
        super().__init__(module, batch_size)
        if module.bidirectional:
            raise ValueError(
                "RecurrentEncoder(bidirectional=True) reads from the end and cannot stream; train "
                "one with bidirectional=False"
            )
        self.states: list[Tensor | tuple[Tensor, Tensor] | None] = [None] * module.num_layers

    def _take(self, frames: Tensor) -> Tensor:
        for index, layer in enumerate(self.module.ahead):
            frames, self.states[index] = layer(frames, self.states[index])
        projection = self.module.projection
        return frames if projection is None else projection(frames)


@open_stream.register
def _open_recurrent(module: RecurrentEncoder, batch_size: int = 1) -> Stream:
    return _RecurrentStream(module, batch_size)
