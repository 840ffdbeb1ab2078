"""Watches a recogniser's alignments over validation: numbers, pictures, and warnings in words.

What is kept of attention is small: the maps of a few fixed utterances as bytes, at a few epochs,
from which `speechkit.report` draws.
"""

from __future__ import annotations

import json
import logging
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechkit import distributed
from speechkit.data.manifest import DataError
from speechkit.metrics.alignment import (
    attention_diagonality,
    attention_entropy,
    blank_rate,
    diagnose,
)
from speechkit.plots import AttentionMap, attention_figure, pooled
from speechkit.tracking import Tracker

logger = logging.getLogger(__name__)

TAG = "attention"
NAMES = ("blank_rate", "attention_diagonality", "attention_entropy")
END_PIECE = "⟨end⟩"


class AlignmentMonitor:
    """Collects blank rate and attention over a validation pass.

    A task gives it every validation batch in ``evaluate`` and asks for the result after the last::

        self.monitor.add(batch.ids, durations, output.lengths, pieces=tokenizer.pieces, ...)
        numbers = self.monitor.end(self.tracker, epoch=epoch, step=step)

    Parameters
    ----------
    num_utterances : int
        How many utterances' attention is drawn: those whose ids come first in the order of
        strings, so they are the same ones at every epoch and with any number of processes.

    Raises
    ------
    ValueError
        If ``num_utterances`` is negative.

    Examples
    --------
    >>> import tempfile
    >>> monitor = AlignmentMonitor(num_utterances=1)
    >>> monitor.add(
    ...     ["u1"], [1.5], torch.tensor([3]), tokens=torch.tensor([[1, 2]]),
    ...     token_lengths=torch.tensor([2]), pieces=["<blank>", "a", "b"],
    ...     attention=torch.eye(3).unsqueeze(0),
    ... )
    >>> folder = Path(tempfile.mkdtemp())
    >>> monitor.end(Tracker(folder), epoch=1, step=10)
    {'attention_diagonality': 1.0, 'attention_entropy': 0.0}
    >>> read_attention(next(folder.rglob("*.npz")))[0].pieces
    ['a', 'b', '⟨end⟩']
    """

    def __init__(self, *, num_utterances: int = 3) -> None:
        if num_utterances < 0:
            raise ValueError(f"num_utterances must not be negative, got {num_utterances}")
        self.num_utterances = num_utterances
        self._explained: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(len(NAMES), 2, dtype=torch.float64)  # of values, and how many
        self._maps: dict[str, AttentionMap] = {}

    def add(
        self,
        ids: Sequence[str],
        durations: Sequence[float],
        lengths: Tensor,
        *,
        log_probs: Tensor | None = None,
        attention: Tensor | None = None,
        tokens: Tensor | None = None,
        token_lengths: Tensor | None = None,
        pieces: Sequence[str] = (),
    ) -> None:
        """Take one batch.

        Parameters
        ----------
        ids : sequence of str
            The utterances.
        durations : sequence of float
            Their lengths in seconds.
        lengths : Tensor
            Shape ``(B,)``, valid frames of ``log_probs`` and ``attention``.
        log_probs : Tensor, optional
            Shape ``(B, T, V)``, of the CTC output.
        attention : Tensor, optional
            Shape ``(B, U + 1, T)``, of the teacher-forced decoder: a row for each label, and one
            for the end of the sentence.
        tokens, token_lengths : Tensor, optional
            Shapes ``(B, U)`` and ``(B,)``: the reference's labels, without the end. With
            ``attention`` they are needed.
        pieces : sequence of str
            The string of each label.

        Raises
        ------
        ValueError
            If the attention does not belong to the tokens.
        """
        if log_probs is not None:
            self._count("blank_rate", blank_rate(log_probs, lengths))
        if attention is None:
            return
        if tokens is None or token_lengths is None:
            raise ValueError("attention is given without tokens and token_lengths")
        if attention.shape[1] != tokens.shape[1] + 1:
            raise ValueError(
                f"attention of shape {tuple(attention.shape)} does not belong to tokens of shape "
                f"{tuple(tokens.shape)}: it has a row for each label and one for the end"
            )
        rows = token_lengths + 1
        diagonality = attention_diagonality(attention, rows, lengths)
        self._count("attention_diagonality", diagonality)
        self._count("attention_entropy", attention_entropy(attention, rows, lengths))
        for i in self._chosen(ids):
            labels, frames = int(token_lengths[i]), int(lengths[i])
            shown = [_shown(pieces[label]) for label in tokens[i, :labels].tolist()]
            weights = attention[i, : labels + 1, :frames].float().cpu().numpy()
            if weights.size:
                self._maps[ids[i]] = AttentionMap(
                    ids[i], 0, pooled(weights), [*shown, END_PIECE],
                    float(durations[i]), float(diagonality[i]),
                )  # fmt: skip
        self._maps = dict(sorted(self._maps.items())[: self.num_utterances])

    def _chosen(self, ids: Sequence[str]) -> list[int]:
        """Give the items of a batch that are among the first so far: only they leave the device."""
        first = sorted({*self._maps, *ids})[: self.num_utterances]
        return [i for i, name in enumerate(ids) if name in first]

    def _count(self, name: str, values: Tensor) -> None:
        values = values.detach().double().cpu()
        known = values[~values.isnan()]
        self._sums[NAMES.index(name)] += torch.tensor([float(known.sum()), len(known)])

    def end(self, tracker: Tracker, *, epoch: int, step: int) -> dict[str, float]:
        """Give the means over all batches of all processes, draw, warn, and begin anew.

        All ranks must call it; rank 0 writes: the maps through `Tracker.arrays`, a picture for
        TensorBoard, and what `diagnose` finds to the log, with its advice the first time.

        Parameters
        ----------
        tracker : Tracker
            Of the run.
        epoch, step : int
            Number of the epoch that was validated, from 1, and of the updates so far.

        Returns
        -------
        dict
            ``blank_rate``, ``attention_diagonality`` and ``attention_entropy``: means over the
            utterances that have them, and no key where none has.
        """
        sums = distributed.all_reduce_sum(self._sums).tolist()
        values = {name: total / count for name, (total, count) in zip(NAMES, sums) if count}
        gathered = {item.id: item for item in distributed.gather_objects([*self._maps.values()])}
        self._clear()
        if not distributed.is_main():
            return values
        maps = [
            AttentionMap(item.id, epoch, item.weights, item.pieces, item.seconds, item.diagonality)
            for _, item in sorted(gathered.items())[: self.num_utterances]
        ]
        if maps:
            tracker.arrays(TAG, _packed(maps), epoch=epoch, step=step)
            for item in maps:
                tracker.image(f"{TAG}/{item.id}", attention_figure([item], width=5.0), step)
        for finding in diagnose(values):
            advice = "" if finding.kind in self._explained else f". {finding.advice}"
            self._explained.add(finding.kind)
            logger.warning("epoch %d: %s%s", epoch, finding.what, advice)
        return values


def _shown(piece: str) -> str:
    return "␣" if piece == " " else piece


# ---------------------------------------------------------------- files


def _packed(maps: Sequence[AttentionMap]) -> dict[str, np.ndarray]:
    """Write weights as bytes, which is as fine as a picture's colours."""
    arrays = {}
    about = []
    for i, item in enumerate(maps):
        top = float(item.weights.max()) or 1.0
        arrays[f"weights_{i}"] = np.rint(255 * item.weights.clip(min=0) / top).astype(np.uint8)
        about.append(
            {
                "id": item.id, "epoch": item.epoch, "top": top, "pieces": list(item.pieces),
                "seconds": item.seconds,
                "diagonality": None if math.isnan(item.diagonality) else item.diagonality,
            }
        )  # fmt: skip
    arrays["about"] = np.array(json.dumps(about))
    return arrays


def read_attention(path: str | Path) -> list[AttentionMap]:
    """Read the maps that a monitor kept.

    Parameters
    ----------
    path : str or Path
        ``plots/attention/epoch-....npz`` in a run's folder.

    Returns
    -------
    list of AttentionMap
        In the order of ids; weights are exact to 1/255 of the largest.

    Raises
    ------
    DataError
        If it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about: list[dict[str, Any]] = json.loads(str(arrays["about"]))
            return [
                AttentionMap(
                    id=str(item["id"]),
                    epoch=int(item["epoch"]),
                    weights=arrays[f"weights_{i}"].astype(np.float32) * (item["top"] / 255),
                    pieces=[str(piece) for piece in item["pieces"]],
                    seconds=float(item["seconds"]),
                    diagonality=float(math.nan if (d := item["diagonality"]) is None else d),
                )
                for i, item in enumerate(about)
            ]
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a file of attention maps ({error!r}); delete it, the report goes without"
        ) from error
