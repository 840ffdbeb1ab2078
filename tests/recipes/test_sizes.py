"""The sizes that the YAMLs at published sizes state in their comments."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from speechkit.hparams import read_hparams

HPARAMS = Path(__file__).parents[2] / "recipes" / "asr" / "hparams"
STATED = re.compile(r"([\d.]+) M parameters\.$", re.MULTILINE)
SIZED = sorted(path for path in HPARAMS.glob("*.yaml") if STATED.search(path.read_text()))


def test_the_published_sizes_are_stated() -> None:
    names = {path.stem for path in SIZED}
    assert names >= {"librispeech_las", "librispeech_transformer", "librispeech_conformer"}


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.stem)
def test_parameters(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    stated = STATED.search(text)
    vocab = re.search(r"^vocab_size: (\d+)", text, re.MULTILINE)
    part = re.search(r"^model: .*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    assert stated
    assert vocab
    assert part
    # The tokenizer comes from a corpus; only its size matters here.
    head = f"sample_rate: 16000\nvocab_size: {vocab[1]}\n"
    head += f"tokenizer: !new:types.SimpleNamespace\n  vocab_size: {vocab[1]}\n"
    small = tmp_path / path.name
    small.write_text(head + part[0])
    model = read_hparams(small, {}, consumed=("model",)).build(["model"])["model"]
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{count:.2f}" == stated[1]


SEPARATION = HPARAMS.parents[1] / "separation" / "hparams"
SEPARATORS = sorted(path for path in SEPARATION.glob("*.yaml") if STATED.search(path.read_text()))
PUBLISHED = {  # millions of parameters, as the papers give them
    "wsj0mix_convtasnet": 5.1, "wsj0mix_dprnn": 2.6, "wsj0mix_sepformer": 25.7,
}  # fmt: skip


def test_the_separators_at_published_sizes_state_them() -> None:
    stated = {path.stem: STATED.search(path.read_text()) for path in SEPARATORS}
    assert stated.keys() >= PUBLISHED.keys() | {"wsj0mix3_sepformer", "librimix_sepformer"}
    for name, millions in PUBLISHED.items():
        match = stated[name]
        assert match
        assert float(match[1]) == pytest.approx(millions, abs=0.06)


CODECS = HPARAMS.parents[1] / "codec" / "hparams"
CODECS_SIZED = sorted(path for path in CODECS.glob("*.yaml") if STATED.search(path.read_text()))


def test_encodec_states_its_published_size() -> None:
    stated = {path.stem: STATED.search(path.read_text()) for path in CODECS_SIZED}
    match = stated["encodec_24khz"]
    assert match
    assert match[1] == "14.85"


@pytest.mark.parametrize("path", [*SEPARATORS, *CODECS_SIZED], ids=lambda path: path.stem)
def test_parameters_of_waveform_models(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    stated = STATED.search(text)
    part = re.search(r"^model: .*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    numbers = re.findall(r"^(?:sample_rate|latent_size): \d+$", text, re.MULTILINE)
    assert stated
    assert part
    assert numbers
    small = tmp_path / path.name
    small.write_text("\n".join([*numbers, part[0]]))
    model = read_hparams(small, {}, consumed=("model",)).build(["model"])["model"]
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{count:.2f}" == stated[1]


SPEECH = HPARAMS.parents[1] / "tts" / "hparams"
SPEECH_STATED = re.compile(r"([\d.]+) M(?:\s#)? parameters")
VOCABULARIES = {  # symbols and, where voices are a table, how many the corpus has
    "fsdd_tacotron2": (20, 5), "toy_one_pass": (40, 10), "ljspeech_tacotron2": (148, 0),
    "ljspeech_transformer_tts": (60, 0), "ljspeech_one_pass": (60, 0), "vctk_one_pass": (60, 109),
    "libritts_zero_shot": (60, 0),
}  # fmt: skip


def test_every_yaml_of_speech_states_its_size() -> None:
    assert {path.stem for path in SPEECH.glob("*.yaml")} == VOCABULARIES.keys()


@pytest.mark.parametrize("name", VOCABULARIES)
def test_parameters_of_acoustic_models(name: str, tmp_path: Path) -> None:
    text = (SPEECH / f"{name}.yaml").read_text()
    stated = SPEECH_STATED.search(text.replace("\n# ", " "))
    part = re.search(r"^  acoustic: .*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    table = re.search(r"^voices: .*VoiceTable\n(?:.*\n)*?  output_size: (\d+)$", text, re.MULTILINE)
    assert stated
    assert part
    symbols, voices = VOCABULARIES[name]
    assert bool(voices) == bool(table)
    small = tmp_path / f"{name}.yaml"
    head = f"front_end: !new:types.SimpleNamespace\n  vocab_size: {symbols}\n"
    if "<voices.output_size>" in part[0]:  # of the encoder of voxceleb_ecapa
        head += "voices: !new:types.SimpleNamespace\n  output_size: 192\n"
    small.write_text(head + textwrap.dedent(part[0]))
    model = read_hparams(small, {}, consumed=("acoustic",)).build(["acoustic"])["acoustic"]
    count = sum(parameter.numel() for parameter in model.parameters())
    count += voices * int(table[1]) if table else 0
    assert f"{count / 1e6:.1f}" == stated[1]
