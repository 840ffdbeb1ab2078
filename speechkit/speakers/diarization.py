"""Who speaks when: windows of speech, their embeddings, clusters, turns.

::

    speech    |-----------------|        |------|       by voice activity
    windows   [-----]                    [------]       overlapping, within each stretch
                 [-----]
                    ...[-----]
    speakers     1  1  2 ...  2             1           by spectral clustering
    turns     |---1---|----2----|        |--1---|       borders lie midway between windows' centers

Each moment belongs to the window whose center is nearest, and a window to one speaker. So where two
speak at once, one of the two is found and the other one is missed (and counts so in the error
rate), unless `overlap_margin` is given: then a window whose embedding is nearly as much like a
second speaker's mean is both speakers'.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.metrics.diarization import Region, Turn
from speechkit.speakers.activity import Activity, energy_activity
from speechkit.speakers.clustering import spectral_clustering
from speechkit.speakers.scores import cosine_scores, speaker_means
from speechkit.speakers.trials import Embed

_LEAST_WINDOW = 0.5  # seconds that a shorter stretch of speech is widened to


class Diarization(NamedTuple):
    """Who speaks when in one recording.

    ``turns`` are sorted by start. ``speakers`` are numbered in order of appearance, from
    ``speaker_1``, and row ``s`` of ``embeddings`` ``(S, D)`` is the mean of speaker ``s``, with
    which enrolled speakers can be compared.
    """

    turns: list[Turn]
    speakers: list[str]
    embeddings: Tensor


class Diarizer:
    """Tell the speakers of a recording apart.

    Parameters
    ----------
    embed : callable
        A list of waveforms ``(T,)`` to embeddings ``(N, D)``; windows may hold little speech. For
        example ``model.embed_windows``.
    sample_rate : int
        Of the embedding model, in Hz.
    window : float
        Seconds of a window.
    hop : float
        Seconds from one window to the next.
    min_speakers, max_speakers : int
        Bounds where the number of speakers is estimated.
    threshold : float, optional
        Cosine from which on two embeddings are one speaker's (the model's calibrated one): then
        clusters that alike become one. See `speechkit.speakers.clustering.spectral_clustering`.
    overlap_margin : float, optional
        A window is also a second speaker's, where the cosine with that speaker's mean is at most
        this much lower. By default it never is.
    activity : callable
        Waveform and rate to the stretches of speech; a learned voice activity detector fits here.
    batch_size : int
        Windows given to `embed` at once.

    Raises
    ------
    ValueError
        Where a number is out of its range.

    Examples
    --------
    >>> def embed(waveforms):  # the "voice" is the pitch: below or above 1 kHz
    ...     power = [torch.fft.rfft(x).abs().square() for x in waveforms]
    ...     cut = [len(p) // 4 for p in power]
    ...     return torch.stack([torch.stack([p[:c].sum(), p[c:].sum()])
    ...         for p, c in zip(power, cut)])
    >>> low, high = (torch.sin(torch.arange(40000.0) * f * 6.2832 / 8000) for f in (300, 2000))
    >>> diarizer = Diarizer(embed, sample_rate=8000)
    >>> found = diarizer(torch.cat([low, high]), num_speakers=2)
    >>> [(round(t.start), round(t.end), t.speaker) for t in found.turns]
    [(0, 5, 'speaker_1'), (5, 10, 'speaker_2')]
    """

    def __init__(
        self,
        embed: Embed,
        *,
        sample_rate: int,
        window: float = 1.5,
        hop: float = 0.5,
        min_speakers: int = 1,
        max_speakers: int = 8,
        threshold: float | None = None,
        overlap_margin: float | None = None,
        activity: Activity = energy_activity,
        batch_size: int = 64,
    ) -> None:
        if not 0 < hop <= window or round(hop * sample_rate) < 1:
            raise ValueError(f"hop must be positive and at most window={window} s, is {hop} s")
        if not 1 <= min_speakers <= max_speakers or batch_size < 1:
            raise ValueError(
                f"need 1 <= min_speakers <= max_speakers and batch_size >= 1, got {min_speakers}, "
                f"{max_speakers} and {batch_size}"
            )
        if overlap_margin is not None and overlap_margin < 0:
            raise ValueError(f"overlap_margin must be at least 0, is {overlap_margin}")
        self.embed = embed
        self.sample_rate = sample_rate
        self.window = window
        self.hop = hop
        self.min_speakers = min_speakers
        self.max_speakers = max_speakers
        self.threshold = threshold
        self.overlap_margin = overlap_margin
        self.activity = activity
        self.batch_size = batch_size

    def __call__(
        self,
        audio: str | os.PathLike[str] | Tensor,
        sample_rate: int | None = None,
        *,
        num_speakers: int | None = None,
        regions: Sequence[Region] | None = None,
    ) -> Diarization:
        """Diarize a recording.

        Parameters
        ----------
        audio : path or Tensor
            A file, or samples ``(T,)`` or ``(C, T)``.
        sample_rate : int, optional
            Of the samples, in Hz; by default the model's. A file knows its own.
        num_speakers : int, optional
            How many there are; by default it is estimated.
        regions : sequence of (float, float), optional
            Where somebody speaks, in seconds, if that is known; otherwise `activity` finds it.

        Returns
        -------
        Diarization
            Without turns for a silent recording; with one speaker where there is one.

        Raises
        ------
        DataError
            When the file is unreadable, or too short for the number of speakers asked for.
        ValueError
            Where regions are not in order within the recording, or `embed` gives something else
            than finite embeddings ``(N, D)``.
        """
        from speechkit.data.audio import as_waveform

        waveform = as_waveform(audio, sample_rate, self.sample_rate).cpu()
        if regions is None:
            regions = self.activity(waveform, self.sample_rate)
        spans = self._sample_spans(regions, len(waveform))
        windows = [window for span in spans for window in self._cut(*span)]
        if not windows:
            return Diarization([], [], torch.zeros(0, 0))
        embeddings = self._embed(waveform, windows)
        labels = spectral_clustering(
            embeddings,
            num_speakers=num_speakers,
            min_speakers=min(self.min_speakers, len(windows)),
            max_speakers=self.max_speakers,
            threshold=self.threshold,
        )
        means, _ = speaker_means(embeddings, labels.tolist())
        speakers = [f"speaker_{number}" for number in range(1, len(means) + 1)]
        active = self._active(embeddings, labels, means)
        turns = self._turns(spans, windows, active, speakers)
        return Diarization(turns, speakers, means)

    def _sample_spans(self, regions: Sequence[Region], total: int) -> list[tuple[int, int]]:
        """Give stretches of speech in samples, without empty ones."""
        spans: list[tuple[int, int]] = []
        for start, end in regions:
            first, last = round(start * self.sample_rate), round(end * self.sample_rate)
            before = spans[-1][1] if spans else 0
            if not before <= first <= last or first > total:
                raise ValueError(
                    f"regions must be sorted, apart and within {total / self.sample_rate:.3f} s, "
                    f"got {(start, end)}"
                )
            # The last end may be rounded up to beyond the last sample.
            if min(last, total) > first:
                spans.append((first, min(last, total)))
        return spans

    def _cut(self, first: int, last: int) -> list[tuple[int, int]]:
        """Cut a stretch into windows; the last one ends where the stretch does."""
        size, hop = round(self.window * self.sample_rate), round(self.hop * self.sample_rate)
        if last - first <= size:
            return [(first, last)]
        starts = [*range(first, last - size, hop), last - size]
        return [(start, start + size) for start in starts]

    def _embed(self, waveform: Tensor, windows: Sequence[tuple[int, int]]) -> Tensor:
        least = round(min(_LEAST_WINDOW, self.window) * self.sample_rate)
        pieces = []
        for first, last in windows:
            missing = max(0, least - (last - first))
            start = max(0, min(first - missing // 2, len(waveform) - least))
            pieces.append(waveform[start : start + least] if missing else waveform[first:last])
        found = []
        for begin in range(0, len(pieces), self.batch_size):
            batch = pieces[begin : begin + self.batch_size]
            with torch.inference_mode():
                out: Any = self.embed(batch)
            if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(batch):
                shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(f"embed gave {shape} for {len(batch)} windows, not (N, D)")
            found.append(out.float().cpu())
        return torch.cat(found).clone()

    def _active(self, embeddings: Tensor, labels: Tensor, means: Tensor) -> Tensor:
        """Which speakers each window has, shape (N, S), bool."""
        own = torch.nn.functional.one_hot(labels, len(means)).bool()
        if self.overlap_margin is None or len(means) == 1:
            return own
        scores = cosine_scores(embeddings, means)
        score_of_own = scores.gather(1, labels[:, None])
        others = scores.masked_fill(own, float("-inf"))
        second = torch.nn.functional.one_hot(others.argmax(dim=1), len(means)).bool()
        near = others.amax(dim=1, keepdim=True) >= score_of_own - self.overlap_margin
        return own | (second & near)

    def _turns(
        self,
        spans: Sequence[tuple[int, int]],
        windows: Sequence[tuple[int, int]],
        active: Tensor,
        speakers: Sequence[str],
    ) -> list[Turn]:
        """Let each window stand for the time around its center, and join what touches."""
        turns: list[Turn] = []
        open_turns: dict[int, list[int]] = {}
        ends = dict(spans)
        for number, (first, last) in enumerate(windows):
            if first in ends:  # a stretch begins with its first window
                start, end = first, ends[first]
            else:
                start = _midway(windows[number - 1], (first, last))
            inner = last < end
            stop = _midway((first, last), windows[number + 1]) if inner else end
            for speaker, is_active in enumerate(active[number].tolist()):
                span = open_turns.get(speaker)
                if span is not None and (not is_active or span[1] != start):
                    turns.append(self._turn(open_turns.pop(speaker), speakers[speaker]))
                    span = None
                if is_active:
                    open_turns[speaker] = [start if span is None else span[0], stop]
        turns += [self._turn(span, speakers[speaker]) for speaker, span in open_turns.items()]
        return sorted(turns)

    def _turn(self, span: Sequence[int], speaker: str) -> Turn:
        return Turn(span[0] / self.sample_rate, span[1] / self.sample_rate, speaker)


def _midway(first: tuple[int, int], second: tuple[int, int]) -> int:
    """Return the sample midway between two windows' centers."""
    return (sum(first) + sum(second)) // 4
