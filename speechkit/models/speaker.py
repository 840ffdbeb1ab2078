"""Speaker embeddings: a recording in, one vector out that tells who speaks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from speechkit.data.errors import DataError
from speechkit.models.windows import SILENCE_DBFS, AudioSource, is_silent

if TYPE_CHECKING:
    from speechkit.speakers.calibration import Calibration, Verdict

_MIN_SECONDS = 0.5


class SpeakerEncoder(nn.Module):
    """Features, a frame-level network, pooling over time and an embedding.

    The parts make it an ECAPA-TDNN (`speechkit.nn.ecapa`), an x-vector (`speechkit.nn.xvector`) or
    a ResNet34 (`speechkit.nn.resnet`).

    Parameters
    ----------
    features : nn.Module
        Waveforms ``(B, T)`` and lengths to frames, `Padded`: `speechkit.features.spectrum.LogMel`.
        Its ``sample_rate`` is the model's.
    encoder : nn.Module
        Frames ``(B, T', F)`` and lengths to frames, `Padded`, with ``input_size`` and
        ``output_size``.
    pooling : nn.Module
        Frames and lengths to vectors (`speechkit.nn.pooling`).
    projection : nn.Module
        Vectors to embeddings: `speechkit.nn.pooling.EmbeddingLayer`, with ``output_size``.
    norm : nn.Module, optional
        Of the features and lengths, before the encoder: `speechkit.features.normalize`.
    threshold : float, optional
        The score from which on two recordings are of one speaker; the calibration's by default.
    calibration : mapping, optional
        How a score becomes a probability, once it has been fitted: ``to_dict()`` of what
        `speechkit.speakers.calibration.calibrate` gives. Both can be set later, and a model folder
        keeps them.

    Raises
    ------
    ValueError
        If the parts disagree about the features of a frame, or the calibration is none.

    Examples
    --------
    >>> from speechkit.features.normalize import UtteranceNorm
    >>> from speechkit.features.spectrum import LogMel
    >>> from speechkit.nn.pooling import EmbeddingLayer, StatisticsPooling
    >>> from speechkit.nn.xvector import XVectorEncoder
    >>> model = SpeakerEncoder(
    ...     features=LogMel(num_mels=24),
    ...     norm=UtteranceNorm(mean_only=True),
    ...     encoder=XVectorEncoder(
    ...         input_size=24, channels=(8, 16), kernel_sizes=(5, 3), dilations=(1, 2)
    ...     ),
    ...     pooling=StatisticsPooling(input_size=16),
    ...     projection=EmbeddingLayer(input_size=32, embed_dim=6),
    ... )
    >>> model(torch.randn(2, 16000), torch.tensor([16000, 9000])).shape
    torch.Size([2, 6])
    >>> model.embed(torch.randn(2, 44100), 44100).shape  # stereo, at another rate
    torch.Size([6])
    >>> model.calibration = {"method": "logistic", "slope": 10.0, "offset": -3.0}
    >>> same = torch.randn(16000)
    >>> model.verify(same, same, 16000).same_speaker
    True
    """

    def __init__(
        self,
        *,
        features: nn.Module,
        encoder: nn.Module,
        pooling: nn.Module,
        projection: nn.Module,
        norm: nn.Module | None = None,
        threshold: float | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for (one, out), (other, into) in (
            (("features", features), ("encoder", encoder)),
            (("encoder", encoder), ("pooling", pooling)),
            (("pooling", pooling), ("projection", projection)),
        ):
            if out.output_size != into.input_size:
                raise ValueError(
                    f"{one} gives {out.output_size} values and {other} takes {into.input_size}"
                )
        self.features = features
        self.encoder = encoder
        self.pooling = pooling
        self.projection = projection
        self.norm = norm
        self.threshold = threshold
        self.calibration = None if calibration is None else dict(calibration)
        self._fitted()

    @property
    def sample_rate(self) -> int:
        """Hz, of the waveforms that ``forward`` takes."""
        return int(cast(Any, self.features).sample_rate)

    @property
    def embed_dim(self) -> int:
        """Size of an embedding."""
        return int(cast(Any, self.projection).output_size)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Embed a padded batch.

        Parameters
        ----------
        waveform : Tensor
            Shape ``(B, T)``, in [-1, 1].
        lengths : Tensor
            Shape ``(B,)``: valid samples.

        Returns
        -------
        Tensor
            Shape ``(B, embed_dim)``, not of unit length.
        """
        x, frames = self.features(waveform, lengths)
        if self.norm is not None:
            x = self.norm(x, frames)
        x, frames = self.encoder(x, frames)
        embeddings: Tensor = self.projection(self.pooling(x, frames))
        return embeddings

    def embed(
        self,
        source: AudioSource | Sequence[AudioSource],
        sample_rate: int | None = None,
        *,
        min_seconds: float = _MIN_SECONDS,
        max_seconds: float = 30.0,
        batch_size: int = 8,
    ) -> Tensor:
        """Embed one recording or several, each of one speaker.

        Other rates are converted and channels averaged. The module runs in eval mode, where it
        lies, and is left in the mode in which it was.

        Parameters
        ----------
        source : path, Tensor, or a list of either
            A file, or samples of shape ``(T,)`` or ``(C, T)``: floats in [-1, 1] or 16-bit
            integers.
        sample_rate : int, optional
            Hz, of tensors, and necessary for them. Files carry their own.
        min_seconds : float
            A shorter recording is refused.
        max_seconds : float
            A longer recording goes through in equal pieces; its embedding is the mean of theirs
            (silent ones left out), each of unit length, times their mean length.
        batch_size : int
            Pieces that go through the model at once; those of like length together.

        Returns
        -------
        Tensor
            float32 on the CPU, shape ``(embed_dim,)``, or ``(N, embed_dim)`` for a list of N.

        Raises
        ------
        DataError
            A file that cannot be read, samples that are NaN or infinite, a recording that is too
            short, or silent (no 25 ms above -70 dBFS).
        ValueError
            A tensor without its rate; numbers that cannot be.
        """
        if not 0 < min_seconds <= max_seconds or batch_size < 1:
            raise ValueError(
                f"need 0 < min_seconds <= max_seconds and batch_size >= 1, got {min_seconds}, "
                f"{max_seconds} and {batch_size}"
            )
        several = isinstance(source, (list, tuple))
        sources: list[Any] = list(cast(Any, source)) if several else [source]
        pieces: list[Tensor] = []
        owners: list[int] = []
        for index, item in enumerate(sources):
            name = f"item {index} of the list" if several else "the tensor"
            waveform = self._open(item, sample_rate, name, min_seconds)
            for piece in _pieces(waveform, round(max_seconds * self.sample_rate)):
                if not is_silent(piece, self.sample_rate):
                    pieces.append(piece)
                    owners.append(index)
        found = self.embed_windows(pieces, batch_size=batch_size)
        chosen = torch.tensor(owners)
        embeddings = [_mean_embedding(found[chosen == i]) for i in range(len(sources))]
        if not several:
            return embeddings[0]
        return torch.stack(embeddings) if embeddings else torch.zeros(0, self.embed_dim)

    def embed_windows(self, waveforms: Sequence[Tensor], *, batch_size: int = 32) -> Tensor:
        """Embed waveforms as they are, silent ones too: the windows of a diarization.

        Parameters
        ----------
        waveforms : sequence of Tensor
            Each ``(T,)``, at the model's rate, of any length.
        batch_size : int
            Windows that go through the model at once; those of like length together.

        Returns
        -------
        Tensor
            float32 on the CPU, shape ``(N, embed_dim)``.
        """
        embeddings = torch.zeros(len(waveforms), self.embed_dim)
        order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for first in range(0, len(order), batch_size):
                    chosen = order[first : first + batch_size]
                    lengths = torch.tensor([len(waveforms[i]) for i in chosen])
                    batch = nn.utils.rnn.pad_sequence(
                        [waveforms[i] for i in chosen], batch_first=True
                    )
                    out = self(batch.to(device), lengths.to(device))
                    embeddings[chosen] = out.float().cpu()
        finally:
            self.train(was_training)
        return embeddings

    def verify(
        self,
        first: AudioSource,
        second: AudioSource,
        sample_rate: int | None = None,
        *,
        min_seconds: float = _MIN_SECONDS,
        max_seconds: float = 30.0,
    ) -> Verdict:
        """Tell whether two recordings are of one speaker.

        Parameters
        ----------
        first, second, sample_rate, min_seconds, max_seconds
            As in ``embed``, whose errors this raises.

        Returns
        -------
        Verdict
            The score (the cosine of the embeddings, from -1 to 1), the decision, and the
            probability. There is no decision without a threshold or a calibration, and no
            probability without a calibration: they are None.
        """
        from speechkit.speakers.calibration import judge

        pair = self.embed(
            [first, second], sample_rate, min_seconds=min_seconds, max_seconds=max_seconds
        )
        score = float(nn.functional.cosine_similarity(pair[0], pair[1], dim=0))
        verdict = judge(score, self._fitted())
        if self.threshold is None:
            return verdict
        return verdict._replace(same_speaker=score >= self.threshold)

    @property
    def decision_threshold(self) -> float | None:
        """The score from which on two recordings are of one speaker; None where none was fitted."""
        if self.threshold is not None:
            return self.threshold
        fitted = self._fitted()
        return None if fitted is None else fitted.threshold

    def _fitted(self) -> Calibration | None:
        if self.calibration is None:
            return None
        from speechkit.speakers.calibration import calibration_from_dict

        return calibration_from_dict(self.calibration)

    def _open(self, source: Any, sample_rate: int | None, name: str, min_seconds: float) -> Tensor:
        """Read a recording at the model's rate (T,), and refuse what tells nobody's voice."""
        from speechkit.data.audio import as_waveform

        if isinstance(source, (str, os.PathLike)):
            name = os.fspath(source)
        elif not hasattr(source, "__array__"):
            raise TypeError(f"{name}: expected a path or a tensor, got {type(source).__name__}")
        elif sample_rate is None:
            raise ValueError(
                f"{name}: a tensor does not say its sampling rate, so give it: "
                f"sample_rate=... in Hz (the model's own is {self.sample_rate})"
            )
        try:
            waveform = as_waveform(source, sample_rate, self.sample_rate).cpu()
        except ValueError as error:  # DataError too: which item of a list it was helps
            if name in str(error):
                raise
            raise type(error)(f"{name}: {error}") from error
        seconds = len(waveform) / self.sample_rate
        if seconds < min_seconds:
            raise DataError(
                f"{name}: {seconds:.2f} s are too short to know a voice by; give at least "
                f"{min_seconds:g} s of speech"
            )
        if is_silent(waveform, self.sample_rate):
            raise DataError(
                f"{name}: silence, no 25 ms are above {SILENCE_DBFS:g} dBFS; record it again or "
                "raise its level"
            )
        return waveform


def _pieces(waveform: Tensor, most: int) -> tuple[Tensor, ...]:
    """Cut (T,) into as few pieces of equal length (to a sample) as ``most`` samples allow."""
    return waveform.tensor_split(-(-len(waveform) // most))


def _mean_embedding(pieces: Tensor) -> Tensor:
    """Average (N, D) by direction; the length is the mean one: (D,)."""
    if len(pieces) == 1:
        return pieces[0]
    directions = nn.functional.normalize(pieces, dim=1).mean(dim=0)
    return nn.functional.normalize(directions, dim=0) * pieces.norm(dim=1).mean()
