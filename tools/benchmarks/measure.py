"""Paired measurements and their rows; what every area of the benchmark shares."""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from speechkit.results import describe_device

_M_MMAP_THRESHOLD = -3
"""The option of glibc's mallopt: from which size on memory is mapped, and unmapped when freed."""

ROOT = Path(__file__).parents[2]
Timed = Callable[[], float]


class Row(NamedTuple):
    """One line of the results: one case against one peer.

    Attributes
    ----------
    area, case, peer : str
        What was measured, and against whom.
    ours_s : float
        Median seconds of one run of ours.
    peer_s : float, optional
        The same of the peer.
    ratio : float, optional
        Peer's time over ours, the median over pairs of runs; above 1 we are faster.
    ours_peak_mib, peer_peak_mib : float, optional
        Peak memory: of the whole process on a CPU, of the allocated memory on a GPU.
    threads : int
        Threads of torch.
    device : str
        Device with its hardware.

    What was not measured, or cannot be since the peer is not installed, is None.
    """

    area: str
    case: str
    peer: str
    ours_s: float
    peer_s: float | None
    ratio: float | None
    ours_peak_mib: float | None
    peer_peak_mib: float | None
    threads: int
    device: str


class Target(NamedTuple):
    """What a row should reach: a ratio of at least this, or at most so many seconds of ours.

    Examples
    --------
    >>> str(Target(ratio=2.0)), str(Target(seconds=0.15))
    ('ratio >= 2', 'ours <= 0.15 s')
    """

    ratio: float | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        return f"ours <= {self.seconds:g} s" if self.ratio is None else f"ratio >= {self.ratio:g}"

    def met(self, row: Row) -> bool | None:
        """Return whether a row reaches it; None where it was not measured."""
        if self.ratio is not None:
            return None if row.ratio is None else row.ratio >= self.ratio
        return None if self.seconds is None else row.ours_s <= self.seconds


class Measurement(NamedTuple):
    """A row with what the table prints beside it.

    Attributes
    ----------
    row : Row
        What goes to the file.
    target : Target, optional
        What it should reach.
    note : str
        A remark, printed under the table.
    failed : bool
        Whether results that should be the same were not: a wrong answer has no speed.
    """

    row: Row
    target: Target | None = None
    note: str = ""
    failed: bool = False


class Contest(NamedTuple):
    """One case: our function and a peer's.

    Attributes
    ----------
    area, case, peer : str
        Names, as in `Row`.
    ours : callable
        Does our work once; what it returns is not used.
    theirs : callable, optional
        The peer's; None where it is not installed, or where there is none (``peer`` is empty).
    target : Target, optional
        What the row should reach.
    calls : int
        Calls in a run, so that a run of something short is not lost in the clock's noise; the
        seconds are those of one call.
    """

    area: str
    case: str
    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object] | None
    target: Target | None = None
    calls: int = 1


class Bench:
    """Measures contests: how often, and on which device.

    Parameters
    ----------
    repeats : int
        Pairs of runs, after one of each to warm up.
    device : torch.device
        Where tensors live, in the areas that compute on tensors.
    """

    def __init__(self, *, repeats: int = 5, device: torch.device | None = None) -> None:
        self.repeats = repeats
        self.device = device or torch.device("cpu")

    def compare(
        self,
        contest: Contest,
        *,
        peaks: tuple[float | None, float | None] = (None, None),
        note: str = "",
        failed: bool = False,
        on_cpu: bool = False,
    ) -> Measurement:
        """Run a contest A B A B and make its measurement.

        ``peaks`` are the peak memories (MiB) of ours and theirs, measured elsewhere; ``on_cpu``
        says that the work is done on the CPU whatever the device.
        """
        device = torch.device("cpu") if on_cpu else self.device
        ours = clock(contest.ours, device, contest.calls)
        theirs = contest.theirs and clock(contest.theirs, device, contest.calls)
        return self.compare_timed(
            contest, ours, theirs, peaks=peaks, note=note, failed=failed, on_cpu=on_cpu
        )

    def compare_timed(
        self,
        contest: Contest,
        ours: Timed,
        theirs: Timed | None,
        *,
        peaks: tuple[float | None, float | None] = (None, None),
        note: str = "",
        failed: bool = False,
        on_cpu: bool = False,
    ) -> Measurement:
        """Do as `compare`, with functions that return their own seconds."""
        ours_s, peer_s, ratio = paired(ours, theirs, self.repeats)
        row = Row(
            contest.area,
            contest.case,
            contest.peer,
            ours_s,
            peer_s,
            ratio,
            *peaks,
            torch.get_num_threads(),
            describe_device("cpu" if on_cpu else self.device),
        )
        if theirs is None and contest.peer:
            note = f"{contest.peer} is not installed" + (f"; {note}" if note else "")
        return Measurement(row, contest.target, note, failed)


def paired(
    ours: Timed, theirs: Timed | None, repeats: int
) -> tuple[float, float | None, float | None]:
    """Run in turn, after a warm-up of each.

    Parameters
    ----------
    ours, theirs : callable
        Do the work and return the seconds it took; without ``theirs`` ours is run alone.
    repeats : int
        Number of pairs.

    Returns
    -------
    tuple
        Median seconds of ours and of theirs, and the median of the pairs' ratios theirs / ours;
        None where there is no peer.

    Examples
    --------
    >>> paired(iter([9.0, 1.0, 2.0, 4.0]).__next__, iter([9.0, 3.0, 4.0, 4.0]).__next__, 3)
    (2.0, 4.0, 2.0)
    """
    ours()
    if theirs is not None:
        theirs()
    gc.collect()
    mine, yours = [], []
    for _ in range(repeats):
        mine.append(ours())
        if theirs is not None:
            yours.append(theirs())
    if not yours:
        return statistics.median(mine), None, None
    ratios = [b / a for a, b in zip(mine, yours)]
    return statistics.median(mine), statistics.median(yours), statistics.median(ratios)


def clock(function: Callable[[], object], device: torch.device, calls: int = 1) -> Timed:
    """Return a function that gives the seconds of one of ``calls`` calls, to their end on a GPU."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def timed() -> float:
        wait()
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        wait()
        return (time.perf_counter() - begin) / calls

    return timed


def peer(module: str) -> ModuleType | None:
    """Import a peer's module quietly; None where the peer is not installed.

    Examples
    --------
    >>> peer("math").sqrt(4.0), peer("no_such_package.at_all")
    (2.0, None)
    """
    top = module.partition(".")[0]
    logging.getLogger(top).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == top:
            return None
        raise  # it is there but broken: hiding that would look like an absent peer
    logging.getLogger(module).setLevel(logging.ERROR)  # SpeechBrain gives each module a level
    return found


def child(arguments: Sequence[str]) -> str:
    """Run Python in a fresh process in the project's folder; return the last line it prints.

    Raises
    ------
    RuntimeError
        When it fails; with the end of what it wrote to stderr.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"python {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return done.stdout.strip().rpartition("\n")[2]


def give_back_memory() -> None:
    """Let this process hand freed pieces of a MiB or more back at once, where libc is glibc.

    Else a peak has holes in it that were freed and kept, and changes with the order of allocations.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def peak_mib(device: torch.device) -> float:
    """Return the peak memory so far, in MiB: allocated on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts the parent's memory before the fork as well
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
