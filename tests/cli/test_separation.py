"""``speechkit separate`` and ``enhance``: which files they write, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor, nn

import speechkit
from speechkit import cli
from speechkit.cli.wav import WavWriter
from speechkit.data.audio import audio_info, read_audio, write_audio
from speechkit.models.separate import Enhanced, Sources
from speechkit.models.separator import Separator
from speechkit.nn.filterbank import FilterbankDecoder, FilterbankEncoder
from speechkit.nn.tcn import ConvTasNetMasker


def separator(num_sources: int) -> Separator:
    torch.manual_seed(0)
    return Separator(
        sample_rate=8000,
        encoder=FilterbankEncoder(num_filters=12),
        masker=ConvTasNetMasker(
            num_features=12,
            num_sources=num_sources,
            bottleneck_size=6,
            hidden_size=8,
            skip_size=6,
            num_blocks=2,
            num_repeats=1,
        ),
        decoder=FilterbankDecoder(num_filters=12),
    ).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for name, num_sources in (("two", 2), ("one", 1)):
        speechkit.save(separator(num_sources), folder / name)
    speechkit.save(nn.PReLU(), folder / "other")
    return {name: str(folder / name) for name in ("two", "one", "other")}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_audio(tmp_path / "in/mix.wav", mixture(), 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mixture() -> Tensor:
    return 0.1 * torch.randn(40001, generator=torch.Generator().manual_seed(0))


def test_separate_writes_each_source(
    work: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["separate", "in/mix.wav", "--model", folders["two"], "--window", "1"]
    assert cli.main([*command, "--out", "out/deep"]) == 0
    output = capsys.readouterr()
    paths = [Path("out/deep") / f"mix-source{i}.wav" for i in (1, 2)]
    assert output.out.splitlines() == [str(path) for path in paths]
    assert output.err == ""
    assert sorted(Path("out/deep").iterdir()) == paths, "nothing half written is left"
    expected = separator(2).separate("in/mix.wav", window=1.0)
    assert isinstance(expected, Sources)
    for path, source in zip(paths, expected.estimates):
        assert soundfile.info(path).subtype == "FLOAT"
        assert audio_info(path) == (16000, 40001, 1)
        assert torch.allclose(read_audio(path)[0], source, atol=1e-6)
    assert cli.main([*command, "--scale", "mixture"]) == 0
    scaled = separator(2).separate("in/mix.wav", window=1.0, scale="mixture")
    assert isinstance(scaled, Sources)
    assert torch.allclose(read_audio("mix-source2.wav")[0], scaled.estimates[1], atol=1e-6)


def test_enhance_writes_one_file(
    work: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["enhance", "in/mix.wav", "--model", folders["one"]]) == 0
    assert capsys.readouterr().out == "mix-enhanced.wav\n"
    expected = separator(1).enhance("in/mix.wav")
    assert isinstance(expected, Enhanced)
    assert torch.allclose(read_audio("mix-enhanced.wav")[0], expected.waveform, atol=1e-6)
    assert cli.main(["enhance", "in/mix.wav", "--model", folders["two"]]) == 2
    assert "gives 2 sources" in capsys.readouterr().err


def test_a_bad_file_does_not_cost_the_others(
    work: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = torch.zeros(200000)
    bad[-1] = math.nan  # found only when much is written
    soundfile.write("in/bad.wav", bad.numpy(), 16000, subtype="FLOAT")
    Path("out").mkdir()
    Path("out/bad-source1.wav").write_text("an older result")
    files = ["gone.wav", "in/bad.wav", "in/mix.wav"]
    command = ["separate", *files, "--model", folders["two"], "--out", "out", "--window", "1"]
    assert cli.main(command) == 1
    output = capsys.readouterr()
    assert output.out.splitlines() == ["out/mix-source1.wav", "out/mix-source2.wav"]
    assert "gone.wav: no such audio file" in output.err
    assert "in/bad.wav: 1 samples are NaN" in output.err
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == ["bad-source1.wav", "mix-source1.wav", "mix-source2.wav"]
    assert Path("out/bad-source1.wav").read_text() == "an older result"


def test_integers_clip_with_a_warning(
    work: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_audio("in/loud.wav", 20 * mixture(), 16000)
    found = separator(1).enhance("in/mix.wav")
    assert isinstance(found, Enhanced)
    for subtype, full in (("PCM_16", 2**15), ("PCM_24", 2**23)):
        command = ["enhance", "in/mix.wav", "--model", folders["one"], "--subtype", subtype]
        assert cli.main(command) == 0
        assert capsys.readouterr().err == ""
        written = read_audio("mix-enhanced.wav")[0]
        assert torch.allclose(written, found.waveform, atol=0.51 / full + 1e-6)
    model = separator(1)
    with torch.no_grad():
        model.decoder.conv.weight *= 1000  # type: ignore[union-attr, operator]
    speechkit.save(model, work / "loud")
    assert cli.main(["enhance", "in/loud.wav", "--model", "loud", "--subtype", "PCM_16"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("speechkit: warning: in/loud.wav: ")
    assert "are clipped" in lines[0]
    written = soundfile.read("loud-enhanced.wav", dtype="int16")[0]
    at_full = int(((written == 32767) | (written == -32768)).sum())
    count = int(lines[1].split(": ")[3].split()[0])
    assert 0 < at_full - 20 <= count <= at_full
    assert "loud-enhanced.wav" in lines[1]


def test_inputs_are_never_overwritten(
    work: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_audio("in/a.wav", mixture(), 16000)
    write_audio("in/a-source2.wav", mixture(), 16000)
    before = Path("in/a-source2.wav").read_bytes()
    command = ["separate", "in/a.wav", "in/a-source2.wav", "--model", folders["two"]]
    assert cli.main([*command, "--out", "in"]) == 2
    assert "would overwrite in/a-source2.wav" in capsys.readouterr().err
    Path("a-source2.wav").symlink_to("in/a-source2.wav")
    assert cli.main(command) == 2
    assert Path("in/a-source2.wav").read_bytes() == before
    write_audio("other/mix.flac", mixture(), 16000)
    command = ["separate", "in/mix.wav", "other/mix.flac", "--model", folders["two"]]
    assert cli.main(command) == 2
    assert "in/mix.wav and other/mix.flac would both be written" in capsys.readouterr().err
    assert not Path("mix-source1.wav").exists()
    # the same file twice is no conflict
    assert cli.main(["separate", "in/mix.wav", "in/mix.wav", "--model", folders["two"]]) == 0


@pytest.mark.parametrize("command", ["separate", "enhance"])
def test_commands_that_cannot_be(
    command: str, work: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "in/mix.wav", "--model", folders["other"]]) == 2
    assert "holds a PReLU, which does not separate" in capsys.readouterr().err
    assert cli.main([command, "in/mix.wav", "--model", "no/such/folder"]) == 2
    assert cli.main([command, "in/mix.wav", "--model", folders["one"], "--device", "toast"]) == 2
    capsys.readouterr()
    for wrong in (["--window", "0"], ["--subtype", "MP3"], ["--scale", "loud"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "in/mix.wav", "--model", "m", *wrong])
        assert stop.value.code == 2
    assert cli.main(["transcribe", "in/mix.wav", "--model", folders["two"]]) == 2
    assert "holds a Separator, which does not transcribe" in capsys.readouterr().err


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_what_was_read_is_written_back(subtype: str, tmp_path: Path) -> None:
    samples = torch.arange(-32768, 32768) / 32768
    path = tmp_path / "a.wav"
    with WavWriter(path, 8000, len(samples), subtype=subtype) as writer:
        for block in samples.split(1000):
            writer.write(block)
    assert writer.clipped == 0
    assert torch.equal(read_audio(path)[0], samples)
