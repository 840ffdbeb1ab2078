"""Transformers that write one token after another, with and without a memory.

In a search the keys and values of the self-attention are kept (`speechkit.nn.token_cache`), so
that a step costs one token. Those of the memory belong to the utterance: its `K` prefixes are `K`
queries of one attention, and nothing of the memory is copied per prefix.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.nn.attention import AttentionBias, KeyValue, attention_bias
from speechkit.nn.decoder_layer import TransformerDecoderLayer, causal_bias
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import length_mask, mask_padding
from speechkit.nn.positional import sinusoids
from speechkit.nn.stepping import DecoderOutput, Start, StepOutput
from speechkit.nn.token_cache import TokenState, empty_state
from speechkit.nn.transformer import Activation


class DecoderMemory(NamedTuple):
    """What the layers see of an utterance.

    Attributes
    ----------
    layers : tuple of KeyValue
        For each layer keys and values ``(B, H, T, D)``.
    bias : AttentionBias
        Hides the padding.
    """

    layers: tuple[KeyValue, ...]
    bias: AttentionBias


class _TokenStack(nn.Module):
    """Embedding, layers and output that a decoder and a language model share."""

    def __init__(
        self,
        *,
        vocab_size: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        feedforward_size: int,
        dropout: float,
        pre_norm: bool,
        activation: Activation,
        tie_embeddings: bool,
        cross_attention: bool,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, not {num_layers}")
        self.vocab_size = vocab_size
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.feedforward_size = feedforward_size
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.activation = activation
        self.tie_embeddings = tie_embeddings
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        # Times sqrt(embed_dim) that is a variance of 1, that of the positions and of the output.
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                feedforward_size=feedforward_size,
                dropout=dropout,
                pre_norm=pre_norm,
                activation=activation,
                cross_attention=cross_attention,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim) if pre_norm else nn.Identity()
        self.output = nn.Linear(embed_dim, vocab_size)
        if tie_embeddings:
            self.output.weight = self.embedding.weight
        self.drop = Dropout(dropout)

    def _embed(self, tokens: Tensor, first: int) -> Tensor:
        """Embed tokens; along the last axis they stand at ``first``, ``first + 1``, ..."""
        positions = torch.arange(first, first + tokens.shape[-1], device=tokens.device)
        embedded = self.embedding(tokens) * math.sqrt(self.embed_dim)
        return self.drop(embedded + sinusoids(positions, self.embed_dim).to(embedded.dtype))

    def _teach(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        memory: DecoderMemory | None,
        need_attention: bool,
    ) -> DecoderOutput:
        valid = length_mask(token_lengths, tokens.shape[1])
        x = self._embed(tokens.masked_fill(~valid, 0), 0)
        x, weights = self._through(x, causal_bias(x), memory, None, need_attention)
        return DecoderOutput(self.output(self.norm(x)), weights)

    def _step(self, tokens: Tensor, memory: DecoderMemory | None, state: TokenState) -> StepOutput:
        x = self._embed(tokens.unsqueeze(-1), state.length).squeeze(2)  # (B, K, E)
        state = state.extended()
        seen = attention_bias(None, state.seen.shape[2], state.seen, x.dtype)
        seen = AttentionBias(seen.bias, None)  # each sees itself: none is blind
        x, weights = self._through(x, seen, memory, state, need_attention=True)
        log_probs = self.output(self.norm(x)).float().log_softmax(dim=-1)
        return StepOutput(log_probs, state, weights)

    def _through(
        self,
        x: Tensor,
        seen: AttentionBias,
        memory: DecoderMemory | None,
        state: TokenState | None,
        need_attention: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the layers; also the last one's attention, averaged over its heads."""
        weights = None
        for i, layer in enumerate(self.layers):
            extend = None
            if state is not None:
                filled = state.seen.shape[2] - x.shape[1]
                extend = partial(state.cache.write, i, filled)
            if memory is None:
                x, _ = layer(x, seen, extend=extend)
            else:
                x, weights = layer(
                    x,
                    seen,
                    memory.layers[i],
                    memory.bias,
                    extend=extend,
                    need_weights=need_attention and i == self.num_layers - 1,
                )
        return x, None if weights is None else weights.float().mean(dim=1)


class CausalTransformer(_TokenStack):
    """A Transformer over tokens alone, each predicted from those before it.

    Vaswani et al. 2017; without a memory as in Liu et al. 2018, "Generating Wikipedia by
    summarizing long sequences".

    Parameters
    ----------
    vocab_size : int
        Labels; 0 begins and ends a sentence.
    embed_dim, num_heads, num_layers, feedforward_size : int
        Features, attention heads, layers, hidden features of the feed-forward blocks.
    dropout : float
        Probability of dropping embeddings, attention weights, hidden values, blocks' outputs.
    pre_norm : bool
        Whether norms come before the blocks; then a last norm follows the layers.
    activation : {"relu", "gelu", "silu"}
        Of the feed-forward blocks.
    tie_embeddings : bool
        Whether the output layer's weight is the embedding (Press and Wolf 2017).

    Raises
    ------
    ValueError
        If there is no layer or the heads do not divide the features.

    Examples
    --------
    >>> model = CausalTransformer(
    ...     vocab_size=7, embed_dim=16, num_heads=2, num_layers=2, feedforward_size=32)
    >>> model(torch.tensor([[0, 3, 4]]), torch.tensor([3])).shape
    torch.Size([1, 3, 7])
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        feedforward_size: int,
        dropout: float = 0.0,
        pre_norm: bool = True,
        activation: Activation = "relu",
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_layers=num_layers,
            feedforward_size=feedforward_size,
            dropout=dropout,
            pre_norm=pre_norm,
            activation=activation,
            tie_embeddings=tie_embeddings,
            cross_attention=False,
        )

    def forward(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Logits ``(B, U, V)`` of what follows each prefix of ``tokens`` ``(B, U)``."""
        return self._teach(tokens, token_lengths, None, need_attention=False).logits

    def start(self, batch_size: int, device: torch.device) -> Start:
        """Give ``batch_size`` empty prefixes, state axes ``(B, 1, ...)``."""
        return Start(None, empty_state(self.num_layers, batch_size, device))

    def step(self, tokens: Tensor, fixed: None, state: TokenState) -> StepOutput:
        """Append ``tokens`` ``(B, K)`` to the prefixes and score what follows."""
        return self._step(tokens, fixed, state)


class TransformerDecoder(_TokenStack):
    """A Transformer that writes tokens while it attends to a memory.

    Vaswani et al. 2017, "Attention is all you need"; for speech Dong et al. 2018,
    "Speech-Transformer". Embeddings are scaled by the root of their size and added to sinusoidal
    positions.

    Parameters
    ----------
    vocab_size : int
        Labels; 0 begins and ends a sentence.
    memory_size : int
        Features per frame of the memory; a linear layer maps them to ``embed_dim`` where they
        differ.
    embed_dim, num_heads, num_layers, feedforward_size : int
        Features, attention heads, layers, hidden features of the feed-forward blocks.
    dropout : float
        Probability of dropping embeddings, attention weights, hidden values, blocks' outputs.
    pre_norm : bool
        Whether norms come before the blocks; then a last norm follows the layers.
    activation : {"relu", "gelu", "silu"}
        Of the feed-forward blocks.
    tie_embeddings : bool
        Whether the output layer's weight is the embedding (Press and Wolf 2017).

    Raises
    ------
    ValueError
        If there is no layer or the heads do not divide the features.

    Examples
    --------
    >>> decoder = TransformerDecoder(vocab_size=7, memory_size=12, embed_dim=16, num_heads=2,
    ...                              num_layers=2, feedforward_size=32).eval()
    >>> memory, lengths = torch.randn(1, 9, 12), torch.tensor([9])
    >>> out = decoder(torch.tensor([[0, 3]]), torch.tensor([2]), memory, lengths)
    >>> fixed, state = decoder.start(memory, lengths)
    >>> first = decoder.step(torch.tensor([[0]]), fixed, state)
    >>> second = decoder.step(torch.tensor([[3]]), fixed, first.state)
    >>> torch.allclose(second.log_probs[:, 0], out.logits[:, 1].log_softmax(-1), atol=1e-5)
    True
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        memory_size: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        feedforward_size: int,
        dropout: float = 0.0,
        pre_norm: bool = True,
        activation: Activation = "relu",
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_layers=num_layers,
            feedforward_size=feedforward_size,
            dropout=dropout,
            pre_norm=pre_norm,
            activation=activation,
            tie_embeddings=tie_embeddings,
            cross_attention=True,
        )
        self.memory_size = memory_size
        same = memory_size == embed_dim
        self.memory = nn.Identity() if same else nn.Linear(memory_size, embed_dim)

    def forward(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        memory: Tensor,
        lengths: Tensor,
        *,
        need_attention: bool | None = None,
    ) -> DecoderOutput:
        """Predict each token from those before it.

        Parameters
        ----------
        tokens : Tensor
            Shape ``(B, U)``, int64; begins with 0.
        token_lengths : Tensor
            Shape ``(B,)``: valid tokens, the first 0 counted.
        memory : Tensor
            Shape ``(B, T, memory_size)``.
        lengths : Tensor
            Shape ``(B,)``: valid frames. An item without any attends to one frame of zeros.
        need_attention : bool, optional
            Whether to give the last layer's attention to the memory, averaged over its heads. By
            default in evaluation and not in training, where it is slower than the fused kernels.

        Raises
        ------
        ValueError
            If the memory is of another size.
        """
        need = not self.training if need_attention is None else need_attention
        return self._teach(tokens, token_lengths, self._project(memory, lengths), need)

    def start(self, memory: Tensor, lengths: Tensor) -> Start:
        """Project ``memory`` ``(B, T, memory_size)`` once and give one empty prefix each.

        Parameters
        ----------
        memory : Tensor
            Shape ``(B, T, memory_size)``.
        lengths : Tensor
            Shape ``(B,)``: valid frames.

        Raises
        ------
        ValueError
            If the memory is of another size.
        """
        layers, bias = self._project(memory, lengths)
        # Each step reads them whole: heads side by side once, instead of a copy at every step.
        kept = tuple(KeyValue(*(part.contiguous() for part in pair)) for pair in layers)
        state = empty_state(self.num_layers, len(memory), memory.device)
        return Start(DecoderMemory(kept, bias), state)

    def step(self, tokens: Tensor, fixed: DecoderMemory, state: TokenState) -> StepOutput:
        """Append ``tokens`` ``(B, K)`` to the prefixes and score what follows.

        ``attention`` is that of the last layer, averaged over its heads.
        """
        return self._step(tokens, fixed, state)

    def _project(self, memory: Tensor, lengths: Tensor) -> DecoderMemory:
        if memory.shape[-1] != self.memory_size:
            raise ValueError(
                f"the memory has {memory.shape[-1]} features, the decoder's memory_size is "
                f"{self.memory_size}"
            )
        memory = self.memory(mask_padding(memory, lengths))
        layers = tuple(layer.project_memory(memory) for layer in self.layers)  # type: ignore[operator]
        bias = attention_bias(lengths, memory.shape[1], None, layers[0].keys.dtype)
        return DecoderMemory(layers, bias)
