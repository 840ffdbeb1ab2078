"""Perplexity against computation by hand."""

from __future__ import annotations

import math

import pytest
import torch

from speechkit.losses.cross_entropy import sequence_cross_entropy
from speechkit.metrics.perplexity import perplexity, summarize
from speechkit.metrics.results import SCORERS


def row(name: str, nll: float, tokens: int, words: int) -> dict[str, object]:
    return {"id": name, "nll": nll, "num_tokens": tokens, "num_words": words}


def test_by_hand() -> None:
    # "a b" with probabilities 1/2, 1/4, 1/8 (the end), and "" whose end has 1/2
    rows = [row("x", math.log(2 * 4 * 8), 2, 2), row("y", math.log(2), 0, 0)]
    found = {r.metric: r for r in SCORERS["lm"](rows)}
    assert found["perplexity"].value == pytest.approx(128 ** (1 / 4))
    assert found["word_perplexity"].value == pytest.approx(128 ** (1 / 4))
    assert (found["perplexity"].count, found["perplexity"].unit) == (4, "per token")
    # The same lines with labels that are halves of words: more events, and the same per word.
    halves = [row("x", math.log(64), 4, 2), rows[1]]
    found = {r.metric: r for r in summarize(halves)}
    assert found["perplexity"].value == pytest.approx(128 ** (1 / 6))
    assert found["word_perplexity"].value == pytest.approx(128 ** (1 / 4))
    assert found["word_perplexity"].count == 4


@pytest.mark.parametrize("vocab_size", [2, 31, 1000])
def test_a_uniform_model_has_the_vocabulary_as_perplexity(vocab_size: int) -> None:
    lengths = torch.tensor([1, 5, 3])  # labels and end
    targets = torch.randint(vocab_size, (3, 5))
    nlls = sequence_cross_entropy(torch.full((3, 5, vocab_size), 2.5), targets, lengths)
    rows = [row(str(n), float(nlls[n]), int(lengths[n]) - 1, 1) for n in range(3)]
    assert summarize(rows)[0].value == pytest.approx(vocab_size, rel=1e-5)


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [row(str(n), 0.1 * n + 1e6 * (n % 2), n, 1) for n in range(99)]
    assert summarize(rows) == summarize(rows[::-1])


def test_a_diverged_model_has_a_number() -> None:
    (first, second) = summarize([row("a", 1e9, 1, 1)])
    assert first.value == second.value == math.exp(700)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nll": None}, r"row 2 \(id 'b'\) needs a number under 'nll', has None"),
        ({"num_words": "3"}, r"row 2 \(id 'b'\) needs a number under 'num_words', has '3'"),
        ({"nll": math.nan}, r"row 2 \(id 'b'\): 'nll' is nan"),
        ({"nll": math.inf}, r"row 2 \(id 'b'\): 'nll' is inf"),
    ],
)
def test_faults_name_the_row(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarize([row("a", 1.0, 1, 1), {**row("b", 1.0, 1, 1), **change}])


def test_nothing_to_divide_by() -> None:
    with pytest.raises(ValueError, match="at least one event, has 0"):
        summarize([])
    with pytest.raises(ValueError, match="got no probability"):
        perplexity(math.inf, 3)
