"""What a run shows and keeps as it goes: progress, log, ``metrics.jsonl``, TensorBoard scalars."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechkit import distributed
from speechkit.files import atomic_write

LOG_FORMAT = "%(asctime)s %(levelname).1s %(message)s"


def setup_logging(folder: Path | None, *, main: bool = True) -> None:
    """Send speechkit's log to the terminal and, on the main process, to ``folder/log.txt``.

    Parameters
    ----------
    folder : Path, optional
        The run's folder; None logs to the terminal alone.
    main : bool
        Whether this process is rank 0; the other ranks print warnings only.
    """
    logger = logging.getLogger("speechkit")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.INFO if main else logging.WARNING)
    handlers: list[logging.Handler] = [terminal]
    if folder is not None and main:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / "log.txt", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(LOG_FORMAT, datefmt="%H:%M:%S"))
        logger.addHandler(handler)


def progress_bar(name: str, total: int, initial: int = 0) -> tqdm:
    """Give a bar that counts batches: on rank 0, and only on a terminal."""
    disable = None if distributed.is_main() else True
    return tqdm(desc=name, total=total, initial=initial, unit="batch", leave=False, disable=disable)


class Tracker:
    """Appends rows of numbers to ``metrics.jsonl`` and to TensorBoard.

    A run that was killed may have written rows for work that its last checkpoint does not hold;
    ``rewind`` drops them, so that the resumed run's curves have no fold.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Examples
    --------
    >>> import tempfile
    >>> tracker = Tracker(Path(tempfile.mkdtemp()))
    >>> tracker.log({"epoch": 1, "step": 10, "valid/loss": 0.5})
    >>> tracker.log({"epoch": 2, "step": 20, "valid/loss": 0.4})
    >>> tracker.rewind(step=10)
    >>> [row["epoch"] for row in tracker.rows()]
    [1]
    >>> tracker.close()
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self.folder = folder
        self._writer: Any = None

    def rows(self) -> list[dict[str, Any]]:
        """Read back what was logged; a last line cut by a kill is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                rows.append(json.loads(line))
        return rows

    def log(self, row: Mapping[str, float]) -> None:
        """Write one row; it holds ``epoch`` and ``step``, the other names become scalars."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tensorboard"))
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def rewind(self, *, step: int) -> None:
        """Forget the rows that were logged after ``step``."""
        kept = [row for row in self.rows() if row["step"] <= step]
        if self.path.exists():
            atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
