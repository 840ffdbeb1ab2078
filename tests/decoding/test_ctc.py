"""Greedy and prefix beam search against sums over all paths."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.decoding import prefix_beam
from speechkit.decoding.ctc import PrefixBeamSearch, collapse, greedy
from speechkit.decoding.hypothesis import Hypothesis
from speechkit.losses.ctc import ctc_loss

INF = float("inf")
NO_PRUNING = {"token_min_logp": -INF, "beam_prune_logp": -INF}


def random_log_probs(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator).double() * scale).log_softmax(-1)


def exhaustive(log_probs: Tensor, blank: int = 0) -> list[tuple[float, tuple[int, ...]]]:
    """Score every labeling by the sum over all of its paths, the best first."""
    totals: dict[tuple[int, ...], float] = defaultdict(float)
    table = log_probs.tolist()
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(table)):
        probability = math.exp(sum(row[k] for row, k in zip(table, path)))
        totals[tuple(collapse(path, blank=blank))] += probability
    return sorted(((math.log(p), labels) for labels, p in totals.items() if p > 0), reverse=True)


@pytest.fixture(params=["tuples", "arrays", "both"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the search keep to one form of its beam, or change between them as often as it can."""
    thresholds = {"tuples": (10**9, 10**9), "arrays": (0, 0), "both": (16, 15)}
    to_arrays, to_tuples = thresholds[request.param]
    monkeypatch.setattr(prefix_beam, "_TO_ARRAYS", to_arrays)
    monkeypatch.setattr(prefix_beam, "_TO_TUPLES", to_tuples)


def search_one(log_probs: Tensor, **options) -> list[Hypothesis]:
    return PrefixBeamSearch(**options)(log_probs[None], torch.tensor([len(log_probs)]))[0]


@pytest.mark.usefixtures("form")
class TestAgainstAllPaths:
    """Score and ranking equal the exhaustive sum where nothing is pruned."""

    @pytest.mark.parametrize("unit", ["prefix", "ending"])
    @pytest.mark.parametrize(("frames", "vocab", "blank"), [(5, 3, 0), (4, 4, 3), (6, 3, 1)])
    @pytest.mark.parametrize("scale", [0.3, 3.0])
    def test_equal(self, frames: int, vocab: int, blank: int, scale: float, unit: str) -> None:
        for seed in range(3):
            log_probs = random_log_probs(frames, vocab, seed=seed, scale=scale)
            expected = exhaustive(log_probs, blank)
            found = search_one(
                log_probs, beam_size=5000, nbest=5000, blank=blank, beam_unit=unit, **NO_PRUNING
            )
            assert [tuple(h.tokens) for h in found] == [labels for _, labels in expected]
            assert [h.score for h in found] == pytest.approx([s for s, _ in expected], abs=1e-9)

    def test_zero_probabilities(self) -> None:
        log_probs = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]).log().double()
        found = search_one(log_probs, beam_size=50, nbest=50, **NO_PRUNING)
        assert sorted(h.tokens for h in found) == [[1, 1], [1, 2, 1]]
        assert [h.score for h in found] == pytest.approx([math.log(0.5)] * 2)

    @pytest.mark.parametrize("unit", ["prefix", "ending"])
    def test_token_pruning_is_leaving_tokens_out(self, unit: str) -> None:
        log_probs = random_log_probs(5, 4, seed=1, scale=2.0)
        kept = (log_probs >= -2.0) | (log_probs == log_probs.amax(1, keepdim=True))
        expected = exhaustive(log_probs.masked_fill(~kept, -INF))
        found = search_one(
            log_probs,
            beam_size=500,
            nbest=500,
            token_min_logp=-2.0,
            beam_prune_logp=-INF,
            beam_unit=unit,
        )
        assert [h.score for h in found] == pytest.approx([s for s, _ in expected], abs=1e-9)
        assert [tuple(h.tokens) for h in found] == [labels for _, labels in expected]

    @pytest.mark.parametrize("scale", [0.5, 4.0])
    def test_forms_agree_on_long_input(self, scale: float) -> None:
        log_probs = random_log_probs(80, 12, seed=3, scale=scale)
        log_probs[20:30] = torch.tensor([0.0] + [-50.0] * 11).log_softmax(0)
        found = search_one(log_probs, beam_size=20, nbest=20)
        plain = plain_search(log_probs.numpy(), 20, -5.0, -10.0)
        assert [tuple(h.tokens) for h in found] == [labels for _, labels in plain]
        assert [h.score for h in found] == pytest.approx([s for s, _ in plain], abs=1e-8)

    def test_long_input_does_not_underflow(self) -> None:
        log_probs = random_log_probs(3000, 40, seed=5, scale=0.1)
        best = search_one(log_probs, beam_size=5, token_min_logp=-3.69)[0]
        assert math.isfinite(best.score)
        assert best.score < -3000


def plain_search(
    log_probs: np.ndarray, beam_size: int, token_min_logp: float, beam_prune_logp: float
) -> list[tuple[float, tuple[int, ...]]]:
    """Search as Hannun et al. (2014) write it, in logarithms, with dictionaries."""
    beam = {(): (0.0, -INF)}
    for row in log_probs:
        new: dict[tuple[int, ...], tuple[float, float]] = defaultdict(lambda: (-INF, -INF))
        for token in np.flatnonzero(row >= min(token_min_logp, row.max())).tolist():
            p = row[token]
            for prefix, (pb, pnb) in beam.items():
                both = np.logaddexp(pb, pnb)
                if token == 0:
                    b, nb = new[prefix]
                    new[prefix] = (np.logaddexp(b, both + p), nb)
                    continue
                repeats = prefix[-1:] == (token,)
                if repeats:
                    b, nb = new[prefix]
                    new[prefix] = (b, np.logaddexp(nb, pnb + p))
                b, nb = new[(*prefix, token)]
                gain = (pb if repeats else both) + p
                new[(*prefix, token)] = (b, np.logaddexp(nb, gain))
        totals = {prefix: np.logaddexp(*pair) for prefix, pair in new.items()}
        floor = max(totals.values()) + beam_prune_logp
        ranked = sorted((p for p in new if totals[p] >= floor), key=lambda p: -totals[p])
        beam = {prefix: new[prefix] for prefix in ranked[:beam_size]}
    return sorted(((float(np.logaddexp(*v)), k) for k, v in beam.items()), reverse=True)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    frames=st.integers(0, 30),
    vocab=st.integers(2, 8),
    beam_size=st.integers(1, 12),
    scale=st.sampled_from([0.2, 1.0, 5.0]),
    unit=st.sampled_from(["prefix", "ending"]),
)
def test_properties(
    seed: int, frames: int, vocab: int, beam_size: int, scale: float, unit: str
) -> None:
    log_probs = random_log_probs(frames, vocab, seed=seed, scale=scale)
    found = search_one(log_probs, beam_size=beam_size, nbest=beam_size, beam_unit=unit)
    assert 1 <= len(found) <= beam_size
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(h.tokens) for h in found}) == len(found)
    for h in found:
        assert len(h.tokens) == len(h.frames) == len(h.ends) == len(h.confidences)
        assert all(0 < token < vocab for token in h.tokens)
        assert all(a < b for a, b in zip(h.frames, h.frames[1:]))
        assert all(a < end for a, end in zip(h.frames, h.ends))
        assert all(end <= b for end, b in zip(h.ends, [*h.frames[1:], frames]))
        assert all(0 <= c <= 1 for c in h.confidences)
        # the beam only ever loses paths
        args = torch.tensor([frames]), torch.tensor([[*h.tokens, 1]]), torch.tensor([len(h.tokens)])
        if frames:
            assert h.score <= -ctc_loss(log_probs[None], *args).item() + 1e-6


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.3, 2.0, 6.0]))
def test_padding_changes_nothing(seed: int, scale: float) -> None:
    lengths = torch.tensor([17, 0, 9])
    log_probs = random_log_probs(3, 17, 5, seed=seed, scale=scale)
    garbage = torch.cat([log_probs, log_probs], dim=1)
    for item, length in enumerate(lengths.tolist()):
        garbage[item, length:] = float("nan")
    search = PrefixBeamSearch(beam_size=6, nbest=4)
    for decode in (search, greedy):
        alone = [
            decode(log_probs[i : i + 1, :n], torch.tensor([n]))[0]  # type: ignore[operator]
            for i, n in enumerate(lengths.tolist())
        ]
        assert decode(garbage, lengths) == alone  # type: ignore[operator]


def test_repeats_need_a_blank() -> None:
    for path, labels in (
        ([1, 1, 1], [1]),
        ([1, 0, 1], [1, 1]),
        ([0, 0, 0], []),
        ([2, 1, 1], [2, 1]),
    ):
        log_probs = torch.full((1, 3, 3), -30.0)
        log_probs[0, range(3), path] = 0.0
        assert greedy(log_probs, torch.tensor([3]))[0].tokens == labels
        for beam_size in (1, 4):
            search = PrefixBeamSearch(beam_size=beam_size)
            assert search(log_probs, torch.tensor([3]))[0][0].tokens == labels


def test_greedy_times_and_confidence() -> None:
    probs = torch.tensor(
        [
            [0.9, 0.05, 0.05],
            [0.2, 0.7, 0.1],
            [0.05, 0.9, 0.05],
            [0.6, 0.3, 0.1],
            [0.1, 0.1, 0.8],
            [0.7, 0.1, 0.2],
        ]
    )
    best = greedy(probs.log()[None], torch.tensor([6]))[0]
    assert (best.tokens, best.frames, best.ends) == ([1, 2], [1, 4], [3, 5])
    assert best.confidences == pytest.approx([0.9, 0.8])
    assert best.score == pytest.approx(math.log(0.9 * 0.7 * 0.9 * 0.6 * 0.8 * 0.7), abs=1e-5)
    beam = search_one(probs.log(), beam_size=10)[0]
    assert (beam.tokens, beam.frames, beam.ends) == (best.tokens, best.frames, best.ends)
    assert beam.confidences == pytest.approx(best.confidences)


@pytest.mark.parametrize("beam_size", [1, 10, 100])
def test_confident_posteriors_give_the_greedy_result(beam_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 120, 20, generator=generator)
    path = torch.randint(20, (4, 40), generator=generator).repeat_interleave(3, dim=1)
    logits.scatter_add_(2, path[..., None], torch.full((4, 120, 1), 14.0))
    lengths = torch.tensor([120, 90, 31, 3])
    log_probs = logits.log_softmax(-1)
    search = PrefixBeamSearch(beam_size=beam_size)
    for best, found in zip(greedy(log_probs, lengths), search(log_probs, lengths)):
        assert found[0].tokens == best.tokens
        assert found[0].frames == best.frames
        assert found[0].ends == best.ends
        assert found[0].confidences == pytest.approx(best.confidences)
        assert found[0].score >= best.score - 1e-6


@pytest.mark.parametrize("unit", ["prefix", "ending"])
def test_ties_do_not_widen_the_beam(unit: str) -> None:
    log_probs = torch.full((60, 7), 1 / 7).log()
    found = search_one(log_probs, beam_size=9, nbest=9, beam_unit=unit)
    assert len(found) <= 9


class Bonus:
    """Rewards label 1 after label 2, costs each token, and ends of 1; the state is the prefix."""

    def start(self) -> tuple[int, ...]:
        return ()

    def gain(self, state: tuple[int, ...], token: int) -> float:
        return -0.3 + 1.7 * (state[-1:] == (2,) and token == 1) - 0.2 * len(state)

    def score(self, states, tokens) -> np.ndarray:
        return np.array([[self.gain(state, int(token)) for token in tokens] for state in states])

    def extend(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*state, int(token))

    def finish(self, state: tuple[int, ...]) -> float:
        return -0.5 if state[-1:] == (1,) else 0.0


@pytest.mark.parametrize("unit", ["prefix", "ending"])
def test_scorer_adds_to_every_prefix(unit: str) -> None:
    bonus = Bonus()
    for seed in range(3):
        log_probs = random_log_probs(5, 3, seed=seed)
        expected = []
        for score, labels in exhaustive(log_probs):
            gains = sum(bonus.gain(labels[:i], label) for i, label in enumerate(labels))
            expected.append((score + gains + bonus.finish(labels), labels))
        expected.sort(reverse=True)
        found = search_one(
            log_probs, beam_size=500, nbest=500, scorer=bonus, beam_unit=unit, **NO_PRUNING
        )
        assert [tuple(h.tokens) for h in found] == [labels for _, labels in expected]
        assert [h.score for h in found] == pytest.approx([s for s, _ in expected], abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size"),
        ({"beam_size": 2, "nbest": 3}, "nbest=3"),
        ({"token_min_logp": 1.0}, "at most 0"),
        ({"beam_prune_logp": float("nan")}, "at most 0"),
        ({"beam_unit": "word"}, "'word'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixBeamSearch(**options)


def test_bad_input() -> None:
    log_probs = random_log_probs(2, 4, 3)
    for decode in (greedy, PrefixBeamSearch()):
        with pytest.raises(ValueError, match="item 1: length 5 outside"):
            decode(log_probs, torch.tensor([4, 5]))
        with pytest.raises(ValueError, match=r"\(B, T, V\)"):
            decode(log_probs[0], torch.tensor([4]))
        broken = log_probs.clone()
        broken[1, 2, 1] = float("nan")
        with pytest.raises(ValueError, match="item 1, frame 2"):
            decode(broken, torch.tensor([4, 4]))
    with pytest.raises(ValueError, match="blank=3"):
        greedy(log_probs, torch.tensor([4, 4]), blank=3)


def test_half_precision_and_no_frames() -> None:
    log_probs = random_log_probs(1, 6, 4, scale=6.0)
    lengths = torch.tensor([6])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert (
            greedy(log_probs.to(dtype), lengths)[0].tokens == greedy(log_probs, lengths)[0].tokens
        )
        assert PrefixBeamSearch()(log_probs.to(dtype), lengths)[0][0].tokens
    none = torch.tensor([0])
    assert greedy(log_probs, none) == [Hypothesis([], 0.0, [], [], [])]
    assert PrefixBeamSearch()(log_probs, none) == [[Hypothesis([], 0.0, [], [], [])]]
