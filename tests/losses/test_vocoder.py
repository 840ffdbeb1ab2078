"""Losses of vocoders: values by hand, padding, gradients, plain weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speechkit.features.spectrum import LogMel
from speechkit.losses.vocoder import MelL1Loss, MultiResolutionSTFTLoss, WeightedSum

MAKE: dict[str, Callable[[], nn.Module]] = {
    "mel": lambda: MelL1Loss(
        log_mel=LogMel(sample_rate=8000, n_fft=128, hop_length=32, num_mels=20)
    ),
    "stft": lambda: MultiResolutionSTFTLoss(resolutions=((128, 30, 100), (64, 16, 64))),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKE)
def test_padding_changes_nothing(kind: str) -> None:
    loss = MAKE[kind]()
    lengths = torch.tensor([700, 333, 5])
    pair = [0.1 * torch.randn(3, 1, 700) for _ in range(2)]
    for x in pair:
        for row, size in enumerate(lengths.tolist()):
            x[row, :, size:] = float("nan")
    estimate, target = pair[0].requires_grad_(), pair[1]
    together = loss(estimate, target, lengths)
    assert together.shape == (3,)
    for row, size in enumerate(lengths.tolist()):
        alone = loss(estimate[row : row + 1, :, :size], target[row : row + 1, :, :size],
                     lengths[row : row + 1])  # fmt: skip
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)
    together.sum().backward()
    assert estimate.grad is not None
    assert estimate.grad.isfinite().all()
    assert not estimate.grad[1, :, 333:].any()


@pytest.mark.parametrize("kind", MAKE)
def test_equal_signals_have_no_distance_nor_gradient_beyond_bounds(kind: str) -> None:
    loss = MAKE[kind]()
    x = 0.1 * torch.randn(2, 1, 500)
    estimate = x.clone().requires_grad_()
    value = loss(estimate, x, torch.tensor([500, 500]))
    assert value.tolist() == [0.0, 0.0]
    value.sum().backward()
    assert estimate.grad is not None
    assert estimate.grad.isfinite().all()
    silent = loss(torch.zeros_like(x), torch.zeros_like(x), torch.tensor([500, 500]))
    assert silent.tolist() == [0.0, 0.0]


def test_gain_by_hand() -> None:
    x, lengths = 0.1 * torch.randn(1, 1, 2000), torch.tensor([2000])
    # A gain g: the convergence is 1 - g, the mean of logarithms |log g|.
    value = MultiResolutionSTFTLoss()(0.5 * x, x, lengths)
    assert value.item() == pytest.approx(0.5 + 0.6931, abs=0.01)
    features = LogMel(sample_rate=22050, num_mels=20, n_fft=1024, hop_length=256, power=1.0)
    assert MelL1Loss(log_mel=features)(0.5 * x, x, lengths).item() == pytest.approx(
        0.6931, abs=1e-3
    )


def test_channels_are_compared_apart() -> None:
    loss, lengths = MultiResolutionSTFTLoss(), torch.tensor([2000])
    x = 0.1 * torch.randn(1, 2, 2000)
    y = torch.stack([x[:, 0], 0.5 * x[:, 1]], dim=1)
    want: Tensor = loss(y[:, 1:], x[:, 1:], lengths) / 2
    torch.testing.assert_close(loss(y, x, lengths), want)


@pytest.mark.parametrize("kind", MAKE)
def test_shapes_that_disagree(kind: str) -> None:
    loss = MAKE[kind]()
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(1, 1, 50), torch.zeros(1, 1, 49), torch.tensor([50]))
    with pytest.raises(ValueError, match=r"lengths \(B,\) for B=1"):
        loss(torch.zeros(1, 1, 50), torch.zeros(1, 1, 50), torch.tensor([50, 50]))
    with pytest.raises(ValueError, match="at least one resolution"):
        MultiResolutionSTFTLoss(resolutions=())


def test_plain_weights() -> None:
    x = torch.tensor([[1.0], [-2.0]], requires_grad=True)
    total = WeightedSum(weights={"a": 45.0, "b": 2.0, "c": 1.0})
    value = total.loss({"a": x.abs().flatten(), "b": x.square().flatten()}, x)
    assert value.tolist() == [47.0, 98.0]
    value.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [49.0, -53.0]
    total.load_state_dict(total.state_dict())
    with pytest.raises(ValueError, match=r"losses \['d'\] given"):
        total.loss({"d": x.flatten()}, x)
    with pytest.raises(ValueError, match="one of them above"):
        WeightedSum(weights={"a": 0.0})
