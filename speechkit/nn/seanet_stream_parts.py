"""The layers of a causal SEANet piece by piece; see `speechkit.nn.seanet_stream`.

Inside, frames are rows, ``(B, t, C)``. ``stride`` frames side by side are then one piece of memory,
and a convolution whose kernel is twice its stride the sum of two products of matrices, without a
copy::

    frames of stride 2           a b c d e f          a, b, ...: C numbers each
    windows of kernel 4          [a b c d] [c d e f]
    first and second product     [a b] [c d], [c d] [e f]

A transposed convolution is the product of each frame with one half of the kernel, and of the one
before it with the other; the result, read row by row, is the output.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from speechkit.nn.seanet_conv import SEANetConv, SEANetTransposedConv
from speechkit.nn.seanet_units import InverseSTFTHead, ResidualUnit, SkipLSTM

BLOCK_ROWS = 4096
"""Rows that a stage takes at once."""


class Part(Protocol):
    """A layer's outputs for an input ``(B, t, C)`` that comes in pieces, the last one marked."""

    def push(self, x: Tensor, last: bool) -> Tensor:
        """Take ``(B, t, C)`` with any ``t``; give the frames that are settled."""
        ...


def _join(before: Tensor, x: Tensor) -> Tensor:
    return torch.cat([before, x], dim=1) if before.shape[1] else x


def _windows(x: Tensor, size: int, stride: int, first: int, count: int) -> Tensor:
    """View contiguous ``(B, t, C)`` as windows, flat and from a first row on, ``(B, n, size * C)``.

    Windows that overlap would be copied by a product of matrices, so ``size <= stride`` is best.
    """
    batch, rows, channels = x.shape
    return x.as_strided(
        (batch, count, size * channels),
        (rows * channels, stride * channels, 1),
        x.storage_offset() + first * channels,
    )


def _product(rows: Tensor, weight: Tensor, onto: Tensor) -> Tensor:
    """Multiply ``(B, t, K)`` by ``(K, N)``, and add a bias ``(N,)`` or, in place, ``(B, t, N)``."""
    one = rows.shape[0] == 1
    if onto.dim() == 1:
        if one:
            return torch.addmm(onto, rows[0], weight).unsqueeze(0)
        return torch.baddbmm(onto, rows, weight.expand(rows.shape[0], -1, -1))
    if one:
        onto[0].addmm_(rows[0], weight)
    else:
        onto.baddbmm_(rows, weight.expand(rows.shape[0], -1, -1))
    return onto


def _elu(x: Tensor) -> Tensor:
    # ELU by a plain exponential: 6e-8 from torch's, a fifth faster on a CPU. e^x - 1 is above x
    # for x < 0, and 0 for what the clamp made 0.
    below = x.clamp(max=0).exp_().sub_(1)
    return torch.maximum(x, below, out=below)


class ConvolutionStream:
    """A `SEANetConv`; its weights are taken when it is opened."""

    def __init__(self, module: SEANetConv, batch_size: int) -> None:
        self.module = module
        weight = module.conv.weight.detach()  # (out, in, kernel)
        self.taps = weight.permute(2, 1, 0).contiguous()  # (kernel, in, out)
        self.bias = module.conv.bias.detach()  # type: ignore[union-attr]
        self.left = module.padding
        self.mirror = module.pad_mode == "reflect" and self.left > 0
        self.started = not self.mirror
        before = self.left if self.started else 0
        self.waiting = weight.new_zeros(batch_size, before, module.in_channels)

    def push(self, x: Tensor, last: bool, onto: Tensor | None = None) -> Tensor:
        """Convolve, and add the result to another's, where one is given."""
        onto = self.bias if onto is None else onto
        stride = self.module.stride
        if self.left == 0 and stride == 1:
            return _product(x, self.taps[0], onto)
        joined = _join(self.waiting, x)
        if not self.started:
            if joined.shape[1] <= self.left:  # too short to be mirrored
                self.waiting = joined
                return self._alone(joined) if last else self._nothing(x)
            self.started = True
            joined = torch.cat([joined[:, 1 : self.left + 1].flip(1), joined], dim=1)
        missing = -(joined.shape[1] - self.left) % stride
        if last and missing:
            tail = joined.new_zeros(joined.shape[0], missing, joined.shape[2])
            if self.mirror:
                tail = joined[:, -missing - 1 : -1].flip(1)
            joined = torch.cat([joined, tail], dim=1)
        count = max(0, (joined.shape[1] - self.left) // stride)
        # Not a view, which would keep all of the block.
        self.waiting = joined[:, count * stride :].clone()
        return self._convolve(joined.contiguous(), count, onto) if count else self._nothing(x)

    def _convolve(self, x: Tensor, count: int, out: Tensor) -> Tensor:
        kernel, channels, outputs = self.taps.shape
        stride, dilation = self.module.stride, self.module.dilation
        # As many taps at once as lie side by side and do not overlap; all, where they are tiny.
        size = kernel if channels == 1 else stride
        if dilation > 1 or kernel % size:
            size = 1
        for tap in range(0, kernel, size):
            rows = _windows(x, size, stride, tap * dilation, count)
            out = _product(rows, self.taps[tap : tap + size].view(-1, outputs), out)
        return out

    def _alone(self, x: Tensor) -> Tensor:
        return self.module(x.transpose(1, 2)).transpose(1, 2)

    def _nothing(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], 0, self.module.out_channels)


class TransposedStream:
    """A `SEANetTransposedConv`."""

    def __init__(self, module: SEANetTransposedConv, batch_size: int) -> None:
        self.stride = module.stride
        self.channels = module.out_channels
        weight = module.conv.weight.detach()  # (in, out, 2 * stride): this frame, the one before
        taps = weight.unflatten(2, (2, self.stride)).permute(2, 0, 3, 1)
        self.now, self.past = taps.flatten(2).contiguous()
        self.bias = module.conv.bias.detach().repeat(self.stride)  # type: ignore[union-attr]
        self.before = weight.new_zeros(batch_size, 1, module.in_channels)

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Part`."""
        if not x.shape[1]:
            return x.new_zeros(x.shape[0], 0, self.channels)
        joined = torch.cat([self.before, x], dim=1)
        self.before = x[:, -1:].clone()
        y = _product(joined[:, 1:], self.now, self.bias)  # (B, t, stride * out)
        y = _product(joined[:, :-1], self.past, y)
        return y.view(x.shape[0], -1, self.channels)


class ActivationStream:
    """An activation; ELU in a faster form."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.fast = isinstance(module, nn.ELU) and module.alpha == 1

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Part`."""
        if self.fast:
            return _elu(x)
        return self.module(x.transpose(1, 2)).transpose(1, 2).contiguous()


class UnitStream:
    """A `ResidualUnit`."""

    def __init__(self, module: ResidualUnit, batch_size: int) -> None:
        self.branch = Sequence(
            [
                ActivationStream(module.activation1),
                ConvolutionStream(module.conv1, batch_size),
                ActivationStream(module.activation2),
            ]
        )
        self.back = ConvolutionStream(module.conv2, batch_size)
        self.shortcut = ConvolutionStream(module.shortcut, batch_size)
        self.shortcut.bias = self.shortcut.bias + self.back.bias
        self.waiting = self.back.bias.new_zeros(batch_size, 0, module.channels)

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Part`."""
        branch = self.branch.push(x, last)
        x = _join(self.waiting, x)  # the branch may wait for frames to mirror
        ready = branch.shape[1]
        self.waiting = x[:, ready:].clone()
        return self.back.push(branch, last, self.shortcut.push(x[:, :ready], last))


class RecurrenceStream:
    """A `SkipLSTM`."""

    def __init__(self, module: SkipLSTM) -> None:
        self.lstm = module.lstm
        self.state: tuple[Tensor, Tensor] | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Part`."""
        if not x.shape[1]:
            return x
        out, self.state = self.lstm(x.transpose(0, 1), self.state)
        return out.transpose(0, 1) + x


class InverseSTFTStream:
    """An `InverseSTFTHead`."""

    def __init__(self, module: InverseSTFTHead, batch_size: int) -> None:
        self.module = module
        self.conv = ConvolutionStream(module.conv, batch_size)
        self.tail = module.window.new_zeros(batch_size, module.channels, 3 * module.hop_length)

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Part`."""
        x = self.conv.push(x, last).transpose(1, 2)
        if not x.shape[2]:
            return x.new_zeros(x.shape[0], 0, self.module.channels)
        out = self.module.overlap_add(self.module.frames(x))
        out[..., : self.tail.shape[2]] += self.tail
        ready = x.shape[2] * self.module.hop_length
        self.tail = out[..., ready:].clone()
        return out[..., :ready].transpose(1, 2)


class Sequence:
    """Layers one after the other."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Part`."""
        for part in self.parts:
            x = part.push(x, last)
        return x


class Blocks:
    """A sequence that takes a long input in blocks."""

    def __init__(self, parts: list[Part]) -> None:
        self.sequence = Sequence(parts)

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Part`."""
        if x.shape[1] <= BLOCK_ROWS:
            return self.sequence.push(x, last)
        blocks = x.split(BLOCK_ROWS, dim=1)
        final = len(blocks) - 1
        made = [self.sequence.push(block, last and i == final) for i, block in enumerate(blocks)]
        return torch.cat(made, dim=1)
