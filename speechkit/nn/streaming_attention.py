"""Chunked Transformer and Conformer encoders as streams; see `speechkit.nn.streaming`.

A chunk attends to itself and to the keys and values that are remembered of the chunks before it,
which is what `speechkit.nn.chunks.chunk_mask` lets the offline encoder see.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.nn.attention import MultiHeadAttention, RelPosMultiHeadAttention
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.positional import sinusoids
from speechkit.nn.stream import Stream, open_stream
from speechkit.nn.transformer import TransformerEncoder


class _Memory:
    """Keys and values of the frames before a chunk, ``(B, H, L, D)``: the last ``limit``."""

    def __init__(self, limit: int | None, empty: Tensor) -> None:
        self.limit = limit
        self.keys = self.values = empty

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Give what the chunk may see, itself included, and remember it for the next one."""
        keys = torch.cat([self.keys, keys], dim=2)
        values = torch.cat([self.values, values], dim=2)
        first = 0 if self.limit is None else max(0, keys.shape[2] - self.limit)
        self.keys, self.values = keys[:, :, first:], values[:, :, first:]
        return keys, values


def _split(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """``(B, T, parts * E)`` to ``parts`` tensors ``(B, H, T, E / H)``."""
    return x.unflatten(2, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _attend(attention: MultiHeadAttention, x: Tensor, memory: _Memory) -> Tensor:
    query, key, value = _split(attention.in_proj(x), 3, attention.num_heads)
    heads = F.scaled_dot_product_attention(query, *memory.extend(key, value))
    return attention.out_proj(heads.transpose(1, 2).flatten(2))


def _attend_relative(
    attention: RelPosMultiHeadAttention, x: Tensor, memory: _Memory, positions: Tensor
) -> Tensor:
    """Attend with positions ``(S + t - 1, E)`` of the offsets ``S - 1`` to ``-(t - 1)``."""
    query, key, value = _split(attention.in_proj(x), 3, attention.num_heads)
    (offsets,) = _split(attention.pos_proj(positions)[None], 1, attention.num_heads)
    scale = query.shape[-1] ** -0.5
    by_offset = (query + attention.position_bias[:, None]) * scale
    by_content = (query + attention.content_bias[:, None]) * scale
    keys, values = memory.extend(key, value)
    bias = _shift(torch.matmul(by_offset, offsets.transpose(-2, -1)), keys.shape[2])
    heads = F.scaled_dot_product_attention(by_content, keys, values, bias, scale=1.0)
    return attention.out_proj(heads.transpose(1, 2).flatten(2))


def _shift(scores: Tensor, num_keys: int) -> Tensor:
    """Turn scores by offset ``(..., t, S + t - 1)`` into scores by key ``(..., t, S)``.

    `speechkit.nn.positional.relative_shift` for fewer queries than keys: query ``i`` (of the last
    ``t`` frames) and key ``j`` meet in column ``t - 1 - i + j``.
    """
    rows, width = scores.shape[-2:]
    if rows == 1:
        return scores
    flat = scores.flatten(-2)[..., rows - 1 : rows - 1 + rows * (width - 1)]
    return flat.unflatten(-1, (rows, width - 1))[..., :num_keys]


class _ChunkedStream(Stream):
    """Collects frames into chunks; what becomes of a chunk is the subclass's."""

    module: TransformerEncoder | ConformerEncoder

    def __init__(self, module: TransformerEncoder | ConformerEncoder, batch_size: int) -> None:
        super().__init__(module, batch_size)
        if module.chunk_size is None:
            how = "set encoder.chunk_size" if module.dynamic_chunks else "train one with chunk_size"
            raise ValueError(
                f"{type(module).__name__} attends to the whole recording (chunk_size=None) and "
                f"cannot stream; {how} (frames that a stream waits for) and left_chunks"
            )
        self.chunk_size = module.chunk_size
        self.lookahead = self.chunk_size - 1
        limit = None if module.left_chunks is None else module.left_chunks * self.chunk_size
        empty = self._zeros(module.num_heads, 0, module.embed_dim // module.num_heads)
        self.memories = [_Memory(limit, empty) for _ in module.layers]
        self.waiting = self._zeros(0, module.input_size)

    def _take(self, frames: Tensor) -> Tensor:
        joined = torch.cat([self.waiting, frames.to(self.waiting.dtype)], dim=1)
        whole = joined.shape[1] // self.chunk_size * self.chunk_size
        self.waiting = joined[:, whole:].clone()  # not a view, which would keep all of it
        chunks = joined[:, :whole].split(self.chunk_size, dim=1) if whole else ()
        return torch.cat([self._nothing(None), *map(self._encode, chunks)], dim=1)

    def _end(self) -> Tensor:
        return self._encode(self.waiting) if self.waiting.shape[1] else self._nothing(None)

    @abstractmethod
    def _encode(self, chunk: Tensor) -> Tensor:
        """Map the frames of the next chunk, ``(B, t, input_size)``, to the outputs."""


class _TransformerStream(_ChunkedStream):
    module: TransformerEncoder

    def __init__(self, module: TransformerEncoder, batch_size: int) -> None:
        super().__init__(module, batch_size)
        self.position = 0

    def _encode(self, chunk: Tensor) -> Tensor:
        places = torch.arange(self.position, self.position + chunk.shape[1], device=chunk.device)
        self.position += chunk.shape[1]
        x = self.module.input(chunk) + sinusoids(places, self.module.embed_dim)
        for index in range(len(self.memories)):
            x = self._layer(index, x)
        return self.module.norm(x)

    def _layer(self, index: int, x: Tensor) -> Tensor:
        layer: Any = self.module.layers[index]
        out: Tensor = layer.run_blocks(
            x, lambda y: _attend(layer.attention, y, self.memories[index])
        )
        return out


@open_stream.register
def _open_transformer(module: TransformerEncoder, batch_size: int = 1) -> Stream:
    return _TransformerStream(module, batch_size)


class _ConformerStream(_ChunkedStream):
    module: ConformerEncoder

    def __init__(self, module: ConformerEncoder, batch_size: int) -> None:
        super().__init__(module, batch_size)
        if not module.causal:
            raise ValueError(
                "ConformerEncoder(causal=False) has convolutions that look ahead and cannot "
                "stream; train one with causal=True"
            )
        self.tails = [self._zeros(module.kernel_size - 1, module.embed_dim) for _ in module.layers]

    def _encode(self, chunk: Tensor) -> Tensor:
        num_queries = chunk.shape[1]
        num_keys = self.memories[0].keys.shape[2] + num_queries if self.memories else num_queries
        offsets = torch.arange(num_keys - 1, -num_queries, -1, device=chunk.device)
        positions = sinusoids(offsets, self.module.embed_dim).to(chunk.dtype)
        x = self.module.input(chunk)
        for index in range(len(self.tails)):
            x = self._layer(index, x, positions)
        return x

    def _layer(self, index: int, x: Tensor, positions: Tensor) -> Tensor:
        layer: Any = self.module.layers[index]

        def attend(y: Tensor) -> Tensor:
            return _attend_relative(layer.attention, y, self.memories[index], positions)

        def convolve(y: Tensor) -> Tensor:
            out, self.tails[index] = layer.conv.step(y, self.tails[index])
            return out

        out: Tensor = layer.run_blocks(x, attend, convolve)
        return out


@open_stream.register
def _open_conformer(module: ConformerEncoder, batch_size: int = 1) -> Stream:
    return _ConformerStream(module, batch_size)
