"""How a loader's worker hands a batch to the training process.

Left alone, every tensor of every batch gets fresh shared memory: the worker pays a page fault for
each 4 KiB of it, which takes as long as reading the audio. So a worker keeps a ring of shared
buffers and builds its batches in them; the training process copies a batch out when it arrives.

    worker     build 0 in slot 0 | build 1 in slot 1 | build 2 in slot 2 | build 3 in slot 0
    trainer                        copy 0 out ... copy 1 out ... asks for batch 3 ...

A slot is free again when its turn comes: a DataLoader asks a worker for its batch number
``k + prefetch_factor`` only after it has received number ``k``, and there is one slot more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from speechkit.data.batch import Batch, Failure, collate, map_tensors

# Smaller tensors travel inside the message.
_INLINE_BYTES = 1 << 16
_ALIGNMENT = 64


class Collate:
    """A DataLoader's ``collate_fn``: `collate`, and in a worker through the ring of buffers.

    Parameters
    ----------
    epoch : int
        Carried by the batches.
    prefetch_factor : int
        The loader's.
    """

    def __init__(self, *, epoch: int, prefetch_factor: int = 2) -> None:
        self.epoch = epoch
        self.prefetch_factor = prefetch_factor
        self._ring: _Ring | None = None

    def __call__(self, items: Sequence[Mapping[str, Any] | Failure]) -> Any:
        """Return the batch, or in a worker what becomes the batch on arrival."""
        if get_worker_info() is None:
            return collate(items, epoch=self.epoch)
        if self._ring is None:
            self._ring = _Ring(self.prefetch_factor + 1)
        self._ring.advance()
        return _Parcel(collate(items, epoch=self.epoch, allocate=self._ring.allocate), self._ring)


class _Ring:
    """Shared buffers used in turn."""

    def __init__(self, num_slots: int) -> None:
        self._slots = [torch.empty(0, dtype=torch.uint8) for _ in range(num_slots)]
        self._turn = 0
        self._used = 0
        self._most = 0

    @property
    def slot(self) -> Tensor:
        """The buffer of the batch that is being built."""
        return self._slots[self._turn]

    def advance(self) -> None:
        """Begin the next batch."""
        self._turn = (self._turn + 1) % len(self._slots)
        self._used = 0

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory for a tensor, in the slot where it fits."""
        num_bytes = prod(shape) * dtype.itemsize
        if num_bytes < _INLINE_BYTES:
            return torch.empty(shape, dtype=dtype)
        begin = self._used
        self._used += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        self._most = max(self._most, self._used)
        if begin == 0 and self._most > len(self.slot):
            storage = torch.UntypedStorage._new_shared(self._most)
            self._slots[self._turn] = torch.empty(0, dtype=torch.uint8).set_(storage)
        if self._used > len(self.slot):  # fits the next time round
            return torch.empty(shape, dtype=dtype)
        return self.slot[begin : begin + num_bytes].view(dtype).view(shape)

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether a tensor lies in the present slot."""
        return tensor.untyped_storage().data_ptr() == self.slot.untyped_storage().data_ptr()


class _InSlot(NamedTuple):
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def copy_from(self, slot: Tensor) -> Tensor:
        num_bytes = prod(self.shape) * self.dtype.itemsize
        copy = slot[self.begin : self.begin + num_bytes].clone()
        return copy.view(self.dtype).view(self.shape)


class _Inline(NamedTuple):
    array: Any


class _Parcel:
    """A batch on its way: unpickling it gives the `Batch`."""

    def __init__(self, batch: Batch, ring: _Ring) -> None:
        # Packed here and not while pickling: the queue pickles in a thread of its own, when the
        # ring may have moved on.
        in_slot = False

        def pack(tensor: Tensor) -> Any:
            nonlocal in_slot
            if ring.holds(tensor):
                in_slot = True
                begin = int(tensor.storage_offset()) * tensor.itemsize
                return _InSlot(begin, tuple(tensor.shape), tensor.dtype)
            small = tensor.numel() * tensor.itemsize < _INLINE_BYTES
            return _Inline(tensor.numpy()) if small and tensor.dtype != torch.bfloat16 else tensor

        fields = map_tensors(batch.fields, pack)
        slot = ring.slot if in_slot else None
        self._arguments = (batch.ids, fields, batch.failures, batch.epoch, slot)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, self._arguments


def _unpack(
    ids: list[str], fields: dict[str, Any], failures: list[Failure], epoch: int, slot: Tensor | None
) -> Batch:
    def restore(value: Any) -> Any:
        if isinstance(value, _InSlot) and slot is not None:
            return value.copy_from(slot)
        return torch.from_numpy(value.array) if isinstance(value, _Inline) else value

    return Batch(ids, map_tensors(fields, restore), failures=failures, epoch=epoch)
