"""Transforms that bring recordings of a corpus together: silence at the ends, and loudness.

They follow the protocol of dataset transforms, ``transform(item, generator) -> item``, and draw
nothing: an item's waveform is the same in every epoch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.data.errors import DataError
from speechkit.data.speech_level import active_speech_level

MEASURES = ("lufs", "active")
_BLOCK = 0.4  # of BS.1770, in seconds


def sound_span(
    waveform: Tensor, sample_rate: int, *, threshold_db: float = 40.0, window: float = 0.02
) -> tuple[int, int]:
    """Find where sound begins and ends.

    Sound are the windows, half of each in the next one, whose mean power lies at most
    ``threshold_db`` below that of the loudest. A recording with noise that is louder than that has
    no silence.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.
    threshold_db : float
        In dB.
    window : float
        In seconds.

    Returns
    -------
    tuple of int
        First sample, and the one after the last; both are 0 in a waveform of zeros.

    Examples
    --------
    >>> waveform = torch.zeros(8000)
    >>> waveform[2000:6000] = torch.sin(torch.arange(4000.0))
    >>> sound_span(waveform, 8000)
    (1920, 6080)
    """
    if waveform.dim() != 1:
        raise ValueError(f"waveform must be (T,), got shape {tuple(waveform.shape)}")
    hop = max(1, round(window * sample_rate / 2))
    x = F.pad(waveform.double(), (0, -len(waveform) % hop)).reshape(-1, hop).square().mean(1)
    if not len(x) or float(x.max()) == 0.0:
        return 0, 0
    power = x if len(x) == 1 else (x[:-1] + x[1:]) / 2
    loud = torch.nonzero(power >= power.max() * 10.0 ** (-threshold_db / 10.0)).flatten()
    last = int(loud[-1]) + (1 if len(x) == 1 else 2)
    return int(loud[0]) * hop, min(last * hop, len(waveform))


class TrimSilence:
    """Cut the silence off both ends of ``item["waveform"]``, but for a margin.

    Parameters
    ----------
    sample_rate : int
        Of the waveforms.
    threshold_db : float
        How far below the loudest window sound may lie (see `sound_span`).
    margin : float
        What is kept of the silence on either side, in seconds, where there is so much.

    Raises
    ------
    ValueError
        For numbers that make no sense.

    Examples
    --------
    >>> waveform = torch.zeros(8000)
    >>> waveform[2000:6000] = torch.sin(torch.arange(4000.0))
    >>> trim = TrimSilence(sample_rate=8000, margin=0.1)
    >>> trim({"waveform": waveform}, torch.Generator())["waveform"].shape  # 0.52 s + 0.2 s
    torch.Size([5760])
    """

    def __init__(
        self, *, sample_rate: int, threshold_db: float = 40.0, margin: float = 0.05
    ) -> None:
        if sample_rate < 1 or threshold_db <= 0.0 or margin < 0.0:
            raise ValueError(
                f"sample_rate={sample_rate} and threshold_db={threshold_db} must be above 0, "
                f"margin={margin} at least 0"
            )
        self.sample_rate = sample_rate
        self.threshold_db = threshold_db
        self.margin = margin

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Return the item with a shorter waveform; `DataError` where it is all silence."""
        waveform: Tensor = item["waveform"]
        begin, end = sound_span(waveform, self.sample_rate, threshold_db=self.threshold_db)
        if end == 0:
            raise DataError("the recording is silent from beginning to end; remove it")
        margin = round(self.margin * self.sample_rate)
        return {**item, "waveform": waveform[max(0, begin - margin) : end + margin]}


def loudness(waveform: Tensor, sample_rate: int) -> float:
    """Measure the integrated loudness in LUFS (ITU-R BS.1770-4), gated, of one channel.

    The measure looks at blocks of 0.4 s; a shorter waveform is measured as if it were repeated to
    that length. (torchaudio's function of this name limits what its filters give to 1, so that it
    measures loud recordings too soft.)

    Parameters
    ----------
    waveform : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.

    Returns
    -------
    float
        Minus infinity where no block is above -70 LUFS.

    Examples
    --------
    >>> tone = torch.sin(torch.arange(48000) * 2 * torch.pi * 997 / 48000)
    >>> round(loudness(tone, 48000), 2)  # as the recommendation states
    -3.01
    """
    from torchaudio.functional import lfilter

    if waveform.dim() != 1 or not waveform.numel() or not bool(waveform.isfinite().all()):
        raise ValueError(
            f"waveform must be finite samples (T,), T > 0, got shape {tuple(waveform.shape)}"
        )
    block, step = round(_BLOCK * sample_rate), round(_BLOCK / 4 * sample_rate)
    x = waveform.detach().to("cpu", torch.float64)
    x = x.repeat(-(-block // len(x)))[: max(block, len(x))]
    for b, a in k_weighting(sample_rate):
        x = lfilter(x, x.new_tensor(a), x.new_tensor(b), clamp=False)
    # A block is four steps; what is left at the end is no whole block.
    steps = x[: len(x) // step * step].reshape(-1, step).square().mean(1)
    power = steps.unfold(0, 4, 1).mean(1)
    kept = power[power > _power_of(-70.0)]
    if not len(kept):
        return -math.inf
    kept = kept[kept > kept.mean() / 10.0]
    return 10.0 * math.log10(float(kept.mean())) - 0.691


def _power_of(lufs: float) -> float:
    return 10.0 ** ((lufs + 0.691) / 10.0)


def k_weighting(sample_rate: int) -> tuple[tuple[list[float], list[float]], ...]:
    """Give the coefficients (b, a) of BS.1770's two filters: a high shelf and a high-pass.

    The recommendation tables them for 48 kHz; for another rate they are designed anew from the same
    analog filters, whose parameters are those of the tables.

    Examples
    --------
    >>> (b, a), _ = k_weighting(48000)
    >>> [round(value, 6) for value in b], [round(value, 6) for value in a]
    ([1.535125, -2.691696, 1.198393], [1.0, -1.690659, 0.732481])
    """
    k, q = math.tan(math.pi * 1681.974450955533 / sample_rate), 0.7071752369554196
    high = 10.0 ** (3.999843853973347 / 20.0)
    middle = high**0.4996667741545416
    norm = 1.0 + k / q + k * k
    shelf = (
        [
            (high + middle * k / q + k * k) / norm,
            2.0 * (k * k - high) / norm,
            (high - middle * k / q + k * k) / norm,
        ],
        [1.0, 2.0 * (k * k - 1.0) / norm, (1.0 - k / q + k * k) / norm],
    )
    k, q = math.tan(math.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    norm = 1.0 + k / q + k * k
    return shelf, (
        [1.0, -2.0, 1.0],
        [1.0, 2.0 * (k * k - 1.0) / norm, (1.0 - k / q + k * k) / norm],
    )


class SetLoudness:
    """Scale ``item["waveform"]`` to a loudness, unless its peak would be too high.

    Parameters
    ----------
    sample_rate : int
        Of the waveforms.
    target : float
        What it should be: in LUFS, or the active speech level in dB of full scale.
    measure : str
        ``"lufs"`` (`loudness`) or ``"active"`` (ITU-T P.56, `active_speech_level`), which does not
        count pauses.
    peak : float
        The gain is smaller where the largest sample would lie above this.

    Raises
    ------
    ValueError
        For an unknown measure, or numbers that make no sense.

    Examples
    --------
    >>> tone = torch.sin(torch.arange(48000) * 2 * torch.pi * 997 / 48000)
    >>> change = SetLoudness(sample_rate=48000, target=-23.0)
    >>> louder = change({"waveform": 0.01 * tone}, torch.Generator())["waveform"]
    >>> round(loudness(louder, 48000), 2)
    -23.0
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        target: float = -23.0,
        measure: str = "lufs",
        peak: float = 1.0,
    ) -> None:
        if measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}")
        if sample_rate < 1 or peak <= 0.0 or not math.isfinite(target):
            raise ValueError(
                f"sample_rate={sample_rate} and peak={peak} must be above 0, target={target} finite"
            )
        self.sample_rate = sample_rate
        self.target = target
        self.measure = measure
        self.peak = peak

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Return the item with a scaled waveform; `DataError` where it is too soft to measure."""
        waveform: Tensor = item["waveform"]
        if self.measure == "lufs":
            level = loudness(waveform, self.sample_rate)
        else:
            level = active_speech_level(waveform, self.sample_rate).db
        if not math.isfinite(level):
            raise DataError(
                f"the recording is silent: no loudness ({self.measure}) can be measured; remove it"
            )
        gain = 10.0 ** ((self.target - level) / 20.0)
        gain = min(gain, self.peak / float(waveform.abs().max()))
        return {**item, "waveform": waveform * gain}
