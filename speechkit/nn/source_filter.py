"""Pulses at the voice's pitch and noise, each shaped by a filter that a network moves with time.

::

    mel ---> encoder ---> pitch, voicing ---> pulses --- filter ---.
                |                              noise --- filter ---( + )---> wave
                '-------> two spectra a frame -----'--------'

Convolutions alone see the same mel in each frame of a steady vowel and make the same wave in each,
at the rate of the frames and not of the voice; discriminators and long training make them count
periods. Here a phase adds up the pitch, and distances of spectra suffice to learn the rest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.masking import length_mask, mask_padding

CENTER_HZ = 180.0
"""The pitch that a network without weights would predict."""
_OCTAVES = 3.0  # above and below, at most


class PredictedPitch(NamedTuple):
    """The pitch of each frame, as a network hears it in a mel.

    Attributes
    ----------
    log_f0 : Tensor
        Shape ``(B, T)``: natural logarithm of F0 in Hz, between vowels too.
    voicing : Tensor
        Shape ``(B, T)``: logit of there being a voice.
    """

    log_f0: Tensor
    voicing: Tensor


def pulse_train(f0: Tensor, lengths: Tensor, *, sample_rate: int, hop_length: int) -> Tensor:
    """Pulses at the pitch: all harmonics below half the sample rate, equally strong.

    Between the frames F0 is interpolated, and behind the last one it stays. The power is 1 at any
    pitch.

    Parameters
    ----------
    f0 : Tensor
        Shape ``(B, T)`` in Hz, above 0; frame ``t`` is at sample ``t * hop_length``.
    lengths : Tensor
        Shape ``(B,)``: valid frames.
    sample_rate, hop_length : int
        In Hz, and in samples.

    Returns
    -------
    Tensor
        Shape ``(B, T * hop_length)``, float32.

    Examples
    --------
    >>> wave = pulse_train(torch.full((1, 9), 100.0), torch.tensor([9]), sample_rate=8000,
    ...     hop_length=80)
    >>> wave.shape, torch.allclose(wave[:, :80], wave[:, 240:320], atol=1e-3)
    (torch.Size([1, 720]), True)
    """
    f0 = f0.double()
    index = torch.arange(f0.shape[1], device=f0.device)
    following = torch.cat([f0[:, 1:], f0[:, -1:]], dim=1)
    following = torch.where(index + 1 < lengths.unsqueeze(1), following, f0)
    place = torch.arange(hop_length, device=f0.device, dtype=f0.dtype) / hop_length
    hertz = (f0.unsqueeze(2) + (following - f0).unsqueeze(2) * place).flatten(1)
    half = 0.5 * (hertz / sample_rate).cumsum(1).remainder(1.0)
    harmonics = (0.5 * sample_rate / hertz).floor().clamp(min=1.0)
    # The sum of cos(k phase) for k = 1 to K, in closed form.
    below = (2 * math.pi * half).sin()
    near = below.abs() < 1e-6
    total = 0.5 * ((2 * math.pi * half * (2 * harmonics + 1)).sin() / below.where(~near, 1.0) - 1)
    return (total.where(~near, harmonics) * (2.0 / harmonics).sqrt()).float()


def minimum_phase(log_magnitude: Tensor) -> Tensor:
    """Give the phase that a causal and stable filter of these magnitudes has.

    Its cepstrum has no negative times (Oppenheim & Schafer, "Discrete-time signal processing",
    section 13.5).

    Parameters
    ----------
    log_magnitude : Tensor
        Shape ``(..., n_fft // 2 + 1)``: natural logarithms.

    Returns
    -------
    Tensor
        The same shape, in radians.

    Examples
    --------
    >>> response = torch.fft.rfft(torch.tensor([1.0, -0.5] + [0.0] * 62))
    >>> torch.allclose(minimum_phase(response.abs().log()), response.angle(), atol=1e-5)
    True
    """
    size = 2 * (log_magnitude.shape[-1] - 1)
    cepstrum = torch.fft.irfft(log_magnitude, size)
    fold = torch.zeros(size, device=cepstrum.device, dtype=cepstrum.dtype)
    fold[0] = fold[size // 2] = 1.0
    fold[1 : size // 2] = 2.0
    return torch.fft.rfft(cepstrum * fold, size).imag


class SourceFilterGenerator(nn.Module):
    """Mel spectra to waveforms by filters over pulses and noise.

    After Liu, Chen & Yu 2020, "Neural homomorphic vocoder": filters of minimum phase, of which the
    network gives the logarithmic spectra. Here it predicts the pitch too, and the filters are
    applied by the Fourier transform. `take_pitch` gives the pitch for the loss
    (`speechkit.losses.vocoder.pitch_loss`); no gradient goes through the source. Noise is drawn
    from torch's generator in training, else from one with a seed: a mel always gives the same wave.
    In a padded batch an item is what it is alone but for what the last bits of the pitch add up to.

    Parameters
    ----------
    sample_rate : int
        Of the waveforms, in Hz.
    num_mels : int
        Bands of the mel.
    hop_length : int
        Samples of a frame.
    encoder : nn.Module
        ``(B, T, num_mels)`` with lengths to ``output_size`` features a frame.
    num_bands : int
        Points of each filter's spectrum, from 0 Hz to half the sample rate.
    n_fft : int
        Of the filters, at least six hops, since a frame of four is filtered.

    Raises
    ------
    ValueError
        Where the numbers do not fit together.

    Examples
    --------
    >>> from speechkit.nn.convnext import ConvNeXtEncoder
    >>> encoder = ConvNeXtEncoder(input_size=80, embed_dim=8, num_layers=1, hidden_size=16)
    >>> generator = SourceFilterGenerator(sample_rate=22050, encoder=encoder)
    >>> generator(torch.randn(2, 80, 5), torch.tensor([5, 2])).shape
    torch.Size([2, 1, 1280])
    >>> generator.take_pitch().log_f0.shape
    torch.Size([2, 5])
    """

    window: Tensor
    takes_lengths = True
    """Whether padded batches can be given with lengths."""

    def __init__(
        self,
        *,
        sample_rate: int,
        encoder: nn.Module,
        num_mels: int = 80,
        hop_length: int = 256,
        num_bands: int = 257,
        n_fft: int = 2048,
    ) -> None:
        super().__init__()
        if n_fft < 6 * hop_length or n_fft % 2 or num_bands < 2 or hop_length < 1:
            raise ValueError(
                f"need an even n_fft of at least 6 hops and num_bands of at least 2, got "
                f"n_fft={n_fft}, hop_length={hop_length}, num_bands={num_bands}"
            )
        self.sample_rate = sample_rate
        self.encoder = encoder
        self.num_mels = num_mels
        self.hop_length = hop_length
        self.num_bands = num_bands
        self.n_fft = n_fft
        self.pitch = nn.Linear(encoder.output_size, 2)  # type: ignore[arg-type]
        self.filters = nn.Linear(encoder.output_size, 2 * num_bands)  # type: ignore[arg-type]
        self.envelope = nn.Linear(num_mels, 2 * num_bands, bias=False)
        self.register_buffer("window", torch.hann_window(4 * hop_length), persistent=False)
        self._pitch: PredictedPitch | None = None

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Make waveforms.

        Parameters
        ----------
        mel : Tensor
            Shape ``(B, num_mels, T)``: channels first.
        lengths : Tensor, optional
            Shape ``(B,)``: valid frames; all by default.

        Returns
        -------
        Tensor
            Shape ``(B, 1, T * hop_length)``, zero beyond the items' ends.
        """
        batch, _, frames = mel.shape
        if batch == 0 or frames == 0:
            return mel.new_zeros(batch, 1, frames * self.hop_length)
        if lengths is None:
            lengths = torch.full((batch,), frames, device=mel.device)
        mel = mask_padding(mel.transpose(1, 2), lengths)
        x = self.encoder(mel, lengths).data
        with torch.autocast(mel.device.type, enabled=False):
            x = x.float()
            # Logarithms of a mel are nearly those of an envelope: a linear layer finds it soon.
            bands = self.filters(x) + self.envelope(mel.float())
            log_f0, voicing = self.pitch(x).unbind(2)
            log_f0 = math.log(CENTER_HZ) + _OCTAVES * math.log(2.0) * (log_f0 / _OCTAVES).tanh()
            pitch = PredictedPitch(log_f0, voicing)
            self._pitch = pitch if self.training else None
            with torch.no_grad():
                source = self.source(pitch, lengths)
            wave = self._filtered(source, self.responses(bands), lengths)
        return mask_padding(wave, lengths * self.hop_length).unsqueeze(1)

    def take_pitch(self) -> PredictedPitch | None:
        """Give the pitch of the last call, with its gradient, once; None if not in training."""
        pitch, self._pitch = self._pitch, None
        return pitch

    def source(self, pitch: PredictedPitch, lengths: Tensor) -> Tensor:
        """Make pulses, as loud as there is a voice, and noise: ``(B, 2, T * hop_length)``."""
        pulses = pulse_train(
            pitch.log_f0.exp(), lengths, sample_rate=self.sample_rate, hop_length=self.hop_length
        )
        voiced = pitch.voicing.sigmoid().repeat_interleave(self.hop_length, dim=1)
        if self.training:
            noise = torch.randn_like(pulses)
        else:
            # Sixteen by sixteen, torch draws the same numbers however many there are.
            count = -(-pulses.shape[1] // 16) * 16
            drawn = torch.randn(count, generator=torch.Generator().manual_seed(0))
            noise = drawn[: pulses.shape[1]].to(pulses).expand_as(pulses)
        both = torch.stack([pulses * voiced, noise], dim=2)
        return mask_padding(both, lengths * self.hop_length).transpose(1, 2)

    def responses(self, bands: Tensor) -> Tensor:
        """Give the responses ``(B, T, 2, n_fft // 2 + 1)`` of spectra ``(B, T, 2 * num_bands)``."""
        bands = bands.unflatten(2, (2, self.num_bands))
        # No bin is louder than a full-scale sine would make it.
        size = self.n_fft // 2 + 1
        log_magnitude = F.interpolate(
            bands.flatten(0, 1), size=size, mode="linear", align_corners=True
        ).clamp(max=7.0)
        phase = minimum_phase(log_magnitude)
        response = torch.polar(log_magnitude.exp(), phase)
        return response.unflatten(0, bands.shape[:2])

    def _filtered(self, source: Tensor, responses: Tensor, lengths: Tensor) -> Tensor:
        """Filter each frame of the source, and add the frames up: ``(B, T * hop_length)``."""
        hop, frames = self.hop_length, responses.shape[1]
        # Frame t is centred at sample t * hop, and its window spans four hops. Windows are divided
        # by their sum, so that they add up to one at the ends too, where some are missing.
        valid = length_mask(lengths, frames)
        windows = valid.unsqueeze(2) * self.window
        total = _overlap_add(windows, hop).clamp(min=1e-4)
        padded = F.pad(source, (2 * hop, 2 * hop)) / total.unsqueeze(1)[..., : (frames + 4) * hop]
        pieces = padded.unfold(2, 4 * hop, hop)[:, :, :frames].transpose(1, 2)  # (B, T, 2, 4 hop)
        spectra = torch.fft.rfft(pieces * windows.unsqueeze(2), self.n_fft)
        made = torch.fft.irfft((spectra * responses).sum(2), self.n_fft)
        return _overlap_add(made, hop)[:, 2 * hop : (frames + 2) * hop]


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Add frames ``(B, T, size)`` up, a hop apart, and zeros: ``(B, at least (T + 4) * hop)``."""
    batch, count, size = frames.shape
    parts = -(-size // hop)
    frames = F.pad(frames, (0, parts * hop - size)).unflatten(2, (parts, hop))
    out = frames.new_zeros(batch, count + max(parts, 4), hop)
    for part in range(parts):
        out[:, part : part + count] += frames[:, :, part]
    return out.flatten(1)
