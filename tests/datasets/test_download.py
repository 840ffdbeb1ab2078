"""Fetching over an unreliable connection, and archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from speechkit.datasets.download import DownloadError, extract, fetch

DATA = bytes(range(256)) * 2000
MD5 = f"md5:{hashlib.md5(DATA).hexdigest()}"
SHA = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture
def served(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(DATA)
    return tmp_path / "served"


@pytest.mark.parametrize("checksum", [None, MD5, SHA])
def test_fetches_once(served: Path, tmp_path: Path, file_server: Any, checksum: str | None) -> None:
    target = tmp_path / "new" / "a.bin"
    with file_server(served) as server:
        assert fetch(f"{server.url}/a.bin", target, checksum=checksum) == target
        fetch(f"{server.url}/a.bin", target, checksum=checksum)
        assert server.requests == [None]
    assert target.read_bytes() == DATA
    assert [path.name for path in target.parent.iterdir()] == ["a.bin"]


def test_broken_connection_goes_on_where_it_stopped(
    served: Path, tmp_path: Path, file_server: Any
) -> None:
    with file_server(served, break_after=100_000, num_breaks=2) as server:
        fetch(f"{server.url}/a.bin", tmp_path / "a", checksum=MD5, num_retries=2, wait_seconds=0)
        assert server.requests == [None, "bytes=100000-", "bytes=200000-"]
    assert (tmp_path / "a").read_bytes() == DATA


def test_next_call_goes_on_where_this_one_gave_up(
    served: Path, tmp_path: Path, file_server: Any
) -> None:
    with file_server(served, break_after=1000, num_breaks=1) as server:
        url = f"{server.url}/a.bin"
        with pytest.raises(DownloadError, match=r"1000 bytes are kept in .*a\.part: run"):
            fetch(url, tmp_path / "a", checksum=MD5, num_retries=0)
        assert not (tmp_path / "a").exists()
        fetch(url, tmp_path / "a", checksum=MD5, num_retries=0)
        assert server.requests == [None, "bytes=1000-"]
    assert (tmp_path / "a").read_bytes() == DATA


def test_server_without_ranges_starts_again(served: Path, tmp_path: Path, file_server: Any) -> None:
    with file_server(served, ranges=False, break_after=1000, num_breaks=1) as server:
        fetch(f"{server.url}/a.bin", tmp_path / "a", checksum=MD5, num_retries=1, wait_seconds=0)
    assert (tmp_path / "a").read_bytes() == DATA


@pytest.mark.parametrize("kept", [DATA, DATA + b"more", b"of an older file"])
def test_kept_pieces_that_are_complete_too_long_or_old(
    served: Path, tmp_path: Path, file_server: Any, kept: bytes
) -> None:
    (tmp_path / "a.part").write_bytes(kept)
    with file_server(served) as server:
        fetch(f"{server.url}/a.bin", tmp_path / "a", checksum=MD5, num_retries=1, wait_seconds=0)
    assert (tmp_path / "a").read_bytes() == DATA


def test_wrong_checksum_leaves_nothing(served: Path, tmp_path: Path, file_server: Any) -> None:
    wrong = "md5:" + "0" * 32
    differs = pytest.raises(DownloadError, match=r"md5 is \w+ and not 0000")
    with file_server(served) as server, differs:
        fetch(f"{server.url}/a.bin", tmp_path / "a", checksum=wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["served"]
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="remove it to fetch"):
        fetch("http://127.0.0.1:9/a", tmp_path / "a", checksum=wrong)
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_refusals_and_outages(served: Path, tmp_path: Path, file_server: Any) -> None:
    with file_server(served) as server:
        with pytest.raises(DownloadError, match="answered 404"):
            fetch(f"{server.url}/b.bin", tmp_path / "b", num_retries=3)
        assert len(server.requests) == 1, "a 404 is not tried again"
    with file_server(served, errors=(503,)) as server:
        fetch(f"{server.url}/a.bin", tmp_path / "a", checksum=SHA, num_retries=1, wait_seconds=0)
    with pytest.raises(DownloadError, match=r"connection broke .*, 2 times"):
        fetch(f"{server.url}/a.bin", tmp_path / "c", num_retries=1, wait_seconds=0)
    with pytest.raises(ValueError, match="checksum must be"):
        fetch("http://127.0.0.1:9/a", tmp_path / "d", checksum="crc:12")


def make_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as file:
        good = tarfile.TarInfo("corpus/good.txt")
        good.size = 4
        file.addfile(good, io.BytesIO(b"good"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        member.size = 3 if kind == tarfile.REGTYPE else 0
        file.addfile(member, io.BytesIO(b"bad") if member.size else None)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../escaped.txt", tarfile.REGTYPE, ""),
        ("corpus/../../escaped.txt", tarfile.REGTYPE, ""),
        ("/tmp/speechkit-escaped.txt", tarfile.REGTYPE, ""),
        ("corpus/link", tarfile.SYMTYPE, "/etc"),
        ("corpus/hard", tarfile.LNKTYPE, "../../escaped.txt"),
        ("corpus/pipe", tarfile.FIFOTYPE, ""),
    ],
)
def test_hostile_tar_leaves_nothing(tmp_path: Path, name: str, kind: bytes, link: str) -> None:
    archive = make_tar(tmp_path / "bad.tar.gz", name, kind, link)
    (tmp_path / "out").mkdir()
    with pytest.raises(DownloadError, match="nothing was extracted"):
        extract(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "escaped.txt").exists()
    assert not Path("/tmp/speechkit-escaped.txt").exists()


def test_hostile_zip_leaves_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("corpus/good.txt", "good")
        file.writestr("../escaped.txt", "bad")
    with pytest.raises(DownloadError, match="would leave the folder"):
        extract(tmp_path / "bad.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "escaped.txt").exists()


def test_extraction_joins_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "corpus").mkdir(parents=True)
    (out / "corpus" / "mine.txt").write_text("mine")
    extract(make_tar(tmp_path / "a.tar.gz", "corpus/sub/b.txt"), out)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        file.writestr("corpus/sub/c.txt", "c")
    extract(tmp_path / "c.zip", out)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        "corpus/mine.txt", "corpus/good.txt", "corpus/sub/b.txt", "corpus/sub/c.txt",
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"no archive", b"", "cut"])
def test_damaged_archives_are_named(tmp_path: Path, content: bytes | str) -> None:
    archive = tmp_path / "a.tar.gz"
    if content == "cut":
        with tarfile.open(archive, "w:gz") as file:
            member = tarfile.TarInfo("noise")
            member.size = 100_000
            file.addfile(member, io.BytesIO(os.urandom(member.size)))
        archive.write_bytes(archive.read_bytes()[:50_000])
    else:
        archive.write_bytes(bytes(content))  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match=r"a\.tar\.gz: damaged, or no archive"):
        extract(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
