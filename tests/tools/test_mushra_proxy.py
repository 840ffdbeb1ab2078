"""The listening test by proxy: conditions, declared delay and gain, bit rate, notes, refusals."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.data.audio import write_audio
from speechkit.metrics.mushra import CAUTION, score_condition

ROOT = Path(__file__).parents[2]
RATE = 24000
FAST = ["--metrics", "si_snr", "mel"]


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "mushra_proxy_tool", ROOT / "tools" / "mushra_proxy.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE) -> Tensor:
    time = torch.arange(int(seconds * rate)) / rate
    chirp = torch.sin(2 * math.pi * hertz * time * (1 + time))
    return 0.2 * chirp + 0.05 * torch.sin(2 * math.pi * 5000 * time)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """References a and b/c, and decoded files 48 samples late and at half their level."""
    for hertz, name in ((300.0, "a"), (500.0, "b/c")):
        write_audio(tmp_path / "ref" / f"{name}.wav", tone(hertz), RATE)
        late = torch.nn.functional.pad(0.5 * tone(hertz), (48, 0))
        write_audio(tmp_path / "dec" / f"{name}.flac", late, RATE, subtype="PCM_24")
        coded = tmp_path / "coded" / f"{name}.bin"
        coded.parent.mkdir(parents=True, exist_ok=True)
        coded.write_bytes(bytes(375))
    return tmp_path / "ref", tmp_path / "dec"


def run(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    code = tool.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows_of(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads(path.read_text())["rows"]
    return {(row["condition"], row["id"]): row for row in rows}


def test_conditions_and_what_is_declared(folders, tmp_path, capsys):
    ref, dec = folders
    out = tmp_path / "rows.json"
    arguments = [ref, "--decoded", f"mine={dec}", "--coded", f"mine={tmp_path / 'coded'}"]
    code, text, _ = run(capsys, *arguments, *FAST, "--out", out)
    assert code == 0
    lines = text.splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:6]]
    assert names == ["hidden reference", "mine", "anchor 3.5 kHz", "anchor 7 kHz"]
    assert "declared" not in text
    rows = rows_of(out)
    assert {item for _, item in rows} == {"a", "b/c"}
    assert rows["mine", "a"]["kbps"] == pytest.approx(375 * 8 / 1000 / 0.5)
    assert "kbps" not in rows["hidden reference", "a"]
    assert rows["mine", "a"]["si_snr"] < 10  # a delay that is not declared is not undone
    assert rows["mine", "a"]["mel"] > 4

    code, text, _ = run(
        capsys, *arguments, *FAST, "--out", out, "--delay", "mine=48", "--gain", "mine"
    )
    assert code == 0
    assert "note: mine: a delay of 48 samples undone and a least-squares gain fitted" in text
    rows = rows_of(out)
    assert rows["mine", "b/c"]["si_snr"] > 60
    assert rows["mine", "b/c"]["mel"] < 0.1
    assert rows["anchor 3.5 kHz", "a"]["mel"] > rows["anchor 7 kHz", "a"]["mel"]


def test_two_processes_give_the_rows_of_one(folders, tmp_path, capsys):
    code, text, _ = run(capsys, folders[0], *FAST, "--out", tmp_path / "one.json")
    command = [sys.executable, ROOT / "tools" / "mushra_proxy.py", folders[0], *FAST]
    options = ["--jobs", "2", "--out", tmp_path / "two.json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert (code, done.stdout) == (0, text)
    one, two = rows_of(tmp_path / "one.json"), rows_of(tmp_path / "two.json")
    assert list(one) == list(two)
    for key, row in one.items():  # threads of torch differ, and with them the last digits
        assert row == {**two[key], **{m: pytest.approx(two[key][m], rel=1e-4) for m in FAST[1:]}}


def test_a_missing_package_drops_its_column_and_the_proxy_refuses(folders, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "visqol", None)
    names = ["--metrics", "si_snr", "visqol_audio", "mel_db"]
    code, text, _ = run(capsys, folders[0], *names)
    assert code == 0
    assert "ViSQOL" not in text.splitlines()[0]
    assert "note: no ViSQOL audio: visqol-python is not installed: pip install" in text
    assert "note: no MUSHRA-proxy: it needs pesq, visqol_audio" in text
    assert all(line.endswith("| - |") for line in text.splitlines()[2:5])


def test_scores_stand_with_their_interval_and_caution():
    rows = [
        {"id": str(i), "condition": "x", "pesq": 2.0 + i, "visqol_audio": 2.5, "mel_db": 9.0}
        for i in range(3)
    ]
    notes: list[str] = []
    text = tool.table(rows, True, notes)
    assert score_condition(rows).describe() in text
    assert CAUTION in text
    assert notes == []


def test_below_24_khz_there_is_a_ranking_only(tmp_path, capsys):
    pytest.importorskip("pesq")
    write_audio(tmp_path / "ref" / "a.wav", tone(300.0, rate=16000), 16000)
    code, text, _ = run(capsys, tmp_path / "ref", *FAST)
    assert code == 0
    assert "ranking (of 100, an order only)" in text
    assert "MUSHRA" not in text
    assert "note: no ranking: it needs pesq, visqol_speech" in text
    code, _, err = run(capsys, tmp_path / "ref", *FAST, "--rate", 24000)
    assert code == 1
    assert "16000 Hz; a table at 24000 Hz is for speech of more than 16 kHz" in err


@pytest.mark.filterwarnings("ignore:stoi is left out")
def test_an_item_that_one_condition_cannot_have_is_left_out_of_all(capsys, tmp_path):
    pytest.importorskip("pystoi")
    write_audio(tmp_path / "ref" / "a.wav", torch.randn(RATE) / 9, RATE)
    write_audio(tmp_path / "ref" / "short.wav", torch.randn(RATE // 5) / 9, RATE)
    out = tmp_path / "rows.json"
    code, text, _ = run(capsys, tmp_path / "ref", "--metrics", "si_snr", "stoi", "--out", out)
    assert code == 0
    assert "note: 1 items left out of all conditions, not measurable: short" in text
    assert {item for _, item in rows_of(out)} == {"a"}


def test_opus_is_left_out_where_it_is_not_installed(folders, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, text, _ = run(capsys, folders[0], *FAST, "--opus", 6)
    assert code == 0
    assert "note: Opus is left out: opusenc and opusdec (opus-tools) are not installed" in text
    assert "| Opus" not in text


def test_faults_of_the_folders_are_named(folders, tmp_path, capsys):
    ref, dec = folders
    short = tmp_path / "short"
    write_audio(short / "a.wav", tone(300.0)[:6000], RATE)
    code, _, err = run(capsys, ref, "--decoded", f"x={short}", *FAST)
    assert (code, "no file for\n  b/c\nEvery reference needs one." in err) == (1, True)
    code, _, err = run(capsys, ref, "--decoded", f"x={short}", *FAST, "--limit", 1)
    assert (code, "-0.250 s against its reference" in err) == (1, True)
    stereo = tmp_path / "stereo"
    write_audio(stereo / "a.wav", tone(300.0).expand(2, -1), RATE)
    code, _, err = run(capsys, ref, "--decoded", f"x={stereo}", *FAST, "--limit", 1)
    assert (code, "2 channels, its reference" in err) == (1, True)
    inverted = tmp_path / "inverted"
    write_audio(inverted / "a.wav", -tone(300.0), RATE)
    arguments = ["--decoded", f"x={inverted}", "--gain", "x", "--limit", 1]
    code, _, err = run(capsys, ref, *arguments, *FAST)
    assert (code, "the least-squares gain is -1: the estimate is inverted" in err) == (1, True)
    write_audio(dec / "a.wav", tone(300.0), RATE)
    tool.find.cache_clear()
    code, _, err = run(capsys, ref, "--decoded", f"x={dec}", *FAST)
    assert (code, "have one name" in err) == (1, True)
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, tmp_path / "empty")
    assert (code, "no audio file" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--opus", "3"], "from 6 to 256 kbps"),
        (["--delay", "x=5"], r"not so: \['x'\]"),
        (["--gain", "x"], r"not so: \['x'\]"),
        (["--metrics", "mos"], "no metric mos; there are: si_snr"),
        (["--decoded", "x"], "'x' is not NAME=VALUE"),
        (["--decoded", "x=/nowhere"], "no such folder"),
        (["--seconds", "0"], "above 0"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main([str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_live_order_on_real_speech(real_data, tmp_path, capsys):
    """A moment of LJSpeech through Opus itself; the measured rows are those of 12 items."""
    if not (shutil.which("opusenc") and shutil.which("opusdec")):
        pytest.skip("opusenc and opusdec (opus-tools) are not installed")
    for package in ("pesq", "visqol", "pystoi"):
        pytest.importorskip(package)
    recordings = sorted((real_data / "LJSpeech-1.1" / "wavs").glob("*.wav"))
    if not recordings:
        pytest.skip(f"{real_data} holds no LJSpeech")
    (tmp_path / "ref").mkdir()
    shutil.copy(recordings[0], tmp_path / "ref" / "a.wav")
    out = tmp_path / "rows.json"
    names = ["--metrics", "si_snr", "stoi", "pesq", "visqol_audio", "mel_db", "--out", out]
    code, text, err = run(
        capsys, tmp_path / "ref", "--rate", RATE, "--seconds", 1.5, "--opus", 6, 12, 24, *names
    )
    assert code == 0, err
    assert "nothing above 11025 Hz is compared" in text
    rows = {condition: row for (condition, _), row in rows_of(out).items()}
    score = {name: score_condition([row]).score for name, row in rows.items()}
    assert score["Opus 6"] < score["Opus 12"] < score["Opus 24"] < score["hidden reference"]
    assert score["anchor 3.5 kHz"] < score["anchor 7 kHz"] < score["hidden reference"]
    assert score["anchor 3.5 kHz"] < score["Opus 12"]
    assert rows["Opus 6"]["kbps"] < rows["Opus 12"]["kbps"] < rows["Opus 24"]["kbps"]
    for key in ("si_snr", "stoi"):  # the negative control
        assert rows["anchor 3.5 kHz"][key] > rows["Opus 12"][key]
