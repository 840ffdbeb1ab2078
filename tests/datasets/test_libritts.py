"""LibriTTS: sentences with their two texts, and the reader's gender from either table."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError, check_manifest, read_manifest
from speechkit.datasets import libritts


def make_corpus(root: Path) -> Path:
    for subset, reader in (("dev-clean", "84"), ("train-clean-100", "103")):
        for number in range(3):
            stem = root / subset / reader / "1240" / f"{reader}_1240_000007_{number:06d}"
            write_audio(stem.with_suffix(".wav"), torch.rand(2400) - 0.5, 24000)
            stem.with_suffix(".normalized.txt").write_text("Mister Smith said so.\n")
            stem.with_suffix(".original.txt").write_text("Mr. Smith said so.\n")
    (root / "speakers.tsv").write_text("READER\tGENDER\tSUBSET\tNAME\n103\tM\ttrain\tX\n")
    (root / "SPEAKERS.txt").write_text("; comment\n84   | F | dev-clean  |  8.02 | A | B\n")
    return root


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "LibriTTS")


@pytest.mark.parametrize("above", [False, True])
def test_rows_hold_what_the_corpus_says(corpus: Path, tmp_path: Path, above: bool) -> None:
    manifests = libritts.prepare(corpus.parent if above else corpus, tmp_path / "out")
    assert list(manifests) == ["dev-clean", "train-clean-100"]
    rows = read_manifest(manifests["dev-clean"])
    assert [row.id for row in rows] == [f"84_1240_000007_00000{i}" for i in range(3)]
    assert (rows[0].text, rows[0].speaker) == ("Mister Smith said so.", "84")
    assert rows[0].extra == {"chapter": "1240", "gender": "F", "raw_text": "Mr. Smith said so."}
    assert (rows[0].duration, rows[0].sample_rate) == (0.1, 24000)
    assert read_manifest(manifests["train-clean-100"])[0].extra["gender"] == "M"
    assert check_manifest(manifests["dev-clean"], read_samples=True) == []


def test_splits_join_subsets_and_done_work_is_kept(corpus: Path, tmp_path: Path) -> None:
    splits = {"train": ["train-clean-100", "dev-clean"], "valid": ["dev-clean"]}
    made = libritts.prepare_splits(corpus, tmp_path / "out", splits=splits)
    assert [len(read_manifest(path)) for path in made.values()] == [6, 3]
    own = tmp_path / "out/subsets/dev-clean.jsonl"
    before = own.stat().st_mtime_ns
    libritts.prepare_splits(corpus, tmp_path / "out", splits=splits)
    assert own.stat().st_mtime_ns == before


def test_everything_missing_is_named_at_once(corpus: Path, tmp_path: Path) -> None:
    chapter = corpus / "dev-clean/84/1240"
    (chapter / "84_1240_000007_000000.wav").unlink()
    (chapter / "84_1240_000007_000001.normalized.txt").unlink()
    (chapter / "84_1240_000007_000002.normalized.txt").write_text(" ")
    with pytest.raises(DataError) as caught:
        libritts.prepare(corpus, tmp_path / "out")
    for part in (
        "3 problems", "has no 84_1240_000007_000000.wav", "000001.wav has no",
        "000002.normalized.txt is empty", "Expected <root>/<subset>",
    ):  # fmt: skip
        assert part in str(caught.value)
    with pytest.raises(DataError, match=r"no subset test-x here \(found: dev-clean, train-clean"):
        libritts.prepare(corpus, tmp_path / "out", subsets=["test-x"])
    with pytest.raises(DataError, match="no subset at all"):
        libritts.prepare(chapter, tmp_path / "out")


def test_download_fetches_each_subset_once(corpus: Path, tmp_path: Path, file_server: Any) -> None:
    served, checksums = tmp_path / "served", {}
    served.mkdir()
    for subset in ("dev-clean", "train-clean-100"):
        with tarfile.open(served / f"{subset}.tar.gz", "w:gz") as file:
            file.add(corpus / subset, f"LibriTTS/{subset}")
        digest = hashlib.sha256((served / f"{subset}.tar.gz").read_bytes()).hexdigest()
        checksums[subset] = f"sha256:{digest}"
    with file_server(served) as server:
        options = {"base_url": server.url, "checksums": checksums}
        libritts.download(tmp_path / "to", ["dev-clean"], **options)
        root = libritts.download(tmp_path / "to", list(checksums), **options)
        assert len(server.requests) == 2
    assert list(libritts.prepare(root, tmp_path / "out")) == ["dev-clean", "train-clean-100"]
    with pytest.raises(ValueError, match="unknown subset train-clean; known: dev-clean"):
        libritts.download(tmp_path, ["train-clean"])
