"""Who speaks when: windows of speech, their embeddings, clusters, turns.

::

    speech    |-----------------|        |------|       by voice activity
    windows   [-----]                    [------]       overlapping, within each stretch
                 [-----]
                    ...[-----]
    speakers     1  1  2 ...  2             1           by spectral clustering
    turns     |---1---|----2----|        |--1---|       borders lie midway between windows' centers

Each moment belongs to the window whose center is nearest, and a window to one speaker. So where two
speak at once, one of them is missed (and counts so in the error rate), unless `overlap` says where
that is::

    overlap              |----|
    windows   [-----]                       alone: these are clustered
                    [-----]                 mostly in the overlap: joins the nearest speakers' mean
                           [-----]
    turns     |----1----------|             the overlap is its window's two nearest speakers', and
                         |-----2-----|      begins and ends where it was found to

The voice of two is no third speaker's. But who is never heard alone can be known by it only: where
the windows of one voice hold fewer speakers than there must be (two where there is overlap, or the
number given), the windows of the overlap stand for the others.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from speechkit.metrics.diarization import Region, Turn
from speechkit.speakers.activity import Activity, energy_activity
from speechkit.speakers.clustering import (
    in_order_of_appearance,
    merge_alike,
    spectral_clustering,
)
from speechkit.speakers.scores import cosine_scores, speaker_means
from speechkit.speakers.trials import Embed

_Span: TypeAlias = tuple[int, int]  # samples

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
    activity : callable
        Waveform and rate to the stretches of speech: by energy, or the ``activity`` of a
        `speechkit.models.voice_activity.VoiceActivity`.
    overlap : callable, optional
        Waveform and rate to the stretches in which two speak at once: ``overlap`` of the same. By
        default nobody ever does.
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
        activity: Activity = energy_activity,
        overlap: Activity | None = None,
        batch_size: int = 64,
    ) -> None:
        if not 0 < hop <= window or round(hop * sample_rate) < 1:
            raise ValueError(f"hop must be positive and at most window={window} s, is {hop} s")
        if not 1 <= min_speakers <= max_speakers or batch_size < 1:
            raise ValueError(
                f"need 1 <= min_speakers <= max_speakers and batch_size >= 1, got {min_speakers}, "
                f"{max_speakers} and {batch_size}"
            )
        self.embed = embed
        self.sample_rate = sample_rate
        self.window = window
        self.hop = hop
        self.min_speakers = min_speakers
        self.max_speakers = max_speakers
        self.threshold = threshold
        self.activity = activity
        self.overlap = overlap
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
        windows = [self._cut(*span) for span in spans]
        if not windows:
            return Diarization([], [], torch.zeros(0, 0))
        found = [] if self.overlap is None else self.overlap(waveform, self.sample_rate)
        shared = self._sample_spans(found, len(waveform))
        flat = [window for own in windows for window in own]
        alone = torch.tensor([2 * _common(window, shared) <= _size(window) for window in flat])
        embeddings = self._embed(waveform, flat)
        labels, means = self._cluster(embeddings, alone, num_speakers)
        turns = self._turns(spans, windows, alone, shared, _pairs(embeddings, labels, means))
        return Diarization(turns, [_name(number) for number in range(len(means))], means)

    def _sample_spans(self, regions: Sequence[Region], total: int) -> list[_Span]:
        """Give stretches of speech in samples, without empty ones."""
        spans: list[_Span] = []
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

    def _cut(self, first: int, last: int) -> list[_Span]:
        """Cut a stretch into windows; the last one ends where the stretch does."""
        size, hop = round(self.window * self.sample_rate), round(self.hop * self.sample_rate)
        if last - first <= size:
            return [(first, last)]
        starts = [*range(first, last - size, hop), last - size]
        return [(start, start + size) for start in starts]

    def _embed(self, waveform: Tensor, windows: Sequence[_Span]) -> Tensor:
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

    def _cluster(
        self, embeddings: Tensor, alone: Tensor, num_speakers: int | None
    ) -> tuple[Tensor, Tensor]:
        """Tell whose each window is, ``(N,)``, and give the speakers' means ``(S, D)``."""
        labels = self._labels(embeddings, alone, num_speakers)
        own = labels >= 0
        means, names = speaker_means(embeddings[own], labels[own].tolist())
        order = {name: number for number, name in enumerate(names)}
        nearest = cosine_scores(embeddings, means).argmax(dim=1).tolist()
        numbers = [order.get(label, near) for label, near in zip(labels.tolist(), nearest)]
        # A window that joined a mean may be its speaker's first.
        appeared = list(dict.fromkeys(numbers))
        place = {number: i for i, number in enumerate(appeared)}
        return torch.tensor([place[number] for number in numbers]), means[appeared]

    def _labels(self, embeddings: Tensor, alone: Tensor, num_speakers: int | None) -> Tensor:
        """Cluster the windows that speakers are known by; -1 for the others."""
        size, heard = len(embeddings), int(alone.sum())
        mixed = heard < size
        least = min(max(self.min_speakers, 2 if mixed else 1), self.max_speakers, size)

        def cluster(chosen: Tensor, number: int | None, least: int = 1) -> Tensor:
            return spectral_clustering(
                embeddings[chosen],
                num_speakers=number,
                min_speakers=least,
                max_speakers=self.max_speakers,
                threshold=self.threshold,
            )

        everything = torch.ones_like(alone)
        wanted = num_speakers or least
        if not mixed or not heard or wanted > size:
            return cluster(everything, num_speakers, least)
        found = cluster(alone, num_speakers and min(num_speakers, heard))
        if num_speakers and self.threshold is not None:  # one voice may have been cut in several
            found = merge_alike(embeddings[alone], found, self.threshold)
        found = in_order_of_appearance(found)
        missing = wanted - (int(found.max()) + 1)
        if missing > size - heard:
            return cluster(everything, wanted)
        labels = torch.full((size,), -1)
        labels[alone] = found
        if missing > 0:
            labels[~alone] = int(found.max()) + 1 + cluster(~alone, missing)
        return labels

    def _turns(
        self,
        spans: Sequence[_Span],
        windows: Sequence[Sequence[_Span]],
        alone: Tensor,
        shared: Sequence[_Span],
        pairs: Sequence[Sequence[int]],
    ) -> list[Turn]:
        """Let each window stand for the time around its center, and join what touches."""
        if max(len(pair) for pair in pairs) < 2:
            shared = []
        pieces: list[tuple[int, int, int]] = []  # speaker, first and last sample
        number = 0
        for span, own in zip(spans, windows):
            rows = range(number, number + len(own))
            number += len(own)
            # Outside of the overlap a window of one voice knows better, where there is one.
            single = [i for i in rows if alone[i]] or list(rows)
            for cell, i in _cells(span, [own[j - rows.start] for j in single], single):
                pieces += [(pairs[i][0], *piece) for piece in _outside(cell, shared)]
            for cell, i in _cells(span, own, rows):
                pieces += [(s, *piece) for piece in _inside(cell, shared) for s in pairs[i]]
        turns: list[list[int]] = []
        for speaker, first, last in sorted(pieces):
            if turns and turns[-1][0] == speaker and turns[-1][2] == first:
                turns[-1][2] = last
            else:
                turns.append([speaker, first, last])
        rate = self.sample_rate
        return sorted(Turn(first / rate, last / rate, _name(s)) for s, first, last in turns)


def _pairs(embeddings: Tensor, labels: Tensor, means: Tensor) -> list[list[int]]:
    """Of each window its speaker and, where there are several, the nearest other one."""
    if len(means) == 1:
        return [[0]] * len(labels)
    scores = cosine_scores(embeddings, means).scatter(1, labels[:, None], float("-inf"))
    return torch.stack([labels, scores.argmax(dim=1)], dim=1).tolist()


def _name(speaker: int) -> str:
    return f"speaker_{speaker + 1}"


def _cells(
    span: _Span, windows: Sequence[_Span], numbers: Sequence[int]
) -> Iterator[tuple[_Span, int]]:
    """Divide a stretch among windows: borders lie midway between two centers."""
    borders = [(sum(one) + sum(other)) // 4 for one, other in itertools.pairwise(windows)]
    edges = [span[0], *borders, span[1]]
    yield from zip(itertools.pairwise(edges), numbers)


def _size(span: _Span) -> int:
    return span[1] - span[0]


def _inside(span: _Span, shared: Sequence[_Span]) -> list[_Span]:
    """Give the parts of a stretch that are in others, which are sorted and apart."""
    cut = [(max(span[0], first), min(span[1], last)) for first, last in shared]
    return [piece for piece in cut if _size(piece) > 0]


def _outside(span: _Span, shared: Sequence[_Span]) -> list[_Span]:
    """Give the parts of a stretch that are in none of the others."""
    edges = [span[0], *itertools.chain(*_inside(span, shared)), span[1]]
    return [piece for piece in zip(edges[::2], edges[1::2]) if _size(piece) > 0]


def _common(span: _Span, shared: Sequence[_Span]) -> int:
    return sum(map(_size, _inside(span, shared)))
