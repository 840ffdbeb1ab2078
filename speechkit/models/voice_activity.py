"""Voice activity and overlap: whether at least one, and at least two people speak, frame by frame.

A learnt detector tells speech from noise and one voice from two, which energy cannot. Its
``activity`` and ``overlap`` are what `speechkit.speakers.diarization.Diarizer` takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from speechkit.models.windows import Opened, Plan, Window, cut_windows, samples_per_frame
from speechkit.nn.masking import Padded, mask_padding
from speechkit.speakers.activity import Region, hysteresis, runs, smooth_regions


class VoiceActivity(nn.Module):
    """Features, an encoder, and for each frame one yes or no a level.

    Level ``k`` says that at least ``k`` people speak: 1 is speech, 2 is overlap.

    Parameters
    ----------
    features : nn.Module
        Waveforms ``(B, T)`` and lengths to frames, `Padded`: `speechkit.features.spectrum.LogMel`.
    encoder : nn.Module
        Frames and lengths to frames, `Padded`, with ``input_size``, ``output_size`` and
        ``num_frames``: convolutions, recurrent layers, a `speechkit.nn.stack.Stack` of both.
    norm : nn.Module, optional
        Of the features and lengths: `speechkit.features.normalize`. The norm of each recording by
        itself would make a window of a long one differ from the whole.
    num_levels : int
        How many people are told apart from fewer.
    sample_rate : int
        Hz, of the waveforms that ``forward`` takes; the features' own.

    Raises
    ------
    ValueError
        If the parts disagree, or there is no level.

    Examples
    --------
    >>> from speechkit.features.spectrum import LogMel
    >>> from speechkit.nn.conv import ConvEncoder
    >>> model = VoiceActivity(
    ...     features=LogMel(num_mels=24),
    ...     encoder=ConvEncoder(input_size=24, channels=(16,), strides=(2,)),
    ... ).eval()
    >>> logits, lengths = model(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> logits.shape, lengths.tolist()  # 50 frames a second
    (torch.Size([2, 51, 2]), [51, 26])
    >>> model.probabilities(torch.randn(44100), 44100).shape  # another rate, any length
    torch.Size([51, 2])
    """

    def __init__(
        self,
        *,
        features: nn.Module,
        encoder: nn.Module,
        norm: nn.Module | None = None,
        num_levels: int = 2,
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        if features.output_size != encoder.input_size:
            raise ValueError(
                f"features gives {features.output_size} values and encoder takes "
                f"{encoder.input_size}"
            )
        if features.sample_rate != sample_rate:
            raise ValueError(f"sample_rate is {sample_rate}, the features' {features.sample_rate}")
        if num_levels < 1:
            raise ValueError(f"num_levels must be at least 1, is {num_levels}")
        self.features = features
        self.encoder = encoder
        self.norm = norm
        self.num_levels = num_levels
        self.sample_rate = sample_rate
        self.head = nn.Linear(int(encoder.output_size), num_levels)  # type: ignore[arg-type]

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` samples."""
        frames: Tensor = self.encoder.num_frames(self.features.num_frames(lengths))  # type: ignore[operator]
        return frames

    @property
    def stride(self) -> int:
        """Samples from one output frame to the next; frame ``k`` is centered at ``k * stride``."""
        return samples_per_frame(self.num_frames)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Padded:
        """Give the logits of each frame.

        Parameters
        ----------
        waveform : Tensor
            Shape ``(B, T)``, at `sample_rate`.
        lengths : Tensor
            Shape ``(B,)``, samples.

        Returns
        -------
        Padded
            ``(B, T', num_levels)``, zero beyond the lengths, and ``(B,)`` frames.
        """
        x, frames = self.features(waveform, lengths)
        if self.norm is not None:
            x = self.norm(x, frames)
        x, frames = self.encoder(x, frames)
        return Padded(mask_padding(self.head(x), frames), frames)

    # ---------------------------------------------------------------- recordings

    def probabilities(
        self,
        source: str | os.PathLike[str] | Tensor,
        sample_rate: int | None = None,
        *,
        window_seconds: float = 30.0,
        overlap_seconds: float = 4.0,
        batch_size: int = 8,
    ) -> Tensor:
        """Tell for each frame of a recording of any length how likely each level is.

        Long recordings go through in overlapping windows, of which each frame is taken where it
        has most context (see `speechkit.models.windows`). The module runs in eval mode, where it
        lies, and is left in the mode in which it was.

        Parameters
        ----------
        source : path or Tensor
            A file, or samples ``(T,)`` or ``(C, T)``.
        sample_rate : int, optional
            Of the samples, in Hz; by default the model's. A file knows its own.
        window_seconds : float
            Most of a recording that goes through at once.
        overlap_seconds : float
            That two windows have in common.
        batch_size : int
            Windows that go through at once.

        Returns
        -------
        Tensor
            Shape ``(T', num_levels)``, float32 on the CPU, in [0, 1].

        Raises
        ------
        DataError
            When the file is unreadable, or samples are missing or not finite.
        ValueError
            When the numbers cannot be.
        """
        from speechkit.data.audio import as_waveform

        if not 0 <= overlap_seconds < window_seconds or batch_size < 1:
            raise ValueError(
                f"need 0 <= overlap_seconds < window_seconds and batch_size >= 1, got "
                f"{overlap_seconds}, {window_seconds} and {batch_size}"
            )
        waveform = as_waveform(source, sample_rate, self.sample_rate).cpu()
        stride = self.stride
        half = round(overlap_seconds * self.sample_rate / stride / 2)
        step = max(1, round(window_seconds * self.sample_rate / stride) - 2 * half)
        plan = Plan(self.sample_rate, stride, step, half)
        opened = Opened(len(waveform) / self.sample_rate, iter((waveform,)))
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                parts = list(self._parts(cut_windows(0, opened, plan), plan, batch_size))
        finally:
            self.train(was_training)
        return torch.cat(parts).clone()

    def _parts(self, windows: Iterator[Window], plan: Plan, batch_size: int) -> Iterator[Tensor]:
        """Give of each window the probabilities that are kept."""
        batch: list[Window] = []
        for window in windows:
            batch.append(window)
            if len(batch) == batch_size or window.is_last:
                lengths = torch.tensor([len(w.waveform) for w in batch])
                x = nn.utils.rnn.pad_sequence([w.waveform for w in batch], batch_first=True)
                device = self.head.weight.device
                logits, frames = self(x.to(device), lengths.to(device))
                for w, own, count in zip(batch, logits.float().cpu(), frames.tolist()):
                    last = count if w.is_last else plan.step + plan.half
                    yield own[plan.half if w.number else 0 : last].sigmoid()
                batch = []

    def levels(
        self,
        waveform: str | os.PathLike[str] | Tensor,
        sample_rate: int | None = None,
        *,
        onset: float = 0.5,
        offset: float = 0.35,
        min_speech: float = 0.2,
        min_silence: float = 0.2,
        pad: float = 0.0,
    ) -> list[list[Region]]:
        """Find where at least one, two and so on speak, in one pass.

        A stretch begins where the probability exceeds `onset` and ends where it falls below
        `offset` (`speechkit.speakers.activity.hysteresis`). Then short gaps are closed, what is
        still short is dropped, and the rest is widened.

        Parameters
        ----------
        waveform : path or Tensor
            A file, or samples ``(T,)`` or ``(C, T)``.
        sample_rate : int, optional
            In Hz; by default the model's.
        onset, offset : float
            Probabilities.
        min_speech, min_silence, pad : float
            Seconds, see `speechkit.speakers.activity.smooth_regions`.

        Returns
        -------
        list of list of (float, float)
            For each level start and end in seconds, sorted and apart.

        Raises
        ------
        DataError, ValueError
            As `probabilities`; for an `offset` above `onset`.
        """
        from speechkit.data.audio import as_waveform

        samples = as_waveform(waveform, sample_rate, self.sample_rate)
        duration, seconds = len(samples) / self.sample_rate, self.stride / self.sample_rate
        return [
            smooth_regions(
                frame_regions(hysteresis(scores, onset=onset, offset=offset), seconds, duration),
                duration,
                min_silence=min_silence,
                min_speech=min_speech,
                padding=pad,
            )
            for scores in self.probabilities(samples).unbind(1)
        ]

    def regions(
        self,
        waveform: str | os.PathLike[str] | Tensor,
        sample_rate: int | None = None,
        *,
        level: int = 1,
        onset: float = 0.5,
        offset: float = 0.35,
        min_speech: float = 0.2,
        min_silence: float = 0.2,
        pad: float = 0.0,
    ) -> list[Region]:
        """Find where at least `level` people speak, from 1 to `num_levels`; else as `levels`.

        Raises
        ------
        DataError, ValueError
            As `levels`; for a level that the model does not know.
        """
        if not 1 <= level <= self.num_levels:
            raise ValueError(f"level must be from 1 to {self.num_levels}, is {level}")
        found = self.levels(
            waveform, sample_rate, onset=onset, offset=offset, min_speech=min_speech,
            min_silence=min_silence, pad=pad,
        )  # fmt: skip
        return found[level - 1]

    def activity(self, waveform: Tensor, sample_rate: int) -> list[Region]:
        """Find where somebody speaks: `regions` of level 1."""
        return self.regions(waveform, sample_rate)

    def overlap(self, waveform: Tensor, sample_rate: int) -> list[Region]:
        """Find where at least two people speak at once: `regions` of level 2."""
        return self.regions(waveform, sample_rate, level=2)


def frame_regions(active: Tensor, seconds: float, duration: float) -> list[Region]:
    """Turn active frames, centered at multiples of `seconds`, into stretches of a recording.

    The last frame lasts to the end.

    Examples
    --------
    >>> frame_regions(torch.tensor([True, True, False, True]), 0.5, 1.9)
    [(0.0, 0.75), (1.25, 1.9)]
    """
    spans = []
    for first, last in runs(active):
        end = duration if last == len(active) else (last - 0.5) * seconds
        spans.append((max(0.0, (first - 0.5) * seconds), min(end, duration)))
    return [(start, end) for start, end in spans if end > start]
