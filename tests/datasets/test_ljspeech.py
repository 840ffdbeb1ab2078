"""LJSpeech: rows, the division by ids, errors that name row and file, and the download."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError, check_manifest, read_manifest
from speechkit.datasets import ljspeech
from speechkit.datasets.download import DownloadError


def make_corpus(root: Path, numbers: range = range(40), folder: str = "wavs") -> Path:
    rows = []
    for number in numbers:
        name = f"LJ001-{number:04d}"
        ending = "flac" if folder == "flac" else "wav"
        write_audio(root / folder / f"{name}.{ending}", torch.rand(2205) - 0.5, 22050)
        rows.append(f'{name}|"Mr. B" had {number}|"Mr. B" had some\n')
    (root / "metadata.csv").write_text("".join(rows), encoding="utf-8")
    return root


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "LJSpeech-1.1")


def ids(manifests: dict[str, Path]) -> dict[str, list[str]]:
    return {split: [row.id for row in read_manifest(path)] for split, path in manifests.items()}


def test_rows_hold_what_the_corpus_says(corpus: Path, tmp_path: Path) -> None:
    manifests = ljspeech.prepare(corpus, tmp_path / "out", valid=0.1, test=0.2)
    assert list(manifests) == ["train", "valid", "test"]
    row = read_manifest(manifests["train"])[0]
    number = int(row.id[-4:])
    assert row.audio == str(corpus / f"wavs/{row.id}.wav")
    assert (row.text, row.speaker) == ('"Mr. B" had some', "LJ")
    assert row.extra == {"raw_text": f'"Mr. B" had {number}'}
    assert (row.duration, row.sample_rate) == (0.1, 22050)
    assert check_manifest(manifests["train"], read_samples=True) == []


def test_a_clip_stays_in_its_split_whatever_else_is_there(corpus: Path, tmp_path: Path) -> None:
    shares: dict[str, Any] = {"valid": 0.2, "test": 0.3}
    whole = ids(ljspeech.prepare(corpus, tmp_path / "whole", **shares))
    assert sorted(chain(*whole.values())) == [f"LJ001-{i:04d}" for i in range(40)]
    part = make_corpus(tmp_path / "part", range(5, 30))
    excerpt = ids(ljspeech.prepare(part, tmp_path / "excerpt", **shares))
    for split, found in excerpt.items():
        assert found
        assert set(found) <= set(whole[split])
    other = ids(ljspeech.prepare(corpus, tmp_path / "other", seed=1, **shares))
    assert other != whole


def test_a_second_folder_of_flac_joins(corpus: Path, tmp_path: Path) -> None:
    extra = make_corpus(tmp_path / "extra", range(40, 50), folder="flac")
    out = tmp_path / "out"
    found = ids(ljspeech.prepare(corpus, out, extra_root=extra, valid=0.0, test=0.3))
    assert list(found) == ["train", "test"]
    assert len([*chain(*found.values())]) == 50
    with pytest.raises(DataError, match=r"LJ001-0000 is in .*row 1 too"):
        ljspeech.prepare(corpus, out, extra_root=make_corpus(tmp_path / "again", range(1)))


def test_done_work_is_kept_and_changes_are_seen(corpus: Path, tmp_path: Path) -> None:
    path = ljspeech.prepare(corpus, tmp_path / "out", valid=0.2, test=0.2)["train"]
    before = path.stat().st_mtime_ns
    ljspeech.prepare(corpus, tmp_path / "out", valid=0.2, test=0.2)
    assert path.stat().st_mtime_ns == before
    table = corpus / "metadata.csv"
    table.write_text(table.read_text().replace("some", "none"))
    ljspeech.prepare(corpus, tmp_path / "out", valid=0.2, test=0.2)
    assert read_manifest(path)[0].text == '"Mr. B" had none'
    one = Path(read_manifest(path)[0].audio)
    write_audio(one, torch.zeros(4410), 22050)
    ljspeech.prepare(corpus, tmp_path / "out", valid=0.2, test=0.2)
    assert read_manifest(path)[0].duration == 0.2


def test_everything_wrong_is_named_at_once(corpus: Path, tmp_path: Path) -> None:
    (corpus / "wavs/LJ001-0003.wav").unlink()
    table = corpus / "metadata.csv"
    table.write_text(table.read_text() + "LJ001-0003\n\n../x|a|b\nLJ001-0004||b\n")
    with pytest.raises(DataError) as caught:
        ljspeech.prepare(corpus, tmp_path / "out")
    message = str(caught.value)
    for part in (
        "4 problems", "metadata.csv, row 4: LJ001-0003 has no audio file", "wavs/LJ001-0003.wav",
        "row 41: expected id|text|text in words, got 'LJ001-0003'", "row 43: ../x has no audio",
        "row 44: expected", "Expected <root>/metadata.csv",
    ):  # fmt: skip
        assert part in message
    assert not (tmp_path / "out").exists()


def test_bad_audio_and_audio_without_a_row(corpus: Path, tmp_path: Path) -> None:
    shutil.copy(corpus / "wavs/LJ001-0000.wav", corpus / "wavs/LJ009-0000.wav")
    with pytest.raises(DataError, match=r"LJ009-0000.wav has no row in metadata.csv"):
        ljspeech.prepare(corpus, tmp_path / "out")
    (corpus / "wavs/LJ009-0000.wav").unlink()
    (corpus / "wavs/LJ001-0007.wav").write_bytes(b"not audio")
    with pytest.raises(DataError, match=r"row 8: .*LJ001-0007.wav"):
        ljspeech.prepare(corpus, tmp_path / "out")


def test_wrong_folders_and_shares(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file.*ljspeech\.download"):
        ljspeech.prepare(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="no clip of 40 falls into valid"):
        ljspeech.prepare(corpus, tmp_path / "out", valid=1e-6, test=0.5)
    for valid, test in ((-0.1, 0.1), (0.5, 0.5)):
        with pytest.raises(ValueError, match="together below 1"):
            ljspeech.prepare(corpus, tmp_path / "out", valid=valid, test=test)
    (corpus / "metadata.csv").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        ljspeech.prepare(corpus, tmp_path / "out")


def test_the_excerpts(real_data: Path, tmp_path: Path) -> None:
    manifests = ljspeech.prepare(
        real_data / "LJSpeech-1.1", tmp_path, extra_root=real_data / "extra/LJSpeech-1.1"
    )
    found = ids(manifests)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 296, "valid": 8, "test": 16,
    }  # fmt: skip
    assert check_manifest(manifests["valid"], read_samples=True) == []


def test_download_goes_on_and_is_checked(corpus: Path, tmp_path: Path, file_server: Any) -> None:
    served = tmp_path / "served"
    served.mkdir()
    archive = served / "LJSpeech-1.1.tar.bz2"
    with tarfile.open(archive, "w:bz2") as file:
        file.add(corpus, "LJSpeech-1.1")
    digest = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    with file_server(served, break_after=archive.stat().st_size // 2, num_breaks=1) as server:
        url = f"{server.url}/{archive.name}"
        folder = ljspeech.download(tmp_path / "fetched", url=url, checksum=digest)
        assert len(server.requests) == 2
        assert server.requests[1] is not None  # only the rest was asked for
        assert folder == ljspeech.download(tmp_path / "fetched", url=url, checksum=digest)
        assert len(server.requests) == 2
        with pytest.raises(DownloadError, match="and not"):
            ljspeech.download(tmp_path / "other", url=url, checksum=ljspeech.CHECKSUM)
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == ["LJSpeech-1.1"]
    assert len(ids(ljspeech.prepare(folder, tmp_path / "out", valid=0.1, test=0.1))["train"]) > 20


def test_an_archive_of_something_else(tmp_path: Path, file_server: Any) -> None:
    (tmp_path / "a.txt").write_text("a")
    with tarfile.open(tmp_path / "LJSpeech-1.1.tar.bz2", "w:bz2") as file:
        file.add(tmp_path / "a.txt", "a.txt")
    with file_server(tmp_path) as server, pytest.raises(DataError, match=r"no LJSpeech-1\.1/meta"):
        ljspeech.download(tmp_path / "out", url=f"{server.url}/LJSpeech-1.1.tar.bz2", checksum=None)
