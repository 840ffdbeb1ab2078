"""``speechkit synthesize``: speech from text, what it says about it, and what it refuses."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speechkit
from speechkit import cli
from speechkit.data.audio import audio_info, read_audio, write_audio
from speechkit.data.text_front_end import TextFrontEnd
from speechkit.features.spectrum import LogMel
from speechkit.models.one_pass_tts import OnePassTTS
from speechkit.models.synthesizer import Synthesizer
from speechkit.models.tacotron2 import Tacotron2
from speechkit.models.vocoder import GriffinLim
from speechkit.models.voices import VoiceTable
from speechkit.nn.convnext import ConvNeXtEncoder

RATE = 8000


def features(floor: float = 1e-4) -> LogMel:
    return LogMel(sample_rate=RATE, n_fft=256, hop_length=100, num_mels=16, floor=floor)


def synthesizer() -> Synthesizer:
    torch.manual_seed(0)
    text = TextFrontEnd.from_texts(["The quick brown fox jumps over the lazy dog."])
    sizes = {"input_size": 8, "embed_dim": 8, "num_layers": 1, "hidden_size": 8}
    acoustic = OnePassTTS(
        num_symbols=text.vocab_size, num_mels=16, speaker_size=4, predictor_size=8,
        encoder=ConvNeXtEncoder(**sizes), decoder=ConvNeXtEncoder(**sizes),
    )  # fmt: skip
    voices = VoiceTable(names=["ann", "bob"], output_size=4)
    return Synthesizer(
        front_end=text, acoustic=acoustic, features=features(), voices=voices
    ).eval()  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    speechkit.save(synthesizer(), tmp_path / "model")
    speechkit.save(nn.PReLU(), tmp_path / "other")
    speechkit.save(GriffinLim(features=features(), iterations=2), tmp_path / "vocoder")
    speechkit.save(GriffinLim(features=features(1e-5)), tmp_path / "vocoder_of_others")
    return tmp_path


COMMAND = ["synthesize", "--model", "model", "--out", "out.wav", "--voice", "ann"]


def test_a_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*COMMAND, "The dog. A fox."]) == 0
    said = synthesizer().synthesize("The dog. A fox.", voice="ann")
    waveform, rate = read_audio(folder / "out.wav")
    assert rate == RATE
    assert torch.allclose(waveform, said.waveform.clamp(-1, 1), atol=1e-4)
    assert capsys.readouterr().out == f"out.wav: {len(waveform) / RATE:.2f} s, 2 sentences\n"


def test_json_a_file_and_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "story.txt").write_text("The dog. A fox.\n", encoding="utf-8")
    more = ["--text_file", "story.txt", "--json", "--pause", "1.5", "--vocoder", "vocoder"]
    assert cli.main([*COMMAND, *more]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sentences"] == ["The dog.", "A fox."]
    assert told["stopped"] is True
    info = audio_info("out.wav")
    assert told["seconds"] == pytest.approx(info.num_samples / RATE)
    said = synthesizer().synthesize("The dog. A fox.", voice="ann", pause=1.5)
    assert info.num_samples == len(said.waveform)


def test_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("The dog."))
    assert cli.main([*COMMAND, "-"]) == 0
    assert Path("out.wav").exists()


def test_a_pipe(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main([*COMMAND, "The dog. A fox.", "--out", "-", "--pause", "0.1"]) == 0
    output = capfdbinary.readouterr()
    Path("piped.wav").write_bytes(output.out)
    waveform, rate = read_audio("piped.wav")
    said = synthesizer().synthesize("The dog. A fox.", voice="ann", pause=0.1)
    assert rate == RATE
    assert torch.allclose(waveform, said.waveform.clamp(-1, 1), atol=1e-4)
    assert b"2 sentences" in output.err


def test_the_attention_is_a_choice_of_tacotron(folder: Path, monkeypatch: Any) -> None:
    model = synthesizer()
    acoustic = Tacotron2(
        num_symbols=model.front_end.vocab_size, num_mels=16, speaker_size=4, reduction_factor=2,
        embed_dim=8, encoder_size=8, encoder_convs=1, prenet_sizes=(8, 8), attention_size=8,
        location_channels=2, location_kernel=5, attention_lstm_size=8, decoder_lstm_size=8,
        postnet_size=8, postnet_convs=1,
    )  # fmt: skip
    tacotron = Synthesizer(
        front_end=model.front_end, acoustic=acoustic, features=features(), voices=model.voices
    )
    speechkit.save(tacotron, "tacotron")
    given: list[Any] = []
    generate = Tacotron2.generate

    @functools.wraps(generate)
    def watched(self: Tacotron2, *arguments: Any, **options: Any) -> Any:
        given.append(options.get("attention", "soft"))
        return generate(self, *arguments, **{**options, "max_frames": 8})

    monkeypatch.setattr(Tacotron2, "generate", watched)
    for choice in ([], ["--attention", "soft"], ["--attention", "forward"]):
        # Nothing was learned: it does not stop by itself.
        assert cli.main([*COMMAND, "Dog.", "--model", "tacotron", *choice]) == 1
    assert given == ["soft", "soft", "forward"]


def test_missing_folders_are_made(folder: Path) -> None:
    assert cli.main([*COMMAND, "Dog.", "--out", "new/deep/out.flac"]) == 0
    assert Path("new/deep/out.flac").exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("out.mp9", "--out out.mp9: .mp9 cannot be written at 8000 Hz; take .wav"),
        ("out", "--out out: a name without an ending cannot be written"),
        ("out.raw", ".raw cannot be written"),
        ("other", "--out other: is a folder; give a file, such as other/out.wav"),
        ("clip.wav/new/out.wav", "clip.wav is a file, no folder to write into"),
    ],
)
def test_where_nothing_can_be_written_is_found_before_speaking(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, out: str, said: str
) -> None:
    write_audio("clip.wav", torch.randn(RATE) * 0.1, RATE)
    before = sorted(folder.rglob("*"))

    def spoken(*_: Any, **__: Any) -> None:
        raise AssertionError("it speaks")

    monkeypatch.setattr(Synthesizer, "stream", spoken)
    assert cli.main([*COMMAND, "Dog.", "--out", out]) == 2
    assert said in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either a text"),
        (["a", "--text_file", "b"], "give either a text"),
        (["..."], "nothing to speak"),
        (["dog 🙂"], "U+1F642"),
        (["собака"], "U+0441 CYRILLIC SMALL LETTER ES"),
        (["dog", "--voice", "bop"], "'bop' is none of the model's 2 voices (ann, bob)"),
        (["dog", "--reference", "clip.wav"], "does not take the voice of a recording"),
        (["dog", "--model", "other"], "holds a PReLU, which does not speak"),
        (["dog", "--vocoder", "other"], "holds a PReLU, which is no vocoder"),
        (["dog", "--vocoder", "vocoder_of_others"], "floor"),
        (["dog", "--speed", "0"], "speed must be from"),
        (
            ["dog", "--attention", "forward"],
            "is a choice of Tacotron2; model holds a OnePassTTS, which has no such choice",
        ),
        (["dog", "--pause", "-1"], "pause must not be negative"),
        (["--text_file", "missing.txt"], "missing.txt"),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    write_audio("clip.wav", torch.randn(RATE) * 0.1, RATE)
    assert cli.main([*COMMAND, *arguments]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.startswith("speechkit: error: ")
    assert not Path("out.wav").exists()
