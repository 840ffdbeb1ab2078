"""The embedded corpus: layout, honesty of its splits, determinism, idempotence."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.data.manifest import DataError, read_manifest
from speechkit.datasets import espeak, toy
from speechkit.datasets.toy_sentences import write_sentences

SMALL = {"num_train": 24, "num_dev": 4, "num_test": 4}
needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed"
)


def digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    return toy.make_toy_corpus(tmp_path_factory.mktemp("toy") / "corpus", **SMALL)


def test_sentences_of_the_full_size() -> None:
    texts = write_sentences(seed=0, num_train=1500, num_dev=100, num_test=150)
    assert {subset: len(rows) for subset, rows in texts.items()} == {
        "train": 1500, "dev": 100, "test": 150,
    }  # fmt: skip
    train, dev, test = (set(texts[subset]) for subset in ("train", "dev", "test"))
    assert not train & (dev | test)
    assert not dev & test
    assert len(dev) == 100
    assert len(test) == 150
    words = {subset: set(" ".join(rows).split()) for subset, rows in texts.items()}
    assert words["dev"] | words["test"] <= words["train"]
    assert 60 <= len(words["train"]) <= 300
    assert all(2 <= len(text.split()) <= 7 for rows in texts.values() for text in rows)
    counts = [" ".join(texts["train"]).split().count(word) for word in words["train"]]
    assert min(counts) >= 15, "a word too rare to learn"


def test_sentences_follow_the_seed() -> None:
    sizes = {"num_train": 50, "num_dev": 5, "num_test": 5}
    assert write_sentences(seed=3, **sizes) == write_sentences(seed=3, **sizes)
    assert write_sentences(seed=3, **sizes) != write_sentences(seed=4, **sizes)


def test_impossible_sizes_say_why() -> None:
    with pytest.raises(ValueError, match="raise num_train"):
        write_sentences(seed=0, num_train=1, num_dev=50, num_test=50)
    with pytest.raises(ValueError, match="at least one utterance"):
        write_sentences(seed=0, num_train=10, num_dev=0, num_test=1)


def test_readers_of_the_subsets_are_disjoint() -> None:
    assert len({voice.reader for voice in toy.VOICES}) == len(toy.VOICES)
    assert len({voice.name for voice in toy.VOICES}) == len(toy.VOICES)
    assert sum(voice.subset == "train" for voice in toy.VOICES) == 10


def test_layout_is_that_of_librispeech(corpus: Path) -> None:
    audio = sorted(corpus.glob("*/*/*/*.flac"))
    assert len(audio) == 32
    for path in audio:
        reader, chapter, number = path.stem.split("-")
        assert (path.parent.name, path.parent.parent.name) == (chapter, reader)
        assert len(number) == 4
        rows = (path.parent / f"{reader}-{chapter}.trans.txt").read_text().splitlines()
        text = dict(row.split(" ", 1) for row in rows)[path.stem]
        assert text == text.upper()
    table = (corpus / "SPEAKERS.TXT").read_text().splitlines()
    readers = {row.split("|")[0].strip() for row in table if not row.startswith(";")}
    assert readers == {path.parent.parent.name for path in audio}


def test_audio_is_speech_at_a_sane_level(corpus: Path) -> None:
    for path in corpus.glob("*/*/*/*.flac"):
        samples, rate = soundfile.read(path)
        assert rate == 16000
        assert 0.8 < len(samples) / rate < 3.5, path
        assert 0.1 < np.abs(samples).max() < 0.9, path
        frames = samples[: len(samples) // 400 * 400].reshape(-1, 400)
        levels = 10 * np.log10((frames**2).mean(axis=1))
        assert np.percentile(levels, 80) - np.percentile(levels, 2) > 15, "speech above the noise"


@needs_espeak
def test_made_twice_is_byte_identical(corpus: Path, tmp_path: Path) -> None:
    again = toy.make_toy_corpus(tmp_path / "again", **SMALL)
    assert digests(again) == digests(corpus)


@needs_espeak
def test_made_once_until_the_settings_differ(corpus: Path, tmp_path: Path) -> None:
    root = toy.make_toy_corpus(tmp_path / "c", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    toy.make_toy_corpus(root, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before

    next(root.glob("train/*/*/*.flac")).unlink()  # damaged: made again
    toy.make_toy_corpus(root, **SMALL)
    assert digests(root) == digests(corpus)

    toy.make_toy_corpus(root, seed=1, **SMALL)
    assert digests(root) != digests(corpus)
    assert [path.name for path in tmp_path.iterdir()] == ["c"], "no leftovers"


def test_a_folder_of_the_user_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not made by speechkit"):
        toy.make_toy_corpus(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@needs_espeak
def test_prepare_gives_manifests(corpus: Path, tmp_path: Path) -> None:
    manifests = toy.prepare(corpus, tmp_path, **SMALL)
    assert list(manifests) == ["train", "dev", "test"]
    rows = {split: read_manifest(path) for split, path in manifests.items()}
    assert {split: len(items) for split, items in rows.items()} == {
        "train": 24, "dev": 4, "test": 4,
    }  # fmt: skip
    assert not {r.speaker for r in rows["train"]} & {r.speaker for r in rows["test"]}
    assert {r.extra["gender"] for r in rows["train"]} == {"F", "M"}


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install speechkit\[toy\]"):
        toy.make_toy_corpus(tmp_path / "c", **SMALL)
    assert not list(tmp_path.iterdir()), "no leftovers"


@needs_espeak
def test_a_wrong_voice_is_named() -> None:
    with pytest.raises(RuntimeError, match="no-such-voice"):
        list(espeak.synthesize([espeak.Request("hello", "no-such-voice")]))


@needs_espeak
def test_command_line_tool(tmp_path: Path) -> None:
    tool = Path(__file__).parents[2] / "tools" / "make_toy_corpus.py"
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    command = [sys.executable, str(tool), str(tmp_path / "c"), "--manifests", str(tmp_path / "m")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert "ready" in done.stdout
    assert len(read_manifest(tmp_path / "m" / "train.jsonl")) == 24
