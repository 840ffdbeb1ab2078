"""Speed and memory side by side with the peers, in one process.

    python tools/benchmark.py                                  every area
    python tools/benchmark.py features wer --json FILE         some; rows to a file
    python tools/benchmark.py conformer --device cuda          on a GPU

A row is ``{area, case, peer, ours_s, peer_s, ratio, ours_peak_mib, peer_peak_mib, threads,
device}``. After a warm-up the two sides run in turn, A B A B; ``ratio`` is the median over the
pairs of the peer's time over ours (above 1 we are faster), the seconds are medians too. A peer that
is not installed is a row with nulls beside our own seconds (``pip install -e ".[parity]"
pyctcdecode`` brings them). Imports and peak memory are measured in fresh processes. ``--device`` is
for features, conformer and separation: the other areas work on the CPU. The exit status is 1 where
both sides should give the same result and do not.

Absolute times drift with the machine: compare ratios. ``OMP_WAIT_POLICY=PASSIVE`` is set unless it
is set already, before torch is imported: on a busy machine, threads of OpenMP that spin while they
wait make recurrent layers ten times slower and pairs incomparable; the price is slower loops of
tiny operators. Give ``OMP_WAIT_POLICY=ACTIVE`` on an idle machine to see those without.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # this folder's modules are tools.benchmarks.*

if TYPE_CHECKING:
    from tools.benchmarks.measure import Bench, Measurement

MODULES = {
    "import": "tools.benchmarks.imports",
    "features": "tools.benchmarks.features",
    "data": "tools.benchmarks.data",
    "ctc_search": "tools.benchmarks.ctc_search",
    "beam_search": "tools.benchmarks.beam_search",
    "conformer": "tools.benchmarks.conformer",
    "separation": "tools.benchmarks.separation",
    "codec": "tools.benchmarks.codec",
    "tts": "tools.benchmarks.tts",
    "speaker": "tools.benchmarks.speaker",
    "vocoder": "tools.benchmarks.vocoder",
    "wer": "tools.benchmarks.wer",
}
HEADER = ("area", "case", "peer", "ours", "peer's", "ratio", "target", "", "ours MiB", "peer's MiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parse(argv)
    if "torch" not in sys.modules:  # OpenMP reads it once, when torch loads it
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from tools.benchmarks.measure import Bench

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    bench = Bench(repeats=options.repeats, device=torch.device(options.device))
    found: list[Measurement] = []
    for area in options.areas or MODULES:
        found += run_area(area, bench, quick=options.quick)
        if options.json is not None:  # after every area: what is measured is not lost
            write_rows(options.json, found)
    print()
    print(table(found))
    return 1 if any(one.failed for one in found) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Speed and memory side by side with the peers.",
        epilog=f"areas: {', '.join(MODULES)}",
    )
    parser.add_argument("areas", nargs="*", metavar="area", help="which to measure (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--threads", type=int, help="threads of torch (its own choice)")
    parser.add_argument("--repeats", type=int, help="pairs of runs (5; with --quick 2)")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it all still run?")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    options = parser.parse_args(argv)
    unknown = [area for area in options.areas if area not in MODULES]
    if unknown:
        parser.error(f"no area {', '.join(unknown)}; there are: {', '.join(MODULES)}")
    if options.repeats is None:
        options.repeats = 2 if options.quick else 5
    for name in ("threads", "repeats"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return options


def run_area(area: str, bench: Bench, *, quick: bool = False) -> list[Measurement]:
    """Measure an area; each row is reported on stderr as it comes."""
    module = importlib.import_module(MODULES[area])
    found = []
    for one in module.measure(bench, module.QUICK if quick else module.FULL):
        found.append(one)
        print("  ".join(cell for cell in cells(one) if cell), file=sys.stderr, flush=True)
    return found


def write_rows(path: Path, found: Iterable[Measurement]) -> None:
    """Write the rows as a JSON list, one row a line."""
    from speechkit.files import atomic_write

    rows = ",\n".join(json.dumps(one.row._asdict()) for one in found)
    atomic_write(path, f"[\n{rows}\n]\n")


def cells(one: Measurement) -> list[str]:
    """Return a measurement as the texts of a table's line, in the order of `HEADER`."""
    row, target = one.row, one.target
    met = None if target is None else target.met(row)
    return [
        row.area,
        row.case,
        row.peer,
        _seconds(row.ours_s),
        _seconds(row.peer_s),
        "-" if row.ratio is None else f"{row.ratio:.2f}",
        "" if target is None else str(target),
        {True: "met", False: "MISSED", None: ""}[met],
        "" if row.ours_peak_mib is None else f"{row.ours_peak_mib:.0f}",
        "" if row.peer_peak_mib is None else f"{row.peer_peak_mib:.0f}",
    ]


def table(found: Sequence[Measurement]) -> str:
    """Lay the measurements out as a table, with the device and the notes under it."""
    lines = [list(HEADER), *(cells(one) for one in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    devices = dict.fromkeys(f"{one.row.device}, torch threads: {one.row.threads}" for one in found)
    notes = dict.fromkeys(
        f"{'FAILED: ' if one.failed else ''}{one.row.area}, {one.row.case}: {one.note}"
        for one in found
        if one.note
    )
    return "\n".join([*text, "", *devices, *notes])


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1.0:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


if __name__ == "__main__":
    sys.exit(main())
