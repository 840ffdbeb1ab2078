"""Means of a task's losses over an epoch, which the log has by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechkit import distributed


class LossMeans:
    """Add up losses by name, and give their means over all utterances of all processes.

    Examples
    --------
    >>> import torch
    >>> means = LossMeans()
    >>> means.add({"mel": torch.tensor([1.0, 3.0])})
    >>> means.add({"mel": torch.tensor(5.0)}, items=2)
    >>> means.take(), means.take()
    ({'mel': 3.5}, {})
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, losses: Mapping[str, Tensor], *, items: int | None = None) -> None:
        """Add a batch's losses.

        Parameters
        ----------
        losses : mapping of str to Tensor
            The loss of each utterance ``(B,)``, or their mean.
        items : int, optional
            How many utterances the mean is of.
        """
        for name, loss in losses.items():
            count = loss.numel() if items is None else items
            total = self._sums.setdefault(name, [0.0, 0.0])
            total[0] += float(loss.detach().mean()) * count if count else 0.0
            total[1] += count

    def take(self) -> dict[str, float]:
        """Give the means and forget them; all processes call this."""
        mine, self._sums = list(self._sums.items()), {}
        totals: dict[str, list[float]] = {}
        # Gathered: a process that had no batch of a small split has no names.
        for name, (total, count) in distributed.gather_objects(mine):
            sums = totals.setdefault(name, [0.0, 0.0])
            sums[0] += total
            sums[1] += count
        return {name: totals[name][0] / max(1.0, totals[name][1]) for name in sorted(totals)}

    def state_dict(self) -> dict[str, Any]:
        """Give the sums of each process; all of them call this."""
        mine = {name: list(total) for name, total in self._sums.items()}
        return {"sums": distributed.gather_objects([mine])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums of a running epoch; of another number of processes, with none."""
        sums = state["sums"]
        mine = sums[distributed.rank()] if len(sums) == distributed.world_size() else {}
        self._sums = {name: list(total) for name, total in mine.items()}
