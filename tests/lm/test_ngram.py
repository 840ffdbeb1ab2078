"""N-gram estimation against a plain implementation, and what makes a distribution."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import pickle
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.errors import DataError
from speechkit.lm.kneser_ney import discounts
from speechkit.lm.ngram import NgramModel

FALLBACK = (0.5, 1.0, 1.5)
TEXTS = ["a b a", "a b b c", "", "c", "b a b a", "a b a c", "d a", "c c a b"]

some_texts = st.lists(
    st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join), min_size=1, max_size=8
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("speechkit.lm.kneser_ney").setLevel(logging.ERROR)


class Plain:
    """Modified Kneser-Ney as Chen and Goodman write it, word by word, with dictionaries."""

    def __init__(self, texts: list[str], order: int) -> None:
        self.order = order
        sentences = [("<s>", *text.split(), "</s>") for text in texts]
        self.words = sorted({w for s in sentences for w in s} - {"<s>"} | {"<unk>"})
        raw: list[Counter] = [Counter() for _ in range(order)]
        for sentence in sentences:
            for n in range(1, order + 1):
                raw[n - 1].update(sentence[i : i + n] for i in range(len(sentence) - n + 1))
        self.counts = []
        for n in range(1, order + 1):
            if n == order:
                counts = dict(raw[n - 1])
            else:
                left = Counter(gram[1:] for gram in raw[n])
                counts = {g: c if g[0] == "<s>" else left[g] for g, c in raw[n - 1].items()}
            counts.pop(("<s>",), None)
            self.counts.append(counts)
        self.discounts = [self._discounts(list(counts.values())) for counts in self.counts]
        self.followers: list[dict] = []
        for counts in self.counts:
            grouped: dict = defaultdict(list)
            for gram, count in counts.items():
                grouped[gram[:-1]].append(count)
            self.followers.append(grouped)

    @staticmethod
    def _discounts(values: list[int]) -> tuple[float, ...]:
        n = [values.count(k) for k in range(5)]
        if 0 in n[1:4]:
            return FALLBACK
        y = n[1] / (n[1] + 2 * n[2])
        found = tuple(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
        return found if all(0 <= d <= k for k, d in enumerate(found, 1)) else FALLBACK

    def prob(self, context: tuple[str, ...], word: str) -> float:
        context = context[-(self.order - 1) :] if self.order > 1 else ()
        n = len(context) + 1
        lower = self.prob(context[1:], word) if context else 1.0 / len(self.words)
        values = self.followers[n - 1].get(context)
        if not values:
            return lower
        d = self.discounts[n - 1]
        count = self.counts[n - 1].get((*context, word), 0)
        own = count - d[min(count, 3) - 1] if count else 0.0
        return (own + sum(d[min(c, 3) - 1] for c in values) * lower) / sum(values)


def contexts(model: NgramModel) -> list[tuple[str, ...]]:
    words = [w for w in model.vocabulary if w != "</s>"]
    inner = [w for w in words if w != "<s>"]
    found: list[tuple[str, ...]] = [()]
    for n in range(1, model.order):
        found += itertools.product(words, *[inner] * (n - 1))
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_plain_implementation(order: int) -> None:
    model, plain = NgramModel.estimate(TEXTS, order=order), Plain(TEXTS, order)
    for context in contexts(model):
        for word in plain.words:
            expected = math.log(plain.prob(context, word))
            assert model.log_prob(context, word) == pytest.approx(expected, abs=2e-6)


@settings(max_examples=40, deadline=None)
@given(texts=some_texts, order=st.integers(1, 4))
def test_sums_to_one_and_equals_the_plain_implementation(texts: list[str], order: int) -> None:
    model, plain = NgramModel.estimate(texts, order=order), Plain(texts, order)
    predicted = [w for w in model.vocabulary if w != "<s>"]
    assert predicted == plain.words
    for context in contexts(model):
        probs = [math.exp(model.log_prob(context, word)) for word in predicted]
        assert math.fsum(probs) == pytest.approx(1.0, abs=1e-5)
        assert probs == pytest.approx([plain.prob(context, w) for w in predicted], abs=1e-6)


def test_by_hand() -> None:
    """Two sentences "a b", "a": bigrams <s> a (2), a b (1), b </s> (1), a </s> (1)."""
    model = NgramModel.estimate(["a b", "a"], order=2)
    # the counts of counts of both orders lack threes: discounts 0.5, 1, 1.5
    # continuation counts: a 1 (after <s>), b 1 (a), </s> 2 (b, a); sum 4; uniform 1/4
    # left over: (0.5 + 0.5 + 1) / 4 = 0.5
    unigram_a = 0.5 / 4 + 0.5 / 4
    unigram_end = 1 / 4 + 0.5 / 4
    assert math.exp(model.log_prob((), "a")) == pytest.approx(unigram_a)
    assert math.exp(model.log_prob((), "<unk>")) == pytest.approx(0.5 / 4)
    # after <s>: one follower, seen twice; a discount of 1 of 2 is left
    assert math.exp(model.log_prob(("<s>",), "a")) == pytest.approx(0.5 + 0.5 * unigram_a)
    # after a: two followers seen once each; 0.5 + 0.5 of 2 is left
    assert math.exp(model.log_prob(("a",), "</s>")) == pytest.approx(0.25 + 0.5 * unigram_end)
    score = math.exp(model.score(["a"])[0])
    assert score == pytest.approx((0.5 + 0.5 * unigram_a) * (0.25 + 0.5 * unigram_end))


def test_discounts_by_hand() -> None:
    """n1..n4 = 10, 4, 2, 1: Y = 10/18, D = 1 - 2Y 4/10, 2 - 3Y 2/4, 3 - 4Y 1/2."""
    found = discounts(pytest.importorskip("numpy").array([1] * 10 + [2] * 4 + [3] * 2 + [4, 9]))
    assert found is not None
    y = 10 / 18
    assert found.tolist() == pytest.approx([0.0, 1 - 0.8 * y, 2 - 1.5 * y, 3 - 2 * y])


def test_whole_rows_and_states() -> None:
    model = NgramModel.estimate(TEXTS, order=3)
    state = model.start()
    for word in ("a", "b", "zzz", "a"):
        row = model.log_probs(state)
        single = [model.step(state, w)[0] for w in model.vocabulary]
        assert row.tolist() == pytest.approx(single, abs=1e-6)
        state = model.step(state, word)[1]
    # what lies further back than the order reaches changes nothing
    longer = ("d", "c", "a", "b")
    assert model.log_prob(longer, "a") == model.log_prob(longer[-2:], "a")


def test_perplexity_and_copies() -> None:
    model = NgramModel.estimate(TEXTS, order=2)
    scores = model.score(["a b", "x"])
    assert model.perplexity(["a b", "x"]) == pytest.approx(math.exp(-sum(scores) / 5))
    assert model.score([["a", "b"]]) == scores[:1]
    for twin in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        NgramModel(arpa=model.arpa),
        NgramModel.estimate(reversed(TEXTS), order=2),
    ):
        assert twin.score(["a b", "x"]) == scores
        assert twin.arpa == model.arpa


def test_vocabulary_makes_unknown_words_countable() -> None:
    model = NgramModel.estimate(["a b", "a c"], order=2, vocabulary=["a", "e"])
    assert model.vocabulary == ("</s>", "<s>", "<unk>", "a", "e")
    assert model.log_prob(("a",), "b") == model.log_prob(("a",), "<unk>")
    assert model.log_prob(("a",), "<unk>") > model.log_prob(("a",), "e")
    total = sum(math.exp(model.log_prob(("a",), w)) for w in model.vocabulary)
    assert total == pytest.approx(1.0, abs=1e-5)


def test_fallback_is_told(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("speechkit.lm.kneser_ney").setLevel(logging.WARNING)
    NgramModel.estimate(["a"], order=2)
    assert "2-grams give no discounts" in caplog.text


@pytest.mark.parametrize("texts", [[], ["a <s> b"], ["</s>"], ["<unk> a"], [["a b"]], [[""]]])
def test_texts_that_no_model_can_be_made_of(texts: list) -> None:
    with pytest.raises(DataError):
        NgramModel.estimate(texts)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        NgramModel.estimate(["a"], order=0)
    with pytest.raises(ValueError, match="discount_fallback"):
        NgramModel.estimate(["a"], discount_fallback=(0.5, 3.0, 1.0))
    with pytest.raises(TypeError, match="one string"):
        NgramModel.estimate("a b")
    with pytest.raises(ValueError, match="backend"):
        NgramModel.load("x.arpa", backend="srilm")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no text"):
        NgramModel.estimate(["a"]).perplexity([])
