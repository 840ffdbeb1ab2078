"""What a separator costs: seconds and memory of a forward pass against the length of its input.

    python tools/separation_cost.py                               every model on the CPU
    python tools/separation_cost.py --device cuda --out FOLDER    on a GPU
    python tools/separation_cost.py sepformer --seconds 2 30      one model, other lengths

Whole separators of two speakers at 8 kHz, at their published sizes and with random weights, as
they are used: no gradients, float32, one recording at a time. The time is the median of several
passes after a warm-up; the peak memory is that of one pass in a fresh process, over what the
process had before the pass (on a GPU, what torch allocated). ``separation_cost.json`` has a row for
each model and length, ``separation_cost.png`` and ``.svg`` draw them.

Times are of this machine, and threads of OpenMP that spin while they wait spoil them on a busy one:
``OMP_WAIT_POLICY=PASSIVE`` is set unless it is set already.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # tools.benchmarks.* measures

if TYPE_CHECKING:
    import torch
    from torch import nn

SAMPLE_RATE = 8000
SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
NAME = "separation_cost"
HEADER = ("model", "parameters", "input", "time", "real time", "memory")


class Row(NamedTuple):
    """One model on one length of input.

    Attributes
    ----------
    model : str
        Its name.
    parameters : int
        Weights.
    seconds : float
        Length of the input.
    forward_s : float
        Median seconds of a pass.
    memory_mib : float
        Peak memory of a pass, over what was there before it.
    """

    model: str
    parameters: int
    seconds: float
    forward_s: float
    memory_mib: float


def conv_tasnet(quick: bool) -> nn.Module:
    """Build Conv-TasNet, 5.1 million parameters."""
    from speechkit.nn.tcn import ConvTasNetMasker

    if quick:
        return separator(ConvTasNetMasker(num_features=8, num_sources=2, num_repeats=1), 16)
    return separator(ConvTasNetMasker(num_features=512, num_sources=2), 16)


def dual_path_rnn(quick: bool) -> nn.Module:
    """Build the dual-path RNN, 2.6 million parameters, with filters of 2 samples."""
    from speechkit.nn.dual_path_models import DualPathRNNMasker

    if quick:
        return separator(DualPathRNNMasker(num_features=8, num_sources=2, num_blocks=1), 16)
    return separator(DualPathRNNMasker(num_features=64, num_sources=2), 2)


def sepformer(quick: bool) -> nn.Module:
    """Build SepFormer, 25.7 million parameters."""
    from speechkit.nn.dual_path_models import SepFormerMasker

    if quick:
        masker = SepFormerMasker(
            num_features=8, num_sources=2, bottleneck_size=8, num_heads=2, num_blocks=1,
            intra_layers=1, inter_layers=1, feedforward_size=16,
        )  # fmt: skip
        return separator(masker, 16)
    return separator(SepFormerMasker(num_features=256, num_sources=2), 16)


def light_sepformer(quick: bool) -> nn.Module:
    """Build the light SepFormer, 8 million parameters."""
    from speechkit.nn.dual_path_light import LightSepFormerMasker

    if quick:
        masker = LightSepFormerMasker(
            num_features=8, num_sources=2, num_heads=2, num_layers=1, feedforward_size=16
        )
        return separator(masker, 16)
    return separator(LightSepFormerMasker(num_features=128, num_sources=2), 16)


MODELS: dict[str, Callable[[bool], nn.Module]] = {
    build.__name__: build for build in (conv_tasnet, dual_path_rnn, sepformer, light_sepformer)
}
LABELS = {
    "conv_tasnet": "Conv-TasNet",
    "dual_path_rnn": "dual-path RNN",
    "sepformer": "SepFormer",
    "light_sepformer": "light SepFormer",
}


def separator(masker: nn.Module, kernel_size: int) -> nn.Module:
    """Put a mask network between filter banks whose kernels overlap by half."""
    from speechkit.models.separator import Separator
    from speechkit.nn.filterbank import FilterbankDecoder, FilterbankEncoder

    sizes: dict[str, Any] = {
        "num_filters": masker.num_features,
        "kernel_size": kernel_size,
        "stride": kernel_size // 2,
    }
    return Separator(
        sample_rate=SAMPLE_RATE,
        encoder=FilterbankEncoder(**sizes),
        masker=masker,
        decoder=FilterbankDecoder(**sizes),
    )


def forward(model: nn.Module, seconds: float, device: torch.device) -> Callable[[], None]:
    """Return a function that separates one recording of noise."""
    import torch

    size = round(seconds * SAMPLE_RATE)
    waveform = torch.randn(1, size, generator=torch.Generator().manual_seed(0)).to(device)
    lengths = torch.tensor([size], device=device)

    def run() -> None:
        with torch.inference_mode():
            model(waveform, lengths)

    return run


def measure(
    name: str, lengths: Iterable[float], device: torch.device, repeats: int, *, quick: bool = False
) -> list[Row]:
    """Measure a model on each length; each row is reported on stderr as it comes."""
    import torch

    from tools.benchmarks.measure import clock

    torch.manual_seed(0)
    model = MODELS[name](quick).to(device).eval()
    parameters = sum(weight.numel() for weight in model.parameters())
    rows = []
    for seconds in lengths:
        run = forward(model, seconds, device)
        run()
        timed = clock(run, device)
        taken = statistics.median(timed() for _ in range(repeats))
        memory = memory_of(name, seconds, device, quick=quick)
        rows.append(Row(name, parameters, seconds, taken, memory))
        print("  ".join(cells(rows[-1])), file=sys.stderr, flush=True)
    return rows


def memory_of(name: str, seconds: float, device: torch.device, *, quick: bool = False) -> float:
    """Measure the peak memory of one pass in a fresh process, in MiB."""
    import torch

    from tools.benchmarks.measure import child

    arguments = [str(Path(__file__).resolve()), "--one-pass", name, str(seconds), str(device)]
    return float(child([*arguments, str(torch.get_num_threads()), str(int(quick))]))


def one_pass(name: str, seconds: str, device: str, threads: str, quick: str) -> float:
    """Do one pass; return its peak memory in MiB over what was there before it.

    On a CPU both are of the whole process: a short pass comes before, so that what torch loads at
    its first use is not counted.
    """
    import torch

    from tools.benchmarks.measure import give_back_memory, peak_mib

    torch.set_num_threads(int(threads))
    place = torch.device(device)
    give_back_memory()
    model = MODELS[name](bool(int(quick))).to(place).eval()
    forward(model, 0.05, place)()
    run = forward(model, float(seconds), place)
    before = resident_mib(place)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    run()
    return max(0.0, peak_mib(place) - before)


def resident_mib(device: torch.device) -> float:
    """Return the memory in use now, in MiB: allocated on a GPU, else of the whole process."""
    import torch

    from tools.benchmarks.measure import peak_mib

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    pages = Path("/proc/self/statm")
    if not pages.is_file():  # elsewhere only the peak is known
        return peak_mib(device)
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# ---------------------------------------------------------------- what is written


def cells(row: Row) -> tuple[str, ...]:
    """Give a row's cells as `HEADER` names them."""
    return (
        row.model,
        f"{row.parameters / 1e6:.2f} M",
        f"{row.seconds:g} s",
        f"{row.forward_s:.3g} s",
        f"{row.forward_s / row.seconds:.3g}",
        f"{row.memory_mib:,.0f} MiB",
    )


def table(rows: Iterable[Row]) -> str:
    """Write the rows as a Markdown table; "real time" is seconds of work a second of input.

    Examples
    --------
    >>> print(table([Row("tiny", 1_500_000, 2.0, 0.5, 90.0)]))
    | model | parameters | input | time | real time | memory |
    |---|---:|---:|---:|---:|---:|
    | tiny | 1.50 M | 2 s | 0.5 s | 0.25 | 90 MiB |
    """
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1))]
    head, rule = (f"| {' | '.join(lines[0])} |", f"|{'|'.join(lines[1])}|")
    return "\n".join([head, rule, *(f"| {' | '.join(cells(row))} |" for row in rows)])


def draw(rows: Sequence[Row], title: str) -> Any:
    """Draw seconds and memory over the input's length, a line for each model."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    what = (("forward_s", "seconds of a forward pass"), ("memory_mib", "peak memory in MiB"))
    for axes, (key, label) in zip(figure.subplots(1, 2), what):
        for name in dict.fromkeys(row.model for row in rows):
            own = [row for row in rows if row.model == name]
            line = f"{LABELS[name]} ({own[0].parameters / 1e6:.1f} M)"
            values = [max(getattr(row, key), 1e-6) for row in own]
            axes.loglog([row.seconds for row in own], values, marker="o", markersize=4, label=line)
        axes.set_xlabel("seconds of input")
        axes.set_ylabel(label)
        axes.set_xticks(sorted({row.seconds for row in rows}))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    return figure


def write(rows: Sequence[Row], folder: Path, device: torch.device) -> None:
    """Write ``separation_cost.json``, ``.png`` and ``.svg``."""
    import matplotlib
    import torch

    from speechkit.files import atomic_write
    from speechkit.results import describe_device, environment

    where = describe_device(device)
    found = {
        "device": where,
        "threads": torch.get_num_threads(),
        "sample_rate": SAMPLE_RATE,
        **environment(),
        "rows": [row._asdict() for row in rows],
    }
    atomic_write(folder / f"{NAME}.json", json.dumps(found, indent=1) + "\n")
    figure = draw(rows, f"Two speakers at 8 kHz, float32, on {where}")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": NAME}):
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            atomic_write(folder / f"{NAME}.{kind}", buffer.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--one-pass"]:  # of `memory_of`, in its own process
        print(one_pass(*arguments[1:]))
        return 0
    options = _parse(arguments)
    if "torch" not in sys.modules:  # OpenMP reads it once, when torch loads it
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from speechkit.parallel import check_device

    try:
        device = torch.device(check_device(options.device))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows = []
    for name in options.models or MODELS:
        rows += measure(name, options.seconds, device, options.repeats, quick=options.quick)
    write(rows, options.out, device)
    print(table(rows))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time and memory of separators against the length of their input.",
        epilog=f"models: {', '.join(MODELS)}",
    )
    parser.add_argument("models", nargs="*", metavar="model", help="which to measure (all)")
    parser.add_argument("--seconds", type=float, nargs="+", help="lengths (1 2 4 8 16)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, help="threads of torch (its own choice)")
    parser.add_argument("--repeats", type=int, default=3, help="passes that are timed (3)")
    parser.add_argument("--out", type=Path, default=Path("results") / NAME, help="a folder")
    parser.add_argument("--quick", action="store_true", help="tiny models: does it all still run?")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        parser.error(f"no model {', '.join(unknown)}; there are: {', '.join(MODELS)}")
    if options.seconds is None:
        options.seconds = [0.1, 0.2] if options.quick else list(SECONDS)
    if not all(0.0 < seconds < 3600.0 for seconds in options.seconds):
        parser.error(f"--seconds must be above 0 and below 3600, got {options.seconds}")
    for name in ("threads", "repeats"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return options


if __name__ == "__main__":
    sys.exit(main())
