"""How close decoded audio is to what was encoded: SI-SNR, STOI, PESQ, ViSQOL, mel distances.

SI-SNR and the mel distances are computed here; the others come from packages of the extra
``metrics`` (``pystoi``, ``pesq``, ``visqol-python``). A package that is missing leaves its measure
out, with one warning, and the MUSHRA-proxy (`speechkit.metrics.mushra`) then refuses.

Nothing is aligned here by looking at the signals: a codec's delay and a gain are declared by who
measures (`compensate`). PESQ and ViSQOL align within themselves, as their standards say, so that
they alone forgive a delay that was not declared.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.losses.separation import pairwise_si_snr
from speechkit.metrics.quality_mel import mel_distance, multi_scale_mel_distance
from speechkit.metrics.separation import NotComputableError, pesq

__all__ = [
    "MEASURES",
    "NotComputableError",
    "compensate",
    "low_pass",
    "measure",
    "missing_packages",
]

_SILENCE = 1e-16  # variance; audio of 32 bits has more
_STOP_DB = 60.0  # BS.1534 asks for 25 dB at 8/7 of the cutoff and 50 dB at 9/7
_warned: set[str] = set()


def measure(
    reference: Tensor, estimate: Tensor, sample_rate: int, *, metrics: Sequence[str]
) -> dict[str, float]:
    """Measure how close an estimate is to its reference.

    Channels are measured apart and averaged; those whose reference is silent do not count. A silent
    estimate is a failure, not a gap: it gets the least that a measure can give.

    Parameters
    ----------
    reference, estimate : Tensor
        Shape ``(C, T)``, in [-1, 1].
    sample_rate : int
        Of both, in Hz. PESQ and ViSQOL resample to their own.
    metrics : sequence of str
        ``"si_snr"`` (dB); ``"stoi"``, ``"estoi"`` (up to 1); ``"pesq"`` (wide band, MOS-LQO 1.04 to
        4.64, from 16 kHz on); ``"visqol_audio"``, ``"visqol_speech"`` (MOS-LQO 1 to 4.73 and to 5:
        audio mode at 48 kHz, speech mode at 16 kHz with the polynomial, from 16 kHz on);
        ``"mel"`` (dB, several windows); ``"mel_db"`` (dB, 80 bands at 24 kHz, from 24 kHz on).

    Returns
    -------
    dict
        The measures asked for that have a value. One is left out, with a warning for each reason
        (the first time), where its package is missing, the rate is too low for it or it cannot be
        computed for these signals.

    Raises
    ------
    ValueError
        Where shapes disagree, there is no sample, a sample is not finite, or a metric is unknown.

    Examples
    --------
    >>> reference = torch.randn(1, 24000, generator=torch.Generator().manual_seed(0))
    >>> found = measure(reference, 0.5 * reference, 24000, metrics=["si_snr", "mel", "mel_db"])
    >>> {name: round(value, 2) for name, value in found.items()}
    {'si_snr': 80.0, 'mel': 6.02, 'mel_db': 6.02}
    """
    unknown = [name for name in metrics if name not in MEASURES]
    if unknown:
        raise ValueError(f"no metric {unknown}; there are: {list(MEASURES)}")
    reference, estimate = _checked(reference, estimate, sample_rate)
    heard = [channel for channel in range(len(reference)) if not _is_silent(reference[channel])]
    if not heard:
        _warn("a silent reference: nothing can be measured against it")
        return {}
    found = {}
    for name in metrics:
        try:
            values = [
                _of_channel(name, reference[channel], estimate[channel], sample_rate)
                for channel in heard
            ]
        except (NotComputableError, ImportError) as error:
            _warn(f"{name} is left out: {error}")
            continue
        found[name] = sum(values) / len(values)
    return found


def missing_packages(metrics: Sequence[str]) -> dict[str, str]:
    """Say which measures this machine cannot compute, and what to install.

    Parameters
    ----------
    metrics : sequence of str
        As `measure` takes.

    Returns
    -------
    dict
        From a measure's name to the reason; empty where every package is there.

    Examples
    --------
    >>> missing_packages(["si_snr", "mel"])
    {}
    """
    reasons = {}
    for name in metrics:
        package = MEASURES[name].package
        try:
            if package is not None:
                _need(package)
        except ImportError as error:
            reasons[name] = str(error)
    return reasons


def compensate(
    reference: Tensor, estimate: Tensor, *, delay: int = 0, gain: bool = False
) -> tuple[Tensor, Tensor]:
    """Undo a codec's declared delay, and its level if declared, before measuring.

    The delay is what is known of the codec; nothing is searched for. Both signals end with the
    shorter one.

    Parameters
    ----------
    reference : Tensor
        Shape ``(..., T)``.
    estimate : Tensor
        Shape ``(..., T')``.
    delay : int
        Samples by which the estimate lags.
    gain : bool
        Multiply the estimate by the one factor for all channels that brings it nearest to the
        reference (least squares). For codecs that keep the waveform: one that makes new phases is
        drawn to silence by it.

    Returns
    -------
    tuple of Tensor
        Reference and estimate, ``(..., min(T, T' - delay))``.

    Raises
    ------
    ValueError
        Where channels disagree, the delay is negative or leaves nothing, or the gain is not above
        zero (the estimate is inverted, silent or of another recording).

    Examples
    --------
    >>> reference = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    >>> estimate = torch.tensor([[0.0, 0.5, 1.0, 1.5]])
    >>> compensate(reference, estimate, delay=1, gain=True)
    (tensor([[1., 2., 3.]]), tensor([[1., 2., 3.]]))
    """
    if reference.shape[:-1] != estimate.shape[:-1]:
        raise ValueError(f"channels disagree: {tuple(reference.shape)} and {tuple(estimate.shape)}")
    if not 0 <= delay < estimate.shape[-1]:
        raise ValueError(
            f"delay {delay} must be at least 0 and below the estimate's "
            f"{estimate.shape[-1]} samples"
        )
    estimate = estimate[..., delay:]
    length = min(reference.shape[-1], estimate.shape[-1])
    reference, estimate = reference[..., :length], estimate[..., :length]
    if not gain:
        return reference, estimate
    x, y = estimate.double(), reference.double()
    factor = float((x * y).sum() / x.square().sum())
    if not factor > 0:
        raise ValueError(
            f"the least-squares gain is {factor:.3g}: the estimate is inverted, silent or not of "
            "this recording"
        )
    return reference, (factor * x).to(estimate.dtype)


def low_pass(waveform: Tensor, sample_rate: int, cutoff: float) -> Tensor:
    """Make an anchor of a listening test: the waveform without what lies above the cutoff.

    A linear-phase filter without delay: flat to 0.01 dB up to the cutoff, 60 dB down from 8/7 of it
    on. ITU-R BS.1534 asks of the anchor of 3.5 kHz +-0.1 dB, 25 dB at 4 kHz and 50 dB at 4.5 kHz.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(..., T)``.
    sample_rate : int
        In Hz.
    cutoff : float
        In Hz: 3500 or 7000 for the standard's low and mid anchors.

    Returns
    -------
    Tensor
        The waveform's shape and type.

    Raises
    ------
    ValueError
        Where 8/7 of the cutoff is above half the sample rate.

    References
    ----------
    ITU-R BS.1534-3 (2015), "Method for the subjective assessment of intermediate quality level of
    audio systems"; Kaiser (1974), "Nonrecursive digital filter design using the I0-sinh window
    function".

    Examples
    --------
    >>> time = torch.arange(4800) / 48000
    >>> tones = [torch.sin(2 * torch.pi * f * time) for f in (1000.0, 5000.0)]
    >>> low, high = (low_pass(tone, 48000, 3500.0)[1000:-1000] for tone in tones)
    >>> round(float(low.square().mean()), 2), float(high.square().mean()) < 1e-6
    (0.5, True)
    """
    width = cutoff / 7.0
    if not 0 < cutoff + width <= sample_rate / 2:
        raise ValueError(
            f"an anchor of {cutoff:g} Hz needs audio of at least {2 * (cutoff + width):g} Hz, this "
            f"has {sample_rate}"
        )
    # Kaiser's formulas for the length and the window's shape of a given attenuation.
    half = math.ceil((_STOP_DB - 7.95) / (14.36 * width / sample_rate) / 2)
    beta = 0.1102 * (_STOP_DB - 8.7)
    place = torch.arange(-half, half + 1, dtype=torch.float64)
    edge = 2.0 * (cutoff + width / 2) / sample_rate
    window = torch.kaiser_window(2 * half + 1, periodic=False, beta=beta, dtype=torch.float64)
    taps = edge * torch.sinc(edge * place) * window
    taps = taps / taps.sum()
    size = waveform.shape[-1] + 2 * half
    spectrum = torch.fft.rfft(waveform.double(), n=size) * torch.fft.rfft(
        taps.to(waveform.device), n=size
    )
    filtered = torch.fft.irfft(spectrum, n=size)[..., half : half + waveform.shape[-1]]
    return filtered.to(waveform.dtype)


# ---------------------------------------------------------------- one channel


class _Measure(NamedTuple):
    compute: Callable[[Tensor, Tensor, int], float]
    least_rate: int = 1
    package: str | None = None
    worst: float | None = None  # of a silent estimate; None: computed as of any other


def _si_snr(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    lengths = torch.tensor([len(reference)])
    return float(pairwise_si_snr(estimate[None, None], reference[None, None], lengths))


def _stoi(reference: Tensor, estimate: Tensor, sample_rate: int, *, extended: bool) -> float:
    """STOI (Taal et al., 2011) or ESTOI (Jensen and Taal, 2016) through ``pystoi``."""
    import pystoi

    too_short = "STOI needs about 0.4 s of speech"
    if len(reference) < 0.3 * sample_rate:  # the package fails below one of its frames
        raise NotComputableError(too_short)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the value tells what they say
        value = float(
            pystoi.stoi(reference.numpy(), estimate.numpy(), sample_rate, extended=extended)
        )
    if value == 1e-5:  # what the package returns for too few frames
        raise NotComputableError(too_short)
    if not math.isfinite(value):
        raise NotComputableError("STOI finds no finite value")
    return value


def _pesq(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    return pesq(
        _resampled(estimate, sample_rate, 16000), _resampled(reference, sample_rate, 16000), 16000
    )


def _visqol(reference: Tensor, estimate: Tensor, sample_rate: int, *, mode: str) -> float:
    """ViSQOL (Chinen et al., 2020) through ``visqol-python``; the polynomial for speech."""
    rate = {"audio": 48000, "speech": 16000}[mode]
    pair = (_resampled(x, sample_rate, rate).numpy() for x in (reference, estimate))
    try:
        value = float(_visqol_of(mode).measure_from_arrays(*pair, sample_rate=rate).moslqo)
    except ValueError as error:
        # Its messages hold numbers of frames; the reason is one.
        raise NotComputableError("ViSQOL needs about a second of audio with sound") from error
    if not math.isfinite(value):
        raise NotComputableError("ViSQOL finds no finite value")
    return value


@lru_cache(maxsize=2)
def _visqol_of(mode: str) -> Any:
    from visqol import VisqolApi

    api = VisqolApi()
    api.create(mode=mode, use_lattice_model=False)
    return api


def _mel_db(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    return mel_distance(
        _resampled(reference, sample_rate, 24000), _resampled(estimate, sample_rate, 24000), 24000
    )


MEASURES: dict[str, _Measure] = {
    "si_snr": _Measure(_si_snr),
    "stoi": _Measure(lambda *x: _stoi(*x, extended=False), package="pystoi", worst=0.0),
    "estoi": _Measure(lambda *x: _stoi(*x, extended=True), package="pystoi", worst=0.0),
    "pesq": _Measure(_pesq, 16000, "pesq", worst=1.04),
    "visqol_audio": _Measure(lambda *x: _visqol(*x, mode="audio"), 16000, "visqol", worst=1.0),
    "visqol_speech": _Measure(lambda *x: _visqol(*x, mode="speech"), 16000, "visqol", worst=1.0),
    "mel": _Measure(multi_scale_mel_distance),
    "mel_db": _Measure(_mel_db, 24000),
}
"""What `measure` knows, by name."""

_DISTRIBUTIONS = {"visqol": "visqol-python"}


def _of_channel(name: str, reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    compute, least_rate, package, worst = MEASURES[name]
    if sample_rate < least_rate:
        raise NotComputableError(f"it needs audio of at least {least_rate} Hz, not {sample_rate}")
    if package is not None:
        _need(package)
    if worst is not None and _is_silent(estimate):
        return worst
    return compute(reference, estimate, sample_rate)


def _need(package: str) -> None:
    from importlib import import_module

    try:
        import_module(package)
    except ImportError as error:
        name = _DISTRIBUTIONS.get(package, package)
        raise ImportError(f"{name} is not installed: pip install 'speechkit[metrics]'") from error


def _resampled(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    if rate == new_rate:
        return waveform
    from torchaudio.functional import resample

    # A flank three times as steep as the default: images just above the band would be heard as
    # content of the bands that ViSQOL has there.
    out: Tensor = resample(waveform, rate, new_rate, lowpass_filter_width=32)
    return out


def _is_silent(channel: Tensor) -> bool:
    return bool(channel.var(correction=0) <= _SILENCE)


def _checked(reference: Tensor, estimate: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Give both in float64 on the CPU, or an error that names the shapes."""
    shapes = f"reference {tuple(reference.shape)}, estimate {tuple(estimate.shape)}"
    if reference.dim() != 2 or reference.shape != estimate.shape or reference.numel() == 0:
        raise ValueError(f"need two signals of one shape (C, T) that is not empty, got {shapes}")
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be above 0, got {sample_rate}")
    for name, signal in (("reference", reference), ("estimate", estimate)):
        if not bool(signal.isfinite().all()):
            raise ValueError(f"the {name} holds samples that are not finite: {shapes}")
    return reference.detach().cpu().double(), estimate.detach().cpu().double()


def _warn(message: str) -> None:
    """Say each reason once in a process: a table has thousands of items."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=3)
