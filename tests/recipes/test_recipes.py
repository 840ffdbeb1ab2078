"""Every YAML in recipes/ trains, tests and saves, on a toy corpus in the layout it expects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
import torch

import speechkit
from speechkit.data.audio import read_audio
from speechkit.run import run

ROOT = Path(__file__).parents[2]
YAMLS = sorted(ROOT.glob("recipes/*/hparams/*.yaml"))

TINY_RNN = [
    "--model.encoder.layers.0.channels", "[4, 4]", "--model.encoder.layers.0.output_size", "16",
    "--model.encoder.layers.1.input_size", "16", "--model.encoder.layers.1.hidden_size", "8",
    "--model.encoder.layers.1.num_layers", "1",
]  # fmt: skip
LIBRISPEECH = [
    "--subsets.train", "[train]", "--subsets.valid", "[dev]",
    "--subsets.test-clean", "[test]", "--subsets.test-other", "[dev]",
    "--vocab_size", "40", "--data.num_workers", "0", "--data.max_batch_seconds", "30",
]  # fmt: skip
SMALL: dict[str, list[str]] = {
    "toy_ctc": [
        "--prepare.num_train", "24", "--prepare.num_dev", "6", "--prepare.num_test", "6", *TINY_RNN,
    ],
    "fsdd_ctc": [
        "--unseen_speaker", "theo", "--prepare.num_train", "12", "--prepare.num_valid", "4",
        "--prepare.num_test", "4", *TINY_RNN,
    ],
    "librispeech_ctc": [*LIBRISPEECH, *TINY_RNN],
    "librispeech_conformer_ctc": [
        *LIBRISPEECH,
        "--model.encoder.layers.0.channels", "[4, 4]", "--model.encoder.layers.0.output_size", "16",
        "--model.encoder.layers.1.input_size", "16", "--model.encoder.layers.1.embed_dim", "16",
        "--model.encoder.layers.1.feedforward_size", "16",
        "--model.encoder.layers.1.num_layers", "2",
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def toy_digits(toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in fsdd's layout: half-second tones for ten digits of three speakers."""
    root = tmp_path_factory.mktemp("fsdd") / "recordings"
    root.mkdir()
    time = torch.arange(3200) / 8000
    for index, speaker in enumerate(("george", "jackson", "theo")):
        for digit in range(10):
            for take in range(12):
                tone = torch.sin(2 * torch.pi * (200 + 40 * digit + 15 * index + take) * time)
                soundfile.write(root / f"{digit}_{speaker}_{take}.wav", 0.3 * tone.numpy(), 8000)
    return root.parent


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_recipe_runs(
    yaml: Path,
    toy_corpus: Path,
    toy_digits: Path,
    tmp_path: Path,
    recipe: Callable[[str], ModuleType],
) -> None:
    assert yaml.stem in SMALL, f"say in SMALL how {yaml.name} is made small"
    task = recipe(yaml.parents[1].name)
    data = toy_digits if yaml.stem.startswith("fsdd") else toy_corpus
    arguments = [
        str(yaml), "--data_folder", str(data), "--manifests", str(tmp_path / "manifests"),
        "--output_folder", str(tmp_path / "run"), "--training.epochs", "1", "--device", "cpu",
    ]  # fmt: skip
    run(task.Recognition, [*arguments, *SMALL[yaml.stem]])
    results = json.loads((tmp_path / "run/RESULTS.json").read_text())
    assert results["results"]
    model = speechkit.load(tmp_path / "run/model")
    row = json.loads((tmp_path / "run/test").glob("*/rows.jsonl").__next__().open().readline())
    waveform, rate = read_audio(row["audio"])
    transcript = model.transcribe(waveform, rate)
    assert isinstance(transcript.text, str)


def test_yamls_stay_short() -> None:
    """A YAML holds what someone would change: under 40 top-level keys."""
    for yaml in YAMLS:
        keys = [line for line in yaml.read_text().splitlines() if line[:1].isalpha()]
        assert len(keys) < 40, yaml.name
