"""Text to speech as one model: text in, a waveform out."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from speechkit.data.errors import DataError
from speechkit.features.mel_settings import check_same_mel
from speechkit.features.spectrum import LogMel
from speechkit.models.sentences import split_sentences
from speechkit.models.speech import Sentence, Speech, check_pause, cut_frames, join, stretch_frames
from speechkit.models.vocoder import GriffinLim, Vocoder
from speechkit.models.voices import ReferenceVoice, choose_voice
from speechkit.models.windows import AudioSource
from speechkit.nn.acoustic import GeneratedMel
from speechkit.nn.masking import Padded

_SPEED = (0.25, 4.0)
_FRAMES_PER_SYMBOL = 40
_UNSAID = ("P", "Z", "Sm", "Sk", "Cc", "Cf")  # of Unicode: marks, spaces, signs that make lines
_GIVEN = ("tokens", "token_lengths", "speaker", "seed", "speed")


class SynthesizerOutput(NamedTuple):
    """What training needs of a batch.

    Attributes
    ----------
    outputs : NamedTuple
        Of the acoustic model, for its loss.
    mels : Padded
        What it should have made, normalised: ``(B, T, num_mels)``, and frames.
    """

    outputs: Any
    mels: Padded


class Synthesizer(nn.Module):
    """A text front end, an acoustic model, a choice of voices, and a vocoder.

    Parameters
    ----------
    front_end : TextFrontEnd
        Text to symbols (`speechkit.data.text_front_end`).
    acoustic : nn.Module
        Symbols to mels, see `speechkit.nn.acoustic`: `Tacotron2`, `TransformerTTS`, `OnePassTTS`.
    features : LogMel
        What the mels are. Its ``sample_rate`` is the model's.
    norm : GlobalNorm, optional
        The acoustic model's mels are normalised with it, and restored for the vocoder.
    voices : nn.Module, optional
        `VoiceTable` or `ReferenceVoice` (`speechkit.models.voices`); without it there is one voice.
    vocoder : Vocoder, optional
        By default Griffin-Lim. It does not train with the model. One of another folder can be given
        to `synthesize`.
    mel_hash : str, optional
        As in `speechkit.models.vocoder.Vocoder`: a folder has it, and changed settings are refused.

    Raises
    ------
    ValueError
        If the parts disagree about symbols, mels or the size of a voice's vector, or the vocoder
        was made for other mels; the settings that differ are named.

    Examples
    --------
    >>> from speechkit.data.text_front_end import TextFrontEnd
    >>> from speechkit.models.one_pass_tts import OnePassTTS
    >>> from speechkit.nn.convnext import ConvNeXtEncoder
    >>> front_end = TextFrontEnd.from_texts(["A bee.", "a cab."])
    >>> sizes = {"input_size": 16, "embed_dim": 16, "num_layers": 1, "hidden_size": 16}
    >>> model = Synthesizer(
    ...     front_end=front_end,
    ...     acoustic=OnePassTTS(
    ...         num_symbols=front_end.vocab_size, num_mels=20, predictor_size=8,
    ...         encoder=ConvNeXtEncoder(**sizes), decoder=ConvNeXtEncoder(**sizes),
    ...     ),
    ...     features=LogMel(num_mels=20, floor=1e-5),
    ... )
    >>> speech = model.synthesize("A bee. A cab.")
    >>> speech.sample_rate, [sentence.text for sentence in speech.sentences]
    (16000, ['A bee.', 'A cab.'])
    """

    def __init__(
        self,
        *,
        front_end: Any,
        acoustic: nn.Module,
        features: LogMel,
        norm: nn.Module | None = None,
        voices: nn.Module | None = None,
        vocoder: Vocoder | None = None,
        mel_hash: str | None = None,
    ) -> None:
        super().__init__()
        model = cast(Any, acoustic)
        if model.num_symbols != front_end.vocab_size:
            raise ValueError(
                f"the acoustic model has {model.num_symbols} symbols, the front end "
                f"{front_end.vocab_size}; let num_symbols be !ref <front_end.vocab_size>"
            )
        if model.num_mels != features.num_mels:
            raise ValueError(
                f"the acoustic model makes {model.num_mels} mels, features {features.num_mels}"
            )
        size = None if voices is None else int(cast(Any, voices).output_size)
        if model.speaker_size != size:
            raise ValueError(
                f"speaker_size of the acoustic model is {model.speaker_size}, and the voices give "
                f"{'none' if size is None else f'vectors of {size}'}; they must agree"
            )
        if vocoder is not None:
            check_same_mel(features, vocoder.features)
            vocoder.requires_grad_(False)  # training goes without it
        self.front_end = front_end
        self.acoustic = acoustic
        self.features = features
        self.norm = norm
        self.voices = voices
        self.vocoder = vocoder
        self._griffin_lim = GriffinLim(features=features, mel_hash=mel_hash)
        self.mel_hash = self._griffin_lim.mel_hash

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.features.sample_rate

    @property
    def vocabulary_parts(self) -> list[str]:
        """What starts fresh where a training goes on with other symbols."""
        found = self.acoustic.named_modules()
        return [f"acoustic.{name}" for name, part in found if isinstance(part, nn.Embedding)]

    @property
    def own_vocoder(self) -> Vocoder:
        """The vocoder that it was given, else Griffin-Lim."""
        return self.vocoder or self._griffin_lim

    @property
    def voice_names(self) -> list[str]:
        """The voices of the table; none where there is no table."""
        return list(getattr(self.voices, "names", []))

    # ---------------------------------------------------------------- training

    def forward(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        waveform: Tensor,
        lengths: Tensor,
        voice_ids: Tensor | None = None,
        pitch: Tensor | None = None,
    ) -> SynthesizerOutput:
        """Run the acoustic model on text and recordings of it.

        Parameters
        ----------
        tokens, token_lengths : Tensor
            Shapes ``(B, U)`` and ``(B,)``.
        waveform, lengths : Tensor
            Shapes ``(B, N)`` and ``(B,)``.
        voice_ids : Tensor, optional
            Shape ``(B,)``: the speakers' numbers where the voices are a table.
        pitch : Tensor, optional
            Shape ``(B, T)``, of each frame, for models that learn it (`speechkit.data.pitch`).

        Raises
        ------
        ValueError
            If there is a table and no numbers.
        """
        mels, frames = self.mels(waveform, lengths)
        vectors = self.voice_vectors(waveform, lengths, voice_ids)
        more = {} if pitch is None else {"pitch": pitch}
        outputs = self.acoustic(tokens, token_lengths, mels, frames, vectors, **more)
        return SynthesizerOutput(outputs, Padded(mels, frames))

    @torch.no_grad()
    def mels(self, waveform: Tensor, lengths: Tensor) -> Padded:
        """Make the normalised mels of recordings."""
        mels, frames = self.features(waveform, lengths)
        return Padded(mels if self.norm is None else self.norm(mels, frames), frames)

    def voice_vectors(
        self, waveform: Tensor, lengths: Tensor, voice_ids: Tensor | None
    ) -> Tensor | None:
        """Give the vectors of the recordings' voices, ``(B, output_size)``."""
        if self.voices is None:
            return None
        if isinstance(self.voices, ReferenceVoice):
            return cast(Tensor, self.voices(waveform, lengths))
        if voice_ids is None:
            raise ValueError("the model has a table of voices: give voice_ids")
        return cast(Tensor, self.voices(voice_ids))

    # ---------------------------------------------------------------- synthesis

    def generate(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        *,
        speaker: Tensor | None = None,
        speed: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> GeneratedMel:
        """Make log-mels, ready for a vocoder, of a batch of symbols.

        Parameters
        ----------
        tokens, token_lengths : Tensor
            Shapes ``(B, U)`` and ``(B,)``.
        speaker : Tensor, optional
            Shape ``(B, output_size)``: vectors of the voices.
        speed : float
            Above 1 is faster. A model with durations shortens them; of others the frames are
            stretched.
        seed : int
            Of what a model draws.
        **options
            What the acoustic model's ``generate`` takes beside that.
        """
        model = cast(Any, self.acoustic)
        known = inspect.signature(model.generate).parameters
        if unknown := options.keys() - known:
            raise ValueError(
                f"{type(model).__name__} has no option {', '.join(sorted(unknown))} of synthesis; "
                f"it has {', '.join(name for name in known if name not in _GIVEN)}"
            )
        limits = _FRAMES_PER_SYMBOL * token_lengths + 200
        if "speed" in known:  # in its own frames, of which slow speech has more
            limits = (limits / min(max(speed, _SPEED[0]), 1.0)).round().long()
        if "max_frames" in options:
            limits = torch.full_like(limits, options["max_frames"])
        options["max_frames"] = int(limits.max())
        drawn = {"seed": seed, "speed": speed}
        options |= {name: value for name, value in drawn.items() if name in known}
        spoken: GeneratedMel = model.generate(tokens, token_lengths, speaker=speaker, **options)
        spoken = cut_frames(spoken, limits)
        mel, lengths = spoken.mel, spoken.lengths
        if "speed" not in known and speed != 1.0:
            mel, lengths = stretch_frames(mel, lengths, 1.0 / speed)
        if self.norm is not None:
            mel = cast(Any, self.norm).restore(mel, lengths)
        return spoken._replace(mel=mel, lengths=lengths)

    def synthesize(
        self,
        text: str,
        *,
        voice: str | None = None,
        reference: AudioSource | None = None,
        sample_rate: int | None = None,
        speed: float = 1.0,
        pause: float = 0.2,
        vocoder: Vocoder | None = None,
        seed: int = 0,
        max_characters: int = 250,
        **options: Any,
    ) -> Speech:
        """Speak a text.

        Parameters
        ----------
        text : str
            Of any length; it is spoken sentence by sentence.
        voice : str, optional
            One of `voice_names`, where the model has a table of voices.
        reference : path or Tensor, optional
            A clip of the voice to speak in, of half a second at least, where the model takes the
            voice of a recording.
        sample_rate : int, optional
            Hz, of a reference that is a tensor.
        speed : float
            From 0.25 to 4; above 1 is faster.
        pause : float
            Seconds of silence between sentences.
        vocoder : Vocoder, optional
            In the place of the model's own.
        seed : int
            Of what the model draws: the same seed gives the same speech.
        max_characters : int
            Longer sentences are cut at commas or between words, and longer words inside.
        **options
            What the acoustic model's ``generate`` takes beside that, such as ``max_frames``.

        Returns
        -------
        Speech

        Raises
        ------
        DataError
            For text without anything to speak, symbols that the model does not know, a voice that
            it does not have, or a reference that is silent or too short.
        ValueError
            For numbers that cannot be, or a vocoder made for other mels.
        """
        check_pause(pause)  # before minutes of work
        sentences = tuple(
            self.stream(
                text, voice=voice, reference=reference, sample_rate=sample_rate, speed=speed,
                vocoder=vocoder, seed=seed, max_characters=max_characters, **options,
            )
        )  # fmt: skip
        waveform = join(sentences, self.sample_rate, pause)
        return Speech(waveform, self.sample_rate, sentences)

    def stream(
        self,
        text: str,
        *,
        voice: str | None = None,
        reference: AudioSource | None = None,
        sample_rate: int | None = None,
        speed: float = 1.0,
        vocoder: Vocoder | None = None,
        seed: int = 0,
        max_characters: int = 250,
        **options: Any,
    ) -> Iterator[Sentence]:
        """Speak a text, giving each sentence as soon as it is done; as `synthesize` otherwise."""
        if not _SPEED[0] <= speed <= _SPEED[1]:
            raise ValueError(f"speed must be from {_SPEED[0]} to {_SPEED[1]}, got {speed}")
        if vocoder is not None:
            check_same_mel(self.features, vocoder.features)
        # Everything is encoded before anything is spoken: an unknown symbol in the last sentence
        # is not found after minutes.
        parts = []
        for part in split_sentences(text, max_characters=max_characters):
            # A line of dots says nothing; an emoji alone is for the front end to name.
            if not all(unicodedata.category(character).startswith(_UNSAID) for character in part):
                parts.append((part, self.front_end.encode(part)))
        if not parts:
            raise DataError(f"there is nothing to speak in {text[:60]!r}; give some words")
        speaker = choose_voice(self.voices, voice, reference, sample_rate)
        chosen = vocoder or self.own_vocoder

        def spoken() -> Iterator[Sentence]:
            for part, tokens in parts:
                yield self._speak(part, tokens, speaker, chosen, speed, seed, options)

        return spoken()

    @torch.no_grad()
    def _speak(
        self,
        text: str,
        tokens: Sequence[int],
        speaker: Tensor | None,
        vocoder: Vocoder,
        speed: float,
        seed: int,
        options: dict[str, Any],
    ) -> Sentence:
        from speechkit.metrics.attention import check_alignment

        device = next(self.acoustic.parameters()).device
        was_training = self.training
        self.eval()
        try:
            made = self.generate(
                torch.tensor([tokens], device=device), torch.tensor([len(tokens)], device=device),
                speaker=speaker, speed=speed, seed=seed, **options,
            )  # fmt: skip
            waveform, sizes = vocoder(made.mel, made.lengths)
        finally:
            self.train(was_training)
        alignment = made.alignment[0].float().cpu()
        frames = int(alignment.sum(1).gt(0).sum())
        alignment = alignment[:frames, : len(tokens)]
        return Sentence(
            text=text,
            pieces=tuple(self.front_end.names(tokens)),
            waveform=waveform[0, : int(sizes[0])].float().cpu(),
            mel=made.mel[0, : int(made.lengths[0])].float().cpu(),
            alignment=alignment,
            stopped=bool(made.stopped[0]),
            check=check_alignment(alignment, frames, len(tokens)),
        )
