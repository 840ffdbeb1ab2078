"""CTC prefix scores against sums over all paths, and against the recurrence written as loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.decoding.ctc import collapse
from speechkit.decoding.ctc_prefix import CTCPrefixScorer
from speechkit.decoding.step_scorer import SearchBatch

INF = float("inf")


def posteriors(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
    return logits.log_softmax(-1)


def batch_of(log_probs: Tensor, lengths: list[int]) -> SearchBatch:
    memory = torch.zeros(*log_probs.shape[:2], 1)
    return SearchBatch(memory, torch.tensor(lengths), log_probs)


def walk(log_probs: Tensor, lengths: list[int], prefixes: Tensor) -> Tensor:
    """Scores (B, V) of what follows prefixes (B, U), taken label by label."""
    scorer = CTCPrefixScorer()
    fixed, state = scorer.start(batch_of(log_probs, lengths))
    tokens = torch.zeros(len(log_probs), 1, dtype=torch.int64)
    state = scorer.score(fixed, state, tokens, None, None).state
    for column in prefixes.T:
        tokens = column.unsqueeze(1)
        state = scorer.select(fixed, state, torch.zeros_like(tokens), tokens)
    return scorer.score(fixed, state, tokens, None, None).log_probs[:, 0]


def by_paths(log_probs: Tensor, prefix: tuple[int, ...]) -> tuple[float, list[float]]:
    """Probability of the prefix, and of each extension (of being all, at 0): sums over paths."""
    num_frames, vocab = log_probs.shape
    begins, follows = 0.0, [0.0] * vocab
    for path in itertools.product(range(vocab), repeat=num_frames):
        labels = tuple(collapse(path))
        mass = math.exp(sum(float(log_probs[t, c]) for t, c in enumerate(path)))
        if labels[: len(prefix)] == prefix:
            begins += mass
            follows[labels[len(prefix)] if len(labels) > len(prefix) else 0] += mass
    return begins, follows


def by_loops(log_probs: Tensor, prefix: tuple[int, ...]) -> list[float]:
    """Algorithm 2 of Watanabe et al. (2017), plainly: log psi of all extensions, end at 0."""
    num_frames, vocab = log_probs.shape
    p = log_probs.exp().tolist()
    ends_label, ends_blank = [0.0] * (num_frames + 1), [1.0] + [0.0] * num_frames
    for t in range(num_frames):
        ends_blank[t + 1] = ends_blank[t] * p[t][0]
    last = 0
    for label in prefix:
        new_label, new_blank = [0.0] * (num_frames + 1), [0.0] * (num_frames + 1)
        for t in range(num_frames):
            enter = ends_blank[t] + (0.0 if label == last else ends_label[t])
            new_label[t + 1] = (new_label[t] + enter) * p[t][label]
            new_blank[t + 1] = (new_blank[t] + new_label[t]) * p[t][0]
        ends_label, ends_blank, last = new_label, new_blank, label
    psi = [ends_label[-1] + ends_blank[-1]]
    for label in range(1, vocab):
        enters = [
            (ends_blank[t] + (0.0 if label == last else ends_label[t])) * p[t][label]
            for t in range(num_frames)
        ]
        psi.append(sum(enters))
    return psi


@pytest.mark.parametrize("prefix", [(), (1,), (2, 1), (1, 1), (2, 2, 1)])
@pytest.mark.parametrize("num_frames", [3, 5, 6])
def test_equals_the_sum_over_all_paths(prefix: tuple[int, ...], num_frames: int) -> None:
    log_probs = posteriors(num_frames, num_frames, 3)
    begins, follows = by_paths(log_probs, prefix)
    found = walk(log_probs[None], [num_frames], torch.tensor([prefix], dtype=torch.int64))[0]
    if begins == 0.0:  # more labels than frames
        assert (found == -INF).all()
        return
    expected = [math.log(mass / begins) if mass else -INF for mass in follows]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 30),
    st.integers(2, 7),
    st.lists(st.integers(1, 6), max_size=6),
    st.sampled_from([0.3, 1.0, 5.0]),
)
def test_equals_the_recurrence_in_loops(
    seed: int, num_frames: int, vocab: int, labels: list[int], scale: float
) -> None:
    prefix = tuple(1 + (label - 1) % (vocab - 1) for label in labels)
    log_probs = posteriors(seed, num_frames, vocab, scale=scale)
    expected = by_loops(log_probs, prefix)
    psi = sum(expected)
    found = walk(log_probs[None], [num_frames], torch.tensor([prefix], dtype=torch.int64))[0]
    if psi < 1e-280:  # the loops underflow
        return
    for mine, theirs in zip(found.tolist(), expected):
        assert math.exp(mine) == pytest.approx(theirs / psi, rel=1e-7, abs=1e-12)


def test_what_follows_is_certain() -> None:
    """Over 600 frames of sharp posteriors the extensions' probabilities still sum to 1."""
    log_probs = posteriors(0, 2, 600, 20, scale=30.0)
    for length in range(0, 40, 13):
        prefixes = posteriors(1, 2, length + 1, 19).argmax(-1)[:, :length] + 1
        total = walk(log_probs, [600, 444], prefixes).logsumexp(-1)
        assert total.tolist() == pytest.approx([0.0, 0.0], abs=1e-8)


@pytest.mark.parametrize("garbage", [0.0, -INF, INF, float("nan")])
def test_padding_changes_nothing(garbage: float) -> None:
    log_probs = posteriors(3, 2, 12, 5)
    prefixes = torch.tensor([[1, 1, 4], [2, 3, 2]])
    padded = log_probs.clone()
    padded[1, 7:] = garbage
    together = walk(padded, [12, 7], prefixes)
    for item, length in enumerate([12, 7]):
        alone = walk(log_probs[item : item + 1, :length], [length], prefixes[item : item + 1])
        torch.testing.assert_close(together[item], alone[0], atol=1e-10, rtol=0)


def test_a_finished_sequence_scores_its_ctc_probability() -> None:
    log_probs = posteriors(4, 1, 30, 6)
    labels = torch.tensor([[1, 5, 5, 2, 3]])
    scorer = CTCPrefixScorer()
    fixed, state = scorer.start(batch_of(log_probs, [30]))
    total, tokens = 0.0, torch.tensor([[0]])
    for label in [*labels[0].tolist(), 0]:
        total += scorer.score(fixed, state, tokens, None, None).log_probs[0, 0, label].item()
        tokens = torch.tensor([[label]])
        state = scorer.select(fixed, state, torch.zeros_like(tokens), tokens)
    loss = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), labels, torch.tensor([30]), torch.tensor([5]), reduction="sum"
    )
    assert total == pytest.approx(-loss.item(), abs=1e-8)


@pytest.mark.parametrize("count", [2, 8])  # rows of few candidates, and the whole product
def test_candidates_have_the_scores_of_all(count: int) -> None:
    log_probs = posteriors(5, 2, 20, 12)
    scorer = CTCPrefixScorer()
    fixed, state = scorer.start(batch_of(log_probs, [20, 15]))
    parents, tokens = torch.tensor([[0, 0], [0, 0]]), torch.tensor([[3, 7], [1, 2]])
    state = scorer.select(fixed, state, parents, tokens)
    some = torch.stack([torch.tensor([[0, 3, 5, 7, 1, 2, 4, 9][:count]] * 2)] * 2)
    full = scorer.score(fixed, state, tokens, None, None).log_probs
    partial = scorer.score(fixed, state, tokens, some, None).log_probs
    assert partial.shape == (2, 2, count)
    torch.testing.assert_close(partial, full.gather(-1, some))


def test_impossible_and_certain_labels_are_no_nan() -> None:
    sure = torch.full((1, 6, 3), -INF, dtype=torch.float64)
    sure[0, torch.arange(6), torch.tensor([0, 1, 1, 0, 2, 0])] = 0.0
    scores = walk(sure, [6], torch.tensor([[1, 2]]))[0]
    assert scores[0].item() == pytest.approx(0.0)
    assert (scores[1:] < -9000).all()
    assert not walk(sure, [6], torch.tensor([[2, 2]])).isnan().any()


def test_half_precision_is_computed_in_double() -> None:
    log_probs = posteriors(6, 1, 40, 8)
    prefixes = torch.tensor([[3, 2, 7]])
    found = walk(log_probs.half(), [40], prefixes)
    torch.testing.assert_close(found, walk(log_probs.half().double(), [40], prefixes))
    torch.testing.assert_close(found, walk(log_probs, [40], prefixes), atol=0.05, rtol=0)


def test_posteriors_are_needed() -> None:
    with pytest.raises(ValueError, match="ctc_log_probs"):
        CTCPrefixScorer().start(SearchBatch(torch.zeros(1, 2, 3), torch.tensor([2])))
