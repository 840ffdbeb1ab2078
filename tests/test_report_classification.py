"""What the page says of a classifier: the matrix, each label, the mistakes and their sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.report import write_report
from speechkit.report_classification import classification
from speechkit.report_run import Run
from speechkit.results import write_rows


def row(name: str, label: Any, cat: float, **more: Any) -> dict[str, Any]:
    scores = {"<cat>": cat, "dog": 0.9 - cat, "rain": 0.1}
    return {"id": name, "label": label, "scores": scores, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hparams.yaml").write_text("seed: 1\n")
    write_audio(tmp_path / "a.wav", 0.1 * torch.randn(16000), 16000)
    rows = [
        row("right", "<cat>", 0.8),
        row("slightly", "<cat>", 0.4, audio="gone.wav"),
        row("surely", "dog", 0.85, audio="a.wav", start=0.5, duration=0.5),
    ]
    (tmp_path / "test/clips").mkdir(parents=True)
    write_rows(tmp_path / "test/clips/rows.jsonl", rows)
    return tmp_path


def test_the_page(folder: Path) -> None:
    page = write_report(folder).read_text()
    assert "Confusion matrix of 3 utterances, 1 of them right" in page
    assert "&lt;cat&gt; taken for dog: 1; dog taken for &lt;cat&gt;: 1" in page
    assert "<cat>" not in page
    assert page.index('scope="row">surely') < page.index('scope="row">slightly')
    assert 'scope="row">right' not in page
    assert page.count("<audio") == 1
    assert "surely: dog, found &lt;cat&gt;" in page
    assert "No sound of slightly" in page


def test_players_and_bytes_are_those_that_are_left(folder: Path) -> None:
    run = Run.read(folder)
    run.players = 0
    assert "<audio" not in classification(run)
    run.players, run.media_bytes = 4, 100
    assert "The page is full" in classification(run)


@pytest.mark.parametrize(
    ("rows", "shown", "missing"),
    [
        ([row("a", ["<cat>", "dog"], 0.8)], "average precision", "Confusion"),
        ([row("a", "dog", 0.1)], "No mistakes.", "<audio"),
        (
            [row("a", "dog", 0.1), {"id": "b", "label": "dog", "scores": {"dog": 1.0}}],
            "Not all rows have the same labels", "Confusion",
        ),
        ([{"id": "a", "reference": "yes", "hypothesis": "no"}], "", "Classification"),
    ],
)  # fmt: skip
def test_other_rows(rows: list[dict[str, Any]], shown: str, missing: str, folder: Path) -> None:
    write_rows(folder / "test/clips/rows.jsonl", rows)
    made = classification(Run.read(folder))
    assert shown in made
    assert missing not in made


def test_many_labels_take_less_room(folder: Path) -> None:
    names = [f"label {n}" for n in range(120)]
    rows = [
        {"id": str(n), "label": name, "scores": {other: float(other == name) for other in names}}
        for n, name in enumerate(names)
    ]
    write_rows(folder / "test/clips/rows.jsonl", rows)
    made = classification(Run.read(folder))
    assert "<summary>120 labels</summary>" in made
    assert "Confusion" not in made
