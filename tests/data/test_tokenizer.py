"""Tokenizers: round trips, determinism, and errors that say which character, where."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.manifest import DataError
from speechkit.data.tokenizer import CharTokenizer, SentencePieceTokenizer

WORDS = ["one", "two", "three", "four", "twenty", "naïve", "東京", "don't", "über", "ONE"]
TEXTS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 6)) for i in range(1, 60)]
SIZE = 28
ALPHABET = sorted(set("".join(TEXTS)))


@pytest.fixture(scope="module", params=["char", "unigram", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> CharTokenizer | SentencePieceTokenizer:
    return _make(request.param)


def _make(kind: str) -> CharTokenizer | SentencePieceTokenizer:
    if kind == "char":
        return CharTokenizer.from_texts(TEXTS)
    return SentencePieceTokenizer.train(TEXTS, vocab_size=SIZE, model_type=kind)


def _manifest(path: Path, texts: list[str | None], field: str = "text") -> Path:
    rows = []
    for i, text in enumerate(texts):
        row = {"id": f"u{i}", "audio": f"{i}.wav", "duration": 1.0, "sample_rate": 16000}
        rows.append(row if text is None else {**row, field: text})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=ALPHABET, max_size=40))
def test_decode_undoes_encode(tokenizer: CharTokenizer | SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 < i < tokenizer.vocab_size for i in ids)


def test_blank_is_zero_and_skipped(tokenizer: CharTokenizer | SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("one two")
    assert tokenizer.blank_id == 0
    assert tokenizer.pieces[0] == "<blank>"
    assert len(tokenizer.pieces) == tokenizer.vocab_size
    assert tokenizer.decode([0, *ids, 0, 0]) == "one two"
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_unknown_character_is_named_with_place_and_text(
    tokenizer: CharTokenizer | SentencePieceTokenizer,
) -> None:
    with pytest.raises(DataError, match=r"'q' \(U\+0071\) at position 4.*'one qtwo'"):
        tokenizer.encode("one qtwo")
    with pytest.raises(DataError, match=r"'1' .* at position 0, '2' .* at position 2"):
        tokenizer.encode("1 2")


def test_ids_outside_the_vocabulary_are_refused(
    tokenizer: CharTokenizer | SentencePieceTokenizer,
) -> None:
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"outside the vocabulary.*{wrong}"):
            tokenizer.decode([1, wrong])


def test_pickles_for_workers(tokenizer: CharTokenizer | SentencePieceTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("twenty four") == tokenizer.encode("twenty four")
    assert copy.pieces == tokenizer.pieces


def test_rebuilt_from_its_arguments() -> None:
    chars, pieces = _make("char"), _make("bpe")
    assert CharTokenizer(symbols=chars.symbols).pieces == chars.pieces
    assert SentencePieceTokenizer(model=pieces.model).pieces == pieces.pieces


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_same_texts_give_the_same_bytes(kind: str, tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "m.jsonl", list(TEXTS))
    first, second = _make(kind), _make(kind)
    third = SentencePieceTokenizer.train(manifest, vocab_size=SIZE, model_type=kind)
    assert first.model == second.model == third.model
    assert first.vocab_size == SIZE


def test_long_texts_are_not_dropped() -> None:
    long = " ".join(["zebra"] * 2000)  # SentencePiece drops sentences over 4,192 bytes by default
    tokenizer = SentencePieceTokenizer.train([*TEXTS, long], vocab_size=SIZE)
    assert tokenizer.decode(tokenizer.encode("zebra")) == "zebra"


def test_from_manifest_and_its_errors(tmp_path: Path) -> None:
    path = _manifest(tmp_path / "m.jsonl", ["ba", "c"])
    assert CharTokenizer.from_manifest(path).symbols == ["a", "b", "c"]
    other = _manifest(tmp_path / "o.jsonl", ["xy"], field="phones")
    assert CharTokenizer.from_manifest(other, field="phones").symbols == ["x", "y"]
    missing = _manifest(tmp_path / "n.jsonl", ["ba", None])
    with pytest.raises(DataError, match=r"'text'.*u1"):
        CharTokenizer.from_manifest(missing)
    with pytest.raises(DataError, match="every text is empty"):
        CharTokenizer.from_manifest(_manifest(tmp_path / "e.jsonl", ["", ""]))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"one character.*'ab'"):
        CharTokenizer(symbols=["ab", "c"])
    with pytest.raises(ValueError, match=r"more than once.*'c'"):
        CharTokenizer(symbols=["c", "c"])
    with pytest.raises(TypeError, match="one string"):
        CharTokenizer.from_texts("abc")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        SentencePieceTokenizer(model=b"garbage")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        SentencePieceTokenizer(model=b"")
    with pytest.raises(ValueError, match="'word'"):
        SentencePieceTokenizer.train(TEXTS, vocab_size=SIZE, model_type="word")


@pytest.mark.parametrize("vocab_size", [4, 5000])
def test_impossible_vocabulary_size_says_what_is_possible(vocab_size: int) -> None:
    with pytest.raises(DataError, match=rf"vocab_size={vocab_size}.*Set vocab_size to at"):
        SentencePieceTokenizer.train(TEXTS, vocab_size=vocab_size)


def test_the_stated_bounds_of_the_vocabulary_hold() -> None:
    with pytest.raises(DataError) as caught:
        SentencePieceTokenizer.train(TEXTS, vocab_size=5000)
    largest = int(str(caught.value).rsplit("at most ", 1)[1].rstrip("."))
    assert SentencePieceTokenizer.train(TEXTS, vocab_size=largest).vocab_size == largest
    with pytest.raises(DataError):
        SentencePieceTokenizer.train(TEXTS, vocab_size=largest + 1)
    with pytest.raises(DataError) as caught:
        SentencePieceTokenizer.train(TEXTS, vocab_size=4)
    smallest = int(str(caught.value).rsplit("at least ", 1)[1].rstrip("."))
    assert SentencePieceTokenizer.train(TEXTS, vocab_size=smallest).vocab_size == smallest
    with pytest.raises(DataError):
        SentencePieceTokenizer.train(TEXTS, vocab_size=smallest - 1)


@pytest.mark.parametrize("character", ["\t", "\n", "\u2581", "\u2047"])
def test_reserved_characters_are_refused_not_dropped(character: str) -> None:
    with pytest.raises(DataError, match="reserved by SentencePiece"):
        SentencePieceTokenizer.train([*TEXTS, f"one{character}two"], vocab_size=SIZE)
