"""The loss of voice activity: levels, padding, shapes."""

from __future__ import annotations

import pytest
import torch

from speechkit.losses.voice_activity import activity_loss


def test_levels_are_at_least_so_many() -> None:
    speakers = torch.tensor([[0, 1, 2, 3]])
    right = torch.tensor([[[-9.0, -9.0], [9.0, -9.0], [9.0, 9.0], [9.0, 9.0]]])
    assert float(activity_loss(right, speakers, torch.tensor([4]))) < 1e-3
    for frame in range(4):
        for level in range(2):
            wrong = right.clone()
            wrong[0, frame, level] *= -1
            loss = float(activity_loss(wrong, speakers, torch.tensor([4])))
            assert loss == pytest.approx(9 / 8, abs=1e-2)


def test_padding_changes_nothing() -> None:
    logits, speakers = torch.randn(2, 6, 2, requires_grad=True), torch.randint(0, 3, (2, 6))
    lengths = torch.tensor([6, 4])
    alone = activity_loss(logits[1:, :4], speakers[1:, :4], torch.tensor([4]))
    with torch.no_grad():
        logits[1, 4:] = torch.nan
        speakers[1, 4:] = 9
    batch = activity_loss(logits, speakers, lengths)
    assert torch.allclose(batch[1], alone[0])
    batch.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad[1, 4:].abs().sum()) == 0.0
    assert activity_loss(logits, speakers, torch.tensor([0, 4]))[0] == 0.0


def test_shapes_that_disagree() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 3, 2\), \(1, 4\) and \(1,\)"):
        activity_loss(torch.zeros(1, 3, 2), torch.zeros(1, 4), torch.tensor([3]))
