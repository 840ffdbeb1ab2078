"""Forced alignment against every path."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.decoding.alignment import forced_align
from speechkit.decoding.ctc import collapse


def random_log_probs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).double().mul(2).log_softmax(-1)


def best_path(log_probs: Tensor, labels: list[int], blank: int) -> tuple[float, tuple[int, ...]]:
    """Find the most probable of all paths (T, V) that collapse to the labels."""
    table = log_probs.tolist()
    paths = itertools.product(range(log_probs.shape[1]), repeat=len(table))
    return max(
        (sum(row[k] for row, k in zip(table, path)), path)
        for path in paths
        if collapse(path, blank=blank) == labels
    )


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("ranks", [[0], [0, 1], [0, 0], [1, 0, 1], [1, 1, 0]])
def test_equals_brute_force_viterbi(ranks: list[int], blank: int) -> None:
    labels = [[label for label in range(3) if label != blank][rank] for rank in ranks]
    for num_frames in range(4, 7):
        log_probs = random_log_probs(num_frames, 3, seed=num_frames)
        score, path = best_path(log_probs, labels, blank)
        one = forced_align(
            log_probs[None],
            torch.tensor([num_frames]),
            torch.tensor([labels]),
            torch.tensor([len(labels)]),
            blank=blank,
        )[0]
        assert one.tokens == labels
        assert one.score == pytest.approx(score, abs=1e-5)
        spans = []
        for label, run in itertools.groupby(enumerate(path), key=lambda pair: pair[1]):
            frames = [frame for frame, _ in run]
            if label != blank:
                spans.append((frames[0], frames[-1] + 1))
        assert list(zip(one.starts, one.ends)) == spans
        for (start, end), label, mean in zip(spans, labels, one.scores):
            assert mean == pytest.approx(log_probs[start:end, label].exp().mean().item(), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_padding_changes_nothing(seed: int) -> None:
    log_probs = random_log_probs(3, 12, 6, seed=seed)
    lengths, target_lengths = torch.tensor([12, 9, 4]), torch.tensor([4, 2, 0])
    targets = torch.randint(1, 6, (3, 4), generator=torch.Generator().manual_seed(seed))
    garbage = log_probs.clone()
    labels = targets.clone()
    for item, (frames, size) in enumerate(zip(lengths.tolist(), target_lengths.tolist())):
        garbage[item, frames:] = float("nan")
        labels[item, size:] = -1
    together = forced_align(garbage, lengths, labels, target_lengths)
    for item, (frames, size) in enumerate(zip(lengths.tolist(), target_lengths.tolist())):
        alone = forced_align(
            log_probs[item : item + 1, :frames],
            torch.tensor([frames]),
            targets[item : item + 1, :size],
            torch.tensor([size]),
        )
        assert alone == [together[item]]


def test_no_labels() -> None:
    log_probs = random_log_probs(1, 3, 4)
    none = torch.zeros(1, 0, dtype=torch.long)
    one = forced_align(log_probs, torch.tensor([3]), none, torch.tensor([0]))[0]
    assert one[:4] == ([], [], [], [])
    assert one.score == pytest.approx(log_probs[0, :, 0].sum().item())
    one = forced_align(log_probs, torch.tensor([0]), none, torch.tensor([0]))[0]
    assert one.score == 0.0


def test_half_precision() -> None:
    log_probs = random_log_probs(1, 8, 4)
    args = torch.tensor([8]), torch.tensor([[1, 2, 2]]), torch.tensor([3])
    one = forced_align(log_probs.half(), *args)[0]
    assert one.starts == forced_align(log_probs, *args)[0].starts


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1, 1, 2], r"item 1 \(second\): 3 labels need at least 4 frames .* but there are 3"),
        ([1, 2, 4], r"item 1 \(second\): label 4 must lie in 0..3"),
        ([1, 0, 2], r"label 0 must .* not be the blank \(0\)"),
    ],
)
def test_bad_labels(targets: list[int], message: str) -> None:
    log_probs = random_log_probs(2, 5, 4)
    with pytest.raises(ValueError, match=message):
        forced_align(
            log_probs,
            torch.tensor([5, 3]),
            torch.tensor([[1, 2, 3], targets]),
            torch.tensor([3, 3]),
            names=["first", "second"],
        )


def test_bad_log_probs_and_shapes() -> None:
    log_probs = random_log_probs(1, 5, 4)
    args = torch.tensor([5]), torch.tensor([[1, 2]]), torch.tensor([2])
    broken = log_probs.clone()
    broken[0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"item 0: .*NaN"):
        forced_align(broken, *args)
    impossible = log_probs.clone()
    impossible[0, :, 2] = -math.inf
    with pytest.raises(ValueError, match="item 0: no path"):
        forced_align(impossible, *args)
    with pytest.raises(ValueError, match=r"\(B, U\)"):
        forced_align(log_probs, args[0], torch.tensor([1, 2]), args[2])
    with pytest.raises(ValueError, match="lengths"):
        forced_align(log_probs, torch.tensor([5, 5]), *args[1:])
