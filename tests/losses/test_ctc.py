"""CTC loss: torch's kernel, the written-out recursion and the sum over all paths agree."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.decoding.ctc import collapse
from speechkit.losses.ctc import ctc_forward_reference, ctc_loss, min_frames


def random_log_probs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).mul(2).log_softmax(-1)


def random_batch(seed: int, *, vocab: int = 6, blank: int = 0) -> tuple[Tensor, ...]:
    """Three items of unequal lengths; labels with repeats; the last item has no labels."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = random_log_probs(3, 14, vocab, seed=seed)
    labels = [label for label in range(vocab) if label != blank][:3]
    picks = torch.randint(len(labels), (3, 5), generator=generator)
    targets = torch.tensor(labels)[picks]
    return log_probs, torch.tensor([14, 11, 7]), targets, torch.tensor([5, 3, 0])


def brute_force(log_probs: Tensor, labels: list[int], blank: int = 0) -> float:
    """Sum over every path of (T, V) that collapses to the labels."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if collapse(path, blank=blank) == labels:
            total += math.exp(sum(float(log_probs[t, k]) for t, k in enumerate(path)))
    return total


@pytest.mark.parametrize("blank", [0, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_reference_equals_torch_with_gradient(seed: int, blank: int) -> None:
    log_probs, lengths, targets, target_lengths = random_batch(seed, blank=blank)
    gradients, losses = [], []
    for function in (ctc_loss, ctc_forward_reference):
        logits = log_probs.clone().requires_grad_()
        loss = function(logits.log_softmax(-1), lengths, targets, target_lengths, blank=blank)
        (loss * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        losses.append(loss.detach())
        gradients.append(logits.grad)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("function", [ctc_loss, ctc_forward_reference])
@pytest.mark.parametrize("labels", [[], [1], [1, 1], [1, 2], [2, 1, 2], [1, 1, 1], [2, 2, 1]])
def test_equals_sum_over_all_paths(function, labels: list[int]) -> None:
    for num_frames in range(1, 6):
        log_probs = random_log_probs(num_frames, 3, seed=num_frames)
        targets = torch.tensor([[*labels, 1]])
        loss = function(
            log_probs[None], torch.tensor([num_frames]), targets, torch.tensor([len(labels)])
        )
        probability = brute_force(log_probs, labels)
        assert loss.neg().exp().item() == pytest.approx(probability, abs=1e-12)
        assert (probability > 0) == (num_frames >= min_frames(labels))


def test_probabilities_of_all_labelings_sum_to_one() -> None:
    log_probs = random_log_probs(4, 3)
    total = 0.0
    for length in range(5):
        for labels in itertools.product([1, 2], repeat=length):
            args = torch.tensor([4]), torch.tensor([[*labels, 1]]), torch.tensor([length])
            total += ctc_loss(log_probs[None], *args).neg().exp().item()
    assert total == pytest.approx(1.0)


@given(path=st.lists(st.integers(0, 3), max_size=12))
def test_collapse_rule(path: list[int]) -> None:
    labels = collapse(path)
    assert 0 not in labels
    assert min_frames(labels) <= len(path)
    spread = [frame for label in labels for frame in (label, 0)]
    assert collapse(spread) == labels
    assert collapse([frame for frame in path for _ in range(2)]) == labels


def test_a_certain_path_costs_nothing() -> None:
    path = [0, 1, 1, 0, 1, 2]
    log_probs = torch.full((1, 6, 3), -40.0)
    log_probs[0, range(6), path] = 0.0
    args = torch.tensor([6]), torch.tensor([[1, 1, 2]]), torch.tensor([3])
    assert ctc_loss(log_probs, *args).item() == pytest.approx(0.0, abs=1e-5)
    wrong = torch.tensor([6]), torch.tensor([[1, 2]]), torch.tensor([2])
    assert ctc_loss(log_probs, *wrong).item() > 30


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), extra=st.integers(1, 6))
def test_padding_changes_nothing(seed: int, extra: int) -> None:
    log_probs, lengths, targets, target_lengths = random_batch(seed)
    together = ctc_loss(log_probs, lengths, targets, target_lengths)
    garbage = torch.cat([log_probs, torch.full((3, extra, 6), float("nan"))], dim=1)
    for item, length in enumerate(lengths.tolist()):
        garbage[item, length:] = float("nan")
    labels = torch.cat([targets, torch.full((3, extra), -7)], dim=1)
    for item, length in enumerate(target_lengths.tolist()):
        labels[item, length:] = 99
    padded = garbage.requires_grad_()
    loss = ctc_loss(padded, lengths, labels, target_lengths)
    torch.testing.assert_close(loss, together, atol=1e-4, rtol=0)
    loss.sum().backward()
    for item, (frames, size) in enumerate(zip(lengths.tolist(), target_lengths.tolist())):
        alone = ctc_loss(
            log_probs[item : item + 1, :frames],
            torch.tensor([frames]),
            targets[item : item + 1, :size],
            torch.tensor([size]),
        )
        torch.testing.assert_close(alone[0], together[item], atol=1e-4, rtol=0)
        assert padded.grad is not None
        assert (padded.grad[item, frames:] == 0).all()
        assert padded.grad[item, :frames].isfinite().all()


def test_too_few_frames_cost_infinity() -> None:
    args = torch.tensor([2]), torch.tensor([[1, 1]]), torch.tensor([2])
    for function in (ctc_loss, ctc_forward_reference):
        assert function(random_log_probs(1, 2, 3), *args).item() == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    log_probs, *args = random_batch(0)
    loss = ctc_loss(log_probs.to(dtype), *args)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.shape == (3,)


def test_min_frames() -> None:
    assert [min_frames(x) for x in ([], [1], [1, 2], [1, 1], [3, 3, 3, 1])] == [0, 1, 2, 3, 6]
    assert min_frames(torch.tensor([1, 1])) == 3
    assert min_frames(torch.zeros(0, dtype=torch.long)) == 0


def test_no_items_and_no_frames() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    assert ctc_loss(torch.zeros(0, 4, 3), empty, torch.zeros(0, 2).long(), empty).shape == (0,)
    lengths = torch.zeros(2).long()
    loss = ctc_loss(torch.zeros(2, 0, 3), lengths, torch.tensor([[1], [1]]), torch.tensor([0, 1]))
    assert loss.tolist() == [0.0, math.inf]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.tensor([[1, 0]])}, "item 0: label 0 at 1"),
        ({"targets": torch.tensor([[1, 3]])}, "label 3 at 1 must lie in 0..2"),
        ({"targets": torch.tensor([[-1, 1]])}, "label -1"),
        ({"targets": torch.tensor([1, 2])}, "targets \\(B, U\\)"),
        ({"lengths": torch.tensor([5])}, "exceed the padded sizes 4 and 2"),
        ({"target_lengths": torch.tensor([3])}, "exceed the padded sizes"),
        ({"lengths": torch.tensor([4, 4])}, "1 items in log_probs"),
        ({"blank": 3}, "blank=3 lies outside"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    args = {
        "log_probs": random_log_probs(1, 4, 3),
        "lengths": torch.tensor([4]),
        "targets": torch.tensor([[1, 2]]),
        "target_lengths": torch.tensor([2]),
    }
    for function in (ctc_loss, ctc_forward_reference):
        with pytest.raises(ValueError, match=message):
            function(**(args | change))
