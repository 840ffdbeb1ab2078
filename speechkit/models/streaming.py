"""Words before the recording ends: a CTC recogniser that listens.

::

    samples -> features -> normalisation -> encoder -> best label of each frame -> words

Each step is a stream (`speechkit.nn.streaming`) that gives what it gives for the whole recording,
so the words and their times are those of ``transcribe``. (That one hears a long recording in
windows, and leaves out windows that are silent; here there are none.) A word is final once the
label that begins the next one, or the space behind it, is the likeliest of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import speechkit.features.streaming  # noqa: F401  (makes the features known to open_stream)
from speechkit.decoding.words import SPACE_MARK, split_words
from speechkit.models.transcript import Transcript, Word
from speechkit.models.windows import samples_per_frame
from speechkit.nn.streaming import open_stream


class StreamUpdate(NamedTuple):
    """What a piece of audio brought.

    Attributes
    ----------
    words : list of Word
        That became final.
    partial : str
        What follows them so far; it may still change.
    """

    words: list[Word]
    partial: str


class StreamingTranscriber:
    """Takes a recording piece by piece and gives each word when it is final.

    Parameters
    ----------
    recognizer : nn.Module
        With ``features``, ``normalize``, ``encoder``, a CTC ``head``, ``tokenizer`` and
        ``sample_rate``, such as `speechkit.models.asr.CTCRecognizer`. It runs in eval mode, where
        it lies, and is left in the mode in which it was.
    sample_rate : int, optional
        Hz, of the samples to come; the recogniser's own by default.
    pause : float, optional
        Seconds without a label after which a word is final, though no next one has begun; by
        default a word waits for the next one, and nothing differs from ``transcribe``.

    Attributes
    ----------
    latency : float
        Seconds of audio that the labels of a moment wait for, at most.

    Raises
    ------
    ValueError
        If a part of the recogniser needs the whole recording; the message says what to train
        instead.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from speechkit.features.spectrum import LogMel
    >>> from speechkit.nn.rnn import RecurrentEncoder
    >>> model = nn.Module()
    >>> model.features, model.normalize, model.sample_rate = LogMel(num_mels=8), None, 16000
    >>> model.encoder = RecurrentEncoder(
    ...     input_size=8, hidden_size=4, num_layers=1, bidirectional=False)
    >>> model.head = nn.Linear(4, 3)
    >>> model.tokenizer = SimpleNamespace(pieces=["-", "a", " "], decode=lambda ids: "a" * len(ids))
    >>> model.num_frames = model.features.num_frames
    >>> stream = StreamingTranscriber(model)
    >>> update = stream.push(torch.randn(8000))
    >>> transcript = stream.finish()
    >>> transcript.duration, transcript.words[: len(update.words)] == update.words
    (0.5, True)
    """

    def __init__(
        self, recognizer: nn.Module, *, sample_rate: int | None = None, pause: float | None = None
    ) -> None:
        from speechkit.data.streaming import StreamResampler

        if sample_rate is not None and sample_rate <= 0:
            raise ValueError(f"sample_rate must be above 0 Hz: {sample_rate}")
        if pause is not None and pause <= 0:
            raise ValueError(f"pause must be above 0 s, or None: {pause}")
        model: Any = recognizer
        _check_head(model)
        self.recognizer = model
        rate = int(model.sample_rate)
        self.sample_rate = sample_rate or rate
        self.pause = pause
        with _evaluating(recognizer):
            parts = (model.features, model.normalize, model.encoder)
            self._streams = [open_stream(part) for part in parts if part is not None]
        self._resampler = StreamResampler(self.sample_rate, rate)
        seconds = samples_per_frame(self.recognizer.num_frames) / rate
        quiet = math.inf if pause is None else pause / seconds
        self._words = _WordCollector(model.tokenizer, seconds, quiet)
        self._num_samples = 0
        self._num_heard = 0
        self.latency = self._resampler.lookahead + self._lookahead() / rate
        self._finished = False

    def _lookahead(self) -> int:
        samples, stride = 0, 1
        for stream in self._streams:
            samples += stride * stream.lookahead
            stride *= stream.stride
        return samples

    @property
    def words(self) -> list[Word]:
        """The words that are final."""
        return list(self._words.words)

    def push(self, samples: Any) -> StreamUpdate:
        """Take the next samples.

        Parameters
        ----------
        samples : Tensor or array
            Shape ``(t,)`` or ``(C, t)`` with any ``t``: floats in [-1, 1] or 16-bit integers.

        Returns
        -------
        StreamUpdate
            The words that became final, and the text that follows them so far.

        Raises
        ------
        DataError
            If samples are NaN or infinite.
        ValueError
            If the samples have another type or shape, or the stream is finished.
        """
        from speechkit.data.audio import as_waveform

        if self._finished:
            raise ValueError("the stream is finished: open a new one for another recording")
        samples = torch.as_tensor(samples)
        if samples.numel() == 0:
            return StreamUpdate([], self._words.partial())
        waveform = as_waveform(samples, None, self.sample_rate)
        self._num_samples += len(waveform)
        return self._hear(self._resampler.push(waveform), last=False)

    def finish(self) -> Transcript:
        """End the recording.

        Returns
        -------
        Transcript
            All of it: the words that were given and those that waited for the end.
        """
        if not self._finished:
            self._hear(self._resampler.finish(), last=True)
            self._finished = True
        duration = self._num_samples / self.sample_rate
        words = [w._replace(start=min(w.start, duration), end=min(w.end, duration))
                 for w in self._words.words]  # fmt: skip
        return Transcript(" ".join(word.text for word in words), words, duration)

    def _hear(self, waveform: Tensor, *, last: bool) -> StreamUpdate:
        count = len(self._words.words)
        self._num_heard += len(waveform)
        with _evaluating(self.recognizer), torch.inference_mode():
            device = next(self.recognizer.parameters()).device
            x = waveform.to(device)[None]
            for stream in self._streams:
                out = stream.push(x)
                x = torch.cat([out, stream.finish()], dim=1) if last else out
            log_probs = self.recognizer.head(x).float().log_softmax(dim=-1)[0].cpu()
        if self._num_heard:  # a features' frame of no audio at all means nothing
            best, labels = log_probs.max(dim=-1)
            self._words.add(labels.tolist(), best.tolist())
        if last:
            self._words.end()
        return StreamUpdate(self._words.words[count:], self._words.partial())


def _check_head(recognizer: Any) -> None:
    missing = [name for name in ("features", "encoder", "head", "tokenizer", "sample_rate")
               if getattr(recognizer, name, None) is None]  # fmt: skip
    if missing:
        raise ValueError(
            f"{type(recognizer).__name__} has no {', '.join(missing)} and cannot stream: words "
            "come out early from a CTC head over an encoder (CTCRecognizer, or "
            "AttentionRecognizer with ctc=True)"
        )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


class _Token(NamedTuple):
    label: int
    start: int  # frames [start, end) in which it is the likeliest
    end: int
    peak: float  # its highest log-probability


class _WordCollector:
    """Collapses the best labels of frames and parts them into words, as they come."""

    def __init__(self, tokenizer: Any, seconds: float, quiet: float) -> None:
        self.words: list[Word] = []
        self._tokenizer = tokenizer
        self._pieces = list(tokenizer.pieces)
        self._seconds = seconds
        self._quiet = quiet  # frames of blank that end a word
        self._tokens: list[_Token] = []  # of the words that are not final
        self._frame = 0
        self._last = 0  # label of the frame before

    def add(self, labels: list[int], log_probs: list[float]) -> None:
        """Take the best label of each next frame, and its log-probability."""
        for label, log_prob in zip(labels, log_probs):
            if label == 0:
                if self._tokens and self._frame + 1 - self._tokens[-1].end >= self._quiet:
                    self._settle(everything=True)
            elif label == self._last and self._tokens:
                token = self._tokens[-1]
                self._tokens[-1] = token._replace(
                    end=self._frame + 1, peak=max(token.peak, log_prob)
                )
            else:
                self._tokens.append(_Token(label, self._frame, self._frame + 1, log_prob))
            self._last = label
            self._frame += 1
        self._settle(everything=False)

    def end(self) -> None:
        """Make the last word final."""
        self._settle(everything=True)

    def partial(self) -> str:
        """Text of the tokens that are in no final word."""
        text: str = self._tokenizer.decode([token.label for token in self._tokens])
        return text.strip()

    def _settle(self, *, everything: bool) -> None:
        pieces = [self._pieces[token.label] for token in self._tokens]
        closed = bool(pieces) and not pieces[-1].strip(SPACE_MARK + " ")
        words = split_words(pieces)
        final = words if everything or closed else words[:-1]
        for word in final:
            self._spell([self._tokens[i] for i in word])
        # The last token stays, as it may still be the likeliest of the next frame.
        if everything:
            self._tokens = []
        elif len(final) < len(words):
            self._tokens = self._tokens[words[len(final)][0] :]
        elif self._tokens:
            self._tokens = self._tokens[-1:]

    def _spell(self, tokens: list[_Token]) -> None:
        text = self._tokenizer.decode([token.label for token in tokens]).strip()
        if text:
            logs = [max(min(token.peak, 0.0), math.log(1e-9)) for token in tokens]
            start, end = tokens[0].start * self._seconds, tokens[-1].end * self._seconds
            self.words.append(Word(text, start, end, math.exp(sum(logs) / len(logs))))
