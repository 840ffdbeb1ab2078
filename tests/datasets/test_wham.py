"""WHAM! and WHAMR! folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.data.manifest import DataError, check_manifest, read_manifest
from speechkit.datasets import wham

NAME = "40na010x_1.9857_01xo031a_-1.9857"
SIGNALS = ["s1", "s2", "mix_clean", "mix_both", "mix_single"]


def make_corpus(root: Path, rooms: tuple[str, ...] = ("",), subtype: str = "FLOAT") -> Path:
    parts = ["noise", *(f"{name}{room}" for name in SIGNALS for room in rooms)]
    for split in ("tr", "cv", "tt"):
        for part in parts:
            path = root / "wav8k/min" / split / part / f"{NAME}.wav"
            path.parent.mkdir(parents=True)
            noise = np.random.default_rng(0).normal(size=4000) * 0.1
            soundfile.write(path, noise, 8000, subtype=subtype)
    return root


@pytest.mark.parametrize(
    ("mixture", "sources", "noise"),
    [("mix_both", 2, True), ("mix_clean", 2, False), ("mix_single", 1, True)],
)
def test_each_mixture_names_its_signals(
    tmp_path: Path, mixture: str, sources: int, noise: bool
) -> None:
    make_corpus(tmp_path / "2speakers_wham")
    manifests = wham.prepare(tmp_path, tmp_path / "out", mixture=mixture)
    assert list(manifests) == ["train", "valid", "test"]
    [row] = read_manifest(manifests["valid"])
    assert Path(row.audio).parts[-3:-1] == ("cv", mixture)
    assert [Path(path).parent.name for path in row.extra["sources"]] == ["s1", "s2"][:sources]
    assert row.extra["speakers"] == ["40n", "01x"][:sources]
    assert ("noise" in row.extra) == noise
    assert (row.id, row.duration) == (NAME, 0.5)
    assert check_manifest(manifests["valid"], read_samples=True) == []


def test_reverberant_mixtures_and_their_targets(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "anywhere", ("_anechoic", "_reverb"), "PCM_16")
    names = {}
    for sources in (None, ["s1_reverb", "s2_reverb"]):
        manifests = wham.prepare(root, tmp_path / "out", mixture="mix_both_reverb", sources=sources)
        [row] = read_manifest(manifests["train"])
        assert Path(row.audio).parent.name == "mix_both_reverb"
        assert Path(row.extra["noise"]).parent.name == "noise"
        names[sources is None] = [Path(path).parent.name for path in row.extra["sources"]]
    assert names == {True: ["s1_anechoic", "s2_anechoic"], False: ["s1_reverb", "s2_reverb"]}
    manifests = wham.prepare(root, tmp_path / "out", mixture="mix_single_anechoic")
    assert len(read_manifest(manifests["test"])[0].extra["sources"]) == 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "whamr", ("_reverb",))
    with pytest.raises(DataError, match=r"tr: no s1_anechoic, s2_anechoic here \(found: mix_both_"):
        wham.prepare(tmp_path, tmp_path / "out", mixture="mix_both_reverb")
    (root / "wav8k/min/tr/noise" / f"{NAME}.wav").unlink()
    sources = ["s1_reverb", "s2_reverb"]
    with pytest.raises(DataError, match=f"{NAME}.wav is not in noise"):
        wham.prepare(root, tmp_path / "out", mixture="mix_both_reverb", sources=sources)
    with pytest.raises(DataError, match="no wav8k or wav16k"):
        wham.prepare(tmp_path / "nowhere", tmp_path / "out")


def test_files_of_another_rate_or_length(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "a")
    place = root / "wav8k/min/tr"
    soundfile.write(place / "s1" / f"{NAME}.wav", np.zeros(4000), 16000)
    with pytest.raises(DataError, match=f"s1/{NAME}.wav has 16000 Hz instead of 8000"):
        wham.prepare(root, tmp_path / "out")
    soundfile.write(place / "s1" / f"{NAME}.wav", np.zeros(3999), 8000)
    with pytest.raises(DataError, match=f"s1/{NAME}.wav has 1 x 3999 samples, mix_both/"):
        wham.prepare(root, tmp_path / "out")


def test_done_work_is_kept(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "a")
    path = wham.prepare(root, tmp_path / "out")["train"]
    before = path.stat().st_mtime_ns
    wham.prepare(root, tmp_path / "out")
    assert path.stat().st_mtime_ns == before
    wham.prepare(root, tmp_path / "out", mixture="mix_clean")
    assert "mix_clean" in path.read_text()


def test_unknown_choices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown mixture 'mix'; known: mix_clean, mix_both"):
        wham.prepare(tmp_path, tmp_path, mixture="mix")
    with pytest.raises(ValueError, match=r"got 'mid', 8000"):
        wham.prepare(tmp_path, tmp_path, mode="mid")
