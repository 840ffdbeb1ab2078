"""``--fold all``: a run for each fold that is held out in turn, and what they give together."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from speechkit.brain import Brain
from speechkit.data.errors import DataError
from speechkit.hparams import HparamsError, parse_command_line, read_hparams
from speechkit.metrics.results import SCORERS, Result
from speechkit.report import write_report
from speechkit.results import RunResults, read_rows, write_test
from speechkit.run import (
    FLAGS,
    OPTIONS,
    RUN_KEYS,
    brain_arguments,
    command_line,
    reported,
    run,
)
from speechkit.tracking import setup_logging
from speechkit.training import TrainingError

logger = logging.getLogger(__name__)

SCORER = "folds"


def run_folds(brain_class: type[Brain], argv: Sequence[str] | None = None) -> None:
    """Train and test as `speechkit.run.run` does; with ``--fold all`` once for each fold.

    The YAML's ``fold`` is the one that is held out, and ``prepare`` is that of a corpus whose
    module has ``folds``, which names those with clips. The runs go to ``fold<number>`` in the
    folder ``--output_folder`` (by default ``results/<yaml name>/<seed>``), which itself gets
    ``test/``, ``RESULTS.json`` and ``report.html`` of all folds together. Finished folds are only
    tested again, so that the same command resumes.

    Parameters
    ----------
    brain_class : type
        The task's Brain, whose rows `speechkit.metrics.folds.summarize` takes.
    argv : sequence of str, optional
        The command line without the program's name; by default the process's own.

    Raises
    ------
    SystemExit
        As `speechkit.run.run`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not wants_all(arguments):
        run(brain_class, arguments)
        return
    with reported(arguments):
        yaml_path, overrides, options = parse_command_line(arguments, flags=FLAGS, options=OPTIONS)
        _check_single_process()
        seed, folds = _plan(brain_class, yaml_path, overrides)
        default = Path("results") / yaml_path.stem / str(seed)
        folder = Path(overrides.get("output_folder", default))
        places = {number: folder / f"fold{number}" for number in folds}
        for number, place in places.items():
            turn = {**overrides, "fold": str(number), "output_folder": str(place)}
            run(brain_class, _arguments(yaml_path, turn, options))
        setup_logging(folder)
        pool(folder, places, command=command_line(arguments))


def wants_all(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for all folds.

    Examples
    --------
    >>> wants_all(["a.yaml", "--fold", "all"]), wants_all(["--fold=all"]), wants_all(["--fold=1"])
    (True, True, False)
    """
    return "--fold=all" in arguments or ("--fold", "all") in pairwise(arguments)


def pool(folder: str | Path, places: Mapping[int, Path], *, command: str) -> RunResults:
    """Put the test rows of several folds' runs together: mean and deviation of each metric.

    Parameters
    ----------
    folder : path
        Where ``test/<split>/``, ``RESULTS.json`` and ``report.html`` go.
    places : mapping of int to Path
        The folder of each fold's run.
    command : str
        What to type to run it all again.

    Returns
    -------
    RunResults
        As written.

    Raises
    ------
    DataError
        If a fold was not tested, or the folds were tested on other splits than each other.
    """
    folder = Path(folder)
    records = {n: RunResults.read(place / "RESULTS.json") for n, place in places.items()}
    splits = {n: list(record.results) for n, record in records.items()}
    first, record = next(iter(records.items()))
    for number, own in splits.items():
        if own != splits[first]:
            raise DataError(
                f"{places[number]}: was tested on {own}, fold {first} on {splits[first]}; run all "
                "folds with the same options"
            )
    results: dict[str, list[Result]] = {}
    for split in splits[first]:
        rows = [
            {**row, "fold": number}
            for number, place in places.items()
            for row in read_rows(place / "test" / split / "rows.jsonl")
        ]
        results[split] = SCORERS[SCORER](rows)
        write_test(folder, split, rows, SCORER, results[split])
        shown = "  ".join(f"{r.metric} {r.value:.2f} {r.unit}".rstrip() for r in results[split][:2])
        logger.info("%s, %d folds: %s", split, len(places), shown)
    record = RunResults(
        recipe=record.recipe,
        command=command,
        seed=record.seed,
        results=results,
        manifest_sha256={
            f"fold{number}/{split}": value
            for number, own in records.items()
            for split, value in own.manifest_sha256.items()
        },
        device=record.device,
    )
    record.write(folder / "RESULTS.json")
    logger.info("results: %s", folder / "RESULTS.json")
    logger.info("report: %s", write_report(folder))
    return record


def _check_single_process() -> None:
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise TrainingError(
            f"--fold all runs the folds one after another in one process, and here are {size}: "
            "train each with torchrun, --fold N and --output_folder FOLDER/foldN, and then put "
            "them together with --fold all and --output_folder FOLDER, without torchrun"
        )


def _plan(
    brain_class: type[Brain], yaml_path: Path, overrides: Mapping[str, Any]
) -> tuple[int, list[int]]:
    """Read the YAML as a run does; give its seed and the folds of its corpus."""
    accepted = brain_arguments(brain_class)
    hparams = read_hparams(
        yaml_path,
        {**overrides, "fold": "1"},
        consumed=(*RUN_KEYS, *accepted),
        required=("seed", "prepare"),
    )
    seed = hparams.value("seed")
    return seed, _folds(hparams.build(["prepare"])["prepare"])


def _folds(prepare: Callable[..., Any]) -> list[int]:
    """Ask the module of a corpus's ``prepare`` which folds have clips."""
    if not isinstance(prepare, functools.partial):
        raise HparamsError([f"--fold all: prepare is {prepare!r}, not !name: of a function"])
    module = importlib.import_module(prepare.func.__module__)
    folds = getattr(module, "folds", None)
    if folds is None:
        raise HparamsError(
            [f"--fold all: {module.__name__} has no folds; name one division, or another corpus"]
        )
    known = inspect.signature(folds).parameters
    numbers: list[int] = folds(**{k: v for k, v in prepare.keywords.items() if k in known})
    return numbers


def _arguments(
    yaml_path: Path, overrides: Mapping[str, Any], options: Mapping[str, Any]
) -> list[str]:
    """Write a command line that `parse_command_line` takes apart into these."""
    pairs = [*overrides.items(), *((k, v) for k, v in options.items() if isinstance(v, str))]
    flags = [f"--{name}" for name, value in options.items() if value is True]
    return [str(yaml_path), *(f"--{key}={value}" for key, value in pairs), *flags]
