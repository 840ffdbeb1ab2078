"""A folder per label: divisions that are there, made by label, or made by group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.data.manifest import DataError, read_manifest
from speechkit.datasets import label_folder


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(80, 0.1), 8000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label, count in (("cat", 10), ("dog", 20)):
        for number in range(count):
            _write(tmp_path / "in" / label / f"s{number % 5}" / f"{number}.flac")
    return tmp_path / "in"


def _labels(path: Path) -> dict[str, int]:
    labels = [row.extra["label"] for row in read_manifest(path)]
    return {label: labels.count(label) for label in sorted(set(labels))}


def test_each_label_is_divided_by_the_shares(root: Path, tmp_path: Path) -> None:
    manifests = label_folder.prepare(root, tmp_path / "out", valid_share=0.2, test_share=0.1)
    assert {split: _labels(path) for split, path in manifests.items()} == {
        "train": {"cat": 7, "dog": 14}, "valid": {"cat": 2, "dog": 4}, "test": {"cat": 1, "dog": 2},
    }  # fmt: skip
    ids = [row.id for path in manifests.values() for row in read_manifest(path)]
    assert len(set(ids)) == 30
    row = read_manifest(manifests["train"])[0]
    assert (row.duration, row.sample_rate) == (0.01, 8000)
    before = manifests["train"].stat().st_mtime_ns
    again = label_folder.prepare(root, tmp_path / "out", valid_share=0.2, test_share=0.1)
    assert again == manifests
    assert manifests["train"].stat().st_mtime_ns == before
    _write(root / "dog/new.wav")
    label_folder.prepare(root, tmp_path / "out", valid_share=0.2, test_share=0.1)
    assert manifests["train"].stat().st_mtime_ns != before
    no_valid = label_folder.prepare(root, tmp_path / "b", valid_share=0.0)
    assert sorted(no_valid) == ["test", "train"]


def test_a_division_that_is_there_is_kept(tmp_path: Path) -> None:
    for split, label in (("train", "a"), ("train", "b"), ("test", "b")):
        _write(tmp_path / "in" / split / label / "x.wav")
    manifests = label_folder.prepare(tmp_path / "in", tmp_path / "out")
    assert {split: _labels(path) for split, path in manifests.items()} == {
        "train": {"a": 1, "b": 1}, "test": {"b": 1},
    }  # fmt: skip
    _write(tmp_path / "in/test/c/x.wav")
    with pytest.raises(DataError, match="test: 'c' is not in training"):
        label_folder.prepare(tmp_path / "in", tmp_path / "out")


def test_groups_stay_together(root: Path, tmp_path: Path) -> None:
    manifests = label_folder.prepare(
        root, tmp_path / "out", group=r"/(s\d)/", valid_share=0.2, test_share=0.4
    )
    groups = {
        split: {row.extra["group"] for row in read_manifest(path)}
        for split, path in manifests.items()
    }
    assert {split: len(names) for split, names in groups.items()} == {
        "train": 2, "valid": 1, "test": 2,
    }  # fmt: skip
    assert len(set.union(*groups.values())) == 5
    with pytest.raises(DataError, match=r"30 problems[\s\S]*: no group by 'speaker"):
        label_folder.prepare(root, tmp_path / "b", group=r"speaker(\d)")
    with pytest.raises(ValueError, match="needs a group in parentheses"):
        label_folder.prepare(root, tmp_path / "b", group=r"s\d")
    with pytest.raises(DataError, match=r"1 groups .* are too few"):
        label_folder.prepare(root, tmp_path / "b", group=r"(s)\d")


def test_what_cannot_be_divided_is_said(root: Path, tmp_path: Path) -> None:
    _write(root / "bird/1.wav")
    _write(root / "bird/2.wav")
    with pytest.raises(DataError, match="bird: 2 recordings are too few"):
        label_folder.prepare(root, tmp_path / "out")
    (root / "bird/1.wav").write_bytes(b"x")
    _write(root / "lost.wav")
    with pytest.raises(DataError) as error:
        label_folder.prepare(root, tmp_path / "out")
    assert "lost.wav: in no label's folder" in str(error.value)
    assert "bird/1.wav" in str(error.value)
    with pytest.raises(DataError, match="no such folder"):
        label_folder.prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no recordings here"):
        label_folder.prepare(tmp_path / "empty", tmp_path / "out")
    for number in range(4):
        _write(tmp_path / f"one/cat/{number}.wav")
    with pytest.raises(DataError, match="only the label cat, and two are needed"):
        label_folder.prepare(tmp_path / "one", tmp_path / "out")
    with pytest.raises(ValueError, match="below 1 together"):
        label_folder.prepare(root, tmp_path / "out", valid_share=0.5, test_share=0.5)
