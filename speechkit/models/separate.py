"""A recording in, its sources out: what every separator can do with a file or a tensor.

Long recordings go through in overlapping windows, joined by `speechkit.models.source_joining`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from speechkit.models.recording import Recording
from speechkit.models.source_joining import MixtureGains, SourceJoiner
from speechkit.models.windows import AudioSource, Opened, Plan, cut_windows

Scale = Literal["none", "mixture"]


class Sources(NamedTuple):
    """The sources of a recording.

    Attributes
    ----------
    estimates : Tensor
        Shape ``(S, T)``, float32 on the CPU: as many samples as the recording has.
    sample_rate : int
        Of the recording, and of the estimates.
    """

    estimates: Tensor
    sample_rate: int


class Enhanced(NamedTuple):
    """A recording without its noise.

    Attributes
    ----------
    waveform : Tensor
        Shape ``(T,)``, float32 on the CPU: as many samples as the recording has.
    sample_rate : int
        Of the recording, and of the waveform.
    """

    waveform: Tensor
    sample_rate: int


class AudioSeparator:
    """What a separator inherits to have ``separate``, ``separate_stream`` and ``enhance``.

    The separator is a ``torch.nn.Module`` with ``forward(waveform (B, T), lengths (B,))`` that
    returns ``estimates (B, S, T)``, and with the attributes below.

    In all three methods the options are the same:

    ``sample_rate`` : int, optional
        Hz, of a tensor, and necessary for it. Files carry their own.
    ``window`` : float
        Seconds in a window. What is no longer goes through as a whole.
    ``overlap`` : float, optional
        Seconds shared by two windows, a quarter of the window by default. Over an overlap where
        nothing is heard, the order cannot be found, and the network's order stays.
    ``batch_size`` : int
        Windows that go through the model at once.
    ``scale`` : {"none", "mixture"}
        ``"none"``: estimates as loud as the network makes them; trained by SI-SNR that is
        any loudness, the same for the whole recording as far as the network keeps it (windows are
        not matched in level). ``"mixture"``: times one gain for each source and the whole
        recording, such that their sum comes nearest to the mixture (least squares).

    Attributes
    ----------
    sample_rate : int
        Hz, of the waveforms that ``forward`` takes.
    """

    sample_rate: int

    @property
    def num_sources(self) -> int:
        """How many sources a mixture is separated into."""
        raise NotImplementedError(f"{type(self).__name__} must define num_sources")

    @property
    def stride(self) -> int:
        """Samples between two frames of the network."""
        raise NotImplementedError(f"{type(self).__name__} must define stride")

    def separate(
        self,
        source: AudioSource | Sequence[AudioSource],
        sample_rate: int | None = None,
        *,
        window: float = 20.0,
        overlap: float | None = None,
        batch_size: int = 1,
        scale: Scale = "none",
    ) -> Sources | list[Sources]:
        """Separate one recording or several.

        Another rate is converted to the model's and back; channels are averaged, and each source
        has one. A clipped recording is warned of. The module runs in eval mode, where it lies, and
        is left in the mode in which it was. Files are read piece by piece: memory grows by the
        result alone.

        Parameters
        ----------
        source : path, Tensor, or a list of either
            A file, or samples of shape ``(T,)`` or ``(C, T)``: floats in [-1, 1] or 16-bit
            integers.
        sample_rate, window, overlap, batch_size, scale
            See the class.

        Returns
        -------
        Sources or list of Sources
            A list for a list.

        Raises
        ------
        DataError
            A file that cannot be read, or without samples; samples that are NaN or infinite.
        ValueError
            A tensor without its rate; a window or an overlap that cannot be.
        """
        plan = self._plan(window, overlap, batch_size, scale)
        if not isinstance(source, (list, tuple)):
            recording = Recording(cast(Any, source), sample_rate)
            return self._separate(recording, plan, batch_size, scale)
        recordings = [
            Recording(item, sample_rate, name=f"item {i} of the list")
            for i, item in enumerate(source)
        ]  # all are opened before the first one costs time
        return [self._separate(item, plan, batch_size, scale) for item in recordings]

    def separate_stream(
        self,
        source: AudioSource,
        sample_rate: int | None = None,
        *,
        window: float = 20.0,
        overlap: float | None = None,
        batch_size: int = 1,
        scale: Scale = "none",
    ) -> Iterator[Tensor]:
        """Separate a recording and give each piece as soon as it is final.

        What ``separate`` gives, in memory that does not grow with the recording. With
        ``scale="mixture"`` the recording is separated twice, first to find the gains.

        Parameters
        ----------
        source : path or Tensor
            As in ``separate``, whose errors this raises.
        sample_rate, window, overlap, batch_size, scale
            See the class.

        Yields
        ------
        Tensor
            Shape ``(S, t)``, at the recording's rate; together as many samples as it has.
        """
        plan = self._plan(window, overlap, batch_size, scale)
        return self._stream(Recording(source, sample_rate), plan, batch_size, scale)

    def enhance(
        self,
        source: AudioSource | Sequence[AudioSource],
        sample_rate: int | None = None,
        *,
        window: float = 20.0,
        overlap: float | None = None,
        batch_size: int = 1,
        scale: Scale = "none",
    ) -> Enhanced | list[Enhanced]:
        """Free one recording, or several, of noise: ``separate`` of a model with one source.

        Parameters
        ----------
        source, sample_rate, window, overlap, batch_size, scale
            As in ``separate``.

        Returns
        -------
        Enhanced or list of Enhanced
            A list for a list.

        Raises
        ------
        ValueError
            If the model has two sources or more; and as ``separate``.
        """
        if self.num_sources != 1:
            raise ValueError(
                f"the model gives {self.num_sources} sources, so none of them is the recording "
                "without noise: call separate(...)"
            )
        found = self.separate(
            source,
            sample_rate,
            window=window,
            overlap=overlap,
            batch_size=batch_size,
            scale=scale,
        )
        several = isinstance(found, list)
        enhanced = [
            Enhanced(item.estimates[0], item.sample_rate)
            for item in (found if isinstance(found, list) else [found])
        ]
        return enhanced if several else enhanced[0]

    def _plan(self, window: float, overlap: float | None, batch_size: int, scale: str) -> Plan:
        overlap = window / 4 if overlap is None else overlap
        if not 0 < overlap <= window / 2 or not window < float("inf") or batch_size < 1:
            raise ValueError(
                f"window={window}, overlap={overlap}, batch_size={batch_size}: the overlap must be "
                "above 0 and at most half of the window, and a batch has at least one window"
            )
        if scale not in ("none", "mixture"):
            raise ValueError(f"unknown scale {scale!r}: choose 'none' or 'mixture'")
        half = max(2, round(overlap / 2 * self.sample_rate / self.stride))
        step = max(2 * half, round(window * self.sample_rate / self.stride) - 2 * half)
        return Plan(self.sample_rate, self.stride, step, half)

    def _separate(self, recording: Recording, plan: Plan, batch_size: int, scale: Scale) -> Sources:
        estimates = torch.empty(self.num_sources, recording.num_samples)
        gains = MixtureGains(self.num_sources)
        joined = gains.watch(self._joined(recording, plan, batch_size))
        end = 0
        for block in _at_rate(joined, self.num_sources, self.sample_rate, recording):
            estimates[:, end : end + block.shape[1]] = block
            end += block.shape[1]
        if scale == "mixture":
            estimates *= gains.solve()
        return Sources(estimates, recording.sample_rate)

    def _stream(
        self, recording: Recording, plan: Plan, batch_size: int, scale: Scale
    ) -> Iterator[Tensor]:
        factor: Tensor | None = None
        if scale == "mixture":
            gains = MixtureGains(self.num_sources)
            for _ in gains.watch(self._joined(recording, plan, batch_size)):
                pass
            factor = gains.solve()
        joined = self._joined(recording, plan, batch_size)
        for block in _at_rate(joined, self.num_sources, self.sample_rate, recording):
            yield block if factor is None else block * factor

    def _joined(self, recording: Recording, plan: Plan, batch_size: int) -> Iterator[Tensor]:
        """Give, at the model's rate, blocks (S + 1, t): the sources, and the mixture below them."""
        mono = recording.blocks(self.sample_rate)
        windows = cut_windows(0, Opened(recording.duration, mono), plan)
        joiner = SourceJoiner(plan)
        while batch := list(itertools.islice(windows, batch_size)):
            found = self._estimate([item.waveform for item in batch])
            for item, estimates in zip(batch, found):
                yield joiner.add(estimates, item.waveform, is_last=item.is_last)

    def _estimate(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        module = cast(nn.Module, self)
        device = next(module.parameters()).device
        lengths = torch.tensor([len(x) for x in waveforms])
        batch = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
        was_training = module.training
        module.eval()
        try:
            with torch.no_grad():  # not inference_mode: the result may be trained on
                output = module(batch.to(device), lengths.to(device))
        finally:
            module.train(was_training)
        estimates = output.estimates.float().cpu()
        return [x[:, :size] for x, size in zip(estimates, lengths.tolist())]


def _at_rate(
    joined: Iterator[Tensor], num_sources: int, rate: int, recording: Recording
) -> Iterator[Tensor]:
    """Bring joined blocks to the recording's rate and exactly to its length."""
    from speechkit.data.streaming import StreamResampler

    resamplers = [StreamResampler(rate, recording.sample_rate) for _ in range(num_sources)]
    left = recording.num_samples
    # Converted there and back, there may be more samples than there were, never fewer.
    for block in itertools.chain(joined, (None,)):
        rows = [
            resampler.finish() if block is None else resampler.push(block[s])
            for s, resampler in enumerate(resamplers)
        ]
        out = torch.stack(rows)[:, :left]
        if out.shape[1]:
            left -= out.shape[1]
            yield out
