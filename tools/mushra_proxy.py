"""Compare decoded audio with its references as a listening test would, with measures for ears.

    python tools/mushra_proxy.py REFERENCES --decoded "mine 6=FOLDER" --coded "mine 6=FOLDER"
    python tools/mushra_proxy.py REFERENCES --opus 6 12 24 --rate 24000 --seconds 5 --limit 12
    python tools/mushra_proxy.py REFERENCES --decoded "x=FOLDER" --delay "x=320" --gain x

Every table has the hidden reference and the low-pass anchors of ITU-R BS.1534 (3.5 and 7 kHz) as
conditions. A folder of decoded audio has a file for each reference, under the same relative name
with any ending; the bit rate is that of the files in ``--coded``, as written on disk. Opus runs
where ``opusenc`` and ``opusdec`` (opus-tools) are installed. A delay, in samples of the decoded
files, and a least-squares gain are undone where they are declared here, and never searched for.

Items that some condition has no value for (too short, silent) are left out of all conditions. A
package that is missing takes its column with it, and the MUSHRA-proxy refuses. Below 24 kHz there
is a ranking only. ViSQOL is slow, see docs/measures.md: ``--jobs``, ``--seconds`` and ``--limit``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.mushra_conditions import (  # noqa: E402  (after the path is set)
    ENDINGS,
    Condition,
    Job,
    find,
    measure_item,
)

REFERENCE = "hidden reference"
WIDE = 24000
"""Samples a second from which on the MUSHRA-proxy stands."""
COLUMNS = {
    "kbps": ("kbps", 1), "si_snr": ("SI-SNR dB", 1), "stoi": ("STOI", 3), "estoi": ("ESTOI", 3),
    "pesq": ("PESQ-WB", 2), "visqol_audio": ("ViSQOL audio", 2),
    "visqol_speech": ("ViSQOL speech", 2), "mel": ("mel dB", 2), "mel_db": ("mel 24k dB", 2),
}  # fmt: skip


# ---------------------------------------------------------------- the table


def kept(rows: Sequence[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Leave out, everywhere, the items that some condition has no value of a measure for."""
    from speechkit.metrics.quality import MEASURES

    asked = {key for row in rows for key in row if key in MEASURES}
    bad = {row["id"] for row in rows if not asked <= row.keys()}
    if bad:
        names = ", ".join(sorted(bad)[:5]) + (", ..." if len(bad) > 5 else "")
        notes.append(f"{len(bad)} items left out of all conditions, not measurable: {names}")
    return [row for row in rows if row["id"] not in bad]


def overall(rows: Sequence[Mapping[str, Any]], wide: bool, notes: list[str]) -> str:
    """Give a condition's score in words, or a dash and a note on why there is none."""
    from speechkit.metrics.mushra import rank_condition, score_condition

    try:
        if wide:
            return score_condition(rows).describe()
        found = rank_condition(rows)
    except ValueError:
        from speechkit.metrics.mushra import PROXY_KEYS, RANKING_KEYS

        keys = PROXY_KEYS if wide else RANKING_KEYS
        gone = [key for key in keys if not all(key in row for row in rows)]
        note = f"no {'MUSHRA-proxy' if wide else 'ranking'}: it needs {', '.join(gone)}"
        if note not in notes:
            notes.append(note)
        return "-"
    interval = "" if found.low is None else f" ({found.low:.1f} to {found.high:.1f})"
    return f"{found.score:.1f}{interval}"


def table(rows: Sequence[dict[str, Any]], wide: bool, notes: list[str]) -> str:
    """Write the conditions as a Markdown table of means over items.

    Examples
    --------
    >>> notes = []
    >>> print(table([{"id": "a", "condition": "x", "kbps": 6.0, "stoi": 0.9}], True, notes))
    | condition | kbps | STOI | MUSHRA-proxy |
    |---|---:|---:|---:|
    | x | 6.0 | 0.900 | - |
    >>> notes
    ['no MUSHRA-proxy: it needs pesq, visqol_audio, mel_db']
    """
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    last = "MUSHRA-proxy" if wide else "ranking (of 100, an order only)"
    head = ["condition", *(COLUMNS[key][0] for key in keys), last]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in dict.fromkeys(row["condition"] for row in rows):
        own = [row for row in rows if row["condition"] == name]
        cells = [name]
        for key in keys:
            values = [row[key] for row in own if key in row]
            mean = f"{sum(values) / len(values):.{COLUMNS[key][1]}f}" if values else "-"
            cells.append(mean)
        lines.append([*cells, overall(own, wide, notes)])
    text = [f"| {' | '.join(line)} |" for line in lines]
    text[1] = f"|{'|'.join(lines[1])}|"
    return "\n".join(text)


def run(options: argparse.Namespace) -> str:
    """Measure everything, write the rows if asked, and return what is printed."""
    from speechkit.data.errors import DataError
    from speechkit.files import atomic_write

    notes: list[str] = []
    references = find(options.references)
    if not references:
        raise DataError(f"{options.references}: no audio file ({', '.join(sorted(ENDINGS))})")
    items = list(references)[: options.limit]
    rate = table_rate(options, [references[item] for item in items], notes)
    conditions = conditions_of(options, rate, items, notes)
    metrics = metrics_of(options, rate, notes)
    jobs = [
        Job(item, references[item], conditions, rate, options.seconds, metrics) for item in items
    ]
    rows = kept([row for found in measured(jobs, options.jobs) for row in found], notes)
    if not rows:
        raise DataError(f"{options.references}: no item can be measured under all conditions")
    text = table(rows, rate >= WIDE, notes)
    if options.out is not None:
        content = {"rate": rate, "seconds": options.seconds, "notes": notes, "rows": rows}
        atomic_write(options.out, json.dumps(content, indent=1) + "\n")
    return "\n".join([text, *(f"note: {note}" for note in notes)])


def table_rate(options: argparse.Namespace, paths: Sequence[Path], notes: list[str]) -> int:
    """Settle the table's sample rate; audio of narrow band is not passed off as wide."""
    from speechkit.data.audio import audio_info
    from speechkit.data.errors import DataError

    rates = {path: audio_info(path).sample_rate for path in paths}
    lowest = min(rates.values())
    rate: int = options.rate or lowest
    if rate >= WIDE and lowest <= 16000:
        path = next(path for path in paths if rates[path] == lowest)
        raise DataError(
            f"{path}: {lowest} Hz; a table at {rate} Hz is for speech of more than 16 kHz, "
            f"leave it out or give --rate {lowest} (a ranking)"
        )
    if lowest < rate:
        notes.append(f"references from {lowest} Hz on: nothing above {lowest / 2:g} Hz is compared")
    return rate


def conditions_of(
    options: argparse.Namespace, rate: int, items: Sequence[str], notes: list[str]
) -> tuple[Condition, ...]:
    """List the conditions: the reference, decoded folders, Opus where it is, the anchors."""
    from speechkit.data.errors import DataError, listing

    conditions = [Condition(REFERENCE)]
    coded, delays = dict(options.coded), dict(options.delay)
    for name, folder in options.decoded:
        conditions.append(
            Condition(name, folder, coded.get(name), delays.get(name, 0), name in options.gain)
        )
        declared = [f"a delay of {delays[name]} samples undone"] if name in delays else []
        declared += ["a least-squares gain fitted"] if name in options.gain else []
        if declared:
            notes.append(f"{name}: {' and '.join(declared)}, as declared")
        for place, audio in ((folder, True), (coded.get(name), False)):
            there = items if place is None else find(place, audio=audio)
            lacking = [item for item in items if item not in there]
            if lacking:
                raise DataError(
                    listing(f"{place}: no file for", lacking, "Every reference needs one.")
                )
    if options.opus and not (shutil.which("opusenc") and shutil.which("opusdec")):
        notes.append("Opus is left out: opusenc and opusdec (opus-tools) are not installed")
    elif options.opus:
        conditions += [Condition(f"Opus {kbps:g}", opus_kbps=kbps) for kbps in options.opus]
    for cutoff in (3500.0, 7000.0):
        if cutoff * 8 / 7 <= rate / 2:
            conditions.append(Condition(f"anchor {cutoff / 1000:g} kHz", cutoff=cutoff))
        else:
            notes.append(f"no anchor of {cutoff / 1000:g} kHz at {rate} Hz")
    return tuple(conditions)


def metrics_of(options: argparse.Namespace, rate: int, notes: list[str]) -> tuple[str, ...]:
    """Choose what is measured; what lacks its package becomes a note."""
    from speechkit.metrics.quality import MEASURES, missing_packages

    asked = options.metrics or [
        name
        for name, found in MEASURES.items()
        if rate >= found.least_rate and (rate >= WIDE or name != "visqol_audio")
    ]
    missing = missing_packages(asked)
    notes += [f"no {COLUMNS[name][0]}: {reason}" for name, reason in missing.items()]
    return tuple(name for name in asked if name not in missing)


def measured(jobs: Sequence[Job], workers: int) -> Iterator[list[dict[str, Any]]]:
    """Measure the items, in order, with a progress bar on a terminal."""
    from tqdm import tqdm

    bar: dict[str, Any] = {"total": len(jobs), "unit": "item", "disable": None}
    if workers == 1:
        yield from tqdm(map(measure_item, jobs), **bar)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        yield from tqdm(pool.map(measure_item, jobs), **bar)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


# ---------------------------------------------------------------- the command line


def _named(text: str) -> tuple[str, str]:
    name, sign, value = text.rpartition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _named_folder(text: str) -> tuple[str, Path]:
    name, value = _named(text)
    if not Path(value).is_dir():
        raise argparse.ArgumentTypeError(f"{value}: no such folder")
    return name, Path(value)


def _named_samples(text: str) -> tuple[str, int]:
    name, value = _named(text)
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r}: a delay is a number of samples, 0 or more")
    return name, int(value)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    from speechkit.metrics.quality import MEASURES

    parser = argparse.ArgumentParser(description="A listening test's table, by proxy.")
    parser.add_argument("references", type=Path, help="folder of the original audio")
    for option, kind, value, text in (
        ("decoded", _named_folder, "NAME=FOLDER", "a condition: its decoded files"),
        ("coded", _named_folder, "NAME=FOLDER", "its coded files: bit rate as on disk"),
        ("delay", _named_samples, "NAME=SAMPLES", "its codec's delay"),
        ("gain", str, "NAME", "fit its level by least squares"),
    ):
        parser.add_argument(
            f"--{option}", type=kind, metavar=value, action="append", default=[], help=text
        )
    parser.add_argument("--opus", type=float, nargs="+", default=[], metavar="KBPS")
    parser.add_argument("--rate", type=int, help="samples a second of the table (references')")
    parser.add_argument("--seconds", type=float, help="only so much of each item, from its start")
    parser.add_argument("--limit", type=int, help="only the first items, by name")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help=", ".join(MEASURES))
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--out", type=Path, help="write all rows here, as JSON")
    options = parser.parse_args(arguments)
    if not options.references.is_dir():
        parser.error(f"{options.references}: no such folder")
    names = [name for name, _ in options.decoded]
    declared = [*(name for name, _ in (*options.coded, *options.delay)), *options.gain]
    unknown = sorted(set(declared) - set(names))
    if unknown or len(set(names)) < len(names):
        parser.error(f"each condition is one --decoded NAME=FOLDER; not so: {unknown or names}")
    if not all(6 <= kbps <= 256 for kbps in options.opus):
        parser.error(f"--opus must be from 6 to 256 kbps, got {options.opus}")
    for name in ("rate", "seconds", "limit", "jobs"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be above 0, got {value}")
    wrong = sorted(set(options.metrics or ()) - set(MEASURES))
    if wrong:
        parser.error(f"no metric {', '.join(wrong)}; there are: {', '.join(MEASURES)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from speechkit.data.errors import DataError

    options = _parse(list(sys.argv[1:] if argv is None else argv))
    try:
        print(run(options))
    except (DataError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
