"""Mixtures for separation and enhancement: read with their sources, or mixed while training.

Both are dataset transforms, ``transform(item, generator) -> item``. They set ``"waveform"``, the
mixture ``(T,)``, and ``"sources"``, what a model should find in it, ``(T, S)``, both float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechkit.data.audio import audio_info, read_audio, resample
from speechkit.data.augment import AddNoise, Recordings, Reverberate
from speechkit.data.distortion import check_range, fft_size, integer, uniform
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance
from speechkit.data.speakers import group_by_speaker

_LENGTH_TOLERANCE = 2  # samples: what resampling to rates that do not divide may add
_BLOCK_SECONDS = 0.02  # of the active level
_ACTIVE_SHARE = 1e-3  # a block is active down to 30 dB below the loudest
_SILENCE = 1e-6  # mean power of the loudest block, -60 dB
_TRIES = 5  # crops drawn in the hope of one that is not silent

_Span = tuple[str, float, float]  # of an utterance: path, start, duration
_Place = tuple[int, int]  # where a source may lie: first sample, samples


class LoadSources:
    """Read a mixture and its sources, of a row with ``sources``: the paths of their files.

    The files run in parallel: the row's ``start`` and ``duration`` hold for all of them.

    Parameters
    ----------
    sample_rate : int
        Files of another rate are resampled to it.
    seconds : float, optional
        Take a random piece of this length, the same of all files. Shorter items stay whole.

    Raises
    ------
    DataError
        When called: if the row has no ``sources``, a file cannot be read, or a source's file is
        longer or shorter than the mixture's by more than 2 samples.

    Examples
    --------
    >>> import tempfile
    >>> from speechkit.data.audio import write_audio
    >>> folder = Path(tempfile.mkdtemp())
    >>> paths = [str(folder / name) for name in ("mix.wav", "s1.wav", "s2.wav")]
    >>> for path, value in zip(paths, (0.75, 0.5, 0.25)):
    ...     write_audio(path, torch.full((8000,), value), 8000)
    >>> row = Utterance("a", paths[0], 1.0, 8000, extra={"sources": paths[1:]})
    >>> load = LoadSources(sample_rate=8000, seconds=0.5)
    >>> item = load({"id": "a", "utterance": row}, torch.Generator())
    >>> item["sources"].shape, torch.equal(item["sources"].sum(dim=1), item["waveform"])
    (torch.Size([4000, 2]), True)
    """

    def __init__(self, *, sample_rate: int, seconds: float | None = None) -> None:
        if sample_rate <= 0 or (seconds is not None and not seconds > 0.0):
            raise ValueError(f"must be above 0: sample_rate={sample_rate}, seconds={seconds}")
        self.sample_rate = sample_rate
        self.seconds = seconds

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Read the files; `DataError` where the row or a file is wrong."""
        utterance: Utterance = item["utterance"]
        paths = _source_paths(utterance)
        self._check_lengths(utterance.audio, paths)
        start, duration = utterance.start, utterance.duration
        if self.seconds is not None and duration > self.seconds:
            # A whole number of samples, or files of different rates would be cut apart.
            last = int((duration - self.seconds) * self.sample_rate)
            start += integer(generator, 0, last) / self.sample_rate
            duration = self.seconds
        waveforms = [
            read_audio(path, start=start, duration=duration, sample_rate=self.sample_rate)[0]
            for path in (utterance.audio, *paths)
        ]
        sources = torch.zeros(len(waveforms[0]), len(paths))
        for n, source in enumerate(waveforms[1:]):
            sources[: len(source), n] = source[: len(sources)]
        return {**item, "waveform": waveforms[0], "sources": sources}

    def _check_lengths(self, mixture: str, sources: Sequence[str]) -> None:
        rate, size, _ = audio_info(mixture)
        for path in sources:
            own_rate, own_size, _ = audio_info(path)
            if abs(own_size / own_rate - size / rate) * self.sample_rate > _LENGTH_TOLERANCE:
                raise DataError(
                    f"source {path} has {own_size} samples at {own_rate} Hz, the mixture {mixture} "
                    f"has {size} at {rate} Hz; they must be equally long: cut or pad the source "
                    "as it lies in the mixture"
                )


class DynamicMixing:
    """Mix single speakers anew for every item, instead of reading a mixture.

    Of the manifest's row only the id counts, because the item's generator belongs to (seed, epoch,
    id); all else is drawn from that generator, so that any number of workers gives the same. Of
    speakers, and then of the utterances of a speaker, each is as likely as the others. A crop
    without speech (its loudest 20 ms below -60 dB) is drawn again up to 4 times; the last one is
    taken then, at the level it has. The mixture is the sum of the sources (if these are not dry),
    in float32, plus the noise.

    Parameters
    ----------
    sources : path
        Manifest of utterances of single speakers, with ``speaker``.
    sample_rate : int
        Files of another rate are resampled to it.
    num_speakers : int or pair of int
        Different speakers in a mixture. From a range, the number is drawn, and the sources that
        are missing to its maximum are silent and come last. 1 is for enhancement.
    seconds : float
        Length of the mixtures. An utterance that is shorter lies in silence, at a random place.
    speed : sequence of float, optional
        Two numbers are a range, drawn from in steps of 0.01; otherwise the factors to draw from,
        as in `ChangeSpeed`. Each source has its own.
    level_db : tuple of float
        Range of the level of each source, in dB above ``reference_db``.
    reference_db : float
        The active level (`active_power`) that is 0 dB in ``level_db``, in dB relative to 1.
    overlap : tuple of float, optional
        Speakers talk in turn, each for the same time; range of the share of it that two in
        succession talk together: 0 is one after the other, 1 is all at once, as without it.
    noise : str, Path, sequence of str or Path, optional
        A manifest, or audio files, as in `AddNoise`. It is in the mixture, not in the sources.
    snr_db : tuple of float, optional
        Range of the mean power of all speech over that of the noise, in dB. Without ``noise``, the
        noise is white; without ``snr_db`` there is none. Silent speech gets none either.
    rooms : str, Path, sequence of str or Path, optional
        Impulse responses: a manifest, or audio files, as in `Reverberate`; each source has its own.
    rt60 : tuple of float, optional
        Instead of ``rooms``: range of the time to decay by 60 dB, in seconds, of drawn responses.
    target : str
        Of reverberation: sources are ``"reverberant"``, or ``"dry"``: the direct sound at the
        level that it has in the mixture.
    max_peak : float, optional
        A mixture with a higher peak is scaled down to it, together with the sources.

    Raises
    ------
    DataError
        If the manifest has too few speakers or utterances without one, or a recording is faulty.
    ValueError
        If a number or a range is none of the above.

    Examples
    --------
    >>> import tempfile
    >>> from speechkit.data.audio import write_audio
    >>> from speechkit.data.manifest import write_manifest
    >>> folder = Path(tempfile.mkdtemp())
    >>> rows = [Utterance(f"{n}", str(folder / f"{n}.wav"), 1.0, 8000, speaker=n) for n in "abc"]
    >>> for row in rows:
    ...     write_audio(row.audio, torch.rand(8000) - 0.5, 8000)
    >>> write_manifest(folder / "speech.jsonl", rows)
    >>> mix = DynamicMixing(sources=folder / "speech.jsonl", sample_rate=8000, seconds=0.5)
    >>> item = mix({"id": "mixture-1"}, torch.Generator())
    >>> item["sources"].shape, torch.equal(item["sources"].sum(dim=1), item["waveform"])
    (torch.Size([4000, 2]), True)
    """

    def __init__(
        self,
        *,
        sources: str | Path,
        sample_rate: int,
        num_speakers: int | tuple[int, int] = 2,
        seconds: float = 3.0,
        speed: Sequence[float] | None = None,
        level_db: tuple[float, float] = (-2.5, 2.5),
        reference_db: float = -26.0,
        overlap: tuple[float, float] | None = None,
        noise: Recordings | None = None,
        snr_db: tuple[float, float] | None = None,
        rooms: Recordings | None = None,
        rt60: tuple[float, float] | None = None,
        target: str = "reverberant",
        max_peak: float | None = 0.9,
    ) -> None:
        if sample_rate <= 0 or not seconds >= 0.1:
            raise ValueError(f"{sample_rate=} must be above 0 and {seconds=} at least 0.1")
        if max_peak is not None and not max_peak > 0.0:
            raise ValueError(f"max_peak must be above 0, or None for no limit, got {max_peak}")
        if target not in ("reverberant", "dry"):
            raise ValueError(f'target must be "reverberant" or "dry", got {target!r}')
        if noise is not None and snr_db is None:
            raise ValueError(f"noise needs snr_db, the range of its level; noise is {noise!r}")
        if rooms is not None and rt60 is not None:
            raise ValueError(f"give rooms or rt60, not both; got rooms={rooms!r}, rt60={rt60}")
        self.sources = sources
        self.sample_rate = sample_rate
        self.num_speakers = num_speakers
        self.seconds = seconds
        self.speed = speed
        self.level_db = check_range("level_db", level_db)
        self.reference_db = reference_db
        self.overlap = None if overlap is None else check_range("overlap", overlap, low=0, high=1)
        self.noise = noise
        self.snr_db = snr_db
        self.rooms = rooms
        self.rt60 = rt60
        self.target = target
        self.max_peak = max_peak
        counts = (num_speakers,) * 2 if isinstance(num_speakers, int) else num_speakers
        self._counts: tuple[int, int] = check_range("num_speakers", counts, low=1)
        if not all(isinstance(count, int) for count in self._counts):
            raise ValueError(f"num_speakers must be whole numbers, got {num_speakers}")
        self._speeds = _speed_factors(speed)
        self._noise: _Noise | None = None
        if snr_db is not None:
            self._noise = _Noise(noise=noise, snr_db=snr_db, sample_rate=sample_rate)
        self._room: _Room | None = None
        if rooms is not None:
            self._room = _Room(impulse_responses=rooms, sample_rate=sample_rate)
        elif rt60 is not None:
            self._room = _Room(rt60=rt60, sample_rate=sample_rate)
        self._speakers: list[list[_Span]] = [
            [(row.audio, row.start, row.duration) for row in rows]
            for rows in group_by_speaker(
                sources, least=self._counts[1], what="mixtures", advice="or lower num_speakers"
            ).values()
        ]

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Set ``"waveform"`` and ``"sources"``; `DataError` where a file cannot be read."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker: with more, sums are rounded in another way
        try:
            mixture, sources = self._mix(generator)
        finally:
            torch.set_num_threads(threads)
        return {**item, "waveform": mixture, "sources": sources}

    def _mix(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        size = round(self.seconds * self.sample_rate)
        count = integer(generator, *self._counts)
        order = torch.randperm(len(self._speakers), generator=generator)[:count].tolist()
        places = self._draw_places(count, size, generator)
        speech = torch.zeros(size, self._counts[1])  # as it is heard
        targets = torch.zeros_like(speech) if self.target == "dry" else speech
        for n, (index, place) in enumerate(zip(order, places)):
            speaker = self._speakers[index]
            speech[:, n], targets[:, n] = self._draw_source(speaker, place, size, generator)
        mixture = speech.sum(dim=1)
        noise = torch.zeros(size) if self._noise is None else self._noise.draw(mixture, generator)
        mixture = mixture + noise
        peak = float(mixture.abs().max())
        if self.max_peak is not None and peak > self.max_peak:
            # Not the mixture itself: that would differ from the sum of its parts by the rounding.
            speech, targets, noise = (x * (self.max_peak / peak) for x in (speech, targets, noise))
            mixture = speech.sum(dim=1) + noise
        return mixture, targets

    def _draw_places(self, count: int, size: int, generator: torch.Generator) -> list[_Place]:
        """Draw where each source may lie."""
        if self.overlap is None:
            return [(0, size)] * count
        # count * length - (count - 1) * share * length = size
        share = uniform(generator, self.overlap)
        length = size / (count - (count - 1) * share)
        starts = [round(n * (1.0 - share) * length) for n in range(count)]
        return [(start, min(round(length), size - start)) for start in starts]

    def _draw_source(
        self, utterances: list[_Span], place: _Place, size: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw a source as it is heard, and what of it is the target, both ``(size,)``."""
        start, space = place
        for _ in range(_TRIES):
            crop = self._draw_crop(utterances, space, generator)
            if active_power(crop, self.sample_rate) > 0.0:
                break
        start += integer(generator, 0, space - len(crop))
        dry = torch.zeros(size)
        dry[start : start + len(crop)] = crop
        heard = dry if self._room is None else self._room.reverberate(dry, generator)
        level = self.reference_db + uniform(generator, self.level_db)
        power = active_power(heard, self.sample_rate)
        gain = math.sqrt(10.0 ** (level / 10.0) / power) if power > 0.0 else 1.0
        return heard * gain, (dry if self.target == "dry" else heard) * gain

    def _draw_crop(self, utterances: list[_Span], size: int, generator: torch.Generator) -> Tensor:
        """Draw an utterance, a speed and a span of at most ``size`` samples, and read just that."""
        path, start, duration = utterances[integer(generator, 0, len(utterances) - 1)]
        speed = self._speeds[integer(generator, 0, len(self._speeds) - 1)]
        position = uniform(generator, (0.0, 1.0))
        # One sample more than needed: the span is rounded to samples of the file.
        wanted = min(duration, (size + 1) / self.sample_rate * float(speed))
        start += position * (duration - wanted)
        waveform, rate = read_audio(path, start=start, duration=wanted)
        # One resampling for both: played faster, the file has a higher rate.
        waveform = resample(waveform, rate * speed.numerator, self.sample_rate * speed.denominator)
        return waveform[:size]


def active_power(waveform: Tensor, sample_rate: int) -> float:
    """Measure the mean power of the parts that are not pauses.

    These are the blocks of 20 ms at most 30 dB below the loudest: a quick stand-in for ITU-T P.56.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(T,)``, T > 0.
    sample_rate : int
        Samples a second.

    Returns
    -------
    float
        The power, 1.0 for a constant of 1; 0.0 if the loudest block is below -60 dB.

    Examples
    --------
    >>> pause = torch.zeros(8000)
    >>> round(active_power(torch.cat([pause, torch.full((1600,), 0.5), pause]), 8000), 6)
    0.25
    >>> active_power(pause, 8000)
    0.0
    """
    block = min(max(1, round(_BLOCK_SECONDS * sample_rate)), len(waveform))
    powers = waveform[: len(waveform) // block * block].view(-1, block).square().mean(dim=1)
    loudest = powers.max()
    if float(loudest) < _SILENCE:
        return 0.0
    return float(powers[powers >= _ACTIVE_SHARE * loudest].double().mean())


class _Noise(AddNoise):
    """What `AddNoise` adds, alone."""

    def draw(self, speech: Tensor, generator: torch.Generator) -> Tensor:
        """Draw noise ``(T,)`` for speech ``(T,)``; zeros where the speech is silent."""
        snr = uniform(generator, self.snr_db)
        noise = self._make_noise(len(speech), generator)
        power, speech_power = (float(x.double().square().mean()) for x in (noise, speech))
        ratio = speech_power / power if power > 0.0 else 0.0
        return noise * math.sqrt(ratio * 10.0 ** (-snr / 10.0))


class _Room(Reverberate):
    """The responses of `Reverberate`, with a direct sound of 1: it is the dry waveform."""

    def reverberate(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Convolve with a response; the direct sound stays where it was, as loud as it was."""
        response = self._make_response(generator)
        direct = int(response.abs().argmax())
        if response[direct] == 0.0:
            return waveform  # a silent response has no sound to keep: as `Reverberate`
        response = response / response[direct]
        size = fft_size(len(waveform) + len(response) - 1)
        spectrum = torch.fft.rfft(waveform, n=size) * torch.fft.rfft(response, n=size)
        return torch.fft.irfft(spectrum, n=size)[direct : direct + len(waveform)]


def _source_paths(utterance: Utterance) -> list[str]:
    paths = utterance.extra.get("sources")
    if isinstance(paths, list | tuple) and paths and all(isinstance(path, str) for path in paths):
        return list(paths)
    raise DataError(
        "the manifest's row needs 'sources', a list of the paths of the mixture's sources, "
        f"has {paths!r}; add them, or remove the row"
    )


def _speed_factors(speed: Sequence[float] | None) -> list[Fraction]:
    """List the factors to draw from; few of them, as each needs a resampling kernel."""
    factors = [1.0] if speed is None else list(speed)
    if not factors or not all(0.1 <= factor <= 10.0 for factor in factors):
        raise ValueError(f"speed must be factors in [0.1, 10], got {speed}")
    if len(factors) == 2:
        low, high = check_range("speed", factors)
        steps = range(math.ceil(low * 100), math.floor(high * 100) + 1)
        factors = sorted({low, high, *(step / 100 for step in steps)})
    return [Fraction(factor).limit_denominator(100) for factor in factors]
