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
    longest_word = max((len(word) for word in text.split()), default=0)
    assert all(0 < len(part) <= max(most, longest_word) for part in parts)


def test_a_limit_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        split_sentences("a", max_characters=0)
