"""ESC-50 and UrbanSound8K: official folds, validation, and what is wrong with a corpus."""

from __future__ import annotations

import csv
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechkit.data.manifest import DataError, check_manifest, read_manifest
from speechkit.datasets import esc50, urbansound8k
from speechkit.datasets.download import DownloadError


def _write(path: Path, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).normal(size=400) * 0.1
    soundfile.write(path, samples, rate)


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _esc_rows() -> list[dict[str, Any]]:
    """Three folds, four labels of which two are of ESC-10; two clips of each recording."""
    rows = []
    for fold in (1, 2, 3):
        for target, category in enumerate(("dog", "rain", "cow", "door")):
            for recording in range(3):
                source = f"{fold}{target}{recording}"
                rows += [
                    {
                        "filename": f"{fold}-{source}-{take}-{target}.wav", "fold": fold,
                        "target": target, "category": category, "esc10": target < 2,
                        "src_file": source, "take": take,
                    }
                    for take in "AB"
                ]  # fmt: skip
    return rows


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "ESC-50"
    rows = _esc_rows()
    _table(root / "meta/esc50.csv", rows)
    for row in rows:
        _write(root / "audio" / row["filename"])
    return root


def _ids(manifests: dict[str, Path]) -> dict[str, set[str]]:
    return {split: {row.id for row in read_manifest(path)} for split, path in manifests.items()}


def test_each_fold_is_tested_once(corpus: Path, tmp_path: Path) -> None:
    assert esc50.folds(corpus) == [1, 2, 3]
    tested: set[str] = set()
    for fold in esc50.folds(corpus):
        ids = _ids(esc50.prepare(corpus, tmp_path / f"out{fold}", fold=fold))
        assert ids.keys() == {"train", "test"}
        assert len(ids["train"]) == 48
        assert all(name.startswith(f"{fold}-") for name in ids["test"])
        assert not ids["test"] & (ids["train"] | tested)
        tested |= ids["test"]
    assert len(tested) == 72


def test_a_row_says_what_and_from_where(corpus: Path, tmp_path: Path) -> None:
    path = esc50.prepare(corpus, tmp_path / "out", fold=2)["test"]
    row = next(row for row in read_manifest(path) if row.id == "2-210-B-1")
    assert row.audio == str(corpus / "audio/2-210-B-1.wav")
    assert (row.duration, row.sample_rate) == (0.05, 8000)
    assert row.extra == {"label": "rain", "target": 1, "fold": 2, "source": "210", "esc10": True}
    assert check_manifest(path, read_samples=True) == []


def test_esc10_takes_its_classes_only(corpus: Path, tmp_path: Path) -> None:
    manifests = esc50.prepare(corpus, tmp_path / "out", esc10=True)
    rows = [row for path in manifests.values() for row in read_manifest(path)]
    assert {row.extra["label"] for row in rows} == {"dog", "rain"}
    assert len(rows) == 36


def test_validation_by_fold_or_by_recordings(corpus: Path, tmp_path: Path) -> None:
    ids = _ids(esc50.prepare(corpus, tmp_path / "a", fold=1, valid_fold=3))
    assert {name[0] for name in ids["valid"]} == {"3"}
    assert {name[0] for name in ids["train"]} == {"2"}
    manifests = esc50.prepare(corpus, tmp_path / "b", fold=1, valid_share=0.3)
    rows = {split: read_manifest(path) for split, path in manifests.items()}
    sources = {split: {row.extra["source"] for row in own} for split, own in rows.items()}
    assert not sources["train"] & sources["valid"], "clips of a recording stay together"
    labels = [row.extra["label"] for row in rows["valid"]]
    assert {label: labels.count(label) for label in set(labels)} == dict.fromkeys(
        ("dog", "rain", "cow", "door"), 4  # at least 30 % of 12, in whole recordings of 2
    )  # fmt: skip
    other = _ids(esc50.prepare(corpus, tmp_path / "c", fold=1, valid_share=0.3, seed=1))
    assert other["valid"] != {row.id for row in rows["valid"]}
    with pytest.raises(ValueError, match="not both"):
        esc50.prepare(corpus, tmp_path / "d", fold=1, valid_fold=1)
    with pytest.raises(ValueError, match=r"valid_share must be in \[0, 1\)"):
        esc50.prepare(corpus, tmp_path / "d", valid_share=1.0)


def test_done_work_is_kept_and_another_turn_is_seen(corpus: Path, tmp_path: Path) -> None:
    path = esc50.prepare(corpus, tmp_path / "out", fold=1)["test"]
    before = path.stat().st_mtime_ns
    esc50.prepare(corpus, tmp_path / "out", fold=1)
    assert path.stat().st_mtime_ns == before
    esc50.prepare(corpus, tmp_path / "out", fold=2)
    assert {row.extra["fold"] for row in read_manifest(path)} == {2}


def test_a_fold_without_clips_is_an_error(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fold 5 has no clips; there are clips in 1, 2, 3: choose"):
        esc50.prepare(corpus, tmp_path / "out", fold=5)
    with pytest.raises(DataError, match="valid_fold 4 has no clips"):
        esc50.prepare(corpus, tmp_path / "out", fold=1, valid_fold=4)
    rows = [row for row in _esc_rows() if row["fold"] == 1]
    _table(corpus / "meta/esc50.csv", rows)
    with pytest.raises(DataError, match="no clips for train with fold=1"):
        esc50.prepare(corpus, tmp_path / "out", fold=1)


def test_what_is_missing_or_broken_is_named(corpus: Path, tmp_path: Path) -> None:
    (corpus / "audio/1-100-A-0.wav").unlink()
    (corpus / "audio/2-210-B-1.wav").unlink()
    with pytest.raises(DataError, match=r"2 problems[\s\S]*1-100-A-0.wav is missing[\s\S]*2-210-B"):
        esc50.prepare(corpus, tmp_path / "out")
    for name in ("1-100-A-0.wav", "2-210-B-1.wav"):
        (corpus / "audio" / name).write_bytes(b"not audio")
    with pytest.raises(DataError, match="2 problems"):
        esc50.prepare(corpus, tmp_path / "out")


def test_a_wrong_table_is_named_by_line(corpus: Path, tmp_path: Path) -> None:
    rows = _esc_rows()[:4]
    rows[1]["fold"] = "two"
    rows[2]["filename"] = "../x.wav"
    rows[3] = dict(rows[0])
    _table(corpus / "meta/esc50.csv", rows)
    with pytest.raises(DataError) as error:
        esc50.folds(corpus)
    for text in ("line 3: ", "'two'", "line 4: ", "no plain file name", "line 5: ", "there twice"):
        assert text in str(error.value)
    (corpus / "meta/esc50.csv").write_text("filename,fold\n")
    with pytest.raises(DataError, match="no column target, category, esc10, src_file"):
        esc50.folds(corpus)
    (corpus / "meta/esc50.csv").write_text("filename,fold,target,category,esc10,src_file,take\n")
    with pytest.raises(DataError, match="the table has no rows"):
        esc50.folds(corpus)
    with pytest.raises(DataError, match=r"no such table\. Expected <root>/meta/esc50.csv"):
        esc50.folds(tmp_path)


def test_download_checks_extracts_and_is_done_once(corpus: Path, tmp_path: Path) -> None:
    archive = tmp_path / "served.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(corpus.rglob("*")):
            file.write(path, Path("ESC-50-master") / path.relative_to(corpus))
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    with pytest.raises(DownloadError, match="the md5 is"):
        esc50.download(tmp_path / "to", url=archive.as_uri())
    folder = esc50.download(tmp_path / "to", url=archive.as_uri(), checksum=f"md5:{digest}")
    assert folder == tmp_path / "to/ESC-50-master"
    assert esc50.folds(folder) == [1, 2, 3]
    archive.unlink()
    assert esc50.download(tmp_path / "to", url=archive.as_uri()) == folder
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("readme.txt", "nothing")
    with pytest.raises(DataError, match=r"no ESC-50-master/meta/esc50\.csv in it"):
        esc50.download(tmp_path / "elsewhere", url=other.as_uri(), checksum=None)


def test_urbansound8k(tmp_path: Path) -> None:
    root, rows = tmp_path / "UrbanSound8K", []
    for fold in (1, 10):
        for target, label in enumerate(("siren", "drilling")):
            for piece in range(2):
                source = f"{fold}{target}{piece}"
                name = f"{source}-{target}-0-{piece}.wav"
                rows.append(
                    {
                        "slice_file_name": name, "fsID": source, "start": 0.0, "end": 0.05,
                        "salience": 1 + piece, "fold": fold, "classID": target, "class": label,
                    }
                )  # fmt: skip
                _write(root / f"audio/fold{fold}" / name, 11025)
    _table(root / "metadata/UrbanSound8K.csv", rows)
    assert urbansound8k.folds(root) == [1, 10]
    manifests = urbansound8k.prepare(root, tmp_path / "out", fold=10, valid_share=0.4)
    sizes = {split: len(read_manifest(path)) for split, path in manifests.items()}
    assert sizes == {"train": 2, "valid": 2, "test": 4}
    row = read_manifest(manifests["test"])[1]
    assert row.audio == str(root / "audio/fold10/1001-0-0-1.wav")
    assert row.extra == {
        "label": "siren", "target": 0, "fold": 10, "source": "1001", "salience": 2,
    }  # fmt: skip
    with pytest.raises(DataError, match="fold 3 has no clips; there are clips in 1, 10"):
        urbansound8k.prepare(root, tmp_path / "out", fold=3)
    assert urbansound8k.download(tmp_path) == root, "what is there is not fetched"
