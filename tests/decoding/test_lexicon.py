"""The word list in the search: agreement with the best listed string, and its penalties."""

from __future__ import annotations

import itertools

import pytest
import torch

from speechkit.decoding.ctc import PrefixBeamSearch
from speechkit.decoding.lexicon import Lexicon
from speechkit.losses.ctc import ctc_loss

PIECES = ["<blank>", " ", "A", "B"]
WORDS = ["AB", "BA", "B"]


def spell(tokens: list[int]) -> str:
    return "".join(PIECES[token] for token in tokens)


def test_search_finds_the_most_probable_string_of_listed_words() -> None:
    lexicon = Lexicon(words=WORDS, pieces=PIECES, penalty=-200.0)
    search = PrefixBeamSearch(
        beam_size=500, token_min_logp=-1e9, beam_prune_logp=-1e9, scorer=lexicon
    )
    for seed in range(5):
        torch.manual_seed(seed)
        log_probs = torch.randn(1, 5, 4, dtype=torch.float64).mul(2).log_softmax(-1)
        best, score = "", -1e9
        for size in range(6):
            for labels in itertools.product((1, 2, 3), repeat=size):
                text = spell(list(labels))
                if any(word not in WORDS for word in text.split(" ") if word):
                    continue
                targets = torch.tensor([list(labels) or [1]])
                loss = ctc_loss(log_probs, torch.tensor([5]), targets, torch.tensor([size]))
                if -float(loss) > score:
                    best, score = text, -float(loss)
        found = search(log_probs, torch.tensor([5]))[0][0]
        assert spell(found.tokens) == best
        assert found.score == pytest.approx(score, abs=1e-6)


def test_an_unlisted_word_pays_once() -> None:
    lexicon = Lexicon(words=["ONE"], pieces=["<blank>", "\u2581ONE", "\u2581O", "X", "NE"])
    state, total = lexicon.start(), 0.0
    for token in (2, 3, 3, 1):
        total += float(lexicon.score([state], [token])[0, 0])
        state = lexicon.extend(state, token)
    assert total == -20.0
    assert lexicon.finish(state) == 0.0


def test_words_with_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="NEW YORK"):
        Lexicon(words=["NEW YORK"], pieces=PIECES)
