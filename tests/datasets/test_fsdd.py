"""FSDD: splits that share no take, balanced strings, clean joints."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechkit.data.audio import read_audio, write_audio
from speechkit.data.manifest import DataError, Utterance, read_manifest
from speechkit.datasets import fsdd

SMALL = {"num_train": 30, "num_valid": 8, "num_test": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers and a third, 12 takes each; a digit is a tone of its own."""
    folder = tmp_path_factory.mktemp("fsdd")
    time = torch.arange(1600) / 8000
    for speaker, level in (("ann", 0.5), ("bob", 0.05), ("eve", 0.9)):
        for digit in range(10):
            for take in (0, 1, 5, 6, 10, 11):
                tone = level * torch.sin(2 * torch.pi * (300 + 300 * digit) * time)
                name = f"{digit}_{speaker}_{take}.wav"
                write_audio(folder / "recordings" / name, tone[: 1400 + 20 * take], 8000)
    return folder


def prepare(root: Path, out: Path, **options: int) -> dict[str, list[Utterance]]:
    manifests = fsdd.prepare(root, out, unseen_speaker="eve", **{**SMALL, **options})
    return {split: read_manifest(path) for split, path in manifests.items()}


def check_honest(rows: dict[str, list[Utterance]], unseen: str) -> None:
    takes = {s: {t for row in items for t in row.extra["takes"]} for s, items in rows.items()}
    for split, used in takes.items():
        for other, theirs in takes.items():
            assert split == other or not used & theirs, "a take in two splits"
        numbers = {int(take.split("_")[2]) for take in used}
        speakers = {take.split("_")[1] for take in used}
        if split == "test-unseen-speaker":
            assert speakers == {unseen}
        else:
            assert unseen not in speakers
        if split == "test-unseen-takes":
            assert numbers <= set(range(5))
        if split == "valid":
            assert numbers <= set(range(5, 10))
        if split == "train":
            assert min(numbers) >= 10
    for row in (row for items in rows.values() for row in items):
        parts = [take.split("_") for take in row.extra["takes"]]
        assert {speaker for _, speaker, _ in parts} == {row.speaker}
        assert row.text == " ".join(fsdd.WORDS[int(digit)] for digit, _, _ in parts)


def test_splits_are_honest_and_balanced(root: Path, tmp_path: Path) -> None:
    rows = prepare(root, tmp_path)
    assert {s: len(items) for s, items in rows.items()} == {
        "train": 30, "valid": 8, "test-unseen-takes": 10, "test-unseen-speaker": 10,
    }  # fmt: skip
    check_honest(rows, "eve")
    words = Counter(word for row in rows["train"] for word in (row.text or "").split())
    assert len(words) == 10
    assert max(words.values()) - min(words.values()) <= 2
    lengths = Counter(len((row.text or "").split()) for row in rows["train"])
    assert lengths == {3: 6, 4: 6, 5: 6, 6: 6, 7: 6}
    assert {row.speaker for row in rows["train"]} == {"ann", "bob"}
    uses = Counter(take for row in rows["train"] for take in row.extra["takes"])
    assert max(uses.values()) - min(uses.values()) <= 2


def test_a_digit_may_follow_itself(root: Path, tmp_path: Path) -> None:
    texts = [(row.text or "").split() for row in prepare(root, tmp_path, num_train=100)["train"]]
    pairs = [pair for words in texts for pair in itertools.pairwise(words)]
    assert 0.05 < np.mean([first == second for first, second in pairs]) < 0.2


def test_audio_holds_the_digits_without_clipping(root: Path, tmp_path: Path) -> None:
    for row in prepare(root, tmp_path)["train"]:
        samples, rate = soundfile.read(row.audio)
        assert rate == row.sample_rate == 8000
        assert len(samples) / rate == pytest.approx(row.duration)
        assert 0.02 < np.abs(samples).max() <= 0.96
        words = (row.text or "").split()
        assert 0.2 * len(words) < row.duration < 0.5 * len(words) + 0.3
        # The strongest frequency of each stretch of speech is the tone of its digit.
        frames = samples[: len(samples) // 80 * 80].reshape(-1, 80)
        peaks = np.abs(np.fft.rfft(frames * np.hanning(80), axis=1)).argmax(axis=1) * 100
        levels = 10 * np.log10((frames**2).mean(axis=1))
        loud = np.convolve(levels > levels.max() - 15, np.ones(3), mode="same") == 3
        heard = {round((peak - 300) / 300) for peak in peaks[loud]}
        assert heard <= {fsdd.WORDS.index(word) for word in words}


def test_same_seed_same_bytes(root: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> list[str]:
        files = sorted([*folder.rglob("*.flac"), *folder.glob("*.jsonl")])
        assert len(files) == 58 + 4
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    prepare(root, tmp_path / "a")
    prepare(root, tmp_path / "b")
    prepare(root, tmp_path / "c", seed=1)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_done_work_is_kept_until_something_differs(root: Path, tmp_path: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    prepare(root, tmp_path)
    before = times()
    prepare(root, tmp_path)
    assert times() == before
    (tmp_path / "valid.jsonl").unlink()
    assert len(prepare(root, tmp_path)["valid"]) == 8
    next(tmp_path.rglob("*.flac")).unlink()
    prepare(root, tmp_path)
    assert len(list(tmp_path.rglob("*.flac"))) == 58
    assert len(prepare(root, tmp_path, num_valid=9)["valid"]) == 9
    assert len(list(tmp_path.rglob("*.flac"))) == 59
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.old"))


def test_audio_of_the_user_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "mine.wav").write_bytes(b"precious")
    with pytest.raises(DataError, match="not made by speechkit"):
        prepare(root, tmp_path)
    assert (tmp_path / "audio" / "mine.wav").read_bytes() == b"precious"


def test_single_digits(root: Path, tmp_path: Path) -> None:
    manifests = fsdd.prepare_digits(root, tmp_path, unseen_speaker="bob")
    rows = {split: read_manifest(path) for split, path in manifests.items()}
    assert {split: len(items) for split, items in rows.items()} == {
        "train": 40, "valid": 40, "test-unseen-takes": 40, "test-unseen-speaker": 60,
    }  # fmt: skip
    row = next(item for item in rows["train"] if item.id == "7_ann_10")
    assert (row.text, row.extra["label"], row.extra["take"]) == ("SEVEN", "7", 10)
    assert {row.speaker for row in rows["test-unseen-speaker"]} == {"bob"}
    before = manifests["train"].stat().st_mtime_ns
    fsdd.prepare_digits(root, tmp_path, unseen_speaker="bob")
    assert manifests["train"].stat().st_mtime_ns == before


def test_errors_say_what_where_and_what_to_do(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no recordings here\. Expected <root>/recordings"):
        fsdd.prepare(tmp_path, tmp_path / "o", unseen_speaker="eve")
    with pytest.raises(DataError, match="no speaker 'adam' to leave out; found: ann, bob, eve"):
        fsdd.prepare(root, tmp_path / "o", unseen_speaker="adam")
    with pytest.raises(ValueError, match="min_digits=5, max_digits=4"):
        fsdd.prepare(root, tmp_path / "o", unseen_speaker="eve", min_digits=5, max_digits=4)
    with pytest.raises(ValueError, match="min_train_digits=0"):
        fsdd.prepare(root, tmp_path / "o", unseen_speaker="eve", min_train_digits=0)
    bad = tmp_path / "bad"
    for digit in range(9):  # nobody says nine
        for take in (0, 5, 10):
            for speaker in ("ann", "eve"):
                name = f"{digit}_{speaker}_{take}.wav"
                write_audio(bad / "recordings" / name, torch.ones(800) * 0.1, 8000)
    with pytest.raises(DataError, match="test-unseen-takes: ann has no take of NINE"):
        fsdd.prepare(bad, tmp_path / "o", unseen_speaker="eve")
    (bad / "recordings" / "hello.wav").touch()
    with pytest.raises(DataError, match=r"hello\.wav is not named"):
        fsdd.prepare(bad, tmp_path / "o", unseen_speaker="eve")


def test_a_damaged_recording_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    for digit in range(10):
        for take in (0, 5, 10):
            for speaker in ("ann", "eve"):
                name = f"{digit}_{speaker}_{take}.wav"
                write_audio(tmp_path / "recordings" / name, torch.ones(800) * 0.1, 8000)
    (tmp_path / "recordings" / "3_ann_10.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"3_ann_10\.wav"):
        fsdd.prepare(tmp_path, tmp_path / "out", unseen_speaker="eve", **SMALL)
    assert not list((tmp_path / "out").rglob("*.flac"))
    with pytest.raises(DataError, match=r"3_ann_10\.wav"):
        fsdd.prepare_digits(tmp_path, tmp_path / "out", unseen_speaker="eve")


@pytest.mark.parametrize("unseen", ["theo", "jackson"])
def test_real_recordings(real_data: Path, tmp_path: Path, unseen: str) -> None:
    manifests = fsdd.prepare(
        real_data / "fsdd", tmp_path, unseen_speaker=unseen, num_train=40, num_valid=8, num_test=12
    )
    rows = {split: read_manifest(path) for split, path in manifests.items()}
    check_honest(rows, unseen)
    for row in (row for items in rows.values() for row in items):
        samples, _ = soundfile.read(row.audio)
        assert 0.01 < np.abs(samples).max() < 0.96
        assert -45 < 10 * np.log10(np.mean(samples**2)) < -12
        assert 0.2 < row.duration / len((row.text or "").split()) < 1.5


def test_short_training_strings_leave_the_tests_as_they_are(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"unseen_speaker": "eve", "num_train": 14, "num_valid": 5}
    long = fsdd.prepare(root, tmp_path / "long", num_test=5, **options)
    short = fsdd.prepare(root, tmp_path / "short", num_test=5, min_train_digits=1, **options)
    texts = {
        name: {split: [row.text for row in read_manifest(path)] for split, path in paths.items()}
        for name, paths in (("long", long), ("short", short))
    }
    assert {len(text.split()) for text in texts["short"]["train"]} == {1, 2, 3, 4, 5, 6, 7}
    assert min(len(text.split()) for text in texts["long"]["train"]) == 3
    for split in fsdd.SPLITS[1:]:
        assert texts["short"][split] == texts["long"][split]


def test_clear_strings_are_of_one_level_with_short_pauses(root: Path, tmp_path: Path) -> None:
    counts = {"num_train": 12, "num_valid": 4, "num_test": 4}
    made = fsdd.prepare(root, tmp_path / "clear", unseen_speaker="eve", clear=True, **counts)
    varied = fsdd.prepare(root, tmp_path / "varied", unseen_speaker="eve", **counts)
    rows, others = (read_manifest(path["train"]) for path in (made, varied))
    assert [row.extra["takes"] for row in rows] == [row.extra["takes"] for row in others]
    levels = []
    for row in rows:
        samples, rate = read_audio(row.audio)
        loud = samples[samples.abs() > 1e-4]
        levels.append(float(10 * loud.square().mean().log10()))
        silent = (samples.abs() < 1e-4).float()
        assert float(silent.sum()) / rate < 0.05 + 0.11 * len(row.extra["takes"])
    assert max(levels) - min(levels) < 3.0
    assert sum(row.duration for row in rows) < sum(row.duration for row in others)
