"""Where long text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.models.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Mr. Hall met Dr. Ross.", ["Mr. Hall met Dr. Ross."]),
        ("J. R. R. Tolkien wrote it. I read it.", ["J. R. R. Tolkien wrote it.", "I read it."]),
        ("It costs 3.50. Take it.", ["It costs 3.50.", "Take it."]),
        ('"Stop!" he said.', ['"Stop!"', "he said."]),
        ("A title\n\nand text", ["A title", "and text"]),
        ("a line\nof one sentence", ["a line of one sentence"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_ends(text: str, parts: list[str]) -> None:
    assert split_sentences(text) == parts


@given(st.text("ab ,.!\n", max_size=80), st.integers(1, 20))
def test_nothing_is_lost_and_nothing_is_long(text: str, most: int) -> None:
    parts = split_sentences(text, max_characters=most)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(0 < len(part) <= most for part in parts)


def test_a_word_without_an_end_is_cut_and_named(caplog: pytest.LogCaptureFixture) -> None:
    word = "abcdefghij" * 1000
    parts = split_sentences(f"A word, {word} and more.", max_characters=300)
    assert [len(part) for part in parts] == [7, *[300] * 33, 110]
    assert parts[-1].endswith("hij and more.")
    assert "".join(parts).replace(" ", "") == f"Aword,{word}andmore."
    assert "word of 10000 characters, 'abcdefghijabcdefghijabcdefghij...'" in caplog.text
    assert "34 parts of at most 300" in caplog.text
    caplog.clear()
    split_sentences("as long as it may be", max_characters=4)
    assert not caplog.records


def test_a_limit_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        split_sentences("a", max_characters=0)
