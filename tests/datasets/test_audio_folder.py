"""Folders of audio as corpora."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError, read_manifest
from speechkit.datasets.audio_folder import prepare


def write(path: Path, seconds: float = 1.5, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, torch.linspace(-0.5, 0.5, int(seconds * rate)), rate)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "audio"
    for speaker in range(20):
        for take in range(2):
            write(root / f"s{speaker:02}" / f"{take}.wav")
    return root


def speakers(path: Path) -> set[str | None]:
    return {row.speaker for row in read_manifest(path)}


def test_a_sub_folder_stays_together_and_where_it_is(root: Path, tmp_path: Path) -> None:
    first = prepare(root, tmp_path / "a", valid_share=0.2, test_share=0.2)
    before = {split: speakers(path) for split, path in first.items()}
    assert sum(len(own) for own in before.values()) == 20
    assert len(set().union(*before.values())) == 20
    write(root / "new" / "deep" / "er" / "1.wav")
    after = {
        split: speakers(path)
        for split, path in prepare(root, tmp_path / "a", valid_share=0.2, test_share=0.2).items()
    }
    for split, own in before.items():
        assert own == after[split] - {"new"}
    assert sum("new" in own for own in after.values()) == 1


def test_nothing_is_done_again(root: Path, tmp_path: Path) -> None:
    path = prepare(root, tmp_path / "out", valid_share=0.2, test_share=0.2)["train"]
    stamp = path.stat().st_mtime_ns
    prepare(root, tmp_path / "out", valid_share=0.2, test_share=0.2)
    assert path.stat().st_mtime_ns == stamp


def test_short_files_are_left_out_and_equal_stems_kept_apart(tmp_path: Path) -> None:
    root = tmp_path / "audio"
    write(root / "short.wav", 0.5)
    for suffix in (".wav", ".flac"):
        write(root / f"twin{suffix}")
    rows = read_manifest(prepare(root, tmp_path / "o", valid_share=0, test_share=0)["train"])
    assert [row.id for row in rows] == ["twin.flac", "twin.wav"]
    assert [row.duration for row in rows] == [1.5, 1.5]


def test_errors_say_what_and_where(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no audio here"):
        prepare(tmp_path / "nowhere", tmp_path / "o")
    with pytest.raises(ValueError, match="below 1 together"):
        prepare(root, tmp_path / "o", valid_share=0.5, test_share=0.5)
    with pytest.raises(DataError, match=r"nothing of its 40 files falls into valid, test"):
        prepare(root, tmp_path / "o", valid_share=1e-6, test_share=1e-6)
    (root / "s03" / "0.wav").write_bytes(b"no sound")
    (root / "s04" / "1.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)2 problems.*s03/0.wav.*s04/1.wav.*Mend"):
        prepare(root, tmp_path / "o")
