"""Classification of whole recordings: sounds, emotions, any label of an utterance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from speechkit.models.recording import Recording
from speechkit.models.windows import AudioSource
from speechkit.nn.dropout import Dropout

FeatureTransform = Callable[[Tensor, Tensor], Tensor]


class Scored(NamedTuple):
    """A label and its probability."""

    label: str
    probability: float


class Stretch(NamedTuple):
    """A window of a recording, in seconds, and its best labels, the best first."""

    start: float
    end: float
    labels: list[Scored]


class Classified(NamedTuple):
    """What a recording is.

    Attributes
    ----------
    labels : list of Scored
        The best of the whole recording, the best first.
    timeline : list of Stretch
        Its windows; one of a short recording. The last is as long as the others and ends where the
        recording does.
    """

    labels: list[Scored]
    timeline: list[Stretch]

    @property
    def spans(self) -> list[Stretch]:
        """The timeline with neighbours of the same best label joined, none overlapping another.

        The probability is the largest of the windows.
        """
        spans: list[Stretch] = []
        for stretch in self.timeline:
            best = stretch.labels[0]
            if spans and spans[-1].labels[0].label == best.label:
                last = spans.pop()
                top = max(last.labels[0], best, key=lambda scored: scored.probability)
                spans.append(Stretch(last.start, stretch.end, [top]))
            else:
                start = spans[-1].end if spans else stretch.start
                if stretch.end > start:
                    spans.append(Stretch(start, stretch.end, [best]))
        return spans


class SoundClassifier(nn.Module):
    """Features, an encoder, pooling over time, and a linear layer over the labels.

    Parameters
    ----------
    features : nn.Module
        ``(waveforms (B, T), lengths) -> Padded (B, T', F)``, such as
        `speechkit.features.spectrum.LogMel`.
    encoder : nn.Module
        ``(x (B, T', F), lengths) -> Padded (B, T'', D)``, with ``output_size``:
        `speechkit.nn.conv2d_classifier.Conv2dEncoder`, `speechkit.nn.cnn14.CNN14`,
        `speechkit.nn.ast.AudioSpectrogramTransformer`, or any encoder of speech.
    pooling : nn.Module
        ``(x (B, T'', D), lengths) -> (B, E)``, with ``output_size``:
        `speechkit.nn.cnn14.MaxMeanPooling`, `speechkit.nn.pooling.StatisticsPooling`.
    labels : sequence of str
        Names of the outputs, in order; a `speechkit.data.labels.LabelSet` is one. They are kept in
        the model folder.
    normalize : nn.Module, optional
        ``(features, lengths) -> features``.
    embedding_size : int, optional
        Features of a layer with ReLU between pooling and head, as CNN14 has; none by default.
    dropout : float
        Probability of dropping a value before the head, and before the embedding layer.
    multi_label : bool
        Labels do not exclude each other: their probabilities are sigmoids, not a softmax.
    sample_rate : int
        Of the waveforms, in Hz.

    Raises
    ------
    ValueError
        If the parts disagree about their sizes or rates, or the labels are not names, each once.

    Examples
    --------
    >>> from speechkit.features.spectrum import LogMel
    >>> from speechkit.nn.cnn14 import MaxMeanPooling
    >>> from speechkit.nn.conv2d_classifier import Conv2dEncoder
    >>> model = SoundClassifier(
    ...     features=LogMel(num_mels=32),
    ...     encoder=Conv2dEncoder(input_size=32, channels=(4, 8), pools=(2, 2)),
    ...     pooling=MaxMeanPooling(input_size=8),
    ...     labels=["cat", "dog", "rain"],
    ... )
    >>> model(torch.randn(2, 16000), torch.tensor([16000, 900])).shape
    torch.Size([2, 3])
    >>> found = model.classify(torch.zeros(2, 44100 * 3), 44100, top=2, window=2.0)
    >>> len(found.labels), [(stretch.start, stretch.end) for stretch in found.timeline]
    (2, [(0.0, 2.0), (1.0, 3.0)])
    """

    vocabulary_parts = ("head",)
    """Parts whose outputs mean the labels: other labels need new ones."""

    def __init__(
        self,
        *,
        features: nn.Module,
        encoder: nn.Module,
        pooling: nn.Module,
        labels: Sequence[str],
        normalize: nn.Module | None = None,
        embedding_size: int | None = None,
        dropout: float = 0.0,
        multi_label: bool = False,
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        self.labels = list(labels)
        if (
            isinstance(labels, str)
            or not self.labels
            or len(set(self.labels)) < len(self.labels)
            or not all(isinstance(name, str) and name for name in self.labels)
        ):
            raise ValueError(f"labels must be names, some, each once: {self.labels[:20]}")
        rate = getattr(features, "sample_rate", sample_rate)
        if rate != sample_rate:
            raise ValueError(f"the features are for {rate} Hz, the classifier for {sample_rate} Hz")
        for first, second in ((features, encoder), (encoder, pooling)):
            given = getattr(first, "output_size", None)
            wanted = getattr(second, "input_size", given)
            if given is not None and wanted != given:
                raise ValueError(
                    f"{type(second).__name__} takes {wanted} features, but "
                    f"{type(first).__name__} gives {given}"
                )
        self.features = features
        self.normalize = normalize
        self.encoder = encoder
        self.pooling = pooling
        self.embedding_size = embedding_size
        self.dropout = dropout
        self.multi_label = multi_label
        self.sample_rate = sample_rate
        size = int(pooling.output_size)  # type: ignore[arg-type]
        self.embedding = nn.Linear(size, embedding_size) if embedding_size is not None else None
        self.head = nn.Linear(embedding_size or size, len(self.labels))
        self.drop = Dropout(dropout)

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        *,
        feature_transform: FeatureTransform | None = None,
    ) -> Tensor:
        """Give a score of each label.

        Parameters
        ----------
        waveforms : Tensor
            Shape ``(B, T)``, float32 in [-1, 1].
        lengths : Tensor
            Shape ``(B,)``, valid samples.
        feature_transform : callable, optional
            ``(features, lengths) -> features``, after normalisation: SpecAugment in training.

        Returns
        -------
        Tensor
            Logits ``(B, C)``, float32; `probabilities` takes them further.
        """
        return self.head(self.embed_batch(waveforms, lengths, feature_transform)).float()

    def embed_batch(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        feature_transform: FeatureTransform | None = None,
    ) -> Tensor:
        """Give what the head sees, ``(B, D)``; the arguments are those of ``forward``."""
        frames, num_frames = self.features(waveforms, lengths)
        if self.normalize is not None:
            frames = self.normalize(frames, num_frames)
        if feature_transform is not None:
            frames = feature_transform(frames, num_frames)
        pooled = self.drop(self.pooling(*self.encoder(frames, num_frames)))
        if self.embedding is None:
            return pooled
        return self.drop(torch.relu(self.embedding(pooled)))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits ``(..., C)`` into probabilities: a softmax, or sigmoids of a multi-label."""
        return logits.sigmoid() if self.multi_label else logits.softmax(-1)

    def classify(
        self,
        source: AudioSource | Sequence[AudioSource],
        sample_rate: int | None = None,
        *,
        top: int = 5,
        window: float = 10.0,
        hop: float | None = None,
        batch_size: int = 8,
    ) -> Classified | list[Classified]:
        """Say what one recording is, or what several are.

        Other rates are converted, channels averaged. A long recording goes through in windows, in
        memory that does not grow with it; its probabilities are the mean of its windows', each
        counting for the seconds that it adds, or of a multi-label model their maximum. The module
        runs in eval mode, where it lies, and is left in the mode in which it was.

        Parameters
        ----------
        source : path, Tensor, or a list of either
            A file, or samples of shape ``(T,)`` or ``(C, T)``: floats in [-1, 1] or 16-bit
            integers.
        sample_rate : int, optional
            Hz, of a tensor, and necessary for it.
        top : int
            How many labels to give.
        window : float
            Seconds of a window; of what is no longer, there is one.
        hop : float, optional
            Seconds from one window's start to the next one's; as long as the window by default.
        batch_size : int
            Windows that go through the model at once.

        Returns
        -------
        Classified or list of Classified
            A list for a list.

        Raises
        ------
        DataError
            A file that cannot be read, or without samples; samples that are NaN or infinite.
        ValueError
            A tensor without its rate; a number that cannot be.
        """
        hop = window if hop is None else hop
        if top < 1 or batch_size < 1 or not 0 < hop <= window < float("inf"):
            raise ValueError(
                f"top={top}, batch_size={batch_size}, window={window}, hop={hop}: top and "
                "batch_size must be at least 1, and hop above 0 and at most the window"
            )
        several = isinstance(source, (list, tuple))
        items: list[AudioSource] = list(cast(Any, source)) if several else [cast(Any, source)]
        recordings = [
            Recording(item, sample_rate, name=f"item {i} of the list" if several else "the tensor")
            for i, item in enumerate(items)
        ]  # all are opened before the first one costs time
        sizes = [max(1, round(seconds * self.sample_rate)) for seconds in (window, hop)]
        found = [self._classify(item, sizes, top, batch_size) for item in recordings]
        return found if several else found[0]

    def _classify(
        self, recording: Recording, sizes: Sequence[int], top: int, batch_size: int
    ) -> Classified:
        windows = _cut(recording.blocks(self.sample_rate), *sizes)
        total: Tensor | None = None
        covered, timeline = 0, []
        while batch := list(itertools.islice(windows, batch_size)):
            for (start, waveform), row in zip(batch, self._run([item[1] for item in batch])):
                end = start + len(waveform)
                if self.multi_label:
                    total = row if total is None else torch.maximum(total, row)
                else:
                    total = (end - covered) * row + (0.0 if total is None else total)
                covered = end
                stretch = (start / self.sample_rate, end / self.sample_rate)
                timeline.append(Stretch(*stretch, self._best(row, top)))
        assert total is not None  # a Recording has samples
        return Classified(self._best(total if self.multi_label else total / covered, top), timeline)

    def _best(self, probabilities: Tensor, top: int) -> list[Scored]:
        values, places = probabilities.topk(min(top, len(self.labels)))
        return [Scored(self.labels[i], p) for i, p in zip(places.tolist(), values.tolist())]

    def _run(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Give the probabilities ``(B, C)`` of windows, on the CPU."""
        device = next(self.parameters()).device
        lengths = torch.tensor([len(x) for x in waveforms])
        batch = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                return self.probabilities(self(batch.to(device), lengths.to(device))).cpu()
        finally:
            self.train(was_training)


def _cut(blocks: Iterator[Tensor], window: int, hop: int) -> Iterator[tuple[int, Tensor]]:
    """Give windows and where they start; the last one ends where the blocks do."""
    buffer = torch.zeros(0)
    first = end = 0  # of the buffer; of what was given
    for block in blocks:
        buffer = torch.cat([buffer, block])
        start = end - window + hop if end else 0
        while first + len(buffer) >= start + window:
            yield start, buffer[start - first : start - first + window]
            end, start = start + window, start + hop
        # The samples of a last window before the next hop may be wanted again.
        drop = max(0, len(buffer) - window)
        drop = min(drop, max(0, start - first))
        buffer, first = buffer[drop:], first + drop
    total = first + len(buffer)
    if total > end:
        start = max(0, total - window)
        yield start, buffer[start - first :]
