"""Sequence cross-entropy: against torch's own, and what padding may not do."""

import pytest
import torch
import torch.nn.functional as F

from speechkit.losses.cross_entropy import sequence_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equals_torch(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    lengths = torch.tensor([5, 2, 0])
    losses = sequence_cross_entropy(logits, targets, lengths, label_smoothing=smoothing)
    for i, size in enumerate(lengths.tolist()):
        expected = F.cross_entropy(
            logits[i, :size], targets[i, :size], reduction="sum", label_smoothing=smoothing
        )
        torch.testing.assert_close(losses[i], expected)


def test_padding_means_nothing() -> None:
    logits, targets = torch.randn(2, 4, 3), torch.randint(0, 3, (2, 4))
    lengths = torch.tensor([4, 2])
    clean = sequence_cross_entropy(logits, targets, lengths)
    logits[1, 2:], targets[1, 2:] = float("nan"), 99
    dirty = logits.clone().requires_grad_()
    losses = sequence_cross_entropy(dirty, targets, lengths)
    torch.testing.assert_close(losses, clean)
    losses.sum().backward()
    assert dirty.grad is not None
    assert torch.isfinite(dirty.grad[:, :2]).all()


def test_half_precision_is_summed_in_float32() -> None:
    logits = torch.randn(1, 200, 50).bfloat16()
    targets, lengths = torch.randint(0, 50, (1, 200)), torch.tensor([200])
    losses = sequence_cross_entropy(logits, targets, lengths)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, sequence_cross_entropy(logits.float(), targets, lengths))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_refuses_a_wrong_smoothing(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        sequence_cross_entropy(
            torch.zeros(1, 1, 2), torch.zeros(1, 1).long(), torch.ones(1).long(),
            label_smoothing=smoothing,
        )  # fmt: skip
