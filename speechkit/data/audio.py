"""Reading, writing and resampling audio; every fault names the file and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.data.formats import AudioInfo, Reader, check_finite, open_audio

# A manifest's seconds are rounded: a span may reach this far beyond the file's end.
_END_TOLERANCE = 0.01
# Beyond this, an exact polyphase kernel takes gigabytes (44,101 -> 16,000 Hz: 2.8 GB).
_MAX_PHASES = 2000


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read an audio file's header.

    Parameters
    ----------
    path : str or PathLike
        Any format that libsndfile reads (WAV, FLAC, OGG, MP3, ...).

    Returns
    -------
    AudioInfo
        Sample rate, samples of each channel, channels.

    Raises
    ------
    DataError
        When the file is missing, empty, cut short or not audio.
    """
    with open_audio(path) as reader:
        return reader.info


def read_audio(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int | None = None,
) -> tuple[Tensor, int]:
    """Read a file, or a span of it, as one channel.

    Parameters
    ----------
    path : str or PathLike
        Any format that libsndfile reads.
    start : float
        Where the span begins, in seconds.
    duration : float, optional
        Length of the span in seconds; by default to the end.
    sample_rate : int, optional
        Resample to it; by default the file's own rate stays.

    Returns
    -------
    waveform : Tensor
        Shape ``(T,)``, float32 in [-1, 1]; channels are averaged.
    sample_rate : int
        Of the waveform.

    Raises
    ------
    DataError
        When the file is missing, empty, cut short or not audio, has samples that are not finite,
        or ends before the span does.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.wav"
    >>> write_audio(path, torch.linspace(-1, 1, 16000), 16000)
    >>> waveform, rate = read_audio(path, start=0.5, duration=0.25, sample_rate=8000)
    >>> waveform.shape, rate
    (torch.Size([2000]), 8000)
    """
    samples, rate = _read_span(path, start, duration)
    waveform = to_mono(samples.T)
    if sample_rate is None or sample_rate == rate:
        return waveform, rate
    return resample(waveform, rate, sample_rate), sample_rate


def read_audio_channels(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int | None = None,
) -> tuple[Tensor, int]:
    """Read a file, or a span of it, with its channels: shape ``(C, T)``; else as `read_audio`."""
    samples, rate = _read_span(path, start, duration)
    channels = samples.T.contiguous()
    if sample_rate is None or sample_rate == rate:
        return channels, rate
    return resample(channels, rate, sample_rate), sample_rate


def check_span(
    path: str | os.PathLike[str], info: AudioInfo, start: float, duration: float | None
) -> tuple[int, int]:
    """Turn a span in seconds into (first sample, number of samples) of a file.

    Parameters
    ----------
    path : str or PathLike
        For the message.
    info : AudioInfo
        The file's header.
    start, duration : float
        The span in seconds; no duration means up to the end.

    Raises
    ------
    DataError
        When the file holds no samples or ends more than 10 ms before the span does.

    Examples
    --------
    >>> check_span("a.wav", AudioInfo(16000, 32000, 1), 0.5, 1.0)
    (8000, 16000)
    """
    rate, total = info.sample_rate, info.num_samples
    if total == 0:
        raise DataError(f"{path}: holds no samples; record it again or remove it")
    first = round(start * rate)
    last = total if duration is None else first + round(duration * rate)
    if first < 0 or last <= first or last > total + _END_TOLERANCE * rate:
        wanted = "the end" if duration is None else f"{start + duration:.3f} s"
        raise DataError(
            f"{path}: the span from {start:.3f} s to {wanted} is not in the file, which has "
            f"{total / rate:.3f} s; the file is cut short, or the manifest's start or duration "
            "is wrong"
        )
    return first, min(last, total) - first


def write_audio(
    path: str | os.PathLike[str], waveform: Tensor, sample_rate: int, *, subtype: str | None = None
) -> None:
    """Write a waveform; the file name's ending chooses the format.

    Parameters
    ----------
    path : str or PathLike
        For example ``out.wav`` or ``out.flac``; missing folders are made.
    waveform : Tensor
        Shape ``(T,)`` or ``(C, T)`` in [-1, 1]; what lies outside is clipped, except in a
        floating-point subtype.
    sample_rate : int
        Samples a second.
    subtype : str, optional
        As soundfile names them (``"PCM_16"``, ``"PCM_24"``, ``"FLOAT"``); by default the format's
        own, 16 bits for WAV and FLAC. Samples read from 16 bits are written back unchanged.

    Raises
    ------
    DataError
        When samples are not finite.
    ValueError
        When the shape or the format is none of the above.
    """
    import soundfile

    path = Path(path)
    if waveform.dim() not in (1, 2):
        raise ValueError(f"{path}: a waveform is (T,) or (C, T), not {tuple(waveform.shape)}")
    samples = waveform.detach().to("cpu", torch.float32)
    check_finite(samples, path)
    file_format = path.suffix[1:].upper()
    if file_format not in soundfile.available_formats():
        raise ValueError(f"{path}: cannot write {path.suffix or 'a name without an ending'!r}")
    subtype = subtype or soundfile.default_subtype(file_format)
    if subtype == "PCM_16":
        # libsndfile multiplies by 32767 but divides by 32768: a round trip would lose a bit.
        data = (samples * 32768.0).round().clamp(-32768, 32767).to(torch.int16)
    else:
        data = samples
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, data.numpy().T, sample_rate, subtype=subtype)


def to_mono(channels: Tensor) -> Tensor:
    """Average channels: ``(C, T)`` to ``(T,)``.

    Examples
    --------
    >>> to_mono(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).tolist()
    [0.5, 1.0]
    """
    return channels[0] if channels.shape[0] == 1 else channels.mean(dim=0)


def resample(waveform: Tensor, orig_rate: int, new_rate: int) -> Tensor:
    """Resample by windowed-sinc interpolation (torchaudio's), with the kernel kept.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(..., T)``, floating point.
    orig_rate, new_rate : int
        Samples a second, before and after.

    Returns
    -------
    Tensor
        Shape ``(..., ceil(T * new_rate / orig_rate))``. A ratio whose reduced terms are
        above 2,000 (44,101 to 16,000) is rounded, by less than 0.03 %: its kernel would be huge.

    Raises
    ------
    ValueError
        When a rate is not above 0.

    Examples
    --------
    >>> resample(torch.zeros(2, 441), 44100, 16000).shape
    torch.Size([2, 160])
    """
    if orig_rate <= 0 or new_rate <= 0:
        raise ValueError(f"sample rates must be above 0, are {orig_rate} and {new_rate}")
    if orig_rate == new_rate:
        return waveform
    orig, new = _ratio(orig_rate, new_rate)
    out: Tensor = _resampler(orig, new, waveform.dtype, waveform.device)(waveform)
    return out


def as_waveform(
    source: str | os.PathLike[str] | Tensor | np.ndarray[Any, Any],
    sample_rate: int | None,
    target_rate: int,
) -> Tensor:
    """Turn what a user hands in, a path or samples, into a waveform for a model.

    Parameters
    ----------
    source : str, PathLike, Tensor or ndarray
        A file; or samples, ``(T,)`` or ``(C, T)``, floating point or 16-bit integers.
    sample_rate : int or None
        Of the samples; None: they have the target rate already. A file knows its own.
    target_rate : int
        What the model wants.

    Returns
    -------
    Tensor
        Shape ``(T,)``, float32, at the target rate.

    Raises
    ------
    DataError
        When a file is unreadable, or samples are missing or not finite.
    ValueError
        When the samples have another type or shape.

    Examples
    --------
    >>> as_waveform(torch.full((2, 800), 16384, dtype=torch.int16), 8000, 16000).shape
    torch.Size([1600])
    """
    if isinstance(source, str | os.PathLike):
        return read_audio(source, sample_rate=target_rate)[0]
    x = torch.as_tensor(source).detach()
    if x.dtype == torch.int16:
        x = x.to(torch.float32) / 32768.0
    if not x.is_floating_point():
        raise ValueError(f"samples must be floats in [-1, 1] or 16-bit integers, not {x.dtype}")
    if x.dim() not in (1, 2) or (x.dim() == 2 and x.shape[0] > max(x.shape[1], 16)):
        raise ValueError(f"samples are (T,) or (C, T), not {tuple(x.shape)}; transpose them?")
    if x.numel() == 0:
        raise DataError("the waveform holds no samples")
    x = to_mono(x if x.dim() == 2 else x[None]).to(torch.float32)
    check_finite(x, "the waveform")
    return resample(x, sample_rate or target_rate, target_rate)


def stream_audio(
    path: str | os.PathLike[str],
    *,
    block_seconds: float,
    overlap_seconds: float = 0.0,
    sample_rate: int | None = None,
) -> Iterator[Tensor]:
    """Read a long file block by block, in memory that does not grow with its length.

    Parameters
    ----------
    path : str or PathLike
        The file.
    block_seconds : float
        Length of a block.
    overlap_seconds : float
        By how much a block begins before the end of the one before it.
    sample_rate : int, optional
        Resample to it, without seams: the blocks are the pieces of the whole resampled file.

    Yields
    ------
    Tensor
        Shape ``(T,)``, float32, one channel. The last block may be shorter.

    Raises
    ------
    DataError
        As `read_audio`, when reading comes to the fault.
    ValueError
        When the overlap is not smaller than the block.
    """
    if not 0 <= overlap_seconds < block_seconds:
        raise ValueError(
            f"overlap_seconds must be in [0, block_seconds={block_seconds}), is {overlap_seconds}"
        )
    with open_audio(path) as reader:
        info = reader.info
        check_span(path, info, 0.0, None)
        rate = sample_rate or info.sample_rate
        block = max(1, round(block_seconds * rate))
        hop = max(1, block - round(overlap_seconds * rate))
        orig, new = _ratio(info.sample_rate, rate)
        total = -(-info.num_samples * new // orig)
        for begin in range(0, total, hop):
            end = min(begin + block, total)
            yield _read_resampled(reader, path, begin, end, rate)
            if end == total:
                return


def _read_resampled(reader: Reader, path: Any, begin: int, end: int, rate: int) -> Tensor:
    """Return samples ``[begin, end)`` of the file as it would be after resampling all of it."""
    info = reader.info
    orig, new = _ratio(info.sample_rate, rate)
    # The kernel's phase repeats every `orig` input samples, so pieces start at multiples of it;
    # the margin is wider than the kernel (6 zero crossings at the lower of the two rates).
    margin = 0 if orig == new else -(-8 * max(orig, new) // new) // orig + 1
    period = max(0, begin // new - margin)
    first = period * orig
    last = min(info.num_samples, (-(-end // new) + margin) * orig)
    piece = to_mono(read_exactly(reader, path, first, last - first).T)
    return resample(piece, orig, new)[begin - period * new : end - period * new]


def _ratio(orig_rate: int, new_rate: int) -> tuple[int, int]:
    """Reduce a ratio of rates to (orig, new), rounding it where the terms are too large."""
    exact = Fraction(new_rate, orig_rate)
    if max(exact.numerator, exact.denominator) > _MAX_PHASES:
        if exact <= 1:
            exact = exact.limit_denominator(_MAX_PHASES)
        else:
            exact = 1 / (1 / exact).limit_denominator(_MAX_PHASES)
    return exact.denominator, exact.numerator


@lru_cache(maxsize=64)
def _resampler(orig: int, new: int, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    from torchaudio.transforms import Resample

    return Resample(orig, new, dtype=dtype).to(device)


def _read_span(
    path: str | os.PathLike[str], start: float, duration: float | None
) -> tuple[Tensor, int]:
    with open_audio(path) as reader:
        first, count = check_span(path, reader.info, start, duration)
        return read_exactly(reader, path, first, count), reader.info.sample_rate


def read_exactly(reader: Reader, path: Any, first: int, count: int) -> Tensor:
    """Read samples ``(count, C)`` of an open file; a `DataError` where it ends too early."""
    samples = reader.read(first, count)
    if len(samples) < count:
        raise DataError(
            f"{path}: truncated: its header promises {reader.info.num_samples} samples, reading "
            f"ends at {first + len(samples)}; copy the file again or remove it"
        )
    return samples
