"""Audio in, words with times out: what every recogniser can do with a file or a tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from speechkit.decoding.ctc import PrefixBeamSearch
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.models.joining import Found, Joiner, PosteriorJoiner, WordJoiner
from speechkit.models.transcript import Transcript
from speechkit.models.windows import (
    AudioSource,
    Plan,
    Window,
    cut_windows,
    open_source,
    samples_per_frame,
)


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
        search: Callable[..., Sequence[Any]] | None = None,
        window: float = 30.0,
        overlap: float = 4.0,
        batch_size: int = 4,
    ) -> Transcript | list[Transcript]:
        """Write down what is said in one recording or several.

        Other rates and channel counts are converted (resampled, mixed to mono). Files are read
        piece by piece, so that memory does not grow with their length; only with a ``search`` of
        posteriors are those of a recording kept until its end. The module runs in eval mode,
        where it lies, and is left in the mode in which it was.

        Parameters
        ----------
        source : path, Tensor, or a list of either
            A file, or samples of shape ``(T,)`` or ``(C, T)``: floats in [-1, 1] or 16-bit
            integers.
        sample_rate : int, optional
            Hz, of the tensors, and necessary for them. Files carry their own.
        search : callable, optional
            ``search(log_probs (1, T, V), lengths (1,))`` gives for each item a `Hypothesis` or a
            list of them, best first: `PrefixBeamSearch`, say; for a recogniser with an attention
            decoder a `BeamSearch`. Default: greedy.
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
            open_source(
                item, sample_rate, self.sample_rate, f"item {i} of the list" if several else ""
            )
            for i, item in enumerate(sources)
        ]
        joiners: list[Joiner] = [
            PosteriorJoiner(plan, self.tokenizer, search)
            if self.joins_posteriors(search)
            else WordJoiner(plan, self.tokenizer)
            for _ in opened
        ]
        # Windows of like length share a batch, whatever the order of the list.
        order = sorted(range(len(opened)), key=lambda i: -opened[i].duration)
        windows = itertools.chain.from_iterable(cut_windows(i, opened[i], plan) for i in order)
        module = cast(nn.Module, self)
        was_training = module.training
        module.eval()
        try:
            with torch.inference_mode():
                while batch := list(itertools.islice(windows, batch_size)):
                    for item, found in zip(batch, self._recognize(batch, search)):
                        joiners[item.item].add(item, found)
        finally:
            module.train(was_training)
        transcripts = [joiner.transcript() for joiner in joiners]
        return transcripts if several else transcripts[0]

    def joins_posteriors(self, search: Callable[..., Sequence[Any]] | None) -> bool:
        """Whether what ``search`` works on are posteriors of frames, which can be joined."""
        return True

    def beam_search(self, beam_size: int) -> Callable[..., Sequence[Any]]:
        """Give a search of this width for ``transcribe``."""
        return PrefixBeamSearch(beam_size=beam_size)

    def decode(self, output: Any, search: Callable[..., Any] | None) -> list[list[Hypothesis]]:
        """Search an output of ``forward``: needed where posteriors are not joined."""
        raise NotImplementedError(f"{type(self).__name__} must define decode")

    def _plan(self, window: float, overlap: float, batch_size: int) -> Plan:
        if not 0 <= overlap < window or batch_size < 1:
            raise ValueError(
                f"window={window}, overlap={overlap}, batch_size={batch_size}: the overlap must be "
                "shorter than the window, and a batch has at least one window"
            )
        stride = samples_per_frame(self.num_frames)
        half = round(overlap / 2 * self.sample_rate / stride)
        step = max(1, round(window * self.sample_rate / stride) - 2 * half)
        plan = Plan(self.sample_rate, stride, step, half)
        frames = int(self.num_frames(torch.tensor([plan.window])))
        if frames < step + half:
            raise ValueError(
                f"overlap={overlap} s is too short: a window of {plan.window} samples gives "
                f"{frames} frames and the next one begins at frame {step + half}; take a longer one"
            )
        return plan

    def _recognize(
        self, windows: Sequence[Window], search: Callable[..., Sequence[Any]] | None
    ) -> list[Found | None]:
        """Run the windows that hold sound through the model; the others give None."""
        samples = torch.tensor([len(w.waveform) for w in windows])
        heard = [
            i for i, n in enumerate(self.num_frames(samples)) if n > 0 and not windows[i].silent
        ]
        found: list[Found | None] = [None] * len(windows)
        if not heard:
            return found
        module = cast(nn.Module, self)
        device = next(module.parameters()).device
        batch = nn.utils.rnn.pad_sequence([windows[i].waveform for i in heard], batch_first=True)
        output = module(batch.to(device), samples[heard].to(device))
        if self.joins_posteriors(search):
            log_probs = output.log_probs.float().cpu()
            for k, i in enumerate(heard):
                size = int(output.lengths[k])
                found[i] = Found(size, log_probs[k, :size], None)
        else:
            for k, (i, n_best) in enumerate(zip(heard, self.decode(output, search))):
                found[i] = Found(int(output.lengths[k]), None, n_best[0])
        return found
