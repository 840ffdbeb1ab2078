"""Enrolled speakers: kept in a file, and compared with in one product of matrices.

The file is safetensors: numbers, and the names as JSON. Nothing in it can run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.files import atomic_write
from speechkit.speakers.activity import active_frames
from speechkit.speakers.scores import cosine_scores, unit_length
from speechkit.speakers.trials import Embed

MIN_SECONDS = 0.5
_FORMAT = "speechkit enrolled speakers 1"


class Match(NamedTuple):
    """An enrolled speaker and how alike: the cosine, from -1 to 1."""

    speaker: str
    score: float


def check_speech(
    waveform: Tensor, sample_rate: int, name: str, *, min_seconds: float = MIN_SECONDS
) -> None:
    """Refuse a recording that says nothing about a voice.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.
    name : str
        What the message calls it.
    min_seconds : float
        How much of it must be sound (`speechkit.speakers.activity.active_frames`).

    Raises
    ------
    DataError
        When it is silent or shorter, or holds less sound than that.

    Examples
    --------
    >>> check_speech(torch.zeros(16000), 16000, "a.wav")
    Traceback (most recent call last):
    speechkit.data.errors.DataError: a.wav: silence (1.00 s); record the speaker again
    """
    seconds = len(waveform) / sample_rate
    if seconds < min_seconds:
        raise DataError(
            f"{name}: {seconds:.2f} s are too short to know a voice by; at least "
            f"{min_seconds} s are needed, and 3 s or more are better"
        )
    if not bool(waveform.isfinite().all()):
        raise DataError(f"{name}: samples are NaN or infinite; write the file again")
    active = active_frames(waveform, sample_rate)
    if not bool(active.any()):
        raise DataError(f"{name}: silence ({seconds:.2f} s); record the speaker again")
    sound = seconds * float(active.double().mean())
    if sound < min_seconds:
        raise DataError(
            f"{name}: only {sound:.2f} s of {seconds:.2f} s are not silence; at least "
            f"{min_seconds} s of speech are needed"
        )


class EnrolledSpeakers:
    """Speakers by name, each with the mean of their unit embeddings.

    Parameters
    ----------
    embedding_size : int
        ``D`` of the model.
    model : str
        Which model the embeddings are from (any text, such as a hash of its weights): those of
        different models cannot be compared, and a file of another model is refused.

    Examples
    --------
    >>> import tempfile
    >>> speakers = EnrolledSpeakers(embedding_size=2, model="toy")
    >>> speakers.add("anna", torch.tensor([[1.0, 0.0], [0.8, 0.6]]))
    >>> speakers.add("ben", torch.tensor([[0.0, 1.0]]))
    >>> place = Path(tempfile.mkdtemp()) / "speakers.safetensors"
    >>> speakers.save(place)
    >>> again = EnrolledSpeakers.load(place, model="toy")
    >>> again.identify(torch.tensor([1.0, 0.0]))[0]
    Match(speaker='anna', score=0.94...)
    """

    def __init__(self, *, embedding_size: int, model: str) -> None:
        if embedding_size < 1:
            raise ValueError(f"embedding_size must be at least 1, is {embedding_size}")
        self.embedding_size = embedding_size
        self.model = model
        self.names: list[str] = []
        self.means = torch.zeros(0, embedding_size)
        self.counts: list[int] = []

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def add(self, name: str, embeddings: Tensor) -> None:
        """Add embeddings ``(N, D)`` of a speaker, who may be enrolled already.

        Raises
        ------
        ValueError
            Where the name is empty, or embeddings have another size or no direction.
        """
        if not name or not name.isprintable():
            raise ValueError(f"a speaker's name must be printable text, is {name!r}")
        if embeddings.dim() != 2 or embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"expected embeddings (N, {self.embedding_size}), got {tuple(embeddings.shape)}"
            )
        if not len(embeddings):
            raise ValueError(f"no embedding to enrol {name!r} with")
        total = unit_length(embeddings.detach().float().cpu()).sum(dim=0)
        if name in self.names:
            row = self.names.index(name)
            count = self.counts[row] + len(embeddings)
            mean = (self.means[row] * self.counts[row] + total) / count
        else:
            row, count = len(self.names), len(embeddings)
            mean = total / count
        unit_length(mean[None])  # opposite embeddings cancel
        if row == len(self.names):
            self.names.append(name)
            self.counts.append(0)
            self.means = torch.cat([self.means, mean[None]])
        self.means[row], self.counts[row] = mean, count

    def enroll(
        self,
        name: str,
        waveforms: Sequence[Tensor],
        embed: Embed,
        *,
        sample_rate: int,
        min_seconds: float = MIN_SECONDS,
    ) -> None:
        """Add recordings ``(T,)`` of a speaker, at the model's rate.

        Raises
        ------
        DataError
            When there is none, or one is silent or too short: nothing is enrolled then.
        ValueError
            As :meth:`add`.
        """
        if not waveforms:
            raise DataError(f"{name}: no recording to enrol from")
        for number, waveform in enumerate(waveforms, start=1):
            where = name if len(waveforms) == 1 else f"{name}, recording {number}"
            check_speech(waveform, sample_rate, where, min_seconds=min_seconds)
        with torch.inference_mode():
            embeddings = embed(list(waveforms))
        self.add(name, embeddings.clone())

    def remove(self, name: str) -> None:
        """Forget a speaker.

        Raises
        ------
        DataError
            Where nobody of that name is enrolled.
        """
        if name not in self.names:
            raise DataError(f"no speaker {name!r} is enrolled; there are: {self._listing()}")
        row = self.names.index(name)
        self.means = torch.cat([self.means[:row], self.means[row + 1 :]])
        del self.names[row], self.counts[row]

    def scores(self, embeddings: Tensor) -> Tensor:
        """Compare embeddings ``(N, D)`` with all speakers: cosines ``(N, S)``."""
        return cosine_scores(embeddings.detach().float().cpu(), self.means)

    def identify(
        self, embedding: Tensor, *, top: int = 5, threshold: float | None = None
    ) -> list[Match]:
        """Find the speakers most like an embedding.

        Parameters
        ----------
        embedding : Tensor
            Shape ``(D,)``.
        top : int
            How many to give.
        threshold : float, optional
            Leave out those below, so that the list is empty for a stranger. Without it somebody is
            always nearest, whoever speaks.

        Returns
        -------
        list of Match
            The most alike first.

        Raises
        ------
        DataError
            Where nobody is enrolled.
        """
        if not self.names:
            raise DataError("nobody is enrolled: enrol speakers first")
        values, rows = self.scores(embedding[None])[0].topk(min(top, len(self)))
        least = -math.inf if threshold is None else threshold
        return [
            Match(self.names[row], value)
            for value, row in zip(values.tolist(), rows.tolist())
            if value >= least
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file at once: after a failure the old one is still there."""
        from safetensors.torch import save

        tensors = {"means": self.means.contiguous(), "counts": torch.tensor(self.counts).long()}
        speakers = json.dumps(self.names, ensure_ascii=False)
        metadata = {"format": _FORMAT, "model": self.model, "speakers": speakers}
        atomic_write(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | None = None) -> EnrolledSpeakers:
        """Read a file that :meth:`save` wrote.

        Parameters
        ----------
        path : path
            The file.
        model : str, optional
            The model that will be compared with; another one in the file is an error.

        Raises
        ------
        DataError
            When the file is missing, no such file or damaged, or is of another model.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise DataError(f"{path}: no such file of enrolled speakers; enrol speakers first")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: not a file of enrolled speakers: {error}") from error
        speakers = cls._from_parts(path, metadata, tensors)
        if model is not None and speakers.model != model:
            raise DataError(
                f"{path}: these speakers were enrolled with the model {speakers.model!r}, not with "
                f"{model!r}; enrol them again with this one"
            )
        return speakers

    @classmethod
    def _from_parts(
        cls, path: object, metadata: dict[str, str], tensors: dict[str, Tensor]
    ) -> EnrolledSpeakers:
        if metadata.get("format") != _FORMAT or tensors.keys() != {"means", "counts"}:
            raise DataError(
                f"{path}: not a file of enrolled speakers (format {metadata.get('format')!r}, "
                f"expected {_FORMAT!r})"
            )
        try:
            names = json.loads(metadata.get("speakers", ""))
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}: damaged: its names are no JSON: {error}") from error
        means, counts = tensors["means"], tensors["counts"]
        good = (
            isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and len(set(names)) == len(names) == len(means) == len(counts)
            and (means.dim(), counts.dim()) == (2, 1)
            and means.dtype == torch.float32
            and counts.dtype == torch.int64
            and bool(means.isfinite().all())
            and bool((counts > 0).all())
            and means.shape[1] > 0
        )
        if not good:
            raise DataError(f"{path}: damaged: names and embeddings do not belong together")
        speakers = cls(embedding_size=means.shape[1], model=metadata.get("model", ""))
        speakers.names, speakers.means, speakers.counts = names, means, counts.tolist()
        return speakers

    def _listing(self) -> str:
        more = f" and {len(self) - 10} more" if len(self) > 10 else ""
        return (", ".join(self.names[:10]) or "none") + more
