"""Arithmetic that gives the same integers on every machine, for any number of threads.

Integers are kept in floating point, where matrix products are fast, and every operation is one of:

- a sum or product of integers that stays below 2**24 (float32) or 2**53 (float64), hence exact in
  any order, fused or not;
- a single division, square root or rounding of float64, which IEEE 754 defines to the last bit.

No exponential, no logarithm, no reduction of rounded numbers. Exponentials are tables that are made
of Python's integers.
"""

from __future__ import annotations

from functools import cache
from math import isqrt

import numpy as np

from speechkit.coding.range_coder import TOTAL

ACTIVATION_MAX = 127
LOGIT_STEPS = 128  # steps of a logit in a factor of two
SCORE_STEPS = 256  # of a score of attention
_LOGIT_BITS = 20
_SCORE_BITS = 16
_PRECISION = 96  # bits of the tables while they are made


@cache
def exp2_table(steps: int, bits: int, octaves: int) -> np.ndarray:
    """Integers nearest to ``2**(bits - i / steps)`` for i from 0, and a zero at the end.

    Parameters
    ----------
    steps : int
        Entries for a factor of two, a power of two.
    bits : int
        The first entry is ``2**bits``.
    octaves : int
        Factors of two that the table spans.

    Returns
    -------
    np.ndarray
        Float64, ``steps * octaves + 1`` entries; read only.

    Examples
    --------
    >>> exp2_table(2, 4, 3).tolist()
    [16.0, 11.0, 8.0, 6.0, 4.0, 3.0, 0.0]
    """
    one = 1 << _PRECISION
    factor = one // 2  # 2**-1, then its root again and again: 2**(-1 / steps)
    for _ in range(steps.bit_length() - 1):
        factor = isqrt(factor << _PRECISION)
    values, power = [], one << bits
    for _ in range(steps * octaves):
        values.append((power + one // 2) >> _PRECISION)
        power = (power * factor) >> _PRECISION
    table = np.array([*values, 0], dtype=np.float64)
    table.setflags(write=False)
    return table


def quantize_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale each row to 8 bits by its largest value.

    Parameters
    ----------
    x : np.ndarray
        Shape ``(..., D)``, integers in float64 below 2**20.

    Returns
    -------
    tuple of np.ndarray
        Integers in [-127, 127] as float32, and the largest magnitude ``(..., 1)``, at least 1.

    Examples
    --------
    >>> row, peak = quantize_rows(np.array([[10.0, -20.0, 3.0]]))
    >>> row.tolist(), peak.tolist()
    ([[64.0, -127.0, 19.0]], [[20.0]])
    """
    peak = np.maximum(np.maximum(x.max(-1, keepdims=True), -x.min(-1, keepdims=True)), 1.0)
    return np.rint(x * ACTIVATION_MAX / peak).astype(np.float32), peak


def norm_factor(x: np.ndarray, peak: np.ndarray) -> np.ndarray:
    """Peak over root mean square, times 2**11: what a root-mean-square norm leaves to a row.

    Parameters
    ----------
    x : np.ndarray
        Shape ``(..., D)``, integers below 2**20, ``D`` at most 1040.
    peak : np.ndarray
        From `quantize_rows`.

    Examples
    --------
    >>> norm_factor(np.array([[300.0, -300.0]]), np.array([[300.0]])).tolist()
    [[2048.0]]
    """
    # below 2**40 * 1040, so exact; twice the root keeps a bit more of it
    power = np.square(x).sum(-1, keepdims=True)
    root = np.maximum(np.floor(np.sqrt(np.floor(power * 4.0 / x.shape[-1]))), 1.0)
    return np.floor(peak * 4096.0 / root)


def attention_weights(scores: np.ndarray) -> np.ndarray:
    """Weights ``2**16 * 2**((score - max) / 2**16)`` as integers, of scores along the last axis.

    Parameters
    ----------
    scores : np.ndarray
        Integers in float64, in units of 2**-16 of a factor of two; -inf where nothing is seen.

    Examples
    --------
    >>> attention_weights(np.array([0.0, -65536.0, -np.inf])).tolist()
    [65536.0, 32768.0, 0.0]
    """
    table = exp2_table(SCORE_STEPS, _SCORE_BITS, _SCORE_BITS + 1)
    behind = (scores.max(-1, keepdims=True) - scores) * (SCORE_STEPS / 65536.0)
    return table[np.minimum(behind, len(table) - 1.0).astype(np.int64)]


def cumulative_counts(logits: np.ndarray) -> np.ndarray:
    """Turn logits into 16-bit cumulative counts, every symbol with at least 1.

    Weights below 2**-16 of the sum are raised to where they get a count; then the cumulative sum is
    scaled to 65536 and rounded down.

    Parameters
    ----------
    logits : np.ndarray
        Shape ``(..., V)``, integers in float64, in units of 1/128 of a factor of two; V up to
        32768.

    Returns
    -------
    np.ndarray
        Shape ``(..., V + 1)``, uint32.

    Examples
    --------
    >>> cumulative_counts(np.array([0.0, 128.0, -9999.0])).tolist()
    [0, 21844, 65534, 65536]
    """
    num_symbols = logits.shape[-1]
    table = exp2_table(LOGIT_STEPS, _LOGIT_BITS, _LOGIT_BITS)
    behind = logits.max(-1, keepdims=True) - logits
    weights = table[np.minimum(behind, len(table) - 1.0).astype(np.int64)]
    # With e >= sum / (65536 - V) the raised sum S is at most sum + V e <= 65536 e: so each
    # weight is at least S / 65536, and each step of the rounded cumulative sum at least 1.
    least = np.floor(weights.sum(-1, keepdims=True) / (TOTAL - num_symbols)) + 1.0
    sums = np.cumsum(np.maximum(weights, least), axis=-1)
    counts = np.zeros((*logits.shape[:-1], num_symbols + 1), dtype=np.uint32)
    counts[..., 1:] = np.floor(sums * TOTAL / sums[..., -1:])  # below 2**52: the floor is exact
    return counts
