"""Lines of text as data: batches, budget, resuming, and what is refused."""

from __future__ import annotations

import gzip
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.batch import Failure
from speechkit.data.loaders import SpeechData
from speechkit.data.manifest import DataError, Utterance, manifest_sha256, write_manifest
from speechkit.data.splits import SplitData
from speechkit.data.text import TextData, read_lines, read_texts
from speechkit.data.tokenizer import CharTokenizer

LETTERS = CharTokenizer(symbols=["a", "b", " "])


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def corpus(tmp_path):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 40, (120,), generator=generator).tolist()
    write(tmp_path / "train.txt", ["ab b"[: 1 + n % 4].strip() * n for n in sizes])
    write(tmp_path / "valid.txt", ["a b", "b", "ab" * 50])
    return tmp_path


def make(corpus, **options):
    settings = {
        "train": corpus / "train.txt", "valid": corpus / "valid.txt",
        "test": {"held-out": corpus / "valid.txt"}, "tokenizer": LETTERS,
        "max_batch_tokens": 200, "seed": 3,
    }  # fmt: skip
    return TextData(**{**settings, **options})


def content(loader):
    return [(b.ids, b.tokens.data.tolist(), b.tokens.lengths.tolist(), b.text) for b in loader]


def test_batches_are_a_function_of_seed_and_epoch(corpus):
    first, again = make(corpus), make(corpus)
    state = torch.get_rng_state()
    for epoch in (0, 1, 5):
        assert content(first.train_loader(epoch)) == content(again.train_loader(epoch))
    assert content(first.train_loader(1)) == content(again.train_loader(1))  # in any order of calls
    ids = [[b.ids for b in data.train_loader(1)] for data in (first, make(corpus, seed=4))]
    ids.append([b.ids for b in first.train_loader(2)])
    assert ids[0] != ids[1]
    assert ids[0] != ids[2]
    assert len({tuple(sorted(i for batch in epoch for i in batch)) for epoch in ids}) == 1
    assert torch.equal(torch.get_rng_state(), state)


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    budget=st.integers(31, 200),
    epoch=st.integers(0, 3),
)
def test_the_budget_holds_with_the_ends(tmp_path_factory, sizes, budget, epoch):
    path = write(tmp_path_factory.mktemp("text") / "t.txt", ["a" * size for size in sizes])
    data = TextData(train=path, tokenizer=LETTERS, max_batch_tokens=budget)
    batches = list(data.train_loader(epoch))
    costs = [(b.tokens.data.shape[1] + 1) * len(b) for b in batches]
    assert max(costs) <= budget
    assert costs[0] == max(costs)
    assert sorted(i for b in batches for i in b.ids) == sorted(
        f"t.txt:{n}" for n in range(1, len(sizes) + 1)
    )
    assert data.num_train_batches(epoch) == len(batches)


def test_tokens_are_those_of_the_text(corpus):
    for batch in make(corpus).train_loader(0):
        assert batch.tokens.data.dtype == torch.int64
        for text, row, size in zip(batch.text, *batch.tokens):
            assert LETTERS.decode(row[:size].tolist()) == text
            assert not row[size:].any()


def test_a_resumed_epoch_is_the_rest_of_it(corpus):
    whole = content(make(corpus).train_loader(2))
    assert len(whole) > 8
    assert content(make(corpus).train_loader(2, start_batch=5)) == whole[5:]
    parts = [content(make(corpus).train_loader(2, rank=r, world_size=2)) for r in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == make(corpus).num_train_batches(2, 2)
    assert (
        content(make(corpus).train_loader(2, start_batch=3, rank=1, world_size=2)) == parts[1][3:]
    )
    assert parts[0] == whole[::2]


def test_evaluation_leaves_nothing_out(corpus):
    data = make(corpus, eval_batch_tokens=50)
    for split in ("valid", "held-out"):
        batches = list(data.eval_loader(split))
        assert sorted(i for b in batches for i in b.ids) == [f"valid.txt:{n}" for n in (1, 2, 3)]
        assert [b.ids for b in batches if "valid.txt:3" in b.ids] == [["valid.txt:3"]]  # too long
    ranks = [data.eval_loader("valid", rank=r, world_size=2) for r in (0, 1)]
    assert sorted(i for loader in ranks for b in loader for i in b.ids) == [
        f"valid.txt:{n}" for n in (1, 2, 3)
    ]


def test_what_the_training_loop_asks(corpus):
    data = make(corpus, limit=10)
    assert isinstance(data, SplitData)
    assert issubclass(SpeechData, SplitData)
    assert data.splits == ["train", "valid", "held-out"]
    assert data.test_splits == ["held-out"]
    assert data.num_train_utterances == 10 == len(data.texts("train"))
    assert data.texts("valid")[0] == "a b"
    assert data.manifest_sha256("valid") == manifest_sha256(corpus / "valid.txt")
    with pytest.raises(ValueError, match="no split 'dev'; the data has: train, valid, held-out"):
        data.eval_loader("dev")
    data.note_failures([])
    with pytest.raises(DataError, match=r"1 of 10 .*'x': odd\. Clean the text of .*max_bad_share"):
        data.note_failures([Failure("x", "odd")])


def test_overfit(corpus):
    data = make(corpus, overfit=7)
    wanted = sorted(i for b in data.train_loader(0) for i in b.ids)
    assert len(wanted) == 7
    for split in ("valid", "held-out"):
        assert sorted(i for b in data.eval_loader(split) for i in b.ids) == wanted


def test_long_lines(corpus, caplog):
    with pytest.raises(DataError, match=r"longer than max_batch_tokens=20: .*max_line_tokens"):
        make(corpus, max_batch_tokens=20)
    with caplog.at_level(logging.INFO):
        data = make(corpus, max_batch_tokens=20, max_line_tokens=20)
    left_out = 120 - data.num_train_utterances
    assert 0 < left_out < 120
    assert f"left out {left_out} of 120" in caplog.text
    assert max(len(text) for text in data.texts("train")) <= 19  # and its end
    with pytest.raises(DataError, match="no training utterances are left"):
        make(corpus, max_line_tokens=1)


def test_lines_outside_the_vocabulary(corpus, caplog):
    lines = ["ab", "a?b", *["b"] * 8]
    train = write(corpus / "odd.txt", lines)
    with pytest.raises(DataError, match=r"1 of 9 .*odd\.txt:2.*'\?'.*max_bad_share"):
        make(corpus, train=train)
    data = make(corpus, train=train, max_bad_share=0.2)
    assert "odd.txt:2" in caplog.text
    assert data.texts("train") == [line for line in lines if "?" not in line]
    with pytest.raises(DataError, match=r"must not leave any line out\n  odd\.txt:2: '\?'"):
        make(corpus, valid=train)
    with pytest.raises(DataError, match="no line can be encoded"):
        make(corpus, train=write(corpus / "odd.txt", ["?", "!"]))


def test_manifests_are_text_too(corpus):
    rows = [Utterance(f"u{n}", "-", 1.0, 16000, text="a b" * n) for n in (1, 2)]
    write_manifest(corpus / "m.jsonl", rows)
    data = make(corpus, train=corpus / "m.jsonl")
    assert sorted(i for b in data.train_loader(0) for i in b.ids) == ["u1", "u2"]
    write_manifest(corpus / "m.jsonl", [*rows, Utterance("mute", "-", 1.0, 16000)])
    with pytest.raises(DataError, match=r"1 rows have no text\n  mute"):
        read_texts(corpus / "m.jsonl")


def test_files(tmp_path):
    text = "\ufeffone\r\n\n two\u2028three \n".encode()
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text))
    for name in ("a.txt", "a.txt.gz"):
        assert read_texts(tmp_path / name) == [
            (f"{name}:1", "one"),
            (f"{name}:3", "two\u2028three"),
        ]
    assert read_lines(tmp_path / "a.txt")[:2] == ["one", ""]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", None, "no such file"),
        ("a.txt", b"", "no text in it"),
        ("a.txt", b"good\n\xff\xfe\n", "line 2: not text in UTF-8"),
        ("a.txt.gz", b"plain", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"one two three " * 99)[:-9], "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"one two three")[:14] + b"\0" * 20, "not a whole gzip file"),
    ],
)
def test_files_that_are_no_text(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_texts(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
