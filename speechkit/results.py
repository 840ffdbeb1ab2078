"""A run's numbers as files: what is written, read back, and computed again from its rows."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

import speechkit
from speechkit.data.manifest import DataError
from speechkit.files import atomic_write
from speechkit.metrics.results import SCORERS, Result

PACKAGES = ("torch", "torchaudio", "numpy", "sentencepiece", "jiwer", "soundfile")
TOLERANCE = 1e-6


@dataclass
class RunResults:
    """What a run reports, as in RESULTS.json.

    Parameters
    ----------
    recipe : str
        Name of the recipe's YAML.
    command : str
        What to type to run it again.
    seed : int
        The run's seed.
    results : mapping of str to list of Result
        The numbers of each split.
    manifest_sha256 : mapping of str to str
        Which data: the hash of each split's manifest.
    device : str
        A torch device (``"cuda:0"``), stored with the name of the hardware.
    commit : str, optional
        Of the source tree; found through git by default, None outside of a repository.
    versions : mapping of str to str
        Of Python and the packages; those in use by default.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "RESULTS.json")
    >>> wer = Result(metric="WER", value=2.5, unit="%", count=400)
    >>> RunResults("toy_ctc", "python train.py", 1, {"test": [wer]}).write(path)
    >>> RunResults.read(path).results["test"][0].value
    2.5
    """

    recipe: str
    command: str
    seed: int
    results: Mapping[str, Sequence[Result]]
    manifest_sha256: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    commit: str | None = field(default_factory=lambda: git_commit())
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    def __post_init__(self) -> None:
        self.device = describe_device(self.device)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, in the order in which RESULTS.json has them."""
        return {
            "recipe": self.recipe,
            "command": self.command,
            "seed": self.seed,
            "commit": self.commit,
            "device": self.device,
            "manifest_sha256": dict(self.manifest_sha256),
            "versions": dict(self.versions),
            "results": [
                {"split": split, **result.to_dict()}
                for split, results in self.results.items()
                for result in results
            ],
        }

    def write(self, path: str | Path) -> None:
        """Write RESULTS.json, whole or not at all."""
        atomic_write(Path(path), json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> RunResults:
        """Read RESULTS.json.

        Raises
        ------
        DataError
            If the file is missing, is not JSON, or lacks a field.
        """
        content = _read_json(Path(path))
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in content]
        if missing:
            raise DataError(f"{path}: lacks {', '.join(missing)}; a run's RESULTS.json has them")
        results: dict[str, list[Result]] = {}
        for position, entry in enumerate(content["results"]):
            if not isinstance(entry, dict) or "split" not in entry:
                raise DataError(f"{path}: results[{position}] has no split")
            result = _result(entry, f"{path}: results[{position}]")
            results.setdefault(entry["split"], []).append(result)
        return cls(**{**{name: content[name] for name in names}, "results": results})


def _result(entry: Any, where: str) -> Result:
    try:
        return Result.from_dict(entry)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error


# ---------------------------------------------------------------- rows of a test


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "rows.jsonl")
    >>> write_rows(path, [{"id": "a", "reference": "yes", "hypothesis": "yes"}])
    >>> read_rows(path)[0]["id"]
    'a'
    """
    atomic_write(Path(path), "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines.

    Raises
    ------
    DataError
        If the file is missing, or a line is not a JSON object: which one.
    """
    rows = []
    for number, line in enumerate(_read_text(Path(path)).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); was it cut?") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}")
        rows.append(row)
    return rows


def write_test(
    folder: str | Path,
    split: str,
    rows: Iterable[Mapping[str, Any]],
    scorer: str,
    results: Iterable[Result],
) -> None:
    """Write ``test/<split>/rows.jsonl`` and ``summary.json`` of a run.

    Parameters
    ----------
    folder : str or Path
        The run's folder.
    split : str
        Name of the test set.
    rows : iterable of mappings
        One for each utterance.
    scorer : str
        Name in ``SCORERS`` that made ``results`` from ``rows``; empty when nothing is scored.
    results : iterable of Result
        The numbers.
    """
    place = Path(folder) / "test" / split
    place.mkdir(parents=True, exist_ok=True)
    write_rows(place / "rows.jsonl", rows)
    summary = {"scorer": scorer, "results": [result.to_dict() for result in results]}
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    atomic_write(place / "summary.json", text)


def score_folder(folder: str | Path, *, check: bool = True) -> list[tuple[str, Result]]:
    """Compute every number of a run again, from its per-utterance rows.

    Parameters
    ----------
    folder : str or Path
        The run's folder.
    check : bool
        Whether to compare with what the run wrote (``summary.json`` and ``RESULTS.json``).

    Returns
    -------
    list of (str, Result)
        Split and number.

    Raises
    ------
    DataError
        If nothing was tested, a file is broken, or (with ``check``) a number differs.
    """
    splits = sorted(path.parent for path in Path(folder).glob("test/*/rows.jsonl"))
    if not splits:
        raise DataError(
            f"{folder}: no test/<split>/rows.jsonl; give the folder of a run that was tested"
        )
    scored = []
    for split in splits:
        rows = read_rows(split / "rows.jsonl")
        name = _read_json(split / "summary.json").get("scorer")
        if name and rows:
            scored += [(split.name, result) for result in _scorer(name, split)(rows)]
    problems = disagreements(folder, scored) if check else []
    if problems:
        raise DataError(f"{folder}: numbers that its rows do not give:\n  " + "\n  ".join(problems))
    return scored


def disagreements(folder: str | Path, scored: Sequence[tuple[str, Result]]) -> list[str]:
    """Compare recomputed numbers with those that the run wrote; one line for each difference."""
    written: dict[str, list[tuple[str, Result]]] = {}
    for path in sorted(Path(folder).glob("test/*/summary.json")):
        name, split = path.relative_to(folder).as_posix(), path.parent.name
        entries = _read_json(path).get("results", [])
        written[name] = [(split, _result(entry, str(path))) for entry in entries]
    if (Path(folder) / "RESULTS.json").exists():
        recorded = RunResults.read(Path(folder) / "RESULTS.json").results
        written["RESULTS.json"] = [(split, r) for split, rs in recorded.items() for r in rs]
    problems = []
    for name, entries in written.items():
        splits = {name.split("/")[1]} if "/" in name else {split for split, _ in scored}
        found = {(split, r.metric): r for split, r in scored if split in splits}
        claimed = {(split, r.metric): r for split, r in entries}
        for key in [*found, *(key for key in claimed if key not in found)]:
            if not _same(found.get(key), claimed.get(key)):
                problems.append(
                    f"{name}: {key[0]} {key[1]} is {_show(claimed.get(key))}, "
                    f"the rows give {_show(found.get(key))}"
                )
    return problems


def _same(a: Result | None, b: Result | None) -> bool:
    if a is None or b is None:
        return False
    close = math.isclose(a.value, b.value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return close and (a.unit, a.count) == (b.unit, b.count)


def _show(result: Result | None) -> str:
    if result is None:
        return "missing"
    return f"{result.value:.6g} {result.unit}".rstrip() + f" of {result.count}"


def _scorer(name: str, split: Path) -> Callable[[list[dict[str, Any]]], list[Result]]:
    if name not in SCORERS:
        known = ", ".join(sorted(SCORERS))
        raise DataError(f"{split / 'summary.json'}: no scorer {name!r}; there are: {known}")
    return SCORERS[name]


# ---------------------------------------------------------------- where it ran


def environment() -> dict[str, Any]:
    """Say what a run depends on beside its files: commit, versions, operating system.

    Examples
    --------
    >>> environment()["versions"]["torch"] == torch.__version__
    True
    """
    return {"commit": git_commit(), "versions": versions(), "system": platform.system()}


def versions() -> dict[str, str]:
    """Give the versions of Python, speechkit and the packages that numbers depend on."""
    found = {"python": platform.python_version(), "speechkit": speechkit.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional part that is not there changes nothing
    found["torch"] = str(torch.__version__)  # with the build: +cu128, +cpu
    return found


def git_commit(folder: str | Path | None = None) -> str | None:
    """Give the commit of the tree around ``folder`` (by default speechkit's own), or None.

    A tree with changes to tracked files has ``-dirty`` at the end.
    """
    place = Path(folder) if folder is not None else Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=place, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here: the run is no worse for it
    return done.stdout.strip() or None if done.returncode == 0 else None


def describe_device(device: str | torch.device = "cpu") -> str:
    """Name a torch device with its hardware; other text is returned as it is.

    Examples
    --------
    >>> describe_device("cpu").startswith("cpu")
    True
    >>> describe_device("cuda:0 (NVIDIA H100 80GB HBM3)")
    'cuda:0 (NVIDIA H100 80GB HBM3)'
    """
    name = str(device)
    if re.fullmatch(r"cuda(:\d+)?", name) and torch.cuda.is_available():
        return f"{name} ({torch.cuda.get_device_name(torch.device(name))})"
    if name == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({_processor()}, {threads} thread{'s' if threads != 1 else ''})"
    return name


def _processor() -> str:
    """Name the processor: Linux says it in /proc/cpuinfo, the others through ``platform``."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), flags=re.MULTILINE)
        if match:
            return " ".join(match[1].split())
    return platform.processor() or platform.machine()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"{path}: not a text file ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); was it cut?") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
