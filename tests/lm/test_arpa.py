"""ARPA files: what is written is read again, and what is malformed is named with its line."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from speechkit.data.errors import DataError
from speechkit.lm.ngram import NgramModel

GOOD = r"""
\data\
ngram 1=5
ngram 2=3
ngram 3=1

\1-grams:
-1.0	<unk>
-99	<s>	-0.30
-0.7	</s>
-0.5	a	-0.25
-0.6	b	-0.125

\2-grams:
-0.2	<s> a	-0.5
-0.4	a b	0.25
-0.3	b </s>

\3-grams:
-0.1	<s> a b

\end\
"""
TEXTS = ["a b a", "a b b c", "", "c", "b a b a", "a b a c", "d a", "c c a b"]


def parse(text: str) -> NgramModel:
    return NgramModel(arpa=text.encode())


def test_back_off_by_hand() -> None:
    model = parse(GOOD)
    logs = {
        (("<s>", "a"), "b"): -0.1,
        (("a",), "b"): -0.4,
        (("b", "a"), "b"): -0.4,  # "b a" is no bigram: nothing to pay
        (("<s>", "a"), "a"): -0.5 - 0.25 - 0.5,
        (("a", "b"), "</s>"): 0.25 - 0.3,
        (("b",), "zzz"): -0.125 - 1.0,
        ((), "zzz"): -1.0,
    }
    for (context, word), expected in logs.items():
        assert model.log_prob(context, word) == pytest.approx(expected * math.log(10), abs=1e-6)
    expected = -0.2 - 0.1 + 0.25 - 0.3
    assert model.score(["a b"])[0] == pytest.approx(expected * math.log(10), abs=1e-6)


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_write_and_read(tmp_path: Path, name: str, order: int) -> None:
    model = NgramModel.estimate(TEXTS, order=order)
    model.save(tmp_path / name)
    again = NgramModel.load(tmp_path / name)
    texts = [*TEXTS, "a zzz b", "b d"]
    assert again.score(texts) == model.score(texts)
    assert again.num_ngrams() == model.num_ngrams()
    assert (tmp_path / name).read_bytes()[:2] == (b"\x1f\x8b" if name.endswith("gz") else b"\\d")


def test_layouts_that_are_the_same() -> None:
    scores = parse(GOOD).score(["a b", "b a"])
    spaces = GOOD.replace("\t", "  ").replace("<unk>", "<UNK>").replace("\n", " \r\n")
    assert parse(spaces).score(["a b", "b a"]) == scores
    lines = GOOD.split("\n")
    lines[7], lines[11] = lines[11], lines[7]  # the order of the words is free
    assert parse("\n".join(lines)).score(["a b", "b a"]) == scores


def test_without_unknown_word() -> None:
    model = parse(GOOD.replace("-1.0\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4"))
    assert model.log_prob((), "zzz") == pytest.approx(-99 * math.log(10))


def test_odd_characters_do_not_end_lines() -> None:
    model = parse(GOOD.replace("b", "x\x85y\u2028z"))
    assert model.log_prob(("a",), "x\x85y\u2028z") == pytest.approx(-0.4 * math.log(10))


def test_pruned_model_without_the_suffix() -> None:
    """SRILM's pruning may keep "<s> a b" without "a b"."""
    text = GOOD.replace("-0.4\ta b\t0.25\n", "").replace("ngram 2=3", "ngram 2=2")
    model = parse(text)
    assert model.log_prob(("<s>", "a"), "b") == pytest.approx(-0.1 * math.log(10))
    assert model.log_prob(("a", "b"), "</s>") == pytest.approx(-0.3 * math.log(10))


def line_of(start: str) -> int:
    return [line.startswith(start) for line in GOOD.split("\n")].index(True) + 1


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("\\data\\", "data", 2, "'\\data\\'"),
        ("ngram 2=3", "ngram 3=3", line_of("ngram 2"), "'ngram 2=COUNT'"),
        ("ngram 2=3", "ngram 2=x", line_of("ngram 2"), "'ngram 2=COUNT'"),
        ("ngram 1=5", "ngram 1=6", line_of("-0.6\tb") + 1, "1 word and"),
        ("ngram 1=5", "ngram 1=4", line_of("-0.6\tb"), "1-grams are more than stated"),
        ("ngram 2=3", "ngram 2=2", line_of("-0.3\tb"), "2-grams are more than stated"),
        ("ngram 3=1", "ngram 3=2", line_of("-0.1") + 1, "a log-probability, 3 words"),
        ("\\2-grams:", "\\3-grams:", line_of("\\2"), "\\2-grams:"),
        ("\\1-grams:", "\\one-grams:", line_of("\\1"), "\\1-grams:"),
        ("-0.5\ta", "x\ta", line_of("-0.5"), "a number first"),
        ("-0.5\ta", "0.5\ta", line_of("-0.5"), "not above 0"),
        ("-0.5\ta", "nan\ta", line_of("-0.5"), "finite"),
        ("-0.5\ta", "-inf\ta", line_of("-0.5"), "finite"),
        ("a\t-0.25", "a\tx", line_of("-0.5"), "a number as a back-off weight"),
        ("a\t-0.25", "a\tinf", line_of("-0.5"), "back-off weight that is finite"),
        ("a\t-0.25", "a\t-0.25\t3", line_of("-0.5"), "1 word and"),
        ("-0.6\tb", "-0.6\ta", line_of("-0.6"), f"line {line_of('-0.5')} does not have"),
        ("</s>\n-0.5", "c\n-0.5", line_of("-0.6"), "</s> among them"),
        ("a b\t", "a c\t", line_of("-0.4"), "'c'"),
        ("<s> a b\n", "b a b\n", line_of("-0.1"), "first 2 words are among the 2-grams"),
        ("<s> a b\n", "a b\n", line_of("-0.1"), "3 words"),
        ("<s> a b\n", "<s> a b\t-0.5\n", line_of("-0.1"), "3 words"),
        ("b </s>\n", "a b\n", line_of("-0.3"), f"line {line_of('-0.4')} does not have"),
        ("\\end\\\n", "", line_of("-0.1") + 2, "\\end\\"),
        ("\\end\\", "-1\ta a a", line_of("\\end"), "3-grams are more than stated"),
    ],
)
def test_malformed(old: str, new: str, line: int, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(DataError) as caught:
        parse(GOOD.replace(old, new))
    message = str(caught.value)
    assert f"line {line}: expected" in message
    assert expected in message


@pytest.mark.parametrize("cut", [1, 40, 90, 130, 180, len(GOOD) - 3])
def test_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.arpa"
    path.write_text(GOOD[:cut])
    with pytest.raises(DataError, match=r"cut\.arpa: line \d+: expected"):
        NgramModel.load(path)


def test_broken_bytes() -> None:
    packed = gzip.compress(GOOD.encode() * 50)
    with pytest.raises(DataError, match=r"line \d+: the gzip data is broken"):
        NgramModel(arpa=packed[: len(packed) // 2])
    with pytest.raises(DataError, match="line 1 or soon after it: not UTF-8"):
        NgramModel(arpa=GOOD.encode().replace(b"\ta", b"\t\xff"))
    with pytest.raises(DataError, match="binary model of kenlm"):
        NgramModel(arpa=b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(DataError, match="line 1: expected"):
        NgramModel(arpa=b"")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        NgramModel.load(tmp_path / "none.arpa")
