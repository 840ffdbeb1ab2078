"""Every YAML in recipes/ trains, tests and saves, on a toy corpus in the layout it expects.

Those of separation are in test_separation.py, of codecs in test_codec.py and test_codec_lm.py.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import torch

import speechkit
from speechkit.data.audio import read_audio
from speechkit.data.tokenizer import CharTokenizer
from speechkit.datasets.fsdd import WORDS
from speechkit.lm.ngram import NgramModel
from speechkit.models.lm import LSTMLanguageModel
from speechkit.results import read_rows, score_folder
from speechkit.run import run

ROOT = Path(__file__).parents[2]
YAMLS = sorted(ROOT.glob("recipes/*/hparams/*.yaml"))

ONE_EPOCH = ["--training.epochs", "1", "--device", "cpu"]
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
TOY = ["--prepare.num_train", "24", "--prepare.num_dev", "6", "--prepare.num_test", "6"]
FSDD = [
    "--unseen_speaker", "theo", "--prepare.num_train", "12", "--prepare.num_valid", "4",
    "--prepare.num_test", "4",
]  # fmt: skip
TINY_LSTM = ["--model.embed_dim", "8", "--model.hidden_size", "8"]
TEXT = ["--vocab_size", "40", "--prepare.valid_share", "0.2", "--prepare.test_share", "0.2"]
TINY_CONV = [
    "--model.encoder.layers.0.channels", "[4, 4]", "--model.encoder.layers.0.output_size", "16",
    "--model.encoder.layers.1.input_size", "16",
]  # fmt: skip
TINY_SPELLER = [
    "--model.decoder.memory_size", "16", "--model.decoder.context.memory_size", "16",
    "--model.decoder.context.query_size", "8", "--model.decoder.context.attention_size", "8",
    "--model.decoder.hidden_size", "8", "--model.decoder.embed_dim", "8",
]  # fmt: skip
TINY_TRANSFORMER = [
    *TINY_CONV, "--search.beam.beam_size", "2",
    *(
        word
        for part in ("encoder.layers.1", "decoder")
        for name, value in (
            ("embed_dim", "16"), ("num_heads", "2"), ("num_layers", "2"),
            ("feedforward_size", "16"),
        )
        for word in (f"--model.{part}.{name}", value)
    ),
    "--model.decoder.memory_size", "16",
]  # fmt: skip
SMALL: dict[str, list[str]] = {
    "toy_ctc": [*TOY, *TINY_RNN],
    "fsdd_ctc": [*FSDD, *TINY_RNN],
    "librispeech_ctc": [*LIBRISPEECH, *TINY_RNN],
    "librispeech_conformer_ctc": [
        *LIBRISPEECH,
        "--model.encoder.layers.0.channels", "[4, 4]", "--model.encoder.layers.0.output_size", "16",
        "--model.encoder.layers.1.input_size", "16", "--model.encoder.layers.1.embed_dim", "16",
        "--model.encoder.layers.1.feedforward_size", "16",
        "--model.encoder.layers.1.num_layers", "2",
    ],
    "toy_ctc_streaming": [
        *TOY, *TINY_CONV,
        "--model.encoder.layers.1.embed_dim", "16", "--model.encoder.layers.1.num_layers", "2",
        "--model.encoder.layers.1.feedforward_size", "16",
    ],
    "fsdd_las": [*FSDD, *TINY_RNN, *TINY_SPELLER, "--search.beam.beam_size", "2"],
    "fsdd_joint": [*FSDD, *TINY_RNN, *TINY_SPELLER, "--search.beam-lm.num_candidates", "4"],
    "fsdd_transformer": [
        *FSDD, *TINY_CONV,
        "--model.encoder.layers.1.embed_dim", "16", "--model.encoder.layers.1.num_layers", "1",
        "--model.encoder.layers.1.feedforward_size", "16",
        "--model.decoder.memory_size", "16", "--model.decoder.embed_dim", "16",
        "--model.decoder.num_layers", "1", "--model.decoder.feedforward_size", "16",
    ],
    "librispeech_las": [
        *LIBRISPEECH, *TINY_CONV, "--search.beam.beam_size", "2",
        "--model.encoder.layers.1.hidden_size", "8", "--model.encoder.layers.1.num_layers", "1",
        "--model.encoder.layers.2.input_size", "16", "--model.encoder.layers.2.hidden_size", "8",
        *TINY_SPELLER,
    ],
    "librispeech_transformer": [*LIBRISPEECH, *TINY_TRANSFORMER],
    "librispeech_conformer": [*LIBRISPEECH, *TINY_TRANSFORMER],
    "toy_lstm": [*TOY, *TINY_LSTM],
    "fsdd_lstm": [*FSDD, *TINY_LSTM],
    "librispeech_text_lstm": [*TEXT, *TINY_LSTM],
    "librispeech_text_transformer": [
        *TEXT, "--model.embed_dim", "8", "--model.num_heads", "2",
        "--model.feedforward_size", "8", "--model.num_layers", "1",
    ],
    "librispeech_text_ngram": [*TEXT, "--ngram.order", "2"],
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


@pytest.fixture(scope="session")
def toy_text(toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of "utt_id TEXT" lines, as LibriSpeech's transcripts."""
    lines = [
        line
        for path in sorted(toy_corpus.glob("train/*/*/*.trans.txt"))
        for line in path.read_text().splitlines()
    ]
    # Readers are few here: sentences take their place.
    rows = [f"{number}-0-{line}\n" for number, line in enumerate(lines)]
    path = tmp_path_factory.mktemp("text") / "toy.txt.gz"
    path.write_bytes(gzip.compress("".join(rows).encode()))
    return path


@pytest.fixture
def digit_lm(tmp_path: Path) -> Path:
    """Return a model folder: an untrained language model over the letters of the digits' words."""
    tokenizer = CharTokenizer.from_texts([" ".join(WORDS)])
    model = LSTMLanguageModel(tokenizer=tokenizer, embed_dim=4, hidden_size=4, num_layers=1)
    speechkit.save(model, tmp_path / "lm")
    return tmp_path / "lm"


def of_task(name: str, *, counted: bool = False) -> list[Any]:
    """YAMLs of a task; ``counted`` are those of n-grams, which are not trained."""
    found = [path for path in YAMLS if path.parents[1].name == name]
    return [pytest.param(p, id=p.stem) for p in found if p.stem.endswith("_ngram") == counted]


@pytest.fixture
def arguments(
    request: pytest.FixtureRequest, toy_corpus: Path, toy_digits: Path, tmp_path: Path
) -> Callable[[Path], list[str]]:
    """Return a function that gives a YAML's command line: small, on toy data."""

    def make(yaml: Path) -> list[str]:
        assert yaml.stem in SMALL, f"say in SMALL how {yaml.name} is made small"
        data = toy_digits if yaml.stem.startswith("fsdd") else toy_corpus
        where = ["--data_folder", str(data), "--manifests", str(tmp_path / "manifests")]
        if yaml.stem == "fsdd_joint":
            where += ["--lm_folder", str(request.getfixturevalue("digit_lm"))]
        if yaml.stem.startswith("librispeech_text"):
            text = request.getfixturevalue("toy_text")
            where = ["--text", str(text), "--splits", str(tmp_path / "splits")]
        return [str(yaml), *where, "--output_folder", str(tmp_path / "run"), *SMALL[yaml.stem]]

    return make


def test_every_yaml_has_a_test() -> None:
    tasks = {path.parents[1].name for path in YAMLS}
    assert tasks == {
        "asr",
        "classification",
        "codec",
        "lm",
        "separation",
        "speaker",
        "tts",
        "vocoder",
        "voice_activity",
    }, "a new task needs a test like these"


@pytest.mark.parametrize("yaml", of_task("asr"))
def test_recogniser(
    yaml: Path,
    arguments: Callable[[Path], list[str]],
    tmp_path: Path,
    recipe: Callable[[str], ModuleType],
) -> None:
    run(recipe("asr").Recognition, [*arguments(yaml), *ONE_EPOCH])
    results = json.loads((tmp_path / "run/RESULTS.json").read_text())
    assert results["results"]
    model = speechkit.load(tmp_path / "run/model")
    row = read_rows(next((tmp_path / "run/test").glob("*/rows.jsonl")))[0]
    waveform, rate = read_audio(row["audio"])
    transcript = model.transcribe(waveform, rate)
    assert isinstance(transcript.text, str)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--search.beam.beam_size", "99"], "search.beam: beam_size=99 is wider than the vocab"),
        (["--ctc_weight", "1.5"], "ctc_weight must be in [0, 1], got 1.5"),
        (["--model.ctc", "false", "--search.ctc", "null"], "the model was made with no CTC"),
    ],
)
def test_what_cannot_be_tested_is_not_trained(
    changes: list[str],
    message: str,
    arguments: Callable[[Path], list[str]],
    recipe: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    yaml = ROOT / "recipes/asr/hparams/fsdd_joint.yaml"
    with pytest.raises(SystemExit):
        run(recipe("asr").Recognition, [*arguments(yaml), *ONE_EPOCH, *changes])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("yaml", of_task("lm"))
def test_language_model(
    yaml: Path,
    arguments: Callable[[Path], list[str]],
    tmp_path: Path,
    recipe: Callable[[str], ModuleType],
) -> None:
    run(recipe("lm").LanguageModeling, [*arguments(yaml), *ONE_EPOCH])
    check_perplexities(tmp_path / "run")
    rows = read_rows(next((tmp_path / "run/test").glob("*/rows.jsonl")))[:3]
    # A fresh process knows the model folder alone.
    code = "import json, speechkit, sys; m = speechkit.load(sys.argv[1]); "
    code += "print(json.dumps([float(s) for s in m.score(sys.argv[2:])]))"
    command = [sys.executable, "-c", code, tmp_path / "run/model", *(row["text"] for row in rows)]
    scores = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert scores == pytest.approx([-row["nll"] for row in rows], rel=1e-4)


@pytest.fixture(scope="module")
def ngram_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_ngram", ROOT / "recipes/lm/ngram.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("unit", ["tokens", "words"])
@pytest.mark.parametrize("yaml", of_task("lm", counted=True))
def test_ngram_model(
    yaml: Path,
    unit: str,
    arguments: Callable[[Path], list[str]],
    tmp_path: Path,
    ngram_script: ModuleType,
) -> None:
    command = arguments(yaml)
    if unit == "words":
        at = command.index("--vocab_size")
        command[at : at + 2] = ["--tokenizer", "null"]
    ngram_script.main(command)
    check_perplexities(tmp_path / "run")
    model = NgramModel.load(tmp_path / "run/model.arpa.gz")
    texts = (tmp_path / "splits/test.txt").read_text().splitlines()
    rows = read_rows(tmp_path / "run/test/test/rows.jsonl")
    assert [row["text"] for row in rows] == texts
    results = {r.metric: r.value for _, r in score_folder(tmp_path / "run")}
    if unit == "words":
        assert results["perplexity"] == pytest.approx(model.perplexity(texts), rel=1e-5)
        assert results["word_perplexity"] == results["perplexity"]
    else:
        assert len(model.vocabulary) <= 42  # as many labels, <s>, </s> and <unk>
        assert results["perplexity"] < len(model.vocabulary) < results["word_perplexity"]


def test_ngram_errors_are_sentences(
    arguments: Callable[[Path], list[str]],
    tmp_path: Path,
    ngram_script: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = arguments(ROOT / "recipes/lm/hparams/librispeech_text_ngram.yaml")
    for change, words in (
        (["--ngram.order", "0"], "error: order must be at least 1"),
        (["--text", str(tmp_path / "none.txt")], "none.txt: no such file"),
        (["--ngram.ordre", "3"], "did you mean 'ngram.order'"),
    ):
        with pytest.raises(SystemExit) as stop:
            ngram_script.main([*command, *change])
        assert stop.value.code == 1
        assert words in capsys.readouterr().err


def check_perplexities(folder: Path) -> None:
    """The numbers of RESULTS.json are those that the rows give, line by line."""
    scored = {(split, r.metric): r for split, r in score_folder(folder)}
    splits = sorted(path.parent for path in folder.glob("test/*/rows.jsonl"))
    assert {split for split, _ in scored} == {path.name for path in splits}
    for path in splits:
        rows = read_rows(path / "rows.jsonl")
        nll = sum(row["nll"] for row in rows)
        words = sum(len(row["text"].split()) + 1 for row in rows)
        result = scored[path.name, "word_perplexity"]
        assert result.value == pytest.approx(math.exp(nll / words))
        assert result.count == words


@pytest.mark.parametrize("corpus", ["toy", "fsdd"])
@pytest.mark.parametrize("key", ["manifests", "prepare", "tokenizer"])
def test_a_language_model_has_the_labels_of_its_recogniser(corpus: str, key: str) -> None:
    def block(yaml: Path) -> str:
        match = re.search(rf"^{key}:.*?(?=^\S|\Z)", yaml.read_text(), flags=re.M | re.S)
        assert match
        return match[0].strip()

    recipes = ROOT / "recipes"
    assert block(recipes / f"lm/hparams/{corpus}_lstm.yaml") == block(
        recipes / f"asr/hparams/{corpus}_ctc.yaml"
    )


def test_yamls_stay_short() -> None:
    """A YAML holds what someone would change: under 40 top-level keys."""
    for yaml in YAMLS:
        keys = [line for line in yaml.read_text().splitlines() if line[:1].isalpha()]
        assert len(keys) < 40, yaml.name
