"""A neural audio codec: waveforms to codes and back (Défossez et al. 2022, "EnCodec")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.data.errors import DataError
from speechkit.models.codec_parts import (
    CodecOutput,
    Encoded,
    check_codes,
    check_parts,
    check_waveform,
    codebooks_in,
    full_lengths,
    loudness,
    not_quantized,
    pays_in_blocks,
    served_rates,
)
from speechkit.models.codec_segments import join_segments, segment_bounds, segment_frames
from speechkit.models.codec_stream import CodecStreams
from speechkit.nn.masking import ragged
from speechkit.nn.quantize import draw_num_codebooks
from speechkit.nn.seanet import fold_weight_norm
from speechkit.nn.seanet_conv import mask_channels
from speechkit.nn.seanet_stream import decode_blocks, encode_blocks

__all__ = ["Codec", "CodecOutput", "Encoded"]


class Codec(nn.Module):
    """Encoder, quantizer and decoder, and the bit rates which they serve.

    Parameters
    ----------
    sample_rate : int
        Of the waveforms, in Hz.
    channels : int
        Of the waveforms: 1 mono, 2 stereo.
    encoder : nn.Module
        ``(B, C, T)`` and lengths to latents: `speechkit.nn.seanet.SEANetEncoder`.
    quantizer : nn.Module
        `speechkit.nn.quantize.ResidualVectorQuantizer`, or
        `speechkit.nn.quantize_scalar.FiniteScalarQuantizer`.
    decoder : nn.Module
        Latents to waveforms: `speechkit.nn.seanet.SEANetDecoder`.
    rates_kbps : sequence of float, optional
        The rates to serve, in kbit/s; by default those of 1, 2, 4, ... codebooks and of all.
    normalize : bool
        Give each segment the same loudness before it is encoded, and its own back afterwards.
    segment_seconds : float, optional
        Cut recordings into segments of this length that are coded one by one; by default they stay
        whole.
    overlap : float
        Share of a segment that the next one has too; they are faded into one another.
    level : float
        Usual amplitude (root mean square) of the waveforms: what the networks see is divided by it
        and what they give multiplied. Networks that start from random weights learn faint signals
        slowly; published ones see the waveform as it is.

    Attributes
    ----------
    hop_length : int
        Samples of a frame of codes.
    frame_rate : float
        Frames a second.

    Raises
    ------
    ValueError
        If the parts do not fit together, or a rate needs fewer codebooks than one or more than all.

    Examples
    --------
    >>> from speechkit.nn.quantize import ResidualVectorQuantizer
    >>> from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder
    >>> sizes = {"num_filters": 2, "latent_size": 6, "lstm_layers": 1}
    >>> codec = Codec(
    ...     sample_rate=8000,
    ...     channels=1,
    ...     encoder=SEANetEncoder(strides=(2, 5), **sizes),
    ...     quantizer=ResidualVectorQuantizer(
    ...         latent_size=6, codebook_size=16, num_codebooks=3, kmeans_iterations=0),
    ...     decoder=SEANetDecoder(strides=(5, 2), **sizes),
    ... ).eval()
    >>> codec.frame_rate, codec.rates_kbps
    (800.0, [3.2, 6.4, 9.6])
    >>> encoded = codec.encode(torch.randn(2, 1, 105), torch.tensor([105, 32]), kbps=6.4)
    >>> encoded.codes.shape, encoded.lengths.tolist()
    (torch.Size([2, 2, 11]), [11, 4])
    >>> codec.decode(*encoded).shape
    torch.Size([2, 1, 105])
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        encoder: nn.Module,
        quantizer: nn.Module,
        decoder: nn.Module,
        rates_kbps: Sequence[float] | None = None,
        normalize: bool = False,
        segment_seconds: float | None = None,
        overlap: float = 0.01,
        level: float = 1.0,
    ) -> None:
        super().__init__()
        check_parts(channels, encoder, quantizer, decoder)
        if segment_seconds is not None and (segment_seconds <= 0 or not 0 <= overlap < 0.5):
            raise ValueError(
                f"segment_seconds={segment_seconds} must be above 0 and overlap={overlap} in "
                "[0, 0.5)"
            )
        if level <= 0:
            raise ValueError(f"level={level} must be above 0")
        self.sample_rate = sample_rate
        self.channels = channels
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder
        self.normalize = normalize
        self.segment_seconds = segment_seconds
        self.overlap = overlap
        self.level = level
        self.rates_kbps = served_rates(rates_kbps, self.kbps(1), self.num_codebooks)

    @property
    def hop_length(self) -> int:
        """Samples of a frame of codes."""
        return int(self.encoder.hop_length)  # type: ignore[arg-type]

    @property
    def frame_rate(self) -> float:
        """Frames a second, in a segment."""
        return self.sample_rate / self.hop_length

    @property
    def num_codebooks(self) -> int:
        """Codebooks of the quantizer."""
        return int(self.quantizer.num_codebooks)  # type: ignore[arg-type]

    @property
    def codebook_size(self) -> int:
        """Codes of each codebook."""
        return int(self.quantizer.codebook_size)  # type: ignore[arg-type]

    @property
    def segment_length(self) -> int | None:
        """Samples of a segment; None where recordings stay whole."""
        return (
            None if self.segment_seconds is None else int(self.segment_seconds * self.sample_rate)
        )

    @property
    def segment_stride(self) -> int:
        """Samples from the start of a segment to that of the next one, where there are any."""
        return max(1, int((1 - self.overlap) * (self.segment_length or 0)))

    def kbps(self, num_codebooks: int) -> float:
        """Bit rate of so many codebooks, without entropy coding."""
        bits = math.log2(self.codebook_size)
        return round(num_codebooks * bits * self.frame_rate / 1000, 6)

    def codebooks_for(self, kbps: float) -> int:
        """How many codebooks a rate has.

        Raises
        ------
        DataError
            For a rate that the codec does not serve; the message lists those that it does.
        """
        for rate in self.rates_kbps:
            if math.isclose(rate, kbps, rel_tol=1e-6):
                return codebooks_in(rate, self.kbps(1))
        served = ", ".join(f"{rate:g}" for rate in self.rates_kbps)
        raise DataError(f"this codec has no {kbps:g} kbit/s: choose one of {served}")

    def forward(
        self,
        waveform: Tensor,
        lengths: Tensor | None = None,
        *,
        num_codebooks: int | None = None,
        generator: torch.Generator | None = None,
    ) -> CodecOutput:
        """Code and decode, with gradients; each item counts as one segment.

        Parameters
        ----------
        waveform : Tensor
            Shape ``(B, C, T)``.
        lengths : Tensor, optional
            Shape ``(B,)``: valid samples; all by default.
        num_codebooks : int, optional
            Codebooks to use; with 0 the latents go on as they are. By default, in training with a
            generator, those of one of the rates, drawn; else all.
        generator : torch.Generator, optional
            Draws the number of codebooks, and what quantizer dropout needs. All processes of a run
            need one in the same state.

        Raises
        ------
        DataError
            If the waveform has another shape than ``(B, channels, T)``.
        """
        check_waveform(waveform, self.channels)
        lengths = ragged(lengths, waveform.shape[2])
        if num_codebooks is None and self.training and generator is not None:
            choices = [codebooks_in(rate, self.kbps(1)) for rate in self.rates_kbps]
            num_codebooks = draw_num_codebooks(choices, generator)
        x, scale = self._scaled(waveform, lengths)
        latents, frames = self.encoder(x, lengths)
        inside = None if lengths is None else frames
        if num_codebooks == 0:
            quantized = not_quantized(latents)
        else:
            quantized = self.quantizer(
                latents, inside, num_codebooks=num_codebooks, generator=generator
            )
        estimate = self.from_network(self.decoder(quantized.data, inside).data)
        estimate = estimate[..., : waveform.shape[2]]
        estimate = estimate if scale is None else estimate * scale
        return CodecOutput(
            mask_channels(estimate, lengths), quantized.commitment, quantized.codes, frames
        )

    @torch.no_grad()
    def encode(
        self,
        waveform: Tensor,
        lengths: Tensor | None = None,
        *,
        kbps: float | None = None,
        num_codebooks: int | None = None,
    ) -> Encoded:
        """Turn waveforms into codes.

        Parameters
        ----------
        waveform : Tensor
            Shape ``(B, C, T)``.
        lengths : Tensor, optional
            Shape ``(B,)``: valid samples; all by default.
        kbps : float, optional
            One of ``rates_kbps``.
        num_codebooks : int, optional
            Codebooks to use, instead of a rate; all by default.

        Returns
        -------
        Encoded
            What `decode` takes.

        Raises
        ------
        DataError
            For a waveform of another shape, or a rate that the codec does not serve.
        """
        check_waveform(waveform, self.channels)
        count = self.codebooks_for(kbps) if kbps is not None else num_codebooks
        samples = full_lengths(lengths, waveform)
        if self.segment_length is None:
            codes, scale = self._encode_segment(waveform, ragged(lengths, waveform.shape[2]), count)
            scales = None if scale is None else scale.flatten(1)
            return Encoded(codes, self._frames(samples), scales, samples)
        codes_parts, scale_parts = [], []
        size, hop = self.segment_length, self.hop_length
        bounds = segment_bounds(waveform.shape[2], size, self.segment_stride)
        for start, stop in bounds:
            valid = (samples - start).clamp(0, stop - start)
            segment = waveform[..., start:stop]
            codes, scale = self._encode_segment(segment, ragged(valid, segment.shape[2]), count)
            missing = -(-size // hop) - codes.shape[2] if (start, stop) != bounds[-1] else 0
            codes_parts.append(F.pad(codes, (0, missing)))
            scale_parts += [] if scale is None else [scale.flatten(1)]
        frames = segment_frames(samples, size, self.segment_stride, hop)
        scales = torch.cat(scale_parts, dim=1) if scale_parts else None
        return Encoded(torch.cat(codes_parts, dim=2), frames, scales, samples)

    def _encode_segment(
        self, x: Tensor, lengths: Tensor | None, count: int | None
    ) -> tuple[Tensor, Tensor | None]:
        frames = None if lengths is None else self._frames(lengths)
        x, scale = self._scaled(x, lengths)
        if x.shape[2] == 0:
            return x.new_zeros(len(x), count or self.num_codebooks, 0, dtype=torch.int64), scale
        if pays_in_blocks(self.encoder, lengths, x):
            latents = encode_blocks(self.encoder, x)  # type: ignore[arg-type]
        else:
            latents = self.encoder(x, lengths).data
        codes = self.quantizer.encode(latents, num_codebooks=count)  # type: ignore[operator]
        return mask_channels(codes, frames), scale

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor,
        lengths: Tensor | None = None,
        scales: Tensor | None = None,
        num_samples: Tensor | None = None,
    ) -> Tensor:
        """Turn codes into waveforms; ``codec.decode(*codec.encode(x))`` has the shape of ``x``.

        Parameters
        ----------
        codes : Tensor
            Shape ``(B, Q, T')``, of any number of the codebooks.
        lengths : Tensor, optional
            Shape ``(B,)``: valid frames; all by default.
        scales : Tensor, optional
            Shape ``(B, S)``, as `encode` gave them.
        num_samples : Tensor, optional
            Shape ``(B,)``: samples to keep; by default all that the frames give.

        Returns
        -------
        Tensor
            Shape ``(B, C, T)``, zero in the padding.

        Raises
        ------
        DataError
            If codes lie outside the codebooks, or scales are missing.
        """
        self.check_codes(codes)
        if self.normalize and scales is None:
            raise DataError("the codec normalizes loudness: give decode the scales of encode")
        frames = full_lengths(lengths, codes)
        if self.segment_length is None:
            wave = self._decode_segment(codes, ragged(lengths, codes.shape[2]))
            wave = wave if scales is None else wave * scales.unsqueeze(2)
        else:
            wave = self._decode_segments(codes, frames, scales, num_samples)
        if num_samples is None:
            return wave
        return mask_channels(wave[..., : int(num_samples.max())], num_samples)

    def _decode_segments(
        self, codes: Tensor, frames: Tensor, scales: Tensor | None, num_samples: Tensor | None
    ) -> Tensor:
        assert self.segment_length is not None
        size = -(-self.segment_length // self.hop_length)
        waves, ends = [], []
        for index, part in enumerate(codes.split(size, dim=2)):
            if num_samples is None:
                valid = (frames - index * size).clamp(0, part.shape[2])
            else:
                samples = (num_samples - index * self.segment_stride).clamp(0, self.segment_length)
                valid = self._frames(samples).clamp(max=part.shape[2])
            wave = self._decode_segment(part, ragged(valid, part.shape[2]))
            waves.append(wave if scales is None else wave * scales[:, index, None, None])
            ends.append(valid * self.hop_length)
        return join_segments(waves, ends, self.segment_stride)

    def _decode_segment(self, codes: Tensor, lengths: Tensor | None) -> Tensor:
        latents = self.quantizer.decode(codes)  # type: ignore[operator]
        if codes.shape[2] and pays_in_blocks(self.decoder, lengths, codes):
            return self.from_network(decode_blocks(self.decoder, latents))  # type: ignore[arg-type]
        return self.from_network(self.decoder(latents, lengths).data)

    def streaming(
        self,
        *,
        batch_size: int = 1,
        kbps: float | None = None,
        num_codebooks: int | None = None,
    ) -> CodecStreams:
        """Open a stateful encoder and decoder: samples or codes in, piece by piece.

        Parameters
        ----------
        batch_size : int
            Recordings that come side by side, at the same pace.
        kbps, num_codebooks
            As of `encode`.

        Raises
        ------
        ValueError
            If the codec needs whole recordings, or is in training mode.
        DataError
            For a rate that the codec does not serve.
        """
        count = self.codebooks_for(kbps) if kbps is not None else num_codebooks
        return CodecStreams.open(self, batch_size=batch_size, num_codebooks=count)

    def fold_weight_norm(self) -> Codec:
        """Put plain weights in the place of weight norm, for inference; give the codec back.

        It can be saved and opened as it is afterwards.
        """
        fold_weight_norm(self)
        return self

    def check_codes(self, codes: Tensor) -> None:
        """Raise a `DataError` if codes are not ``(B, Q, T)`` of the quantizer's codebooks."""
        check_codes(codes, self.num_codebooks, self.codebook_size)

    def _frames(self, lengths: Tensor) -> Tensor:
        return self.encoder.num_frames(lengths)  # type: ignore[operator]

    def _scaled(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Divide each item by its loudness, if the codec does so."""
        scale = loudness(x, lengths) if self.normalize else None
        return self.to_network(x if scale is None else x / scale), scale

    def to_network(self, waveform: Tensor) -> Tensor:
        """Bring a waveform to the level that the encoder sees."""
        return waveform if self.level == 1.0 else waveform / self.level

    def from_network(self, waveform: Tensor) -> Tensor:
        """Bring what the decoder gives back to the waveform's level."""
        return waveform if self.level == 1.0 else waveform * self.level
