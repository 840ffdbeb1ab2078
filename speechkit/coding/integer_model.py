"""Exact probabilities: a `CodeTransformer` evaluated in integers.

Floating-point sums depend on their order, and so on the number of threads, the batch and the
machine; a decoder whose probabilities differ in one count from the encoder's reads garbage from
there on. Here weights and the activations that they meet have 8 bits, what is between the layers
are integers too, and every operation is defined to the last bit: see
`speechkit.coding.integer_math`. So batch and step by step, any thread count and any machine that
follows IEEE 754 give the same counts.

=====================  ===========================================  ==========================
quantity               integer                                      unit
=====================  ===========================================  ==========================
sum of the layers      below 2**20, in float64                      2**-12 of the largest
                                                                    embedding, a power of two
weights                -127 to 127, in float32                      one for each output
activations            -127 to 127, in float32                      one for each frame
their sums             below 2**24, exact in float32
queries, keys, values  below 2**15, in float64                      2**-8
scores of attention    below 2**48, exact in float64                2**-16 of a factor of two
weights of attention   0 to 65536, from a table
logits                 in float64                                   2**-7 of a factor of two
counts                 1 to 65536
=====================  ===========================================  ==========================
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from speechkit.coding.code_transformer import CodeTransformer
from speechkit.coding.integer_math import (
    ACTIVATION_MAX,
    LOGIT_STEPS,
    attention_weights,
    cumulative_counts,
    norm_factor,
    quantize_rows,
)
from speechkit.coding.predictor import CodePredictor, check_codes
from speechkit.coding.range_coder import symbol_intervals

__all__ = ["CodeTransformer", "IntegerBlock", "IntegerCodeModel", "IntegerProduct"]

_LOG2_E = 1.4426950408889634  # a literal: the last bit of a computed one depends on the platform
_VALUE_UNIT = 2.0**-8
_VALUE_MAX = 2.0**15 - 1
_STREAM_MAX = 2.0**20 - 1
_NORM_UNIT = 2.0**-11  # of `norm_factor`
_EMBEDDING_BITS = 12
_MULTIPLIER_BITS = 12
_LOGIT_MAX = 2.0**24
_PART_FRAMES = 256
_BLOCK_FRAMES = 8  # frames whose counts are computed together: they stay in the cache


class IntegerProduct(NamedTuple):
    """An 8-bit matrix and what brings its sums to the unit of its output."""

    weight: np.ndarray  # (out, in) float32, integers
    multiplier: np.ndarray  # (out,) float64, integers below 2**12
    scale: float  # a power of two

    @classmethod
    def build(cls, weight: np.ndarray, unit: float) -> IntegerProduct:
        """Quantise ``(out, in)`` float64; ``unit`` is that of input over that of output."""
        peak = np.abs(weight).max(axis=1)
        step = np.where(peak > 0, peak, 1.0) / ACTIVATION_MAX
        factor = step * unit
        exponent = _MULTIPLIER_BITS - math.frexp(float(factor.max()))[1]
        multiplier = np.minimum(np.rint(factor * 2.0**exponent), 2.0**_MULTIPLIER_BITS - 1)
        matrix = np.rint(weight / step[:, None]).astype(np.float32)
        return cls(matrix, multiplier, 2.0**-exponent)

    def apply(self, rows: np.ndarray, factor: np.ndarray, size: int | None = None) -> np.ndarray:
        """Multiply 8-bit rows ``(..., in)``, each with a factor ``(..., 1)`` below 2**17."""
        # Two axes, for numpy would make one product of each stream; rows last is OpenBLAS's best.
        flat = rows.reshape(-1, rows.shape[-1])
        product = (self.weight[:size] @ flat.T).T  # below 2**24
        sums = product.astype(np.float64, order="C").reshape(
            *rows.shape[:-1], len(self.multiplier[:size])
        )
        sums *= factor  # below 2**41
        sums *= self.multiplier[:size]  # below 2**53
        sums *= self.scale
        return np.rint(sums, out=sums)


class IntegerBlock(NamedTuple):
    """The integers of a layer."""

    project_in: IntegerProduct
    distance_bias: np.ndarray  # (H, max_distance), float64
    project_out: IntegerProduct
    ffn_in: IntegerProduct
    ffn_out: IntegerProduct


@dataclass
class _Cache:
    """Keys and values of a layer, ``(N, H, capacity, D / H)``: grown by doubling."""

    keys: np.ndarray
    values: np.ndarray
    size: int = 0

    def append(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add frames, and return all."""
        end = self.size + keys.shape[2]
        if end > self.keys.shape[2]:
            capacity = max(end, 2 * self.keys.shape[2])
            self.keys, self.values = (_grow(old, capacity) for old in (self.keys, self.values))
        self.keys[:, :, self.size : end] = keys
        self.values[:, :, self.size : end] = values
        self.size = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def _grow(old: np.ndarray, capacity: int) -> np.ndarray:
    new = np.zeros((*old.shape[:2], capacity, old.shape[3]))
    new[:, :, : old.shape[2]] = old
    return new


@dataclass
class _State:
    """Where ``N`` streams stand."""

    num_streams: int
    num_codebooks: int
    caches: list[_Cache] = field(default_factory=list)


class IntegerCodeModel(CodePredictor):
    """The exact form of a trained `CodeTransformer`.

    Made by `from_float`. It is not trained, holds no torch objects, and its counts are the same
    everywhere; `digest` names them.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = CodeTransformer(num_codebooks=2, codebook_size=16, embed_dim=8, num_heads=2,
    ...                         ffn_dim=16, num_layers=1)
    >>> exact = IntegerCodeModel.from_float(model)
    >>> codes = np.array([[3, 5, 7], [0, 1, 2]])
    >>> counts = exact.counts(codes)
    >>> counts.shape, counts[0, 0, [0, -1]].tolist()
    ((3, 2, 17), [0, 65536])
    >>> state = exact.start()
    >>> steps = [exact.step(state, frame) for frame in (None, codes[None, :, 0], codes[None, :, 1])]
    >>> np.array_equal(np.concatenate(steps), counts)
    True
    """

    def __init__(
        self,
        *,
        num_codebooks: int,
        codebook_size: int,
        num_heads: int,
        embedding: np.ndarray,
        start: np.ndarray,
        blocks: list[IntegerBlock],
        head: IntegerProduct,
        head_bias: np.ndarray,
    ) -> None:
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.num_heads = num_heads
        self.embedding = embedding
        self.first_frame = start
        self.blocks = blocks
        self.head = head
        self.head_bias = head_bias
        self._digest = self._compute_digest()

    @classmethod
    def from_float(cls, model: CodeTransformer) -> IntegerCodeModel:
        """Round a model's weights.

        Parameters
        ----------
        model : CodeTransformer
            Trained, in float32 on any device.

        Raises
        ------
        ValueError
            If a weight is not finite.
        """
        weights = {
            name: value.detach().cpu().double().numpy()
            for name, value in model.state_dict().items()
        }
        bad = [name for name, value in weights.items() if not np.isfinite(value).all()]
        if bad:
            raise ValueError(f"weights that are not finite: {bad}; train the model again")
        embedding = weights["embedding.weight"]
        # of the largest value: a mean would depend on the order of the sum
        size = float(np.abs(embedding).max()) * math.sqrt(model.num_codebooks)
        unit = 2.0 ** (math.frexp(size)[1] - _EMBEDDING_BITS)
        norm = _NORM_UNIT / ACTIVATION_MAX
        return cls(
            num_codebooks=model.num_codebooks,
            codebook_size=model.codebook_size,
            num_heads=model.num_heads,
            embedding=_clipped(embedding / unit, _STREAM_MAX),
            start=_clipped(weights["start"] / unit, _STREAM_MAX),
            blocks=[
                _round_block(weights, f"blocks.{i}.", unit, model.embed_dim // model.num_heads)
                for i in range(model.num_layers)
            ],
            head=IntegerProduct.build(
                weights["head.weight"] * weights["norm.weight"],
                norm * LOGIT_STEPS * _LOG2_E,
            ),
            head_bias=_clipped(weights["head.bias"] * (LOGIT_STEPS * _LOG2_E), _LOGIT_MAX),
        )

    @property
    def digest(self) -> bytes:
        """Eight bytes of the SHA-256 of all integers."""
        return self._digest

    def _compute_digest(self) -> bytes:
        digest = hashlib.sha256(b"speechkit integer code model 1")
        sizes = (self.num_codebooks, self.codebook_size, self.num_heads)
        digest.update(np.array(sizes, dtype="<i8").tobytes())
        products = [self.head]
        arrays = [self.embedding, self.first_frame, self.head_bias]
        for block in self.blocks:
            products += [block.project_in, block.project_out, block.ffn_in, block.ffn_out]
            arrays.append(block.distance_bias)
        for product in products:
            exponent = np.array(math.frexp(product.scale)[1])
            arrays += [product.weight, product.multiplier, exponent]
        for array in arrays:
            digest.update(np.array((array.ndim, *array.shape), dtype="<i8").tobytes())
            digest.update(array.astype("<i8").tobytes())
        return digest.digest()[:8]

    def start(self, num_streams: int = 1, num_codebooks: int | None = None) -> _State:
        """Return the state before the first frame of ``N`` streams of ``Q`` codebooks.

        Raises
        ------
        ValueError
            If the model does not have so many codebooks.
        """
        Q = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= Q <= self.num_codebooks:
            raise ValueError(f"{Q} codebooks asked for; the model has {self.num_codebooks}")
        width = len(self.first_frame) // self.num_heads
        shape = (num_streams, self.num_heads, 64, width)
        caches = [_Cache(np.zeros(shape), np.zeros(shape)) for _ in self.blocks]
        return _State(num_streams, Q, caches)

    def step(self, state: _State, codes: np.ndarray | None) -> np.ndarray:
        """Advance by the frame ``(N, Q)``, and return the next one's counts ``(N, Q, V + 1)``."""
        if codes is None:
            x = np.repeat(self.first_frame[None], state.num_streams, axis=0)
        else:
            x = self._embed(codes)
        return self._counts(self._advance(state, x[:, None])[:, 0], state.num_codebooks)

    def counts(self, codes: np.ndarray) -> np.ndarray:
        """Return the counts of all frames at once, for codes ``(Q, T)``.

        Returns
        -------
        np.ndarray
            Shape ``(T, Q, V + 1)``, uint32: those that `step` gives one after the other.
        """
        hidden = self._hidden(codes)
        return self._counts(hidden, codes.shape[0])

    def intervals(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return starts and frequencies ``(T, Q)`` of known codes ``(Q, T)``."""
        hidden = self._hidden(codes)
        Q, T = codes.shape
        starts, frequencies = (np.zeros((T, Q), dtype=np.int64) for _ in range(2))
        for first in range(0, T, _BLOCK_FRAMES):
            block = slice(first, first + _BLOCK_FRAMES)
            counts = self._counts(hidden[block], Q)
            starts[block], frequencies[block] = symbol_intervals(codes.T[block], counts)
        return starts, frequencies

    def _embed(self, frames: np.ndarray) -> np.ndarray:
        """Sum the embeddings of frames ``(..., Q)``."""
        offsets = np.arange(frames.shape[-1]) * self.codebook_size
        return _clip(self.embedding[frames + offsets].sum(-2), _STREAM_MAX)

    def _hidden(self, codes: np.ndarray) -> np.ndarray:
        """Return the last layer's output ``(T, D)`` for codes ``(Q, T)``."""
        codes = check_codes(codes, self.num_codebooks, self.codebook_size)
        if codes.shape[1] == 0:
            return np.zeros((0, len(self.first_frame)))
        x = np.concatenate([self.first_frame[None], self._embed(codes.T[:-1])])[None]
        state = self.start(1, codes.shape[0])
        parts = [  # in parts, so that the scores of a long block stay small
            self._advance(state, x[:, first : first + _PART_FRAMES])
            for first in range(0, codes.shape[1], _PART_FRAMES)
        ]
        return np.concatenate(parts, axis=1)[0]

    def _advance(self, state: _State, x: np.ndarray) -> np.ndarray:
        """Run ``(N, T, D)`` through the layers, after what the caches hold."""
        for block, cache in zip(self.blocks, state.caches):
            heads = self._attend(block, cache, x)
            x = _clip(x + block.project_out.apply(*quantize_rows(heads)), _STREAM_MAX)
            hidden = block.ffn_in.apply(*_normalize(x))
            hidden = np.clip(hidden, 0.0, _VALUE_MAX)
            x = _clip(x + block.ffn_out.apply(*quantize_rows(hidden)), _STREAM_MAX)
        return x

    def _attend(self, block: IntegerBlock, cache: _Cache, x: np.ndarray) -> np.ndarray:
        N, T, D = x.shape
        qkv = _clip(block.project_in.apply(*_normalize(x)), _VALUE_MAX)
        qkv = qkv.reshape(N, T, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        keys, values = cache.append(qkv[1], qkv[2])  # (N, H, S, D / H)
        scores = qkv[0] @ keys.swapaxes(2, 3)  # below 2**30 * 1040: exact in float64
        scores += _distance_bias(block.distance_bias, T, cache.size)
        weights = attention_weights(scores)
        heads = weights @ values  # below 2**31 * S: exact for up to 2**21 frames
        heads = np.rint(heads / weights.sum(-1, keepdims=True))
        return heads.transpose(0, 2, 1, 3).reshape(N, T, D)

    def _counts(self, hidden: np.ndarray, num_codebooks: int) -> np.ndarray:
        """Return counts ``(R, Q, V + 1)`` of rows ``(R, D)``."""
        size = num_codebooks * self.codebook_size
        logits = self.head.apply(*_normalize(hidden), size) + self.head_bias[:size]
        return cumulative_counts(logits.reshape(len(hidden), num_codebooks, self.codebook_size))


def _clip(x: np.ndarray, limit: float) -> np.ndarray:
    return np.clip(x, -limit, limit, out=x)


def _clipped(x: np.ndarray, limit: float) -> np.ndarray:
    """Round to integers within the limit."""
    return _clip(np.rint(x), limit)


def _normalize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise rows, with the factor that a root-mean-square norm leaves to each."""
    rows, peak = quantize_rows(x)
    return rows, norm_factor(x, peak)


def _distance_bias(bias: np.ndarray, num_queries: int, num_keys: int) -> np.ndarray:
    """Bias ``(H, T, S)`` of the last T of S frames: -inf for what lies ahead."""
    distance = np.arange(num_keys - num_queries, num_keys)[:, None] - np.arange(num_keys)
    picked = bias[:, np.clip(distance, 0, bias.shape[1] - 1)]
    return np.where(distance >= 0, picked, -np.inf)


def _round_block(
    weights: dict[str, np.ndarray], name: str, unit: float, head_size: int
) -> IntegerBlock:
    """Make the integers of a layer; ``unit`` is that of the sum of the layers."""
    norm = _NORM_UNIT / ACTIVATION_MAX / _VALUE_UNIT
    project_in = weights[f"{name}project_in.weight"] * weights[f"{name}attention_norm.weight"]
    # scores are in factors of two, where torch's are in factors of e
    project_in[: len(project_in) // 3] *= _LOG2_E / math.sqrt(head_size)
    ffn_in = weights[f"{name}ffn_in.weight"] * weights[f"{name}ffn_norm.weight"]
    value = _VALUE_UNIT / ACTIVATION_MAX / unit
    bias = weights[f"{name}distance_bias"] * (_LOG2_E / _VALUE_UNIT**2)
    return IntegerBlock(
        project_in=IntegerProduct.build(project_in, norm),
        distance_bias=_clipped(bias, 2.0**30),
        project_out=IntegerProduct.build(weights[f"{name}project_out.weight"], value),
        ffn_in=IntegerProduct.build(ffn_in, norm),
        ffn_out=IntegerProduct.build(weights[f"{name}ffn_out.weight"], value),
    )
