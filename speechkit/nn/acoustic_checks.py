"""What acoustic models of text to speech refuse to take."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechkit.nn.masking import length_mask


def check_symbols(tokens: Tensor, token_lengths: Tensor, num_symbols: int) -> None:
    """Refuse symbols that a model does not have, and items without any.

    Parameters
    ----------
    tokens : Tensor
        Shape ``(B, U)``, int64.
    token_lengths : Tensor
        Shape ``(B,)``: valid symbols.
    num_symbols : int
        Symbols of the model.

    Raises
    ------
    ValueError
        If a shape is wrong, an item has no symbol, or a symbol is not in ``0 .. num_symbols - 1``.

    Examples
    --------
    >>> check_symbols(torch.tensor([[1, 9]]), torch.tensor([1]), 5)  # 9 is padding
    >>> check_symbols(torch.tensor([[1, 9]]), torch.tensor([2]), 5)
    Traceback (most recent call last):
    ValueError: item 0: symbol 9 at 1 must lie in 0..4
    """
    if tokens.dim() != 2 or token_lengths.shape != (len(tokens),):
        raise ValueError(
            "tokens must be (B, U) and token_lengths (B,), got "
            f"{tuple(tokens.shape)} and {tuple(token_lengths.shape)}"
        )
    _check_lengths("symbols", token_lengths, tokens.shape[1])
    wrong = length_mask(token_lengths, tokens.shape[1]) & ((tokens < 0) | (tokens >= num_symbols))
    if bool(wrong.any()):
        item, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"item {item}: symbol {int(tokens[item, place])} at {place} must lie in "
            f"0..{num_symbols - 1}"
        )


def check_mels(mels: Tensor, mel_lengths: Tensor, batch_size: int, num_mels: int) -> None:
    """Refuse spectrograms of another shape than the model's, and items without a frame.

    Parameters
    ----------
    mels : Tensor
        Shape ``(B, T, num_mels)``.
    mel_lengths : Tensor
        Shape ``(B,)``: valid frames.
    batch_size, num_mels : int
        What is wanted.

    Raises
    ------
    ValueError
        If they disagree.

    Examples
    --------
    >>> check_mels(torch.zeros(1, 7, 80), torch.tensor([7]), 1, 80)
    >>> check_mels(torch.zeros(1, 7, 40), torch.tensor([7]), 1, 80)
    Traceback (most recent call last):
    ValueError: mels must be (1, T, 80), with mel_lengths (1,): got (1, 7, 40) and (1,)
    """
    right = mels.dim() == 3 and mels.shape[0] == batch_size and mels.shape[2] == num_mels
    if not right or mel_lengths.shape != (batch_size,):
        raise ValueError(
            f"mels must be ({batch_size}, T, {num_mels}), with mel_lengths ({batch_size},): got "
            f"{tuple(mels.shape)} and {tuple(mel_lengths.shape)}"
        )
    _check_lengths("frames", mel_lengths, mels.shape[1])


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not above zero and finite.

    Examples
    --------
    >>> check_positive("speed", 0.5)
    >>> check_positive("speed", 0)
    Traceback (most recent call last):
    ValueError: speed must be above zero and finite, not 0
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be above zero and finite, not {value}")


def _check_lengths(what: str, lengths: Tensor, size: int) -> None:
    wrong = (lengths < 1) | (lengths > size)
    if bool(torch.any(wrong)):
        item = int(wrong.nonzero()[0])
        raise ValueError(f"item {item} has {int(lengths[item])} {what}: from 1 to {size} can be")
