"""A recording of any length through a codec, piece by piece, at flat memory.

What a codec gives for the whole recording is given for its pieces: by its streams, where it is
causal; segment by segment, where it cuts recordings into segments. A codec that needs the whole
recording gets it, and memory grows with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from speechkit.models.codec import Codec
from speechkit.nn.seanet_stream import BLOCK_FRAMES

_GROUP_SECONDS = 10.0


class PieceEncoder(Protocol):
    """Samples in, codes out.

    Attributes
    ----------
    scales : list of float
        The loudness of each segment so far, where the codec normalizes it.
    """

    scales: list[float]

    def push(self, samples: Tensor) -> Tensor:
        """Take ``(C, t)``; give the codes ``(Q, t')`` that are settled."""
        ...

    def finish(self) -> Tensor:
        """Give the rest of the codes."""
        ...


class PieceDecoder(Protocol):
    """Codes in, samples out."""

    def push(self, codes: Tensor, scales: Tensor) -> Iterator[Tensor]:
        """Take codes ``(Q, t)``, loudness of each frame ``(t,)``; give the samples ``(C, t')``."""
        ...

    def skip(self, num_frames: int) -> Iterator[Tensor]:
        """Take frames whose codes are lost: silence."""
        ...

    def finish(self, num_samples: int | None) -> Iterator[Tensor]:
        """Give the rest; ``num_samples`` is that of all, if it is known."""
        ...


def can_stream(codec: Codec) -> bool:
    """Say whether a codec codes pieces of any size, each as it comes."""
    causal = all(getattr(part, "causal", False) for part in (codec.encoder, codec.decoder))
    return causal and not codec.normalize and codec.segment_length is None


def frames_of_segment(codec: Codec) -> int | None:
    """Count the frames of a full segment; None where recordings stay whole."""
    return None if codec.segment_length is None else -(-codec.segment_length // codec.hop_length)


def frame_start(codec: Codec, frame: int) -> int:
    """Give the sample, at the codec's rate, with which a frame of a recording begins."""
    size = frames_of_segment(codec)
    if size is None:
        return frame * codec.hop_length
    return frame // size * codec.segment_stride + frame % size * codec.hop_length


def open_encoder(codec: Codec, num_codebooks: int) -> PieceEncoder:
    """Choose how a codec takes a recording."""
    if codec.segment_length is not None:
        return _SegmentEncoder(codec, num_codebooks)
    return (_StreamEncoder if can_stream(codec) else _WholeEncoder)(codec, num_codebooks)


def open_decoder(codec: Codec, num_codebooks: int) -> PieceDecoder:
    """Choose how a codec gives a recording."""
    if codec.segment_length is not None:
        return _SegmentDecoder(codec, num_codebooks)
    return (_StreamDecoder if can_stream(codec) else _WholeDecoder)(codec, num_codebooks)


class _Buffer:
    """Tensors joined along their last axis."""

    def __init__(self, parts: Tensor) -> None:
        self._parts = [parts]
        self.size = parts.shape[-1]

    def add(self, part: Tensor) -> None:
        self._parts.append(part)
        self.size += part.shape[-1]

    def look(self) -> Tensor:
        """Return all of it."""
        self._parts = [torch.cat(self._parts, dim=-1)]
        return self._parts[0]

    def drop(self, count: int) -> None:
        self._parts = [self.look()[..., count:].clone()]
        self.size = self._parts[0].shape[-1]


def _device(codec: Codec) -> torch.device:
    return next(codec.parameters()).device


class _Encoder:
    """What all have: samples that wait."""

    def __init__(self, codec: Codec, num_codebooks: int) -> None:
        self.codec = codec
        self.num_codebooks = num_codebooks
        self.scales: list[float] = []
        self._device = _device(codec)
        self._samples = _Buffer(torch.zeros(codec.channels, 0))

    def _nothing(self) -> Tensor:
        return torch.zeros(self.num_codebooks, 0, dtype=torch.int64)

    def _encode(self, samples: Tensor, num_segments: int | None = None) -> Tensor:
        """Encode samples as a recording of their own; keep its first segments."""
        encoded = self.codec.encode(
            samples.unsqueeze(0).to(self._device), num_codebooks=self.num_codebooks
        )
        if encoded.scales is not None:
            self.scales += encoded.scales[0, :num_segments].tolist()
        size = frames_of_segment(self.codec)
        keep = None if num_segments is None or size is None else num_segments * size
        return encoded.codes[0, :, :keep].cpu()


class _StreamEncoder(_Encoder):
    """A causal codec. The blocks are those of `Codec.encode`, which is as fast as can be."""

    def __init__(self, codec: Codec, num_codebooks: int) -> None:
        super().__init__(codec, num_codebooks)
        self._stream = codec.streaming(num_codebooks=num_codebooks).encoder
        self._block = BLOCK_FRAMES * codec.hop_length

    def push(self, samples: Tensor) -> Tensor:
        """See `PieceEncoder`."""
        self._samples.add(samples)
        codes = [self._nothing()]
        if self._samples.size > self._block:
            count = self._samples.size // self._block * self._block
            for block in self._samples.look()[:, :count].split(self._block, dim=1):
                codes.append(self._push(block))
            self._samples.drop(count)
        return torch.cat(codes, dim=1)

    def finish(self) -> Tensor:
        """See `PieceEncoder`."""
        rest = self._push(self._samples.look())
        return torch.cat([rest, self._stream.finish()[0].cpu()], dim=1)

    def _push(self, samples: Tensor) -> Tensor:
        return self._stream.push(samples.unsqueeze(0).to(self._device))[0].cpu()


class _SegmentEncoder(_Encoder):
    """Some segments at a time, as a recording whose last segment is not used."""

    def push(self, samples: Tensor) -> Tensor:
        """See `PieceEncoder`."""
        size, stride = self.codec.segment_length or 0, self.codec.segment_stride
        count = _group(self.codec)
        span = (count - 1) * stride + size
        self._samples.add(samples)
        codes = [self._nothing()]
        while self._samples.size >= span:
            codes.append(self._encode(self._samples.look()[:, :span], count))
            self._samples.drop(count * stride)
        return torch.cat(codes, dim=1)

    def finish(self) -> Tensor:
        """See `PieceEncoder`."""
        return self._encode(self._samples.look()) if self._samples.size else self._nothing()


class _WholeEncoder(_Encoder):
    """A codec that needs all of the recording."""

    def push(self, samples: Tensor) -> Tensor:
        """See `PieceEncoder`."""
        self._samples.add(samples)
        return self._nothing()

    def finish(self) -> Tensor:
        """See `PieceEncoder`."""
        return self._encode(self._samples.look())


def _group(codec: Codec) -> int:
    """Segments that are coded at a time."""
    return max(1, round(_GROUP_SECONDS * codec.sample_rate / codec.segment_stride))


class _StreamDecoder:
    """A causal codec; behind a gap it begins anew."""

    def __init__(self, codec: Codec, num_codebooks: int) -> None:
        self.codec = codec
        self.num_codebooks = num_codebooks
        self._device = _device(codec)
        self._open()

    def _open(self) -> None:
        self._stream = self.codec.streaming().decoder
        self._codes = _Buffer(torch.zeros(self.num_codebooks, 0, dtype=torch.int64))

    def push(self, codes: Tensor, scales: Tensor) -> Iterator[Tensor]:
        """See `PieceDecoder`."""
        self._codes.add(codes)
        while self._codes.size > BLOCK_FRAMES:
            yield self._push(self._codes.look()[:, :BLOCK_FRAMES])
            self._codes.drop(BLOCK_FRAMES)

    def skip(self, num_frames: int) -> Iterator[Tensor]:
        """See `PieceDecoder`."""
        yield from self.finish(None)
        self._open()
        while num_frames > 0:
            count = min(num_frames, BLOCK_FRAMES)
            yield torch.zeros(self.codec.channels, count * self.codec.hop_length)
            num_frames -= count

    def finish(self, num_samples: int | None) -> Iterator[Tensor]:
        """See `PieceDecoder`."""
        yield self._push(self._codes.look())
        yield self._stream.finish()[0].cpu()

    def _push(self, codes: Tensor) -> Tensor:
        return self._stream.push(codes.unsqueeze(0).to(self._device))[0].cpu()


class _BatchDecoder:
    """What decoders of segments and of whole recordings have: codes that wait.

    Lost frames have code 0 and no loudness (NaN). What they give is made silent afterwards.
    """

    def __init__(self, codec: Codec, num_codebooks: int) -> None:
        self.codec = codec
        self.num_codebooks = num_codebooks
        self._device = _device(codec)
        self._codes = _Buffer(torch.zeros(num_codebooks, 0, dtype=torch.int64))
        self._scales = _Buffer(torch.zeros(0))

    def push(self, codes: Tensor, scales: Tensor) -> Iterator[Tensor]:
        """See `PieceDecoder`."""
        self._codes.add(codes)
        self._scales.add(scales)
        yield from self._ready()

    def skip(self, num_frames: int) -> Iterator[Tensor]:
        """See `PieceDecoder`."""
        while num_frames > 0:
            count = min(num_frames, BLOCK_FRAMES)
            codes = torch.zeros(self.num_codebooks, count, dtype=torch.int64)
            yield from self.push(codes, torch.full((count,), float("nan")))
            num_frames -= count

    def finish(self, num_samples: int | None) -> Iterator[Tensor]:
        """See `PieceDecoder`."""
        raise NotImplementedError

    def _ready(self) -> Iterator[Tensor]:
        raise NotImplementedError

    def _decode(self, codes: Tensor, scales: Tensor, num_samples: int | None) -> Tensor:
        """Decode frames from the start of a segment on, silent where they are lost."""
        codec, size = self.codec, frames_of_segment(self.codec) or codes.shape[1]
        lost = scales.isnan()
        parts = list(scales.split(size))
        # A segment's loudness is that of any of its frames that is left.
        loudness = torch.stack([part.nan_to_num(0.0).max() for part in parts])
        samples = None if num_samples is None else torch.tensor([num_samples], device=self._device)
        if bool(lost.all()):
            total = frame_start(codec, codes.shape[1] - 1) + codec.hop_length
            return torch.zeros(codec.channels, min(total, num_samples or total))
        wave = codec.decode(
            codes.unsqueeze(0).to(self._device),
            None,
            loudness.unsqueeze(0).to(self._device) if codec.normalize else None,
            samples,
        )[0].cpu()
        for index, part in enumerate(lost.split(size)):
            first = index * codec.segment_stride
            silent = part.repeat_interleave(codec.hop_length)
            span = wave[:, first : first + len(silent)]
            span[:, silent[: span.shape[1]]] = 0.0
        return wave


class _SegmentDecoder(_BatchDecoder):
    """Some segments at a time, with the one before them, which they overlap."""

    def __init__(self, codec: Codec, num_codebooks: int) -> None:
        super().__init__(codec, num_codebooks)
        self._lead = 0  # segments in the buffer that were given already
        self._first = 0  # segment at which the buffer begins

    def _ready(self) -> Iterator[Tensor]:
        size = frames_of_segment(self.codec) or 1
        count, stride = _group(self.codec), self.codec.segment_stride
        # The last two segments wait for the end, which may shorten both.
        while self._codes.size >= (self._lead + count + 2) * size:
            group = self._lead + count
            codes = self._codes.look()[:, : group * size]
            wave = self._decode(codes, self._scales.look()[: group * size], None)
            yield wave[:, self._lead * stride : group * stride]
            self._codes.drop((group - 1) * size)
            self._scales.drop((group - 1) * size)
            self._first += group - 1
            self._lead = 1

    def finish(self, num_samples: int | None) -> Iterator[Tensor]:
        """See `PieceDecoder`."""
        if not self._codes.size:
            return
        stride = self.codec.segment_stride
        left = None if num_samples is None else max(0, num_samples - self._first * stride)
        wave = self._decode(self._codes.look(), self._scales.look(), left)
        yield wave[:, self._lead * stride :]


class _WholeDecoder(_BatchDecoder):
    """A codec that needs all of the recording."""

    def _ready(self) -> Iterator[Tensor]:
        return iter(())

    def finish(self, num_samples: int | None) -> Iterator[Tensor]:
        """See `PieceDecoder`."""
        if self._codes.size:
            yield self._decode(self._codes.look(), self._scales.look(), num_samples)
