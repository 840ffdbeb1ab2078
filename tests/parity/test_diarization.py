"""DER against NIST's md-eval (Debian's package sctk, or SPEECHKIT_MD_EVAL names the script)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from speechkit.metrics.diarization import Turn, diarization_errors

FIELDS = {
    "total": "SCORED SPEAKER TIME",
    "missed": "MISSED SPEAKER TIME",
    "false_alarm": "FALARM SPEAKER TIME",
    "confusion": "SPEAKER ERROR TIME",
}


@pytest.fixture(scope="module")
def md_eval() -> str:
    places = [os.environ.get("SPEECHKIT_MD_EVAL"), "/usr/lib/sctk/bin/md-eval.pl"]
    for place in places:
        if place and Path(place).is_file() and shutil.which("perl"):
            return place
    pytest.skip("no md-eval: install Debian's sctk, or name the script in SPEECHKIT_MD_EVAL")


def conversation(rng: np.random.Generator, names: str, number: int) -> list[Turn]:
    """Turns of milliseconds that overlap between speakers, never within one."""
    turns = []
    for name in names:
        starts = np.sort(rng.choice(60_000, size=number, replace=False))
        for start, after in zip(starts, [*starts[1:], 65_000]):
            end = min(start + int(rng.integers(200, 6_000)), int(after) - 10)
            if end > start:
                turns.append(Turn(start / 1000, end / 1000, name))
    return turns


def write_rttm(path: Path, turns: list[Turn]) -> None:
    lines = (
        f"SPEAKER a 1 {t.start:.3f} {t.end - t.start:.3f} <NA> <NA> {t.speaker} <NA> <NA>\n"
        for t in sorted(turns)
    )
    path.write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("uem", [None, (5.0, 50.0)])
@pytest.mark.parametrize(("collar", "skip_overlap"), [(0.0, False), (0.25, False), (0.25, True)])
def test_seconds_are_those_of_md_eval(md_eval, tmp_path, seed, uem, collar, skip_overlap):
    rng = np.random.default_rng(seed)
    reference, hypothesis = conversation(rng, "abc", 8), conversation(rng, "wxyz", 6)
    write_rttm(tmp_path / "ref.rttm", reference)
    write_rttm(tmp_path / "hyp.rttm", hypothesis)
    command = ["perl", md_eval, "-r", str(tmp_path / "ref.rttm"), "-s", str(tmp_path / "hyp.rttm")]
    command += ["-c", str(collar), *(["-1"] if skip_overlap else [])]
    if uem:
        (tmp_path / "a.uem").write_text(f"a 1 {uem[0]} {uem[1]}\n", encoding="utf-8")
        command += ["-u", str(tmp_path / "a.uem")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours = diarization_errors(
        reference,
        hypothesis,
        collar=collar,
        skip_overlap=skip_overlap,
        regions=[uem] if uem else None,
    )
    for ours_name, theirs in FIELDS.items():
        found = re.search(rf"{theirs} =\s*([\d.]+) secs", said)
        assert found, said
        assert getattr(ours, ours_name) == pytest.approx(float(found[1]), abs=0.011), theirs
    assert ours.total > 5
    assert ours.confusion > 0.5
