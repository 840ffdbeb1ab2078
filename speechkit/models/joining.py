"""From the windows of a recording back to one transcript.

Posteriors of the kept frames are joined and searched as a whole. A search that attends to a whole
window is run on each, and the words whose middle lies in the kept part are joined.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from speechkit.decoding.ctc import greedy_path
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.decoding.words import split_words
from speechkit.models.transcript import Transcript, Word
from speechkit.models.windows import Plan, Window


class Found(NamedTuple):
    """What the model made of a window: posteriors, or a finished hypothesis."""

    num_frames: int
    log_probs: Tensor | None
    hypothesis: Hypothesis | None


class Joiner(ABC):
    """Collects one recording's windows into a transcript."""

    def __init__(self, plan: Plan, tokenizer: Any) -> None:
        self.plan = plan
        self.tokenizer = tokenizer
        self.pieces = list(tokenizer.pieces)
        self.num_samples = 0
        self.words: list[Word] = []

    def add(self, window: Window, found: Found | None) -> None:
        """Take the next window; ``found`` is None where it is silent."""
        start = window.number * self.plan.step
        self.num_samples = start * self.plan.stride + len(window.waveform)
        if found is None:
            self.silence()
            return
        keep_from = self.plan.half if window.number else 0
        keep_to = found.num_frames if window.is_last else self.plan.step + self.plan.half
        self.keep(start, found, keep_from, keep_to)

    @abstractmethod
    def keep(self, start: int, found: Found, keep_from: int, keep_to: int) -> None:
        """Take frames ``keep_from`` to ``keep_to`` of a window that begins at frame ``start``."""

    @abstractmethod
    def silence(self) -> None:
        """Take a silent window."""

    def transcript(self) -> Transcript:
        """Give what was said, once all windows are in."""
        duration = self.num_samples / self.plan.sample_rate
        words = [w._replace(start=min(w.start, duration), end=min(w.end, duration))
                 for w in self.words]  # fmt: skip
        return Transcript(" ".join(word.text for word in words), words, duration)

    def spell(self, found: Hypothesis, first: int) -> Iterator[Word]:
        """Give the words of a hypothesis whose frame 0 is frame ``first`` of the recording."""
        seconds = self.plan.stride / self.plan.sample_rate
        for word in split_words([self.pieces[token] for token in found.tokens]):
            text = self.tokenizer.decode([found.tokens[i] for i in word]).strip()
            if text:
                start = (first + found.frames[word[0]]) * seconds
                end = (first + found.ends[word[-1]]) * seconds
                logs = [math.log(max(found.confidences[i], 1e-9)) for i in word]
                yield Word(text, start, end, math.exp(sum(logs) / len(logs)))


class PosteriorJoiner(Joiner):
    """Joins the posteriors of the kept frames, and searches them.

    A silent window ends a segment, and each segment is decoded alone: so no word reaches across a
    long silence, and what is in memory is a segment.
    """

    def __init__(
        self, plan: Plan, tokenizer: Any, search: Callable[..., Sequence[Any]] | None
    ) -> None:
        super().__init__(plan, tokenizer)
        self.search = search
        self._first = 0
        self._kept: list[tuple[Tensor, ...]] = []

    def keep(self, start: int, found: Found, keep_from: int, keep_to: int) -> None:
        """Keep the posteriors, or where greedy search is enough the best label of each frame."""
        if not self._kept:
            self._first = start + keep_from
        kept = cast(Tensor, found.log_probs)[keep_from:keep_to]
        if self.search is None:  # two numbers a frame: an hour at 25 frames a second is 1 MB
            best, ids = kept.max(dim=-1)
            self._kept.append((ids, best))
        else:
            self._kept.append((kept.clone(),))

    def silence(self) -> None:
        """End a segment: search what is kept."""
        parts = [torch.cat(part) for part in zip(*self._kept)]
        self._kept = []
        if not parts or not len(parts[0]):
            return
        if self.search is None:
            found = greedy_path(*(part.numpy() for part in parts))
        else:
            found = best_of(self.search(parts[0][None], torch.tensor([len(parts[0])]))[0])
        self.words += self.spell(found, self._first)

    def transcript(self) -> Transcript:
        """Give what was said, once all windows are in."""
        self.silence()
        return super().transcript()


class WordJoiner(Joiner):
    """Joins the words of windows that were decoded one by one."""

    def keep(self, start: int, found: Found, keep_from: int, keep_to: int) -> None:
        """Keep the words whose middle lies in the kept frames."""
        seconds = self.plan.stride / self.plan.sample_rate
        first, last = ((start + frame) * seconds for frame in (keep_from, keep_to))
        for word in self.spell(cast(Hypothesis, found.hypothesis), start):
            middle = (word.start + word.end) / 2
            if first <= middle < last or (middle >= last and keep_to == found.num_frames):
                self.words.append(word)

    def silence(self) -> None:
        """Nothing waits for a window's end."""


def best_of(found: Any) -> Hypothesis:
    """Take a search's result for one item: a hypothesis, or a list of them, best first."""
    return found if isinstance(found, Hypothesis) else found[0]
