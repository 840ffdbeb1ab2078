"""Files through a codec, one after the other or by several processes at once."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from speechkit.cli.common import FAULTS, OK, UsageError, complain

if TYPE_CHECKING:
    import argparse

    from speechkit.codec_files.opened import FileCodec
    from speechkit.codec_files.places import Place, Progress

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Job(NamedTuple):
    """What is to be read and to be written; ``-`` for standard input and output."""

    source: str
    target: str


class Settings(NamedTuple):
    """A command, as a process of its own needs it.

    Attributes
    ----------
    encodes : bool
        Whether it encodes; otherwise it decodes.
    model, entropy, device : str
        See `speechkit.codec_files.files.FileCodec.open`.
    options : dict
        Of `encode_file` or `decode_file`.
    """

    encodes: bool
    model: str
    entropy: str | None
    device: str
    options: dict[str, Any]

    def open(self) -> FileCodec:
        """Open the models."""
        from speechkit.codec_files.files import FileCodec

        return FileCodec.open(self.model, self.entropy, device=self.device)


class Outcome(NamedTuple):
    """What became of a job.

    Attributes
    ----------
    job : Job
        The job.
    error : str or None
        Why there is no result.
    warnings : list of (bool, str)
        What there is to say; whether it is about channels, which is said once.
    """

    job: Job
    error: str | None
    warnings: list[tuple[bool, str]]


def run_jobs(settings: Settings, jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Do all jobs; one at fault does not cost the others.

    Returns
    -------
    int
        Exit status: `FAULTS` where a file is at fault.
    """
    codec = settings.open()  # where the models are at fault, no file is
    _check_options(settings, codec)
    status, told = OK, False
    parallel = min(options.jobs, len(jobs)) > 1
    with _bar(len(jobs), "file", shown=len(jobs) > 1) as bar:
        outcomes = (
            _in_processes(settings, jobs, options.jobs)
            if parallel
            else (_here(settings, codec, job, options, len(jobs) == 1) for job in jobs)
        )
        for outcome in outcomes:
            bar.clear()
            for about_channels, message in outcome.warnings:
                if not (about_channels and told):
                    print(f"speechkit: warning: {message}", file=sys.stderr)
                told = told or about_channels
            if outcome.error is not None:
                complain(outcome.error)
                status = FAULTS
            elif outcome.job.target != "-":
                print(outcome.job.target, flush=True)
            bar.update(1)
    return status


def _check_options(settings: Settings, codec: FileCodec) -> None:
    if not settings.encodes:
        return
    if settings.options["kbps"] is None:
        served = ", ".join(f"{rate:g}" for rate in codec.codec.rates_kbps)
        raise UsageError(f"say at which bit rate: --kbps, one of {served}")
    codec.codec.codebooks_for(settings.options["kbps"])


@contextmanager
def _bar(total: float | None, unit: str, *, shown: bool) -> Iterator[Any]:
    """Show a progress bar, on a terminal."""
    from tqdm import tqdm

    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    with tqdm(
        total=total,
        unit=unit,
        disable=not (shown and sys.stderr.isatty()),
        leave=False,
        file=sys.stderr,
        bar_format=form if unit == "s" and total else None,
    ) as bar:
        yield bar


def _here(
    settings: Settings, codec: FileCodec, job: Job, options: argparse.Namespace, alone: bool
) -> Outcome:
    with _bar(_length(settings, job), "s", shown=alone) as bar:
        return work(settings, codec, job, bar.update, debug=options.debug)


def _length(settings: Settings, job: Job) -> float | None:
    """Say how many seconds a job has, where that is quickly found."""
    if job.source == "-" or not sys.stderr.isatty() or not Path(job.source).is_file():
        return None
    try:
        if settings.encodes:
            from speechkit.data.audio import audio_info

            info = audio_info(job.source)
            return info.num_samples / info.sample_rate
        from speechkit.codec_files.files import inspect_file

        whole = inspect_file(job.source).duration
    except (ValueError, OSError):
        return None  # the job itself will say what is wrong
    left = max(0.0, whole - settings.options["start"])
    return min(left, settings.options["duration"] or left)


def work(
    settings: Settings,
    codec: FileCodec,
    job: Job,
    progress: Progress | None = None,
    *,
    debug: bool = False,
) -> Outcome:
    """Do a job."""
    from speechkit.codec_files.files import DownmixWarning, decode_file, encode_file

    source = cast("Place", sys.stdin.buffer if job.source == "-" else job.source)
    target = cast("Place", sys.stdout.buffer if job.target == "-" else job.target)
    said: list[tuple[bool, str]] = []
    error: str | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            if settings.encodes:
                encode_file(source, target, codec, progress=progress, **settings.options)
            else:
                done = decode_file(source, target, codec, progress=progress, **settings.options)
                said += [(False, f"{job.source}: silence for {part}") for part in done.damages]
                if done.clipped:
                    said.append((False, _clipped(job.target, done.clipped)))
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as fault:
            if debug:
                raise
            error = str(fault)
    said += [(issubclass(one.category, DownmixWarning), str(one.message)) for one in caught]
    return Outcome(job, error, said)


def _clipped(target: str, count: int) -> str:
    return (
        f"{target}: {count} samples are beyond full scale and were clipped; --subtype FLOAT keeps "
        "them"
    )


_worker: tuple[Settings, FileCodec] | None = None  # of a process that works for another
_interrupted = False


def _start(settings: Settings) -> None:
    import torch

    global _worker
    signal.signal(signal.SIGINT, _interrupt)
    torch.set_num_threads(1)
    _worker = settings, settings.open()


def _interrupt(*_: object) -> None:
    """Stop what is under way: Ctrl-C reaches all processes."""
    global _interrupted
    _interrupted = True
    sys.exit(130)


def _work(job: Job) -> Outcome:
    assert _worker is not None
    if _interrupted:  # the pool goes on to a job that it fetched before
        sys.exit(130)
    return work(*_worker, job)


def _in_processes(settings: Settings, jobs: Sequence[Job], count: int) -> Iterator[Outcome]:
    """Do jobs at once, each in a process that was started afresh: threads do not survive a fork."""
    import multiprocessing

    with _one_thread():
        executor = ProcessPoolExecutor(
            min(count, len(jobs)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(settings,),
        )
        futures: dict[Future[Outcome], Job] = {executor.submit(_work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    job = futures[future]
                    reason = "its process ended (out of memory?); try fewer --jobs"
                    yield Outcome(job, f"{job.source}: {reason}", [])
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have processes that start here compute with one thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
