"""Tacotron 2: symbols to a log-mel spectrogram, with attention learned from text and speech."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.acoustic import GeneratedMel, check_speaker
from speechkit.nn.acoustic_checks import check_symbols
from speechkit.nn.masking import mask_padding
from speechkit.nn.tacotron import PostNet, TacotronEncoder, TacotronOutput
from speechkit.nn.tacotron_decoder import TacotronDecoder


class Tacotron2(nn.Module):
    """Recurrent text to speech with location-sensitive attention.

    Shen et al. 2018, "Natural TTS synthesis by conditioning WaveNet on mel spectrogram
    predictions". The defaults are the published sizes, 28.2 million parameters with 148 symbols,
    and compute what the known implementations of NVIDIA and SpeechBrain do: dropout on the LSTMs'
    states in place of zoneout, and filters over the last and the summed alignment. A speaker's
    vector stands beside each frame of the memory.

    Parameters
    ----------
    num_symbols : int
        Size of the symbol set; symbols are numbered from 0.
    num_mels : int
        Features of a frame.
    speaker_size : int, optional
        Size of a speaker's vector; None for one voice.
    speaker_projection : int, optional
        Size of a linear layer with tanh on the speaker's vector; the vector itself by default.
    reduction_factor : int
        Frames of a decoder step.
    embed_dim, encoder_size, encoder_convs, encoder_kernel, encoder_dropout
        ``embed_dim``, ``output_size``, ``num_convs``, ``kernel_size`` and ``dropout`` of
        `speechkit.nn.tacotron.TacotronEncoder`.
    prenet_sizes, prenet_dropout, attention_size, location_channels, location_kernel
        As in `speechkit.nn.tacotron_decoder.TacotronDecoder`.
    attention_lstm_size, decoder_lstm_size, attention_dropout, decoder_dropout
        As in `speechkit.nn.tacotron_decoder.TacotronDecoder`.
    postnet_size, postnet_convs, postnet_kernel, postnet_dropout
        ``size``, ``num_convs``, ``kernel_size`` and ``dropout`` of
        `speechkit.nn.tacotron.PostNet`.

    Raises
    ------
    ValueError
        If ``speaker_projection`` is given without ``speaker_size``, or a size is impossible.

    Examples
    --------
    >>> model = Tacotron2(
    ...     num_symbols=20, num_mels=8, embed_dim=8, encoder_size=12, prenet_sizes=(8, 8),
    ...     attention_lstm_size=16, decoder_lstm_size=16, postnet_size=8, reduction_factor=2,
    ... )
    >>> tokens, token_lengths = torch.tensor([[3, 7, 9], [5, 0, 0]]), torch.tensor([3, 1])
    >>> mels, mel_lengths = torch.randn(2, 11, 8), torch.tensor([11, 4])
    >>> out = model(tokens, token_lengths, mels, mel_lengths)
    >>> out.mel.shape, out.stop_logits.shape, out.step_lengths.tolist()
    (torch.Size([2, 11, 8]), torch.Size([2, 6]), [6, 2])
    >>> spoken = model.eval().generate(tokens, token_lengths, max_frames=10)
    >>> spoken.mel.shape == (2, int(spoken.lengths.max()), 8)
    True
    """

    def __init__(
        self,
        *,
        num_symbols: int,
        num_mels: int = 80,
        speaker_size: int | None = None,
        speaker_projection: int | None = None,
        reduction_factor: int = 1,
        embed_dim: int = 512,
        encoder_size: int = 512,
        encoder_convs: int = 3,
        encoder_kernel: int = 5,
        encoder_dropout: float = 0.5,
        prenet_sizes: Sequence[int] = (256, 256),
        prenet_dropout: float = 0.5,
        attention_size: int = 128,
        location_channels: int = 32,
        location_kernel: int = 31,
        attention_lstm_size: int = 1024,
        decoder_lstm_size: int = 1024,
        attention_dropout: float = 0.1,
        decoder_dropout: float = 0.1,
        postnet_size: int = 512,
        postnet_convs: int = 5,
        postnet_kernel: int = 5,
        postnet_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_symbols = num_symbols
        self.num_mels = num_mels
        self.speaker_size = speaker_size
        self.speaker_projection = speaker_projection
        self.reduction_factor = reduction_factor
        self.embed_dim = embed_dim
        self.encoder_size = encoder_size
        self.encoder_convs = encoder_convs
        self.encoder_kernel = encoder_kernel
        self.encoder_dropout = encoder_dropout
        self.prenet_sizes = list(prenet_sizes)
        self.prenet_dropout = prenet_dropout
        self.attention_size = attention_size
        self.location_channels = location_channels
        self.location_kernel = location_kernel
        self.attention_lstm_size = attention_lstm_size
        self.decoder_lstm_size = decoder_lstm_size
        self.attention_dropout = attention_dropout
        self.decoder_dropout = decoder_dropout
        self.postnet_size = postnet_size
        self.postnet_convs = postnet_convs
        self.postnet_kernel = postnet_kernel
        self.postnet_dropout = postnet_dropout
        self._build()

    def _build(self) -> None:
        self.encoder = TacotronEncoder(
            num_symbols=self.num_symbols,
            embed_dim=self.embed_dim,
            output_size=self.encoder_size,
            num_convs=self.encoder_convs,
            kernel_size=self.encoder_kernel,
            dropout=self.encoder_dropout,
        )
        voice, self.voice = self.speaker_size or 0, None
        if self.speaker_projection is not None:
            if self.speaker_size is None:
                raise ValueError("speaker_projection without speaker_size: the model has one voice")
            self.voice = nn.Linear(self.speaker_size, self.speaker_projection)
            voice = self.speaker_projection
        self.decoder = TacotronDecoder(
            num_mels=self.num_mels,
            memory_size=self.encoder_size + voice,
            reduction_factor=self.reduction_factor,
            prenet_sizes=self.prenet_sizes,
            prenet_dropout=self.prenet_dropout,
            attention_size=self.attention_size,
            location_channels=self.location_channels,
            location_kernel=self.location_kernel,
            attention_lstm_size=self.attention_lstm_size,
            decoder_lstm_size=self.decoder_lstm_size,
            attention_dropout=self.attention_dropout,
            decoder_dropout=self.decoder_dropout,
        )
        self.postnet = PostNet(
            num_mels=self.num_mels,
            size=self.postnet_size,
            num_convs=self.postnet_convs,
            kernel_size=self.postnet_kernel,
            dropout=self.postnet_dropout,
        )

    def forward(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        mels: Tensor,
        mel_lengths: Tensor,
        speaker: Tensor | None = None,
    ) -> TacotronOutput:
        """Predict each step's frames of the recording's frames before it.

        In eval mode, too, the pre-net drops values, always the same ones.

        Parameters
        ----------
        tokens : Tensor
            Shape ``(B, U)``, int64.
        token_lengths : Tensor
            Shape ``(B,)``, each at least 1.
        mels : Tensor
            Shape ``(B, T, num_mels)``, T at least 1.
        mel_lengths : Tensor
            Shape ``(B,)``: frames.
        speaker : Tensor, optional
            Shape ``(B, speaker_size)``.

        Raises
        ------
        ValueError
            If a shape is wrong, an item has no symbol, or the speaker's vector is missing.
        """
        if mels.dim() != 3 or mels.shape[1] == 0 or mels.shape[2] != self.num_mels:
            raise ValueError(f"mels must be (B, T, {self.num_mels}), T > 0: {tuple(mels.shape)}")
        memory = self._memory(tokens, token_lengths, speaker)
        frames, factor = mels.shape[1], self.reduction_factor
        steps = -(-frames // factor)
        mels = F.pad(mask_padding(mels, mel_lengths), (0, 0, 0, steps * factor - frames))
        last = mels[:, factor - 1 :: factor]  # of each step
        previous = F.pad(last[:, :-1], (0, 0, 1, 0))
        decoded = self.decoder(memory, token_lengths, previous)
        coarse = mask_padding(decoded.frames[:, :frames], mel_lengths)
        mel = coarse + self.postnet(coarse, mel_lengths)
        step_lengths = torch.div(mel_lengths + factor - 1, factor, rounding_mode="floor")
        return TacotronOutput(coarse, mel, decoded.stop_logits, decoded.alignment, step_lengths)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        *,
        speaker: Tensor | None = None,
        max_frames: int = 1000,
        stop_threshold: float = 0.5,
        attention: Literal["soft", "forward"] = "soft",
        seed: int = 0,
    ) -> GeneratedMel:
        """Speak texts; each item of a batch ends by itself and is what it is alone.

        Parameters
        ----------
        tokens : Tensor
            Shape ``(B, U)``, int64.
        token_lengths : Tensor
            Shape ``(B,)``, each at least 1.
        speaker : Tensor, optional
            Shape ``(B, speaker_size)``.
        max_frames : int
            Frames at most, at least ``reduction_factor``.
        stop_threshold : float
            Probability above which a step is the last.
        attention : {"soft", "forward"}
            Softmax over all symbols, or forward attention (Zhang et al. 2018), which can only
            stay at a symbol or go on to the next one.
        seed : int
            Of the pre-net's dropout, which is part of the model also when it speaks.

        Raises
        ------
        ValueError
            If an item has no symbol, the attention is unknown, there is room for no step, or the
            speaker's vector is missing.
        """
        factor = self.reduction_factor
        if max_frames < factor:
            raise ValueError(f"max_frames ({max_frames}) is less than a step of {factor} frames")
        memory = self._memory(tokens, token_lengths, speaker)
        spoken = self.decoder.speak(
            memory,
            token_lengths,
            max_steps=max_frames // factor,
            stop_threshold=stop_threshold,
            attention=attention,
            seed=seed,
        )
        lengths = spoken.steps * factor
        coarse = mask_padding(spoken.frames, lengths)
        mel = coarse + self.postnet(coarse, lengths)
        alignment = spoken.alignment.repeat_interleave(factor, dim=1)
        return GeneratedMel(mel, lengths, mask_padding(alignment, lengths), spoken.stopped)

    def _memory(self, tokens: Tensor, lengths: Tensor, speaker: Tensor | None) -> Tensor:
        """Encode symbols ``(B, U)`` and put the voice beside them: ``(B, U, memory_size)``."""
        check_symbols(tokens, lengths, self.num_symbols)
        check_speaker(speaker, self.speaker_size, len(tokens))
        memory: Tensor = self.encoder(tokens, lengths).data
        if speaker is None:
            return memory
        if self.voice is not None:
            speaker = self.voice(speaker).tanh()
        return torch.cat([memory, speaker.unsqueeze(1).expand(-1, memory.shape[1], -1)], dim=-1)
