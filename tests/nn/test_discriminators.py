from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from speechkit.losses.adversarial import discriminator_loss
from speechkit.nn.discriminators import (
    Discriminators,
    Judgement,
    MultiScaleSTFTDiscriminator,
    SpectrogramDiscriminator,
    split_channels,
)
from speechkit.nn.discriminators_vocoder import (
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
    PeriodDiscriminator,
)

DAC = {"representation": "complex", "bands": (0.0, 0.25, 0.5, 1.0)}
MAKE: dict[str, Callable[[int], nn.Module]] = {
    "ms_stft": lambda c: MultiScaleSTFTDiscriminator(channels=c, num_filters=4, windows=(64, 32)),
    "period": lambda c: MultiPeriodDiscriminator(channels=c, periods=(2, 3), widths=(4, 6, 6)),
    "resolution": lambda c: MultiResolutionDiscriminator(
        channels=c, num_filters=4, resolutions=((64, 12, 50), (32, 10, 32))
    ),
    "dac": lambda c: MultiResolutionDiscriminator(
        channels=c, num_filters=4, resolutions=((64, 16, 64),), **DAC
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # On a busy machine the threads of tiny convolutions wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _make(kind: str, channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return MAKE[kind](channels)


def _valid(x: torch.Tensor, frames: torch.Tensor, row: int) -> torch.Tensor:
    return x[row : row + 1, :, : int(frames[row])]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", MAKE)
def test_each_item_is_judged_as_alone(kind: str, channels: int) -> None:
    judge = _make(kind, channels)
    lengths = torch.tensor([500, 333, 131, 7])  # the last is shorter than most frames
    batch = torch.randn(4, channels, 500)
    for row, length in enumerate(lengths.tolist()):
        batch[row, :, length:] = float("nan")
    together = judge(batch, lengths)
    assert together.frames is not None
    for row, length in enumerate(lengths.tolist()):
        alone = judge(batch[row : row + 1, :, :length])
        for k, logits in enumerate(together.logits):
            maps = [*together.features[k], logits]
            wants = [*alone.features[k], alone.logits[k]]
            assert len(maps) == len(wants) == len(together.frames[k])
            for got, want, frames in zip(maps, wants, together.frames[k]):
                torch.testing.assert_close(_valid(got, frames, row), want, atol=1e-5, rtol=1e-4)
                assert not got[row, :, int(frames[row]) :].any()


@pytest.mark.parametrize("kind", MAKE)
def test_full_lengths_change_nothing(kind: str) -> None:
    judge = _make(kind)
    x = torch.randn(2, 1, 400)
    with_lengths, without = judge(x, torch.tensor([400, 400])), judge(x)
    assert without.frames is None
    for got, want in zip(with_lengths.logits, without.logits):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", MAKE)
def test_an_empty_item_has_no_frames(kind: str) -> None:
    judgement = _make(kind)(torch.randn(2, 1, 300), torch.tensor([300, 0]))
    assert judgement.frames is not None
    assert all(int(frames[-1][1]) == 0 for frames in judgement.frames)
    assert all(not x[1].any() and bool(x.isfinite().all()) for x in judgement.logits)


@pytest.mark.parametrize("kind", MAKE)
def test_gradients_are_finite_on_silence(kind: str) -> None:
    judge = _make(kind)
    x = torch.zeros(1, 1, 300, requires_grad=True)
    total = sum(logits.sum() for logits in judge(x).logits)
    gradients = torch.autograd.grad(total, [x, *judge.parameters()])
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("kind", MAKE)
def test_a_few_steps_tell_tones_from_noise(kind: str) -> None:
    judge = _make(kind)
    generator = torch.Generator().manual_seed(1)
    time = torch.arange(128.0)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        pitch = 0.2 + 0.3 * torch.rand(4, 1, 1, generator=generator)
        return (pitch * time).sin(), 0.7 * torch.randn(4, 1, 128, generator=generator)

    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-2)
    for _ in range(25):
        tones, noise = batch()
        loss = discriminator_loss(judge(tones), judge(noise)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tones, noise = batch()

    def mean(judgement: Judgement) -> torch.Tensor:
        return torch.stack([x.flatten(1).mean(1) for x in judgement.logits]).mean(0)

    with torch.no_grad():
        assert mean(judge(tones)).min() > mean(judge(noise)).max()
    assert loss.item() < 1.0  # 2 where nothing is told apart


def test_sizes_are_those_published() -> None:
    def count(module: nn.Module) -> int:
        # Without the gains of weight norm, as the tables count.
        return sum(p.numel() for n, p in module.named_parameters() if "original0" not in n)

    # HiFi-GAN's multi-period discriminator: five times 8.22 M.
    with torch.device("meta"):
        period = PeriodDiscriminator(period=2)
    layers = [(1, 32, 5), (32, 128, 5), (128, 512, 5), (512, 1024, 5), (1024, 1024, 5)]
    want = sum(i * o * k + o for i, o, k in [*layers, (1024, 1, 3)])
    assert count(period) == want == 8_218_433
    # One scale of UnivNet's and of EnCodec's: 27 weights a filter, nine in the square layers.
    univnet = MultiResolutionDiscriminator(resolutions=((1024, 120, 600),))
    middle = 3 * (32 * 32 * 27 + 32) + (32 * 32 * 9 + 32) + (32 * 9 + 1)
    assert count(univnet) == 27 * 32 + 32 + middle
    assert count(MultiScaleSTFTDiscriminator()) == 5 * (2 * 27 * 32 + 32 + middle)


def test_every_convolution_has_weight_norm() -> None:
    for kind in MAKE:
        for module in _make(kind).modules():
            if isinstance(module, nn.Conv2d):
                assert nn.utils.parametrize.is_parametrized(module, "weight")


def test_columns_of_a_period_never_meet() -> None:
    judge = PeriodDiscriminator(period=4, widths=(3, 3))
    x = torch.randn(1, 1, 64)
    other = x.clone()
    other[..., 1::4] += 1.0
    changed = (judge(x).logits[0] != judge(other).logits[0]).any(2).flatten().tolist()
    assert changed == [False, True, False, False]


def test_bands_see_their_own_bins_alone() -> None:
    judge = SpectrogramDiscriminator(
        n_fft=64, hop_length=16, num_filters=3, bands=(0.0, 0.5, 1.0), dilations=(1,)
    )
    time = torch.arange(400.0)
    low = (0.2 * time).sin().view(1, 1, -1)
    both = low + (2.6 * time).sin()
    ours, theirs = (judge(x).features[0] for x in (low, both))
    difference = [(a - b).abs().max().item() for a, b in zip(ours, theirs)]
    assert len(difference) == 6
    assert max(difference[:3]) < 0.1 * min(difference[3:])


def test_the_level_of_noise_is_that_of_every_window() -> None:
    x = torch.randn(1, 1, 30000)
    for window in (128, 1024):
        judge = SpectrogramDiscriminator(n_fft=window, hop_length=window // 4)
        spectrum, _ = judge._spectrogram(x, torch.tensor([30000]))
        assert spectrum.shape[1] == 2
        assert spectrum.square().sum(1).mean().item() == pytest.approx(1.0, rel=0.1)


def test_stereo_is_judged_apart() -> None:
    judge = _make("ms_stft")
    x, lengths = torch.randn(2, 2, 300), torch.tensor([300, 200])
    apart = judge(*split_channels(x, lengths)).logits[0]
    right = judge(x[:, 1:], lengths).logits[0]
    torch.testing.assert_close(apart[1::2], right)


def test_under_autocast_the_spectrum_stays_float32() -> None:
    judge = _make("ms_stft")
    x = 1e-3 * torch.randn(1, 1, 300)
    want = judge(x).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = judge(x).logits
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours.float(), theirs, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpectrogramDiscriminator(n_fft=64, hop_length=0), "hop_length=0"),
        (lambda: SpectrogramDiscriminator(n_fft=64, hop_length=8, win_length=65), "win_length=65"),
        (lambda: SpectrogramDiscriminator(n_fft=64, hop_length=8, kernel_size=(3, 8)), "odd"),
        (lambda: SpectrogramDiscriminator(n_fft=64, hop_length=8, bands=(0.0, 0.5)), "bands"),
        (lambda: SpectrogramDiscriminator(n_fft=64, hop_length=8, bands=(0, 0.01, 1)), "bands"),
        (lambda: SpectrogramDiscriminator(n_fft=64, hop_length=8, representation="x"), "'x'"),
        (lambda: MultiScaleSTFTDiscriminator(windows=(30,)), "30"),
        (lambda: PeriodDiscriminator(period=0), "period=0"),
        (lambda: PeriodDiscriminator(period=2, kernel_size=4), "kernel_size=4"),
        (lambda: MultiPeriodDiscriminator(periods=()), "periods"),
        (lambda: MultiResolutionDiscriminator(resolutions=()), "resolutions"),
        (lambda: Discriminators(parts=[]), "parts"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", MAKE)
def test_a_wrong_shape_is_named(kind: str) -> None:
    for shape in ((2, 300), (1, 2, 300), (1, 1, 0)):
        with pytest.raises(ValueError, match="got shape"):
            _make(kind)(torch.zeros(shape))
