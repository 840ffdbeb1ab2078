"""Attention that knows where it looked: the alignment of Tacotron 2.

The filters see two rows over the symbols, the last weights and the sum of all so far, so that the
next step can move on from where it was and keep away from what has been said.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.masking import length_mask, mask_padding
from speechkit.nn.shared_matrix import Matrix, product, share

_FLOOR = 1e-8


class AttendedMemory(NamedTuple):
    """What the steps of one utterance share.

    Attributes
    ----------
    keys : Tensor
        Shape ``(B, U, A)``: twice the projected memory.
    values : Tensor or SharedMatrix
        Shape ``(B, U, C)``, zero in the padding: what is averaged.
    padding : Tensor
        Shape ``(B, U)``, bool: True beyond the lengths.
    query : Tensor or SharedMatrix
        Shape ``(H, A)``: twice the projection of queries.
    location : Tensor or SharedMatrix
        Shape ``(2 K, A)``: twice what a window of both rows adds.
    """

    keys: Tensor
    values: Matrix
    padding: Tensor
    query: Matrix
    location: Matrix


class AttentionState(NamedTuple):
    """Where the steps so far looked.

    Attributes
    ----------
    previous : Tensor
        Shape ``(B, U)``: weights of the last step, zero before the first.
    total : Tensor
        Shape ``(B, U)``: sum of the weights of all steps.
    """

    previous: Tensor
    total: Tensor


class Attended(NamedTuple):
    """One step of attention.

    Attributes
    ----------
    context : Tensor
        Shape ``(B, C)``.
    weights : Tensor
        Shape ``(B, U)``, non-negative, sum 1, zero in the padding.
    state : AttentionState
        For the next step.
    """

    context: Tensor
    weights: Tensor
    state: AttentionState


class LocationAttention(nn.Module):
    """Location-sensitive attention over the symbols of a text.

    Chorowski et al. 2015, eq. 8-9, as Shen et al. 2018 (Tacotron 2) and its known implementations
    use it: ``e = v . tanh(W s + V h + U f)``, ``f = F * (a', sum of a')``, weights ``softmax(e)``.

    Parameters
    ----------
    memory_size : int
        Features of the memory's positions.
    query_size : int
        Features of a query.
    attention_size : int
        Hidden units.
    channels : int
        Filters over the two rows of earlier weights.
    kernel_size : int
        Symbols that a filter sees; odd.

    Raises
    ------
    ValueError
        If ``kernel_size`` is not odd.

    Examples
    --------
    >>> attention = LocationAttention(memory_size=6, query_size=4, attention_size=8)
    >>> fixed = attention.fix(torch.randn(2, 5, 6), torch.tensor([5, 3]))
    >>> out = attention(torch.randn(2, 4), fixed, attention.start(fixed))
    >>> out.context.shape, torch.allclose(out.weights.sum(-1), torch.ones(2))
    (torch.Size([2, 6]), True)
    >>> out.weights[1, 3:].tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        *,
        memory_size: int,
        query_size: int,
        attention_size: int = 128,
        channels: int = 32,
        kernel_size: int = 31,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {kernel_size}")
        self.memory_size = memory_size
        self.query_size = query_size
        self.attention_size = attention_size
        self.channels = channels
        self.kernel_size = kernel_size
        self.query = nn.Linear(query_size, attention_size, bias=False)
        self.key = nn.Linear(memory_size, attention_size, bias=False)
        self.filters = nn.Conv1d(2, channels, kernel_size, bias=False)
        self.location = nn.Linear(channels, attention_size, bias=False)
        self.energy = nn.Linear(attention_size, 1, bias=False)
        for layer in (self.query, self.key, self.location):
            nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))
        nn.init.xavier_uniform_(self.filters.weight)
        nn.init.xavier_uniform_(self.energy.weight)

    def fix(self, memory: Tensor, lengths: Tensor) -> AttendedMemory:
        """Project a memory ``(B, U, memory_size)`` once for all steps.

        Raises
        ------
        ValueError
            If an item has no position to look at.
        """
        if memory.shape[1] == 0 or bool((lengths < 1).any()):
            raise ValueError(f"attention needs a symbol in each item; lengths: {lengths.tolist()}")
        memory = mask_padding(memory, lengths)
        # Filters and projection are linear: one matrix for both, (A, F) x (F, 2 K).
        location = 2 * self.location.weight @ self.filters.weight.flatten(1)
        return AttendedMemory(
            keys=2 * self.key(memory),
            values=share(memory),
            padding=~length_mask(lengths, memory.shape[1]),
            query=share(2 * self.query.weight.T),
            location=share(location.T),
        )

    def start(self, fixed: AttendedMemory) -> AttentionState:
        """State before the first step: nothing was looked at."""
        zeros = torch.zeros(fixed.padding.shape, device=fixed.padding.device)
        return AttentionState(zeros, zeros)

    def forward(
        self,
        query: Tensor,
        fixed: AttendedMemory,
        state: AttentionState,
        *,
        forward_only: bool = False,
    ) -> Attended:
        """Take one step.

        Parameters
        ----------
        query : Tensor
            Shape ``(B, query_size)``.
        fixed : AttendedMemory
            What `fix` gave.
        state : AttentionState
            Of the previous step.
        forward_only : bool
            Forward attention (Zhang et al. 2018, eq. 6-8): weights
            ``a(n) = (a'(n) + a'(n-1)) softmax(e)(n)`` over their sum, beginning at the first
            symbol, so that each step stays or goes one symbol on.
        """
        hidden = product(self._windows(state), fixed.location) + fixed.keys
        hidden = hidden + product(query.unsqueeze(1), fixed.query)
        # tanh(x) = 2 sigmoid(2 x) - 1, which a CPU has in a fifth of the time; a softmax does not
        # see the constant.
        energies = (hidden.sigmoid() @ (2 * self.energy.weight[0])).float()
        energies = energies.masked_fill(fixed.padding, torch.finfo(torch.float32).min)
        weights = energies.softmax(dim=-1)
        if forward_only:
            weights = _forward_weights(weights, fixed.padding, state)
        context = product(weights.unsqueeze(1), fixed.values).squeeze(1)
        return Attended(context, weights, AttentionState(weights, state.total + weights))

    def _windows(self, state: AttentionState) -> Tensor:
        """Both rows around each symbol, ``(B, U, 2 K)``."""
        rows = torch.stack([state.previous, state.total], dim=1)
        half = self.kernel_size // 2
        windows = F.pad(rows, (half, half)).unfold(2, self.kernel_size, 1)  # (B, 2, U, K)
        return windows.transpose(1, 2).flatten(2)


def _forward_weights(weights: Tensor, padding: Tensor, state: AttentionState) -> Tensor:
    """Weights ``(B, U)`` of a step that stays or goes one symbol on."""
    first = torch.zeros_like(state.previous)
    first[:, 0] = 1.0
    begun = state.total.sum(dim=-1, keepdim=True) > 0
    before = torch.where(begun, state.previous, first)
    reached = before + F.pad(before, (1, 0))[:, :-1]
    # A floor: where the energies speak against all that can be reached, the sum is not zero.
    weights = reached * weights.clamp_min(_FLOOR).masked_fill(padding, 0.0)
    return weights / weights.sum(dim=-1, keepdim=True)
