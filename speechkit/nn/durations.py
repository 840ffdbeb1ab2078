"""From symbols to frames and back, when it is known how many frames each symbol lasts."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.nn.masking import Padded, length_mask, mask_padding


def symbol_of_frame(durations: Tensor, num_frames: int) -> Tensor:
    """Say which symbol each frame belongs to.

    Parameters
    ----------
    durations : Tensor
        Shape ``(B, U)``, int64: frames of each symbol, zero in the padding.
    num_frames : int
        T.

    Returns
    -------
    Tensor
        Shape ``(B, T)``, int64; what lies beyond an item's frames means nothing, but is a valid
        index.

    Examples
    --------
    >>> symbol_of_frame(torch.tensor([[2, 0, 3]]), 5).tolist()
    [[0, 0, 2, 2, 2]]
    """
    ends = durations.cumsum(dim=1)
    frames = torch.arange(num_frames, device=durations.device).expand(len(ends), -1)
    index = torch.searchsorted(ends, frames.contiguous(), right=True)
    return index.clamp(max=durations.shape[1] - 1)


def expand_symbols(x: Tensor, durations: Tensor, num_frames: int | None = None) -> Padded:
    """Repeat each symbol's features for all of its frames: the length regulator.

    Ren et al. 2019, "FastSpeech: Fast, robust and controllable text to speech", section 3.2.

    Parameters
    ----------
    x : Tensor
        Shape ``(B, U, F)``.
    durations : Tensor
        Shape ``(B, U)``, int64: frames of each symbol, zero in the padding.
    num_frames : int, optional
        T of the result: by default as many as the longest item has.

    Returns
    -------
    Padded
        Data ``(B, T, F)``, zero in the padding, and the sums of the durations.

    Examples
    --------
    >>> x = torch.tensor([[[5.0], [7.0]]])
    >>> out = expand_symbols(x, torch.tensor([[2, 1]]))
    >>> out.data.flatten().tolist(), out.lengths.tolist()
    ([5.0, 5.0, 7.0], [3])
    """
    lengths = durations.sum(dim=1)
    if num_frames is None:
        num_frames = int(lengths.max()) if len(lengths) else 0
    index = symbol_of_frame(durations, num_frames)
    data = x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))
    return Padded(mask_padding(data, lengths), lengths)


def alignment_matrix(durations: Tensor, num_frames: int) -> Tensor:
    """Write durations as an alignment of zeros and ones.

    Parameters
    ----------
    durations : Tensor
        Shape ``(B, U)``, int64.
    num_frames : int
        T.

    Returns
    -------
    Tensor
        Shape ``(B, T, U)``, float32: 1 where the frame belongs to the symbol, zero in the padding.

    Examples
    --------
    >>> alignment_matrix(torch.tensor([[2, 1]]), 4)[0].int().tolist()
    [[1, 0], [1, 0], [0, 1], [0, 0]]
    """
    index = symbol_of_frame(durations, num_frames)
    matrix = torch.zeros(*index.shape, durations.shape[1], device=durations.device)
    matrix.scatter_(2, index.unsqueeze(2), 1.0)
    return mask_padding(matrix, durations.sum(dim=1))


def place_in_symbol(durations: Tensor, num_frames: int) -> Tensor:
    """Say where in its symbol each frame lies, and how long that symbol is.

    Parameters
    ----------
    durations : Tensor
        Shape ``(B, U)``, int64.
    num_frames : int
        T.

    Returns
    -------
    Tensor
        Shape ``(B, T, 2)``, float32: the middle of the frame as a share of the symbol, from -1
        (begin) to 1 (end), and the natural logarithm of the symbol's frames. Zero in the padding.

    Examples
    --------
    >>> place_in_symbol(torch.tensor([[1, 2]]), 3)[0, :, 0].tolist()
    [0.0, -0.5, 0.5]
    """
    index = symbol_of_frame(durations, num_frames)
    length = durations.gather(1, index).clamp(min=1).float()
    begin = (durations.cumsum(dim=1) - durations).gather(1, index)
    frames = torch.arange(num_frames, device=durations.device)
    share = 2 * (frames - begin + 0.5) / length - 1
    return mask_padding(torch.stack([share, length.log()], dim=2), durations.sum(dim=1))


def mean_over_symbols(values: Tensor, durations: Tensor) -> Tensor:
    """Average the values of each symbol's frames that have one.

    Łańcucki 2021, "FastPitch: Parallel text-to-speech with pitch prediction", section 2.

    Parameters
    ----------
    values : Tensor
        Shape ``(B, T)``; NaN where a frame has no value, such as the pitch where there is no
        voice.
    durations : Tensor
        Shape ``(B, U)``, int64.

    Returns
    -------
    Tensor
        Shape ``(B, U)``; zero where no frame of the symbol has a value.

    Examples
    --------
    >>> pitch = torch.tensor([[1.0, 3, float("nan"), 8, float("nan")]])
    >>> mean_over_symbols(pitch, torch.tensor([[3, 1, 1]])).tolist()
    [[2.0, 8.0, 0.0]]
    """
    index = symbol_of_frame(durations, values.shape[1])
    known = values.isfinite() & length_mask(durations.sum(dim=1), values.shape[1])
    sums = values.new_zeros(durations.shape)
    counts = values.new_zeros(durations.shape)
    sums.scatter_add_(1, index, values.masked_fill(~known, 0.0))
    counts.scatter_add_(1, index, known.to(values.dtype))
    return sums / counts.clamp(min=1)


def round_durations(frames: Tensor, token_lengths: Tensor) -> Tensor:
    """Turn fractional durations into whole ones without changing the whole item's.

    The ends of the symbols are rounded, not the durations, so that an item of a thousand symbols
    is off by half a frame at most. A symbol has at least one frame.

    Parameters
    ----------
    frames : Tensor
        Shape ``(B, U)``: frames of each symbol.
    token_lengths : Tensor
        Shape ``(B,)``: valid symbols.

    Returns
    -------
    Tensor
        Shape ``(B, U)``, int64; zero in the padding.

    Examples
    --------
    >>> round_durations(torch.tensor([[1.5, 1.5, 0.2, 4]]), torch.tensor([3])).tolist()
    [[2, 1, 1, 0]]
    """
    frames = mask_padding(frames.double().clamp(min=1.0), token_lengths)
    # floor(x + 0.5) keeps steps of at least one at least one; round to even does not.
    ends = (frames.cumsum(dim=1) + 0.5).floor().long()
    return torch.diff(ends, dim=1, prepend=torch.zeros_like(ends[:, :1]))
