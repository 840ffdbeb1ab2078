"""The loss of classifiers against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from speechkit.losses.classification import classification_loss

torch.manual_seed(0)
LOGITS = torch.randn(5, 4)
LABELS = torch.tensor([0, 3, 2, 2, 1])
TARGETS = F.one_hot(LABELS, 4).float()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_label(smoothing: float) -> None:
    got = classification_loss(LOGITS, TARGETS, label_smoothing=smoothing)
    want = F.cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(got, want)
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0])
    got = classification_loss(LOGITS, TARGETS, weights=weights, label_smoothing=smoothing)
    want = F.cross_entropy(
        LOGITS, LABELS, reduction="none", label_smoothing=smoothing, weight=weights
    )
    torch.testing.assert_close(got, want)


def test_a_mixture_of_labels_is_the_mixture_of_losses() -> None:
    mixed = 0.7 * TARGETS + 0.3 * TARGETS.roll(1, 0)
    each = [classification_loss(LOGITS, t) for t in (TARGETS, TARGETS.roll(1, 0))]
    torch.testing.assert_close(classification_loss(LOGITS, mixed), 0.7 * each[0] + 0.3 * each[1])


def test_many_labels() -> None:
    targets = torch.randint(2, (5, 4)).float()
    got = classification_loss(LOGITS, targets, multi_label=True)
    want = F.binary_cross_entropy(LOGITS.sigmoid(), targets, reduction="none").mean(1)
    torch.testing.assert_close(got, want)
    weights = torch.full((4,), 2.0)
    got = classification_loss(LOGITS, torch.ones(5, 4), multi_label=True, weights=weights)
    torch.testing.assert_close(got, 2 * F.softplus(-LOGITS).mean(1))
    half = classification_loss(LOGITS, targets, multi_label=True, label_smoothing=0.5)
    middle = classification_loss(LOGITS, torch.full((5, 4), 0.5), multi_label=True)
    torch.testing.assert_close(half, (want + middle) / 2)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"got \(5, 4\) and \(5,\)"):
        classification_loss(LOGITS, LABELS)
    with pytest.raises(ValueError, match=r"4 labels, but weights \(3,\)"):
        classification_loss(LOGITS, TARGETS, weights=torch.ones(3))
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        classification_loss(LOGITS, TARGETS, label_smoothing=1.0)
