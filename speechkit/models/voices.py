"""Whose voice a synthesizer speaks in: a table of known ones, or a clip of anyone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.data.errors import DataError
from speechkit.models.windows import AudioSource
from speechkit.names import nearest
from speechkit.nn.masking import mask_padding

if TYPE_CHECKING:
    from speechkit.models.speaker import SpeakerEncoder

_SHOWN = 20


class VoiceTable(nn.Module):
    """A vector for each voice of the training, learned with the model.

    Parameters
    ----------
    names : sequence of str
        The voices; several, each once.
    output_size : int
        Size of a vector.

    Raises
    ------
    DataError
        If a name is empty or there twice, or there is none.

    Examples
    --------
    >>> voices = VoiceTable(names=["ann", "bob"], output_size=8)
    >>> voices(voices.ids(["bob", "ann"])).shape
    torch.Size([2, 8])
    >>> voices.vector("bbo")
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: 'bbo' is none of the model's 2 voices (ann, bob); ...
    """

    def __init__(self, *, names: Sequence[str], output_size: int = 64) -> None:
        super().__init__()
        self.names = list(names)
        self.output_size = output_size
        if not self.names or not all(self.names) or len({*self.names}) < len(self.names):
            raise DataError(f"voices must be names, some, each once: {self.names[:_SHOWN]}")
        self.table = nn.Embedding(len(self.names), output_size)

    def ids(self, names: Sequence[str | None]) -> Tensor:
        """Give voices' numbers, ``(B,)``.

        Raises
        ------
        DataError
            For a name that is none of them.
        """
        for name in names:
            if name not in self.names:
                known = ", ".join(self.names[:_SHOWN]) + (", ..." if len(self.names) > 20 else "")
                raise DataError(
                    f"{name!r} is none of the model's {len(self.names)} voices ({known})"
                    f"{nearest(str(name), self.names) or ';'} name one of them"
                )
        return torch.tensor([self.names.index(str(name)) for name in names])

    def forward(self, ids: Tensor) -> Tensor:
        """Give the vectors ``(B, output_size)`` of voices by their numbers ``(B,)``."""
        vectors: Tensor = self.table(ids)
        return vectors

    def vector(self, name: str) -> Tensor:
        """Give one voice's vector, ``(1, output_size)``."""
        return self(self.ids([name]).to(self.table.weight.device))


class ReferenceVoice(nn.Module):
    """The voice of a recording, through a trained speaker encoder, which does not learn more.

    Jia et al. 2018, "Transfer learning from speaker verification to multispeaker text-to-speech
    synthesis". Vectors have unit length. What the model hears in training is the utterance itself,
    a clip of anyone afterwards.

    Parameters
    ----------
    encoder : SpeakerEncoder
        A trained one.
    sample_rate : int
        Hz, of the waveforms in training.

    Examples
    --------
    >>> from speechkit.features.spectrum import LogMel
    >>> from speechkit.models.speaker import SpeakerEncoder
    >>> from speechkit.nn.pooling import EmbeddingLayer, StatisticsPooling
    >>> from speechkit.nn.xvector import XVectorEncoder
    >>> encoder = SpeakerEncoder(
    ...     features=LogMel(num_mels=24),
    ...     encoder=XVectorEncoder(input_size=24, channels=(8,), kernel_sizes=(5,), dilations=(1,)),
    ...     pooling=StatisticsPooling(input_size=8),
    ...     projection=EmbeddingLayer(input_size=16, embed_dim=6),
    ... )
    >>> voice = ReferenceVoice(encoder=encoder, sample_rate=8000)
    >>> voice(torch.randn(2, 8000), torch.tensor([8000, 6000])).norm(dim=1).round().tolist()
    [1.0, 1.0]
    >>> voice.vector(torch.randn(24000), 24000).shape
    torch.Size([1, 6])
    """

    def __init__(self, *, encoder: SpeakerEncoder, sample_rate: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.sample_rate = sample_rate
        self.encoder.requires_grad_(False)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], sample_rate: int) -> ReferenceVoice:
        """Take the encoder of a model folder.

        Raises
        ------
        DataError
            If it holds another kind of model.
        """
        import speechkit
        from speechkit.models.speaker import SpeakerEncoder

        model = speechkit.load(str(folder))
        if not isinstance(model, SpeakerEncoder):
            raise DataError(
                f"{folder}: holds a {type(model).__name__}, which knows no voices; give the folder "
                "of a speaker encoder (recipes/speaker)"
            )
        return cls(encoder=model, sample_rate=sample_rate)

    @property
    def output_size(self) -> int:
        """Size of a vector."""
        return self.encoder.embed_dim

    def train(self, mode: bool = True) -> ReferenceVoice:
        """Set the mode; the encoder stays in evaluation."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Give the vectors ``(B, output_size)`` of waveforms ``(B, T)`` at ``sample_rate``."""
        from speechkit.data.audio import resample

        rate = self.encoder.sample_rate
        # Not under autocast: bfloat16 samples are noisy, and a clip given for synthesis has none.
        with torch.autocast(waveform.device.type, enabled=False):
            heard = resample(mask_padding(waveform.float(), lengths), self.sample_rate, rate)
        sizes = torch.div(lengths * rate, self.sample_rate, rounding_mode="floor")
        sizes = sizes.clamp(1, heard.shape[1])
        return F.normalize(self.encoder(heard, sizes).float(), dim=1)

    def vector(self, source: AudioSource, sample_rate: int | None = None) -> Tensor:
        """Give the vector of a clip, ``(1, output_size)``: a file, or samples and their rate.

        Raises
        ------
        DataError
            For a clip of silence, or under half a second, or that cannot be read.
        """
        embedding = self.encoder.embed(source, sample_rate)
        device = next(self.encoder.parameters()).device
        return F.normalize(embedding, dim=0).unsqueeze(0).to(device)


@torch.no_grad()
def choose_voice(
    voices: nn.Module | None,
    voice: str | None = None,
    reference: AudioSource | None = None,
    sample_rate: int | None = None,
) -> Tensor | None:
    """Give the vector of the voice that somebody asks for.

    Parameters
    ----------
    voices : nn.Module, optional
        `VoiceTable`, `ReferenceVoice`, or None for a model of one voice.
    voice : str, optional
        A name of the table; it may be left out where there is one alone.
    reference : path or Tensor, optional
        A clip, where voices are those of recordings.
    sample_rate : int, optional
        Hz, of a reference that is a tensor.

    Returns
    -------
    Tensor or None
        Shape ``(1, output_size)``; None for a model of one voice.

    Raises
    ------
    DataError
        If the two do not go together, with what would.
    """
    names = list(getattr(voices, "names", []))
    takes_clip = isinstance(voices, ReferenceVoice)
    if reference is not None and not takes_clip:
        known = f"its voices are {', '.join(names[:_SHOWN])}" if names else "it has one voice"
        raise DataError(f"the model does not take the voice of a recording: {known}")
    if voice is not None and not names:
        instead = "give reference, a recording of someone" if takes_clip else "it has one alone"
        raise DataError(f"the model has no voice {voice!r}: {instead}")
    if isinstance(voices, ReferenceVoice):
        if reference is None:
            raise DataError("the model speaks in the voice of a recording: give reference")
        return voices.vector(reference, sample_rate)
    if isinstance(voices, VoiceTable):
        if voice is None and len(names) > 1:
            raise DataError(
                f"the model has {len(names)} voices: name one of {', '.join(names[:_SHOWN])}"
            )
        return voices.vector(voice or names[0])
    return None
