"""``speechkit encode``, ``decode`` and ``info``: files, pipes, folders, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "codec_files"))
from tiny_codecs import RATE, recording, tiny_codec, tiny_lm

import speechkit
from speechkit import cli
from speechkit.cli import codec_jobs
from speechkit.codec_files.files import FileCodec, encode_file
from speechkit.coding.integer_model import IntegerCodeModel
from speechkit.coding.skc import read_skc, weights_id
from speechkit.data.audio import audio_info, read_audio, write_audio

Run = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-m", "speechkit.cli"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        "mono": tiny_codec(),
        "stereo": tiny_codec("stereo"),
        "other": tiny_codec(seed=1),
        "lm": tiny_lm(),
        "lm2": tiny_lm(1),
        "none": nn.PReLU(),
    }
    for name, model in made.items():
        speechkit.save(model, folder / name)
    return {name: str(folder / name) for name in made}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_audio(tmp_path / "in.wav", recording(5.7, 2, 11025), 11025)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*command: str) -> tuple[int, str, str]:
        status = cli.main(command)
        return status, *capsys.readouterr()

    return call


def test_encode_decode_info(work: Path, models: dict[str, str], run: Run) -> None:
    status, out, err = run(
        "encode", "in.wav", "a/b.skc", "--model", models["mono"], "--kbps", "1.2"
    )
    assert (status, out) == (0, "a/b.skc\n")
    channels = "in.wav: its 2 channels are averaged to one: the codec has 1"
    assert err == f"speechkit: warning: {channels}\n"
    direct = io.BytesIO()
    model = tiny_codec()
    with pytest.warns(UserWarning, match="averaged"):
        encode_file("in.wav", direct, FileCodec.of(model), kbps=1.2)
    assert Path("a/b.skc").read_bytes() == direct.getvalue()
    assert run("decode", "a/b.skc", "b.wav", "--model", models["mono"]) == (0, "b.wav\n", "")
    assert audio_info("b.wav") == (11025, 62842, 1)
    assert soundfile.info("b.wav").subtype == "PCM_16"
    span = ("--start", "1.5", "--duration", "2", "--subtype", "FLOAT")
    assert run("decode", "a/b.skc", "c.wav", "--model", models["mono"], *span)[0] == 0
    first = round(1.5 * 11025)
    whole = read_audio("b.wav")[0][first : first + 22050]
    torch.testing.assert_close(read_audio("c.wav")[0], whole, atol=1e-4, rtol=1e-3)
    status, out, _ = run("info", "a/b.skc", "--json")
    fields = json.loads(out)
    assert status == 0
    assert fields["codec"] == weights_id(model).hex()
    assert (fields["entropy"], fields["damages"]) == (None, [])
    assert (fields["sample_rate"], fields["channels"], fields["num_samples"]) == (11025, 1, 62842)
    assert fields["kbps_written"] == pytest.approx(len(direct.getvalue()) * 8 / 5700, rel=1e-3)
    status, out, _ = run("info", "a/b.skc")
    assert out.splitlines()[1:] == [
        f"  codec     {weights_id(model).hex()}, 2 codebooks of 64",
        "  entropy   none",
        "  audio     11025 Hz, channels: 1",
        "  duration  5.700 s (62842 samples)",
        f"  rate      1.2 kbit/s nominal, {fields['kbps_written']:.3f} as written",
        f"  chunks    6 sound, {len(direct.getvalue())} bytes",
        "  damage    none",
    ]


def test_entropy(work: Path, models: dict[str, str], run: Run) -> None:
    encode = ("encode", "in.wav", "a.skc", "--model", models["stereo"], "--kbps", "2.4")
    assert run(*encode, "--entropy", models["lm"])[0] == 0
    exact = IntegerCodeModel.from_float(tiny_lm())
    content = read_skc(io.BytesIO(Path("a.skc").read_bytes()), exact)
    assert content.header.entropy_id == exact.digest
    decode = ("decode", "a.skc", "a.wav", "--model", models["stereo"])
    for given, name in (((), "none"), (("--entropy", models["lm2"]), "[0-9a-f]{16}")):
        status, out, err = run(*decode, *given)
        assert (status, out) == (1, "")
        assert exact.digest.hex() in err
        assert re.search(f"the model given is {name};", err)
    assert not Path("a.wav").exists()
    assert run(*decode, "--entropy", models["lm"]) == (0, "a.wav\n", "")
    assert audio_info("a.wav") == (11025, 62842, 2)
    status, _, err = run("decode", "a.skc", "a.wav", "--model", models["other"])
    assert status == 1
    for model in (tiny_codec("stereo"), tiny_codec(seed=1)):
        assert weights_id(model).hex() in err


def test_damage(work: Path, models: dict[str, str], run: Run) -> None:
    write_audio("in.wav", recording(5.7), RATE)
    assert run("encode", "in.wav", "a.skc", "--model", models["mono"], "--kbps", "1.2")[0] == 0
    data = bytearray(Path("a.skc").read_bytes())
    data[24 + 2 * 156 + 50] ^= 4
    Path("a.skc").write_bytes(data)
    Path("a.wav").write_text("an older one")
    status, _, err = run("decode", "a.skc", "a.wav", "--model", models["mono"])
    place = "chunk 2 (2.00 s to 3.00 s, bytes 336 to 492)"
    assert status == 1
    assert f"a.skc: damaged: {place}" in err
    assert Path("a.wav").read_text() == "an older one"
    status, out, err = run("decode", "a.skc", "a.wav", "--model", models["mono"], "--conceal")
    assert (status, out) == (0, "a.wav\n")
    assert err.startswith(f"speechkit: warning: a.skc: silence for {place}")
    samples = read_audio("a.wav")[0]
    assert run("decode", "a.skc", os.devnull, "--model", models["mono"], "--conceal")[0] == 0
    assert not Path(os.devnull).is_file(), "a device is not replaced"
    assert len(samples) == 45600
    assert not samples[16000:24000].any()
    assert samples[:16000].any()
    assert samples[24000:].any()
    status, out, _ = run("info", "a.skc", "in.wav")
    assert status == 1
    assert f"  damage    {place}" in out
    assert json.loads(run("info", "--json", "a.skc")[1])["damages"][0]["first_chunk"] == 2


def test_commands_that_cannot_be(work: Path, models: dict[str, str], run: Run) -> None:
    encode = ("encode", "in.wav", "a.skc", "--kbps", "1.2")
    for changed, message in (
        (("encode", "in.wav", "a.skc", "--model", models["mono"]), "one of 0.6, 1.2, 2.4"),
        ((*encode[:4], "7", "--model", models["mono"]), "no 7 kbit/s: choose one of 0.6, 1.2, 2.4"),
        ((*encode, "--model", models["none"]), "holds a PReLU, which is no codec"),
        ((*encode, "--model", models["mono"], "--entropy", models["mono"]), "does not predict"),
        ((*encode, "--model", models["mono"], "--device", "toast"), "toast: not usable"),
        (("encode", "in.wav", "in.wav", "--model", "m", "--kbps", "1"), "is a .skc file"),
        (("encode", "in.wav", ".", "--model", "m", "--kbps", "1"), ".: is a folder"),
        (("decode", "a.skc", "a.flac", "--model", "m"), "is a .wav file"),
        (("encode", ".", "in.wav", "--model", "m"), "in.wav is none"),
        (("decode", ".", "out", "--model", "m"), "has no files that end in .skc"),
    ):
        status, out, err = run(*changed)
        assert (status, out) == (2, ""), changed
        assert message in err
    for wrong in (("--start", "-1"), ("--duration", "0"), ("--subtype", "MP3"), ("--jobs", "0")):
        with pytest.raises(SystemExit) as stop:
            run("decode", "a.skc", "a.wav", "--model", "m", *wrong)
        assert stop.value.code == 2
    status, _, err = run("encode", "gone.wav", "a.skc", "--kbps", "1.2", "--model", models["mono"])
    assert status == 1
    assert "gone.wav: no such audio file" in err
    assert run("info", "gone.skc")[0] == 1
    assert sorted(path.name for path in Path().iterdir()) == ["in.wav"]


def _corpus(folder: Path) -> None:
    write_audio(folder / "a.wav", recording(1.5, 2), RATE)
    write_audio(folder / "deep/b.flac", recording(2.5, 2, 16000), 16000)
    write_audio(folder / "deep/c.WAV", recording(0.5), RATE)
    (folder / "bad.wav").write_text("RIFF or something like it")
    (folder / "notes.txt").write_text("not audio")
    (folder / "._a.wav").write_text("of a file system")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_folders(jobs: str, work: Path, models: dict[str, str], run: Run) -> None:
    _corpus(work / "in")
    options = ("--model", models["mono"], "--jobs", jobs)
    status, out, err = run("encode", "in", "out", "--kbps", "1.2", *options)
    assert status == 1
    names = ["out/a.skc", "out/deep/b.skc", "out/deep/c.skc"]
    assert sorted(out.splitlines()) == names
    assert "error: in/bad.wav: not audio that can be read" in err
    assert err.count("are averaged to one") == 1, "said once"
    for name, source in zip(names, ("in/a.wav", "in/deep/b.flac", "in/deep/c.WAV")):
        alone = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encode_file(source, alone, FileCodec.of(tiny_codec()), kbps=1.2)
        assert Path(name).read_bytes() == alone.getvalue()
    Path("out/d.skc").write_bytes(b"SKC\1" + bytes(30))
    status, out, err = run("decode", "out", "back", "--model", models["mono"])
    assert status == 1
    assert "error: out/d.skc: the .skc file's header is damaged" in err
    assert sorted(out.splitlines()) == ["back/a.wav", "back/deep/b.wav", "back/deep/c.wav"]
    assert audio_info("back/deep/b.wav") == (16000, 40000, 1)


def test_a_folder_whose_results_would_collide(work: Path, models: dict[str, str], run: Run) -> None:
    _corpus(work / "in")
    write_audio("in/a.flac", recording(0.1), RATE)
    status, _, err = run("encode", "in", "out", "--kbps", "1.2", "--model", models["mono"])
    assert status == 2
    assert "in/a.flac and in/a.wav would both be written to out/a.skc" in err
    assert not Path("out").exists()
    # a result that is a link to what is to be read
    Path("in/a.flac").unlink()
    Path("out").mkdir()
    Path("out/a.skc").symlink_to("../in/a.wav")
    status, _, err = run("encode", "in", "out", "--kbps", "1.2", "--model", models["mono"])
    assert status == 2
    assert "would overwrite a file that is to be read" in err


def test_a_process_that_dies(
    work: Path, models: dict[str, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _corpus(work / "in")
    monkeypatch.setattr(codec_jobs, "_start", _die)
    options = ("--kbps", "1.2", "--model", models["mono"], "--jobs", "2")
    status, out, err = run("encode", "in", "out", *options)
    assert (status, out) == (1, "")
    assert err.count("its process ended (out of memory?)") == 4


def _die(settings: codec_jobs.Settings) -> None:
    os._exit(1)


def test_pipes(work: Path, models: dict[str, str]) -> None:
    """WAV of unknown length in, .skc through a pipe, WAV out; and a reader that has enough."""
    samples = recording(13.0)
    raw = (samples * 32768).to(torch.int16).numpy().tobytes()
    size = (0xFFFFFFFF).to_bytes(4, "little")
    fields = np.array([1 | 1 << 16, RATE, 2 * RATE, 2 | 16 << 16], dtype="<u4").tobytes()
    wav = b"RIFF" + size + b"WAVEfmt \x10\0\0\0" + fields + b"data" + size + raw
    model = ["--model", models["mono"]]
    first = subprocess.Popen(
        [*COMMAND, "encode", "-", "-", *model, "--kbps", "1.2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ONE_THREAD,
    )
    second = subprocess.Popen(
        [*COMMAND, "decode", "-", "-", *model],
        stdin=first.stdout,
        stdout=subprocess.PIPE,
        env=ONE_THREAD,
    )
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdout.close()
    first.stdin.write(wav)
    first.stdin.close()
    found = second.communicate(timeout=60)[0]
    assert (first.wait(60), second.returncode) == (0, 0)
    assert found[40:44] == size, "the length is not known to a pipe"
    codec = FileCodec.of(tiny_codec())
    expected = codec.codec.decode(*codec.codec.encode(samples[None], kbps=1.2))[0, 0]
    values = np.frombuffer(found[44:], dtype="<i2").astype(np.float32) / 32768
    assert np.abs(values - expected.numpy().clip(-1, 1)).max() < 5e-5


def test_standard_input_and_output(
    work: Path, models: dict[str, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    model = ("--model", models["stereo"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("in.wav").read_bytes())))
    assert run("encode", "-", "a.skc", *model, "--kbps", "1.2") == (0, "a.skc\n", "")
    stdin = io.TextIOWrapper(io.BytesIO(Path("a.skc").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    status, out, _ = run("info", "-", "--json")
    assert (status, json.loads(out)["num_samples"]) == (0, 62842)
    stdout = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli.main(["decode", "a.skc", "-", *model]) == 0
    assert soundfile.info(io.BytesIO(stdout.buffer.getvalue())).frames == 62842
    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO()))
    assert cli.main(["decode", "a.skc", "-", *model]) == 2


def test_control_c_leaves_nothing_behind(work: Path, models: dict[str, str]) -> None:
    Path("out").mkdir()
    fields = np.array([1 | 1 << 16, RATE, 2 * RATE, 2 | 16 << 16], dtype="<u4").tobytes()
    size = (0xFFFFFFFF).to_bytes(4, "little")
    command = [*COMMAND, "encode", "-", "out/a.skc", "--model", models["mono"], "--kbps", "1.2"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=ONE_THREAD
    )
    assert process.stdin is not None
    process.stdin.write(b"RIFF" + size + b"WAVEfmt \x10\0\0\0" + fields + b"data" + size)
    process.stdin.write(bytes(2 * RATE * 40))
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not list(Path("out").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [path.suffix for path in Path("out").iterdir()] == [".writing"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(Path("out").iterdir()) == []


_MEASURE = """
import sys
from pathlib import Path
from speechkit import cli

model = sys.argv[1:]
for name in ("one", "one", "ten"):
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    assert cli.main(["encode", name + ".wav", name + ".skc", "--kbps", "2.4", *model]) == 0
    assert cli.main(["decode", name + ".skc", name + "-back.wav", *model]) == 0
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells peaks on Linux alone")
@pytest.mark.parametrize("kind", ["mono", "stereo"])
def test_memory_does_not_grow_with_the_recording(
    kind: str, work: Path, models: dict[str, str]
) -> None:
    """Ten minutes take what one takes; as float32 they alone are 18 MiB a channel."""
    minute = (recording(60.0) * 32768).to(torch.int16).T.numpy()
    for name, minutes in (("one", 1), ("ten", 10)):
        soundfile.write(f"{name}.wav", np.tile(minute, (minutes, 1)), RATE)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, "--model", models[kind]],
        capture_output=True,
        text=True,
        env=ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    _, short, long = (int(line) / 1024 for line in done.stdout.split() if line.isdecimal())
    assert audio_info("ten-back.wav").num_samples == 600 * RATE
    assert long - short < 9, (short, long)


def test_a_bar_on_a_terminal_alone(
    work: Path, models: dict[str, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _corpus(work / "in")
    command = ("encode", "in.wav", "a.skc", "--kbps", "1.2", "--model", models["stereo"])
    assert run(*command)[2] == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "/6 s [" in run(*command)[2]
    decode = ("decode", "a.skc", "a.wav", "--start", "3", "--model", models["stereo"])
    assert "/3 s [" in run(*decode)[2]
    folder = ("encode", "in", "out", "--kbps", "1.2", "--model", models["stereo"])
    assert "/4 [" in run(*folder)[2]
