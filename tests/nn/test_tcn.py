"""Conv-TasNet's mask network, its norms, and the shell around it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from speechkit.models.separator import Separator
from speechkit.nn.conv import depthwise_conv
from speechkit.nn.filterbank import FilterbankDecoder, FilterbankEncoder, overlap_add
from speechkit.nn.norm import CumulativeLayerNorm, GlobalLayerNorm
from speechkit.nn.shifts import PReLU, depthwise_by_shifts
from speechkit.nn.tcn import ConvTasNetMasker

LENGTHS = torch.tensor([401, 120, 0, 9, 1])


def _separator(*, causal: bool = False, kernel_size: int = 8, stride: int = 4) -> Separator:
    torch.manual_seed(3)
    geometry = {"num_filters": 12, "kernel_size": kernel_size, "stride": stride}
    masker = ConvTasNetMasker(
        num_features=12,
        num_sources=3,
        bottleneck_size=8,
        hidden_size=10,
        skip_size=6,
        num_blocks=3,
        num_repeats=2,
        causal=causal,
        mask="sigmoid",
    )
    return Separator(
        sample_rate=8000,
        encoder=FilterbankEncoder(**geometry),
        masker=masker,
        decoder=FilterbankDecoder(**geometry),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("geometry", [(8, 4), (5, 3), (4, 4)])
def test_padding_changes_nothing(causal: bool, geometry: tuple[int, int]) -> None:
    model = _separator(causal=causal, kernel_size=geometry[0], stride=geometry[1])
    batch = torch.randn(5, 401)
    for row, length in zip(batch, LENGTHS.tolist()):
        row[length:] = float("nan")
    out = model(batch, LENGTHS).estimates
    assert out.shape == (5, 3, 401)
    assert out.isfinite().all()
    for index, length in enumerate(LENGTHS.tolist()):
        assert (out[index, :, length:] == 0).all()
        if length:
            alone = model(batch[index : index + 1, :length], LENGTHS[index : index + 1]).estimates
            torch.testing.assert_close(out[index, :, :length], alone[0], atol=1e-5, rtol=1e-4)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_causal_model_hears_nothing_of_the_future() -> None:
    model = _separator(causal=True).eval()
    x = torch.randn(1, 400)
    y = x.clone()
    y[:, 200:] = torch.randn(200)
    first, second = (model(wave, torch.tensor([400])).estimates for wave in (x, y))
    # A frame's kernel reaches 7 samples ahead of its first one.
    torch.testing.assert_close(first[..., :193], second[..., :193])
    assert (first[..., 200:] - second[..., 200:]).abs().max() > 1e-3


def test_published_sizes() -> None:
    """Conv-TasNet: 5.1 million parameters (Luo and Mesgarani 2019, table II)."""
    model = Separator(
        sample_rate=8000,
        encoder=FilterbankEncoder(num_filters=512),
        masker=ConvTasNetMasker(num_features=512, num_sources=2),
        decoder=FilterbankDecoder(num_filters=512),
    )
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(5.1e6, rel=0.02)


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 11, 12, 13, 100])
def test_the_shell_alone_reaches_every_sample(samples: int) -> None:
    encoder = FilterbankEncoder(num_filters=8, kernel_size=8, stride=4, activation="none")
    decoder = FilterbankDecoder(num_filters=8, kernel_size=8, stride=4)
    with torch.no_grad():
        encoder.conv.weight.copy_(torch.eye(8).unsqueeze(1))
        decoder.conv.weight.copy_(torch.eye(8).unsqueeze(1))
    x = torch.randn(1, samples)
    frames, lengths = encoder(x, torch.tensor([samples]))
    assert lengths.tolist() == [frames.shape[1]]
    out = decoder(frames, samples)
    covered = decoder(encoder(torch.ones(1, samples), torch.tensor([samples])).data, samples)
    torch.testing.assert_close(out, x * covered)
    assert (covered >= 1).all()


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (7, 3), (5, 5), (4, 1)])
def test_overlap_add_is_the_transposed_convolution(size: int, stride: int) -> None:
    pieces = torch.randn(2, 6, size)
    expected = nn.functional.conv_transpose1d(
        pieces.transpose(1, 2), torch.eye(size).unsqueeze(1), stride=stride
    )
    torch.testing.assert_close(overlap_add(pieces, stride), expected.squeeze(1))


def test_parts_that_do_not_fit_are_named() -> None:
    parts = {
        "encoder": FilterbankEncoder(num_filters=8),
        "masker": ConvTasNetMasker(num_features=12, num_sources=2, num_blocks=1, num_repeats=1),
        "decoder": FilterbankDecoder(num_filters=8),
    }
    with pytest.raises(ValueError, match=r"'masker': 12"):
        Separator(sample_rate=8000, **parts)
    parts["masker"] = ConvTasNetMasker(num_features=8, num_sources=2, num_blocks=1, num_repeats=1)
    parts["decoder"] = FilterbankDecoder(num_filters=8, stride=4)
    with pytest.raises(ValueError, match="stride is 8 in the encoder and 4"):
        Separator(sample_rate=8000, **parts)
    with pytest.raises(ValueError, match="stride=9"):
        FilterbankEncoder(num_filters=8, kernel_size=8, stride=9)


def test_waveforms_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 30\)"):
        _separator()(torch.zeros(1, 2, 30), torch.tensor([30]))


@pytest.mark.parametrize("dilation", [1, 2, 5, 40])
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_shifts_are_the_convolution(dilation: int, taps: int) -> None:
    x = torch.randn(2, 30, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1, taps, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    half = dilation * (taps - 1) // 2
    expected = nn.functional.conv1d(
        x.transpose(1, 2), weight, bias, padding=half, dilation=dilation, groups=4
    ).transpose(1, 2)
    torch.testing.assert_close(depthwise_by_shifts(x, weight, bias, dilation), expected)
    torch.testing.assert_close(
        depthwise_conv(x, weight, bias, padding=half, dilation=dilation), expected
    )
    assert gradcheck(
        lambda *args: depthwise_by_shifts(*args, dilation), (x[:1, :8, :2], weight[:2], bias[:2])
    )


def test_prelu_is_torchs() -> None:
    ours, theirs = PReLU(), nn.PReLU()
    x = torch.randn(50, requires_grad=True)
    grads = [torch.autograd.grad(f(x).sin().sum(), (x, f.weight)) for f in (ours, theirs)]
    torch.testing.assert_close(grads[0], grads[1])
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("length", [20, 13])
def test_global_norm_is_group_norm(length: int) -> None:
    norm = GlobalLayerNorm(num_features=4)
    with torch.no_grad():
        norm.weight.uniform_()
        norm.bias.uniform_()
    x = torch.randn(1, 20, 4)
    x[:, length:] = 0
    lengths = None if length == 20 else torch.tensor([length])
    expected = nn.functional.group_norm(
        x[:, :length].transpose(1, 2), 1, norm.weight, norm.bias, eps=1e-8
    )
    torch.testing.assert_close(norm(x, lengths)[:, :length], expected.transpose(1, 2))


def test_cumulative_norm_is_the_papers() -> None:
    norm = CumulativeLayerNorm(num_features=3)
    x = torch.randn(2, 6, 3)
    out = norm(x)
    for frame in range(6):
        past = x[:, : frame + 1].flatten(1)
        mean, std = past.mean(1, keepdim=True), past.std(1, correction=0, keepdim=True)
        torch.testing.assert_close(out[:, frame], (x[:, frame] - mean) / std)


def test_checkpointing_gives_the_same_gradients() -> None:
    model = _separator()
    x = torch.randn(2, 100)
    grads = []
    for flag in (False, True):
        model.masker.checkpointing = flag
        model.zero_grad()
        model(x, torch.tensor([100, 60])).estimates.square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads):
        torch.testing.assert_close(plain, checkpointed)
