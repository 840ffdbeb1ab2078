"""The benchmark tool: its rows, absent peers, and one tiny case of each area (nothing is timed)."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
FIELDS = [
    "area", "case", "peer", "ours_s", "peer_s", "ratio", "ours_peak_mib", "peer_peak_mib",
    "threads", "device",
]  # fmt: skip


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_tool", ROOT / "tools" / "benchmark.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()

from tools.benchmarks import (  # noqa: E402  (the tool puts the project's folder on the path)
    beam_search,
    codec,
    conformer,
    ctc_search,
    data,
    features,
    imports,
    measure,
    separation,
    speaker,
    tts,
    vocoder,
    wer,
)

TINY: dict[str, Any] = {
    "import": imports.Sizes(
        peer="decimal", cases=(("json", "import math", "import json", "import decimal", None),)
    ),
    "features": features.Sizes(batches=(("log-mel", 2, 0.2, 1),)),
    "data": data.Sizes(files=6, seconds=0.1, batch_seconds=0.4, workers=(0,)),
    "ctc_search": ctc_search.Sizes(
        frames=12, vocabularies=(5,), beams=(3,), kinds=("flat", "soft", "peaked")
    ),
    "beam_search": beam_search.Sizes(
        frames=10, steps=3, vocabulary=12, beam=3, width=8, heads=2, layers=1, feedforward=8,
        gru=12, lm_width=8, lm_heads=2, lm_layers=1,
        cases=(("transformer", "ctc, lm", 1), ("gru", "ctc", 2)),
    ),
    "conformer": conformer.Sizes(
        items=2, frames=60, tokens=7, embed_dim=8, heads=2, layers=1, feedforward=8, kernel=3,
        peak_steps=1,
    ),
    "separation": separation.Sizes(
        filters=8, chunk=4, layers=1, heads=2, feedforward=8, forward_s=0.02, step_s=0.02,
        rnn_filters=8, rnn_chunk=4, rnn_blocks=1, rnn_hidden=4, tcn_blocks=1, tcn_repeats=1,
        speakers=(2, 4), items=2, loss_s=0.1,
    ),
    "codec": codec.Sizes(
        seconds=0.05, coded_s=0.03, layers=1, embed_dim=16, symbols=20, items=1, crop_s=0.05,
        filters=2, judge_filters=2, windows=(64, 32),
    ),
    "tts": tts.Sizes(
        items=2, symbols=4, frames=3, mels=4, width=8, attention=4, units=6, prenet=4,
        convolutions=8, vocoder=16,
    ),
    "speaker": speaker.Sizes(
        channels=8, output_size=12, attention=4, squeeze=4, mels=8, embed_dim=64, clips=3, items=2,
        seconds=0.2, speakers=6, windows=120, voices=2,
    ),
    "vocoder": vocoder.Sizes(channels=16, frames=4, items=(1, 2), mels=8),
    "wer": wer.Sizes(sentences=5, words=4, vocabulary=6),
}  # fmt: skip
AREAS = dict(
    zip(
        TINY,
        (
            imports, features, data, ctc_search, beam_search, conformer, separation, codec, tts,
            speaker, vocoder, wer,
        ),
    )
)  # fmt: skip
AT_HAND = ("plain losses", "plain loop")  # ways to do it that need no other package


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the cases are tiny: threads would only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in AREAS.items():
        monkeypatch.setattr(module, "FULL", TINY[name])
        monkeypatch.setattr(module, "QUICK", TINY[name])
    # A process for each peak takes seconds; its own test runs it in this one.
    for module in (conformer, separation):
        monkeypatch.setattr(module, "peak_of", lambda side, sizes, device: 100.0)


@pytest.fixture
def no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in AREAS.values():
        if hasattr(module, "peer"):
            monkeypatch.setattr(module, "peer", lambda name: None)
    monkeypatch.setattr(imports.importlib.util, "find_spec", lambda name: None)


def bench(repeats: int = 1) -> measure.Bench:
    return measure.Bench(repeats=repeats)


def row(**changes: Any) -> measure.Row:
    values = ("wer", "c", "p", 1.0, 3.0, 3.0, None, None, 1, "cpu")
    return measure.Row(*values)._replace(**changes)


# ---------------------------------------------------------------- the command


@pytest.mark.usefixtures("tiny", "no_peers")
def test_absent_peers_are_rows_with_nulls(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "rows.json"
    assert tool.main(["--json", str(path), "--threads", "1", "--repeats", "1"]) == 0
    rows = json.loads(path.read_text())
    assert {one["area"] for one in rows} == set(TINY)
    assert len({(one["area"], one["case"], one["peer"]) for one in rows}) == len(rows)
    for one in rows:
        assert list(one) == FIELDS
        if one["peer"] not in AT_HAND:
            assert one["peer_s"] is one["ratio"] is one["peer_peak_mib"] is None
        assert one["ours_s"] > 0
        assert one["threads"] == 1
        assert one["device"].startswith("cpu")
    printed = capsys.readouterr().out
    assert "speechbrain is not installed" in printed
    assert "ratio >= 1.2" in printed


@pytest.mark.usefixtures("tiny")
def test_a_peer_that_is_there_gives_numbers(tmp_path: Path) -> None:
    pytest.importorskip("jiwer")
    path = tmp_path / "rows.json"
    assert tool.main(["import", "--quick", "--repeats", "1", "--json", str(path)]) == 0
    one = json.loads(path.read_text())[0]
    assert one["ratio"] == pytest.approx(one["peer_s"] / one["ours_s"])
    assert one["ours_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weather"], "no area weather; there are: import, features"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err


def test_every_area_offers_both_sizes() -> None:
    assert list(tool.MODULES) == list(TINY)
    for name, module in tool.MODULES.items():
        area = sys.modules[module]
        assert area is AREAS[name]
        assert isinstance(area.FULL, area.Sizes)
        assert isinstance(area.QUICK, area.Sizes)


def test_a_wrong_result_fails_and_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    wrong = measure.Measurement(row(), None, "the rates differ", failed=True)
    monkeypatch.setattr(wer, "measure", lambda bench, sizes: iter([wrong]))
    assert tool.main(["wer"]) == 1
    assert "FAILED: wer, c: the rates differ" in capsys.readouterr().out


def expected(cells: str) -> list[str]:
    return f"wer c p {cells}".split()


def test_the_table_shows_targets_and_whether_they_are_met() -> None:
    target = measure.Target(ratio=2.0)
    found = [
        measure.Measurement(row(), target),
        measure.Measurement(row(ratio=1.5, ours_s=0.002, ours_peak_mib=12.4), target),
        measure.Measurement(row(ratio=None), target),
        measure.Measurement(row(ours_s=0.1), measure.Target(seconds=0.15)),
    ]
    lines = tool.table(found).splitlines()
    assert lines[2].split() == expected("1.00 s 3.00 s 3.00 ratio >= 2 met")
    assert lines[3].split() == expected("2.0 ms 3.00 s 1.50 ratio >= 2 MISSED 12")
    assert "met" not in lines[4]
    assert "MISSED" not in lines[4]
    assert lines[5].split()[-5:] == ["ours", "<=", "0.15", "s", "met"]
    assert "cpu, torch threads: 1" in lines


# ---------------------------------------------------------------- measuring


def test_pairs_alternate_after_a_warm_up() -> None:
    calls: list[str] = []
    contest = measure.Contest("a", "c", "p", lambda: calls.append("A"), lambda: calls.append("B"))
    found = bench(repeats=3).compare(contest, peaks=(1.0, 2.0), on_cpu=True)
    assert "".join(calls) == "AB" * 4
    assert (found.row.ours_peak_mib, found.row.peer_peak_mib) == (1.0, 2.0)


def test_the_ratio_is_the_median_of_paired_ratios() -> None:
    # Ratios 4, 1 and 1; that of the medians would be 2.
    ours, theirs = iter([0.0, 1.0, 2.0, 4.0]), iter([0.0, 4.0, 2.0, 4.0])
    assert measure.paired(ours.__next__, theirs.__next__, 3) == (2.0, 4.0, 1.0)
    assert measure.paired(iter([0.0, 3.0, 1.0, 2.0]).__next__, None, 3) == (2.0, None, None)


def test_a_broken_peer_is_not_an_absent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_peer.py").write_text("import a_package_that_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert measure.peer("absent_peer.module") is None
    with pytest.raises(ModuleNotFoundError, match="a_package_that_it_needs"):
        measure.peer("broken_peer")
    logging.getLogger("broken_peer").setLevel(logging.NOTSET)


def test_a_child_that_fails_tells_why() -> None:
    assert measure.child(["-c", "print('noise'); print(3)"]) == "3"
    with pytest.raises(RuntimeError, match="no luck"):
        measure.child(["-c", "raise SystemExit('no luck')"])


# ---------------------------------------------------------------- the areas


def test_features_compute_what_torchaudio_computes() -> None:
    pytest.importorskip("torchaudio")
    measured = features.measure(bench(), TINY["features"])
    first = next(measured)
    assert first.row.peer == "torchaudio"
    assert not first.failed
    assert first.row.ratio is not None


def test_an_epoch_of_data_is_whole(tmp_path: Path) -> None:
    sizes = TINY["data"]
    wavs = data.write_wavs(tmp_path, sizes)
    rows = [data.Utterance(p.stem, str(p), sizes.seconds, data.RATE) for p in wavs]
    data.write_manifest(tmp_path / "m.jsonl", rows)
    epoch = data.epoch_of_ours(tmp_path / "m.jsonl", sizes, 0)
    assert epoch() == epoch() == sizes.files
    with pytest.raises(RuntimeError, match="6 utterances instead of 7"):
        data.epoch_of_ours(tmp_path / "m.jsonl", data.Sizes(files=7), 0)()


def test_searches_agree_with_pyctcdecode(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyctcdecode")
    monkeypatch.setattr(
        ctc_search, "peer", lambda name: measure.peer(name) if name == "pyctcdecode" else None
    )
    measured = list(ctc_search.measure(bench(), TINY["ctc_search"]))
    assert {one.row.peer: one.row.ratio is None for one in measured} == {
        "speechbrain": True,
        "pyctcdecode": False,
    }
    assert not any(one.failed for one in measured)


def test_joint_searches_agree_with_speechbrain() -> None:
    pytest.importorskip("speechbrain")
    cases = (("transformer", "ctc", 2), ("gru", "", 1), ("gru", "ctc", 2))
    sizes = dataclasses.replace(TINY["beam_search"], cases=cases)
    for one in beam_search.measure(bench(), sizes):
        assert not one.failed, one.note
        assert one.row.ratio is not None


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ([("ab", -1.0), ("a", -2.0)], ""),
        ([("ab", -1.0)], "2 hypotheses against 1"),
        ([("ab", -1.0), ("a", -2.1)], "rank 2: score"),
        ([("ab", -1.0), ("b", -2.0)], "rank 2: 'a' against 'b'"),
    ],
)
def test_disagreeing_lists_are_found(theirs: list[tuple[str, float]], message: str) -> None:
    found = ctc_search.disagreement([("ab", -1.0), ("a", -2.0)], theirs)
    assert message in found
    assert bool(found) == bool(message)


def test_the_conformer_learns_its_batch() -> None:
    model = conformer.build_ours(TINY["conformer"])
    step = conformer.trainer(model, TINY["conformer"], torch.device("cpu"))
    losses = [step() for _ in range(10)]
    assert losses[-1] < losses[0]


def test_the_child_of_the_conformer_prints_its_peak(capsys: Any) -> None:
    sizes = json.dumps(conformer.dataclasses.asdict(TINY["conformer"]))
    conformer.main(["ours", sizes, "cpu", "1"])
    assert float(capsys.readouterr().out) > 20


def test_word_errors_agree_with_jiwer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jiwer")
    monkeypatch.setattr(wer, "_speechbrain", lambda references, hypotheses: None)
    jiwer, speechbrain = wer.measure(bench(), TINY["wer"])
    assert jiwer.row.ratio is not None
    assert speechbrain.row.ratio is None
    assert not jiwer.failed
