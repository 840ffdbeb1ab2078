"""Augmentation of waveforms: noise, reverberation, speed and pitch; all other names re-exported.

An augmentation is a dataset transform, ``augmentation(item, generator) -> item``: it changes
``item["waveform"]`` with a probability, and is a function of the item and the generator alone. The
level of the result is not limited to [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.data.audio import audio_info, read_audio, read_audio_channels, resample
from speechkit.data.distortion import (
    Augmentation,
    ChangeGain,
    Clip,
    DropChunk,
    DropFrequency,
    LowPass,
    check_range,
    fft_size,
    integer,
    uniform,
)
from speechkit.data.manifest import DataError, read_manifest
from speechkit.data.specaugment import SpecAugment

__all__ = [
    "AddNoise",
    "Augmentation",
    "ChangeGain",
    "ChangeSpeed",
    "Clip",
    "DropChunk",
    "DropFrequency",
    "LowPass",
    "Reverberate",
    "ShiftPitch",
    "SpecAugment",
]

Recordings = str | Path | Sequence[str | Path]


class _Recording(NamedTuple):
    path: str
    start: float
    duration: float


class AddNoise(Augmentation):
    """Add noise at a signal-to-noise ratio.

    The ratio is that of the mean powers over the whole waveform. Where either of the two is silent,
    there is no such ratio, and the waveform stays as it is.

    Parameters
    ----------
    noise : str, Path, sequence of str or Path, optional
        A manifest, or audio files; artificial noise if None. Of a recording longer than the
        waveform a random piece is read; a shorter one is repeated from a random point.
    snr_db : tuple of float
        Range that the ratio is drawn from, uniformly, in dB.
    color : str
        Of artificial noise: ``"white"``, or ``"pink"`` (power falls as 1 / f).
    sample_rate : int
        Of the waveforms; recordings are resampled to it.
    prob : float
        Probability that an item is changed.

    Raises
    ------
    DataError
        If there is no recording, or one cannot be read; it is named.

    Examples
    --------
    >>> item = {"waveform": torch.sin(torch.arange(16000) / 10)}
    >>> noisy = AddNoise(snr_db=(0.0, 0.0))(item, torch.Generator())["waveform"]
    >>> noise = noisy - item["waveform"]
    >>> bool((noise.square().mean() / item["waveform"].square().mean() - 1).abs() < 1e-3)
    True
    """

    def __init__(
        self,
        *,
        noise: Recordings | None = None,
        snr_db: tuple[float, float] = (0.0, 20.0),
        color: str = "white",
        sample_rate: int = 16000,
        prob: float = 1.0,
    ) -> None:
        super().__init__(prob=prob)
        if color not in ("white", "pink"):
            raise ValueError(f'color must be "white" or "pink", got {color!r}')
        self.noise = noise
        self.snr_db = check_range("snr_db", snr_db)
        self.color = color
        self.sample_rate = sample_rate
        self._recordings = None if noise is None else _find_recordings(noise)

    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Add the noise."""
        snr = uniform(generator, self.snr_db)
        noise = self._make_noise(len(waveform), generator)
        power, noise_power = _power(waveform), _power(noise)
        if power == 0.0 or noise_power == 0.0:
            return waveform
        return waveform + noise * math.sqrt(power / noise_power * 10.0 ** (-snr / 10.0))

    def _make_noise(self, size: int, generator: torch.Generator) -> Tensor:
        if self._recordings is None:
            noise = torch.randn(size, generator=generator)
            return _to_pink(noise) if self.color == "pink" else noise
        recording = self._recordings[integer(generator, 0, len(self._recordings) - 1)]
        seconds = size / self.sample_rate
        position = uniform(generator, (0.0, 1.0))
        longer = recording.duration > seconds
        noise, _ = read_audio(
            recording.path,
            start=recording.start + (position * (recording.duration - seconds) if longer else 0.0),
            duration=seconds if longer else recording.duration,
            sample_rate=self.sample_rate,
        )
        if not longer:
            noise = noise.roll(int(position * len(noise)))
        return noise.repeat(-(-size // len(noise)))[:size]


class Reverberate(Augmentation):
    """Convolve with a room's impulse response.

    The direct sound, the largest sample of the response, gets no delay, so that the words stay
    where they are; length and mean power stay as they are too.

    Parameters
    ----------
    impulse_responses : str, Path, sequence of str or Path, optional
        A manifest, or audio files (of several channels, one is drawn); if None, responses are
        drawn: an impulse, and white noise that decays exponentially (Polack, 1988).
    rt60 : tuple of float
        Of drawn responses: range of the time to decay by 60 dB, in seconds.
    direct_db : tuple of float
        Of drawn responses: range of the direct sound's energy over that of the rest, in dB.
    sample_rate : int
        Of the waveforms; recordings are resampled to it.
    prob : float
        Probability that an item is changed.

    Raises
    ------
    DataError
        If there is no recording, or one cannot be read; it is named.

    Examples
    --------
    >>> reverberate = Reverberate(rt60=(0.3, 0.3))
    >>> reverberate({"waveform": torch.randn(8000)}, torch.Generator())["waveform"].shape
    torch.Size([8000])
    """

    def __init__(
        self,
        *,
        impulse_responses: Recordings | None = None,
        rt60: tuple[float, float] = (0.1, 0.6),
        direct_db: tuple[float, float] = (0.0, 12.0),
        sample_rate: int = 16000,
        prob: float = 1.0,
    ) -> None:
        super().__init__(prob=prob)
        self.impulse_responses = impulse_responses
        self.rt60 = check_range("rt60", rt60, low=1e-3)
        self.direct_db = check_range("direct_db", direct_db)
        self.sample_rate = sample_rate
        self._recordings = (
            None if impulse_responses is None else _find_recordings(impulse_responses)
        )

    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Convolve the waveform."""
        response = self._make_response(generator)
        direct = int(response.abs().argmax())
        # torchaudio's fftconvolve takes the exact size, which may be prime: five times as slow.
        size = fft_size(len(waveform) + len(response) - 1)
        spectrum = torch.fft.rfft(waveform, n=size) * torch.fft.rfft(response, n=size)
        wet = torch.fft.irfft(spectrum, n=size)[direct : direct + len(waveform)]
        wet_power = _power(wet)
        return wet * math.sqrt(_power(waveform) / wet_power) if wet_power > 0.0 else waveform

    def _make_response(self, generator: torch.Generator) -> Tensor:
        if self._recordings is None:
            rt60, direct_db = uniform(generator, self.rt60), uniform(generator, self.direct_db)
            time = torch.arange(int(rt60 * self.sample_rate)) / self.sample_rate
            # 10 ** -3 is the amplitude of -60 dB.
            tail = torch.randn(len(time), generator=generator) * 10.0 ** (-3.0 * time / rt60)
            tail *= 10.0 ** (-direct_db / 20.0) / tail.norm().clamp_min(1e-12)
            # The noise of a strong tail may not exceed the direct sound, which marks the start.
            return torch.cat([torch.ones(1), tail.clamp(-0.99, 0.99)])
        recording = self._recordings[integer(generator, 0, len(self._recordings) - 1)]
        channels = _read_response(*recording, self.sample_rate)
        return channels[integer(generator, 0, len(channels) - 1)]


class ChangeSpeed(Augmentation):
    """Play faster or slower: duration and pitch change together (Ko et al., 2015).

    Parameters
    ----------
    factors : sequence of float
        Speeds to draw from; 1.1 is a tenth faster, shorter and higher. They are met as fractions
        with denominators up to 100.
    prob : float
        Probability that an item is changed.

    Raises
    ------
    ValueError
        If a factor is not in [0.1, 10].

    Examples
    --------
    >>> faster = ChangeSpeed(factors=[1.25])
    >>> faster({"waveform": torch.randn(1000)}, torch.Generator())["waveform"].shape
    torch.Size([800])
    """

    def __init__(self, *, factors: Sequence[float] = (0.9, 1.0, 1.1), prob: float = 1.0) -> None:
        super().__init__(prob=prob)
        self.factors = list(factors)
        if not self.factors or not all(0.1 <= f <= 10.0 for f in self.factors):
            raise ValueError(f"factors must be in [0.1, 10], and some, got {self.factors}")

    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Resample the waveform."""
        factor = self.factors[integer(generator, 0, len(self.factors) - 1)]
        speed = Fraction(factor).limit_denominator(100)
        return resample(waveform, speed.numerator, speed.denominator)


class ShiftPitch(Augmentation):
    """Change the pitch and keep the duration.

    A phase vocoder (Flanagan & Golden, 1966) stretches the waveform, and resampling brings it back
    to its length. torchaudio's own pitch shift does the same with the sample rates as the ratio,
    which took 1 to 39 s for 10 s of audio; here the ratio is a fraction of small terms.

    Parameters
    ----------
    semitones : tuple of float
        Range that the shift is drawn from, uniformly; met within a tenth of a semitone.
    n_fft : int
        Samples of the vocoder's frames.
    prob : float
        Probability that an item is changed.

    Examples
    --------
    >>> higher = ShiftPitch(semitones=(2.0, 2.0))
    >>> higher({"waveform": torch.randn(4000)}, torch.Generator())["waveform"].shape
    torch.Size([4000])
    """

    def __init__(
        self,
        *,
        semitones: tuple[float, float] = (-2.0, 2.0),
        n_fft: int = 512,
        prob: float = 1.0,
    ) -> None:
        super().__init__(prob=prob)
        self.semitones = check_range("semitones", semitones, low=-24.0, high=24.0)
        self.n_fft = n_fft

    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Stretch the waveform and resample it."""
        from torchaudio.functional import phase_vocoder

        size, hop = len(waveform), self.n_fft // 4
        ratio = Fraction(2.0 ** (uniform(generator, self.semitones) / 12.0)).limit_denominator(100)
        if ratio == 1:
            return waveform
        window = torch.hann_window(self.n_fft)
        spectrum = torch.stft(
            torch.nn.functional.pad(waveform, (0, max(0, self.n_fft - size))),
            self.n_fft,
            hop,
            window=window,
            pad_mode="constant",
            return_complex=True,
        )
        advance = torch.linspace(0.0, math.pi * hop, spectrum.shape[0]).unsqueeze(1)
        spectrum = phase_vocoder(spectrum, float(1 / ratio), advance)
        stretched = torch.istft(spectrum, self.n_fft, hop, window=window)
        shifted = resample(stretched, ratio.numerator, ratio.denominator)[:size]
        return torch.nn.functional.pad(shifted, (0, size - len(shifted)))


def _find_recordings(source: Recordings) -> list[_Recording]:
    """List the recordings of a manifest, or of audio files."""
    if isinstance(source, (str, Path)):
        found = [_Recording(u.audio, u.start, u.duration) for u in read_manifest(source)]
    else:
        found = []
        for path in source:
            info = audio_info(path)
            found.append(_Recording(str(path), 0.0, info.num_samples / info.sample_rate))
    if not found:
        raise DataError(f"no recordings in {str(source)!r}: the list is empty")
    return found


@lru_cache(maxsize=64)
def _read_response(path: str, start: float, duration: float, sample_rate: int) -> Tensor:
    channels, _ = read_audio_channels(path, start=start, duration=duration, sample_rate=sample_rate)
    return channels


def _power(waveform: Tensor) -> float:
    return float(waveform.double().square().mean())


def _to_pink(white: Tensor) -> Tensor:
    """Give white noise a power that falls as 1 / f, without a constant part."""
    spectrum = torch.fft.rfft(white)
    frequency = torch.arange(len(spectrum)).clamp_min(1)
    spectrum = spectrum / frequency.sqrt()
    spectrum[0] = 0.0
    return torch.fft.irfft(spectrum, n=len(white))
