"""LibriSpeech: manifests of what is there, and errors that name what is not."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError, check_manifest, read_manifest
from speechkit.datasets import librispeech
from speechkit.datasets.download import DownloadError


def make_corpus(root: Path) -> Path:
    chapter = root / "dev-clean" / "84" / "121123"
    for number in range(3):
        write_audio(chapter / f"84-121123-{number:04d}.flac", torch.rand(8000) - 0.5, 16000)
    rows = [f"84-121123-{number:04d} GO ON {word}\n" for number, word in enumerate("ABC")]
    (chapter / "84-121123.trans.txt").write_text("".join(rows))
    (root / "SPEAKERS.TXT").write_text(
        ";ID  |SEX| SUBSET           |MINUTES| NAME\n84   | F | dev-clean        |  8.02 | A | B\n"
    )
    return root


def test_rows_hold_what_the_corpus_says(tmp_path: Path) -> None:
    manifests = librispeech.prepare(make_corpus(tmp_path / "LibriSpeech"), tmp_path / "out")
    assert manifests == {"dev-clean": tmp_path / "out" / "dev-clean.jsonl"}
    rows = read_manifest(manifests["dev-clean"])
    assert [row.id for row in rows] == [f"84-121123-000{number}" for number in range(3)]
    assert rows[1].text == "GO ON B"
    assert rows[1].speaker == "84"
    assert rows[1].extra == {"gender": "F", "chapter": "121123"}
    assert (rows[1].duration, rows[1].sample_rate) == (0.5, 16000)


def test_folder_above_the_corpus_will_do(tmp_path: Path) -> None:
    make_corpus(tmp_path / "LibriSpeech")
    assert "dev-clean" in librispeech.prepare(tmp_path, tmp_path / "out", subsets=["dev-clean"])


def test_done_work_is_kept_and_changes_are_seen(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "LibriSpeech")
    path = librispeech.prepare(root, tmp_path / "out")["dev-clean"]
    before = path.stat().st_mtime_ns
    librispeech.prepare(root, tmp_path / "out")
    assert path.stat().st_mtime_ns == before
    path.write_text("spoilt")
    librispeech.prepare(root, tmp_path / "out")
    assert len(read_manifest(path)) == 3
    transcripts = next(root.rglob("*.trans.txt"))
    transcripts.write_text(transcripts.read_text().replace("GO ON", "TURN ROUND"))
    librispeech.prepare(root, tmp_path / "out")
    assert read_manifest(path)[0].text == "TURN ROUND A"


def test_everything_missing_is_named_at_once(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "LibriSpeech")
    chapter = root / "dev-clean" / "84" / "121123"
    (chapter / "84-121123-0000.flac").unlink()
    (chapter / "84-121123-0001.flac").write_bytes(b"not audio")
    (chapter / "84-121123-0009.flac").write_bytes(b"")
    (root / "dev-clean" / "99" / "1").mkdir(parents=True)
    shutil.copy(chapter / "84-121123-0002.flac", root / "dev-clean" / "99" / "1" / "99-1-0000.flac")
    with pytest.raises(DataError) as caught:
        librispeech.prepare(root, tmp_path / "out")
    message = str(caught.value)
    for part in (
        "4 problems", "no 84-121123-0000.flac", "84-121123-0001.flac", "84-121123-0009.flac has no",
        "no 99-1.trans.txt", "Expected <root>/<subset>",
    ):  # fmt: skip
        assert part in message
    assert not (tmp_path / "out" / "dev-clean.jsonl").exists()


def test_bad_transcripts_are_named(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "LibriSpeech")
    transcripts = next(root.rglob("*.trans.txt"))
    rows = transcripts.read_text().splitlines()
    transcripts.write_text("\n".join([*rows[:2], rows[1], "84-121123-0002"]))
    with pytest.raises(
        DataError, match=r"row 3: 84-121123-0001 is there twice[\s\S]*row 4.*no text"
    ):
        librispeech.prepare(root, tmp_path / "out")


def test_wrong_folders_show_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder[\s\S]*Expected"):
        librispeech.prepare(tmp_path / "nowhere", tmp_path)
    with pytest.raises(DataError, match=r"no subset at all[\s\S]*Expected"):
        librispeech.prepare(tmp_path, tmp_path)
    root = make_corpus(tmp_path / "LibriSpeech")
    with pytest.raises(DataError, match=r"no subset test-clean here \(found: dev-clean\)"):
        librispeech.prepare(root, tmp_path, subsets=["test-clean"])
    (root / "SPEAKERS.TXT").write_text("84 female\n")
    with pytest.raises(DataError, match=r"SPEAKERS.TXT, row 1"):
        librispeech.prepare(root, tmp_path)


def test_real_excerpt(real_data: Path, tmp_path: Path) -> None:
    manifests = librispeech.prepare(real_data / "LibriSpeech", tmp_path)
    rows = {subset: read_manifest(path) for subset, path in manifests.items()}
    assert {"train-clean-100", "dev-clean", "test-clean", "test-other"} <= set(rows)
    items = [row for subset in rows.values() for row in subset]
    assert all(row.sample_rate == 16000 and row.extra["gender"] in "FM" for row in items)
    assert all(4 < len(row.text or "") / row.duration < 25 for row in items)
    assert not check_manifest(manifests["test-other"])


def make_archive(folder: Path) -> tuple[Path, str]:
    make_corpus(folder / "LibriSpeech")
    archive = folder / "served" / "dev-clean.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder / "LibriSpeech", "LibriSpeech")
    return archive, hashlib.md5(archive.read_bytes()).hexdigest()


def test_download_checks_extracts_and_is_done_once(tmp_path: Path, file_server: Any) -> None:
    archive, md5 = make_archive(tmp_path)
    options = {"checksums": {"dev-clean": f"md5:{md5}"}, "num_retries": 0}
    with file_server(archive.parent) as server:
        root = librispeech.download(tmp_path / "d", ["dev-clean"], base_url=server.url, **options)
        librispeech.download(tmp_path / "d", ["dev-clean"], base_url=server.url, **options)
        assert len(server.requests) == 1
    assert root == tmp_path / "d" / "LibriSpeech"
    assert len(read_manifest(librispeech.prepare(root, tmp_path / "m")["dev-clean"])) == 3
    assert not (tmp_path / "d" / "dev-clean.tar.gz").exists()


def test_download_refuses_another_archive(tmp_path: Path, file_server: Any) -> None:
    archive, _ = make_archive(tmp_path)
    with (
        file_server(archive.parent) as server,
        pytest.raises(DownloadError, match="42e2234ba48799"),
    ):
        librispeech.download(tmp_path / "d", ["dev-clean"], base_url=server.url, num_retries=0)
    with pytest.raises(ValueError, match="unknown subset train-clean; known: dev-clean"):
        librispeech.download(tmp_path / "d", ["train-clean"])
    assert not (tmp_path / "d" / "LibriSpeech").exists()
