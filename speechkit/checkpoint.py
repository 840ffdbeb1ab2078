"""Checkpoints that survive kills, full disks and damaged files."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.files import DISK_FULL, TEMPORARY_SUFFIX, atomic_file, atomic_write, file_digest

logger = logging.getLogger(__name__)

INDEX_VERSION = 1
# What torch.load(weights_only=True) opens. Exact types: numpy's float64 is a float, yet refused.
PLAIN_TYPES: frozenset[type] = frozenset(
    {type(None), bool, int, float, str, bytes, complex, Tensor, nn.Parameter}
    | {torch.dtype, torch.device, torch.Size}
)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what to do."""


@dataclass(frozen=True)
class Entry:
    """One row of ``index.json``.

    Attributes
    ----------
    file : str
        Name in the folder of checkpoints.
    sha256 : str
        Of the file's bytes.
    epoch, step : int
        Where the run was.
    metrics : dict[str, float]
        Validation results, empty between validations.
    kind : str
        Why it is kept: ``last``, ``best`` or ``last+best``.
    """

    file: str
    sha256: str
    epoch: int
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    kind: str = "last"


class Loaded(NamedTuple):
    """A state and the row of the index it came from."""

    state: dict[str, Any]
    entry: Entry


class Checkpointer:
    """Save and load the states of a run in one folder, keeping the last and the best.

    A state is written beside its place, synced, renamed; then the index, the same way; only then
    are old files removed. Whatever the moment of a kill, the index names files that are complete.
    Files that the index does not name are ignored, and removed by the next save. In a run of
    several processes, rank 0 alone saves; every rank may load.

    Parameters
    ----------
    folder : Path
        Where ``step-00000010.pt`` and ``index.json`` lie; made by the first save.
    keep_last : int
        How many of the latest to keep, at least 1 (2: one to fall back on).
    keep_best : int
        How many of the best to keep.
    metric : str, optional
        Which of the metrics says what is best.
    maximize : bool
        Whether more of it is better.

    Examples
    --------
    >>> import tempfile
    >>> saver = Checkpointer(Path(tempfile.mkdtemp()), keep_last=1, metric="valid/WER")
    >>> for step, wer in ((10, 5.0), (20, 3.0), (30, 4.0)):
    ...     entry = saver.save({"step": step}, epoch=1, step=step, metrics={"valid/WER": wer})
    >>> [(entry.file, entry.kind) for entry in saver.entries()]
    [('step-00000020.pt', 'best'), ('step-00000030.pt', 'last')]
    >>> saver.load_last().state
    {'step': 30}
    >>> saver.load(saver.best()[0])
    {'step': 20}
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        metric: str | None = None,
        maximize: bool = False,
    ) -> None:
        if keep_last < 1 or keep_best < 0:
            raise ValueError(
                f"keep_last={keep_last}, keep_best={keep_best}: give at least 1 and at least 0"
            )
        self.folder = Path(folder)
        self.index_path = self.folder / "index.json"
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.metric = metric
        self.maximize = maximize
        self._damaged: set[str] = set()

    def save(
        self,
        state: Mapping[str, Any],
        *,
        epoch: int,
        step: int,
        metrics: Mapping[str, float] | None = None,
    ) -> Entry:
        """Write a state and prune what is neither among the last nor among the best.

        Parameters
        ----------
        state : Mapping[str, Any]
            Tensors and plain Python values, in dicts, lists and tuples.
        epoch, step : int
            Where the run is. A second save of one step takes the place of the first.
        metrics : Mapping[str, float], optional
            Validation results.

        Returns
        -------
        Entry
            The new row of the index.

        Raises
        ------
        TypeError
            For a value that could not be loaded again, naming its place in the state.
        CheckpointError
            When the disk is full or fails; the checkpoints before are untouched.
        """
        state = dict(state)
        _check_plain(state, "state")
        known = self.entries()
        name = self._free_name(step, {entry.file for entry in known})
        try:
            sha256 = _write_state(state, self.folder / name)
            row = Entry(name, sha256, int(epoch), int(step), _as_floats(metrics))
            # Of one step, the new one counts, unless only the old one was validated.
            others = [e for e in known if e.step != step or (e.metrics and not row.metrics)]
            others = [entry for entry in others if entry.file not in self._damaged]
            kept = self._keep([*others, row])
            self._write_index(kept)
        except OSError as error:
            raise self._failed(error, name) from error
        self._remove_others({entry.file for entry in kept})
        self._damaged.clear()
        return next(entry for entry in kept if entry.file == name)

    def entries(self) -> list[Entry]:
        """Return the rows of the index, oldest first.

        Raises
        ------
        CheckpointError
            When the index cannot be read.
        """
        try:
            text = self.index_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        try:
            content = json.loads(text)
            if content["version"] != INDEX_VERSION:
                raise ValueError(f"version {content['version']}, not {INDEX_VERSION}")
            return [Entry(**row) for row in content["checkpoints"]]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.index_path} is damaged ({error}): restore it, or move the folder away to "
                "start the run anew"
            ) from error

    def load_last(self, map_location: str | torch.device = "cpu") -> Loaded | None:
        """Load the latest good state; a damaged file is named in a warning and passed over.

        Parameters
        ----------
        map_location : str or torch.device
            Where its tensors go.

        Returns
        -------
        Loaded or None
            None when nothing was ever saved.

        Raises
        ------
        CheckpointError
            When there are checkpoints, but none is good: a run must not start anew unasked.
        """
        entries = self.entries()
        for entry in reversed(entries):
            try:
                return Loaded(self.load(entry, map_location), entry)
            except CheckpointError as error:
                self._damaged.add(entry.file)
                logger.warning("%s Falling back to the checkpoint before it.", error)
        if entries:
            raise CheckpointError(
                f"none of the {len(entries)} checkpoints in {self.folder} is good: restore them, "
                "or move the folder away to start the run anew"
            )
        return None

    def best(self, k: int = 1) -> list[Entry]:
        """Return up to ``k`` rows, best first; without a metric, the latest first.

        Of equal ones the earlier is the better; rows without the metric, or where it is NaN, do not
        count.
        """
        return self._ranked(self.entries())[:k]

    def load(self, entry: Entry, map_location: str | torch.device = "cpu") -> dict[str, Any]:
        """Load the state of a row.

        Parameters
        ----------
        entry : Entry
            From ``entries`` or ``best``.
        map_location : str or torch.device
            Where its tensors go.

        Raises
        ------
        CheckpointError
            When the file is missing or not the one that was saved, naming it.
        """
        path = self.folder / entry.file
        try:
            found = file_digest(path)
            if found != entry.sha256:
                raise CheckpointError(
                    f"{path} is damaged: its sha256 is {found[:12]}..., the index says "
                    f"{entry.sha256[:12]}..., size {path.stat().st_size} bytes."
                )
            # What else may fail now (no such device, no memory) is not the file's fault.
            return torch.load(path, map_location=map_location, weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing, though the index names it.") from error
        except (OSError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}).") from error

    def _ranked(self, entries: list[Entry]) -> list[Entry]:
        if self.metric is None:
            return entries[::-1]
        metric, sign = self.metric, -1.0 if self.maximize else 1.0
        measured = [e for e in entries if not math.isnan(e.metrics.get(metric, math.nan))]
        return sorted(measured, key=lambda entry: sign * entry.metrics[metric])

    def _keep(self, entries: list[Entry]) -> list[Entry]:
        """Return what to keep, oldest first, each with its kind."""
        last = {entry.file for entry in entries[-self.keep_last :]}
        ranked = self._ranked(entries) if self.metric is not None else []
        best = {entry.file for entry in ranked[: self.keep_best]}
        kept = []
        for entry in entries:
            why = {"last": entry.file in last, "best": entry.file in best}
            if kinds := [kind for kind, holds in why.items() if holds]:
                kept.append(replace(entry, kind="+".join(kinds)))
        return kept

    @staticmethod
    def _free_name(step: int, taken: set[str]) -> str:
        """Return a name that the index does not hold: a file it names is never written over."""
        name, again = f"step-{step:08d}.pt", 1
        while name in taken:
            name, again = f"step-{step:08d}-{again}.pt", again + 1
        return name

    def _write_index(self, entries: list[Entry]) -> None:
        content = {"version": INDEX_VERSION, "checkpoints": [asdict(entry) for entry in entries]}
        atomic_write(self.index_path, json.dumps(content, indent=1) + "\n")

    def _remove_others(self, kept: set[str]) -> None:
        """Remove what the index no longer names and what a killed save left."""
        for path in self.folder.iterdir():
            ours = path.name.startswith("step-") or path.name.startswith("index.json.")
            if ours and path.name not in kept and path.suffix in (".pt", TEMPORARY_SUFFIX):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    logger.warning("could not remove the old checkpoint %s: %s", path, error)

    def _failed(self, error: OSError, name: str) -> CheckpointError:
        kept = [entry.file for entry in self.entries()]
        left = f"the last good checkpoint, {kept[-1]}, is untouched" if kept else "none was there"
        if error.errno not in DISK_FULL:
            return CheckpointError(f"could not write {self.folder / name}: {error}; {left}")
        free = shutil.disk_usage(self.folder).free / 2**20
        return CheckpointError(
            f"no room to write {self.folder / name} ({error.strerror}; {free:.0f} MiB are free); "
            f"{left}. Free some space (or lower keep_last and keep_best), then run the same "
            "command again: it resumes"
        )


class _CheckedWriter:
    """A file for torch.save that hashes what passes, and keeps an error until asked.

    torch's zip writer is C++ and turns an exception from ``write`` into another one, or into a
    crash while it is unwound; it must be told that all went well.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
                self.hash.update(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing: atomic_file flushes and syncs."""


def _write_state(state: dict[str, Any], path: Path) -> str:
    """Write a state whole or not at all, and return the sha256 of its bytes."""
    with atomic_file(path) as file:
        writer = _CheckedWriter(file)
        torch.save(state, writer)  # type: ignore[arg-type]  # all that is used of it is write
        if writer.error is not None:
            raise writer.error
    return writer.hash.hexdigest()


def _as_floats(metrics: Mapping[str, float] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (metrics or {}).items()}


def _check_plain(value: Any, where: str) -> None:
    """Refuse now what weights_only=True would refuse when the run is to resume."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"the key {key!r} of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif kind in (list, tuple, set):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif kind not in PLAIN_TYPES:
        raise TypeError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}, which could not be loaded again: "
            "save tensors and plain Python values (float(x), str(path), tensor.tolist())"
        )
