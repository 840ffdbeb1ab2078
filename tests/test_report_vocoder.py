"""The page's section on vocoders."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from speechkit.data.audio import write_audio
from speechkit.report_run import Run
from speechkit.report_vocoder import vocoder


def _write(folder: Path, condition: str, *, key: str = "vocoder") -> None:
    (folder / "hparams.yaml").write_text("seed: 1\n")
    name = f"test@{condition}"
    write_audio(folder / "test" / name / "audio/000.wav", 0.1 * torch.randn(8000), 8000)
    row = {
        "id": "LJ001-0001", key: condition, "pesq": 2.5, "audio": "a.wav", "duration": 1.0,
        "estimate": f"test/{name}/audio/000.wav",
    }  # fmt: skip
    (folder / "test" / name / "rows.jsonl").write_text(json.dumps(row) + "\n")


def test_each_condition_can_be_heard(tmp_path: Path) -> None:
    for condition in ("vocoder", "griffin-lim", "recording"):
        _write(tmp_path, condition)
    section = vocoder(Run.read(tmp_path))
    assert section.count("<audio") == 3
    assert "LJ001-0001" in section
    assert "griffin-lim" in section
    assert "PESQ-WB 2.5" in section


def test_other_runs_have_no_such_section(tmp_path: Path) -> None:
    _write(tmp_path, "6kbps", key="condition")
    assert vocoder(Run.read(tmp_path)) == ""
