"""The page of a run: whole, safe, small, and bearable without its parts."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError
from speechkit.metrics.results import SCORERS
from speechkit.page import line_plot, spectrogram
from speechkit.report import SECTIONS, Run, alignment, errors, write_report
from speechkit.report_run import MAX_PLAYERS
from speechkit.report_separation import at_level_of, histogram, separation
from speechkit.results import RunResults, write_test

EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Collects tags, and checks that they close in order."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    time = torch.arange(16000) / 16000
    write_audio(tmp_path / "tone.wav", 0.5 * torch.sin(2 * torch.pi * 440 * time), 16000)
    rows = [
        {"id": "good", "reference": "yes", "hypothesis": "yes"},
        {"id": "one", "reference": "a b c", "hypothesis": "a x c", "audio": "tone.wav"},
        {
            "id": EVIL, "reference": f"{EVIL} b", "hypothesis": "b & c d e", "speaker": EVIL,
            "audio": str(tmp_path / "tone.wav"), "start": 0.25, "duration": 0.5,
        },
        {"id": "gone", "reference": "b", "hypothesis": "", "audio": "gone.wav", "duration": 1.0},
    ]  # fmt: skip
    results = {"test": SCORERS["asr"](rows)}
    write_test(tmp_path, "test", rows, "asr", results["test"])
    RunResults("toy_ctc", f"python {EVIL}", 1, results).write(tmp_path / "RESULTS.json")
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join(
            json.dumps({"epoch": i, "step": 10 * i, "train/loss": 3 / i, "valid/loss": 4 / i,
                        "valid/WER": float("nan") if i == 2 else 50 / i, "lr": 0.1})
            for i in range(1, 5)
        )
    )  # fmt: skip
    (tmp_path / "hparams.yaml").write_text(f"seed: 1\nmodel: !new:x.{EVIL}\n")
    return tmp_path


def test_the_page_has_its_parts(run_folder: Path) -> None:
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    page = Reader(path.read_text())
    assert page.open == []
    text = path.read_text()
    for title in ("Results", "Learning curves", "Worst utterances", "Hyperparameters"):
        assert f"<h2>{title}</h2>" in text
    assert len(page.all("audio")) == 2
    assert len(page.all("article")) == 3  # without the utterance that has no error
    assert "gone.wav: no such audio file" in text
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert "loss: train from 3 to 0.75; valid from 4 to 1" in labels
    assert "Log-mel spectrogram of one, 1.00 s, 0 to 8 kHz" in labels


def test_the_page_asks_for_nothing_and_runs_nothing(run_folder: Path) -> None:
    text = write_report(run_folder).read_text()
    page = Reader(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "&lt;script&gt;" in text
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), (tag, value[:80])
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_the_page_can_be_read_without_eyes(run_folder: Path) -> None:
    page = Reader(write_report(run_folder).read_text())
    assert page.all("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(audio["aria-label"] for audio in page.all("audio"))
    assert {th["scope"] for th in page.all("th")} == {"col", "row"}
    heads = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert heads[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(heads))


def test_ids_are_not_repeated(run_folder: Path) -> None:
    page = Reader(write_report(run_folder).read_text())
    names = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(names) == len(set(names))


def test_the_same_run_gives_the_same_page(run_folder: Path) -> None:
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first


def test_the_page_stays_small(tmp_path: Path) -> None:
    write_audio(tmp_path / "noise.wav", torch.rand(40 * 16000) * 2 - 1, 16000)  # incompressible
    rows = [
        {"id": str(i), "reference": "a", "hypothesis": "b", "audio": "noise.wav", "duration": 40.0}
        for i in range(30)
    ]
    for split in ("one", "two", "three", "four"):
        write_test(tmp_path, split, rows, "asr", [])
    (tmp_path / "hparams.yaml").write_text("x: 1\n" * 400_000)
    page = write_report(tmp_path)
    assert page.stat().st_size < 5_000_000
    assert 1 <= len(Reader(page.read_text()).all("audio")) <= MAX_PLAYERS
    assert "The first 12 s." in page.read_text()


@pytest.mark.parametrize("missing", ["RESULTS.json", "metrics.jsonl", "hparams.yaml", "test"])
def test_a_run_without_some_of_it(run_folder: Path, missing: str) -> None:
    path = run_folder / missing
    path.rename(run_folder.parent / f"{run_folder.name}-{missing}")
    text = write_report(run_folder).read_text()
    assert Reader(text).open == []
    assert ("Not tested yet" in text) == (missing == "RESULTS.json")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run's folder"):
        write_report(tmp_path)


def test_other_tasks_add_sections(run_folder: Path) -> None:
    def attention_plots(run: Run) -> str:
        return f"<h2>Attention of {len(run.splits())} split</h2>"

    text = write_report(run_folder, sections=[*SECTIONS, attention_plots]).read_text()
    assert "<h2>Attention of 1 split</h2>" in text


def test_rows_of_other_tasks_are_shown(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.wav", torch.rand(800) - 0.5, 8000)
    rows = [{"id": "mix1", "error": 0.5, "audio": "x.wav"}, {"id": "mix2", "error": 2.5}]
    write_test(tmp_path, "test", rows, "", [])
    (tmp_path / "hparams.yaml").write_text("seed: 1\n")
    text = write_report(tmp_path).read_text()
    assert text.index("mix2") < text.index("mix1")
    assert len(Reader(text).all("audio")) == 1


def test_alignment_marks_each_kind() -> None:
    text = alignment("a b c", "a x c d")
    assert '<span class="sub"><del>b</del> <ins>x</ins></span>' in text
    assert '<span class="ins"><ins>d</ins></span>' in text
    assert '<span class="del"><del>b</del></span>' in alignment("a b", "a")
    assert errors({"reference": "a b", "hypothesis": "c"}) == 2.0


def test_figures_take_the_colour_of_the_page() -> None:
    svg = line_plot({"train": [(0.0, 1.0), (1.0, 0.5)]}, "step", "loss <now>")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert 'aria-label="loss &lt;now&gt;: train from 1 to 0.5"' in svg
    for length in (1, 100, 8000):
        assert "0 to 4 kHz" in spectrogram(torch.zeros(length), 8000)


# ---------------------------------------------------------------- separation


def separated(
    folder: Path, name: str, sources: int = 2, *, seconds: float = 0.5, kept: bool = True
) -> dict[str, Any]:
    """Give a row of a separator's test, whose files are noise; estimates are 50 times too loud."""
    count = int(seconds * 8000)
    signals = 0.1 * (torch.rand(sources, count, generator=torch.Generator().manual_seed(1)) - 0.5)
    place = folder / "test/test/audio"
    for n, signal in enumerate(signals):
        write_audio(folder / f"{name}-s{n}.wav", signal, 8000)
        write_audio(place / f"{name}-{n}.wav", 50 * signal, 8000, subtype="FLOAT")
    write_audio(folder / f"{name}.wav", signals.sum(dim=0), 8000)
    row: dict[str, Any] = {
        "id": name,
        "si_snr": [9.0] * sources,
        "si_snr_mixture": [1.0] * sources,
        "si_snri": [8.0] * sources,
        "sdri": [8.5] * sources,
        "speakers": [f"reader {n}" for n in range(sources)],
        "audio": str(folder / f"{name}.wav"),
        "start": 0.0,
        "duration": seconds,
        "sources": [str(folder / f"{name}-s{n}.wav") for n in range(sources)],
    }
    if kept:
        row["estimates"] = [f"test/test/audio/{name}-{n}.wav" for n in range(sources)]
    return row


def players(page: Reader) -> list[tuple[str, torch.Tensor]]:
    """Give what the players of a page are called, and their sound."""
    found = []
    for audio in page.all("audio"):
        data = base64.b64decode(str(audio["src"]).partition(",")[2])
        samples, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        found.append((str(audio["aria-label"]), torch.from_numpy(samples)))
    return found


def write_separated(folder: Path, rows: list[dict[str, Any]], split: str = "test") -> None:
    write_test(folder, split, rows, "separation", [])
    (folder / "hparams.yaml").write_text("seed: 1\n")


def test_estimates_stand_beside_their_sources_at_their_level(tmp_path: Path) -> None:
    row = separated(tmp_path, "mix1")
    row.update(si_snri=[12.34, -1.0], sdri=[None, 2.0])
    write_separated(tmp_path, [row])
    text = write_report(tmp_path).read_text()
    page = Reader(text)
    assert page.open == []
    heard = players(page)
    names = ["mixture", "source 1", "estimate 1", "source 2", "estimate 2"]
    assert [name for name, _ in heard] == [f"mix1, {name}" for name in names]
    for source, estimate in ((1, 2), (3, 4)):
        torch.testing.assert_close(heard[estimate][1], heard[source][1], atol=1e-4, rtol=0)
    labels = [svg["aria-label"] for svg in page.all("svg")]
    for name in names:
        assert f"Log-mel spectrogram of mix1, {name}, 0.50 s, 0 to 4 kHz" in labels
    for said in ("SI-SNRi 12.3 dB<", "SI-SNRi -1.0 dB · SDRi 2.0 dB<", "speaker reader 1"):
        assert said in text
    assert "each is brought to the level of its source" in text
    assert "<h2>Worst utterances</h2>" not in text  # nothing here was recognised


def test_an_enhancers_page(tmp_path: Path) -> None:
    write_separated(tmp_path, [separated(tmp_path, "noisy", sources=1)])
    names = [name for name, _ in players(Reader(write_report(tmp_path).read_text()))]
    assert names == ["noisy, mixture", "noisy, source", "noisy, estimate"]


def test_worst_and_best_by_si_snri(tmp_path: Path) -> None:
    rows = [separated(tmp_path, f"mix{n:02d}", kept=False) for n in range(12)]
    for n, row in enumerate(rows):
        row["si_snri"] = [float(n), None]
    rows.append({**rows[0], "id": "silent", "si_snri": [None, None]})
    write_separated(tmp_path, rows)
    text = separation(Run.read(tmp_path))
    worst, best = text[text.index("Worst") : text.index("Best")], text[text.index("Best") :]
    order = [re.findall(r"mix\d\d", part) for part in (worst, best)]
    assert order == [[f"mix{n:02d}" for n in range(5)], [f"mix{n:02d}" for n in (11, 10, 9, 8, 7)]]
    assert "silent" not in text
    assert "0.0 · none" in worst
    assert "SI-SNRi of 12 utterances: 0.0 to 11.0 dB, median 5.5, mean 5.5" in text
    assert "Some to hear" not in text
    write_separated(tmp_path, rows[:3])
    assert "From worst to best" in separation(Run.read(tmp_path))
    write_separated(tmp_path, rows[12:])
    assert "No utterance has an SI-SNRi." in separation(Run.read(tmp_path))


def test_separation_keeps_to_the_allowance(tmp_path: Path) -> None:
    rows = [separated(tmp_path, f"mix{n}", seconds=7.0) for n in range(4)]
    for split in ("one", "two"):
        write_separated(tmp_path, rows, split)
    page = write_report(tmp_path)
    assert page.stat().st_size < 5_000_000
    text = page.read_text()
    heard = players(Reader(text))
    assert 10 <= len(heard) <= MAX_PLAYERS
    assert all(len(samples) == 6 * 8000 for _, samples in heard)
    assert "The first 6 s." in text
    both = text.split("<h3>two</h3>")
    assert all("<audio" in part and "of the 4 that were kept are shown" in part for part in both)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimates": ["one.wav"]}, "the row 'mix' has 2 sources and 1 estimates"),
        ({"estimates": "one.wav"}, "estimates='one.wav': a list of paths is needed"),
        ({"sources": []}, "a list of paths is needed"),
        ({"si_snri": [1.0, "2"]}, "a list of numbers is needed"),
        ({"sdri": [1.0, float("inf")]}, "a list of numbers is needed"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_separated(tmp_path, [{**separated(tmp_path, "mix"), **change}])
    with pytest.raises(DataError, match=re.escape(message)):
        write_report(tmp_path)


def test_sound_that_moved(tmp_path: Path) -> None:
    rows = [separated(tmp_path, name) for name in ("moved", "there")]
    write_separated(tmp_path, rows)
    Path(rows[0]["sources"][1]).unlink()
    text = write_report(tmp_path).read_text()
    assert "moved-s1.wav: no such audio file" in text
    assert len(Reader(text).all("audio")) == 5


def test_levels_of_estimates() -> None:
    silent, source = torch.zeros(4), torch.tensor([0.5, -0.5, 0.5, -0.5])
    assert torch.equal(at_level_of(silent, source), silent)
    assert torch.equal(at_level_of(source, silent), source)
    assert len(at_level_of(silent[:0], source)) == 0
    # At the source's level this would reach 1.0: it is quieter, and keeps its shape.
    click = torch.tensor([3.0, 0.0, 0.0, -1.5])
    torch.testing.assert_close(at_level_of(click, 2 * source), click * (0.99 / 3.0))
    assert "SI-SNRi of 1 utterances: 3.0 to 3.0 dB" in histogram([3.0])
