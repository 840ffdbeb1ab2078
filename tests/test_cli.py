"""The command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import speechkit
from speechkit import cli
from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError
from speechkit.metrics.results import SCORERS
from speechkit.models.transcribe import Transcriber
from speechkit.models.transcript import Transcript, Word
from speechkit.results import RunResults, write_test

ROWS = [{"id": "a", "reference": "turn it on", "hypothesis": "turn it off"}]


class Parrot(Transcriber, nn.Module):
    """Says yes to every file that exists."""

    searches: list[object]

    def transcribe(self, source, sample_rate=None, *, search=None, **options):  # type: ignore
        self.searches.append(search)
        if not Path(source).exists():
            raise DataError(f"{source}: no such audio file")
        return Transcript("yes é", [Word("yes", 0.25, 0.5, 0.9), Word("é", 1.0, 1.25, 0.5)], 2.0)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    parrot = Parrot()
    parrot.searches = []
    monkeypatch.setattr(speechkit, "load", lambda source, *, device="cpu": parrot, raising=False)
    return parrot


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a.wav"
    write_audio(path, torch.zeros(16000), 16000)
    return str(path)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    results = SCORERS["asr"](ROWS)
    write_test(folder, "test", ROWS, "asr", results)
    RunResults("toy", "python train.py", 1, {"test": results}).write(folder / "RESULTS.json")
    return folder


def usage_status(argv: list[str]) -> object:
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    return stop.value.code


# ---------------------------------------------------------------- transcribe


def test_text_words_and_json(model: Parrot, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", file, "--model", "m"]) == 0
    assert capsys.readouterr().out == "yes é\n"
    assert cli.main(["transcribe", file, "--model", "m", "--words"]) == 0
    assert capsys.readouterr().out == "0.25\t0.50\t0.900\tyes\n1.00\t1.25\t0.500\té\n"
    assert cli.main(["transcribe", file, file, "--model", "m", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert lines[0]["file"] == file
    assert lines[0]["words"][1] == {"text": "é", "start": 1.0, "end": 1.25, "confidence": 0.5}
    assert cli.main(["transcribe", file, file, "--model", "m"]) == 0
    assert capsys.readouterr().out == f"{file}\tyes é\n" * 2


def test_a_bad_file_does_not_cost_the_others(
    model: Parrot, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["transcribe", "gone.wav", file, "--model", "m"]) == 1
    output = capsys.readouterr()
    assert output.out == f"{file}\tyes é\n"
    assert output.err == "speechkit: error: gone.wav: no such audio file\n"


def test_beam_takes_a_prefix_beam_search(model: Parrot, file: str) -> None:
    from speechkit.decoding.ctc import PrefixBeamSearch

    assert cli.main(["transcribe", file, "--model", "m", "--beam", "4"]) == 0
    assert isinstance(model.searches[0], PrefixBeamSearch)
    assert model.searches[0].beam_size == 4


@pytest.mark.parametrize("wrong", [["--beam", "0"], ["--beam", "x"], ["--json", "--words"], []])
def test_contradictory_options_are_refused(wrong: list[str]) -> None:
    command = ["transcribe", "a.wav", *wrong] + (["--model", "m"] if wrong else [])
    assert usage_status(command) == 2


def test_a_model_that_is_not_there(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", file, "--model", "no/such/folder"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("speechkit: error: ")
    assert "no/such/folder" in error
    assert "Traceback" not in error


def test_a_model_that_does_not_transcribe(
    monkeypatch: pytest.MonkeyPatch, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speechkit, "load", lambda *_, **__: nn.Linear(1, 1), raising=False)
    assert cli.main(["transcribe", file, "--model", "m"]) == 2
    assert "holds a Linear, which does not transcribe" in capsys.readouterr().err


def test_a_device_that_is_not_there(
    model: Parrot, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["transcribe", file, "--model", "m", "--device", "toaster"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("speechkit: error: --device toaster: not usable here")
    assert error.count("\n") == 1


def test_debug_shows_the_traceback(model: Parrot) -> None:
    with pytest.raises(DataError):
        cli.main(["transcribe", "gone.wav", "--model", "m", "--debug"])
    with pytest.raises(DataError):
        cli.main(["score", "no-such-folder", "--debug"])


# ---------------------------------------------------------------- transcribe --stream


class _Pipe:
    """Standard input that comes in odd pieces, and notes what was printed before each."""

    def __init__(self, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
        self.data = data
        self.capsys = capsys
        self.printed: list[str] = []

    def read1(self, size: int) -> bytes:
        self.printed.append(self.capsys.readouterr().out)
        size = min(size, 1001)
        piece, self.data = self.data[:size], self.data[size:]
        return piece


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Give a recogniser that writes one letter for a loud frame and a space for a silent one."""
    from speechkit.data.tokenizer import CharTokenizer
    from speechkit.features.spectrum import LogMel
    from speechkit.models.asr import CTCRecognizer
    from speechkit.nn.rnn import RecurrentEncoder

    model = CTCRecognizer(
        features=LogMel(sample_rate=8000, n_fft=200, hop_length=80, num_mels=4),
        encoder=RecurrentEncoder(input_size=4, hidden_size=2, num_layers=1, bidirectional=False),
        tokenizer=CharTokenizer(symbols=["a", " "]),
        sample_rate=8000,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        layer = model.encoder.ahead[0]  # type: ignore[union-attr, index]
        layer.weight_ih_l0[4:6] = 1.0  # type: ignore[union-attr, index]  # by the energy alone
        layer.bias_ih_l0[6:8] = 9.0  # type: ignore[union-attr, index]
        layer.bias_ih_l0[2:4] = -9.0  # type: ignore[union-attr, index]  # nothing is remembered
        model.head.weight[1] = 5.0
        model.head.weight[2] = -5.0
    monkeypatch.setattr(speechkit, "load", lambda *_, **__: model, raising=False)
    return model


def _beeps(count: int) -> torch.Tensor:
    beep = torch.cat([torch.randn(2000) * 0.5, torch.zeros(2000)])
    return beep.repeat(count)


def test_stream_prints_words_before_the_input_ends(
    listener: Transcriber, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pcm = (_beeps(6).clamp(-1, 1) * 32767).to(torch.int16)
    pipe = _Pipe(pcm.numpy().tobytes(), capsys)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=pipe))
    command = ["transcribe", "-", "--model", "m", "--stream", "--sample_rate", "8000"]
    assert cli.main(command) == 0
    rest = capsys.readouterr().out
    expected = listener.transcribe(pcm, 8000)
    assert isinstance(expected, Transcript)
    assert "".join(pipe.printed) + rest == expected.text + "\n" == "a a a a a a\n"
    half = "".join(pipe.printed[: len(pipe.printed) // 2])
    assert half == "a a a", "half of the input has given half of the words"


def test_stream_of_files(
    listener: Transcriber, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = str(tmp_path / "a.wav"), str(tmp_path / "b.flac")
    write_audio(path, 0.5 * _beeps(3), 8000)
    write_audio(other, torch.zeros(16000), 16000)
    expected = listener.transcribe(path)
    assert isinstance(expected, Transcript)
    command = ["transcribe", path, "--model", "m", "--stream"]
    assert cli.main([*command, "--words"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[3] for line in lines] == ["a", "a", "a"]
    starts = [f"{word.start:.2f}" for word in expected.words]
    assert [line[0] for line in lines] == starts
    assert cli.main([*command, "--json", "--pause", "0.2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["file"], row["text"]) for row in rows] == [(path, "a")] * 3
    assert cli.main(["transcribe", path, other, *command[2:]]) == 0
    assert capsys.readouterr().out == f"{path}\ta a a\n{other}\t\n"
    assert cli.main(["transcribe", "gone.wav", path, "--model", "m", "--stream"]) == 1
    output = capsys.readouterr()
    assert output.out == f"{path}\ta a a\n"
    assert "gone.wav" in output.err


def test_stream_of_half_a_sample(
    listener: Transcriber, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = _Pipe(b"\0" * 4001, capsys)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=pipe))
    command = ["transcribe", "-", "--model", "m", "--stream", "--sample_rate", "8000"]
    assert cli.main(command) == 1
    assert "standard input ended within a sample" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-"], "- goes with --stream only"),
        (["a.wav", "--sample_rate", "8000"], "--sample_rate goes with --stream only"),
        (["a.wav", "--pause", "1"], "--pause goes with --stream only"),
        (["-", "--stream"], "--sample_rate says how many samples a second standard input"),
        (["a.wav", "--stream", "--sample_rate", "8000"], "a file knows its own"),
        (["a.wav", "--stream", "--beam", "4"], "--stream is greedy"),
    ],
)
def test_stream_options_that_contradict(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["transcribe", *options, "--model", "m"]) == 2
    assert message in capsys.readouterr().err
    assert usage_status(["transcribe", "a.wav", "--model", "m", "--stream", "--pause", "x"]) == 2


def test_a_model_that_cannot_stream(
    listener: Transcriber, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechkit.features.normalize import UtteranceNorm

    listener.normalize = UtteranceNorm()  # type: ignore[attr-defined]
    assert cli.main(["transcribe", file, "--model", "m", "--stream"]) == 2
    assert "train with speechkit.features.normalize.GlobalNorm" in capsys.readouterr().err


# ---------------------------------------------------------------- score, report, check


def test_score(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", str(run_folder)]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "test\tWER\t33.33 %\t(of 3)"
    assert output.err == ""
    assert cli.main(["score", str(run_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["split"] == "test"


def test_score_finds_a_wrong_number(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_folder / "RESULTS.json"
    path.write_text(path.read_text().replace("33.3", "3.3"))
    assert cli.main(["score", str(run_folder)]) == 1
    output = capsys.readouterr()
    assert "33.33 %" in output.out
    assert "RESULTS.json: test WER is 3.3" in output.err


def test_report(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run_folder)]) == 0
    assert capsys.readouterr().out.strip() == str(run_folder / "report.html")
    assert (run_folder / "report.html").exists()


@pytest.mark.parametrize("command", ["score", "report", "check"])
def test_a_place_that_is_not_there(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert error.startswith("speechkit: error: ")


def test_check(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "train.jsonl"
    good = {"id": "a", "audio": "a.wav", "duration": 1.0, "sample_rate": 16000, "text": "yes"}
    manifest.write_text(json.dumps(good))
    assert cli.main(["check", str(manifest)]) == 0
    assert "1 utterances, 0.00 h, no problem" in capsys.readouterr().out
    manifest.write_text(json.dumps(good) + "\n" + json.dumps({**good, "audio": "gone.wav"}))
    assert cli.main(["check", str(manifest)]) == 1
    output = capsys.readouterr()
    assert "row 2" in output.out
    assert "1 problem" in output.err
    rows = [good, {**good, "id": "b", "audio": "gone.wav"}]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["check", str(manifest)]) == 1
    assert "gone.wav" in capsys.readouterr().out
    assert cli.main(["check", str(manifest), "--no-audio"]) == 0


# ---------------------------------------------------------------- the program


def test_version_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_status(["--version"]) == 0
    assert capsys.readouterr().out == f"speechkit {speechkit.__version__}\n"
    assert usage_status([]) == 2
    assert usage_status(["dance"]) == 2


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from speechkit import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'soundfile'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("transcribe", "score", "report", "check"):
        assert command in done.stdout


def test_a_reader_that_stops_early_is_no_error(run_folder: Path) -> None:
    command = f"{sys.executable} -m speechkit.cli score {run_folder} --json | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
