"""A codec that listens and speaks: samples to codes and codes to samples, piece by piece.

Each part keeps what the next piece needs, so that the codes are those of the whole recording. (Only
a latent that is equally near to two codes, but for float32's rounding, may fall to the other.) With
zero padding (``pad_mode="constant"``) a frame's code comes with its last sample, and its samples
with its code. With mirrored padding, as in the published networks, the first frames wait for those
that they mirror, and all others come as early.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.data.errors import DataError
from speechkit.nn.seanet_stream import DecoderStream, EncoderStream


class StreamingEncoder:
    """Takes samples and gives codes.

    Parameters
    ----------
    codec : nn.Module
        A `speechkit.models.codec.Codec`.
    batch_size : int
        Recordings that come side by side.
    num_codebooks : int, optional
        Codebooks to use; all by default.

    Attributes
    ----------
    num_samples : int
        Samples taken, for a decoder's output to be cut to.
    """

    def __init__(
        self, codec: nn.Module, *, batch_size: int = 1, num_codebooks: int | None = None
    ) -> None:
        self.codec: Any = codec
        self.num_codebooks = num_codebooks
        self.num_samples = 0
        self._stream = EncoderStream(codec.encoder, batch_size)  # type: ignore[arg-type]

    def push(self, samples: Tensor) -> Tensor:
        """Take samples ``(B, C, t)`` with any ``t``; give the codes that are settled.

        Raises
        ------
        DataError
            If the samples have other channels.
        ValueError
            If the batch size changes, or the stream is finished.
        """
        return self._push(samples, last=False)

    def finish(self) -> Tensor:
        """End the recording; give the codes of the frame that was not full, and any that waited."""
        weight = next(self.codec.encoder.parameters())
        empty = weight.new_zeros(self._stream.batch_size, self.codec.channels, 0)
        return self._push(empty, last=True)

    def _push(self, samples: Tensor, *, last: bool) -> Tensor:
        if samples.dim() != 3 or samples.shape[1] != self.codec.channels:
            raise DataError(
                f"the stream takes samples (B, {self.codec.channels}, t), not "
                f"{tuple(samples.shape)}"
            )
        latents = self._stream.push(self.codec.to_network(samples), last=last)
        self.num_samples += samples.shape[2]
        return self.codec.quantizer.encode(latents, num_codebooks=self.num_codebooks)


class StreamingDecoder:
    """Takes codes and gives samples.

    Parameters
    ----------
    codec : nn.Module
        A `speechkit.models.codec.Codec`.
    batch_size : int
        Recordings that come side by side.
    """

    def __init__(self, codec: nn.Module, *, batch_size: int = 1) -> None:
        self.codec: Any = codec
        self._stream = DecoderStream(codec.decoder, batch_size)  # type: ignore[arg-type]

    def push(self, codes: Tensor) -> Tensor:
        """Take codes ``(B, Q, t)`` with any ``t``; give the samples ``(B, C, t')`` settled.

        Raises
        ------
        DataError
            If codes lie outside the codebooks.
        ValueError
            If the batch size changes, or the stream is finished.
        """
        self.codec.check_codes(codes)
        with torch.no_grad():
            latents = self.codec.quantizer.decode(codes)
            return self.codec.from_network(self._stream.push(latents))

    def finish(self) -> Tensor:
        """End the codes; give the samples that waited, if any."""
        weight = next(self.codec.decoder.parameters())
        empty = weight.new_zeros(self._stream.batch_size, 0, self.codec.decoder.latent_size)
        return self.codec.from_network(self._stream.push(empty, last=True))


class CodecStreams(NamedTuple):
    """What `speechkit.models.codec.Codec.streaming` gives.

    Attributes
    ----------
    encoder : StreamingEncoder
        Samples to codes.
    decoder : StreamingDecoder
        Codes to samples.
    """

    encoder: StreamingEncoder
    decoder: StreamingDecoder

    @classmethod
    def open(
        cls, codec: nn.Module, *, batch_size: int = 1, num_codebooks: int | None = None
    ) -> CodecStreams:
        """Open both; see `speechkit.models.codec.Codec.streaming`."""
        model: Any = codec
        if codec.training:
            raise ValueError("the codec is in training mode: call .eval() first")
        if model.normalize or model.segment_seconds is not None:
            raise ValueError(
                "a codec with normalize=True or segment_seconds codes whole segments and cannot "
                "stream; train one without"
            )
        return cls(
            StreamingEncoder(codec, batch_size=batch_size, num_codebooks=num_codebooks),
            StreamingDecoder(codec, batch_size=batch_size),
        )
