"""Word, character and sentence error rates, and the alignments behind them (through jiwer).

A word is what whitespace separates; characters are counted with one space between words. Case and
punctuation count: normalise both sides before, if they should not.

With empty texts the rules are jiwer's, and no rate is ever NaN:

- an empty reference makes every word of its hypothesis an insertion;
- an empty hypothesis makes every word of its reference a deletion;
- rates divide by ``max(1, reference words)``, so a corpus without any reference word has a rate of
  0 % where nothing was recognised, and of 100 % times the number of insertions elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from speechkit.metrics.results import Result


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """What it takes to turn the references into the hypotheses.

    Attributes
    ----------
    hits, substitutions, insertions, deletions : int
        Numbers of units (words or characters) of each kind.
    sentences, wrong_sentences : int
        Number of pairs, and of those with any error.

    Examples
    --------
    >>> counts = ErrorCounts(hits=8, substitutions=1, insertions=0, deletions=1)
    >>> counts.reference_length, counts.errors, counts.rate
    (10, 2, 20.0)
    """

    hits: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    sentences: int = 0
    wrong_sentences: int = 0

    @property
    def errors(self) -> int:
        """Substitutions, insertions and deletions together."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def reference_length(self) -> int:
        """Units in the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors in percent of the reference's units (of 1, where there are none)."""
        return 100.0 * self.errors / max(1, self.reference_length)

    @property
    def sentence_rate(self) -> float:
        """Sentences with any error, in percent (0 where there are no sentences)."""
        return 100.0 * self.wrong_sentences / max(1, self.sentences)


class AlignedPair(NamedTuple):
    """One step of an alignment.

    ``op`` is ``"equal"``, ``"substitute"``, ``"insert"`` or ``"delete"``;
    ``reference`` is None where a word was inserted, ``hypothesis`` where one was deleted.
    """

    op: str
    reference: str | None
    hypothesis: str | None


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count word errors over a corpus.

    Parameters
    ----------
    references, hypotheses : sequence of str
        Texts of the same utterances in the same order.

    Returns
    -------
    ErrorCounts
        Summed over the corpus; ``.rate`` is the WER in percent.

    Raises
    ------
    ValueError
        Where the two differ in number, or something in them is not a string.

    Examples
    --------
    >>> counts = word_errors(["turn the light on", ""], ["turn a light", "oh"])
    >>> counts.substitutions, counts.deletions, counts.insertions, counts.rate
    (1, 1, 1, 75.0)
    """
    return _count(references, hypotheses, _split_words)


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count character errors over a corpus; one space between words is a character.

    Parameters and errors are those of :func:`word_errors`.

    Examples
    --------
    >>> character_errors(["a cat"], ["a  cut"]).rate
    20.0
    """
    return _count(references, hypotheses, _split_characters)


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a recogniser's results from its per-utterance rows.

    Parameters
    ----------
    rows : iterable of dict
        Each with ``"reference"`` and ``"hypothesis"`` (texts); other keys are ignored.

    Returns
    -------
    list of Result
        WER, CER and SER in percent, then the word substitutions, insertions and deletions.

    Raises
    ------
    ValueError
        Where a row lacks one of the two texts (the row's number and id are named).

    Examples
    --------
    >>> results = summarize([{"id": "u1", "reference": "one two", "hypothesis": "one too"}])
    >>> [(r.metric, r.value) for r in results][:3]
    [('WER', 50.0), ('CER', 14.285714285714286), ('SER', 100.0)]
    """
    references: list[str] = []
    hypotheses: list[str] = []
    for number, row in enumerate(rows, start=1):
        for key, texts in (("reference", references), ("hypothesis", hypotheses)):
            text = row.get(key)
            if not isinstance(text, str):
                raise ValueError(
                    f"row {number} (id {row.get('id')!r}) needs a text under {key!r}, has {text!r}"
                )
            texts.append(text)
    words = word_errors(references, hypotheses)
    characters = character_errors(references, hypotheses)
    length = words.reference_length
    return [
        Result("WER", words.rate, "%", length),
        Result("CER", characters.rate, "%", characters.reference_length),
        Result("SER", words.sentence_rate, "%", words.sentences),
        Result("substitutions", float(words.substitutions), "words", length),
        Result("insertions", float(words.insertions), "words", length),
        Result("deletions", float(words.deletions), "words", length),
    ]


def align(reference: str, hypothesis: str) -> list[AlignedPair]:
    """Align two texts word by word, with the fewest errors.

    Examples
    --------
    >>> [(pair.op, pair.reference, pair.hypothesis) for pair in align("a b", "a c d")]
    [('equal', 'a', 'a'), ('insert', None, 'c'), ('substitute', 'b', 'd')]
    """
    ((ref, hyp),) = _split_pairs([reference], [hypothesis], _split_words)
    output = _process([(ref, hyp)])
    pairs: list[AlignedPair] = []
    for chunk in output.alignments[0]:
        refs = ref[chunk.ref_start_idx : chunk.ref_end_idx]
        hyps = hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            pairs += [AlignedPair("insert", None, word) for word in hyps]
        elif chunk.type == "delete":
            pairs += [AlignedPair("delete", word, None) for word in refs]
        else:
            op = "equal" if chunk.type == "equal" else "substitute"
            pairs += [AlignedPair(op, *words) for words in zip(refs, hyps)]
    return pairs


_MARKS = {"equal": "", "substitute": "S", "insert": "I", "delete": "D"}


def format_alignment(reference: str, hypothesis: str) -> str:
    """Write the alignment of two texts as three lines: reference, hypothesis, errors.

    Words stand in columns, ``*`` fills the side that lacks a word, and the third line marks
    substitutions (S), insertions (I) and deletions (D).

    Examples
    --------
    >>> print(format_alignment("turn the light on", "turn a light"))
    REF: turn the light on
    HYP: turn a   light **
             S          D
    """
    lines: list[list[str]] = [["REF:"], ["HYP:"], ["    "]]
    for pair in align(reference, hypothesis):
        width = max(len(pair.reference or ""), len(pair.hypothesis or ""))
        for line, word in zip(lines, (pair.reference, pair.hypothesis, _MARKS[pair.op])):
            line.append(("*" * width if word is None else word).ljust(width))
    return "\n".join(" ".join(line).rstrip() for line in lines)


_Split = Callable[[str], list[str]]


def _split_words(text: str) -> list[str]:
    return text.split()


def _split_characters(text: str) -> list[str]:
    return list(" ".join(text.split()))


def _split_pairs(
    references: Sequence[str], hypotheses: Sequence[str], split: _Split
) -> list[tuple[list[str], list[str]]]:
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references but {len(hypotheses)} hypotheses: give one of each"
        )
    for side in (references, hypotheses):
        for index, text in enumerate(side):
            if not isinstance(text, str):
                raise ValueError(f"item {index}: texts must be strings, got {text!r}")
    return [(split(r), split(h)) for r, h in zip(references, hypotheses)]


def _process(pairs: Sequence[tuple[list[str], list[str]]]) -> Any:
    import jiwer

    # The texts are split already: jiwer's chain of transforms costs more than the distance.
    return jiwer.process_words(
        [reference for reference, _ in pairs],
        [hypothesis for _, hypothesis in pairs],
        reference_transform=list,
        hypothesis_transform=list,
    )


def _count(references: Sequence[str], hypotheses: Sequence[str], split: _Split) -> ErrorCounts:
    pairs = _split_pairs(references, hypotheses, split)
    wrong = [pair for pair in pairs if pair[0] != pair[1]]  # most are right, and need no distance
    output = _process(wrong)
    words = sum(len(reference) for reference, _ in pairs)
    right = words - sum(len(reference) for reference, _ in wrong)
    return ErrorCounts(
        hits=output.hits + right,
        substitutions=output.substitutions,
        insertions=output.insertions,
        deletions=output.deletions,
        sentences=len(pairs),
        wrong_sentences=len(wrong),
    )
