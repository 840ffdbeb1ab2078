"""Speech recognisers: waveform in, posteriors of the labels out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from speechkit.decoding.beam_search import BeamSearch
from speechkit.decoding.ctc import greedy
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.models.streaming import StreamingTranscriber
from speechkit.models.transcribe import Transcriber
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded
from speechkit.nn.stepping import DecoderOutput, as_sentences

FeatureTransform = Callable[[Tensor, Tensor], Tensor]
Search = Callable[..., Sequence[Any]]


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


class AttentionOutput(NamedTuple):
    """What an encoder-decoder recogniser makes of a batch.

    Attributes
    ----------
    log_probs : Tensor or None
        Shape ``(B, T, V)``, float32: posteriors of the CTC head; None where there is none.
    lengths : Tensor
        Shape ``(B,)``, int64: valid frames of each item.
    memory : Tensor
        Shape ``(B, T, D)``: the encoder's output, which the decoder attends to.
    decoded : DecoderOutput or None
        Of teacher forcing, where labels were given: logits ``(B, U + 1, V)`` of the next label
        after none, one, ..., all labels, and the attention ``(B, U + 1, T)``.
    """

    log_probs: Tensor | None
    lengths: Tensor
    memory: Tensor
    decoded: DecoderOutput | None


class _Recognizer(Transcriber, nn.Module):
    """Features, normalisation and encoder: what the recognisers have in common."""

    def __init__(
        self,
        *,
        features: nn.Module,
        encoder: nn.Module,
        tokenizer: Any,
        normalize: nn.Module | None,
        sample_rate: int,
        dropout: float,
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

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Frames of the posteriors for ``lengths`` samples."""
        return self.encoder.num_frames(self.features.num_frames(lengths))  # type: ignore[operator]

    def encode(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        *,
        feature_transform: FeatureTransform | None = None,
    ) -> Padded:
        """Give the encoder's output ``(B, T, D)``; the arguments are those of ``forward``."""
        features, lengths = self.features(waveforms, lengths)
        if self.normalize is not None:
            features = self.normalize(features, lengths)
        if feature_transform is not None:
            features = feature_transform(features, lengths)
        encoded, lengths = self.encoder(features, lengths)
        return Padded(self.drop(encoded), lengths)

    def streaming(
        self, sample_rate: int | None = None, *, pause: float | None = None
    ) -> StreamingTranscriber:
        """Begin to transcribe audio as it comes in; see `StreamingTranscriber`."""
        return StreamingTranscriber(self, sample_rate=sample_rate, pause=pause)

    def _ctc_head(self) -> nn.Linear:
        return nn.Linear(int(self.encoder.output_size), int(self.tokenizer.vocab_size))  # type: ignore[arg-type]


class CTCRecognizer(_Recognizer):
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
        super().__init__(
            features=features,
            encoder=encoder,
            tokenizer=tokenizer,
            normalize=normalize,
            sample_rate=sample_rate,
            dropout=dropout,
        )
        self.head = self._ctc_head()

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        *,
        feature_transform: FeatureTransform | None = None,
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
        encoded, lengths = self.encode(waveforms, lengths, feature_transform=feature_transform)
        return CTCOutput(self.head(encoded).float().log_softmax(dim=-1), lengths)

    def check_search(self, search: Search) -> None:
        """Raise a ValueError for a search that this recogniser cannot be decoded with."""
        if isinstance(search, BeamSearch):
            raise ValueError(
                "BeamSearch goes along with an attention decoder, and this recogniser has none: "
                "take a PrefixBeamSearch"
            )

    def decode(self, output: CTCOutput, search: Search | None = None) -> list[list[Hypothesis]]:
        """Search the posteriors: for each item its hypotheses, best first.

        Parameters
        ----------
        output : CTCOutput
            Of ``forward``.
        search : callable, optional
            ``search(log_probs, lengths)``, such as `PrefixBeamSearch`; greedy by default.
        """
        return _n_best((search or greedy)(output.log_probs, output.lengths))


class AttentionRecognizer(_Recognizer):
    """An encoder and a decoder that attends to it, with or without a CTC head beside it.

    Chan et al. 2016, "Listen, attend and spell"; Dong et al. 2018, "Speech-Transformer"; the CTC
    head over the same encoder: Watanabe et al. 2017, "Hybrid CTC/attention architecture".

    Parameters
    ----------
    features, encoder, tokenizer, normalize, sample_rate, dropout
        As for `CTCRecognizer`. The decoder uses label 0, the blank of CTC, as the sentence's
        beginning and end.
    decoder : nn.Module
        Such as `speechkit.nn.rnn_decoder.RNNDecoder`: its ``vocab_size`` is the tokenizer's and its
        ``memory_size`` the encoder's ``output_size``.
    ctc : bool
        Whether there is a CTC head.

    Raises
    ------
    ValueError
        If the parts do not fit.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from speechkit.features.spectrum import LogMel
    >>> from speechkit.nn.rnn import RecurrentEncoder
    >>> from speechkit.nn.transformer_decoder import TransformerDecoder
    >>> model = AttentionRecognizer(
    ...     features=LogMel(num_mels=20),
    ...     encoder=RecurrentEncoder(input_size=20, hidden_size=8, num_layers=1),
    ...     decoder=TransformerDecoder(vocab_size=29, memory_size=16, embed_dim=16, num_heads=2,
    ...                                num_layers=1, feedforward_size=32),
    ...     tokenizer=SimpleNamespace(vocab_size=29),
    ... )
    >>> out = model(torch.randn(2, 8000), torch.tensor([8000, 6000]),
    ...             tokens=torch.tensor([[3, 4, 5], [6, 0, 0]]), token_lengths=torch.tensor([3, 1]))
    >>> out.log_probs.shape, out.decoded.logits.shape
    (torch.Size([2, 51, 29]), torch.Size([2, 4, 29]))
    """

    vocabulary_parts = ("head", "decoder")
    """Parts whose outputs mean the tokenizer's labels: a new tokenizer needs new ones."""

    def __init__(
        self,
        *,
        features: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        tokenizer: Any,
        normalize: nn.Module | None = None,
        sample_rate: int = 16000,
        dropout: float = 0.0,
        ctc: bool = True,
    ) -> None:
        super().__init__(
            features=features,
            encoder=encoder,
            tokenizer=tokenizer,
            normalize=normalize,
            sample_rate=sample_rate,
            dropout=dropout,
        )
        for name, there, given in (
            ("vocab_size", "the tokenizer has", tokenizer.vocab_size),
            ("memory_size", "the encoder gives", encoder.output_size),
        ):
            if getattr(decoder, name) != given:
                raise ValueError(
                    f"the decoder's {name} is {getattr(decoder, name)}, but {there} {given}"
                )
        self.decoder = decoder
        self.ctc = ctc
        self.head = self._ctc_head() if ctc else None

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        *,
        tokens: Tensor | None = None,
        token_lengths: Tensor | None = None,
        feature_transform: FeatureTransform | None = None,
    ) -> AttentionOutput:
        """Encode a batch and, where labels are given, predict each of them from those before it.

        Parameters
        ----------
        waveforms : Tensor
            Shape ``(B, T)``, float32 in [-1, 1].
        lengths : Tensor
            Shape ``(B,)``, valid samples.
        tokens, token_lengths : Tensor, optional
            Shapes ``(B, U)`` and ``(B,)``: the labels.
        feature_transform : callable, optional
            ``(features, lengths) -> features``, applied after normalisation: SpecAugment.
        """
        memory, lengths = self.encode(waveforms, lengths, feature_transform=feature_transform)
        log_probs = decoded = None
        if self.head is not None:
            log_probs = self.head(memory).float().log_softmax(dim=-1)
        if tokens is not None and token_lengths is not None:
            inputs, _, sizes = as_sentences(tokens, token_lengths)
            decoded = self.decoder(inputs, sizes, memory, lengths)
        return AttentionOutput(log_probs, lengths, memory, decoded)

    def check_search(self, search: Search) -> None:
        """Raise a ValueError for a search that this recogniser cannot be decoded with."""
        name = type(search).__name__
        if not isinstance(search, BeamSearch):
            if not self.ctc:
                raise ValueError(
                    f"{name} searches the posteriors of a CTC head, and this recogniser has none: "
                    "take a BeamSearch, or train it with ctc: true"
                )
            return
        if search.ctc_weight > 0.0 and not self.ctc:
            raise ValueError(
                f"{name} has ctc_weight={search.ctc_weight}, and this recogniser has no CTC head: "
                "set it to 0, or train it with ctc: true"
            )
        pieces = getattr(self.tokenizer, "pieces", None)
        search.check_vocabulary(int(self.tokenizer.vocab_size), pieces)

    def decode(
        self, output: AttentionOutput, search: Search | None = None
    ) -> list[list[Hypothesis]]:
        """Search for the labels: for each item its hypotheses, best first.

        Parameters
        ----------
        output : AttentionOutput
            Of ``forward``.
        search : callable, optional
            A `BeamSearch`, or a search of the CTC head's posteriors, ``search(log_probs,
            lengths)``. By default the decoder's likeliest label at each step.

        Raises
        ------
        ValueError
            If the search does not fit, as `check_search` says.
        """
        search = search or BeamSearch(beam_size=1)
        self.check_search(search)
        if isinstance(search, BeamSearch):
            # The labels were compared above, once is enough.
            decoder = cast(Any, self.decoder)
            return search(decoder, output.memory, output.lengths, output.log_probs)
        return _n_best(search(output.log_probs, output.lengths))

    def joins_posteriors(self, search: Search | None) -> bool:
        """Whether ``search`` works on the CTC head's posteriors, which can be joined in time."""
        return search is not None and not isinstance(search, BeamSearch)

    def beam_search(self, beam_size: int) -> BeamSearch:
        """Give a search of this width, joint with CTC where there is a CTC head."""
        beam_size = min(beam_size, int(self.tokenizer.vocab_size))
        return BeamSearch(beam_size=beam_size, ctc_weight=0.3 if self.ctc else 0.0)


def _n_best(found: Sequence[Any]) -> list[list[Hypothesis]]:
    """Take a search's result for each item: a hypothesis, or a list of them, best first."""
    return [[each] if isinstance(each, Hypothesis) else list(each) for each in found]
