"""Language models in prefix beam search against brute force over all label sequences."""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speechkit.decoding import prefix_beam
from speechkit.decoding.ctc import PrefixBeamSearch, collapse
from speechkit.decoding.fusion import CombinedScorer, NeuralScorer, rescore
from speechkit.decoding.hotwords import HotWords
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.decoding.ngram_fusion import TokenNgramScorer
from speechkit.decoding.word_fusion import WordNgramScorer
from speechkit.lm.ngram import NgramModel
from speechkit.nn.stepping import Start, StepOutput

INF = float("inf")
CHARS = ["<blank>", " ", "a", "b"]
WORD_PIECES = ["<blank>", "▁a", "b", "▁", "▁b▁", "▁c"]
GUESSES = ["none", "unknown", "best"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("speechkit.lm.kneser_ney").setLevel(logging.ERROR)


@pytest.fixture(autouse=True, params=["tuples", "arrays", "both"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the search keep to one form of its beam, or change between them as often as it can."""
    thresholds = {"tuples": (10**9, 10**9), "arrays": (0, 0), "both": (16, 15)}
    to_arrays, to_tuples = thresholds[request.param]
    monkeypatch.setattr(prefix_beam, "_TO_ARRAYS", to_arrays)
    monkeypatch.setattr(prefix_beam, "_TO_TUPLES", to_tuples)


def word_model() -> NgramModel:
    return NgramModel.estimate(["a b ab", "ab a", "b ab", "a a b"], order=3)


def random_log_probs(frames: int, vocab: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, vocab, generator=generator).double().log_softmax(-1)


def all_paths(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    totals: dict[tuple[int, ...], float] = defaultdict(float)
    table = log_probs.tolist()
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(table)):
        totals[tuple(collapse(path))] += math.exp(sum(row[k] for row, k in zip(table, path)))
    return {labels: math.log(total) for labels, total in totals.items()}


def search(log_probs: Tensor, scorer, **options) -> list[Hypothesis]:
    options = {"token_min_logp": -INF, "beam_prune_logp": -INF, **options}
    options = {"beam_size": 5000, "nbest": 5000, "scorer": scorer, **options}
    return PrefixBeamSearch(**options)(log_probs[None], torch.tensor([len(log_probs)]))[0]


def assert_equals_brute_force(log_probs: Tensor, scorer, cost) -> None:
    """``cost`` is what a whole label sequence gains, written without the scorer."""
    expected = {k: score + cost(k) for k, score in all_paths(log_probs).items()}
    found = search(log_probs, scorer)
    assert {tuple(h.tokens) for h in found} == set(expected)
    for one in found:
        assert one.score == pytest.approx(expected[tuple(one.tokens)], abs=1e-8)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def spell(pieces: list[str], tokens: Sequence[int]) -> str:
    return "".join(pieces[t] for t in tokens).replace("▁", " ")


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize(("pieces", "frames"), [(CHARS, 5), (WORD_PIECES, 4)])
def test_word_ngram(pieces: list[str], frames: int, guess: str) -> None:
    model = word_model()
    scorer = WordNgramScorer(
        model=model, pieces=pieces, weight=0.7, word_bonus=0.4, unknown_penalty=-3.0, guess=guess
    )

    def cost(tokens: tuple[int, ...]) -> float:
        words = spell(pieces, tokens).split()
        unknown = sum(word not in ("a", "b", "ab") for word in words)
        return 0.7 * model.score([words])[0] + 0.4 * len(words) - 3.0 * unknown

    for seed in range(2):
        assert_equals_brute_force(random_log_probs(frames, len(pieces), seed), scorer, cost)


def test_token_ngram() -> None:
    texts = [["a", "▁", "b"], ["a", "a", "▁"], ["b"], ["▁", "a"]]
    model = NgramModel.estimate(texts, order=3)
    scorer = TokenNgramScorer(model=model, pieces=CHARS, weight=0.6, token_bonus=0.2)

    def cost(tokens: tuple[int, ...]) -> float:
        words = [CHARS[t].replace(" ", "▁") for t in tokens]
        return 0.6 * model.score([words])[0] + 0.2 * len(words)

    assert_equals_brute_force(random_log_probs(5, 4, 3), scorer, cost)


class _Memory(NamedTuple):
    hidden: Tensor
    cache: Tensor  # (1, K, U, V): grows by one with each step, as keys and values do


class TinyModel(nn.Module):
    """A recurrent language model whose state has all that states may have."""

    def __init__(self, *, vocab_size: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, 8)
        self.cell = nn.GRUCell(8, 8)
        self.head = nn.Linear(8, vocab_size)
        self.calls = 0

    def start(self, batch_size: int, device: torch.device) -> Start:
        hidden = torch.zeros(batch_size, 1, 8, device=device)
        cache = torch.zeros(batch_size, 1, 0, self.vocab_size, device=device)
        return Start(None, {"memory": _Memory(hidden, cache), "list": [hidden], "used": 0})

    def step(self, tokens: Tensor, fixed: None, state: dict) -> StepOutput:
        self.calls += 1
        memory = state["memory"]
        assert memory.cache.shape[2] == state["used"]  # prefixes of one length only
        hidden = self.cell(self.embedding(tokens).flatten(0, 1), memory.hidden.flatten(0, 1))
        hidden = hidden.view(*tokens.shape, 8)
        scores = self.head(hidden) - 0.3 * memory.cache.sum(2)
        used = nn.functional.one_hot(tokens, self.vocab_size).float().unsqueeze(2)
        memory = _Memory(hidden, torch.cat([memory.cache, used], dim=2))
        new = {"memory": memory, "list": [hidden], "used": state["used"] + 1}
        return StepOutput(scores.log_softmax(-1), new)


@torch.no_grad()
def neural_score(model: TinyModel, tokens: Sequence[int]) -> float:
    _, state = model.start(1, torch.device("cpu"))
    total = 0.0
    for last, following in zip([0, *tokens], [*tokens, 0]):
        output = model.step(torch.tensor([[last]]), None, state)
        total += float(output.log_probs[0, 0, following])
        state = output.state
    return total


def test_neural() -> None:
    model = TinyModel(vocab_size=4)
    scorer = NeuralScorer(model=model, weight=0.5, token_bonus=0.3)
    assert not model.training
    log_probs = random_log_probs(5, 4, 4)

    def cost(tokens: tuple[int, ...]) -> float:
        return 0.5 * neural_score(model, tokens) + 0.3 * len(tokens)

    expected = {k: score + cost(k) for k, score in all_paths(log_probs).items()}
    model.calls = 0
    found = search(log_probs, scorer)
    assert model.calls <= 5 + 4 + 3 + 2 + 1 + 1  # one for each frame and length, not each prefix
    assert len(found) == len(expected)
    for one in found:
        assert one.score == pytest.approx(expected[tuple(one.tokens)], abs=1e-5)


def test_neural_refuses_another_vocabulary() -> None:
    scorer = NeuralScorer(model=TinyModel(vocab_size=3))
    with pytest.raises(ValueError, match="3 labels, the recognizer more"):
        search(random_log_probs(3, 4, 0), scorer)


PHRASES = ["ab", "a", "b a", "ab b", "b a b"]


def count_phrases(text: str) -> int:
    words = text.split()
    parts = [phrase.split() for phrase in PHRASES]
    return sum(
        words[i : i + len(part)] == part
        for part in parts
        for i in range(len(words) - len(part) + 1)
    )


@pytest.mark.parametrize(("pieces", "frames"), [(CHARS, 6), (WORD_PIECES, 4)])
def test_hot_words_gain_for_each_occurrence_alone(pieces: list[str], frames: int) -> None:
    """So a hypothesis without a phrase scores as it does without boost."""
    scorer = HotWords(phrases=PHRASES, pieces=pieces, boost=1.5)

    def cost(tokens: tuple[int, ...]) -> float:
        return 1.5 * count_phrases(spell(pieces, tokens))

    assert_equals_brute_force(random_log_probs(frames, len(pieces), 5), scorer, cost)


def test_hot_word_makes_a_hit_of_a_near_miss() -> None:
    pieces = ["<blank>", " ", *"abcn"]
    log_probs = torch.full((3, 6), 0.02)
    for frame, (right, wrong) in enumerate([(4, 4), (2, 2), (5, 3)]):
        log_probs[frame, right] += 0.35
        log_probs[frame, wrong] += 0.5
    log_probs = (log_probs / log_probs.sum(1, keepdim=True)).double().log()
    hot = HotWords(phrases=["can"], pieces=pieces, boost=2.0)
    options = {"beam_size": 20, "nbest": 20}
    plain, boosted = search(log_probs, None, **options), search(log_probs, hot, **options)
    assert spell(pieces, plain[0].tokens) == "cab"
    assert spell(pieces, boosted[0].tokens) == "can"
    scores = {tuple(h.tokens): h.score for h in plain}
    broken_off = next(h for h in boosted if spell(pieces, h.tokens) == "cab")
    assert broken_off.score == pytest.approx(scores[tuple(broken_off.tokens)], abs=1e-9)
    assert boosted[0].score == pytest.approx(scores[tuple(boosted[0].tokens)] + 2.0, abs=1e-9)


def scorers_of_no_weight() -> list:
    zero = {"model": word_model(), "pieces": CHARS, "weight": 0.0}
    return [
        *(WordNgramScorer(**zero, unknown_penalty=0.0, guess=guess) for guess in GUESSES),
        TokenNgramScorer(**zero),
        NeuralScorer(model=TinyModel(vocab_size=4), weight=0.0),
    ]


@pytest.mark.parametrize("index", range(5))
def test_weight_zero_is_no_model(index: int) -> None:
    scorer = scorers_of_no_weight()[index]
    log_probs = random_log_probs(30, 4, 6) * 1.5
    plain = search(log_probs, None, beam_size=10, nbest=10, beam_prune_logp=-10.0)
    found = search(log_probs, scorer, beam_size=10, nbest=10, beam_prune_logp=-10.0)
    assert [h.tokens for h in found] == [h.tokens for h in plain]
    assert [h.score for h in found] == pytest.approx([h.score for h in plain], abs=1e-9)


def test_combined() -> None:
    model = word_model()
    words = WordNgramScorer(model=model, pieces=CHARS, weight=0.7, unknown_penalty=-3.0)
    hot = HotWords(phrases=PHRASES, pieces=CHARS, boost=1.5)

    def cost(tokens: tuple[int, ...]) -> float:
        parts = spell(CHARS, tokens).split()
        unknown = sum(word not in ("a", "b", "ab") for word in parts)
        lm = 0.7 * model.score([parts])[0] - 3.0 * unknown
        return lm + 1.5 * count_phrases(" ".join(parts))

    both = CombinedScorer(scorers=[words, hot])
    assert_equals_brute_force(random_log_probs(5, 4, 7), both, cost)
    with pytest.raises(ValueError, match="at least one"):
        CombinedScorer(scorers=[])


def test_hopeless_prefixes_are_dropped_early() -> None:
    """A narrow beam finds the word only where the unknown prefix pays at once."""
    model = NgramModel.estimate(["ba", "ba", "b"], order=1)
    log_probs = torch.tensor(
        [[0.05, 0.05, 0.6, 0.3], [0.05, 0.05, 0.6, 0.3], [0.05, 0.05, 0.3, 0.6]]
    )
    log_probs = torch.cat([log_probs, torch.tensor([[0.9, 0.02, 0.04, 0.04]])]).double().log()
    found = {}
    for guess in GUESSES:
        scorer = WordNgramScorer(model=model, pieces=CHARS, weight=1.0, guess=guess)
        found[guess] = spell(CHARS, search(log_probs, scorer, beam_size=1, nbest=1)[0].tokens)
    assert found["none"] not in ("ba", "b")
    assert found["unknown"] in ("ba", "b")
    assert found["best"] in ("ba", "b")


def test_forms_agree_on_long_input() -> None:
    scorer = WordNgramScorer(model=word_model(), pieces=CHARS)
    log_probs = random_log_probs(80, 4, 11) * 2.0
    log_probs[20:30] = torch.tensor([0.0, -50.0, -50.0, -50.0]).log_softmax(0)
    found = search(log_probs, scorer, beam_size=20, nbest=20, beam_prune_logp=-10.0)
    expected = plain_search(log_probs, scorer, beam_size=20, beam_prune_logp=-10.0)
    assert [tuple(h.tokens) for h in found] == [tokens for tokens, _ in expected]
    assert [h.score for h in found] == pytest.approx([s for _, s in expected], abs=1e-8)


def plain_search(
    log_probs: Tensor, scorer, beam_size: int, beam_prune_logp: float
) -> list[tuple[tuple[int, ...], float]]:
    """Search as Hannun et al. (2014) write it, in logarithms, with dictionaries."""
    beam = {(): (0.0, -INF, scorer.start())}
    for row in log_probs.tolist():
        new: dict = {}

        def add(prefix, state, ends_blank, ends_token, new=new) -> None:
            b, t, _ = new.get(prefix, (-INF, -INF, None))
            new[prefix] = (np.logaddexp(b, ends_blank), np.logaddexp(t, ends_token), state)

        for prefix, (b, t, state) in beam.items():
            add(prefix, state, np.logaddexp(b, t) + row[0], -INF)
            for token in range(1, len(row)):
                repeats = prefix[-1:] == (token,)
                if repeats:
                    add(prefix, state, -INF, t + row[token])
                gained = row[token] + scorer.score([state], [token])[0, 0]
                enters = (b if repeats else np.logaddexp(b, t)) + gained
                add((*prefix, token), scorer.extend(state, token), -INF, enters)
        totals = {prefix: np.logaddexp(b, t) for prefix, (b, t, _) in new.items()}
        floor = max(totals.values()) + beam_prune_logp
        kept = sorted((p for p in new if totals[p] >= floor), key=lambda p: -totals[p])[:beam_size]
        beam = {prefix: new[prefix] for prefix in kept}
    ended = {p: float(np.logaddexp(b, t)) + scorer.finish(s) for p, (b, t, s) in beam.items()}
    floor = max(ended.values()) + beam_prune_logp
    return sorted(((p, s) for p, s in ended.items() if s >= floor), key=lambda pair: -pair[1])


def test_a_scorer_that_forbids_everything_ends_no_search() -> None:
    class Never:
        def start(self) -> int:
            return 0

        def score(self, states: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
            return np.full((len(states), len(tokens)), -INF)

        def extend(self, state: int, token: int) -> int:
            return 0

        def finish(self, state: int) -> float:
            return -INF

    log_probs = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).log()
    assert [h.tokens for h in search(log_probs, Never())] == [[1, 2]]


def test_state_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = WordNgramScorer(model=word_model(), pieces=CHARS)
    first = [h.score for h in search(random_log_probs(9, 4, 1), scorer, beam_size=9, nbest=9)]
    many = len(scorer._parts)
    monkeypatch.setattr("speechkit.decoding.word_fusion._MAX_STATES", 3)
    again = [h.score for h in search(random_log_probs(9, 4, 1), scorer, beam_size=9, nbest=9)]
    assert again == first
    assert len(scorer._parts) == many  # cleared, and as many again


def test_scorers_refuse_what_does_not_fit() -> None:
    model = word_model()
    with pytest.raises(ValueError, match="cannot write a single word"):
        WordNgramScorer(model=model, pieces=["<blank>", " ", "A", "B"])
    with pytest.raises(ValueError, match="guess must be"):
        WordNgramScorer(model=model, pieces=CHARS, guess="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown_penalty"):
        WordNgramScorer(model=model, pieces=CHARS, unknown_penalty=-INF)
    with pytest.raises(ValueError, match="does not know 2 of 3"):
        TokenNgramScorer(model=model, pieces=["<blank>", "a", "x", "y"])
    for phrases, boost in ([""], 1.0), (["abc"], 1.0), (["a"], 0.0), ("a", 1.0):
        with pytest.raises(ValueError):
            HotWords(phrases=phrases, pieces=CHARS, boost=boost)


def test_rescore() -> None:
    model = word_model()
    nbest = [Hypothesis([i], -float(i), [0], [1], [0.9]) for i in range(3)]
    texts = ["b b b", "a b ab", "a"]
    ranked = rescore(
        nbest, model.score, decode=lambda ids: texts[ids[0]], weight=2.0, length_bonus=0.5
    )
    lm = model.score(texts)
    expected = {i: -i + 2.0 * lm[i] + 0.5 * len(texts[i].split()) for i in range(3)}
    assert {h.tokens[0]: h.score for h in ranked} == pytest.approx(expected)
    assert [h.score for h in ranked] == sorted(expected.values(), reverse=True)
    assert rescore(nbest, model.score, decode=str, weight=0.0) == nbest
    assert rescore([], model.score, decode=str) == []
    with pytest.raises(ValueError, match="1 scores for 3 texts"):
        rescore(nbest, lambda texts: np.zeros(1).tolist(), decode=str)
