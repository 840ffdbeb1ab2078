"""Perplexity of a language model, from the negative log-likelihoods of lines.

Perplexity is the exponential of the mean negative log-likelihood of an event (Jelinek et al. 1977,
"Perplexity: a measure of the difficulty of speech recognition tasks"). A line has as many events as
it has labels (or words), and one more: its end. So counts KenLM, and SRILM in its ``ppl``. The
likelihood of a line is the same whether labels or words are counted, which makes the perplexity per
word comparable between models of different labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from speechkit.metrics.results import Result

# exp() of more is no float, and JSON has no infinity.
_MOST = 700.0


def perplexity(nll: float, num_events: int) -> float:
    """Return ``exp(nll / num_events)``, at most ``exp(700)``.

    Parameters
    ----------
    nll : float
        Negative log-likelihood of all events, in nats.
    num_events : int
        How many there are.

    Raises
    ------
    ValueError
        If there is no event, or ``nll`` is not finite.

    Examples
    --------
    >>> round(perplexity(3 * math.log(8), 3), 9)
    8.0
    """
    if num_events < 1:
        raise ValueError(f"perplexity needs at least one event, has {num_events}")
    if not math.isfinite(nll):
        raise ValueError(f"the negative log-likelihood is {nll}; a text got no probability at all")
    return math.exp(min(nll / num_events, _MOST))


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a language model's results from its rows, one a line of text.

    Parameters
    ----------
    rows : iterable of dict
        Each with ``"nll"`` (nats, of the labels and the end), ``"num_tokens"`` and ``"num_words"``
        (without the end); other keys are ignored.

    Returns
    -------
    list of Result
        ``perplexity`` per token and ``word_perplexity`` per word, the ends of lines counted.

    Raises
    ------
    ValueError
        If there is no row, or a row lacks a number (its number and id are named).

    Examples
    --------
    >>> rows = [{"id": "a", "nll": 6 * math.log(3), "num_tokens": 5, "num_words": 1}]
    >>> [(r.metric, round(r.value, 6), r.count) for r in summarize(rows)]
    [('perplexity', 3.0, 6), ('word_perplexity', 27.0, 2)]
    """
    nlls: list[float] = []
    tokens = words = 0
    for number, row in enumerate(rows, start=1):
        for key in ("nll", "num_tokens", "num_words"):
            value = row.get(key)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(
                    f"row {number} (id {row.get('id')!r}) needs a number under {key!r}, has "
                    f"{value!r}"
                )
            if not math.isfinite(value):
                raise ValueError(f"row {number} (id {row.get('id')!r}): {key!r} is {value}")
        nlls.append(row["nll"])
        tokens += int(row["num_tokens"]) + 1
        words += int(row["num_words"]) + 1
    nll = math.fsum(nlls)  # the same in any order of the rows
    return [
        Result("perplexity", perplexity(nll, tokens), "per token", tokens),
        Result("word_perplexity", perplexity(nll, words), "per word", words),
    ]
