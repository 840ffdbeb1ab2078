"""A range coder over 16-bit cumulative counts: symbols and their probabilities to bytes and back.

It is the range variant of asymmetric numeral systems (Duda 2013, "Asymmetric numeral systems:
entropy coding combining speed of Huffman coding with compression rate of arithmetic coding",
section 3): one integer below 2**48 holds everything that is not yet written, no carry can occur,
and decoding needs no division. A symbol with the counts ``[start, start + frequency)`` out of
2**16 turns the state ``x`` into ``(x // frequency) * 2**16 + start + x % frequency``.

The encoder runs over the symbols backwards, so that the decoder runs forwards: it asks for the
counts of a frame once the frames before it are decoded, which is what an autoregressive model
needs. A stream is the encoder's last state, then its 16-bit words, both big-endian::

    state (0 to 6 bytes, no leading zero)   word  word  word ...

As soon as there are words the state takes 5 or 6 bytes, and words come in pairs of bytes: so the
stream's length alone says where the state ends.

Overhead over the information of the given counts: at most 2.3e-5 bits a symbol, and at most 3 bytes
a stream. The state begins at 0, or at a small number that the decoder gets back at the end; that
number takes the place of most of the 3 bytes. A decoder that does not come back to a small number
had other counts than the encoder.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from speechkit.data.errors import DataError

TOTAL_BITS = 16
TOTAL = 1 << TOTAL_BITS
_LOW = 1 << 32  # once a word was written the state lies in [_LOW, 2**48)
_STATE_BYTES = 6


class StreamError(DataError):
    """Entropy-coded bytes that no encoder wrote, or counts that they were not made with."""


def check_counts(counts: np.ndarray) -> None:
    """Refuse what are not cumulative counts.

    Parameters
    ----------
    counts : np.ndarray
        Integer, shape ``(..., V + 1)``: from 0 to 65536, every symbol with a count of at least 1.

    Raises
    ------
    ValueError
        Where that is not so.

    Examples
    --------
    >>> check_counts(np.array([0, 1, 65536]))
    >>> check_counts(np.array([0, 5, 5, 65536]))
    Traceback (most recent call last):
    ...
    ValueError: cumulative counts must rise from 0 to 65536, each symbol by at least 1
    """
    if counts.shape[-1] < 2 or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"cumulative counts are integers (..., symbols + 1), not {counts.dtype} {counts.shape}"
        )
    ends = bool((counts[..., 0] == 0).all() and (counts[..., -1] == TOTAL).all())
    if not ends or not bool((np.diff(counts.astype(np.int64)) >= 1).all()):
        raise ValueError(
            f"cumulative counts must rise from 0 to {TOTAL}, each symbol by at least 1"
        )


def encode_intervals(
    starts: Sequence[int], frequencies: Sequence[int], first_state: int = 0
) -> bytes:
    """Encode symbols given by their intervals of the counts, in the order of decoding.

    Parameters
    ----------
    starts, frequencies : sequence of int
        Of each symbol: counts below it, and its own count (1 to 65536). Lists are fastest.
    first_state : int
        A number in [0, 65536) that `RangeDecoder.finish` gives back. It costs nothing where
        it has no more bits than the first count leaves free.

    Returns
    -------
    bytes
        A stream for `RangeDecoder`.

    Raises
    ------
    ValueError
        If the two do not have the same length, or the first state is out of its range.

    Examples
    --------
    >>> len(encode_intervals([0, 60000] * 200, [60000, 5536] * 200))  # 200 * 3.7 bits, 93 bytes
    94
    """
    if len(starts) != len(frequencies):
        raise ValueError(f"{len(starts)} starts, but {len(frequencies)} frequencies")
    if not 0 <= first_state < TOTAL:
        raise ValueError(f"the first state must lie in [0, {TOTAL}), not {first_state}")
    words = array("H")
    emit = words.append
    state = first_state
    for start, frequency in zip(reversed(starts), reversed(frequencies)):
        if state >= frequency << 32:
            emit(state & 0xFFFF)
            state >>= 16
        quotient, rest = divmod(state, frequency)
        state = (quotient << TOTAL_BITS) + start + rest
    words.reverse()
    if sys.byteorder == "little":
        words.byteswap()
    return state.to_bytes((state.bit_length() + 7) // 8, "big") + words.tobytes()


def encode_symbols(symbols: np.ndarray, counts: np.ndarray) -> bytes:
    """Encode symbols, each with counts of its own or all with the same.

    Parameters
    ----------
    symbols : np.ndarray
        Shape ``(N,)``, integer.
    counts : np.ndarray
        Shape ``(N, V + 1)`` or ``(V + 1,)``: see `check_counts`.

    Raises
    ------
    ValueError
        If a symbol is not in [0, V), or the counts are none.

    Examples
    --------
    >>> counts = np.array([0, 1, 65000, 65536])
    >>> data = encode_symbols(np.array([1, 1, 2, 0]), counts)
    >>> RangeDecoder(data).decode(np.tile(counts, (4, 1)))
    [1, 1, 2, 0]
    """
    symbols, counts = np.asarray(symbols), np.asarray(counts)
    check_counts(counts)
    num_symbols = counts.shape[-1] - 1
    if symbols.size and not (symbols.min() >= 0 and symbols.max() < num_symbols):
        raise ValueError(f"symbols must lie in [0, {num_symbols}), not {symbols}")
    starts, frequencies = symbol_intervals(symbols, counts)
    return encode_intervals(starts.tolist(), frequencies.tolist())


def symbol_intervals(symbols: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pick the interval of each symbol.

    Parameters
    ----------
    symbols : np.ndarray
        Integer, any shape ``(...)``.
    counts : np.ndarray
        Shape ``(..., V + 1)``, or ``(V + 1,)`` for all.

    Returns
    -------
    tuple of np.ndarray
        Starts and frequencies, int64, the shape of ``symbols``.

    Examples
    --------
    >>> starts, frequencies = symbol_intervals(np.array([0, 1]), np.array([0, 10, 65536]))
    >>> starts.tolist(), frequencies.tolist()
    ([0, 10], [10, 65526])
    """
    counts = np.broadcast_to(counts, (*symbols.shape, counts.shape[-1]))
    index = symbols[..., None].astype(np.int64)
    starts = np.take_along_axis(counts, index, -1)[..., 0].astype(np.int64)
    ends = np.take_along_axis(counts, index + 1, -1)[..., 0].astype(np.int64)
    return starts, ends - starts


class RangeDecoder:
    """Decodes one stream, as many symbols at a time as there are counts.

    Parameters
    ----------
    data : bytes
        What `encode_intervals` gave, all of it.

    Raises
    ------
    StreamError
        If no encoder ends in such a state.

    Examples
    --------
    >>> counts = np.array([[0, 30000, 65536]] * 2)
    >>> decoder = RangeDecoder(encode_symbols(np.array([1, 0]), counts))
    >>> decoder.decode(counts[:1]), decoder.decode(counts[1:])
    ([1], [0])
    >>> decoder.finish()
    0
    """

    def __init__(self, data: bytes) -> None:
        size = len(data)
        head = size if size <= _STATE_BYTES else _STATE_BYTES - size % 2
        if head and data[0] == 0:
            raise StreamError(
                "an entropy-coded stream cannot begin with a zero byte; it is damaged"
            )
        self._state = int.from_bytes(data[:head], "big")
        words = array("H", data[head:])
        if sys.byteorder == "little":
            words.byteswap()
        words.reverse()
        self._words = words  # the next one to read is the last

    def decode(self, counts: np.ndarray) -> list[int]:
        """Decode one symbol for each row of counts.

        Parameters
        ----------
        counts : np.ndarray
            Shape ``(M, V + 1)``: what the encoder used for these symbols. Not checked: see
            `check_counts`.

        Returns
        -------
        list of int
            The ``M`` symbols. A damaged stream gives some symbols too; `finish` tells.
        """
        flat = np.ascontiguousarray(counts, dtype=np.uint32).reshape(-1).data
        width = counts.shape[-1]
        state, words = self._state, self._words
        pop = words.pop
        symbols = []
        for first in range(0, len(flat), width):
            slot = state & 0xFFFF
            place = bisect_right(flat, slot, first + 1, first + width - 1) - 1
            start = flat[place]
            state = (flat[place + 1] - start) * (state >> TOTAL_BITS) + slot - start
            if state < _LOW and words:
                state = (state << 16) | pop()
            symbols.append(place - first)
        self._state = state
        return symbols

    def finish(self, limit: int = 1) -> int:
        """Make sure that what was decoded is what was encoded, no more and no less.

        Parameters
        ----------
        limit : int
            The encoder's first state was below it.

        Returns
        -------
        int
            The encoder's first state.

        Raises
        ------
        StreamError
            If it is not: the stream is damaged, or the counts were others.
        """
        if self._state >= limit or self._words:
            raise StreamError(
                "entropy-coded codes do not end where they should: they are damaged, or were made "
                "with other probabilities (another model)"
            )
        return self._state
