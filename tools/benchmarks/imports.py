"""Importing, in fresh processes: what ``import speechkit`` costs over ``import torch``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from tools.benchmarks.measure import Bench, Contest, Measurement, Target, Timed, child

SCRIPT = """\
import time
{before}
begin = time.perf_counter()
{statement}
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True)
class Sizes:
    """Which statements are timed: (case, before, ours, the peer's, target)."""

    peer: str = "speechbrain"
    cases: tuple[tuple[str, str, str, str, Target | None], ...] = (
        (
            "package, over torch",
            "import torch",
            "import speechkit",
            "import speechbrain",
            Target(seconds=0.15),
        ),
        (
            "CTC recogniser, over torch",
            "import torch",
            "from speechkit.models.asr import CTCRecognizer",
            "from speechbrain.inference.ASR import EncoderASR",
            None,
        ),
    )


FULL = QUICK = Sizes()


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure every case."""
    installed = importlib.util.find_spec(sizes.peer) is not None
    for case, before, ours, theirs, target in sizes.cases:
        yield bench.compare_timed(
            Contest("import", case, sizes.peer, object, None, target),
            statement_seconds(before, ours),
            statement_seconds(before, theirs) if installed else None,
            on_cpu=True,
        )


def statement_seconds(before: str, statement: str) -> Timed:
    """Return a function that times a statement in a fresh interpreter, ``before`` not counted."""

    def timed() -> float:
        return float(child(["-c", SCRIPT.format(before=before, statement=statement)]))

    return timed
