"""Joint beam search against exhaustive search, greedy stepping, and itself one by one."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from speechkit.data.tokenizer import CharTokenizer
from speechkit.decoding.beam_search import BeamSearch
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.models.lm import LSTMLanguageModel, TransformerLanguageModel
from speechkit.nn.contexts import AdditiveContext, LocationContext
from speechkit.nn.masking import length_mask
from speechkit.nn.rnn_decoder import RNNDecoder
from speechkit.nn.stepping import Start, StepOutput
from speechkit.nn.transformer_decoder import TransformerDecoder

INF = float("inf")
V, LABELS, T = 40, 3, 4  # labels beyond 3 are impossible; 1 + 3 + 9 + 27 sequences of at most 3


class Toy(nn.Module):
    """A recurrent decoder with random weights; with ``memory_size=0`` a language model."""

    def __init__(
        self, *, seed: int, vocab_size: int = V, labels: int = LABELS, memory_size: int = 5,
        sharp: float = 2.0, end: float = 0.0, attends: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.vocab_size, self.memory_size, self.attends = vocab_size, memory_size, attends
        self.embedding, self.recurrent = weight(vocab_size, 6), weight(6, 6)
        self.looks, self.read = weight(6, max(memory_size, 1)), weight(max(memory_size, 1), 6)
        self.output = weight(6, vocab_size) * sharp
        self.output[:, labels + 1 :] = 0.0
        self.bias = torch.zeros(vocab_size, dtype=torch.float64)
        self.bias[0], self.bias[labels + 1 :] = end, -INF

    def start(self, memory: Any, lengths: Any) -> Start:
        if self.memory_size == 0:  # (batch size, device)
            return Start(None, (torch.zeros(memory, 1, 6, dtype=torch.float64),))
        fixed = memory.double(), length_mask(lengths, memory.shape[1])
        return Start(fixed, (torch.zeros(len(memory), 1, 6, dtype=torch.float64),))

    def step(self, tokens: Tensor, fixed: Any, state: Any) -> StepOutput:
        hidden = torch.tanh(state[0] @ self.recurrent + self.embedding[tokens])
        attention = None
        if fixed is not None:
            memory, mask = fixed
            memory = memory.masked_fill(~mask.unsqueeze(-1), 0.0)
            scores = (hidden @ self.looks) @ memory.transpose(1, 2)
            attention = scores.masked_fill(~mask.unsqueeze(1), -INF).softmax(-1)
            hidden = torch.tanh(hidden + attention @ memory @ self.read)
        log_probs = (hidden @ self.output + self.bias).log_softmax(-1).float()
        return StepOutput(log_probs, (hidden,), attention if self.attends else None)


def language_model(seed: int, **options: Any) -> Toy:
    return Toy(seed=seed, memory_size=0, **options)


def inputs(seed: int, lengths: list[int], vocab: int = V, labels: int = LABELS) -> Any:
    generator = torch.Generator().manual_seed(seed)
    size = len(lengths), max(lengths)
    memory = torch.randn(*size, 5, generator=generator)
    logits = torch.randn(*size, vocab, generator=generator)
    logits[..., labels + 1 :] = -INF
    return memory, torch.tensor(lengths), logits.log_softmax(-1)


def along(model: Toy, labels: tuple[int, ...], *started: Any) -> tuple[float, Tensor]:
    """Log-probability of labels and end by single steps; summed attention after each step."""
    fixed, state = model.start(*started)
    total, looks, previous = 0.0, [], 0
    for label in (*labels, 0):
        out = model.step(torch.tensor([[previous]]), fixed, state)
        total += out.log_probs[0, 0, label].item()
        if out.attention is not None:
            looks.append(out.attention[0, 0])
        state, previous = out.state, label
    return total, torch.stack(looks).sum(0) if looks else torch.zeros(1)


def ctc_score(log_probs: Tensor, labels: tuple[int, ...]) -> float:
    loss = nn.functional.ctc_loss(
        log_probs[:, None, : LABELS + 1].double(), torch.tensor([labels], dtype=torch.int64),
        torch.tensor([len(log_probs)]), torch.tensor([len(labels)]), reduction="sum",
    )  # fmt: skip
    return -loss.item()


SEQUENCES = [
    labels
    for size in range(4)
    for labels in itertools.product(range(1, LABELS + 1), repeat=size)
]  # fmt: skip


@cache
def parts(seed: int, item: int) -> list[tuple[float, Tensor, float, float]]:
    """All sequences' attention score, summed looks, CTC score and language model score."""
    decoder, (memory, _, ctc) = Toy(seed=seed), inputs(seed, [T, T])
    found = []
    for labels in SEQUENCES:
        score, looks = along(decoder, labels, memory[item : item + 1], torch.tensor([T]))
        fluent = along(LM, labels, 1, memory.device)[0]
        found.append((score, looks, ctc_score(ctc[item], labels), fluent))
    return found


def exhaustive(seed: int, item: int, search: BeamSearch) -> list[tuple[float, list[int]]]:
    """Score all sequences of at most 3 labels of one utterance; the best first."""
    found = []
    for labels, (score, looks, ctc, fluent) in zip(SEQUENCES, parts(seed, item)):
        total = search.length_bonus * len(labels) + search.lm_weight * fluent
        if search.ctc_weight < 1.0:
            covered = (looks > search.coverage_threshold).sum().item()
            total += (1 - search.ctc_weight) * score + search.coverage_weight * covered
        if search.ctc_weight > 0.0:
            total += search.ctc_weight * ctc
        if total > -INF:
            found.append((total / (len(labels) + 1) ** search.length_normalization, list(labels)))
    return sorted(found, reverse=True)


LM = language_model(9)
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {},
    "joint": {"ctc_weight": 0.4},
    "joint and lm": {"ctc_weight": 0.3, "lm": LM, "lm_weight": 0.7},
    "ctc": {"ctc_weight": 1.0},
    "ctc and lm": {"ctc_weight": 1.0, "lm": LM, "lm_weight": 0.7},
    "normalized": {"length_normalization": 1.0, "ctc_weight": 0.2},
    "half normalized": {"length_normalization": 0.5},
    "bonus": {"length_bonus": 1.5, "ctc_weight": 0.2},
    "malus": {"length_bonus": -1.0},
    "coverage": {"coverage_weight": 0.8, "coverage_threshold": 0.4},
    "candidates": {"num_candidates": LABELS, "ctc_weight": 0.4, "length_bonus": 0.3},
    "all candidates": {"num_candidates": V, "ctc_weight": 0.4},
}


@pytest.mark.parametrize("nbest", [1, 5, 40])
@pytest.mark.parametrize("name", OPTIONS)
def test_finds_what_exhaustive_search_finds(name: str, nbest: int) -> None:
    search = BeamSearch(beam_size=V, nbest=nbest, max_length_ratio=0.75, **OPTIONS[name])
    for seed in range(2):
        decoder = Toy(seed=seed)
        memory, lengths, ctc = inputs(seed, [T, T])
        for item, found in enumerate(search(decoder, memory, lengths, ctc)):
            expected = exhaustive(seed, item, search)[:nbest]
            assert [one.tokens for one in found] == [labels for _, labels in expected]
            scores = [score for score, _ in expected]
            assert [one.score for one in found] == pytest.approx(scores, abs=1e-4)


class Late(Toy):
    """Would like to end at once or after 19 labels, of which the first alone is unlikely."""

    def step(self, tokens: Tensor, fixed: Any, state: Any) -> StepOutput:
        step = int(state[0][0, 0, 0])
        likely = [0.8, 0.1, 0.1] if step == 0 else [0.01, 0.98, 0.01]
        log_probs = torch.tensor(likely if step < 19 else [0.98, 0.01, 0.01]).log()
        attention = torch.eye(20)[step].expand(*tokens.shape, 20)
        return StepOutput(log_probs.expand(*tokens.shape, 3), (state[0] + 1,), attention)


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({}, 0),
        ({"length_bonus": 0.5}, 19),
        ({"length_normalization": 1.0}, 19),
        ({"coverage_weight": 0.5}, 19),
    ],
)
def test_the_search_does_not_stop_while_more_can_be_gained(
    options: dict[str, float], length: int
) -> None:
    decoder, (memory, lengths, _) = Late(seed=0, vocab_size=3), inputs(0, [20])
    found = BeamSearch(beam_size=3, **options)(decoder, memory, lengths)[0][0]
    assert (len(found.tokens), found.stopped) == (length, True)


def greedy_steps(decoder: Toy, memory: Tensor, most: int) -> tuple[list[int], float, bool]:
    fixed, state = decoder.start(memory[None], torch.tensor([len(memory)]))
    labels, score, previous = [], 0.0, 0
    for step in range(most + 1):
        out = decoder.step(torch.tensor([[previous]]), fixed, state)
        best, label = (x.item() for x in out.log_probs[0, 0].max(-1))
        if label == 0 or step == most:
            return labels, score + out.log_probs[0, 0, 0].item(), label == 0
        labels, score, state, previous = [*labels, label], score + best, out.state, label
    raise AssertionError


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_a_beam_of_one_is_greedy(seed: int, lengths: list[int]) -> None:
    decoder = Toy(seed=seed, vocab_size=8, labels=7, end=1.0)
    memory, sizes, _ = inputs(seed, lengths, vocab=8, labels=7)
    for item, (found,) in enumerate(BeamSearch(beam_size=1)(decoder, memory, sizes)):
        tokens, score, stopped = greedy_steps(decoder, memory[item, : lengths[item]], lengths[item])
        assert (found.tokens, found.stopped) == (tokens, stopped)
        assert found.score == pytest.approx(score, abs=1e-4)


def flat(found: list[list[Hypothesis]]) -> list[list[tuple[Any, ...]]]:
    return [[(one.tokens, one.frames, one.ends, one.stopped) for one in item] for item in found]


def numbers(found: list[list[Hypothesis]]) -> list[float]:
    return [x for item in found for one in item for x in (one.score, *one.confidences)]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 15), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([{}, {"length_normalization": 1.0}, {"length_bonus": 0.4}]),
)
def test_a_batch_gives_what_each_item_gives(
    seed: int, lengths: list[int], ctc_weight: float, options: dict[str, float]
) -> None:
    decoder = Toy(seed=seed, vocab_size=9, labels=8)
    memory, sizes, ctc = inputs(seed, [*lengths, 16], vocab=9, labels=8)
    search = BeamSearch(beam_size=4, nbest=3, ctc_weight=ctc_weight, **options)
    for item, length in enumerate(sizes.tolist()):
        memory[item, length:], ctc[item, length:] = math.nan, math.nan
    together = search(decoder, memory, sizes, ctc)
    for item, length in enumerate(sizes.tolist()):
        one = slice(item, item + 1)
        alone = search(decoder, memory[one, :length], sizes[one], ctc[one, :length])
        assert flat(alone) == flat(together[one])
        assert numbers(alone) == pytest.approx(numbers(together[one]), abs=1e-4)


def test_an_utterance_without_frames_is_empty() -> None:
    memory, _, ctc = inputs(0, [6, 6])
    search = BeamSearch(beam_size=3, nbest=2, ctc_weight=0.5)
    found = search(Toy(seed=0), memory, torch.tensor([0, 6]), ctc)
    assert found[0] == [Hypothesis([], 0.0, [], [], [])]
    assert len(found[1]) == 2
    assert search(Toy(seed=0), memory, torch.tensor([0, 0]), ctc) == [found[0]] * 2


def test_no_weight_is_no_language_model() -> None:
    memory, lengths, ctc = inputs(1, [12, 9])
    plain = BeamSearch(beam_size=5, nbest=3, ctc_weight=0.3)
    fused = BeamSearch(beam_size=5, nbest=3, ctc_weight=0.3, lm=language_model(4), lm_weight=0.0)
    other = BeamSearch(beam_size=5, nbest=3, ctc_weight=0.3, lm=language_model(4), lm_weight=2.0)
    decoder = Toy(seed=1)
    assert fused(decoder, memory, lengths, ctc) == plain(decoder, memory, lengths, ctc)
    assert other(decoder, memory, lengths, ctc) != plain(decoder, memory, lengths, ctc)


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("options", [{}, {"ctc_weight": 0.3}, {"end_threshold": 1.5}])
def test_what_never_ends_is_bounded_and_told(beam_size: int, options: dict[str, float]) -> None:
    memory, lengths, ctc = inputs(2, [10, 4], vocab=8, labels=7)
    search = BeamSearch(beam_size=beam_size, max_length_ratio=0.5, **options)
    sizes: dict[str, Any] = {"seed": 2, "vocab_size": 8, "labels": 7}
    found = search(Toy(**sizes, end=-50.0, sharp=0.3), memory, lengths, ctc)
    assert [len(item[0].tokens) for item in found] == [5, 2]
    assert not any(item[0].stopped for item in found)
    willing = search(Toy(**sizes, end=50.0), memory, lengths, ctc)
    assert all(item[0].stopped for item in willing)


def test_an_end_that_is_impossible_is_survived() -> None:
    memory, lengths, _ = inputs(2, [10, 4])
    found = BeamSearch(beam_size=4, nbest=3)(Toy(seed=2, end=-INF), memory, lengths)
    assert [[len(one.tokens) for one in item] for item in found] == [[10] * 3, [4] * 3]
    assert all(not one.stopped and math.isfinite(one.score) for item in found for one in item)


def test_a_minimum_length_is_kept() -> None:
    memory, lengths, _ = inputs(2, [10, 4])
    decoder = Toy(seed=2, end=3.0)
    found = BeamSearch(beam_size=4, nbest=2, min_length_ratio=0.5)(decoder, memory, lengths)
    assert min(len(one.tokens) for one in found[0]) == 5
    assert min(len(one.tokens) for one in found[1]) == 2


def test_the_end_threshold_delays_the_end() -> None:
    """Hannun et al.: with 1.5, an end of probability 0.3 beside a label of 0.6 is too early."""

    class Fixed(Toy):
        def step(self, tokens: Tensor, fixed: Any, state: Any) -> StepOutput:
            likely = torch.tensor([0.4, 0.59, 0.01]).log()
            return StepOutput(likely.expand(*tokens.shape, 3), state, None)

    memory, lengths, _ = inputs(0, [3])
    decoder = Fixed(seed=0, vocab_size=3)
    first = BeamSearch(beam_size=2, max_length_ratio=1.0)(decoder, memory, lengths)[0][0]
    # log 0.4 = 1.74 log 0.59
    late = BeamSearch(beam_size=2, end_threshold=1.5)(decoder, memory, lengths)[0][0]
    soon = BeamSearch(beam_size=2, end_threshold=1.8)(decoder, memory, lengths)[0][0]
    assert (first.tokens, soon.tokens, late.tokens) == ([], [], [1, 1, 1])
    assert late.score == pytest.approx(3 * math.log(0.59) + math.log(0.4), abs=1e-5)
    assert soon.stopped
    assert not late.stopped


def test_all_candidates_are_the_whole_vocabulary() -> None:
    memory, lengths, ctc = inputs(3, [14, 11], vocab=20, labels=19)
    decoder, lm = Toy(seed=3, vocab_size=20, labels=19), language_model(5, vocab_size=20, labels=19)
    options: dict[str, Any] = {"ctc_weight": 0.3, "lm": lm, "lm_weight": 0.5, "nbest": 4}
    full = BeamSearch(beam_size=6, **options)(decoder, memory, lengths, ctc)
    for count in (19, 20, 500):
        some = BeamSearch(beam_size=6, num_candidates=count, **options)
        assert some(decoder, memory, lengths, ctc) == full


def test_candidates_are_the_best_labels_of_the_decoder() -> None:
    memory, lengths, ctc = inputs(3, [14, 11], vocab=20, labels=19)
    decoder, lm = Toy(seed=3, vocab_size=20, labels=19), language_model(5, vocab_size=20, labels=19)
    search = BeamSearch(
        beam_size=6, num_candidates=1, ctc_weight=0.1, lm=lm, lm_weight=0.2, length_bonus=9.0
    )
    for item, (best,) in enumerate(search(decoder, memory, lengths, ctc)):
        size = lengths[item].item()
        fixed, state = decoder.start(memory[item : item + 1, :size], lengths[item : item + 1])
        previous = 0
        for label in best.tokens:
            out = decoder.step(torch.tensor([[previous]]), fixed, state)
            assert label == out.log_probs[0, 0, 1:].argmax().item() + 1
            state, previous = out.state, label
        assert len(best.tokens) > 2


def test_frames_follow_the_attention_and_confidences_the_decoder() -> None:
    memory, lengths, _ = inputs(4, [12, 8])
    decoder = Toy(seed=4, sharp=1.0)
    for item, (best,) in enumerate(
        BeamSearch(beam_size=5, length_bonus=3.0)(decoder, memory, lengths)
    ):
        size = lengths[item].item()
        fixed, state = decoder.start(memory[item : item + 1, :size], lengths[item : item + 1])
        previous, peak, frames = 0, 0, []
        for label, sure in zip(best.tokens, best.confidences):
            out = decoder.step(torch.tensor([[previous]]), fixed, state)
            assert out.attention is not None
            peak = max(peak, out.attention[0, 0].argmax().item())
            frames.append(peak)
            assert sure == pytest.approx(out.log_probs[0, 0, label].exp().item(), abs=1e-5)
            state, previous = out.state, label
        assert len(best.tokens) > 2
        assert best.frames == frames
        assert all(a < b <= size for a, b in zip(best.frames, best.ends))


def test_without_attention_the_posteriors_place_the_labels() -> None:
    memory, lengths, ctc = inputs(5, [8])
    ctc = torch.full((1, 8, V), -9.0)
    ctc[0, torch.arange(8), torch.tensor([0, 0, 2, 2, 0, 1, 0, 0])] = 0.0
    decoder = Toy(seed=5, attends=False)
    found = BeamSearch(beam_size=5, ctc_weight=0.9)(decoder, memory, lengths, ctc.log_softmax(-1))
    assert (found[0][0].tokens, found[0][0].frames, found[0][0].ends) == ([2, 1], [2, 5], [4, 6])
    blind = BeamSearch(beam_size=5, length_bonus=9.0)(decoder, memory, lengths)[0][0]
    assert blind.frames == list(range(8))
    assert blind.ends == list(range(1, 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_posteriors(dtype: torch.dtype) -> None:
    memory, lengths, ctc = inputs(6, [12, 9])
    search = BeamSearch(beam_size=4, ctc_weight=0.5)
    decoder = Toy(seed=6)
    half = search(decoder, memory.to(dtype), lengths, ctc.to(dtype))
    rounded = search(decoder, memory.to(dtype).float(), lengths, ctc.to(dtype).float())
    assert flat(half) == flat(rounded)
    assert numbers(half) == pytest.approx(numbers(rounded), abs=1e-3)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"lm_weight": 0.5, "ctc_weight": 2.0}, ["lm_weight=0.5 without an lm", "got 2.0"]),
        ({"nbest": 5, "beam_size": 4, "max_length_ratio": 0.0}, ["nbest=5", "max_length_ratio"]),
        (
            {"ctc_weight": 1.0, "coverage_weight": 1.0, "end_threshold": 1.5, "num_candidates": 3},
            ["coverage_weight=1.0 needs", "end_threshold=1.5 needs", "num_candidates=3 needs"],
        ),
        ({"length_bonus": 1.0, "length_normalization": 1.0}, ["choose one"]),
        ({"num_candidates": 0, "end_threshold": 0.0}, ["num_candidates", "end_threshold"]),
        ({"lm_weight": -1.0, "coverage_weight": math.nan}, ["lm_weight", "coverage_weight"]),
        ({"min_length_ratio": 0.5, "max_length_ratio": 0.2}, ["0.5 and 0.2"]),
    ],
)  # fmt: skip
def test_options_that_contradict_are_told_together(
    options: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        BeamSearch(**options)
    for message in messages:
        assert message in str(error.value)


def test_a_beam_wider_than_the_vocabulary_is_refused() -> None:
    memory, lengths, _ = inputs(0, [5])
    with pytest.raises(ValueError, match="beam_size=41 is wider than the vocabulary of 40 labels"):
        BeamSearch(beam_size=41)(Toy(seed=0), memory, lengths)


class Pieces:
    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces


def test_a_foreign_language_model_is_refused() -> None:
    memory, lengths, _ = inputs(0, [5])
    lm = language_model(0, vocab_size=4)
    lm.tokenizer = Pieces(["<blank>", "A", "C", "D"])  # type: ignore[assignment]
    search = BeamSearch(beam_size=2, lm=lm, lm_weight=0.1)
    pieces = ["<blank>", "A", "B", *"abc"]
    message = "4 against 6 of the recogniser; label 2 is 'B' in the recogniser, 'C' in the lm"
    with pytest.raises(ValueError, match=message):
        search(Toy(seed=0, vocab_size=6), memory, lengths, pieces=pieces)
    with pytest.raises(ValueError, match=r"other labels: 4 against 4 .* label 2 is 'B'"):
        search(Toy(seed=0, vocab_size=4), memory, lengths, pieces=["<blank>", "A", "B", "D"])
    with pytest.raises(ValueError, match="4 against 40"):
        search(Toy(seed=0), memory, lengths)
    same = search(Toy(seed=0, vocab_size=4), memory, lengths, pieces=lm.tokenizer.pieces)
    assert len(same) == 1


def test_wrong_calls_are_told() -> None:
    memory, lengths, ctc = inputs(0, [5, 4])
    decoder = Toy(seed=0)
    with pytest.raises(ValueError, match="needs ctc_log_probs"):
        BeamSearch(ctc_weight=0.5)(decoder, memory, lengths)
    with pytest.raises(ValueError, match="needs a decoder"):
        BeamSearch(ctc_weight=0.5)(None, memory, lengths, ctc)
    with pytest.raises(ValueError, match="40 labels, but ctc_log_probs 39"):
        BeamSearch(ctc_weight=0.5)(decoder, memory, lengths, ctc[..., :39])
    with pytest.raises(ValueError, match=r"item 1: length 6 outside 0\.\.5"):
        BeamSearch()(decoder, memory, torch.tensor([5, 6]))
    with pytest.raises(ValueError, match=r"lengths \(B,\)"):
        BeamSearch()(decoder, memory, lengths[:1])
    with pytest.raises(ValueError, match="gives its attention"):
        BeamSearch(coverage_weight=1.0)(Toy(seed=0, attends=False), memory, lengths)
    memory[1] = math.nan
    for sizes in (lengths, torch.tensor([0, 4])):
        with pytest.raises(ValueError, match="item 1: the scores of label 1 are NaN"):
            BeamSearch()(decoder, memory, sizes)


def test_the_search_keeps_its_arguments_and_evaluates_its_lm() -> None:
    lm = language_model(0)
    lm.train()
    search = BeamSearch(beam_size=3, lm=lm, lm_weight=0.5, end_threshold=1.5)
    assert (search.beam_size, search.lm, search.lm_weight) == (3, lm, 0.5)
    assert not lm.training


# ---------------------------------------------------------------- the decoders of this package


def real_decoder(kind: str) -> nn.Module:
    torch.manual_seed(1)
    if kind == "transformer":
        return TransformerDecoder(
            vocab_size=12, memory_size=5, embed_dim=8, num_heads=2, num_layers=2,
            feedforward_size=16,
        ).eval()  # fmt: skip
    make = {"location": LocationContext, "additive": AdditiveContext}[kind]
    context = make(memory_size=5, query_size=16, attention_size=8)
    return RNNDecoder(
        vocab_size=12, memory_size=5, context=context, embed_dim=6, hidden_size=16
    ).eval()  # fmt: skip


def real_lm(kind: str) -> nn.Module:
    torch.manual_seed(2)
    tokenizer = CharTokenizer(symbols=list("ABCDEFGHIJK"))
    if kind == "transformer":
        return TransformerLanguageModel(
            tokenizer=tokenizer, embed_dim=8, num_heads=2, num_layers=1, feedforward_size=16
        )
    return LSTMLanguageModel(tokenizer=tokenizer, embed_dim=8, hidden_size=8, num_layers=1)


@pytest.mark.parametrize("kind", ["transformer", "location", "additive"])
def test_scores_are_those_of_teacher_forcing(kind: str) -> None:
    """Sums of steps, beams reordered many times, against one pass over the whole hypothesis."""
    decoder, lm = real_decoder(kind), real_lm(kind)
    for model in (decoder, lm):
        with torch.no_grad():
            model.get_parameter(next(n for n, p in model.named_parameters() if len(p) == 12)).mul_(
                5
            )
    memory, lengths, ctc = inputs(7, [24, 17], vocab=12, labels=11)
    search = BeamSearch(
        beam_size=6, nbest=6, ctc_weight=0.3, lm=lm, lm_weight=0.4, length_bonus=3.0
    )
    sizes = []
    for item, found in enumerate(search(decoder, memory, lengths, ctc, pieces=lm.tokenizer.pieces)):
        alone = slice(item, item + 1)
        for one in found:
            inputs_, targets = torch.tensor([[0, *one.tokens]]), torch.tensor([*one.tokens, 0])
            count = torch.tensor([len(targets)])
            with torch.no_grad():
                logits = decoder(inputs_, count, memory[alone], lengths[alone]).logits
                fluent = lm(inputs_, count)
            rows = torch.arange(len(targets))
            total = 0.7 * logits[0].log_softmax(-1)[rows, targets].sum().item()
            total += 0.4 * fluent[0].log_softmax(-1)[rows, targets].sum().item()
            loss = nn.functional.ctc_loss(
                ctc[item, : lengths[item], None].double(), torch.tensor([one.tokens]),
                lengths[alone], torch.tensor([len(one.tokens)]), reduction="sum",
            )  # fmt: skip
            total += 3.0 * len(one.tokens) - 0.3 * loss.item()
            assert one.score == pytest.approx(total, abs=1e-3)
            sizes.append(len(one.tokens))
    assert max(sizes) > 6
