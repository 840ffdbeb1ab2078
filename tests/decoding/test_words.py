"""The grouping of tokens to words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.decoding.words import group_words, split_words


def test_spaces_may_end_a_piece() -> None:
    assert split_words(["the\u2581", "c", "at\u2581", "\u2581", "s"]) == [[0], [1, 2], [4]]


def test_words_of_characters() -> None:
    pieces = list(" go  on ")
    spans = group_words(pieces, range(8), range(1, 9), [0.0, 0.5, 1.0, 0.0, 0.0, 0.2, 0.4, 0.0])
    assert [(w.text, w.start, w.end) for w in spans] == [("go", 1, 3), ("on", 5, 7)]
    assert [w.score for w in spans] == pytest.approx([0.75, 0.3])


def test_words_of_sentencepiece() -> None:
    pieces = ["▁the", "▁c", "at", "▁", "s", "'s", "▁a▁b"]
    spans = group_words(pieces, [0, 2, 4, 6, 7, 8, 9], [1, 3, 5, 7, 8, 9, 11], [1.0] * 7)
    assert [tuple(w)[:3] for w in spans] == [
        ("the", 0, 1),
        ("cat", 2, 5),
        ("s's", 7, 9),
        ("a b", 9, 11),
    ]
    assert group_words([], [], [], []) == []
    with pytest.raises(ValueError, match="differ in length: 1, 1, 1, 0"):
        group_words(["a"], [0], [1], [])


@given(words=st.lists(st.text("abc", min_size=1, max_size=4), max_size=5))
def test_words_survive_grouping(words: list[str]) -> None:
    pieces = list(" ".join(words))
    times = range(len(pieces))
    spans = group_words(pieces, times, [t + 1 for t in times], [1.0] * len(pieces))
    assert [w.text for w in spans] == words
