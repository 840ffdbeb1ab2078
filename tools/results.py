"""Make the results tables of the recipes' READMEs from the committed results files.

    python tools/results.py            writes the tables
    python tools/results.py --check    exits with 1 where a table and its files disagree

A table stands in ``recipes/<task>/README.md`` between two markers::

    <!-- results:begin fsdd_ctc toy_ctc metrics=WER,CER -->
    <!-- results:end -->

It has the runs of the YAMLs that the marker names, from ``recipes/<task>/results/``, where the
files are called ``<yaml>-<seed>.json`` or ``<yaml>-<variant>-<seed>.json``. A variant (a speaker
left out, say) has its own rows; several seeds are a mean with its standard deviation.
``<yaml>:<variant>`` names one variant alone. ``layout=wide`` puts the splits side by side, one
metric in them, a row for each model and each search of its test (``<split>@<search>``);
``layout=metrics`` puts the metrics side by side, a row for each model and split. In ``metrics=`` an
underscore may stand for a space.
"""

from __future__ import annotations

import argparse
import difflib
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from speechkit.data.manifest import DataError
from speechkit.metrics.results import Result
from speechkit.results import RunResults

BEGIN = re.compile(r"^<!-- results:begin (?P<spec>.*?) *-->$")
END = "<!-- results:end -->"
EMPTY = "No results yet."
COUNT_UNITS = ("", "words", "characters", "utterances")
HEADER = ("model", "split", "metric", "value", "seeds", "count")


class Run(NamedTuple):
    """A committed results file.

    Attributes
    ----------
    yaml, variant : str
        From the file's name; the variant may be empty.
    results : RunResults
        What is in it.
    """

    yaml: str
    variant: str
    results: RunResults


class Row(NamedTuple):
    """A line of a table: one number over the seeds of a model."""

    model: str
    split: str
    metric: str
    values: tuple[float, ...]
    unit: str
    seeds: str
    counts: tuple[int, ...]


def parse_name(stem: str, yamls: Iterable[str] = ()) -> tuple[str, str, int]:
    """Split the name of a results file into YAML, variant and seed.

    Parameters
    ----------
    stem : str
        ``<yaml>-<seed>`` or ``<yaml>-<variant>-<seed>``.
    yamls : iterable of str
        The names of the task's YAMLs, for those that have a dash in them.

    Raises
    ------
    DataError
        If the name does not end in a seed.

    Examples
    --------
    >>> parse_name("fsdd_ctc-jackson-1")
    ('fsdd_ctc', 'jackson', 1)
    >>> parse_name("toy-ctc-3", ["toy-ctc"])
    ('toy-ctc', '', 3)
    """
    head, _, seed = stem.rpartition("-")
    if not head or not seed.isdecimal():
        raise DataError(f"results file {stem}.json: name it <yaml>[-<variant>]-<seed>.json")
    known = [name for name in yamls if head == name or head.startswith(name + "-")]
    yaml = max(known, key=len, default=head.partition("-")[0])
    return yaml, head[len(yaml) + 1 :], int(seed)


def read_runs(task: Path) -> list[Run]:
    """Read the results files of a task's folder, in order of name and seed.

    Raises
    ------
    DataError
        If a file is broken, or its content has another seed or recipe than its name.
    """
    yamls = [path.stem for path in (task / "hparams").glob("*.yaml")]
    runs = []
    for path in (task / "results").glob("*.json"):
        yaml, variant, seed = parse_name(path.stem, yamls)
        results = RunResults.read(path)
        if (results.recipe, results.seed) != (yaml, seed):
            raise DataError(
                f"{path}: holds recipe {results.recipe} with seed {results.seed}; its name says "
                f"{yaml} with seed {seed}"
            )
        runs.append(Run(yaml, variant, results))
    return sorted(runs, key=lambda run: (run.yaml, run.variant, run.results.seed))


def make_rows(runs: Sequence[Run], metrics: Sequence[str] = (), *, means: bool = True) -> list[Row]:
    """Gather the numbers of runs: one row for each model, variant, split and metric.

    Parameters
    ----------
    runs : sequence of Run
        In the order of the table.
    metrics : sequence of str
        Those to show; by default all but mere counts (of substitutions, say).
    means : bool
        Whether a YAML's variants are averaged too.

    Returns
    -------
    list of Row
        Where a YAML has several variants, rows of their mean follow: over the variants' means. Not
        beside a run without a variant, which the others go on from or differ from.
    """
    rows: list[Row] = []
    for yaml in dict.fromkeys(run.yaml for run in runs):
        own = [run for run in runs if run.yaml == yaml]
        variants = list(dict.fromkeys(run.variant for run in own))
        parts: list[Row] = []
        for variant in variants:
            model = f"{yaml} ({variant})" if variant else yaml
            parts += _rows_of(model, [run for run in own if run.variant == variant], metrics)
        rows += parts
        if means and len(variants) > 1 and "" not in variants:
            rows += _mean_rows(f"{yaml} (mean of {len(variants)})", parts)
    return rows


def _rows_of(model: str, runs: Sequence[Run], metrics: Sequence[str]) -> list[Row]:
    found: dict[tuple[str, str], list[tuple[int, Result]]] = {}
    for run in runs:
        for split, results in run.results.results.items():
            for result in results:
                named = result.metric in metrics or result.metric.replace(" ", "_") in metrics
                if named if metrics else result.unit not in COUNT_UNITS:
                    entry = (run.results.seed, result)
                    found.setdefault((split, result.metric), []).append(entry)
    return [
        Row(
            model=model,
            split=split,
            metric=metric,
            values=tuple(result.value for _, result in entries),
            unit=entries[0][1].unit,
            seeds=", ".join(str(seed) for seed, _ in entries),
            counts=tuple(dict.fromkeys(result.count for _, result in entries)),
        )
        for (split, metric), entries in found.items()
    ]


def _mean_rows(model: str, rows: Sequence[Row]) -> list[Row]:
    """Average over variants, each of them weighted the same."""
    means = []
    for split, metric in dict.fromkeys((row.split, row.metric) for row in rows):
        same = [row for row in rows if (row.split, row.metric) == (split, metric)]
        if len(same) > 1:
            values = tuple(statistics.fmean(row.values) for row in same)
            seeds = f"{sum(len(row.values) for row in same)} runs"
            total = (sum(row.counts[0] for row in same),) if all(
                len(row.counts) == 1 for row in same
            ) else ()  # fmt: skip
            means.append(Row(model, split, metric, values, same[0].unit, seeds, total))
    return means


def format_value(values: Sequence[float], unit: str) -> str:
    """Write a mean and, for several values, their standard deviation (over n - 1).

    Examples
    --------
    >>> format_value([1.0, 2.0, 3.0], "%")
    '2.00 ± 1.00 %'
    >>> format_value([2.5], "dB")
    '2.50 dB'
    """
    text = f"{statistics.fmean(values):.2f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.2f}"
    return f"{text} {unit}".rstrip()


def format_table(rows: Sequence[Row]) -> list[str]:
    """Write rows as the lines of a Markdown table."""
    if not rows:
        return [EMPTY]
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---|---:|---|---:|"]
    for row in rows:
        counts = " / ".join(f"{count:,}" for count in row.counts)
        value = format_value(row.values, row.unit)
        cells = (row.model, row.split, row.metric, value, row.seeds, counts)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def format_wide(rows: Sequence[Row]) -> list[str]:
    """Write rows of one metric with the splits side by side, a line for each model and search."""
    if not rows:
        return [EMPTY]
    splits = list(dict.fromkeys(row.split.partition("@")[0] for row in rows))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        split, _, search = row.split.partition("@")
        line = cells.setdefault((row.model, search, row.seeds), {})
        line[split] = format_value(row.values, row.unit)
    head = ["model", "search", *(f"{rows[0].metric}, {split}" for split in splits), "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(splits) + "---|"]
    for (model, search, seeds), values in cells.items():
        row_cells = [model, search, *(values.get(split, "") for split in splits), seeds]
        lines.append("| " + " | ".join(row_cells) + " |")
    return lines


def format_metrics(rows: Sequence[Row]) -> list[str]:
    """Write rows with the metrics side by side, a line for each model and split.

    Units stand in the head.
    """
    if not rows:
        return [EMPTY]
    units = {row.metric: row.unit for row in rows}
    models = list(dict.fromkeys(row.model for row in rows))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        line = cells.setdefault((row.model, row.split, row.seeds), {})
        line[row.metric] = format_value(row.values, "")
    first = ["model"] if len(models) > 1 else []
    head = [*first, "split", *(f"{m}, {u}" if u else m for m, u in units.items()), "seeds"]
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|---" * (len(first) + 1) + "|---:" * len(units) + "|---|")
    for (model, split, seeds), values in cells.items():
        named = [model, split] if first else [split]
        row_cells = [*named, *(values.get(metric, "") for metric in units), seeds]
        lines.append("| " + " | ".join(row_cells) + " |")
    return lines


def fill_tables(text: str, runs: Sequence[Run], where: str = "README.md") -> tuple[str, set[str]]:
    """Put the tables between the markers of a README.

    Parameters
    ----------
    text : str
        The README.
    runs : sequence of Run
        The task's results.
    where : str
        Names the README in errors.

    Returns
    -------
    (str, set of str)
        The README with its tables, and the YAMLs that they show.

    Raises
    ------
    DataError
        If a marker has no partner, or names no YAML.
    """
    lines: list[str] = []
    shown: set[str] = set()
    begun = 0
    for number, line in enumerate(text.split("\n"), start=1):
        match = BEGIN.match(line.strip())
        if match:
            if begun:
                raise DataError(f"{where}: results:begin of line {begun} has no {END}")
            begun = number
            spec = _parse_spec(match["spec"], f"{where}, line {number}")
            shown |= {yaml for yaml, _ in spec.models}
            own = [run for run in runs if spec.wants(run)]
            if spec.layout:
                table = LAYOUTS[spec.layout](make_rows(own, spec.metrics, means=False))
            else:
                table = format_table(make_rows(own, spec.metrics))
            lines += [line, "", *table, "", END]
        elif line.strip() == END:
            if not begun:
                raise DataError(f"{where}, line {number}: results:end without a results:begin")
            begun = 0
        elif not begun:
            lines.append(line)
    if begun:
        raise DataError(f"{where}: results:begin of line {begun} has no {END}")
    return "\n".join(lines), shown


LAYOUTS = {"wide": format_wide, "metrics": format_metrics}


class _Spec(NamedTuple):
    """What a marker asks for: YAMLs with a variant or None for all, metrics, the layout."""

    models: list[tuple[str, str | None]]
    metrics: list[str]
    layout: str

    def wants(self, run: Run) -> bool:
        return any(run.yaml == y and v in (None, run.variant) for y, v in self.models)


def _parse_spec(spec: str, where: str) -> _Spec:
    words = spec.split()
    options = dict(word.split("=", 1) for word in words if "=" in word)
    models = [word.partition(":") for word in words if "=" not in word]
    for key, value in options.items():
        if key not in ("metrics", "layout"):
            raise DataError(
                f"{where}: unknown option {key}={value!r}; there are metrics=NAME,NAME and "
                f"layout={' or '.join(LAYOUTS)}"
            )
    metrics = [name for name in options.get("metrics", "").split(",") if name]
    layout = options.get("layout", "")
    if layout and layout not in LAYOUTS:
        raise DataError(f"{where}: layout={layout}: there are {', '.join(LAYOUTS)}")
    if (layout and not metrics) or (layout == "wide" and len(metrics) != 1):
        raise DataError(
            f"{where}: layout={layout} needs {'one metric' if layout == 'wide' else 'metrics'}: "
            "metrics=NAME"
        )
    if not models:
        raise DataError(f"{where}: results:begin names no YAML")
    return _Spec([(y, v if colon else None) for y, colon, v in models], metrics, layout)


def update(root: Path, *, check: bool) -> list[str]:
    """Make the tables of every task below ``root/recipes``.

    Parameters
    ----------
    root : Path
        The project.
    check : bool
        Whether to compare only, and write nothing.

    Returns
    -------
    list of str
        Problems: results that no table shows and, with ``check``, the lines that differ.
    """
    problems = []
    for task in sorted(path for path in (root / "recipes").glob("*") if path.is_dir()):
        readme = task / "README.md"
        name = readme.relative_to(root).as_posix()
        runs = read_runs(task)
        text = readme.read_text(encoding="utf-8") if readme.exists() else ""
        filled, shown = fill_tables(text, runs, name)
        for yaml in sorted({run.yaml for run in runs} - shown):
            problems.append(f"{name}: no table shows {yaml}; add <!-- results:begin {yaml} -->")
        if filled != text and check:
            difference = difflib.unified_diff(
                text.split("\n"), filled.split("\n"), name, "its results files", n=0, lineterm=""
            )
            problems.append("\n".join(difference))
        elif filled != text:
            readme.write_text(filled, encoding="utf-8")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Results tables of the recipes' READMEs.")
    parser.add_argument("--check", action="store_true", help="compare only; exit with 1 if unequal")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the project")
    options = parser.parse_args(argv)
    try:
        problems = update(options.root, check=options.check)
    except DataError as error:
        problems = [str(error)]
    if problems:
        print("\n".join(problems), file=sys.stderr)
        if options.check:
            print("python tools/results.py makes the tables again", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
