"""What every stream has in common, and how one is opened; see `speechkit.nn.streaming`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import singledispatch

import torch
from torch import Tensor, nn


class Stream(ABC):
    """A module's outputs for an input that comes in pieces.

    Parameters
    ----------
    module : nn.Module
        In eval mode.
    batch_size : int
        Recordings that come side by side, all at the same pace.

    Attributes
    ----------
    stride : int
        Input frames for each output frame.
    lookahead : int
        Output frame ``j`` depends on input frames up to ``j * stride + lookahead``, and is given
        when these are there.

    Raises
    ------
    ValueError
        If the module is in training mode.
    """

    stride: int = 1
    lookahead: int = 0

    def __init__(self, module: nn.Module, batch_size: int) -> None:
        if module.training:
            raise ValueError(
                f"{type(module).__name__} is in training mode, in which outputs are random; call "
                ".eval() first"
            )
        self.module = module
        self.batch_size = batch_size
        self.finished = False

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """Take more input, ``(B, t, F)`` with any ``t``; give what is settled, ``(B, t', D)``.

        Raises
        ------
        ValueError
            If the batch size changes, or the stream is finished.
        """
        if self.finished:
            raise ValueError("the stream is finished: open a new one for another recording")
        if frames.shape[0] != self.batch_size:
            raise ValueError(
                f"the stream was opened with batch_size={self.batch_size}, and this piece has "
                f"{frames.shape[0]}: {tuple(frames.shape)}"
            )
        return self._take(frames) if frames.shape[1] else self._nothing(frames.device)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """End the input; give the frames that waited for more, ``(B, t', D)``."""
        if self.finished:
            raise ValueError("the stream is finished already")
        self.finished = True
        return self._end()

    @abstractmethod
    def _take(self, frames: Tensor) -> Tensor:
        """Take at least one frame."""

    def _end(self) -> Tensor:
        """Give what is left; nothing, unless a module waits for frames."""
        return self._nothing(None)

    def _nothing(self, device: torch.device | None) -> Tensor:
        for tensor in self.module.parameters():
            device = tensor.device
            break
        size: int = self.module.output_size  # type: ignore[assignment]
        return torch.zeros(self.batch_size, 0, size, device=device)

    def _zeros(self, *shape: int) -> Tensor:
        weight = next(self.module.parameters())
        return torch.zeros(self.batch_size, *shape, device=weight.device, dtype=weight.dtype)


@singledispatch
def open_stream(module: nn.Module, batch_size: int = 1) -> Stream:
    """Give the stream of an encoder, a feature extractor or a normaliser.

    Parameters
    ----------
    module : nn.Module
        In eval mode. Convolutional, unidirectional recurrent, chunked Transformer and causal
        chunked Conformer encoders and stacks of these; what `speechkit.features.streaming` names.
        Another class is made known by ``open_stream.register``.
    batch_size : int
        Recordings that come side by side.

    Raises
    ------
    ValueError
        If the module needs the whole recording: the message says what to build instead.

    Examples
    --------
    >>> from speechkit.nn.streaming import open_stream
    >>> from speechkit.nn.transformer import TransformerEncoder
    >>> encoder = TransformerEncoder(input_size=8, embed_dim=8, num_heads=2, num_layers=2,
    ...                              feedforward_size=16, chunk_size=4, left_chunks=2).eval()
    >>> x = torch.randn(1, 11, 8)
    >>> stream = open_stream(encoder)
    >>> parts = [stream.push(x[:, :5]), stream.push(x[:, 5:]), stream.finish()]
    >>> [part.shape[1] for part in parts]
    [4, 4, 3]
    >>> torch.allclose(torch.cat(parts, 1), encoder(x, torch.tensor([11])).data, atol=1e-5)
    True
    """
    raise ValueError(
        f"{type(module).__name__} cannot stream: open_stream knows "
        f"{', '.join(sorted(cls.__name__ for cls in open_stream.registry if cls is not object))}"
    )


class Chain(Stream):
    """Streams one after the other.

    Parameters
    ----------
    module : nn.Module
        What they are the parts of; its ``output_size`` is that of the last one.
    streams : sequence of Stream
        In order.
    batch_size : int
        Of all of them.
    """

    def __init__(self, module: nn.Module, streams: Sequence[Stream], batch_size: int) -> None:
        super().__init__(module, batch_size)
        self.streams = list(streams)
        for stream in self.streams:
            # Middle frame m needs inputs up to m * stride + lookahead, and output j needs middle
            # frames up to j * its stride + its lookahead.
            self.lookahead += self.stride * stream.lookahead
            self.stride *= stream.stride

    def _take(self, frames: Tensor) -> Tensor:
        for stream in self.streams:
            frames = stream.push(frames)
        return frames

    def _end(self) -> Tensor:
        rest = self.streams[0].finish()
        for stream in self.streams[1:]:
            rest = torch.cat([stream.push(rest), stream.finish()], dim=1)
        return rest
