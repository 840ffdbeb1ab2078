"""Speech recognisers: waveform in, posteriors of the labels out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from speechkit.models.transcribe import Transcriber
from speechkit.nn.dropout import Dropout


class CTCOutput(NamedTuple):
    """Posteriors of a CTC recogniser.

    Attributes
    ----------
    log_probs : Tensor
        Shape ``(B, T, V)``, float32, also inside autocast.
    lengths : Tensor
        Shape ``(B,)``, int64: valid frames of each item.
    """

    log_probs: Tensor
    lengths: Tensor


class CTCRecognizer(Transcriber, nn.Module):
    """A recogniser trained with connectionist temporal classification over any encoder.

    Graves et al. 2006, "Connectionist temporal classification".

    Parameters
    ----------
    features : nn.Module
        ``(waveforms (B, T), lengths) -> Padded (B, T', F)``, such as `speechkit.features.LogMel`.
    encoder : nn.Module
        ``(x (B, T', F), lengths) -> Padded (B, T'', D)``, with ``output_size`` and ``num_frames``.
    tokenizer : object
        Its ``vocab_size`` counts the blank, which is label 0.
    normalize : nn.Module, optional
        ``(features, lengths) -> features``.
    sample_rate : int
        Of the waveforms, in Hz.
    dropout : float
        Probability of dropping a value of the encoder's output.

    Raises
    ------
    ValueError
        If the features or the encoder were made for another sample rate or feature size.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from speechkit.nn.masking import Padded
    >>> from speechkit.nn.rnn import RecurrentEncoder
    >>> class Frames(nn.Module):
    ...     output_size = 4
    ...     def forward(self, waveforms, lengths):
    ...         return Padded(waveforms.unflatten(1, (-1, 4)), lengths // 4)
    >>> model = CTCRecognizer(
    ...     features=Frames(),
    ...     encoder=RecurrentEncoder(input_size=4, hidden_size=8, num_layers=1),
    ...     tokenizer=SimpleNamespace(vocab_size=29),
    ... )
    >>> out = model(torch.randn(2, 40), torch.tensor([40, 20]))
    >>> out.log_probs.shape, out.lengths.tolist()
    (torch.Size([2, 10, 29]), [10, 5])
    """

    vocabulary_parts = ("head",)
    """Parts whose outputs mean the tokenizer's labels: a new tokenizer needs new ones."""

    def __init__(
        self,
        *,
        features: nn.Module,
        encoder: nn.Module,
        tokenizer: Any,
        normalize: nn.Module | None = None,
        sample_rate: int = 16000,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rate = getattr(features, "sample_rate", sample_rate)
        if rate != sample_rate:
            raise ValueError(f"the features are for {rate} Hz, the recogniser for {sample_rate} Hz")
        given = getattr(features, "output_size", None)
        wanted = getattr(encoder, "input_size", given)
        if given is not None and wanted != given:
            raise ValueError(f"the encoder takes {wanted} features, but the features are {given}")
        self.features = features
        self.normalize = normalize
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.dropout = dropout
        self.drop = Dropout(dropout)
        self.head = nn.Linear(int(encoder.output_size), int(tokenizer.vocab_size))  # type: ignore[arg-type]

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Frames of the posteriors for ``lengths`` samples."""
        return self.encoder.num_frames(self.features.num_frames(lengths))  # type: ignore[operator]

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        *,
        feature_transform: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> CTCOutput:
        """Give the log-posteriors of every frame.

        Parameters
        ----------
        waveforms : Tensor
            Shape ``(B, T)``, float32 in [-1, 1].
        lengths : Tensor
            Shape ``(B,)``, valid samples.
        feature_transform : callable, optional
            ``(features, lengths) -> features``, applied after normalisation: SpecAugment.
        """
        features, lengths = self.features(waveforms, lengths)
        if self.normalize is not None:
            features = self.normalize(features, lengths)
        if feature_transform is not None:
            features = feature_transform(features, lengths)
        encoded, lengths = self.encoder(features, lengths)
        logits = self.head(self.drop(encoded))
        return CTCOutput(logits.float().log_softmax(dim=-1), lengths)
