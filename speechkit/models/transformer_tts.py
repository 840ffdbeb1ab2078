"""Text to speech by a Transformer that writes one group of frames after another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from speechkit.nn.acoustic import GeneratedMel, check_speaker
from speechkit.nn.acoustic_checks import check_mels, check_symbols
from speechkit.nn.acoustic_outputs import full_precision
from speechkit.nn.attention import AttentionBias, attention_bias
from speechkit.nn.decoder_layer import TransformerDecoderLayer, causal_bias
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import mask_padding
from speechkit.nn.symbol_encoder import ScaledPositions, SymbolEncoder
from speechkit.nn.tacotron import PostNet, Prenet, TacotronOutput
from speechkit.nn.token_cache import TokenCache
from speechkit.nn.transformer_decoder import DecoderMemory

_SEES_ALL = AttentionBias(None, None)


class TransformerTTS(nn.Module):
    """Symbols to a log-mel spectrogram by attention alone, frame after frame.

    Li et al. 2019, "Neural speech synthesis with Transformer network". In training all frames are
    predicted at once, each from the true ones before it; in synthesis the keys and values of what
    was said are kept. The norms come before the blocks by default, in the paper after the sums.

    The dropout of the pre-net is never turned off, as in Tacotron 2. In evaluation it is drawn from
    a generator with a seed, the same for each item, so that the same text sounds the same.

    Under autocast frames and stop logits are float32: the layers that make them are not part of it.

    Parameters
    ----------
    num_symbols : int
        Symbols of the text front end.
    num_mels : int
        Features of a frame.
    speaker_size : int, optional
        Features of a speaker's vector, which is mapped and added to the memory; None for one voice.
    embed_dim, num_heads, feedforward_size : int
        Features, attention heads, hidden features of the feed-forward blocks.
    encoder_layers, decoder_layers : int
        Transformer layers.
    dropout : float
        In the Transformer layers.
    pre_norm : bool
        Whether norms come before the blocks; then a last norm follows the layers.
    encoder_convs : int
        Convolutions before the encoder's layers.
    prenet_sizes : sequence of int
        Units of the pre-net's layers.
    prenet_dropout : float
        Of the pre-net, and after the encoder's convolutions.
    postnet_size, postnet_convs : int
        Channels and layers of the post-net.
    postnet_dropout : float
        Of the post-net.
    reduction_factor : int
        Frames made in a step.
    guided_layers, guided_heads : int
        The attention of the first heads of the last layers is the alignment that is shown and that
        the guided attention loss pushes to the diagonal; the other heads stay free.

    Raises
    ------
    ValueError
        If a number makes no sense.

    Examples
    --------
    >>> model = TransformerTTS(
    ...     num_symbols=9, num_mels=8, embed_dim=16, num_heads=2, feedforward_size=32,
    ...     encoder_layers=1, decoder_layers=2, prenet_sizes=(8,), postnet_size=8).eval()
    >>> tokens, token_lengths = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    >>> spoken = model.generate(tokens, token_lengths, max_frames=6)
    >>> outputs = model(tokens, token_lengths, spoken.mel, spoken.lengths)
    >>> outputs.mel.shape == spoken.mel.shape, outputs.alignment.shape == spoken.alignment.shape
    (True, True)
    """

    def __init__(
        self,
        *,
        num_symbols: int,
        num_mels: int,
        speaker_size: int | None = None,
        embed_dim: int = 512,
        num_heads: int = 8,
        feedforward_size: int = 2048,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        dropout: float = 0.1,
        pre_norm: bool = True,
        encoder_convs: int = 3,
        prenet_sizes: Sequence[int] = (256, 256),
        prenet_dropout: float = 0.5,
        postnet_size: int = 512,
        postnet_convs: int = 5,
        postnet_dropout: float = 0.5,
        reduction_factor: int = 1,
        guided_layers: int = 2,
        guided_heads: int = 2,
    ) -> None:
        super().__init__()
        _check_counts(reduction_factor, decoder_layers, guided_layers, num_heads, guided_heads)
        self.num_symbols = num_symbols
        self.num_mels = num_mels
        self.speaker_size = speaker_size
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.feedforward_size = feedforward_size
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.encoder_convs = encoder_convs
        self.prenet_sizes = list(prenet_sizes)
        self.prenet_dropout = prenet_dropout
        self.postnet_size = postnet_size
        self.postnet_convs = postnet_convs
        self.postnet_dropout = postnet_dropout
        self.reduction_factor = reduction_factor
        self.guided_layers = guided_layers
        self.guided_heads = guided_heads
        self.encoder = SymbolEncoder(
            num_symbols=num_symbols,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_layers=encoder_layers,
            feedforward_size=feedforward_size,
            num_convs=encoder_convs,
            conv_dropout=prenet_dropout,
            dropout=dropout,
            pre_norm=pre_norm,
        )
        if speaker_size is not None:
            self.voice = nn.Linear(speaker_size, embed_dim)
        self._build_decoder()

    def _build_decoder(self) -> None:
        self.prenet = Prenet(
            input_size=self.num_mels, sizes=self.prenet_sizes, dropout=self.prenet_dropout
        )
        self.centre = nn.Linear(self.prenet_sizes[-1], self.embed_dim)
        self.positions = ScaledPositions(embed_dim=self.embed_dim)
        self.drop = Dropout(self.dropout)
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(
                embed_dim=self.embed_dim,
                num_heads=self.num_heads,
                feedforward_size=self.feedforward_size,
                dropout=self.dropout,
                pre_norm=self.pre_norm,
            )
            for _ in range(self.decoder_layers)
        )
        self.norm = nn.LayerNorm(self.embed_dim) if self.pre_norm else nn.Identity()
        self.frames = nn.Linear(self.embed_dim, self.reduction_factor * self.num_mels)
        self.stop = nn.Linear(self.embed_dim, 1)
        self.postnet = PostNet(
            num_mels=self.num_mels,
            size=self.postnet_size,
            num_convs=self.postnet_convs,
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
        """Predict each group of frames from the true ones before it.

        Parameters
        ----------
        tokens, token_lengths : Tensor
            Shapes ``(B, U)``, int64, and ``(B,)``.
        mels, mel_lengths : Tensor
            Shapes ``(B, T, num_mels)`` and ``(B,)``.
        speaker : Tensor, optional
            Shape ``(B, speaker_size)``.

        Raises
        ------
        ValueError
            If an argument is missing or of another shape.
        """
        check_mels(mels, mel_lengths, len(tokens), self.num_mels)
        memory = self._remember(tokens, token_lengths, speaker)
        factor, num_frames = self.reduction_factor, mels.shape[1]
        step_lengths = (mel_lengths + factor - 1).div(factor, rounding_mode="floor")
        num_steps = -(-num_frames // factor)
        # A step sees the last frame of the group before it; the first sees silence.
        seen = mask_padding(mels, mel_lengths)[:, factor - 1 :: factor][:, : num_steps - 1]
        seen = torch.cat([torch.zeros_like(mels[:, :1]), seen], dim=1)
        masks = None if self.training else self._draw(num_steps, 0)
        x = self._embed(self.prenet(seen, masks), 0)
        x, alignment = self._through(x, causal_bias(x), memory, None, 0)
        made, stop_logits = self._made(x)
        coarse = mask_padding(made.flatten(1, 2)[:, :num_frames], mel_lengths)
        return TacotronOutput(
            coarse=coarse,
            mel=coarse + self.postnet(coarse, mel_lengths),
            stop_logits=stop_logits,
            alignment=mask_padding(alignment, step_lengths),
            step_lengths=step_lengths,
        )

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        *,
        speaker: Tensor | None = None,
        max_frames: int = 1000,
        stop_threshold: float = 0.5,
        seed: int = 0,
    ) -> GeneratedMel:
        """Speak until the stop, in evaluation mode.

        Parameters
        ----------
        tokens, token_lengths : Tensor
            Shapes ``(B, U)``, int64, and ``(B,)``.
        speaker : Tensor, optional
            Shape ``(B, speaker_size)``.
        max_frames : int
            Frames at most, at least ``reduction_factor``; an item that reaches them without a stop
            has not stopped.
        stop_threshold : float
            Probability from which on a step is the last.
        seed : int
            Of the pre-net's dropout. With 0, `forward` in evaluation mode gives the same frames.

        Raises
        ------
        ValueError
            If an argument is missing, of another shape, or there is room for no step.
        """
        if max_frames < self.reduction_factor:
            raise ValueError(
                f"max_frames ({max_frames}) is less than a step of {self.reduction_factor} frames"
            )
        memory = self._remember(tokens, token_lengths, speaker)
        max_steps = max_frames // self.reduction_factor
        frame = self.frames.weight.new_zeros(len(tokens), 1, self.num_mels)
        masks, cache = self._draw(max_steps, seed), TokenCache(self.decoder_layers)
        steps = torch.full((len(tokens),), max_steps, device=frame.device)
        stopped = torch.zeros(len(tokens), dtype=torch.bool, device=frame.device)
        frames, alignments = [], []
        for t in range(max_steps):
            x = self._embed(self.prenet(frame, [mask[t] for mask in masks]), t)
            x, alignment = self._through(x, _SEES_ALL, memory, cache, t)
            made, stop_logits = self._made(x)
            frames.append(made.squeeze(1))  # (B, r, M)
            alignments.append(alignment)
            ends = stop_logits.sigmoid().flatten() >= stop_threshold
            steps = torch.where(ends & ~stopped, t + 1, steps)
            stopped = stopped | ends
            if bool(stopped.all()):
                break
            frame = made[:, :, -1]
        lengths = steps * self.reduction_factor
        coarse = mask_padding(torch.cat(frames, dim=1), lengths)
        mel = coarse + self.postnet(coarse, lengths)
        rows = torch.cat(alignments, dim=1).repeat_interleave(self.reduction_factor, dim=1)
        return GeneratedMel(mel, lengths, mask_padding(rows, lengths), stopped)

    def _made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Make the frames ``(B, S, r, M)`` and the stop logits ``(B, S)`` of steps."""
        frames = full_precision(self.frames, x)
        frames = frames.unflatten(2, (self.reduction_factor, self.num_mels))
        return frames, full_precision(self.stop, x).squeeze(2)

    def _draw(self, num_steps: int, seed: int) -> list[Tensor]:
        return self.prenet.draw(num_steps, torch.Generator().manual_seed(seed))

    def _remember(
        self, tokens: Tensor, token_lengths: Tensor, speaker: Tensor | None
    ) -> DecoderMemory:
        """Encode the symbols, and project them to the keys and values of each layer."""
        check_symbols(tokens, token_lengths, self.num_symbols)
        check_speaker(speaker, self.speaker_size, len(tokens))
        memory, _ = self.encoder(tokens, token_lengths)
        if speaker is not None:
            memory = memory + self.voice(speaker).unsqueeze(1)
        layers = tuple(layer.project_memory(memory) for layer in self.layers)  # type: ignore[operator]
        bias = attention_bias(token_lengths, memory.shape[1], None, layers[0].keys.dtype)
        return DecoderMemory(layers, bias)

    def _embed(self, x: Tensor, first: int) -> Tensor:
        return self.drop(self.positions(self.centre(x), first))

    def _through(
        self,
        x: Tensor,
        seen: AttentionBias,
        memory: DecoderMemory,
        cache: TokenCache | None,
        filled: int,
    ) -> tuple[Tensor, Tensor]:
        """Apply the layers; also the guided heads' mean attention ``(B, S, U)``."""
        guided = []
        for i, layer in enumerate(self.layers):
            extend = None if cache is None else partial(cache.write, i, filled)
            show = i >= self.decoder_layers - self.guided_layers
            x, weights = layer(
                x, seen, memory.layers[i], memory.bias, extend=extend, need_weights=show
            )
            if show:
                guided.append(weights[:, : self.guided_heads].float().mean(dim=1))
        return self.norm(x), torch.stack(guided).mean(dim=0)


def _check_counts(
    reduction_factor: int, num_layers: int, guided_layers: int, num_heads: int, guided_heads: int
) -> None:
    if reduction_factor < 1:
        raise ValueError(f"reduction_factor must be at least 1, not {reduction_factor}")
    if not 1 <= guided_layers <= num_layers:
        raise ValueError(f"guided_layers must lie in 1..{num_layers}, not {guided_layers}")
    if not 1 <= guided_heads <= num_heads:
        raise ValueError(f"guided_heads must lie in 1..{num_heads}, not {guided_heads}")
