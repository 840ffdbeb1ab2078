"""A state dict into a model that may differ from it only where it is said to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.model_folder.safety import PretrainedError
from speechkit.names import is_under, unknown_prefixes


class Mismatch(NamedTuple):
    """A tensor that differs between a model (here) and a state (there); None where absent."""

    name: str
    here: str | None
    there: str | None


class MismatchError(PretrainedError):
    """A state does not fit a model; ``rows`` holds what differs, ``hint`` says what to do."""

    def __init__(self, rows: Sequence[Mismatch], source: str, hint: str = "") -> None:
        self.rows = list(rows)
        shown = [("name", "here", "there")]
        shown += [(row.name, row.here or "-", row.there or "-") for row in self.rows[:40]]
        widths = [max(len(row[column]) for row in shown) for column in range(3)]
        table = [
            "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in shown
        ]
        if len(self.rows) > 40:
            table.append(f"  ... and {len(self.rows) - 40} more")
        head = f"{source}: {len(self.rows)} tensors do not fit the model:"
        super().__init__("\n".join([head, *table, *([hint] if hint else [])]))


class LoadReport(NamedTuple):
    """Names of the model's tensors that came from a state, and of those left as they were."""

    loaded: list[str]
    fresh: list[str]

    def __str__(self) -> str:
        fresh = f"; fresh: {', '.join(self.fresh)}" if self.fresh else ""
        return f"{len(self.loaded)} tensors loaded{fresh}"


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    reinit: Sequence[str] | None,
    source: str,
) -> LoadReport:
    """Load a state into a model in place, or raise and leave the model as it was.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    state : Mapping
        Names and tensors.
    reinit : sequence of str
        Names of parts that keep the weights they have here; None where there can be none.
    source : str
        What messages call the state.

    Raises
    ------
    MismatchError
        If, outside ``reinit``, a tensor is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    prefixes = [reinit] if isinstance(reinit, str) else list(reinit or ())
    for prefix, hint in unknown_prefixes(prefixes, [*own, *state]).items():
        raise PretrainedError(f"reinit: no part of the model is called {prefix!r}{hint}")

    def is_fresh(name: str) -> bool:
        return any(is_under(name, prefix) for prefix in prefixes)

    rows = []
    for name in [*own, *(name for name in state if name not in own)]:
        here, there = (_show(tensors.get(name)) for tensors in (own, state))
        if here != there and not is_fresh(name):
            rows.append(Mismatch(name, here, there))
    if rows:
        parts = ", ".join(dict.fromkeys([*prefixes, *(row.name.split(".")[0] for row in rows)]))
        hint = f"To start fresh there, name the parts: reinit: [{parts}]"
        raise MismatchError(rows, source, hint if reinit is not None else "")
    loaded = {name: state[name] for name in own if not is_fresh(name)}
    damaged = [
        name
        for name, tensor in loaded.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if damaged:
        warnings.warn(
            f"{source}: NaN or infinite weights in {', '.join(damaged[:5])}"
            + (f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""),
            stacklevel=3,
        )
    model.load_state_dict(loaded, strict=False)
    return LoadReport(list(loaded), [name for name in own if name not in loaded])


def _show(tensor: Tensor | None) -> str | None:
    """Describe what must agree: the shape, and whether the numbers are of the same kind."""
    if tensor is None:
        return None
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"({', '.join(str(size) for size in tensor.shape)}){kind}"
