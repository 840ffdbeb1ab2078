"""The loss of Tacotron 2 against its definition, item by item."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.losses.tacotron import TacotronLoss, guided_attention
from speechkit.nn.tacotron import TacotronOutput

MEL_LENGTHS = torch.tensor([7, 4])
STEPS = torch.tensor([4, 2])
TOKENS = torch.tensor([3, 2])


def batch() -> tuple[TacotronOutput, Tensor]:
    torch.manual_seed(0)
    outputs = TacotronOutput(
        coarse=torch.randn(2, 7, 3),
        mel=torch.randn(2, 7, 3),
        stop_logits=torch.randn(2, 4),
        alignment=torch.randn(2, 4, 3).softmax(dim=-1),
        step_lengths=STEPS,
    )
    return outputs, torch.randn(2, 7, 3)


@pytest.mark.parametrize("mel", ["l2", "l1", "both"])
def test_each_part_is_a_mean_over_the_items_own_frames(mel: Any) -> None:
    outputs, mels = batch()
    loss = TacotronLoss(
        mel=mel, stop_weight=3.0, stop_positive_weight=5.0, guided_weight=2.0, guided_sigma=0.4
    )
    parts = loss(outputs, mels, MEL_LENGTHS, TOKENS)
    assert list(parts) == ["mel_coarse", "mel", "stop", "guided"]
    for item, (frames, steps, symbols) in enumerate(zip(MEL_LENGTHS, STEPS, TOKENS)):
        for name, estimate in (("mel_coarse", outputs.coarse), ("mel", outputs.mel)):
            difference = estimate[item, :frames] - mels[item, :frames]
            squares, absolutes = difference.square().mean(), difference.abs().mean()
            want = {"l2": squares, "l1": absolutes, "both": squares + absolutes}[mel]
            torch.testing.assert_close(parts[name][item], want)
        stop = 0.0
        for step in range(steps):
            odds = outputs.stop_logits[item, step].sigmoid().item()
            stop -= 5.0 * math.log(odds) if step == steps - 1 else math.log(1.0 - odds)
        assert parts["stop"][item].item() == pytest.approx(3.0 * stop / steps.item(), rel=1e-5)
        far = 0.0
        for step in range(steps):
            for symbol in range(symbols):
                distance = symbol / symbols.item() - step / steps.item()
                weight = outputs.alignment[item, step, symbol].item()
                far += weight * (1.0 - math.exp(-(distance**2) / (2 * 0.4**2)))
        assert parts["guided"][item].item() == pytest.approx(2.0 * far / steps.item(), rel=1e-4)


def test_padding_changes_nothing() -> None:
    outputs, mels = batch()
    want = TacotronLoss()(outputs, mels, MEL_LENGTHS, TOKENS)
    leaves = [tensor.clone() for tensor in outputs[:4]]
    for tensor, length in zip(leaves, (4, 4, 2, 2)):
        tensor[1, length:] = float("nan")
    leaves[3][1, :, 2:] = float("nan")
    mels[1, 4:] = float("nan")
    for tensor in leaves:
        tensor.requires_grad_()
    garbage = TacotronOutput(leaves[0], leaves[1], leaves[2], leaves[3], STEPS)
    got = TacotronLoss()(garbage, mels, MEL_LENGTHS, TOKENS)
    for name, value in want.items():
        assert torch.equal(got[name], value), name
    torch.stack(list(got.values())).sum().backward()
    for tensor in leaves:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_the_guide_prefers_the_diagonal_at_any_length() -> None:
    sizes = torch.tensor([5, 20])
    straight = torch.zeros(2, 40, 20)
    for item, symbols in enumerate(sizes.tolist()):
        for step in range(2 * symbols):
            straight[item, step, step // 2] = 1.0
    along = guided_attention(straight, 2 * sizes, sizes)
    stuck = torch.zeros_like(straight)
    stuck[..., 0] = 1.0
    at_start = guided_attention(stuck, 2 * sizes, sizes)
    assert (along < 0.07).all()
    assert (at_start > 0.5).all()
    assert at_start[0].item() == pytest.approx(at_start[1].item(), abs=0.05)


def test_the_guide_can_be_turned_off_between_epochs() -> None:
    outputs, mels = batch()
    loss = TacotronLoss()
    loss.guided_weight = 0.0
    assert "guided" not in loss(outputs, mels, MEL_LENGTHS, TOKENS)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown error 'l3'"):
        TacotronLoss(mel="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma must be positive, not 0"):
        guided_attention(torch.rand(1, 2, 2), torch.tensor([2]), torch.tensor([2]), sigma=0.0)
