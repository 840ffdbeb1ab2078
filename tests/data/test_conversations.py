"""Conversations: labels that fit the sound, at most two at once, draws that belong to the item."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.conversations import Conversations
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance, write_manifest
from speechkit.data.randomness import item_generator
from speechkit.datasets.conversations import prepare_librispeech

RATE = 8000
PITCHES = {"a": 500.0, "b": 1100.0, "c": 2300.0, "d": 3100.0}
SECONDS = 6.0


def tone(pitch: float, seconds: float = 4.0) -> torch.Tensor:
    """Give a tone with a pause of a second in its middle, which labels must have too."""
    time = torch.arange(round(seconds * RATE)) / RATE
    pause = (time > seconds / 2 - 0.5) & (time < seconds / 2 + 0.5)
    return 0.3 * torch.sin(6.2832 * pitch * time) * ~pause


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = []
    for name, pitch in PITCHES.items():
        path = tmp_path / f"{name}.wav"
        write_audio(path, tone(pitch), RATE)
        rows.append(Utterance(name, str(path), 4.0, RATE, speaker=name))
    write_manifest(tmp_path / "train.jsonl", rows[:3])
    write_manifest(tmp_path / "valid.jsonl", [rows[3], *rows[:1]])
    return tmp_path / "train.jsonl"


def make(sources: object, **options: object) -> Conversations:
    return Conversations(sources=sources, sample_rate=RATE, seconds=SECONDS, **options)  # type: ignore[arg-type]


def item(talk: Conversations, name: str, epoch: int = 0) -> dict[str, torch.Tensor]:
    row = Utterance(name, f"{name}.wav", 4.0, RATE, speaker=name)
    row = next(r for v in talk._voices for rows in v.values() for r in rows if r.id == row.id)
    return talk({"id": name, "utterance": row}, item_generator(0, epoch, name))


def tones_heard(waveform: torch.Tensor) -> torch.Tensor:
    """Count the pitches in each frame of 10 ms: (K,)."""
    frames = waveform.unfold(0, 400, RATE // 100)  # 50 ms
    time = torch.arange(400) / RATE
    window = torch.hann_window(400)
    counts = torch.zeros(len(frames), dtype=torch.int64)
    for pitch in PITCHES.values():
        wave = torch.exp(2j * torch.pi * pitch * time) * window
        counts += (frames.to(torch.complex64) @ wave).abs() > 1.0
    return counts


def test_labels_are_what_is_heard(manifest: Path) -> None:
    talk = make(manifest)
    seen = torch.zeros(4)
    for epoch in range(20):
        for name in "abc":
            made = item(talk, name, epoch)
            assert made["waveform"].shape == (round(SECONDS * RATE),)
            assert made["speakers"].shape == (601,)
            heard = tones_heard(made["waveform"])
            told = made["speakers"][2 : 2 + len(heard)]  # a frame of 50 ms has its middle there
            # Energy is padded by 50 ms at each edge, and a frame is 50 ms long.
            assert float((heard == told).float().mean()) > 0.85
            changes = (told[1:] != told[:-1]).sum()
            assert int((heard != told).sum()) <= 12 * int(changes)
            seen += torch.bincount(made["speakers"], minlength=4)
    assert seen[3] == 0
    assert bool((seen[:3] > 0.05 * seen.sum()).all())


def test_draws_belong_to_the_item(manifest: Path) -> None:
    kept, talk = make(manifest, keep_seconds=60.0), make(manifest)
    first = item(talk, "a", 3)
    item(kept, "b", 1)
    again = item(kept, "a", 3)
    assert torch.equal(first["waveform"], again["waveform"])
    assert torch.equal(first["speakers"], again["speakers"])
    assert not torch.equal(first["waveform"], item(talk, "a", 4)["waveform"])


def test_fixed_ones_are_the_same_for_every_epoch_and_seed(manifest: Path) -> None:
    talk = make(manifest, fixed=True)
    assert torch.equal(item(talk, "a", 0)["waveform"], item(talk, "a", 7)["waveform"])
    assert not torch.equal(item(talk, "a")["waveform"], item(talk, "b")["waveform"])


def test_splits_stay_apart(manifest: Path, tmp_path: Path) -> None:
    """Of the manifest that has d, only a is another voice."""
    valid = tmp_path / "valid.jsonl"
    talk = make([manifest, valid])
    voices = make(valid, overlap_prob=1.0)
    for epoch in range(5):
        generator = item_generator(0, epoch, "d")
        row = next(iter(talk._voices[1].values()))[0]
        turns = list(talk._turns(row, generator))
        assert {turn.utterance.speaker for turn in turns} <= {"a", "d"}
        waveform = item(voices, "d", epoch)["waveform"]
        spectrum = torch.fft.rfft(waveform).abs()
        for name in "bc":
            bin_ = round(PITCHES[name] * SECONDS)
            assert float(spectrum[bin_ - 3 : bin_ + 3].max()) < 0.02 * float(spectrum.max())


def test_no_speaker_speaks_over_himself(manifest: Path) -> None:
    talk = make(manifest, overlap_prob=0.9, turn_seconds=(0.5, 4.0))
    row = next(iter(talk._voices[0].values()))[0]
    for epoch in range(200):
        turns = list(talk._turns(row, item_generator(0, epoch, "a")))
        for number, turn in enumerate(turns):
            over = [t for t in turns[:number] if t.start + t.frames > turn.start]
            assert len(over) <= 1
            assert turn.utterance.speaker not in {t.utterance.speaker for t in over}


def test_levels(manifest: Path) -> None:
    levels = []
    talk = make(manifest, level_db=(-20.0, -20.0), overlap_prob=0.0)
    for epoch in range(5):
        waveform = item(talk, "a", epoch)["waveform"]
        levels.append(float(waveform.abs().max()))
    # A tone whose power is -46 dB.
    assert max(levels) == pytest.approx(2**0.5 * 10 ** (-46 / 20), rel=0.05)


def test_what_cannot_be(manifest: Path, tmp_path: Path) -> None:
    stranger = Utterance("z", str(tmp_path / "a.wav"), 4.0, RATE, speaker="z")
    with pytest.raises(DataError, match="in none of the manifests"):
        make(manifest)({"id": "z", "utterance": stranger}, torch.Generator())
    for rows, message in (
        ([stranger], r"conversations need 2 speakers, this has 1 \(z\)"),
        ([Utterance("y", "y.wav", 4.0, RATE)], "without 'speaker': 1"),
    ):
        write_manifest(tmp_path / "bad.jsonl", rows)
        with pytest.raises(DataError, match=message):
            make(tmp_path / "bad.jsonl")
    for options in (
        {"seconds": 0.0}, {"overlap_prob": 1.5}, {"sample_rate": 11025 + 2},
        {"turn_seconds": (0.0, 1.0)}, {"pause_seconds": (2.0, 1.0)},
    ):  # fmt: skip
        arguments = {"sources": manifest, "sample_rate": RATE, **options}
        with pytest.raises(ValueError, match=r"must be|in \[|low"):
            Conversations(**arguments)  # type: ignore[arg-type]


# ---------------------------------------------------------------- splits


def write_readers(root: Path) -> None:
    """Write five readers to train on and two to test with, of 3 s each."""
    for reader in range(7):
        subset = "train-clean-100" if reader < 5 else "test-other"
        folder = root / subset / f"{100 + reader}" / "7"
        write_audio(folder / f"{100 + reader}-7-0000.flac", tone(500.0, 3.0), RATE)
        (folder / f"{100 + reader}-7.trans.txt").write_text(f"{100 + reader}-7-0000 WORDS")


def test_readers_are_in_one_split(tmp_path: Path) -> None:
    from speechkit.data.manifest import read_manifest

    write_readers(tmp_path / "libri")
    where = (tmp_path / "libri", tmp_path / "out")
    subsets = {"train": ["train-clean-100"], "test": ["test-other"]}
    made = prepare_librispeech(*where, **subsets, valid_readers=2, every=1.0)
    rows = {name: read_manifest(path) for name, path in made.items()}
    assert {name: len(own) for name, own in rows.items()} == {"train": 9, "valid": 6, "test": 6}
    ids = [row.id for own in rows.values() for row in own]
    assert len(set(ids)) == len(ids)
    readers = [{row.speaker for row in own} for own in rows.values()]
    assert sum(map(len, readers)) == len(set.union(*readers)) == 7
    with pytest.raises(DataError, match="5 readers, too few for 4 in validation"):
        prepare_librispeech(*where, **subsets, valid_readers=4)
    with pytest.raises(ValueError, match="valid_readers at least 2"):
        prepare_librispeech(*where, **subsets, valid_readers=1)
    twice = {"train": ["train-clean-100"], "test": ["train-clean-100"]}
    with pytest.raises(DataError, match="are in train-clean-100 too: 100, 101"):
        prepare_librispeech(*where, **twice, valid_readers=2)
