"""Items become a batch: tensors padded with integer lengths, everything else in lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.data.manifest import DataError
from speechkit.nn.masking import Padded

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


class Failure(NamedTuple):
    """An utterance that could not be used, and why."""

    id: str
    message: str


class Batch:
    """A padded batch, its fields as attributes.

    Parameters
    ----------
    ids : list of str
        The utterances, in the order of the rows of every field.
    fields : mapping
        Name to `Padded`, tensor or list.
    failures : list of Failure
        Utterances of this batch that could not be read; they have no row.
    epoch : int
        The epoch whose random draws the items used.

    Examples
    --------
    >>> batch = collate([{"id": "a", "x": torch.ones(2)}, {"id": "b", "x": torch.ones(3)}])
    >>> len(batch), batch.x.data.tolist(), batch.x.lengths.tolist()
    (2, [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], [2, 3])
    """

    ids: list[str]
    fields: dict[str, Any]
    failures: list[Failure]
    epoch: int

    def __init__(
        self,
        ids: list[str],
        fields: Mapping[str, Any],
        *,
        failures: Sequence[Failure] = (),
        epoch: int = 0,
    ) -> None:
        self.ids = ids
        self.fields = dict(fields)
        self.failures = list(failures)
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def __getattr__(self, name: str) -> Any:
        # Only called where normal lookup fails; "fields" itself is missing while unpickling.
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(
            f"the batch has no field {name!r}; it has: {', '.join(sorted(fields)) or 'none'}"
        )

    def __repr__(self) -> str:
        shapes = {
            name: list(value.data.shape) if isinstance(value, Padded) else type(value).__name__
            for name, value in self.fields.items()
        }
        return f"Batch({len(self)} items, {shapes}, {len(self.failures)} failures)"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory (the DataLoader calls this)."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Batch:
        fields = map_tensors(self.fields, function)
        return Batch(self.ids, fields, failures=self.failures, epoch=self.epoch)


def collate(
    items: Sequence[Mapping[str, Any] | Failure],
    *,
    epoch: int = 0,
    allocate: Allocate | None = None,
) -> Batch:
    """Pad items into a batch; every sample is copied once.

    Parameters
    ----------
    items : sequence of mappings or Failure
        Each mapping has ``"id"`` and the same fields. A tensor of one or more axes is padded with
        zeros along axis 0 (time), a tensor without axes is stacked, anything else makes a list.
    epoch : int
        Carried by the batch.
    allocate : callable, optional
        ``allocate(shape, dtype)`` gives the memory of padded tensors.

    Returns
    -------
    Batch
        Of the good items; it may have no rows where all failed.

    Raises
    ------
    DataError
        When items do not have the same fields, or their tensors differ in type or in an axis that
        is not padded.

    Examples
    --------
    >>> batch = collate([{"id": "a", "n": torch.tensor(2), "text": "yes"}, Failure("b", "empty")])
    >>> batch.ids, batch.n, batch.text, batch.failures[0].id
    (['a'], tensor([2]), ['yes'], 'b')
    """
    failures = [item for item in items if isinstance(item, Failure)]
    good = [item for item in items if not isinstance(item, Failure)]
    ids = [item["id"] for item in good]
    fields: dict[str, Any] = {}
    if good:
        names = [name for name in good[0] if name != "id"]
        for item in good:
            if item.keys() != good[0].keys():
                raise DataError(
                    f"items {good[0]['id']!r} and {item['id']!r} have different fields: "
                    f"{sorted(good[0])} and {sorted(item)}; transforms must set the same for all"
                )
        for name in names:
            values = [item[name] for item in good]
            fields[name] = _collate_field(name, values, ids, allocate or _empty)
    return Batch(ids, fields, failures=failures, epoch=epoch)


def _collate_field(name: str, values: list[Any], ids: list[str], allocate: Allocate) -> Any:
    first = values[0]
    if not isinstance(first, Tensor):
        return values
    for value, item_id in zip(values, ids):
        same = (
            isinstance(value, Tensor)
            and value.dtype == first.dtype
            and value.dim() == first.dim()
            and value.shape[1:] == first.shape[1:]
        )
        if not same:
            raise DataError(
                f"field {name!r} of {ids[0]!r} is {_kind(first)}, of {item_id!r} {_kind(value)}; "
                "only axis 0 (time) may differ"
            )
    return torch.stack(values) if first.dim() == 0 else _pad(values, allocate)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _pad(tensors: list[Tensor], allocate: Allocate) -> Padded:
    sizes = [tensor.shape[0] for tensor in tensors]
    shape = (len(tensors), max(sizes), *tensors[0].shape[1:])
    out = allocate(shape, tensors[0].dtype)
    for row, tensor, size in zip(out, tensors, sizes):
        row[:size] = tensor
        if size < shape[1]:
            row[size:] = 0
    return Padded(out, torch.tensor(sizes))


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def map_tensors(fields: Mapping[str, Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    """Apply a function to every field that is not a list, and to both parts of a padded one."""
    out: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Padded):
            out[name] = Padded(function(value.data), function(value.lengths))
        else:
            out[name] = value if isinstance(value, list) else function(value)
    return out
