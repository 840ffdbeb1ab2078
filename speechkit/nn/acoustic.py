"""What the acoustic models of text to speech share: what each gives when it speaks.

An acoustic model makes frames of a log-mel spectrogram of symbols. Each of them has the same face::

    outputs = model(tokens, token_lengths, mels, mel_lengths, speaker)     # training
    spoken = model.generate(tokens, token_lengths, speaker=speaker)        # GeneratedMel

``tokens`` is ``(B, U)`` int64, ``mels`` is ``(B, T, num_mels)``, ``speaker`` is
``(B, speaker_size)`` or None for models of one voice. ``outputs`` is a NamedTuple of the model's
own with ``mel``, the frames under teacher forcing, which its loss in `speechkit.losses` takes:
``loss(outputs, mels, mel_lengths, token_lengths)`` is a mapping of names to ``(B,)``, whose sum is
minimised.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GeneratedMel(NamedTuple):
    """Spectrograms made of symbols.

    Attributes
    ----------
    mel : Tensor
        Shape ``(B, T, num_mels)``, zero beyond the lengths.
    lengths : Tensor
        Shape ``(B,)``: frames.
    alignment : Tensor
        Shape ``(B, T, U)``: of which symbols each frame was made. Valid frames sum to one; zero
        beyond the lengths of frames and of symbols.
    stopped : Tensor
        Shape ``(B,)``, bool: whether the model ended by itself; else the longest length cut it.
    """

    mel: Tensor
    lengths: Tensor
    alignment: Tensor
    stopped: Tensor


def check_speaker(speaker: Tensor | None, speaker_size: int | None, batch_size: int) -> None:
    """Refuse a speaker vector where there is none to take, a missing one, and a wrong shape.

    Parameters
    ----------
    speaker : Tensor, optional
        What a model was given.
    speaker_size : int, optional
        What it was built for: None for one voice.
    batch_size : int
        B.

    Raises
    ------
    ValueError
        If they disagree.

    Examples
    --------
    >>> check_speaker(None, None, 3)
    >>> check_speaker(None, 16, 3)
    Traceback (most recent call last):
    ValueError: the model speaks in several voices: give speaker, (3, 16)
    """
    if speaker_size is None:
        if speaker is not None:
            raise ValueError("the model has one voice (speaker_size is None): give no speaker")
    elif speaker is None:
        raise ValueError(
            f"the model speaks in several voices: give speaker, {(batch_size, speaker_size)}"
        )
    elif speaker.shape != (batch_size, speaker_size):
        raise ValueError(
            f"speaker must be {(batch_size, speaker_size)}, got {tuple(speaker.shape)}"
        )
