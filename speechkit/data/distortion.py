"""Augmentations that damage a waveform: gain, clipping, dropped chunks and bands, low-pass.

They follow the protocol of dataset transforms, ``augmentation(item, generator) -> item``, and are
functions of the two alone. The classes that add something to the waveform or change its speed are
in `speechkit.data.augment`, which has all names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

_EDGE_HZ = 20.0  # width of a filter's flanks
_FFT_MULTIPLE = 4096  # lengths with a large prime factor make a slow FFT


class Augmentation(ABC):
    """A random change of ``item["waveform"]``, float32 ``(T,)``.

    Parameters
    ----------
    prob : float
        Probability that an item is changed.
    """

    def __init__(self, *, prob: float) -> None:
        if not 0.0 <= prob <= 1.0:
            raise ValueError(f"prob must be in [0, 1], got {prob}")
        self.prob = prob

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Return the item with a new waveform, or the item itself.

        Parameters
        ----------
        item : dict
            With ``"waveform"``; not modified.
        generator : torch.Generator
            The only source of randomness.
        """
        chosen = uniform(generator, (0.0, 1.0)) < self.prob
        waveform: Tensor = item["waveform"]
        if not chosen or waveform.numel() == 0:
            return item
        return {**item, "waveform": self.augment(waveform.float(), generator)}

    @abstractmethod
    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Change a waveform ``(T,)``, T > 0."""


class ChangeGain(Augmentation):
    """Make the waveform louder or softer.

    Parameters
    ----------
    gain_db : tuple of float
        Range that the gain is drawn from, uniformly, in dB.
    prob : float
        Probability that an item is changed.

    Examples
    --------
    >>> louder = ChangeGain(gain_db=(20.0, 20.0))
    >>> louder({"waveform": torch.tensor([0.5])}, torch.Generator())["waveform"].item()
    5.0
    """

    def __init__(self, *, gain_db: tuple[float, float] = (-6.0, 6.0), prob: float = 1.0) -> None:
        super().__init__(prob=prob)
        self.gain_db = check_range("gain_db", gain_db)

    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Scale the waveform."""
        return waveform * 10.0 ** (uniform(generator, self.gain_db) / 20.0)


class Clip(Augmentation):
    """Cut off the waveform's peaks, as an overdriven microphone does.

    Parameters
    ----------
    fraction : tuple of float
        Range of the clipping level, as a fraction of the waveform's own peak.
    prob : float
        Probability that an item is changed.

    Examples
    --------
    >>> clip = Clip(fraction=(0.5, 0.5))
    >>> clip({"waveform": torch.tensor([0.2, -1.0])}, torch.Generator())["waveform"].tolist()
    [0.2..., -0.5]
    """

    def __init__(self, *, fraction: tuple[float, float] = (0.3, 0.9), prob: float = 1.0) -> None:
        super().__init__(prob=prob)
        self.fraction = check_range("fraction", fraction, low=0.0, high=1.0)

    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Clamp the waveform."""
        level = uniform(generator, self.fraction) * float(waveform.abs().max())
        return waveform.clamp(-level, level)


class DropChunk(Augmentation):
    """Silence short stretches of the waveform, as lost packets do.

    Parameters
    ----------
    num_chunks : tuple of int
        Range of the number of stretches.
    seconds : tuple of float
        Range of the length of one.
    max_share : float
        All together are at most this share of the waveform.
    sample_rate : int
        Of the waveforms.
    prob : float
        Probability that an item is changed.

    Examples
    --------
    >>> drop = DropChunk(num_chunks=(1, 1), seconds=(0.1, 0.1))
    >>> y = drop({"waveform": torch.ones(16000)}, torch.Generator())["waveform"]
    >>> int((y == 0).sum())
    1600
    """

    def __init__(
        self,
        *,
        num_chunks: tuple[int, int] = (1, 4),
        seconds: tuple[float, float] = (0.02, 0.1),
        max_share: float = 0.2,
        sample_rate: int = 16000,
        prob: float = 1.0,
    ) -> None:
        super().__init__(prob=prob)
        self.num_chunks = check_range("num_chunks", num_chunks, low=0)
        self.seconds = check_range("seconds", seconds, low=0.0)
        if not 0.0 <= max_share <= 1.0:
            raise ValueError(f"max_share must be in [0, 1], got {max_share}")
        self.max_share = max_share
        self.sample_rate = sample_rate

    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Zero the stretches."""
        waveform = waveform.clone()
        budget = int(self.max_share * len(waveform))
        for _ in range(integer(generator, *self.num_chunks)):
            size = min(round(uniform(generator, self.seconds) * self.sample_rate), budget)
            start = integer(generator, 0, len(waveform) - size)
            waveform[start : start + size] = 0.0
            budget -= size
        return waveform


class DropFrequency(Augmentation):
    """Remove bands of frequencies.

    Parameters
    ----------
    num_bands : tuple of int
        Range of the number of bands.
    width_hz : tuple of float
        Range of the width of one, in Hz.
    range_hz : tuple of float, optional
        Where bands lie; from 100 Hz to half the sample rate by default.
    sample_rate : int
        Of the waveforms.
    prob : float
        Probability that an item is changed.

    Examples
    --------
    >>> drop = DropFrequency(num_bands=(1, 1), width_hz=(100.0, 100.0), range_hz=(950.0, 1050.0))
    >>> tone = torch.sin(2 * torch.pi * 1000 / 16000 * torch.arange(16000))
    >>> y = drop({"waveform": tone}, torch.Generator())["waveform"]
    >>> bool(y[4000:12000].square().mean() < 1e-4 * tone.square().mean())
    True
    """

    def __init__(
        self,
        *,
        num_bands: tuple[int, int] = (1, 3),
        width_hz: tuple[float, float] = (50.0, 300.0),
        range_hz: tuple[float, float] | None = None,
        sample_rate: int = 16000,
        prob: float = 1.0,
    ) -> None:
        super().__init__(prob=prob)
        self.num_bands = check_range("num_bands", num_bands, low=0)
        self.width_hz = check_range("width_hz", width_hz, low=0.0)
        if range_hz is not None:
            check_range("range_hz", range_hz, low=0.0, high=sample_rate / 2)
        self.range_hz = range_hz
        self.sample_rate = sample_rate

    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Filter the waveform, without delay."""
        low, high = self.range_hz or (100.0, self.sample_rate / 2)
        bands = []
        for _ in range(integer(generator, *self.num_bands)):
            width = min(uniform(generator, self.width_hz), high - low)
            start = uniform(generator, (low, high - width))
            bands.append((start, start + width))

        def gain(frequencies: Tensor) -> Tensor:
            total = torch.ones_like(frequencies)
            for start, end in bands:
                distance = torch.maximum(start - frequencies, frequencies - end)
                total = total * _flank(distance / _EDGE_HZ)
            return total

        return _filter(waveform, gain, self.sample_rate)


class LowPass(Augmentation):
    """Limit the bandwidth, and quantise by the mu-law if asked, as telephone codecs do.

    Parameters
    ----------
    cutoff_hz : tuple of float
        Range of the highest frequency that passes; a tenth above it, all is gone.
    mu_law_levels : int, optional
        Quantise to so many levels (ITU-T G.711 has 256); not at all by default.
    sample_rate : int
        Of the waveforms.
    prob : float
        Probability that an item is changed.

    Examples
    --------
    >>> telephone = LowPass(cutoff_hz=(3400.0, 3400.0), mu_law_levels=256)
    >>> telephone({"waveform": torch.randn(800) / 9}, torch.Generator())["waveform"].shape
    torch.Size([800])
    """

    def __init__(
        self,
        *,
        cutoff_hz: tuple[float, float] = (2000.0, 6000.0),
        mu_law_levels: int | None = None,
        sample_rate: int = 16000,
        prob: float = 1.0,
    ) -> None:
        super().__init__(prob=prob)
        self.cutoff_hz = check_range("cutoff_hz", cutoff_hz, low=1.0)
        if mu_law_levels is not None and mu_law_levels < 2:
            raise ValueError(f"mu_law_levels must be at least 2, got {mu_law_levels}")
        self.mu_law_levels = mu_law_levels
        self.sample_rate = sample_rate

    def augment(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Filter the waveform, without delay, and quantise it."""
        cutoff = uniform(generator, self.cutoff_hz)
        waveform = _filter(
            waveform,
            lambda frequencies: _flank(1.0 - (frequencies - cutoff) / (0.1 * cutoff)),
            self.sample_rate,
        )
        if self.mu_law_levels is None:
            return waveform
        from torchaudio.functional import mu_law_decoding, mu_law_encoding

        scale = max(1.0, float(waveform.abs().max()))  # the mu-law knows [-1, 1] only
        codes = mu_law_encoding(waveform / scale, self.mu_law_levels)
        decoded: Tensor = mu_law_decoding(codes, self.mu_law_levels)
        return decoded * scale


def uniform(generator: torch.Generator, bounds: tuple[float, float]) -> float:
    """Draw a number from ``[low, high)``."""
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Draw an integer from ``low .. high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def check_range(name: str, bounds: Any, *, low: float = -math.inf, high: float = math.inf) -> Any:
    """Return a pair as a tuple; a ValueError unless low <= first <= last <= high."""
    pair = tuple(bounds)
    if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
        raise ValueError(
            f"{name} must be (first, last) with {low} <= first <= last <= {high}, got {bounds}"
        )
    return pair


def fft_size(least: int) -> int:
    """Return a size not below ``least`` whose FFT is fast."""
    return -(-least // _FFT_MULTIPLE) * _FFT_MULTIPLE


def _flank(x: Tensor) -> Tensor:
    """Half a cosine from 0 (x <= 0) to 1 (x >= 1)."""
    return 0.5 - 0.5 * torch.cos(math.pi * x.clamp(0.0, 1.0))


def _filter(waveform: Tensor, gain: Any, sample_rate: int) -> Tensor:
    """Multiply the spectrum by ``gain(frequencies in Hz)``; zeros keep the ends from wrapping."""
    size = fft_size(len(waveform) + int(2 * sample_rate / _EDGE_HZ))
    frequencies = torch.fft.rfftfreq(size, 1.0 / sample_rate)
    spectrum = torch.fft.rfft(waveform, n=size) * gain(frequencies)
    return torch.fft.irfft(spectrum, n=size)[: len(waveform)].contiguous()
