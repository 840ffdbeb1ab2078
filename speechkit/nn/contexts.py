"""Attention contexts of recurrent decoders: from a decoder's state to one vector of the memory.

All have one protocol, so that a YAML chooses by the class's name::

    fixed = context.fix(memory, lengths)           once per utterance   (B, T, ...)
    state = context.start(fixed)                   one empty prefix     (B, 1, T) or None
    out = context(queries, fixed, state)           K queries            (B, K, Q) -> (B, K, C)

The K queries are the prefixes of a beam, or one step of teacher forcing (K = 1). Where the state is
None they may also be K steps in time. The memory is broadcast against them, never repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.nn.masking import length_mask, mask_padding
from speechkit.nn.shared_matrix import Matrix, product, share


class FixedMemory(NamedTuple):
    """What an attention context keeps of an utterance.

    Attributes
    ----------
    keys : Tensor or SharedMatrix, optional
        What queries are compared with; the shape is the context's own affair.
    values : Tensor or SharedMatrix
        Shape ``(B, T, C)``, zero in the padding: what is averaged.
    mask : Tensor
        Shape ``(B, 1, T)``, bool: True at valid frames.
    """

    keys: Matrix | None
    values: Matrix
    mask: Tensor


class ContextOutput(NamedTuple):
    """What a context gives for K queries.

    Attributes
    ----------
    context : Tensor
        Shape ``(B, K, C)``.
    weights : Tensor
        Shape ``(B, K, T)``, non-negative, sum 1 over the valid frames, 0 at others. All 0 for an
        item without frames.
    state : Tensor or None
        What the next step needs of this one: ``(B, K, T)``, or None.
    """

    context: Tensor
    weights: Tensor
    state: Tensor | None


def _attend(energies: Tensor, fixed: FixedMemory) -> tuple[Tensor, Tensor]:
    """Average the values ``(B, T, C)`` by energies ``(B, K, T)``: contexts and weights."""
    energies = energies.float().masked_fill(~fixed.mask, torch.finfo(torch.float32).min)
    # The product only matters for an item without frames, whose softmax is uniform.
    weights = energies.softmax(dim=-1) * fixed.mask
    return product(weights, fixed.values), weights


class _Context(nn.Module):
    """Sizes, values and an empty state: what all contexts share."""

    def __init__(self, memory_size: int, value_size: int | None) -> None:
        super().__init__()
        self.memory_size = memory_size
        self.value_size = value_size
        # The weights sum to 1, so that projecting before the average is projecting after it.
        self.value = nn.Linear(memory_size, value_size) if value_size else None

    @property
    def output_size(self) -> int:
        """Features of the context vector."""
        return self.value_size or self.memory_size

    def _values(self, memory: Tensor, lengths: Tensor) -> Tensor:
        """Values ``(B, T, C)`` of a memory whose padding is zero."""
        return memory if self.value is None else mask_padding(self.value(memory), lengths)

    def _check(self, memory: Tensor) -> None:
        if memory.dim() != 3 or memory.shape[-1] != self.memory_size:
            raise ValueError(
                f"{type(self).__name__} takes a memory (B, T, {self.memory_size}), "
                f"not {tuple(memory.shape)}"
            )

    def _keys(self, memory: Tensor) -> Tensor:
        raise NotImplementedError

    def fix(self, memory: Tensor, lengths: Tensor) -> FixedMemory:
        """Project a memory ``(B, T, memory_size)`` of ``lengths`` ``(B,)`` once for all steps."""
        self._check(memory)
        memory = mask_padding(memory, lengths)
        mask = length_mask(lengths, memory.shape[1]).unsqueeze(1)
        return FixedMemory(self._keys(memory), self._values(memory, lengths), mask)

    def share(self, fixed: FixedMemory) -> FixedMemory:
        """Let the steps of a training pass share the gradient products of what they multiply by."""
        assert isinstance(fixed.values, Tensor)
        return fixed._replace(values=share(fixed.values))

    def start(self, fixed: FixedMemory) -> Tensor | None:
        """State before the first step: None."""
        return None


class DotContext(_Context):
    """Attention by the dot product of two small networks' outputs.

    Chan et al. 2016, "Listen, attend and spell", eq. 9-11: ``e = <phi(s), psi(h)>``, where ``phi``
    and ``psi`` have one hidden layer of tanh units. The energies are divided by the square root of
    the attention's size, so that a random network starts with a flat alignment.

    Parameters
    ----------
    memory_size, query_size : int
        Features of the memory's frames and of the decoder's state.
    attention_size : int
        Hidden and output units of both networks.
    value_size : int, optional
        Size of a linear projection of the frames that are averaged; the frames themselves by
        default.

    Examples
    --------
    >>> context = DotContext(memory_size=6, query_size=4, attention_size=8)
    >>> fixed = context.fix(torch.randn(2, 5, 6), torch.tensor([5, 3]))
    >>> out = context(torch.randn(2, 10, 4), fixed, context.start(fixed))
    >>> out.context.shape, bool((out.weights[1, :, 3:] == 0).all())
    (torch.Size([2, 10, 6]), True)
    """

    def __init__(
        self,
        *,
        memory_size: int,
        query_size: int,
        attention_size: int,
        value_size: int | None = None,
    ) -> None:
        super().__init__(memory_size, value_size)
        self.query_size = query_size
        self.attention_size = attention_size
        self.query = _mlp(query_size, attention_size)
        self.key = _mlp(memory_size, attention_size)

    def _keys(self, memory: Tensor) -> Tensor:
        return self.key(memory).transpose(1, 2) / self.attention_size**0.5  # (B, A, T)

    def share(self, fixed: FixedMemory) -> FixedMemory:
        """Let the steps of a training pass share the gradient products of what they multiply by."""
        assert isinstance(fixed.keys, Tensor)
        return super().share(fixed)._replace(keys=share(fixed.keys))

    def forward(self, queries: Tensor, fixed: FixedMemory, state: Tensor | None) -> ContextOutput:
        """Contexts of ``queries`` ``(B, K, query_size)``; the state is None."""
        assert fixed.keys is not None
        context, weights = _attend(product(self.query(queries), fixed.keys), fixed)
        return ContextOutput(context, weights, None)


def _mlp(input_size: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(input_size, size), nn.Tanh(), nn.Linear(size, size))


class AdditiveContext(_Context):
    """Attention by a network with one hidden layer over state and frame.

    Bahdanau et al. 2015, "Neural machine translation by jointly learning to align and translate",
    appendix A.1.2: ``e = v . tanh(W s + V h + b)``.

    Parameters
    ----------
    memory_size, query_size : int
        Features of the memory's frames and of the decoder's state.
    attention_size : int
        Hidden units.
    value_size : int, optional
        Size of a linear projection of the frames that are averaged; the frames themselves by
        default.

    Examples
    --------
    >>> context = AdditiveContext(memory_size=6, query_size=4, attention_size=8, value_size=3)
    >>> fixed = context.fix(torch.randn(2, 5, 6), torch.tensor([5, 3]))
    >>> out = context(torch.randn(2, 10, 4), fixed, context.start(fixed))
    >>> out.context.shape, torch.allclose(out.weights.sum(-1), torch.ones(2, 10))
    (torch.Size([2, 10, 3]), True)
    """

    def __init__(
        self,
        *,
        memory_size: int,
        query_size: int,
        attention_size: int,
        value_size: int | None = None,
    ) -> None:
        super().__init__(memory_size, value_size)
        self.query_size = query_size
        self.attention_size = attention_size
        self.query = nn.Linear(query_size, attention_size, bias=False)
        self.key = nn.Linear(memory_size, attention_size)
        self.energy = nn.Linear(attention_size, 1, bias=False)

    def _keys(self, memory: Tensor) -> Tensor:
        return 2 * self.key(memory)  # (B, T, A)

    def forward(self, queries: Tensor, fixed: FixedMemory, state: Tensor | None) -> ContextOutput:
        """Contexts of ``queries`` ``(B, K, query_size)``; the state is None."""
        assert isinstance(fixed.keys, Tensor)
        energies = _in_blocks(self._compare, 2 * self.query(queries), fixed.keys)
        context, weights = _attend(energies, fixed)
        return ContextOutput(context, weights, None)

    def _compare(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Energies ``(B, K, T)`` of ``(B, K, A)`` with ``(B, T, A)``, both doubled."""
        return _energies(queries.unsqueeze(2) + keys.unsqueeze(1), self.energy.weight)


_BLOCK_VALUES = 1_000_000


def _in_blocks(compare: Callable[..., Tensor], queries: Tensor, *others: Tensor) -> Tensor:
    """Compare ``(B, K, A)`` with others ``(B, ...)``, on a CPU a few items at a time.

    Between the two lie ``B * K * T * A`` values. In one piece, those of eight utterances and ten
    beams are 80 MB that the system hands out, cleared, anew at each step of a search; in pieces
    that the allocator keeps, the same takes a third of the time.
    """
    values = queries.numel() * others[0].shape[1]
    if torch.is_grad_enabled() or queries.device.type != "cpu" or values <= _BLOCK_VALUES:
        return compare(queries, *others)
    items = max(1, len(queries) * _BLOCK_VALUES // values)
    blocks = zip(*(tensor.split(items) for tensor in (queries, *others)))
    return torch.cat([compare(*block) for block in blocks])


def _energies(doubled: Tensor, weight: Tensor) -> Tensor:
    """``v . tanh(x)`` up to a constant, from ``2 x`` ``(B, K, T, A)``, which is overwritten.

    ``tanh(x) = 2 sigmoid(2 x) - 1``: a sigmoid takes a fifth of a tanh's time on a CPU, and what
    ``-1`` adds is the same for all frames, which a softmax does not see.
    """
    # A matrix by a vector: the gradient of a matrix by a column would be a slow outer product.
    return doubled.sigmoid_() @ (2 * weight[0])


class LocationContext(AdditiveContext):
    """Additive attention that also sees where the previous step looked.

    Chorowski et al. 2015, "Attention-based models for speech recognition", eq. 8-9 and the
    sharpening of section 2.3: ``f = F * a'``, ``e = v . tanh(W s + V h + U f + b)``, weights
    ``softmax(sharpening e)``. ``a'`` is the previous alignment, uniform before the first step, or
    the sum of all previous ones, zero before the first step (as in Shen et al. 2018, Tacotron 2).

    Parameters
    ----------
    memory_size, query_size, attention_size, value_size
        As in `AdditiveContext`.
    channels : int
        Filters over the previous alignment.
    kernel_size : int
        Frames that a filter sees; odd.
    sharpening : float
        Factor of the energies before the softmax, positive; above 1 it narrows the alignment.
    cumulative : bool
        Whether the filters see the sum of all previous alignments.

    Raises
    ------
    ValueError
        If ``kernel_size`` is not odd or ``sharpening`` not positive.

    Examples
    --------
    >>> context = LocationContext(memory_size=6, query_size=4, attention_size=8, kernel_size=5)
    >>> fixed = context.fix(torch.randn(2, 4, 6), torch.tensor([4, 2]))
    >>> state = context.start(fixed)
    >>> state[1].tolist()
    [[0.5, 0.5, 0.0, 0.0]]
    >>> context(torch.randn(2, 1, 4), fixed, state).state.shape
    torch.Size([2, 1, 4])
    """

    def __init__(
        self,
        *,
        memory_size: int,
        query_size: int,
        attention_size: int,
        value_size: int | None = None,
        channels: int = 10,
        kernel_size: int = 101,
        sharpening: float = 1.0,
        cumulative: bool = False,
    ) -> None:
        super().__init__(
            memory_size=memory_size,
            query_size=query_size,
            attention_size=attention_size,
            value_size=value_size,
        )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {kernel_size}")
        if not sharpening > 0:
            raise ValueError(f"sharpening must be positive, not {sharpening}")
        self.channels = channels
        self.kernel_size = kernel_size
        self.sharpening = sharpening
        self.cumulative = cumulative
        self.filters = nn.Conv1d(1, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.location = nn.Linear(channels, attention_size, bias=False)

    def start(self, fixed: FixedMemory) -> Tensor:
        """Alignment ``(B, 1, T)`` before the first step: uniform, or zero if cumulative."""
        mask = fixed.mask.float()
        if self.cumulative:
            return torch.zeros_like(mask)
        return mask / mask.sum(dim=-1, keepdim=True).clamp(min=1)

    def forward(self, queries: Tensor, fixed: FixedMemory, state: Tensor | None) -> ContextOutput:
        """Contexts of ``queries`` ``(B, K, query_size)`` after the alignments ``(B, K, T)``."""
        assert isinstance(fixed.keys, Tensor)
        if state is None or state.shape[1] != queries.shape[1]:
            shape = None if state is None else tuple(state.shape)
            raise ValueError(
                f"LocationContext needs one previous alignment for each of the "
                f"{queries.shape[1]} queries, not {shape}: begin with start() and take steps "
                "one after the other"
            )
        energies = _in_blocks(self._locate, 2 * self.query(queries), fixed.keys, state)
        context, weights = _attend(self.sharpening * energies, fixed)
        return ContextOutput(context, weights, state + weights if self.cumulative else weights)

    def _locate(self, queries: Tensor, keys: Tensor, state: Tensor) -> Tensor:
        """Energies ``(B, K, T)`` of doubled queries and keys, after alignments ``(B, K, T)``."""
        features = self.filters(state.flatten(0, 1).unsqueeze(1)).transpose(1, 2)  # (BK, T, F)
        features = features.unflatten(0, state.shape[:2])
        hidden = nn.functional.linear(features, 2 * self.location.weight)  # (B, K, T, A)
        hidden = hidden.add_(keys.unsqueeze(1)).add_(queries.unsqueeze(2))
        return _energies(hidden, self.energy.weight)


class MeanContext(_Context):
    """No attention: the average of all valid frames, the same at every step.

    The encoder-decoder without attention, which has to keep a whole sentence in one vector
    (Cho et al. 2014). It is here as a baseline that shows what attention is for.

    Parameters
    ----------
    memory_size : int
        Features of the memory's frames.
    value_size : int, optional
        Size of a linear projection of the frames; the frames themselves by default.

    Examples
    --------
    >>> context = MeanContext(memory_size=1)
    >>> fixed = context.fix(torch.tensor([[[1.0], [3.0], [8.0]]]), torch.tensor([2]))
    >>> out = context(torch.zeros(1, 2, 7), fixed, context.start(fixed))
    >>> out.context.flatten().tolist(), out.weights[0, 0].tolist()
    ([2.0, 2.0], [0.5, 0.5, 0.0])
    """

    def __init__(self, *, memory_size: int, value_size: int | None = None) -> None:
        super().__init__(memory_size, value_size)

    def fix(self, memory: Tensor, lengths: Tensor) -> FixedMemory:
        """Average a memory ``(B, T, memory_size)`` of ``lengths`` ``(B,)`` to ``(B, 1, C)``."""
        self._check(memory)
        memory = mask_padding(memory, lengths)
        mask = length_mask(lengths, memory.shape[1]).unsqueeze(1)
        total = self._values(memory, lengths).sum(dim=1, keepdim=True)
        return FixedMemory(None, total / lengths.clamp(min=1).view(-1, 1, 1), mask)

    def share(self, fixed: FixedMemory) -> FixedMemory:
        """Return what `fix` gave: nothing is multiplied."""
        return fixed

    def forward(self, queries: Tensor, fixed: FixedMemory, state: Tensor | None) -> ContextOutput:
        """Give each of ``queries`` ``(B, K, ...)`` the same vector."""
        assert isinstance(fixed.values, Tensor)
        mask = fixed.mask.float()
        weights = mask / mask.sum(dim=-1, keepdim=True).clamp(min=1)
        count = queries.shape[1]
        return ContextOutput(
            fixed.values.expand(-1, count, -1), weights.expand(-1, count, -1), None
        )
