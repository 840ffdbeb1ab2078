"""What acoustic models of text to speech give in training, and their losses take."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Prosody(NamedTuple):
    """A value of each symbol's speech, predicted and as it was.

    Attributes
    ----------
    predicted, target : Tensor
        Shape ``(B, U)``.
    """

    predicted: Tensor
    target: Tensor


class OnePassOutput(NamedTuple):
    """What `speechkit.models.one_pass_tts.OnePassTTS` gives for known spectrograms.

    Attributes
    ----------
    mel : Tensor
        Shape ``(B, T, num_mels)``, zero beyond the lengths: made with the durations found.
    log_attention : Tensor
        Shape ``(B, T, U)``: log-probabilities of the symbols at each frame, -inf for symbols beyond
        the lengths.
    alignment : Tensor
        Shape ``(B, T, U)``, zeros and ones: the best monotonic alignment.
    log_durations : Tensor
        Shape ``(B, U)``: predicted natural logarithms of the symbols' frames.
    durations : Tensor
        Shape ``(B, U)``, int64: frames of the symbols in ``alignment``.
    pitch, energy : Prosody or None
        Of models that predict them.
    """

    mel: Tensor
    log_attention: Tensor
    alignment: Tensor
    log_durations: Tensor
    durations: Tensor
    pitch: Prosody | None
    energy: Prosody | None


def full_precision(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer whose output is a result outside autocast: eight bits would be heard.

    Examples
    --------
    >>> layer, x = nn.Linear(2, 3), torch.ones(1, 2)
    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     full_precision(layer, x.bfloat16()).dtype, layer(x).dtype
    (torch.float32, torch.bfloat16)
    """
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = layer(x.to(layer.weight.dtype))
    return result
