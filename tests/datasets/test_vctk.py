"""VCTK: its versions' layouts, and what the published corpus itself lacks."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError, check_manifest, read_manifest
from speechkit.datasets import vctk

SPEAKERS = ("p225", "p226", "s5")


def make_corpus(root: Path, audio: str) -> Path:
    for speaker in SPEAKERS:
        (root / "txt" / speaker).mkdir(parents=True)
        for number in range(1, 11):
            item = f"{speaker}_{number:03d}"
            (root / "txt" / speaker / f"{item}.txt").write_text(f" Please  call {number}.\n")
            folder = root / audio / speaker
            if audio == "wav48_silence_trimmed":
                write_audio(folder / f"{item}_mic1.flac", torch.rand(4800) - 0.5, 48000)
                write_audio(folder / f"{item}_mic2.flac", torch.rand(9600) - 0.5, 48000)
            else:
                write_audio(folder / f"{item}.wav", torch.rand(4800) - 0.5, 48000)
    (root / "speaker-info.txt").write_text(
        "ID  AGE  GENDER  ACCENTS  REGION COMMENTS\n225  23  F    English    Southern  England\n"
        "p226  22  M    English    Surrey\ns5  24\n"
    )
    return root


SHARES: dict[str, Any] = {"valid": 0.2, "test": 0.2}


@pytest.mark.parametrize("audio", vctk.AUDIO_FOLDERS)
def test_every_layout(audio: str, tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "VCTK", audio)
    manifests = vctk.prepare(root, tmp_path / "out", unseen_speakers=["s5"], **SHARES)
    rows = {split: read_manifest(path) for split, path in manifests.items()}
    assert list(rows) == ["train", "valid", "test", "unseen"]
    assert [row.id for row in rows["unseen"]] == [f"s5_{i:03d}" for i in range(1, 11)]
    seen = [row for split in ("train", "valid", "test") for row in rows[split]]
    assert {row.speaker for row in seen} == {"p225", "p226"}
    assert len(seen) == 20
    row = next(row for row in seen if row.id == "p225_003")
    assert row.text == "Please call 3."
    assert row.extra == {"gender": "F", "accent": "English"}
    assert (row.duration, row.sample_rate) == (0.1, 48000)
    assert check_manifest(manifests["unseen"], read_samples=True) == []


def test_the_microphone_is_a_choice(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "VCTK", "wav48_silence_trimmed")
    path = vctk.prepare(root, tmp_path / "out", microphone="mic2", **SHARES)["train"]
    assert {row.duration for row in read_manifest(path)} == {0.2}
    assert "_mic2.flac" in read_manifest(path)[0].audio
    with pytest.raises(ValueError, match="mic1, mic2"):
        vctk.prepare(root, tmp_path / "out", microphone="3")


def test_known_gaps_are_left_out_and_others_named(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "VCTK", "wav48_silence_trimmed")
    audio = root / "wav48_silence_trimmed"
    write_audio(audio / "p315/p315_001_mic1.flac", torch.rand(4800), 48000)
    (root / "txt/p362").mkdir()
    (root / "txt/p362/p362_001.txt").write_text("No audio.")
    found = vctk.prepare(root, tmp_path / "out", **SHARES)
    rows = [row for path in found.values() for row in read_manifest(path)]
    assert {row.speaker for row in rows} == set(SPEAKERS)
    (audio / "p225/p225_001_mic1.flac").unlink()
    (root / "txt/p226/p226_002.txt").unlink()
    (root / "txt/p226/p226_003.txt").write_text("\n")
    (root / "txt/p226/p226_004.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError) as caught:
        vctk.prepare(root, tmp_path / "out", **SHARES)
    for part in (
        "4 problems", "p225_001.txt has no audio file of mic1", "has no txt/p226/p226_002.txt",
        "p226_003.txt is empty", "p226_004.txt: not text in UTF-8",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_wrong_folders_and_speakers(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "VCTK", "wav48")
    with pytest.raises(DataError, match=r"no audio folder \(found: VCTK\)"):
        vctk.prepare(tmp_path, tmp_path / "out")
    (tmp_path / "other/wav48").mkdir(parents=True)
    with pytest.raises(DataError, match="no txt folder"):
        vctk.prepare(tmp_path / "other", tmp_path / "out")
    with pytest.raises(DataError, match=r"speakers p999; there are p225, p226, s5"):
        vctk.prepare(root, tmp_path / "out", unseen_speakers=["p999", "s5"])


def test_download(tmp_path: Path, file_server: Any) -> None:
    corpus = make_corpus(tmp_path / "VCTK", "wav48_silence_trimmed")
    archive = tmp_path / "VCTK-Corpus-0.92.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(corpus.rglob("*")):
            file.write(path, path.relative_to(corpus))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with file_server(tmp_path) as server:
        url = f"{server.url}/{archive.name}"
        folder = vctk.download(tmp_path / "to", url=url, checksum=f"sha256:{digest}")
        assert vctk.download(tmp_path / "to", url=url) == folder, "what is there is not fetched"
        assert len(server.requests) == 1
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["VCTK-Corpus-0.92"]
    assert set(vctk.prepare(folder, tmp_path / "out", **SHARES)) == {"train", "valid", "test"}


def test_the_excerpt(real_data: Path, tmp_path: Path) -> None:
    manifests = vctk.prepare(
        real_data / "VCTK-Corpus", tmp_path, unseen_speakers=["p227"], valid=0.1, test=0.1
    )
    counts = {split: len(read_manifest(path)) for split, path in manifests.items()}
    assert sum(counts.values()) == 30
    assert counts["unseen"] == 10
    assert check_manifest(manifests["unseen"], read_samples=True) == []
