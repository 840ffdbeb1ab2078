"""Error rates against jiwer and an edit distance written out, empty texts included."""

from __future__ import annotations

import math
from functools import cache

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.metrics.results import SCORERS, Result
from speechkit.metrics.wer import (
    ErrorCounts,
    align,
    character_errors,
    format_alignment,
    summarize,
    word_errors,
)

texts = st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=6).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), max_size=5)


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        same = reference[i - 1] == hypothesis[j - 1]
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same)
        )

    return distance(len(reference), len(hypothesis))


@given(pairs=pairs)
def test_counts(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    for count, split in ((word_errors, str.split), (character_errors, list)):
        counts = count(references, hypotheses)
        assert counts.errors == sum(edit_distance(split(r), split(h)) for r, h in pairs)
        assert counts.reference_length == sum(len(split(r)) for r in references)
        length = counts.hits + counts.substitutions + counts.insertions
        assert length == sum(len(split(h)) for h in hypotheses)
        assert counts.sentences == len(pairs)
        assert counts.wrong_sentences == sum(r.split() != h.split() for r, h in pairs)
        assert math.isfinite(counts.rate)


@given(pairs=st.lists(st.tuples(texts.filter(bool), texts), min_size=1, max_size=5))
def test_equal_to_jiwer(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    ours, theirs = word_errors(references, hypotheses), jiwer.process_words(references, hypotheses)
    assert ours.rate == pytest.approx(100 * theirs.wer)
    assert (ours.hits, ours.substitutions, ours.insertions, ours.deletions) == (
        theirs.hits,
        theirs.substitutions,
        theirs.insertions,
        theirs.deletions,
    )
    assert character_errors(references, hypotheses).rate == pytest.approx(
        100 * jiwer.cer(references, hypotheses)
    )


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate", "sentence_rate"),
    [
        ("", "", 0.0, 0.0),
        ("", "a b", 200.0, 100.0),
        ("a b", "", 100.0, 100.0),
        ("  ", "\t", 0.0, 0.0),
        (" a  b ", "a b", 0.0, 0.0),
        ("a", "b c", 200.0, 100.0),
        ("a", "A", 100.0, 100.0),
    ],
)
def test_empty_texts(reference: str, hypothesis: str, rate: float, sentence_rate: float) -> None:
    counts = word_errors([reference], [hypothesis])
    assert (counts.rate, counts.sentence_rate) == (rate, sentence_rate)


def test_empty_reference_among_others() -> None:
    counts = word_errors(["a b c d", ""], ["a b c d", "x"])
    assert counts == ErrorCounts(
        hits=4, substitutions=0, insertions=1, deletions=0, sentences=2, wrong_sentences=1
    )
    assert counts.rate == 25.0


def test_no_utterances() -> None:
    assert word_errors([], []) == ErrorCounts()
    assert [(r.metric, r.value, r.count) for r in summarize([])] == [
        (name, 0.0, 0) for name in ("WER", "CER", "SER", "substitutions", "insertions", "deletions")
    ]


def test_summarize() -> None:
    rows = [
        {"id": "u1", "reference": "turn the light on", "hypothesis": "turn light on now"},
        {"id": "u2", "reference": "stop", "hypothesis": "stop", "score": -1.0},
    ]
    assert SCORERS["asr"](rows) == summarize(iter(rows))
    results = {r.metric: r for r in summarize(rows)}
    assert results["WER"] == Result("WER", 40.0, "%", 5)
    assert results["SER"] == Result("SER", 50.0, "%", 2)
    assert results["CER"].count == 21
    assert results["deletions"].value + results["insertions"].value == 2
    assert results["substitutions"] == Result("substitutions", 0.0, "words", 5)


def test_bad_rows() -> None:
    with pytest.raises(ValueError, match=r"row 2 \(id 'u2'\) needs a text under 'hypothesis'"):
        summarize(
            [
                {"id": "u1", "reference": "a", "hypothesis": "a"},
                {"id": "u2", "reference": "a", "hypothesis": None},
            ]
        )
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        word_errors(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="item 0: texts must be strings"):
        word_errors([None], ["a"])  # type: ignore[list-item]


@given(reference=texts, hypothesis=texts)
def test_alignment(reference: str, hypothesis: str) -> None:
    steps = align(reference, hypothesis)
    assert [s.reference for s in steps if s.reference is not None] == reference.split()
    assert [s.hypothesis for s in steps if s.hypothesis is not None] == hypothesis.split()
    errors = sum(step.op != "equal" for step in steps)
    assert errors == edit_distance(reference.split(), hypothesis.split())
    for step in steps:
        assert (step.op == "equal") == (step.reference == step.hypothesis)
        assert (step.op == "insert") == (step.reference is None)
        assert (step.op == "delete") == (step.hypothesis is None)
    lines = format_alignment(reference, hypothesis).split("\n")
    assert len(lines) == 3
    assert lines[2].split() == [
        {"substitute": "S", "insert": "I", "delete": "D"}[s.op] for s in steps if s.op != "equal"
    ]


def test_format_alignment() -> None:
    assert format_alignment("she said no", "he said oh no").split("\n") == [
        "REF: she said ** no",
        "HYP: he  said oh no",
        "     S        I",
    ]
    assert format_alignment("", "") == "REF:\nHYP:\n"
