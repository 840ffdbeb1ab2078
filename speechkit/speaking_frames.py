"""Recordings that are too short for their texts, which a model of durations cannot learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speechkit.data.batch import Batch, Failure
from speechkit.models.synthesizer import Synthesizer
from speechkit.nn.masking import Padded


def too_few_frames(model: Synthesizer, token_lengths: Tensor, lengths: Tensor) -> Tensor:
    """Say which recordings have fewer frames than the acoustic model needs for their symbols.

    A model of durations needs a frame for each symbol; others learn from all recordings.

    Parameters
    ----------
    model : Synthesizer
        What is trained.
    token_lengths, lengths : Tensor
        Shape ``(B,)``: symbols and samples.

    Returns
    -------
    Tensor
        Shape ``(B,)``, bool.
    """
    if not getattr(model.acoustic, "frame_per_symbol", False):
        return torch.zeros_like(lengths, dtype=torch.bool)
    return model.features.num_frames(lengths) < token_lengths


def leave_out_short(model: Synthesizer, batch: Batch) -> Batch:
    """Leave the utterances out whose recordings are too short for their texts.

    Parameters
    ----------
    model : Synthesizer
        What is trained.
    batch : Batch
        With ``tokens``, ``waveform`` and ``text``.

    Returns
    -------
    Batch
        The same one where there is nothing to leave out. Else one of the others, padded as if they
        had been alone, with what is left out in its ``failures``; it may have no rows.
    """
    if not len(batch):
        return batch
    short = too_few_frames(model, batch.tokens.lengths, batch.waveform.lengths)
    if not bool(short.any()):
        return batch
    frames = model.features.num_frames(batch.waveform.lengths)
    failures = [
        Failure(
            batch.ids[index],
            f"{int(frames[index])} frames of {model.features.hop_length} samples for "
            f"{int(batch.tokens.lengths[index])} symbols ({batch.text[index][:60]!r}): each symbol "
            "needs a frame. If that is not what is said, correct the row or remove it; if it is "
            "said so fast, lower model.features.hop_length",
        )
        for index in short.nonzero().flatten().tolist()
    ]
    kept = (~short).nonzero().flatten().tolist()
    fields = {name: _rows(value, kept) for name, value in batch.fields.items()} if kept else {}
    return Batch(
        [batch.ids[index] for index in kept],
        fields,
        failures=[*batch.failures, *failures],
        epoch=batch.epoch,
    )


def _rows(value: Any, kept: Sequence[int]) -> Any:
    """Give some rows of a batch's field."""
    if isinstance(value, Padded):
        lengths = value.lengths[list(kept)]
        return Padded(value.data[list(kept), : int(lengths.max())], lengths)
    return value[list(kept)] if isinstance(value, Tensor) else [value[index] for index in kept]
