"""What a synthesizer gives: sentences as they were spoken, and how sure it is of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.nn.acoustic import GeneratedMel
from speechkit.nn.masking import Padded, mask_padding

if TYPE_CHECKING:
    from speechkit.metrics.attention import AlignmentReport


@dataclass(frozen=True, eq=False)
class Sentence:
    """A sentence as it was spoken.

    Parameters
    ----------
    text : str
        As it was given.
    pieces : tuple of str
        The symbols that it was spoken from.
    waveform : Tensor
        Shape ``(N,)``, on the CPU.
    mel : Tensor
        Shape ``(T, num_mels)``, log-mel, what the vocoder was given.
    alignment : Tensor
        Shape ``(T', U)``: of which symbols each frame of the acoustic model was made.
    stopped : bool
        Whether the model ended by itself, not at its longest length.
    check : AlignmentReport
        What the alignment says: a score from 0 to 1, skipped and repeated parts.
    """

    text: str
    pieces: tuple[str, ...]
    waveform: Tensor
    mel: Tensor
    alignment: Tensor
    stopped: bool
    check: AlignmentReport

    @property
    def problems(self) -> list[str]:
        """What seems to have gone wrong, in words; empty where nothing did."""
        found = [] if self.stopped else ["did not stop by itself and was cut"]
        return found + self.check.problems(self.pieces)


@dataclass(frozen=True, eq=False)
class Speech:
    """Spoken text.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(N,)``, on the CPU: the sentences and the pauses between them.
    sample_rate : int
        Hz.
    sentences : tuple of Sentence
        The parts that were spoken one by one.
    """

    waveform: Tensor
    sample_rate: int
    sentences: tuple[Sentence, ...]

    @property
    def mel(self) -> Tensor:
        """The sentences' spectrograms one after the other: ``(T, num_mels)``."""
        return torch.cat([sentence.mel for sentence in self.sentences])

    @property
    def alignment(self) -> Tensor:
        """The sentences' alignments as blocks of one matrix: ``(T', U)``."""
        return torch.block_diag(*(sentence.alignment for sentence in self.sentences))

    @property
    def stopped(self) -> bool:
        """Whether the model ended each sentence by itself."""
        return all(sentence.stopped for sentence in self.sentences)

    @property
    def alignment_score(self) -> float:
        """That of the worst sentence, from 0 to 1."""
        return min(sentence.check.score for sentence in self.sentences)

    @property
    def problems(self) -> list[str]:
        """What seems to have gone wrong, in words, with the sentence."""
        return [f"{s.text[:60]!r}: {problem}" for s in self.sentences for problem in s.problems]


def check_pause(pause: float) -> None:
    """Refuse a pause between sentences that cannot be.

    Raises
    ------
    ValueError
        If it is negative or not finite.
    """
    if not 0.0 <= pause < math.inf:
        raise ValueError(f"pause must not be negative, infinite or NaN, got {pause}")


def join(sentences: Sequence[Sentence], sample_rate: int, pause: float) -> Tensor:
    """Join sentences ``(N,)`` with pauses of so many seconds between them.

    Raises
    ------
    ValueError
        If the pause is negative or not finite.
    """
    check_pause(pause)
    gap = torch.zeros(round(pause * sample_rate))
    parts = [part for sentence in sentences for part in (gap, sentence.waveform)]
    return torch.cat(parts[1:])


def stretch_frames(mel: Tensor, lengths: Tensor, factor: float) -> Padded:
    """Stretch each item of ``(B, T, M)`` in time, linearly between frames.

    Examples
    --------
    >>> mel, lengths = stretch_frames(torch.tensor([[[0.0], [2.0]]]), torch.tensor([2]), 1.5)
    >>> mel.flatten().tolist(), lengths.tolist()
    ([0.0, 1.0, 2.0], [3])
    """
    sizes = (lengths * factor).round().long().clamp(min=1)
    out = mel.new_zeros(len(mel), int(sizes.max()), mel.shape[2])
    for row, item, old, new in zip(out, mel, lengths.tolist(), sizes.tolist()):
        frames = item[:old].T.unsqueeze(0)
        row[:new] = F.interpolate(frames, size=new, mode="linear", align_corners=True)[0].T
    return Padded(out, sizes)


def cut_frames(spoken: GeneratedMel, limits: Tensor) -> GeneratedMel:
    """Cut items at limits of their own, ``(B,)``: one that never ends is what it is alone.

    Examples
    --------
    >>> mel, alignment = torch.ones(2, 5, 3), torch.ones(2, 5, 1)
    >>> spoken = GeneratedMel(mel, torch.tensor([5, 5]), alignment, torch.tensor([True, True]))
    >>> cut = cut_frames(spoken, torch.tensor([9, 2]))
    >>> cut.lengths.tolist(), cut.stopped.tolist(), cut.mel[1].sum().item()
    ([5, 2], [True, False], 6.0)
    """
    lengths = torch.minimum(spoken.lengths, limits)
    return GeneratedMel(
        mel=mask_padding(spoken.mel, lengths),
        lengths=lengths,
        alignment=mask_padding(spoken.alignment, lengths),
        stopped=spoken.stopped & (spoken.lengths <= limits),
    )
