"""What the entropy coder asks of a model, and the coding of whole blocks of codes with it.

The symbols of a block run frame by frame, in a frame codebook by codebook. The last ones of the
last frame, as many as fit into 16 bits, are not entropy-coded: written as one number, they are the
first state of the range coder, which has room for it that would otherwise be lost (see
`speechkit.coding.range_coder`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from speechkit.coding.range_coder import (
    TOTAL,
    RangeDecoder,
    StreamError,
    check_counts,
    encode_intervals,
    symbol_intervals,
)


class CodePredictor(ABC):
    """Gives, for each codebook, the exact counts of the next frame's code.

    A state belongs to ``N`` streams that advance together, frame by frame. The counts must be a
    function of the codes alone: the same on every machine, for any number of threads and streams.

    Attributes
    ----------
    num_codebooks : int
        The most codebooks that it predicts; it may be asked for fewer, the first ones.
    codebook_size : int
        Codes of each codebook, ``V``.
    """

    num_codebooks: int
    codebook_size: int

    @property
    @abstractmethod
    def digest(self) -> bytes:
        """Eight bytes that differ where the counts may differ."""

    @abstractmethod
    def start(self, num_streams: int = 1, num_codebooks: int | None = None) -> Any:
        """Return the state before the first frame.

        Parameters
        ----------
        num_streams : int
            Streams, ``N``.
        num_codebooks : int, optional
            Codebooks ``Q`` that the streams hold; all by default.
        """

    @abstractmethod
    def step(self, state: Any, codes: np.ndarray | None) -> np.ndarray:
        """Advance by a frame.

        Parameters
        ----------
        state : Any
            From `start`; it is changed.
        codes : np.ndarray, optional
            Shape ``(N, Q)``: the frame before the one to predict; None for the first.

        Returns
        -------
        np.ndarray
            Cumulative counts ``(N, Q, V + 1)``, uint32, from 0 to 65536.
        """

    def intervals(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the intervals of known codes: what encoding needs.

        Here step by step; a model that sees all frames at once overrides it.

        Parameters
        ----------
        codes : np.ndarray
            Shape ``(Q, T)``.

        Returns
        -------
        tuple of np.ndarray
            Starts and frequencies, int64, both ``(T, Q)``.
        """
        frames = np.ascontiguousarray(codes.T)
        state = self.start(1, codes.shape[0])
        pairs = [
            symbol_intervals(frame, self.step(state, frames[None, t - 1] if t else None)[0])
            for t, frame in enumerate(frames)
        ]
        empty = np.zeros((0, codes.shape[0]), dtype=np.int64)
        starts, frequencies = zip(*pairs) if pairs else ((), ())
        return (
            np.stack(starts) if pairs else empty,
            np.stack(frequencies) if pairs else empty,
        )


class FixedPredictor(CodePredictor):
    """The same counts for every frame: a histogram of each codebook.

    Parameters
    ----------
    counts : np.ndarray
        Cumulative counts ``(Q, V + 1)``.

    Examples
    --------
    >>> predictor = FixedPredictor(np.array([[0, 60000, 65536]]))
    >>> codes = np.zeros((1, 800), dtype=np.int64)
    >>> codes[0, ::8] = 1
    >>> len(encode_codes(codes, predictor))  # 100 * 3.57 + 700 * 0.127 bits = 56 bytes
    58
    """

    def __init__(self, counts: np.ndarray) -> None:
        counts = np.asarray(counts)
        check_counts(counts)
        if counts.ndim != 2:
            raise ValueError(f"counts must be (codebooks, symbols + 1), not {counts.shape}")
        self.table = counts.astype(np.uint32)
        self.num_codebooks, self.codebook_size = counts.shape[0], counts.shape[1] - 1

    @property
    def digest(self) -> bytes:
        """Eight bytes of the SHA-256 of the counts."""
        shape = np.array(self.table.shape, dtype="<u4").tobytes()
        return hashlib.sha256(shape + self.table.astype("<u4").tobytes()).digest()[:8]

    def start(self, num_streams: int = 1, num_codebooks: int | None = None) -> tuple[int, int]:
        """Keep the sizes, which is all that there is to keep."""
        return num_streams, num_codebooks or self.num_codebooks

    def step(self, state: tuple[int, int], codes: np.ndarray | None) -> np.ndarray:
        """Return the same counts again."""
        num_streams, num_codebooks = state
        counts = self.table[None, :num_codebooks]
        return np.repeat(counts, num_streams, axis=0)


def encode_codes(codes: np.ndarray, predictor: CodePredictor) -> bytes:
    """Encode a block of codes on its own: the model knows nothing of what was before.

    Parameters
    ----------
    codes : np.ndarray
        Shape ``(Q, T)``, integer, each in [0, codebook_size).
    predictor : CodePredictor
        Gives the probabilities.

    Returns
    -------
    bytes
        Empty for no frames.

    Raises
    ------
    ValueError
        For codes that the predictor does not have.
    """
    codes = check_codes(codes, predictor.num_codebooks, predictor.codebook_size)
    starts, frequencies = predictor.intervals(codes)
    if codes.shape[1] == 0:
        return b""
    tail = _tail(codes.shape[0], predictor.codebook_size)
    first_state = 0
    for code in codes[codes.shape[0] - tail :, -1].tolist():
        first_state = first_state * predictor.codebook_size + code
    return encode_intervals(
        starts.reshape(-1)[:-tail].tolist(), frequencies.reshape(-1)[:-tail].tolist(), first_state
    )


def _tail(num_codebooks: int, codebook_size: int) -> int:
    """Codes of the last frame that become the coder's first state."""
    tail = 1
    while tail < num_codebooks and codebook_size ** (tail + 1) <= TOTAL:
        tail += 1
    return tail


def decode_streams(
    streams: Sequence[bytes],
    num_frames: Sequence[int],
    num_codebooks: int,
    predictor: CodePredictor,
) -> list[np.ndarray | StreamError]:
    """Decode several blocks side by side, each made by `encode_codes`.

    Parameters
    ----------
    streams : sequence of bytes
        The blocks; decoding sixteen together takes much less time than one after the other.
    num_frames : sequence of int
        Frames of each.
    num_codebooks : int
        Codebooks ``Q`` of all.
    predictor : CodePredictor
        That of the encoder.

    Returns
    -------
    list of np.ndarray or StreamError
        Codes ``(Q, T)`` int64 of each block; the error in the place of one that is damaged.

    Examples
    --------
    >>> predictor = FixedPredictor(np.array([[0, 60000, 65536]]))
    >>> data = encode_codes(np.array([[0, 1, 0]]), predictor)
    >>> [block.tolist() for block in decode_streams([data], [3], 1, predictor)]
    [[[0, 1, 0]]]
    """
    results: dict[int, np.ndarray | StreamError] = {}
    blocks: list[_Block] = []
    for number, (stream, frames) in enumerate(zip(streams, num_frames)):
        try:
            codes = np.zeros((frames, num_codebooks), dtype=np.int64)
            blocks.append(_Block(number, RangeDecoder(stream), codes))
        except StreamError as error:
            results[number] = error
    tail = _tail(num_codebooks, predictor.codebook_size)
    state = predictor.start(len(blocks), num_codebooks) if blocks else None
    previous = None
    for t in range(max((len(block.codes) for block in blocks), default=0)):
        counts = predictor.step(state, previous)
        previous = np.zeros((len(blocks), num_codebooks), dtype=np.int64)
        for row, block in enumerate(blocks):
            if t < len(block.codes):
                coded = num_codebooks - tail * (t == len(block.codes) - 1)
                previous[row, :coded] = block.decoder.decode(counts[row, :coded])
                block.codes[t] = previous[row]
    for block in blocks:
        try:
            results[block.number] = block.finish(tail, predictor.codebook_size)
        except StreamError as error:
            results[block.number] = error
    return [results[number] for number in range(len(streams))]


class _Block(NamedTuple):
    """A stream that is being decoded, and its place among the others."""

    number: int
    decoder: RangeDecoder
    codes: np.ndarray  # (T, Q)

    def finish(self, tail: int, codebook_size: int) -> np.ndarray:
        """Get the last codes from the coder's first state, and return all of them ``(Q, T)``."""
        num_frames, num_codebooks = self.codes.shape
        state = self.decoder.finish(codebook_size**tail if num_frames else 1)
        for codebook in range(num_codebooks - 1, num_codebooks - 1 - tail, -1):
            state, self.codes[-1:, codebook] = divmod(state, codebook_size)
        return np.ascontiguousarray(self.codes.T)


def check_codes(codes: np.ndarray, num_codebooks: int, codebook_size: int) -> np.ndarray:
    """Return codes ``(Q, T)`` as int64, or say what is wrong with them.

    Parameters
    ----------
    codes : np.ndarray or Tensor
        Integer.
    num_codebooks : int
        The most codebooks.
    codebook_size : int
        Codes are below it.

    Raises
    ------
    ValueError
        If the shape, the type or a value is not as it should be.

    Examples
    --------
    >>> check_codes(np.array([[0, 9]]), 1, 8)
    Traceback (most recent call last):
    ...
    ValueError: codes must lie in [0, 8), but range from 0 to 9
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes are integers (codebooks, frames), not {codes.dtype} {codes.shape}")
    if not 1 <= codes.shape[0] <= num_codebooks:
        raise ValueError(
            f"codes have {codes.shape[0]} codebooks; 1 to {num_codebooks} are possible"
        )
    if codes.size and not (codes.min() >= 0 and codes.max() < codebook_size):
        raise ValueError(
            f"codes must lie in [0, {codebook_size}), but range from {codes.min()} to {codes.max()}"
        )
    return codes.astype(np.int64)
