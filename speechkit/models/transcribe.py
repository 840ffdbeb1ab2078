"""Audio in, words with times out: what every recogniser can do with a file or a tensor.

Long audio goes through in overlapping windows::

    audio    |------------------------------------------------ ...
    window 0 [==============~~~~]
    window 1               [~~~~==============~~~~]
    window 2                              [~~~~==============~~~~]
    kept     |<----- 0 ------>|<------- 1 ------>|<------- 2 ...

Each window loses half of the overlap (``~``) on each side, where the model lacks context, and the
log-probabilities of what is left are joined. Windows start on the model's own frame grid, so that a
model whose receptive field is shorter than half of the overlap gives what it gives for the whole.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from speechkit.decoding.ctc import greedy_path
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.decoding.words import split_words

AudioSource: TypeAlias = "str | os.PathLike[str] | Tensor"
SILENCE_DBFS = -70.0
"""A window with no 25 ms louder than this (RMS, re full scale) is silence: it has no words."""

_BLOCK_SECONDS = 10.0


class Word(NamedTuple):
    """A recognised word.

    Attributes
    ----------
    text : str
        The word.
    start, end : float
        Seconds from the start of the recording, at the resolution of the model's frames.
    confidence : float
        0 to 1: geometric mean of the probabilities of the word's pieces.
    """

    text: str
    start: float
    end: float
    confidence: float


class Transcript(NamedTuple):
    """What was said in a recording.

    Attributes
    ----------
    text : str
        The words, joined by a space.
    words : list of Word
        With their times.
    duration : float
        Seconds of audio.

    Examples
    --------
    >>> Transcript("yes", [Word("yes", 0.1, 0.4, 0.9)], 0.5).to_dict()["words"]
    [{'text': 'yes', 'start': 0.1, 'end': 0.4, 'confidence': 0.9}]
    """

    text: str
    words: list[Word]
    duration: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        words = [word._asdict() for word in self.words]
        return {"text": self.text, "words": words, "duration": self.duration}


class _Plan(NamedTuple):
    """How recordings are cut, in frames and in samples."""

    sample_rate: int
    stride: int  # samples a frame
    step: int  # frames from a window's start to the next one's
    half: int  # frames that a window loses on an inner side

    @property
    def window(self) -> int:
        """Samples in a full window."""
        return (self.step + 2 * self.half) * self.stride


class _Window(NamedTuple):
    item: int
    number: int
    waveform: Tensor
    is_last: bool
    silent: bool


class Transcriber:
    """What a recogniser inherits to have ``transcribe``.

    The recogniser is a ``torch.nn.Module`` with ``forward(waveforms (B, T), lengths)`` that returns
    ``log_probs (B, T', V)`` (blank 0) and ``lengths``, and with the attributes below.

    Attributes
    ----------
    tokenizer
        With ``pieces`` (one for each label, the blank included) and ``decode(ids)``.
    sample_rate : int
        Hz, of the waveforms that ``forward`` takes.
    """

    tokenizer: Any
    sample_rate: int
    num_frames: Callable[[Tensor], Tensor]

    def transcribe(
        self,
        source: AudioSource | Sequence[AudioSource],
        sample_rate: int | None = None,
        *,
        decoder: Callable[[Tensor, Tensor], Sequence[Any]] | None = None,
        window: float = 30.0,
        overlap: float = 4.0,
        batch_size: int = 4,
    ) -> Transcript | list[Transcript]:
        """Write down what is said in one recording or several.

        Other rates and channel counts are converted (resampled, mixed to mono). Files are read
        piece by piece, so that memory does not grow with their length; only with a ``decoder`` are
        the log-probabilities of a recording kept until its end. The module runs in eval mode,
        where it lies, and is left in the mode in which it was.

        Parameters
        ----------
        source : path, Tensor, or a list of either
            A file, or samples of shape ``(T,)`` or ``(C, T)``: floats in [-1, 1] or 16-bit
            integers.
        sample_rate : int, optional
            Hz, of the tensors, and necessary for them. Files carry their own.
        decoder : callable, optional
            ``decoder(log_probs (1, T, V), lengths (1,))`` gives for each item a `Hypothesis` or a
            list of them, best first: `PrefixBeamSearch`, say.
            Default: the likeliest token of each frame.
        window, overlap : float
            Seconds in a window, and those shared with the next one.
        batch_size : int
            Windows that go through the model at once.

        Returns
        -------
        Transcript or list of Transcript
            A list for a list. A window where no 25 ms are louder than `SILENCE_DBFS` has no words.

        Raises
        ------
        DataError
            A file that cannot be read; samples that are NaN or infinite.
        ValueError
            A tensor without its rate; an overlap that the window or the model does not allow.
        """
        several = isinstance(source, (list, tuple))
        sources: list[Any] = list(cast(Any, source)) if several else [source]
        plan = self._plan(window, overlap, batch_size)
        opened = [
            _open(item, sample_rate, self.sample_rate, f"item {i} of the list" if several else "")
            for i, item in enumerate(sources)
        ]
        joiners = [_Joiner(plan, self.tokenizer, decoder) for _ in opened]
        # Windows of like length share a batch, whatever the order of the list.
        order = sorted(range(len(opened)), key=lambda i: -opened[i].duration)
        windows = itertools.chain.from_iterable(_windows(i, opened[i], plan) for i in order)
        module = cast(nn.Module, self)
        was_training = module.training
        module.eval()
        try:
            with torch.inference_mode():
                while batch := list(itertools.islice(windows, batch_size)):
                    for item, log_probs in zip(batch, self._log_probs(batch)):
                        joiners[item.item].add(item, log_probs)
        finally:
            module.train(was_training)
        transcripts = [joiner.transcript() for joiner in joiners]
        return transcripts if several else transcripts[0]

    def _plan(self, window: float, overlap: float, batch_size: int) -> _Plan:
        if not 0 <= overlap < window or batch_size < 1:
            raise ValueError(
                f"window={window}, overlap={overlap}, batch_size={batch_size}: the overlap must be "
                "shorter than the window, and a batch has at least one window"
            )
        stride = _samples_per_frame(self.num_frames)
        half = round(overlap / 2 * self.sample_rate / stride)
        step = max(1, round(window * self.sample_rate / stride) - 2 * half)
        plan = _Plan(self.sample_rate, stride, step, half)
        frames = int(self.num_frames(torch.tensor([plan.window])))
        if frames < step + half:
            raise ValueError(
                f"overlap={overlap} s is too short: a window of {plan.window} samples gives "
                f"{frames} frames and the next one begins at frame {step + half}; take a longer one"
            )
        return plan

    def _log_probs(self, windows: Sequence[_Window]) -> Iterator[Tensor | None]:
        """Run the windows that hold sound through the model: ``(T', V)`` for each, or None."""
        samples = torch.tensor([len(w.waveform) for w in windows])
        heard = [
            i for i, n in enumerate(self.num_frames(samples)) if n > 0 and not windows[i].silent
        ]
        if not heard:
            return iter([None] * len(windows))
        module = cast(nn.Module, self)
        device = next(module.parameters()).device
        batch = nn.utils.rnn.pad_sequence([windows[i].waveform for i in heard], batch_first=True)
        output = module(batch.to(device), samples[heard].to(device))
        log_probs = output.log_probs.float().cpu()
        found = {i: log_probs[k, : int(output.lengths[k])] for k, i in enumerate(heard)}
        return (found.get(i) for i in range(len(windows)))


class _Joiner:
    """Collects the kept frames of one recording's windows, and decodes them.

    A silent window ends a segment, and each segment is decoded alone: so no word reaches across a
    long silence, and what is in memory is a segment.
    """

    def __init__(
        self, plan: _Plan, tokenizer: Any, decoder: Callable[..., Sequence[Any]] | None
    ) -> None:
        self.plan = plan
        self.tokenizer = tokenizer
        self.decoder = decoder
        self._pieces = list(tokenizer.pieces)
        self.num_samples = 0
        self.words: list[Word] = []
        self._first = 0
        self._kept: list[tuple[Tensor, ...]] = []

    def add(self, window: _Window, log_probs: Tensor | None) -> None:
        start = window.number * self.plan.step
        self.num_samples = start * self.plan.stride + len(window.waveform)
        if log_probs is None:
            self._end_segment()
            return
        keep_from = self.plan.half if window.number else 0
        keep_to = len(log_probs) if window.is_last else self.plan.step + self.plan.half
        if not self._kept:
            self._first = start + keep_from
        kept = log_probs[keep_from:keep_to]
        if self.decoder is None:  # two numbers a frame: an hour at 25 frames a second is 1 MB
            best, ids = kept.max(dim=-1)
            self._kept.append((ids, best))
        else:
            self._kept.append((kept.clone(),))

    def transcript(self) -> Transcript:
        self._end_segment()
        duration = self.num_samples / self.plan.sample_rate
        words = [w._replace(start=min(w.start, duration), end=min(w.end, duration))
                 for w in self.words]  # fmt: skip
        return Transcript(" ".join(word.text for word in words), words, duration)

    def _end_segment(self) -> None:
        parts = [torch.cat(part) for part in zip(*self._kept)]
        self._kept = []
        if not parts or not len(parts[0]):
            return
        if self.decoder is None:
            found = greedy_path(*(part.numpy() for part in parts))
        else:
            found = _best(self.decoder(parts[0][None], torch.tensor([len(parts[0])]))[0])
        seconds = self.plan.stride / self.plan.sample_rate
        for word in split_words([self._pieces[token] for token in found.tokens]):
            text = self.tokenizer.decode([found.tokens[i] for i in word]).strip()
            if text:
                start = (self._first + found.frames[word[0]]) * seconds
                end = (self._first + found.ends[word[-1]]) * seconds
                logs = [math.log(max(found.confidences[i], 1e-9)) for i in word]
                self.words.append(Word(text, start, end, math.exp(sum(logs) / len(logs))))


def _best(found: Any) -> Hypothesis:
    """Take a decoder's result for one item: a hypothesis, or a list of them, best first."""
    return found if isinstance(found, Hypothesis) else found[0]


def _samples_per_frame(num_frames: Callable[[Tensor], Tensor]) -> int:
    """Find the model's stride from how many frames a long stretch adds (~4 days at 16 kHz)."""
    stretch = 2**32
    few, many = num_frames(torch.tensor([2**20, 2**20 + stretch])).tolist()
    stride = stretch / max(1, many - few)
    if abs(stride - round(stride)) > 0.01 or not few:
        raise ValueError(
            f"the model has {stride:.4f} samples a frame: windows can be joined only where that is "
            "a whole number"
        )
    return round(stride)


class _Opened(NamedTuple):
    duration: float
    blocks: Iterator[Tensor]  # mono, at the model's rate


def _open(source: AudioSource, sample_rate: int | None, target_rate: int, position: str) -> _Opened:
    from speechkit.data import audio

    if isinstance(source, (str, os.PathLike)):
        info = audio.audio_info(source)
        blocks = audio.stream_audio(
            source, block_seconds=_BLOCK_SECONDS, overlap_seconds=0.0, sample_rate=target_rate
        )
        return _Opened(info.num_samples / info.sample_rate, iter(blocks))
    name = position or "the tensor"
    if not hasattr(source, "__array__"):
        raise TypeError(f"{name}: expected a path or a tensor, got {type(source).__name__}")
    if sample_rate is None:
        raise ValueError(
            f"{name}: a tensor does not say its sampling rate, so give it: "
            f"transcribe(tensor, sample_rate=...) in Hz (the model's own is {target_rate})"
        )
    samples = torch.as_tensor(source)
    if samples.numel() == 0:
        return _Opened(0.0, iter(()))
    try:
        waveform = audio.as_waveform(samples, sample_rate, target_rate).cpu()
    except ValueError as error:  # DataError too: which item it was helps
        raise type(error)(f"{name}: {error}") from error
    return _Opened(len(waveform) / target_rate, iter((waveform,)))


def _windows(item: int, source: _Opened, plan: _Plan) -> Iterator[_Window]:
    """Cut a stream of blocks into windows; only the last one is shorter than the plan's."""
    step = plan.step * plan.stride
    buffer = torch.zeros(0)
    index = 0
    for block in source.blocks:
        buffer = torch.cat([buffer, block])
        while len(buffer) > plan.window:  # so there is always something left for a last window
            waveform = buffer[: plan.window].clone()
            yield _Window(item, index, waveform, False, _is_silent(waveform, plan.sample_rate))
            buffer = buffer[step:].clone()
            index += 1
    if len(buffer):
        yield _Window(item, index, buffer, True, _is_silent(buffer, plan.sample_rate))


def _is_silent(waveform: Tensor, sample_rate: int) -> bool:
    size = min(len(waveform), max(1, sample_rate // 40))
    whole = len(waveform) // size * size
    power = waveform[:whole].reshape(-1, size).square().mean(dim=1).max()
    rest = waveform[whole:].square().sum() / size
    return float(torch.maximum(power, rest)) < 10 ** (SILENCE_DBFS / 10)
