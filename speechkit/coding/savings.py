"""What entropy coding saves: codes written, read back and counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from speechkit.coding.predictor import CodePredictor, decode_streams, encode_codes
from speechkit.coding.skc_layout import LAST_HEAD, RECORD_HEAD, SkcHeader

_STREAMS = 64  # decoded side by side


class BlockSize(NamedTuple):
    """How large a block of codes is.

    Attributes
    ----------
    packed_bytes : int
        Plainly packed.
    coded_bytes : int
        Entropy-coded.
    predictor_bits : float
        By the predictor's own probabilities: what an ideal coder would need with them.
    """

    packed_bytes: int
    coded_bytes: int
    predictor_bits: float


def measure_blocks(
    blocks: Sequence[np.ndarray], header: SkcHeader, predictor: CodePredictor
) -> list[BlockSize]:
    """Entropy-code blocks, decode them again and compare.

    Parameters
    ----------
    blocks : sequence of np.ndarray
        Codes ``(Q, T)`` each, coded on their own as the chunks of a file are.
    header : SkcHeader
        Of the file that they would be in: number and size of the codebooks.
    predictor : CodePredictor
        Gives the probabilities.

    Returns
    -------
    list of BlockSize
        Of each block.

    Raises
    ------
    RuntimeError
        If other codes come back than were written.

    Examples
    --------
    >>> from speechkit.coding.predictor import FixedPredictor
    >>> header = SkcHeader(sample_rate=8000, channels=1, num_codebooks=1, codebook_size=2,
    ...                    hop_length=80, model_id=bytes(8))
    >>> codes = np.zeros((1, 800), dtype=np.int64)
    >>> codes[0, ::8] = 1
    >>> sizes = measure_blocks([codes], header, FixedPredictor(np.array([[0, 60000, 65536]])))
    >>> [(size.packed_bytes, size.coded_bytes, round(size.predictor_bits / 8, 1)) for size in sizes]
    [(100, 58, 55.7)]
    """
    sizes = []
    for first in range(0, len(blocks), _STREAMS):
        part = blocks[first : first + _STREAMS]
        streams = [encode_codes(block, predictor) for block in part]
        decoded = decode_streams(
            streams, [block.shape[1] for block in part], header.num_codebooks, predictor
        )
        for block, stream, codes in zip(part, streams, decoded):
            if not isinstance(codes, np.ndarray) or not np.array_equal(codes, block):
                raise RuntimeError(
                    f"a block of {block.shape} codes does not come back as it was written by the "
                    f"predictor {predictor.digest.hex()}: {codes}"
                )
            _, frequencies = predictor.intervals(block)
            bits = math.fsum((16.0 - np.log2(frequencies.astype(np.float64))).reshape(-1).tolist())
            sizes.append(BlockSize(header.packed_size(block.shape[1]), len(stream), bits))
    return sizes


def file_size(header: SkcHeader, payloads: Sequence[int]) -> int:
    """Bytes of an ``.skc`` file without side bytes, from those of its chunks' codes.

    Parameters
    ----------
    header : SkcHeader
        Of the file; with an ``entropy_id`` it has eight bytes more.
    payloads : sequence of int
        Bytes of each chunk's codes; where packing plainly is shorter, a file does that.

    Examples
    --------
    >>> header = SkcHeader(sample_rate=16000, channels=1, num_codebooks=2, codebook_size=8,
    ...                    hop_length=320, model_id=b"a codec!")
    >>> file_size(header, [header.packed_size(50), header.packed_size(10)])
    90
    """
    return len(header.to_bytes()) + LAST_HEAD + sum(RECORD_HEAD + size for size in payloads)


def plain_file_size(header: SkcHeader, num_frames: int) -> int:
    """Bytes of an ``.skc`` file of so many frames, with plainly packed codes.

    Examples
    --------
    >>> header = SkcHeader(sample_rate=16000, channels=1, num_codebooks=2, codebook_size=8,
    ...                    hop_length=320, model_id=b"a codec!")
    >>> plain_file_size(header, 60)
    90
    """
    full, rest = divmod(num_frames, header.chunk_frames)
    chunks = [header.chunk_frames] * full + [rest] * (rest > 0)
    return file_size(header, [header.packed_size(n) + header.side_size for n in chunks])
