"""Text to speech in one pass: durations learned by monotonic alignment search, no recurrence.

In training the spectrogram says how long each symbol lasts; in synthesis a predictor does::

    symbols -> encoder -+-> durations (and pitch, energy) of each symbol
                        +-> each symbol repeated for its frames -> decoder -> spectrogram

    training: aligner (symbols, spectrogram) -> monotonic alignment search -> durations
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speechkit.nn.acoustic import GeneratedMel, check_speaker
from speechkit.nn.acoustic_checks import check_mels, check_positive, check_symbols
from speechkit.nn.acoustic_outputs import OnePassOutput, Prosody, full_precision
from speechkit.nn.aligner import Aligner
from speechkit.nn.alignment_search import search_durations
from speechkit.nn.conv import ConvEncoder
from speechkit.nn.durations import (
    alignment_matrix,
    expand_symbols,
    mean_over_symbols,
    place_in_symbol,
    round_durations,
)
from speechkit.nn.masking import mask_padding


class SymbolPredictor(nn.Module):
    """Two convolutions and a linear layer: one value for each symbol.

    Ren et al. 2019, "FastSpeech", figure 1(d).

    Parameters
    ----------
    input_size, hidden_size : int
        Features of a symbol, and between the layers.
    dropout : float
        Probability of dropping a hidden value.

    Examples
    --------
    >>> predictor = SymbolPredictor(input_size=6, hidden_size=8)
    >>> predictor(torch.randn(2, 5, 6), torch.tensor([5, 3])).shape
    torch.Size([2, 5])
    """

    def __init__(self, *, input_size: int, hidden_size: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.layers = ConvEncoder(
            input_size=input_size,
            channels=(hidden_size, hidden_size),
            strides=(1, 1),
            kernel_size=3,
            dropout=dropout,
        )
        self.output = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map ``(B, U, input_size)`` to ``(B, U)``, zero in the padding."""
        values = full_precision(self.output, self.layers(x, lengths).data)
        return mask_padding(values.squeeze(2), lengths)


class OnePassTTS(nn.Module):
    """Symbols to a log-mel spectrogram, all frames at once.

    The parts are those of FastPitch (Łańcucki 2021, "FastPitch: Parallel text-to-speech with pitch
    prediction"), with the aligner of Badlani et al. 2021, "One TTS alignment to rule them all", in
    place of durations from elsewhere. Two things are our own: the decoder also sees where in its
    symbol a frame lies, and the duration predictor sends no gradient to the encoder (as in
    Glow-TTS, Kim et al. 2020). Frames, durations and prosody are float32 under autocast too.

    Parameters
    ----------
    num_symbols : int
        Symbols of the text front end.
    num_mels : int
        Features of a frame.
    encoder, decoder : nn.Module
        Over symbols and over frames: ``(x, lengths)`` to `Padded` on the same time axis, with
        ``input_size`` and ``output_size``, such as `speechkit.nn.convnext.ConvNeXtEncoder`,
        `speechkit.nn.transformer.TransformerEncoder` or `speechkit.nn.conformer.ConformerEncoder`.
        The encoder's ``input_size`` is that of the symbols' embeddings; the decoder's is the
        encoder's ``output_size``.
    speaker_size : int, optional
        Features of a speaker's vector; None for one voice.
    predictor_size : int
        Hidden features of the predictors.
    predictor_dropout : float
        Of the predictors.
    attention_size : int
        Features of the points which the aligner compares.
    attention_kernel : int
        Symbols which the aligner sees at once; odd.
    prior_scale : float, optional
        Narrowness of the aligner's prior; None for none.
    predict_pitch, predict_energy : bool
        Whether a symbol's pitch, or its mean level, is predicted from the encoder's output and
        given to the decoder; in training the decoder gets the true one.

    Raises
    ------
    ValueError
        If encoder and decoder do not fit together.

    Examples
    --------
    >>> from speechkit.nn.convnext import ConvNeXtEncoder
    >>> sizes = {"input_size": 16, "embed_dim": 16, "num_layers": 2, "hidden_size": 32}
    >>> model = OnePassTTS(num_symbols=9, num_mels=8, encoder=ConvNeXtEncoder(**sizes),
    ...                    decoder=ConvNeXtEncoder(**sizes), predictor_size=16).eval()
    >>> tokens, token_lengths = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    >>> outputs = model(tokens, token_lengths, torch.randn(2, 12, 8), torch.tensor([12, 7]))
    >>> outputs.mel.shape, outputs.durations.sum(dim=1).tolist()
    (torch.Size([2, 12, 8]), [12, 7])
    >>> spoken = model.generate(tokens, token_lengths)
    >>> bool((spoken.alignment.sum(dim=(1, 2)) == spoken.lengths).all())
    True
    """

    frame_per_symbol = True
    """Whether training needs recordings with at least as many frames as symbols."""

    def __init__(
        self,
        *,
        num_symbols: int,
        num_mels: int,
        encoder: nn.Module,
        decoder: nn.Module,
        speaker_size: int | None = None,
        predictor_size: int = 256,
        predictor_dropout: float = 0.1,
        attention_size: int = 80,
        attention_kernel: int = 1,
        prior_scale: float | None = 1.0,
        predict_pitch: bool = False,
        predict_energy: bool = False,
    ) -> None:
        super().__init__()
        self.num_symbols = num_symbols
        self.num_mels = num_mels
        self.encoder = encoder
        self.decoder = decoder
        self.speaker_size = speaker_size
        self.predictor_size = predictor_size
        self.predictor_dropout = predictor_dropout
        self.attention_size = attention_size
        self.attention_kernel = attention_kernel
        self.prior_scale = prior_scale
        self.predict_pitch = predict_pitch
        self.predict_energy = predict_energy
        embed_dim, size = _sizes(encoder, decoder)
        self.embedding = nn.Embedding(num_symbols, embed_dim)
        self.aligner = Aligner(
            symbol_size=embed_dim,
            num_mels=num_mels,
            attention_size=attention_size,
            kernel_size=attention_kernel,
            prior_scale=prior_scale,
        )
        names = ["duration"] + ["pitch"] * predict_pitch + ["energy"] * predict_energy
        self.predictors = nn.ModuleDict(
            {
                name: SymbolPredictor(
                    input_size=size, hidden_size=predictor_size, dropout=predictor_dropout
                )
                for name in names
            }
        )
        self.prosody = nn.ModuleDict({name: nn.Linear(1, size) for name in names[1:]})
        self.place = nn.Linear(2, size)
        if speaker_size is not None:
            self.voice_of_symbols = nn.Linear(speaker_size, embed_dim)
            self.voice_of_frames = nn.Linear(speaker_size, size)
        self.output = nn.Linear(int(_size_of(decoder, "output_size")), num_mels)

    def forward(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        mels: Tensor,
        mel_lengths: Tensor,
        speaker: Tensor | None = None,
        *,
        pitch: Tensor | None = None,
    ) -> OnePassOutput:
        """Align, and make the spectrogram with the durations found.

        Parameters
        ----------
        tokens, token_lengths : Tensor
            Shapes ``(B, U)``, int64, and ``(B,)``.
        mels, mel_lengths : Tensor
            Shapes ``(B, T, num_mels)`` and ``(B,)``: at least as many frames as symbols.
        speaker : Tensor, optional
            Shape ``(B, speaker_size)``.
        pitch : Tensor, optional
            Shape ``(B, T)``: of each frame, such as a normalised logarithm of F0, and NaN where
            there is no voice. For models with ``predict_pitch``.

        Raises
        ------
        ValueError
            If an argument is missing, of another shape, or an item has fewer frames than symbols.
        """
        check_symbols(tokens, token_lengths, self.num_symbols)
        check_mels(mels, mel_lengths, len(tokens), self.num_mels)
        symbols, encoded = self._encode(tokens, token_lengths, speaker)
        log_attention = self.aligner(symbols, token_lengths, mels, mel_lengths)
        durations = search_durations(log_attention, mel_lengths, token_lengths)
        targets = self._prosody_targets(mels, mel_lengths, pitch, durations)
        pairs = {}
        for name, target in targets.items():
            pairs[name] = Prosody(self.predictors[name](encoded, token_lengths), target)
        mel = self._decode(encoded, durations, targets, mels.shape[1])
        return OnePassOutput(
            mel=mel,
            log_attention=log_attention,
            alignment=alignment_matrix(durations, mels.shape[1]),
            # Durations are easy to predict and have little to teach the encoder.
            log_durations=self.predictors["duration"](encoded.detach(), token_lengths),
            durations=durations,
            pitch=pairs.get("pitch"),
            energy=pairs.get("energy"),
        )

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        *,
        speaker: Tensor | None = None,
        speed: float = 1.0,
        durations: Tensor | None = None,
        max_frames: int = 4000,
    ) -> GeneratedMel:
        """Speak, in evaluation mode.

        Parameters
        ----------
        tokens, token_lengths : Tensor
            Shapes ``(B, U)``, int64, and ``(B,)``.
        speaker : Tensor, optional
            Shape ``(B, speaker_size)``.
        speed : float
            How many times faster than predicted. A symbol keeps one frame at least.
        durations : Tensor, optional
            Shape ``(B, U)``: frames of each symbol, in place of the predicted ones; ``speed``
            applies to them too.
        max_frames : int
            Longest spectrogram; a longer one is cut and has not stopped.

        Raises
        ------
        ValueError
            If an argument is missing, of another shape, or ``speed`` not above zero.
        """
        check_symbols(tokens, token_lengths, self.num_symbols)
        check_positive("speed", speed)
        check_positive("max_frames", max_frames)
        _, encoded = self._encode(tokens, token_lengths, speaker)
        if durations is None:
            durations = self.predictors["duration"](encoded, token_lengths).double().exp()
        elif durations.shape != tokens.shape:
            raise ValueError(
                f"durations are {tuple(durations.shape)}, tokens {tuple(tokens.shape)}"
            )
        # Nothing beyond the longest spectrogram is ever made, however long a symbol is to last.
        frames = (durations / speed).clamp(max=max_frames + 1)
        ends = round_durations(frames, token_lengths).cumsum(dim=1)
        stopped = ends[:, -1] <= max_frames
        ends = ends.clamp(max=max_frames)
        durations = torch.diff(ends, dim=1, prepend=torch.zeros_like(ends[:, :1]))
        values = {name: self.predictors[name](encoded, token_lengths) for name in self.prosody}
        num_frames = int(ends[:, -1].max()) if len(ends) else 0
        mel = self._decode(encoded, durations, values, num_frames)
        return GeneratedMel(mel, ends[:, -1], alignment_matrix(durations, num_frames), stopped)

    def _encode(
        self, tokens: Tensor, token_lengths: Tensor, speaker: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embed the symbols, and encode them; both with the voice."""
        check_speaker(speaker, self.speaker_size, len(tokens))
        symbols = self.embedding(mask_padding(tokens, token_lengths))
        if speaker is not None:
            symbols = symbols + self.voice_of_symbols(speaker).unsqueeze(1)
        encoded = self.encoder(symbols, token_lengths).data
        if speaker is not None:
            encoded = encoded + self.voice_of_frames(speaker).unsqueeze(1)
        return symbols, encoded

    def _prosody_targets(
        self, mels: Tensor, mel_lengths: Tensor, pitch: Tensor | None, durations: Tensor
    ) -> dict[str, Tensor]:
        if self.predict_pitch and (pitch is None or pitch.shape != mels.shape[:2]):
            got = None if pitch is None else tuple(pitch.shape)
            raise ValueError(f"the model predicts pitch: give pitch {tuple(mels.shape[:2])}: {got}")
        if not self.predict_pitch and pitch is not None:
            raise ValueError("the model predicts no pitch (predict_pitch is False): give none")
        targets = {}
        if pitch is not None:
            targets["pitch"] = mean_over_symbols(pitch, durations)
        if self.predict_energy:
            energy = mask_padding(mels, mel_lengths).mean(dim=2)
            targets["energy"] = mean_over_symbols(energy, durations)
        return targets

    def _decode(
        self, encoded: Tensor, durations: Tensor, values: dict[str, Tensor], num_frames: int
    ) -> Tensor:
        for name, value in values.items():
            encoded = encoded + self.prosody[name](value.unsqueeze(2))
        x, lengths = expand_symbols(encoded, durations, num_frames)
        x = x + self.place(place_in_symbol(durations, num_frames))
        return mask_padding(full_precision(self.output, self.decoder(x, lengths).data), lengths)


def _size_of(module: Any, name: str) -> int:
    size = getattr(module, name, None)
    if not isinstance(size, int):
        raise ValueError(
            f"{type(module).__name__} has no {name}: give an encoder such as ConvNeXtEncoder"
        )
    return size


def _sizes(encoder: nn.Module, decoder: nn.Module) -> tuple[int, int]:
    """Features of the embeddings, and between encoder and decoder."""
    size, wanted = _size_of(encoder, "output_size"), _size_of(decoder, "input_size")
    if size != wanted:
        raise ValueError(
            f"the encoder gives {size} features, the decoder takes {wanted}: make them equal"
        )
    return _size_of(encoder, "input_size"), size
