"""Whose recording a test takes as the voice of a text: another one of the same speaker."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechkit.data.audio import read_audio
from speechkit.data.batch import Batch
from speechkit.data.manifest import Utterance
from speechkit.nn.masking import Padded

logger = logging.getLogger(__name__)

SHORTEST = 0.5
"""Seconds of a recording that tells a voice."""
_NAMED = 5


def choose_references(utterances: Sequence[Utterance], split: str) -> dict[str, Utterance]:
    """Choose a recording of the same speaker for each utterance that has another one.

    It is the next one in order, after the last the first, of half a second at least. The log counts
    those that have none but their own.

    Parameters
    ----------
    utterances : sequence of Utterance
        Of a split; those without a speaker have no other recording.
    split : str
        Its name.

    Returns
    -------
    dict
        Utterance's id to the recording; without those that have none but their own.

    Examples
    --------
    >>> rows = [Utterance(f"{s}{n}", f"{s}{n}.wav", 1.0, 16000, speaker=s)
    ...         for n, s in enumerate("abacaa")]
    >>> {name: clip.id for name, clip in choose_references(rows, "test").items()}
    {'a0': 'a2', 'a2': 'a4', 'a4': 'a5', 'a5': 'a0'}
    """
    spoken: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        if utterance.speaker is not None:
            spoken.setdefault(utterance.speaker, []).append(utterance)
    chosen = {}
    for mine in spoken.values():
        for index, utterance in enumerate(mine):
            span = (utterance.audio, utterance.start)
            for other in (*mine[index + 1 :], *mine[:index]):
                if other.duration >= SHORTEST and (other.audio, other.start) != span:
                    chosen[utterance.id] = other
                    break
    own = [utterance.id for utterance in utterances if utterance.id not in chosen]
    logger.info(
        "%s: %d texts are spoken in the voice of another recording of their speaker", split,
        len(chosen),
    )  # fmt: skip
    if own:
        logger.warning(
            "%s: %d texts are spoken in the voice of their own recording, as there is no other of "
            "their speaker of %g s at least: %s", split, len(own), SHORTEST,
            ", ".join(own[:_NAMED]) + (", ..." if len(own) > _NAMED else ""),
        )  # fmt: skip
    return chosen


def reference_audio(batch: Batch, references: Mapping[str, Utterance], sample_rate: int) -> Padded:
    """Give the recordings in whose voices a batch is spoken.

    Parameters
    ----------
    batch : Batch
        With ``waveform``.
    references : mapping
        Utterance's id to the recording; of others the batch's own is taken.
    sample_rate : int
        Hz, of the batch and of the result.

    Returns
    -------
    Padded
        Data ``(B, N)``, where the batch is.
    """
    clips = []
    for name, own, size in zip(batch.ids, *batch.waveform):
        other = references.get(name)
        clip = own[: int(size)].float() if other is None else read_clip(other, sample_rate)
        clips.append(clip.to(own.device))
    sizes = torch.tensor([len(clip) for clip in clips], device=batch.waveform.data.device)
    return Padded(pad_sequence(clips, batch_first=True), sizes)


def read_clip(utterance: Utterance, sample_rate: int) -> Tensor:
    """Read an utterance's span, ``(N,)``."""
    return read_audio(
        utterance.audio,
        start=utterance.start,
        duration=utterance.duration,
        sample_rate=sample_rate,
    )[0]
