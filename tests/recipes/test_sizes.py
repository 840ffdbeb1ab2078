"""The sizes that the YAMLs at published sizes state in their comments."""

from __future__ import annotations

import re
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
