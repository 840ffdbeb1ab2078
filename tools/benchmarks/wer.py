"""Word error rate of a corpus of recognised sentences."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from speechkit.metrics.wer import word_errors
from tools.benchmarks.measure import Bench, Contest, Measurement, peer


@dataclass(frozen=True)
class Sizes:
    """Sentences, words in each, words in the vocabulary."""

    sentences: int = 10000
    words: int = 20
    vocabulary: int = 2000


FULL = Sizes()
QUICK = Sizes(sentences=1000)


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure against jiwer and SpeechBrain; the rates must be the same."""
    references, hypotheses = texts(sizes)

    def ours() -> float:
        return word_errors(references, hypotheses).rate

    for name, theirs in (
        ("jiwer", _jiwer(references, hypotheses)),
        ("speechbrain", _speechbrain(references, hypotheses)),
    ):
        same = theirs is None or abs(ours() - theirs()) < 1e-6
        yield bench.compare(
            Contest("wer", f"{sizes.sentences} x {sizes.words} words", name, ours, theirs),
            note="" if same else "the word error rates differ",
            failed=not same,
            on_cpu=True,
        )


def texts(sizes: Sizes) -> tuple[list[str], list[str]]:
    """Make references, and hypotheses with about 10 % substitutions and 3 % deletions."""
    source = random.Random(0)
    vocabulary = [f"w{n}" for n in range(sizes.vocabulary)]
    references, hypotheses = [], []
    for _ in range(sizes.sentences):
        words = source.choices(vocabulary, k=sizes.words)
        heard = [
            word if source.random() > 0.1 else source.choice(vocabulary)
            for word in words
            if source.random() > 0.03
        ]
        references.append(" ".join(words))
        hypotheses.append(" ".join(heard))
    return references, hypotheses


def _jiwer(references: list[str], hypotheses: list[str]) -> Callable[[], float] | None:
    jiwer = peer("jiwer")
    if jiwer is None:
        return None
    return lambda: 100.0 * jiwer.process_words(references, hypotheses).wer


def _speechbrain(references: list[str], hypotheses: list[str]) -> Callable[[], float] | None:
    metric_stats = peer("speechbrain.utils.metric_stats")
    if metric_stats is None:
        return None
    ids = [str(n) for n in range(len(references))]

    def run() -> float:
        stats = metric_stats.ErrorRateStats()
        stats.append(
            ids, [text.split() for text in hypotheses], [text.split() for text in references]
        )
        return float(stats.summarize()["WER"])

    return run
