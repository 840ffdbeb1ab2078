"""Multi-head attention, with absolute and with relative positions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.dropout import dropout as drop_values
from speechkit.nn.masking import length_mask
from speechkit.nn.positional import relative_positions, relative_shift


class AttentionBias(NamedTuple):
    """What `attention_bias` gives.

    Attributes
    ----------
    bias : Tensor or None
        Broadcasts to ``(B, H, T, S)``: 0 where attention may go, -inf elsewhere.
    blind : Tensor or None
        Bool, broadcasts to ``(B, H, T, 1)``: queries that may see no key. Their bias is 0
        everywhere, so that nothing is NaN, and the caller zeroes what they get.
    """

    bias: Tensor | None
    blind: Tensor | None

    def zero_blind(self, heads: Tensor) -> Tensor:
        """Zero ``(B, H, T, D)`` where the query may see no key."""
        return heads if self.blind is None else heads.masked_fill(self.blind, 0.0)


class KeyValue(NamedTuple):
    """What queries attend to: keys and values of each head, both ``(B, H, S, D)``."""

    keys: Tensor
    values: Tensor


class Attended(NamedTuple):
    """What attention gives.

    Attributes
    ----------
    output : Tensor
        Shape ``(B, T, embed_dim)``.
    weights : Tensor or None
        Shape ``(B, H, T, S)``, before dropout; None where they were not asked for.
    """

    output: Tensor
    weights: Tensor | None


def attention_bias(
    lengths: Tensor | None, num_keys: int, attn_mask: Tensor | None, dtype: torch.dtype
) -> AttentionBias:
    """Turn lengths and a boolean mask into what is added to the scores.

    Parameters
    ----------
    lengths : Tensor, optional
        Shape ``(B,)``: valid keys. An empty item keeps its first key, so that nothing is NaN.
    num_keys : int
        Size ``S`` of the key axis.
    attn_mask : Tensor, optional
        Bool, shape ``(T, S)`` or ``(B, T, S)``: True where a query may see a key.
    dtype : torch.dtype
        Of the result.

    Raises
    ------
    ValueError
        If ``attn_mask`` is not bool.

    Examples
    --------
    >>> attention_bias(torch.tensor([1]), 2, None, torch.float32).bias.tolist()
    [[[[0.0, -inf]]]]
    """
    allowed = blind = None
    if lengths is not None:
        allowed = length_mask(lengths.clamp(min=1), num_keys)[:, None, None]  # (B, 1, 1, S)
    if attn_mask is not None:
        if attn_mask.dtype != torch.bool:
            raise ValueError(f"attn_mask must be bool (True: may be seen), not {attn_mask.dtype}")
        seen = attn_mask.unsqueeze(-3)  # (B or nothing, 1, T, S)
        allowed = seen if allowed is None else allowed & seen
        blind = ~allowed.any(dim=-1, keepdim=True)
        allowed = allowed | blind
    if allowed is None:
        return AttentionBias(None, None)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return AttentionBias(bias.masked_fill_(~allowed, -math.inf), blind)


def _check_heads(embed_dim: int, num_heads: int) -> None:
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"embed_dim {embed_dim} does not divide into {num_heads} heads")


class MultiHeadAttention(nn.Module):
    """Attention of several heads over one sequence, or over a memory.

    Vaswani et al. 2017, "Attention is all you need", section 3.2; computed by
    `torch.nn.functional.scaled_dot_product_attention`.

    Parameters
    ----------
    embed_dim : int
        Features per frame, ``num_heads`` times the size of a head.
    num_heads : int
        Heads.
    dropout : float
        Probability of dropping an attention weight.
    bias : bool
        Whether the projections have biases.

    Raises
    ------
    ValueError
        If the heads do not divide the features.

    Examples
    --------
    >>> attention = MultiHeadAttention(embed_dim=16, num_heads=4)
    >>> x = torch.randn(2, 5, 16)
    >>> attention(x, torch.tensor([5, 3])).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, *, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        _check_heads(embed_dim, num_heads)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.bias = bias
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        _reset_projections(self.in_proj, self.out_proj)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        memory: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from each frame of ``x`` to the frames of ``x``, or of ``memory``.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, T, embed_dim)``.
        lengths : Tensor, optional
            Shape ``(B,)``: valid frames of what is attended to.
        memory : Tensor, optional
            Shape ``(B, S, embed_dim)``: what is attended to, ``x`` by default.
        attn_mask : Tensor, optional
            Bool, ``(T, S)`` or ``(B, T, S)``: True where a query may see a key. A query that
            may see none gives zeros before the output projection.

        Returns
        -------
        Tensor
            Shape ``(B, T, embed_dim)``.
        """
        if memory is None:
            query, pair = self.project_self(x)
        else:
            query, pair = self.project_query(x), self.project_memory(memory)
        mask = attention_bias(lengths, pair.keys.shape[-2], attn_mask, query.dtype)
        return self.attend(query, pair, mask).output

    def project_self(self, x: Tensor) -> tuple[Tensor, KeyValue]:
        """Return queries ``(B, H, T, D)``, keys and values of ``x`` ``(B, T, embed_dim)``."""
        query, keys, values = _split_heads(self.in_proj(x), 3, self.num_heads)
        return query, KeyValue(keys, values)

    def project_query(self, x: Tensor) -> Tensor:
        """Return queries ``(B, H, T, D)`` of ``x`` ``(B, T, embed_dim)``."""
        weight, bias = self.in_proj.weight[: self.embed_dim], self.in_proj.bias
        query = F.linear(x, weight, bias[: self.embed_dim] if self.bias else None)
        return _split_heads(query, 1, self.num_heads)[0]

    def project_memory(self, memory: Tensor) -> KeyValue:
        """Return keys and values ``(B, H, S, D)`` of a memory ``(B, S, embed_dim)``."""
        weight, bias = self.in_proj.weight[self.embed_dim :], self.in_proj.bias
        pair = F.linear(memory, weight, bias[self.embed_dim :] if self.bias else None)
        return KeyValue(*_split_heads(pair, 2, self.num_heads))

    def attend(
        self, query: Tensor, pair: KeyValue, mask: AttentionBias, *, need_weights: bool = False
    ) -> Attended:
        """Attend with projected queries ``(B, H, T, D)`` to projected keys and values.

        Parameters
        ----------
        query, pair : Tensor, KeyValue
            From ``project_self``, or from ``project_query`` and ``project_memory``.
        mask : AttentionBias
            From `attention_bias`.
        need_weights : bool
            Whether to give the weights; the fused kernels cannot.
        """
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights or (query.device.type == "cpu" and rate):  # there nothing is fused
            scores = torch.matmul(query * query.shape[-1] ** -0.5, pair.keys.transpose(-2, -1))
            heads, weights = _weigh(scores, pair.values, mask.bias, rate)
        else:
            heads = F.scaled_dot_product_attention(query, *pair, mask.bias, rate)
        output = self.out_proj(_join_heads(mask.zero_blind(heads)))
        return Attended(output, weights if need_weights else None)


class RelPosMultiHeadAttention(nn.Module):
    """Self-attention that knows how far apart two frames are, not where they are.

    Dai et al. 2019, "Transformer-XL", section 3.3, as used in the Conformer. With the query
    ``q_i``, key ``k_j`` and the projected embedding ``r`` of an offset::

        score(i, j) = ((q_i + u) . k_j + (q_i + v) . r_{i-j}) / sqrt(head size)

    Parameters
    ----------
    embed_dim : int
        Features per frame, ``num_heads`` times the size of a head.
    num_heads : int
        Heads.
    dropout : float
        Probability of dropping an attention weight.
    bias : bool
        Whether the projections of query, key, value and output have biases.

    Raises
    ------
    ValueError
        If the heads do not divide the features.

    Examples
    --------
    >>> attention = RelPosMultiHeadAttention(embed_dim=16, num_heads=4)
    >>> x = torch.randn(2, 5, 16)
    >>> attention(x, torch.tensor([5, 3])).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, *, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        _check_heads(embed_dim, num_heads)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.bias = bias
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.pos_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.content_bias = nn.Parameter(torch.empty(num_heads, embed_dim // num_heads))  # u
        self.position_bias = nn.Parameter(torch.empty(num_heads, embed_dim // num_heads))  # v
        _reset_projections(self.in_proj, self.out_proj)
        nn.init.xavier_uniform_(self.pos_proj.weight)
        nn.init.xavier_uniform_(self.content_bias)
        nn.init.xavier_uniform_(self.position_bias)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from each frame to all frames.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, T, embed_dim)``.
        lengths : Tensor, optional
            Shape ``(B,)``: valid frames.
        positions : Tensor, optional
            Shape ``(2 T - 1, embed_dim)``, from `relative_positions`; made here if not given.
        attn_mask : Tensor, optional
            Bool, ``(T, T)`` or ``(B, T, T)``: True where a query may see a key. A query that may
            see none gives zeros before the output projection.

        Returns
        -------
        Tensor
            Shape ``(B, T, embed_dim)``.
        """
        num_frames = x.shape[1]
        if positions is None:
            positions = relative_positions(num_frames, self.embed_dim, x.device)
        query, key, value = _split_heads(self.in_proj(x), 3, self.num_heads)  # (B, H, T, D)
        (offsets,) = _split_heads(self.pos_proj(positions)[None], 1, self.num_heads)  # (1, H, R, D)
        scale = query.shape[-1] ** -0.5
        # The scale goes into the queries, T x D values, not into the T x T scores.
        by_offset = ((query + self.position_bias[:, None]) * scale).to(key.dtype)
        by_content = ((query + self.content_bias[:, None]) * scale).to(key.dtype)
        bias = relative_shift(torch.matmul(by_offset, offsets.transpose(-2, -1)))  # (B, H, T, T)
        mask = attention_bias(lengths, num_frames, attn_mask, bias.dtype)
        rate = self.dropout if self.training else 0.0
        if query.device.type == "cpu" and (self.training or torch.is_grad_enabled()):
            # No fused kernel gives the bias a gradient on a CPU, so nothing is lost by writing
            # the scores out, and the product can be accumulated onto the bias in one pass.
            scores = torch.baddbmm(
                bias.flatten(0, 1), by_content.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
            ).view(bias.shape)
            heads, _ = _weigh(scores, value, mask.bias, rate)
        else:
            bias = bias if mask.bias is None else bias + mask.bias
            heads = F.scaled_dot_product_attention(by_content, key, value, bias, rate, scale=1.0)
        return self.out_proj(_join_heads(mask.zero_blind(heads)))


def _reset_projections(in_proj: nn.Linear, out_proj: nn.Linear) -> None:
    nn.init.xavier_uniform_(in_proj.weight)
    for linear in (in_proj, out_proj):
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


def _split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """``(B, T, parts * E)`` to ``parts`` tensors ``(B, H, T, E / H)``."""
    shape = (*x.shape[:2], parts, num_heads, x.shape[-1] // (parts * num_heads))
    return x.view(shape).permute(2, 0, 3, 1, 4).unbind(0)


def _join_heads(heads: Tensor) -> Tensor:
    """``(B, H, T, D)`` to ``(B, T, H * D)``."""
    return heads.transpose(1, 2).flatten(2)


def _weigh(
    scores: Tensor, value: Tensor, bias: Tensor | None, rate: float
) -> tuple[Tensor, Tensor]:
    """Mask, normalise and drop the scores, and sum the values with them; also the weights."""
    if bias is not None:
        scores = scores.add_(bias)
    weights = scores.softmax(dim=-1)
    return torch.matmul(drop_values(weights, rate).to(value.dtype), value), weights
