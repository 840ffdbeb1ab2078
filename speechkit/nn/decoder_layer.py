"""One layer of a Transformer that writes one token after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from speechkit.nn.attention import (
    Attended,
    AttentionBias,
    KeyValue,
    MultiHeadAttention,
    attention_bias,
)
from speechkit.nn.dropout import Dropout
from speechkit.nn.transformer import Activation, FeedForward

_Extra = TypeVar("_Extra")
_NO_BIAS = AttentionBias(None, None)


class TransformerDecoderLayer(nn.Module):
    """Causal self-attention, attention to a memory, feed-forward; each a residual block.

    Vaswani et al. 2017, "Attention is all you need", section 3.1 (norm after the sum); Xiong et
    al. 2020, "On layer normalization in the Transformer architecture" (norm before the block).

    Parameters
    ----------
    embed_dim, num_heads, feedforward_size : int
        Features, attention heads, hidden features of the feed-forward block.
    dropout : float
        Probability of dropping attention weights, hidden values and each block's output.
    pre_norm : bool
        Whether the norm comes before each block instead of after the sum.
    activation : {"relu", "gelu", "silu"}
        Of the feed-forward block.
    cross_attention : bool
        Whether there is a memory to attend to; a language model has none.

    Examples
    --------
    >>> layer = TransformerDecoderLayer(embed_dim=8, num_heads=2, feedforward_size=16)
    >>> memory = layer.project_memory(torch.randn(2, 5, 8))
    >>> x, _ = layer(torch.randn(2, 3, 8), causal_bias(torch.randn(2, 3, 8)), memory)
    >>> x.shape
    torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        feedforward_size: int,
        dropout: float = 0.0,
        pre_norm: bool = True,
        activation: Activation = "relu",
        cross_attention: bool = True,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.feedforward_size = feedforward_size
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.activation = activation
        self.cross_attention = cross_attention
        self.attention = MultiHeadAttention(
            embed_dim=embed_dim, num_heads=num_heads, dropout=dropout
        )
        self.attention_norm = nn.LayerNorm(embed_dim)
        if cross_attention:
            self.memory_attention = MultiHeadAttention(
                embed_dim=embed_dim, num_heads=num_heads, dropout=dropout
            )
            self.memory_norm = nn.LayerNorm(embed_dim)
        self.feedforward = FeedForward(
            embed_dim=embed_dim,
            hidden_size=feedforward_size,
            dropout=dropout,
            activation=activation,
        )
        self.feedforward_norm = nn.LayerNorm(embed_dim)
        self.drop = Dropout(dropout)

    def project_memory(self, memory: Tensor) -> KeyValue:
        """Keys and values ``(B, H, T, D)`` of a memory ``(B, T, embed_dim)``."""
        return self.memory_attention.project_memory(memory)

    def forward(
        self,
        x: Tensor,
        seen: AttentionBias,
        memory: KeyValue | None = None,
        padding: AttentionBias = _NO_BIAS,
        *,
        extend: Callable[[KeyValue], KeyValue] | None = None,
        need_weights: bool = False,
    ) -> Attended:
        """Map the tokens of whole prefixes, or the next token of each of several prefixes.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, U, embed_dim)``; in a search ``(B, K, embed_dim)``, a token per prefix.
        seen : AttentionBias
            What each token may look back to, such as `causal_bias`.
        memory : KeyValue, optional
            From ``project_memory``.
        padding : AttentionBias
            Hides the padding of the memory.
        extend : callable, optional
            Puts the keys and values of ``x`` into a cache and gives those to look back to; by
            default they are those of ``x`` alone.
        need_weights : bool
            Whether to give the weights ``(B, H, U, T)`` over the memory.
        """

        def look_back(y: Tensor) -> tuple[Tensor, None]:
            query, pair = self.attention.project_self(y)
            pair = pair if extend is None else extend(pair)
            return self.attention.attend(query, pair, seen).output, None

        x, _ = self._block(x, self.attention_norm, look_back)
        weights = None
        if memory is not None:

            def look_up(y: Tensor) -> Attended:
                query = self.memory_attention.project_query(y)
                return self.memory_attention.attend(
                    query, memory, padding, need_weights=need_weights
                )

            x, weights = self._block(x, self.memory_norm, look_up)
        x, _ = self._block(x, self.feedforward_norm, lambda y: (self.feedforward(y), None))
        return Attended(x, weights)

    def _block(
        self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], tuple[Tensor, _Extra]]
    ) -> tuple[Tensor, _Extra]:
        output, extra = block(norm(x) if self.pre_norm else x)
        x = x + self.drop(output)
        return (x if self.pre_norm else norm(x)), extra


def causal_bias(x: Tensor) -> AttentionBias:
    """Let each of the ``U`` tokens of ``x`` ``(B, U, E)`` see itself and those before it.

    Examples
    --------
    >>> causal_bias(torch.zeros(1, 2, 4)).bias.tolist()
    [[[0.0, -inf], [0.0, 0.0]]]
    """
    size = x.shape[1]
    seen = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    return AttentionBias(attention_bias(None, size, seen, x.dtype).bias, None)  # none is blind
