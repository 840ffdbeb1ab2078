"""Losses of text to speech: brute force over alignments, padding, gradients, weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from speechkit.losses.ctc import ctc_forward_reference
from speechkit.losses.tts import (
    OnePassLoss,
    TransformerTTSLoss,
    binarization_loss,
    forward_sum_loss,
    mel_distance,
)
from speechkit.nn.acoustic_outputs import OnePassOutput, Prosody
from speechkit.nn.durations import alignment_matrix

FRAMES, SYMBOLS = torch.tensor([7, 5, 3]), torch.tensor([3, 1, 3])


def attention(garbage: float = 0.0) -> Tensor:
    """Log-probabilities ``(3, 8, 4)`` over each item's own symbols."""
    scores = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    for row, frames, symbols in zip(scores, FRAMES.tolist(), SYMBOLS.tolist()):
        row[:, symbols:] = -math.inf
        row[frames:] = garbage
    log_probs = scores.log_softmax(dim=2)
    log_probs[scores.isnan()] = math.nan
    return log_probs


def all_alignments(log_probs: Tensor) -> float:
    """Probability of all ways to cut the frames of one item ``(T, U)``."""
    frames, symbols = log_probs.shape
    total = 0.0
    for cuts in itertools.combinations(range(1, frames), symbols - 1):
        ends = [0, *cuts, frames]
        path = sum(float(log_probs[ends[u] : ends[u + 1], u].sum()) for u in range(symbols))
        total += math.exp(path)
    return total


def test_forward_sum_without_a_blank_is_the_sum_of_all_alignments() -> None:
    log_probs = attention()
    loss = forward_sum_loss(log_probs, FRAMES, SYMBOLS, blank_logit=-1e4)
    for i, (frames, symbols) in enumerate(zip(FRAMES.tolist(), SYMBOLS.tolist())):
        expected = -math.log(all_alignments(log_probs[i, :frames, :symbols])) / frames
        assert loss[i].item() == pytest.approx(expected, abs=1e-4)


def test_forward_sum_is_ctc_with_a_blank() -> None:
    log_probs = attention()
    loss = forward_sum_loss(log_probs, FRAMES, SYMBOLS)
    for i, (frames, symbols) in enumerate(zip(FRAMES.tolist(), SYMBOLS.tolist())):
        item = log_probs[i, :frames, :symbols]
        item = torch.cat([torch.full((frames, 1), -1.0), item], dim=1).log_softmax(dim=1)
        expected = ctc_forward_reference(
            item[None],
            torch.tensor([frames]),
            torch.arange(1, symbols + 1)[None],
            torch.tensor([symbols]),
        )
        assert loss[i].item() == pytest.approx(expected.item() / frames, abs=1e-5)


@pytest.mark.parametrize("garbage", [math.nan, 50.0])
def test_forward_sum_does_not_see_padding(garbage: float) -> None:
    plain, dirty = attention(), attention(garbage)
    plain.requires_grad_(), dirty.requires_grad_()
    expected = forward_sum_loss(plain, FRAMES, SYMBOLS)
    found = forward_sum_loss(dirty, FRAMES, SYMBOLS)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert bool(dirty.grad.isfinite().all())
    for grad, frames, symbols in zip(dirty.grad, FRAMES.tolist(), SYMBOLS.tolist()):
        assert float(grad[frames:].abs().sum()) == 0
        assert float(grad[:, symbols:].abs().sum()) == 0
        assert float(grad.abs().sum()) > 0


def test_binarization_is_the_best_path() -> None:
    durations = torch.tensor([[3, 3, 1, 0], [5, 0, 0, 0], [1, 1, 1, 0]])
    alignment = alignment_matrix(durations, 8)
    log_probs = attention(math.nan)
    loss = binarization_loss(log_probs, alignment)
    rows = [0, 0, 0, 1, 1, 1, 2]
    expected = -sum(float(log_probs[0, t, u]) for t, u in enumerate(rows)) / 7
    assert loss[0].item() == pytest.approx(expected, rel=1e-5)
    assert loss[1].item() == pytest.approx(0.0, abs=1e-6)  # one symbol: no doubt
    assert bool(loss.isfinite().all())


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_mel_distance_is_the_mean_of_the_own_frames(kind: str) -> None:
    estimate, target = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    estimate[1, 4:], target[1, 4:] = math.nan, math.inf
    found = mel_distance(estimate, target, torch.tensor([6, 4]), kind=kind)  # type: ignore[arg-type]
    difference = (estimate - target)[1, :4]
    expected = difference.abs().mean() if kind == "l1" else difference.square().mean()
    torch.testing.assert_close(found[1], expected)


def outputs(garbage: float) -> OnePassOutput:
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(3, 8, 5, generator=generator)
    values = torch.randn(4, 3, 4, generator=generator)
    for i, (frames, symbols) in enumerate(zip(FRAMES.tolist(), SYMBOLS.tolist())):
        mel[i, frames:] = garbage
        values[:, i, symbols:] = garbage
    durations = torch.tensor([[3, 3, 1, 0], [5, 0, 0, 0], [1, 1, 1, 0]])
    return OnePassOutput(
        mel=mel,
        log_attention=attention(garbage),
        alignment=alignment_matrix(durations, 8),
        log_durations=values[0],
        durations=durations,
        pitch=Prosody(values[1], values[2]),
        energy=Prosody(values[3], values[0]),
    )


def test_one_pass_loss_does_not_see_padding() -> None:
    mels = torch.randn(3, 8, 5)
    loss = OnePassLoss(binarization_start=0)
    expected = loss(outputs(0.0), mels, FRAMES, SYMBOLS)
    for i, frames in enumerate(FRAMES.tolist()):
        mels[i, frames:] = math.nan
    found = loss(outputs(math.nan), mels, FRAMES, SYMBOLS)
    assert found.keys() == expected.keys()
    assert {"mel", "alignment", "binarization", "duration", "pitch", "energy"} == set(found)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
        assert bool(value.isfinite().all()), name


def test_one_pass_loss_weighs() -> None:
    mels = torch.randn(3, 8, 5)
    weights = {
        "alignment_weight": 2.0,
        "binarization_weight": 3.0,
        "duration_weight": 5.0,
        "prosody_weight": 7.0,
    }
    ones = OnePassLoss(mel="l2", binarization_start=0, **dict.fromkeys(weights, 1.0))
    loss = OnePassLoss(mel="l2", binarization_start=0, **weights)
    plain = ones(outputs(0.0), mels, FRAMES, SYMBOLS)
    found = loss(outputs(0.0), mels, FRAMES, SYMBOLS)
    factors = {"mel": 1, "alignment": 2, "binarization": 3, "duration": 5, "pitch": 7, "energy": 7}
    for name, factor in factors.items():
        torch.testing.assert_close(found[name], factor * plain[name])
    durations = outputs(0.0)
    wrong = durations.log_durations[0, :3] - durations.durations[0, :3].float().log()
    torch.testing.assert_close(plain["duration"][0], wrong.square().mean())


def test_alignments_are_made_hard_after_so_many_updates() -> None:
    mels = torch.randn(3, 8, 5)
    full = OnePassLoss(binarization_start=0)(outputs(0.0), mels, FRAMES, SYMBOLS)["binarization"]
    assert float(full.sum()) > 0.01
    loss = OnePassLoss(binarization_start=3)
    for updates, on in ((0, False), (2, False), (3, True), (math.inf, True)):
        loss.updates = updates
        found = loss(outputs(0.0), mels, FRAMES, SYMBOLS)
        torch.testing.assert_close(found["binarization"], full * on)
    # By default it is none of the first updates', which would freeze wrong durations.
    assert float(OnePassLoss()(outputs(0.0), mels, FRAMES, SYMBOLS)["binarization"].sum()) == 0.0
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        OnePassLoss(binarization_start=-1)


def test_unknown_distances() -> None:
    with pytest.raises(ValueError, match="unknown distance 'l3'"):
        OnePassLoss(mel="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown distance 'l3'"):
        mel_distance(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1), kind="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown error 'l3'"):
        TransformerTTSLoss(mel="l3")  # type: ignore[arg-type]
