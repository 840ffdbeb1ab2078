"""Chunks of frames: how far attention may look so that an encoder can stream.

::

    chunk_size=2, left_chunks=1          keys  0 1 | 2 3 | 4 5
                                 query 0 or 1  x x | . . | . .
                                 query 2 or 3  x x | x x | . .
                                 query 4 or 5  . . | x x | x x
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_DRAWN_CHUNK = 25
"""Longest chunk that `draw_chunk_size` gives, in frames."""


def chunk_mask(
    num_frames: int, chunk_size: int, left_chunks: int | None, device: torch.device | None = None
) -> Tensor:
    """Mark what each frame may see: its own chunk and a number of chunks before it.

    Chen et al. 2021, "Developing real-time streaming Transformer Transducer for speech
    recognition on large-scale dataset", section 3.

    Parameters
    ----------
    num_frames : int
        Size ``T`` of the time axis.
    chunk_size : int
        Frames of a chunk.
    left_chunks : int, optional
        Chunks before a frame's own that it sees; None for all.
    device : torch.device, optional
        Of the result.

    Returns
    -------
    Tensor
        Shape ``(T, T)``, bool: True where the query (row) may see the key (column).

    Examples
    --------
    >>> chunk_mask(5, 2, 1).int().tolist()
    [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    """
    chunks = torch.arange(num_frames, device=device) // chunk_size
    distance = chunks.unsqueeze(1) - chunks  # (T, T): chunks from the key's to the query's
    seen = distance >= 0
    return seen if left_chunks is None else seen & (distance <= left_chunks)


def limit_to_chunks(
    attn_mask: Tensor | None,
    num_frames: int,
    chunk_size: int | None,
    left_chunks: int | None,
    device: torch.device,
) -> Tensor | None:
    """Join a mask ``(T, T)`` or ``(B, T, T)`` with that of the chunks; None limits nothing.

    Examples
    --------
    >>> limit_to_chunks(torch.eye(2).bool(), 2, 1, None, torch.device("cpu")).int().tolist()
    [[1, 0], [0, 1]]
    """
    if chunk_size is None:
        return attn_mask
    chunks = chunk_mask(num_frames, chunk_size, left_chunks, device)
    return chunks if attn_mask is None else attn_mask & chunks


def draw_chunk_size() -> int | None:
    """Draw the chunk size of a training batch, from torch's generator.

    Zhang et al. 2020, "Unified streaming and non-streaming two-pass end-to-end model for speech
    recognition", section 3.3: half of the batches see everything (None), the others a size of 1 to
    25 frames, all equally likely. The model then works with any chunk size, and without.

    Examples
    --------
    >>> sizes = [draw_chunk_size() for _ in range(400)]
    >>> 100 < sizes.count(None) < 300, all(1 <= s <= 25 for s in sizes if s is not None)
    (True, True)
    """
    drawn = int(torch.randint(2 * MAX_DRAWN_CHUNK, ())) + 1
    return drawn if drawn <= MAX_DRAWN_CHUNK else None


def check_chunks(chunk_size: int | None, left_chunks: int | None, dynamic_chunks: bool) -> None:
    """Refuse settings that make no sense.

    Raises
    ------
    ValueError
        If a number is too small, or the left context is limited where there are no chunks.

    Examples
    --------
    >>> check_chunks(16, 4, False)
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(
            f"chunk_size must be at least 1 frame, or None for no chunks: {chunk_size}"
        )
    if left_chunks is None:
        return
    if left_chunks < 0:
        raise ValueError(f"left_chunks must be at least 0, or None for all: {left_chunks}")
    if chunk_size is None and not dynamic_chunks:
        raise ValueError(f"left_chunks={left_chunks} needs chunks: give chunk_size too")
