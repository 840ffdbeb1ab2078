"""Items and loaders: the same with any number of workers, resumable, faults counted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.batch import Failure
from speechkit.data.dataset import EncodeText, LoadAudio, SpeechDataset
from speechkit.data.loaders import SpeechData
from speechkit.data.manifest import DataError, Utterance, manifest_sha256, write_manifest
from speechkit.data.randomness import item_generator, item_seed
from speechkit.nn.masking import Padded

RATE = 8000


class Letters:
    def encode(self, text):
        if "?" in text:
            raise DataError(f"'?' in {text!r} is not in the vocabulary")
        return [ord(letter) - 96 for letter in text]


def add_noise(item, generator):
    noise = torch.randn(item["waveform"].shape, generator=generator)
    return {**item, "waveform": item["waveform"] + noise}


def add_sources(item, generator):
    """Set further fields as separation would: two big tensors and a small one."""
    wave = item["waveform"]
    gain = torch.rand((), generator=generator)
    return {**item, "sources": torch.stack([wave * gain, wave], dim=1), "gain": gain}


@pytest.fixture
def corpus(tmp_path):
    """Forty utterances of 0.5 to 4 s, two in each of twenty files."""
    utterances = []
    generator = torch.Generator().manual_seed(0)
    for n in range(20):
        seconds = 0.5 + 3.5 * torch.rand((), generator=generator).item()
        samples = torch.rand(2 * int(seconds * RATE), generator=generator) - 0.5
        path = tmp_path / f"{n}.wav"
        write_audio(path, samples, RATE)
        half = len(samples) / 2 / RATE
        for part in range(2):
            row = Utterance(f"u{n}-{part}", str(path), half, RATE, start=part * half, text="ab" * n)
            utterances.append(row)
    write_manifest(tmp_path / "train.jsonl", utterances)
    write_manifest(tmp_path / "test.jsonl", utterances[:9])
    return tmp_path


def make(corpus, **options):
    settings = {
        "train": corpus / "train.jsonl",
        "test": {"clean": corpus / "test.jsonl"},
        "transforms": [LoadAudio(sample_rate=RATE), EncodeText(tokenizer=Letters())],
        "augment": [add_noise, add_sources],
        "max_batch_seconds": 12.0,
        "seed": 3,
    }
    return SpeechData(**{**settings, **options})


def snapshot(batch):
    fields = {}
    for name, value in batch.fields.items():
        tensors = value if isinstance(value, Padded) else [value]
        fields[name] = [t.clone() if isinstance(t, torch.Tensor) else t for t in tensors]
    return batch.ids, fields


def assert_same(first, second):
    assert [ids for ids, _ in first] == [ids for ids, _ in second]
    for (_, left), (_, right) in zip(first, second):
        assert left.keys() == right.keys()
        for name in left:
            for a, b in zip(left[name], right[name]):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


def test_randomness_is_a_function_of_seed_epoch_and_id():
    assert item_seed(0, 0, "a") == 3185408873096998715  # the same on every machine, for ever
    draws = {item_seed(s, e, i) for s in range(5) for e in range(5) for i in ("a", "b", "ü", "1")}
    assert len(draws) == 100
    assert min(draws) >= 0
    assert max(draws) < 2**63
    state = torch.get_rng_state()
    a = torch.rand(4, generator=item_generator(0, 1, "x"))
    assert torch.equal(a, torch.rand(4, generator=item_generator(0, 1, "x")))
    assert not torch.equal(a, torch.rand(4, generator=item_generator(0, 2, "x")))
    assert torch.equal(torch.get_rng_state(), state)


def test_items(corpus):
    data = make(corpus)
    dataset = SpeechDataset(data.utterances["train"], transforms=data.transforms + data.augment)
    assert len(dataset) == 40
    item = dataset[5, 7]
    assert item["id"] == "u3-1"
    assert item["tokens"].tolist() == [1, 2] * 3
    assert item["text"] == "ababab"
    assert torch.equal(item["waveform"], dataset[5, 7]["waveform"])
    assert not torch.equal(item["waveform"], dataset[6, 7]["waveform"])
    assert torch.equal(dataset[7]["waveform"], dataset[0, 7]["waveform"])


def test_a_span_is_resampled(corpus):
    utterance = make(corpus).utterances["train"][1]
    item = SpeechDataset([utterance], transforms=[LoadAudio(sample_rate=2 * RATE)])[0]
    assert abs(len(item["waveform"]) - utterance.duration * 2 * RATE) <= 2


def test_faults_name_the_utterance(corpus):
    rows = [
        Utterance("gone", str(corpus / "gone.wav"), 1.0, RATE, text="a"),
        Utterance("odd", str(corpus / "0.wav"), 0.4, RATE, text="a?"),
        Utterance("mute", str(corpus / "0.wav"), 0.4, RATE),
    ]
    transforms = [LoadAudio(sample_rate=RATE), EncodeText(tokenizer=Letters())]
    dataset = SpeechDataset(rows, transforms=transforms)
    for index, words in enumerate(["gone.*gone.wav", "odd.*'a\\?'", "mute.*no 'text'"]):
        with pytest.raises(DataError, match=words):
            dataset[0, index]
    skipping = SpeechDataset(rows, transforms=transforms, skip_bad=True)
    failure = skipping[0, 0]
    assert isinstance(failure, Failure)
    assert failure.id == "gone"
    assert "gone.wav" in failure.message


def test_a_fault_of_the_code_is_not_skipped(corpus):
    def broken(item, generator):
        raise KeyError("code")

    rows = make(corpus).utterances["train"]
    with pytest.raises(KeyError):
        SpeechDataset(rows, transforms=[broken], skip_bad=True)[0]


def test_the_same_batches_with_any_number_of_workers(corpus):
    alone, helped = make(corpus), make(corpus, num_workers=2)
    for epoch in (1, 2):
        expected = [snapshot(batch) for batch in alone.train_loader(epoch)]
        # Batches are kept while others arrive: a shared buffer must not be visible behind them.
        batches = list(helped.train_loader(epoch))
        assert_same(expected, [snapshot(batch) for batch in batches])
        assert {batch.epoch for batch in batches} == {epoch}
    assert_same(*([snapshot(b) for b in data.eval_loader("clean")] for data in (alone, helped)))


def test_epochs_differ(corpus):
    data = make(corpus)
    first, second = ([snapshot(b) for b in data.train_loader(epoch)] for epoch in (1, 2))
    assert [ids for ids, _ in first] != [ids for ids, _ in second]
    assert sorted(i for ids, _ in first for i in ids) == sorted(i for ids, _ in second for i in ids)
    assert not torch.equal(first[0][1]["gain"][0], second[0][1]["gain"][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_untouched(corpus, workers):
    data = make(corpus, num_workers=workers)
    state = torch.get_rng_state()
    for _ in data.train_loader(1):
        pass
    for _ in data.eval_loader("clean"):
        pass
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_reads_nothing_of_what_is_skipped(corpus, workers):
    whole = [snapshot(batch) for batch in make(corpus).train_loader(2)]
    assert len(whole) >= 6
    for utterance in make(corpus).utterances["train"]:
        if utterance.id in {i for ids, _ in whole[:4] for i in ids} - {
            # two utterances share a file
            i[:-1] + part
            for ids, _ in whole[4:]
            for i in ids
            for part in "01"
        }:
            (corpus / utterance.audio).unlink(missing_ok=True)
    resumed = make(corpus, num_workers=workers).train_loader(2, start_batch=4)
    assert_same(whole[4:], [snapshot(batch) for batch in resumed])
    assert list(make(corpus).train_loader(2, start_batch=len(whole))) == []


def test_nothing_is_read_before_start_batch(corpus):
    seen = []

    def note(item, generator):
        seen.append(item["id"])
        return {**item, "x": torch.ones(1)}

    data = make(corpus, transforms=[note], augment=[])
    batches = [batch.ids for batch in data.train_loader(1)]
    seen.clear()
    list(data.train_loader(1, start_batch=3))
    assert seen == [i for batch in batches[3:] for i in batch]


def test_ranks(corpus):
    data = make(corpus, transforms=[], augment=[])
    steps = data.num_train_batches(1, 3)
    parts = [[tuple(b.ids) for b in data.train_loader(1, rank=r, world_size=3)] for r in range(3)]
    assert {len(part) for part in parts} == {steps}
    assert {i for part in parts for ids in part for i in ids} == {
        u.id for u in data.utterances["train"]
    }
    resumed = [tuple(b.ids) for b in data.train_loader(1, start_batch=1, rank=2, world_size=3)]
    assert resumed == parts[2][1:]
    scored = [
        i for r in range(3) for b in data.eval_loader("clean", rank=r, world_size=3) for i in b.ids
    ]
    assert sorted(scored) == sorted(u.id for u in data.utterances["clean"])


def test_splits(corpus):
    data = make(corpus, limit=10)
    assert data.splits == ["train", "clean"]
    assert data.num_train_utterances == 10
    assert sum(map(len, data.train_loader(0))) == sum(map(len, data.eval_loader("train"))) == 10
    assert data.manifest_sha256("clean") == manifest_sha256(corpus / "test.jsonl")
    batch = next(iter(data.eval_loader("clean")))
    assert set(batch.fields) == {"utterance", "waveform", "tokens", "text"}
    assert [utterance.id for utterance in batch.utterance] == batch.ids
    for call in (data.eval_loader, data.manifest_sha256):
        with pytest.raises(ValueError, match="no split 'valid'; the data has: train, clean"):
            call("valid")
    with pytest.raises(ValueError, match="no split 'train'"):
        make(corpus, train=None).train_loader(0)
    with pytest.raises(ValueError, match="cannot be named valid"):
        make(corpus, test={"valid": corpus / "test.jsonl"})


def test_an_utterance_longer_than_the_budget(corpus, caplog):
    durations = {u.id: u.duration for u in make(corpus).utterances["train"]}
    long = [i for i, seconds in durations.items() if seconds > 2.0]
    with pytest.raises(DataError) as caught:
        make(corpus, max_batch_seconds=2.0)
    for words in (f"{len(long)} utterances", long[0], "max_utterance_seconds", "train.jsonl"):
        assert words in str(caught.value)
    with caplog.at_level(logging.INFO):
        data = make(corpus, max_batch_seconds=2.0, max_utterance_seconds=2.0)
    assert data.num_train_utterances == 40 - len(long)
    assert f"left out {len(long)} of 40" in caplog.text
    # Evaluation leaves nothing out.
    assert sum(map(len, data.eval_loader("clean"))) == 9
    with pytest.raises(DataError, match="no training utterances are left"):
        make(corpus, max_utterance_seconds=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_audio_is_skipped_up_to_a_share(corpus, caplog, workers):
    (corpus / "3.wav").write_bytes((corpus / "3.wav").read_bytes()[:100])
    data = make(corpus, num_workers=workers, max_bad_share=0.05)
    ids = []
    for epoch in range(2):  # the same utterances count once
        for batch in data.train_loader(epoch):
            data.note_failures(batch.failures)
            ids += batch.ids
    assert sorted(set(ids)) == sorted({u.id for u in data.utterances["train"]} - {"u3-0", "u3-1"})
    assert caplog.text.count("skipped utterance u3-0") == 1
    assert "3.wav" in caplog.text
    strict = make(corpus, num_workers=workers, max_bad_share=0.04)
    failures = [failure for batch in strict.train_loader(0) for failure in batch.failures]
    with pytest.raises(DataError, match=r"2 of 40 .* max_bad_share=0.04 .*3\.wav: truncated"):
        strict.note_failures(failures)
    with pytest.raises(DataError, match=r"3\.wav: truncated"):
        list(strict.eval_loader("clean"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_failures_only(corpus, workers):
    for path in corpus.glob("*.wav"):
        path.unlink()
    batches = list(make(corpus, num_workers=workers).train_loader(0))
    assert [len(batch) for batch in batches] == [0] * len(batches)
    assert sum(len(batch.failures) for batch in batches) == 40


def test_overfit_puts_the_same_utterances_in_every_split(tmp_path: Path) -> None:
    for name, count in (("train", 30), ("valid", 5), ("test", 7)):
        rows = [Utterance(f"{name}{n}", "-", 2.0, 16000) for n in range(count)]
        write_manifest(tmp_path / f"{name}.jsonl", rows)

    def plain(item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        return {"id": item["id"], "x": torch.zeros(3)}

    def augment(item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        raise AssertionError("what is learned by heart is not augmented")

    data = SpeechData(
        train=tmp_path / "train.jsonl", valid=tmp_path / "valid.jsonl",
        test={"test": tmp_path / "test.jsonl"}, transforms=[plain], augment=[augment],
        max_batch_seconds=8.0, overfit=10,
    )  # fmt: skip
    wanted = [f"train{n}" for n in range(10)]
    for loader in (data.train_loader(0), data.eval_loader("valid"), data.eval_loader("test")):
        assert sorted(i for batch in loader for i in batch.ids) == sorted(wanted)


def test_kept_audio_is_read_once_and_no_more_than_there_is_room_for(tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        write_audio(path, torch.full((RATE,), 0.1 * number), RATE)
        rows.append(Utterance(str(number), str(path), 1.0, RATE))

    def overwrite(item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        item["waveform"] += 1.0
        return item

    load = LoadAudio(sample_rate=RATE, keep_seconds=2.5)
    dataset = SpeechDataset(rows, transforms=[load, overwrite], skip_bad=True)
    first: list[Any] = [dataset[0, index] for index in range(3)]
    for row in rows:
        Path(row.audio).unlink()
    again: list[Any] = [dataset[1, index] for index in range(3)]
    for index in (0, 1):
        assert torch.equal(first[index]["waveform"], again[index]["waveform"])
    assert isinstance(again[2], Failure)
    with pytest.raises(ValueError, match="never kept"):
        LoadAudio(sample_rate=RATE, keep_seconds=1.0, crop_seconds=1.0)
