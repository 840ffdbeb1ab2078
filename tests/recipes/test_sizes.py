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
