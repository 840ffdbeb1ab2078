"""Every YAML of vocoders trains, tests and saves in small, on tones in the corpora's layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import speechkit
from speechkit.data.audio import write_audio
from speechkit.data.manifest import read_manifest, write_manifest
from speechkit.data.mel_files import write_mel
from speechkit.features.mel_settings import mel_hash
from speechkit.models.vocoder import NeuralVocoder
from speechkit.results import RunResults, read_rows
from speechkit.run import run

YAMLS = sorted((Path(__file__).parents[2] / "recipes/vocoder/hparams").glob("*.yaml"))

TINY = [
    "--training.epochs", "1", "--device", "cpu", "--data.max_batch_seconds", "1.5",
    "--data.num_workers", "0", "--num_examples", "1", "--metrics", "[stoi, mel]",
]  # fmt: skip
TINY_HIFIGAN = [
    "--model.generator.channels", "16", "--model.generator.block_kernels", "[3]",
    "--model.generator.block_dilations", "[[1, 3]]",
]  # fmt: skip
TINY_FILTERS = [
    "--model.generator.encoder.embed_dim", "16", "--model.generator.encoder.num_layers", "1",
    "--model.generator.encoder.hidden_size", "24", "--crop_frames", "32",
    "--data.crop_seconds", "0.372",
]  # fmt: skip
JUDGED = [
    "--discriminator.parts.0.widths", "[4, 6]", "--discriminator.parts.1.layers",
    "[[4, 15, 1, 1], [8, 41, 4, 2]]",
]  # fmt: skip
CLIPS = ["--prepare.valid", "0.2", "--prepare.test", "0.3"]
SMALL = {
    "ljspeech_source_filter": [*CLIPS, *TINY_FILTERS],
    "ljspeech_hifigan_v3": [*CLIPS, *TINY_HIFIGAN],
    "ljspeech_hifigan_v1": [*CLIPS, *TINY_HIFIGAN, *JUDGED],
    "libritts_hifigan_v1": [*TINY_HIFIGAN, *JUDGED, "--subsets.train", "[train-clean-100]"],
}


def _tone(seed: int, rate: int) -> Tensor:
    """A second of a gliding tone that comes and goes, as syllables do."""
    time = torch.arange(rate) / rate
    phase = 2 * torch.pi * ((100.0 + 10.0 * seed) * time + 30.0 * time.square())
    partials = torch.stack([torch.sin(k * phase) / k for k in range(1, 9)]).sum(0)
    return 0.2 * partials * torch.sin(2 * torch.pi * 3.0 * time).abs()


def _ljspeech(root: Path) -> None:
    (root / "wavs").mkdir(parents=True)
    names = [f"LJ001-{number:04d}" for number in range(1, 13)]
    for seed, name in enumerate(names):
        write_audio(root / "wavs" / f"{name}.wav", _tone(seed, 22050), 22050)
    lines = [f"{name}|A tone.|A tone.\n" for name in names]
    (root / "metadata.csv").write_text("".join(lines))


def _libritts(root: Path) -> None:
    for seed, subset in enumerate(("train-clean-100", "dev-clean", "test-clean")):
        for clip in range(3):
            stem = f"{seed}_1_00000{clip}_000000"
            folder = root / subset / str(seed) / "1"
            folder.mkdir(parents=True, exist_ok=True)
            write_audio(folder / f"{stem}.wav", _tone(3 * seed + clip, 24000), 24000)
            (folder / f"{stem}.normalized.txt").write_text("A tone.")


def test_every_yaml_has_a_test() -> None:
    assert [path.stem for path in YAMLS] == sorted(SMALL)


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_yaml(
    yaml: Path, recipe: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (_libritts if "libritts" in yaml.stem else _ljspeech)(tmp_path / "corpus")
    arguments = [str(yaml), "--root", "corpus", "--output_folder", "run", *TINY, *SMALL[yaml.stem]]
    run(recipe("vocoder").VocoderTraining, arguments)

    results = RunResults.read(tmp_path / "run" / "RESULTS.json").results
    assert set(results) == {"test@vocoder", "test@griffin-lim", "test@recording"}
    found = {
        split: {result.metric: result.value for result in split_results}
        for split, split_results in results.items()
    }
    assert found["test@recording"]["STFT distance"] == 0.0
    assert found["test@recording"]["F0 RMSE"] == 0.0
    assert found["test@griffin-lim"]["STFT distance"] > 0.0
    assert found["test@griffin-lim"]["STFT distance"] < found["test@vocoder"]["STFT distance"]
    assert found["test@vocoder"]["real-time factor"] > 0.0
    rows = read_rows(tmp_path / "run/test/test@vocoder/rows.jsonl")
    assert (tmp_path / "run" / next(r["estimate"] for r in rows if "estimate" in r)).exists()
    page = (tmp_path / "run/report.html").read_text()
    assert "Recordings through the vocoder" in page
    assert page.count("<audio") >= 3

    model = speechkit.load(tmp_path / "run/model")
    assert isinstance(model, NeuralVocoder)
    assert not any("discriminator" in name for name in model.state_dict())
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["model"]["args"]["mel_hash"] == mel_hash(model.features)
    with torch.no_grad():
        assert model(torch.zeros(1, 4, 80)).data.shape == (1, 1024)


def test_it_learns_from_files_of_mels(
    recipe: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    _ljspeech(tmp_path / "corpus")
    yaml = next(path for path in YAMLS if path.stem == "ljspeech_source_filter")
    arguments = [
        str(yaml), "--root", "corpus", "--output_folder", "run", *TINY, *CLIPS,
        "--metrics", "[mel]",
    ]  # fmt: skip
    run(recipe("vocoder").VocoderTraining, arguments)
    first = RunResults.read(tmp_path / "run" / "RESULTS.json").results["test@griffin-lim"]
    model = speechkit.load(tmp_path / "run/model")
    assert isinstance(model, NeuralVocoder)
    features = model.features
    for split in ("train", "valid", "test"):
        rows = read_manifest(tmp_path / "data/ljspeech" / f"{split}.jsonl")
        for row in rows:
            size = int(features.num_frames(torch.tensor(round(row.duration * 22050))))
            mel = tmp_path / "mels" / f"{row.id}.safetensors"
            write_mel(mel, torch.full((size, 80), -2.0), features)
            row.extra["mel"] = str(mel)  # type: ignore[index]
        write_manifest(tmp_path / "mels" / f"{split}.jsonl", rows)
    again = [*arguments, "--manifests", "mels", "--output_folder", "run2"]
    run(recipe("vocoder").VocoderTraining, again)
    second = RunResults.read(tmp_path / "run2" / "RESULTS.json").results["test@griffin-lim"]
    # Mels that are nothing like the recordings give other sounds.
    assert second[0].value > 1.5 * first[0].value
