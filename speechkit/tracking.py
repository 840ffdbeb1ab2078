"""What a run shows and keeps as it goes: progress, log, ``metrics.jsonl``, TensorBoard, plots."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from speechkit import distributed
from speechkit.files import atomic_write

LOG_FORMAT = "%(asctime)s %(levelname).1s %(message)s"
MAX_PLOTS = 8  # files of arrays kept of each tag, spread over the epochs


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


class PlotFile(NamedTuple):
    """A file of `Tracker.arrays`, by what its name says.

    Attributes
    ----------
    epoch, step : int
        When it was written.
    path : Path
        ``plots/<tag>/epoch-0003-step-120.npz``.
    """

    epoch: int
    step: int
    path: Path


def plot_files(folder: Path, tag: str) -> list[PlotFile]:
    """List what `Tracker.arrays` kept in a run's folder under a tag, in the order of epochs.

    Examples
    --------
    >>> import tempfile
    >>> plot_files(Path(tempfile.mkdtemp()), "attention")
    []
    """
    files = []
    for path in (folder / "plots" / tag).glob("epoch-*.npz"):
        match = re.fullmatch(r"epoch-(\d+)-step-(\d+)", path.stem)
        if match:
            files.append(PlotFile(int(match[1]), int(match[2]), path))
    return sorted(files)


def spread(last: int, limit: int) -> list[int]:
    """Choose at most ``limit`` of the epochs 1 to ``last``: both, and multiples of a power of two.

    What is chosen up to an epoch holds what is chosen up to a later one, but for that epoch
    itself: who keeps only these as epochs go by has them all at the end.

    Parameters
    ----------
    last : int
        Number of epochs so far.
    limit : int
        At least 2.

    Examples
    --------
    >>> spread(30, 8)
    [1, 8, 16, 24, 30]
    """
    stride = 1
    while len(kept := sorted({1, last, *range(stride, last + 1, stride)})) > limit:
        stride *= 2
    return kept


class Tracker:
    """Keeps numbers in ``metrics.jsonl``, pictures in TensorBoard, and what plots are made of.

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
        self._purge_step: int | None = None

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
        writer = self._tensorboard()
        for name, value in row.items():
            if name not in ("epoch", "step"):
                writer.add_scalar(name, value, int(row["step"]))
        writer.flush()

    def image(self, tag: str, image: Any, step: int) -> None:
        """Show a picture in TensorBoard.

        Parameters
        ----------
        tag : str
            The picture's name; TensorBoard puts its steps behind a slider.
        image : matplotlib.figure.Figure or np.ndarray
            Pixels have shape ``(H, W, 3)``, uint8.
        step : int
            When.
        """
        if not isinstance(image, np.ndarray):
            from speechkit.plots import figure_pixels

            image = figure_pixels(image)
        self._tensorboard().add_image(tag, image, step, dataformats="HWC")

    def audio(self, tag: str, waveform: np.ndarray, sample_rate: int, step: int) -> None:
        """Let a sound be heard in TensorBoard.

        Parameters
        ----------
        tag : str
            The sound's name; TensorBoard puts its steps behind a slider.
        waveform : np.ndarray
            Shape ``(T,)``; what is beyond [-1, 1] is clipped.
        sample_rate : int
            Hz.
        step : int
            When.
        """
        sound = np.clip(waveform, -1.0, 1.0)[None]
        self._tensorboard().add_audio(tag, sound, step, sample_rate=sample_rate)

    def arrays(self, tag: str, arrays: Mapping[str, np.ndarray], *, epoch: int, step: int) -> None:
        """Keep what a plot is made of: ``plots/<tag>/epoch-0003-step-120.npz``.

        Of many epochs `MAX_PLOTS` at most stay, among them the first and the last.

        Parameters
        ----------
        tag : str
            Name of the folder.
        arrays : mapping of str to np.ndarray
            Of numbers and strings: `numpy.load` reads them without pickle.
        epoch, step : int
            When; files of epochs between the first and this one may go.
        """
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        name = f"epoch-{epoch:04d}-step-{step}.npz"
        atomic_write(self.folder / "plots" / tag / name, buffer.getvalue())
        files = plot_files(self.folder, tag)
        kept = spread(epoch, MAX_PLOTS)
        for file in files[1:]:
            if file.epoch not in kept or (file.epoch == epoch and file.step != step):
                file.path.unlink()

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard then hides what came after the checkpoint, as `rewind` does.
            self._writer = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=self._purge_step
            )
        return self._writer

    def rewind(self, *, step: int) -> None:
        """Forget what was logged after ``step``."""
        kept = [row for row in self.rows() if row["step"] <= step]
        if self.path.exists():
            atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        for tag in (self.folder / "plots").glob("*/"):
            for file in plot_files(self.folder, tag.name):
                if file.step > step:
                    file.path.unlink()
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
