"""Every YAML of codecs trains, tests and saves in small, on the toy corpus's voices."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import speechkit
from speechkit.models.codec import Codec
from speechkit.results import RunResults, read_rows
from speechkit.run import run

RECIPE = Path(__file__).parents[2] / "recipes" / "codec"
YAMLS = sorted(path for path in RECIPE.glob("hparams/*.yaml") if not path.stem.endswith("_lm"))

TINY = [
    "--training.epochs", "1", "--device", "cpu", "--training.precision", "float32",
    "--crop_seconds", "0.3", "--data.max_batch_seconds", "1.2", "--data.limit", "8",
    "--data.num_workers", "0", "--latent_size", "8", "--num_examples", "1",
    "--model.encoder.num_filters", "2", "--model.decoder.num_filters", "2",
    "--model.encoder.lstm_layers", "1", "--model.decoder.lstm_layers", "1",
    "--model.quantizer.codebook_size", "16", "--model.quantizer.kmeans_iterations", "2",
    "--metrics", "[si_snr, mel]",
]  # fmt: skip
JUDGED = ["--discriminator.num_filters", "2", "--discriminator.windows", "[128, 64]"]
CORPUS = ["--subsets.train", "[train]", "--subsets.valid", "[dev]"]
FOLDER = ["--prepare.valid_share", "0.2", "--prepare.test_share", "0.3"]
SMALL = {
    "speech_16khz_small": [*CORPUS, "--subsets.test", "[test]", "--quantizer_start", "1"],
    "speech_16khz": [
        *CORPUS, *JUDGED, "--subsets.test-clean", "[test]", "--subsets.test-other", "[dev]",
    ],
    "encodec_24khz": [*FOLDER, *JUDGED, "--metrics", "[si_snr, mel, mel_db]"],
    "encodec_48khz": [*FOLDER, *JUDGED, "--metrics", "[si_snr]"],
}  # fmt: skip


FRAMES = {"speech_16khz_small": 100, "speech_16khz": 50, "encodec_24khz": 75, "encodec_48khz": 150}


def test_every_yaml_has_a_test() -> None:
    assert [path.stem for path in YAMLS] == sorted(SMALL)


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipes_codec_train", RECIPE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_yaml(
    yaml: Path, recipe: ModuleType, toy_corpus: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    # The size of codes decides the rates, so they are given anew: one and two codebooks.
    step = 4 * FRAMES[yaml.stem] / 1000
    arguments = [
        str(yaml), "--root", str(toy_corpus), "--output_folder", "run", *TINY,
        "--model.quantizer.num_codebooks", "4", "--model.rates_kbps", f"[{step}, {2 * step}]",
        *SMALL[yaml.stem],
    ]  # fmt: skip
    run(recipe.CodecTraining, arguments)
    results = RunResults.read(tmp_path / "run" / "RESULTS.json")
    splits = {name.partition("@")[0] for name in results.results}
    conditions = {f"{step:g}kbps", f"{2 * step:g}kbps", "anchor-3500Hz", "anchor-7000Hz"}
    assert set(results.results) == {
        f"{split}@{c}" for split in splits for c in (*conditions, "reference")
    }
    rows = read_rows(next((tmp_path / "run/test").glob(f"*@{step:g}kbps")) / "rows.jsonl")
    assert step < rows[0]["kbps"] < 2 * step + 2  # with the header of a short file
    assert rows[0]["si_snr"] < 100
    assert (tmp_path / "run" / next(r["estimate"] for r in rows if "estimate" in r)).exists()
    page = (tmp_path / "run/report.html").read_text()
    assert "Quality at each bit rate" in page
    assert page.count("<audio") >= 5

    model = speechkit.load(tmp_path / "run/model")
    assert isinstance(model, Codec)
    assert not any("discriminator" in name for name in model.state_dict())
    wave = torch.randn(1, model.channels, model.sample_rate // 2)
    encoded = model.encode(wave, kbps=step)
    assert encoded.codes.shape[1] == 1
    assert model.decode(*encoded).shape == wave.shape

    # What a test alone depends on may change without a word, and a test alone finds the codebooks.
    if yaml.stem == "speech_16khz_small":
        again = [*arguments, "--metrics", "[mel]", "--num_examples", "0"]
        run(recipe.CodecTraining, [*again, "--test_only"])
        results = RunResults.read(tmp_path / "run" / "RESULTS.json")
        assert {r.metric for r in results.results["test@reference"]} == {"mel distance"}


def test_no_codebooks_is_an_error_in_words(
    recipe: ModuleType, toy_corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        run(
            recipe.CodecTraining,
            [
                str(RECIPE / "hparams/speech_16khz_small.yaml"), "--root", str(toy_corpus),
                "--output_folder", str(tmp_path / "run"), "--corpus", str(tmp_path / "data"), *TINY,
                *SMALL["speech_16khz_small"], "--quantizer_start", "1000",
                "--model.quantizer.num_codebooks", "2", "--model.rates_kbps", "[0.4]",
            ],
        )  # fmt: skip
    assert "quantizer_start is 1000, but training ended after" in capsys.readouterr().err
