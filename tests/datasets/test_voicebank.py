"""VoiceBank-DEMAND: pairs of noisy and clean files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.data.manifest import DataError, check_manifest, read_manifest
from speechkit.datasets import voicebank

TRAIN = ("p226_001", "p226_002", "p228_001", "p287_001")
TEST = ("p232_001", "p257_003")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    root = tmp_path / "corpus"
    for part, items in (("trainset_28spk", TRAIN), ("testset", TEST)):
        for kind in ("clean", "noisy"):
            folder = root / f"{kind}_{part}_wav"
            folder.mkdir(parents=True)
            for item in items:
                soundfile.write(folder / f"{item}.wav", random.normal(size=4800) * 0.1, 48000)
    (root / "testset_txt").mkdir()
    (root / "testset_txt/p232_001.txt").write_text("Ask her.\n")
    return root


def test_speakers_decide_the_splits(corpus: Path, tmp_path: Path) -> None:
    manifests = voicebank.prepare(corpus, tmp_path / "out")
    ids = {split: [row.id for row in read_manifest(path)] for split, path in manifests.items()}
    assert ids == {
        "train": ["p228_001"],
        "valid": ["p226_001", "p226_002", "p287_001"],
        "test": list(TEST),
    }
    row = read_manifest(manifests["test"])[0]
    assert row.audio == str(corpus / "noisy_testset_wav/p232_001.wav")
    assert row.extra == {
        "sources": [str(corpus / "clean_testset_wav/p232_001.wav")],
        "speakers": ["p232"],
    }
    assert (row.text, row.speaker, row.duration, row.sample_rate) == (
        "Ask her.", "p232", 0.1, 48000,
    )  # fmt: skip
    assert read_manifest(manifests["test"])[1].text is None
    assert check_manifest(manifests["train"], read_samples=True) == []


def test_done_work_is_kept_and_other_speakers_are_seen(corpus: Path, tmp_path: Path) -> None:
    path = voicebank.prepare(corpus, tmp_path / "out")["valid"]
    before = path.stat().st_mtime_ns
    voicebank.prepare(corpus, tmp_path / "out")
    assert path.stat().st_mtime_ns == before
    voicebank.prepare(corpus, tmp_path / "out", valid_speakers=["p228"])
    assert [row.id for row in read_manifest(path)] == ["p228_001"]


def test_pairs_that_do_not_match_are_all_named(corpus: Path, tmp_path: Path) -> None:
    (corpus / "clean_trainset_28spk_wav/p226_001.wav").unlink()
    (corpus / "noisy_trainset_28spk_wav/p226_002.wav").unlink()
    soundfile.write(corpus / "noisy_trainset_28spk_wav/p287_001.wav", np.zeros(4799), 48000)
    with pytest.raises(DataError) as error:
        voicebank.prepare(corpus, tmp_path / "out", splits=["valid"])
    for text in (
        "3 problems",
        "noisy_trainset_28spk_wav/p226_001.wav has no clean counterpart",
        "clean_trainset_28spk_wav/p226_002.wav has no noisy counterpart",
        "p287_001: clean has 1 x 4800 samples at 48000 Hz, noisy 1 x 4799 at 48000 Hz",
    ):
        assert text in str(error.value)


def test_what_is_missing_is_said(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the train split is empty: .* has speakers p226, p228"):
        voicebank.prepare(corpus, tmp_path / "out", valid_speakers=["p226", "p228", "p287"])
    shutil.rmtree(corpus / "clean_testset_wav")
    with pytest.raises(DataError, match="no clean_testset_wav for the test split"):
        voicebank.prepare(corpus, tmp_path / "out")
    with pytest.raises(DataError, match="no clean_trainset_56spk_wav and no noisy_trainset_56spk"):
        voicebank.prepare(corpus, tmp_path / "out", train_set="trainset_56spk")
    with pytest.raises(ValueError, match=r"unknown split \['dev'\]"):
        voicebank.prepare(corpus, tmp_path / "out", splits=["dev"])


def test_real_excerpt(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "VoiceBank-DEMAND"
    rows = read_manifest(voicebank.prepare(root, tmp_path, splits=["valid"])["valid"])
    assert [row.id for row in rows] == [f"p287_00{number}" for number in range(1, 6)]
    assert rows[0].text == "Please call Stella."
    with pytest.raises(DataError, match=r"the train split is empty: .* speakers p287, and"):
        voicebank.prepare(root, tmp_path)
    only = read_manifest(
        voicebank.prepare(root, tmp_path, valid_speakers=[], splits=["train"])["train"]
    )
    assert len(only) == 5
