"""Sentences of the toy corpus: commands such as "shut the red door", drawn from a grammar."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

# Words are chosen to sound different: no "for" beside "four", no "fourteen" beside "forty".
VOCABULARY = {
    "name": "alice robert maria thomas victoria oliver sophia daniel julia edward martin laura "
    "simon isabel peter susan",
    "digit": "zero one two three four five six seven eight nine",
    "small": "ten eleven twelve",
    "tens": "twenty thirty forty fifty sixty eighty ninety",
    "room": "kitchen bedroom garage office garden bathroom",
    "device": "lamp heater radio television computer fan",
    "colour": "red green blue silver orange purple",
    "object": "door window box bottle basket umbrella",
    "things": "messages letters flowers apples pictures",
    "way": "left right forward back",
    "switch": "on off",
    "opener": "open shut",
    "starter": "start stop",
}
_WORDS = {kind: words.split() for kind, words in VOCABULARY.items()}
# A form is words and kinds in braces; {number} is a digit, ten to twelve, tens, or tens and digit.
FORMS = (
    "call {name} and {name}",
    "dial {digit} {digit} {digit}",
    "dial {digit} {digit} {digit} {digit} {digit}",
    "send {name} {number} {things}",
    "turn {switch} the {room} {device}",
    "{opener} the {colour} {object}",
    "set the {device} at {number}",
    "move {way} {number} steps",
    "add {number} and {number}",
    "play track {number} with {name}",
    "bring {name} the {colour} {object}",
    "show {things} from {name}",
    "{name} is in the {room}",
    "{starter} the {device} please",
)
NUMBERS = ("{digit}", "{small}", "{tens}", "{tens} {digit}", "{tens} {digit}")


class _Writer:
    """Draws sentences of the command grammar from a random source."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.random.integers(len(choices)))]

    def number(self) -> str:
        text = self.fill(self.pick(NUMBERS))
        return text.removesuffix(" zero")  # "twenty zero" is twenty

    def fill(self, form: str) -> str:
        def choose(match: re.Match[str]) -> str:
            return self.number() if match[1] == "number" else self.pick(_WORDS[match[1]])

        return re.sub(r"{(\w+)}", choose, form)

    def sentence(self) -> str:
        return self.fill(self.pick(FORMS))


def write_sentences(
    *, seed: int, num_train: int, num_dev: int, num_test: int
) -> dict[str, list[str]]:
    """Draw the sentences of the three subsets from the command grammar.

    Parameters
    ----------
    seed : int
        Decides every sentence.
    num_train, num_dev, num_test : int
        Sentences of each subset.

    Returns
    -------
    dict
        Subset to sentences, in lower case. Sentences of ``dev`` and ``test`` occur once and not in
        ``train``, and all of their words do.

    Raises
    ------
    ValueError
        When a number is not positive, or `num_train` is too small to hold the words of the others.

    Examples
    --------
    >>> texts = write_sentences(seed=0, num_train=100, num_dev=5, num_test=5)
    >>> set(texts["test"]) & set(texts["train"])
    set()
    """
    sizes = {"train": num_train, "dev": num_dev, "test": num_test}
    if min(sizes.values()) < 1:
        raise ValueError(f"each subset needs at least one utterance, got {sizes}")
    writer = _Writer(np.random.default_rng([seed, 1]))
    train = [writer.sentence() for _ in range(num_train)]
    used, vocabulary = set(train), set(" ".join(train).split())
    texts = {"train": train}
    for subset in ("dev", "test"):
        texts[subset] = list(_new_sentences(writer, sizes[subset], used, vocabulary))
    return texts


def _new_sentences(
    writer: _Writer, count: int, used: set[str], vocabulary: set[str]
) -> Iterator[str]:
    """Draw sentences that are not in `used`, which grows, and hold only known words."""
    for _ in range(200 * count + 2000):
        text = writer.sentence()
        if text not in used and vocabulary >= set(text.split()):
            used.add(text)
            yield text
            count -= 1
            if count == 0:
                return
    raise ValueError(
        f"the {len(vocabulary)} words of the training sentences leave too few other sentences "
        f"({count} more wanted): raise num_train, or ask for fewer in dev and test"
    )
