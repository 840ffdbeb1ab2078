"""Separating files and tensors, short and long: order of speakers, seams, rates, bad input."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor, nn

import speechkit
from speechkit.data.audio import read_audio_channels, resample, to_mono, write_audio
from speechkit.data.manifest import DataError
from speechkit.models.recording import Recording, count_clipped
from speechkit.models.separate import Sources
from speechkit.models.separator import Separator
from speechkit.models.source_joining import MixtureGains, match_order
from speechkit.nn.filterbank import FilterbankDecoder, FilterbankEncoder
from speechkit.nn.tcn import ConvTasNetMasker

RATE = 8000
SIZE = 16


class FixedMasker(nn.Module):
    """Masks that are the same for all frames; ``swaps`` says which calls exchange the sources."""

    def __init__(self, masks: Tensor, swaps: bool = False, gains: bool = False) -> None:
        super().__init__()
        self.num_sources, self.num_features = masks.shape
        self.masks = masks
        self.swaps = swaps
        self.gains = gains
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        assert not self.training
        self.calls.append(tuple(x.shape[:2]))
        masks = self.masks.roll(len(self.calls) - 1, 0) if self.swaps else self.masks
        if self.gains:
            masks = masks * torch.tensor([1.0, 30.0]).unsqueeze(1)
        return masks[None, :, None].expand(len(x), -1, x.shape[1], -1)


def bands(num_sources: int, **options: bool) -> Separator:
    """Make a model that splits into bands of frequency, exactly, frame by frame."""
    n = torch.arange(SIZE, dtype=torch.float64)
    basis = (math.pi / SIZE * (n + 0.5) * n[:, None]).cos() * math.sqrt(2 / SIZE)
    basis[0] /= math.sqrt(2)
    masks = torch.zeros(num_sources, SIZE)
    for source in range(num_sources):
        masks[source, source * SIZE // num_sources : (source + 1) * SIZE // num_sources] = 1
    shape = {"num_filters": SIZE, "kernel_size": SIZE, "stride": SIZE}
    model = Separator(
        sample_rate=RATE,
        encoder=FilterbankEncoder(**shape, activation="none"),  # type: ignore[arg-type]
        masker=FixedMasker(masks, **options),
        decoder=FilterbankDecoder(**shape),
    )
    with torch.no_grad():
        model.encoder.conv.weight.copy_(basis.unsqueeze(1))  # type: ignore[union-attr, operator]
        model.decoder.conv.weight.copy_(basis.unsqueeze(1))  # type: ignore[union-attr, operator]
    return model


def conv_tasnet(num_sources: int = 2) -> Separator:
    torch.manual_seed(0)
    return Separator(
        sample_rate=RATE,
        encoder=FilterbankEncoder(num_filters=12),
        masker=ConvTasNetMasker(
            num_features=12,
            num_sources=num_sources,
            bottleneck_size=6,
            hidden_size=8,
            skip_size=6,
            num_blocks=2,
            num_repeats=1,
        ),
        decoder=FilterbankDecoder(num_filters=12),
    ).eval()


def noise(seconds: float, rate: int = RATE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(seconds * rate), generator=generator)


def one(result: Sources | list[Sources]) -> Tensor:
    assert isinstance(result, Sources)
    return result.estimates


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("num_sources", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_swap_in_every_window_is_undone(num_sources: int, batch_size: int) -> None:
    mixture = noise(12.3)
    whole = one(bands(num_sources).separate(mixture, RATE, window=100.0))
    model = bands(num_sources, swaps=True)
    joined = one(model.separate(mixture, RATE, window=2.0, batch_size=batch_size))
    assert len(model.masker.calls) == 8 // batch_size  # type: ignore[arg-type]
    assert torch.allclose(joined, whole, atol=1e-5)
    assert torch.allclose(whole.sum(0), mixture, atol=1e-5)


def test_without_joining_the_swaps_would_be_heard() -> None:
    mixture = noise(12.3)
    model = bands(2, swaps=True)
    blind = torch.cat([model.eval()(x[None], torch.tensor([len(x)])).estimates[0]
                       for x in mixture.split(2 * RATE)], dim=1)  # fmt: skip
    whole = one(bands(2).separate(mixture, RATE, window=100.0))
    assert not torch.allclose(blind, whole, atol=1e-2)


def test_estimates_of_very_different_levels_keep_their_order() -> None:
    mixture = noise(9.0)
    model = bands(2, swaps=True, gains=True)
    joined = one(model.separate(mixture, RATE, window=2.0))
    whole = one(bands(2).separate(mixture, RATE, window=100.0))
    for source, truth in zip(joined, whole):
        assert torch.cosine_similarity(source, truth, dim=0) > 0.6


def test_leakage_is_not_taken_for_the_speaker() -> None:
    speaker, other = noise(0.5), 1e-4 * noise(0.5, seed=1)
    before = torch.stack([speaker, 0.02 * speaker + other])
    after = torch.stack([0.015 * speaker - other, 0.9 * speaker])
    assert match_order(before, after, torch.tensor([0, 1])).tolist() == [1, 0]
    assert match_order(before, after.flip(0), torch.tensor([0, 1])).tolist() == [0, 1]


def test_an_output_that_is_always_louder_does_not_decide_alone() -> None:
    one_speaker = noise(0.5)
    other = 0.3 * one_speaker + noise(0.5, seed=1)  # alike, by chance
    before = torch.stack([30 * one_speaker, other])
    after = torch.stack([30 * other, one_speaker])
    assert match_order(before, after, torch.tensor([0, 1])).tolist() == [1, 0]


def test_who_is_silent_stays_in_place_where_the_others_leave_one() -> None:
    loud, faint = noise(0.5), 1e-5 * torch.stack([noise(0.5, seed=i) for i in (1, 2)])
    before = torch.stack([loud, *faint])
    assert match_order(before, torch.stack([loud, *faint.flip(0)]), torch.arange(3)).tolist() == [
        0, 1, 2,
    ], "what is 80 dB below the loudest is no evidence"  # fmt: skip
    moved = torch.stack([*faint, loud])
    assert match_order(before, moved, torch.arange(3)).tolist() == [2, 1, 0]


@pytest.mark.parametrize("last", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
def test_the_order_stays_where_sources_are_silent(last: list[int]) -> None:
    order = torch.tensor(last)
    before = torch.stack([noise(0.5, seed=i) for i in range(3)])
    silence = torch.zeros_like(before)
    assert match_order(before, silence, order).tolist() == last
    assert match_order(silence, before, order).tolist() == last
    assert match_order(before, before[[2, 0, 1]], order, silent=True).tolist() == last
    raw = torch.empty_like(before)
    raw[order] = before  # the network's order has not changed
    for silent in range(3):  # one that falls silent does not confuse the two others
        after = raw.clone()
        after[silent] = 1e-6 * noise(0.5, seed=9)
        assert match_order(before, after, order).tolist() == last


def test_a_silent_overlap_keeps_the_networks_order() -> None:
    mixture = noise(5.0)
    mixture[int(1.4 * RATE) : int(2.1 * RATE)] = 0.0  # all of an overlap
    whole = one(bands(2).separate(mixture, RATE, window=100.0))
    joined = one(bands(2).separate(mixture, RATE, window=2.0))
    assert torch.allclose(joined, whole, atol=1e-5)


# ---------------------------------------------------------------- seams and lengths


@pytest.mark.parametrize("window", [0.51, 1.0, 2.345])
def test_a_local_network_gives_what_the_whole_gives(window: float) -> None:
    torch.manual_seed(3)
    model = Separator(
        sample_rate=RATE,
        encoder=FilterbankEncoder(num_filters=SIZE, kernel_size=32, stride=10),
        masker=FixedMasker(torch.rand(3, SIZE)),
        decoder=FilterbankDecoder(num_filters=SIZE, kernel_size=32, stride=10),
    )
    mixture = noise(6.0)
    whole = one(model.separate(mixture, RATE, window=100.0))
    model.masker.calls.clear()  # type: ignore[operator, union-attr]
    cut = one(model.separate(mixture, RATE, window=window, overlap=window / 3))
    assert len(model.masker.calls) > 2  # type: ignore[arg-type]
    assert torch.allclose(cut, whole, atol=1e-5)
    direct = model.eval()(mixture[None], torch.tensor([len(mixture)])).estimates[0]
    assert torch.equal(whole, direct), "one window is the network's output, in no other scale"


def test_every_length_around_a_window_is_whole() -> None:
    model, mixture = bands(2), noise(4.0)
    step, size = round(1.5 * RATE), 2 * RATE
    for length in [1, 2, 15, 17, *(n + d for n in (size, size + step) for d in (-1, 0, 1, 15))]:
        found = one(model.separate(mixture[:length], RATE, window=2.0))
        assert torch.allclose(found.sum(0), mixture[:length], atol=1e-5), length
        assert found.shape == (2, length)


def test_the_stream_gives_what_separate_gives(tmp_path: Path) -> None:
    model = conv_tasnet()
    write_audio(tmp_path / "a.wav", noise(7.3, 11025), 11025, subtype="FLOAT")
    scales = ("none", "mixture")
    for scale in scales:
        whole = one(model.separate(tmp_path / "a.wav", window=2.0, scale=scale))  # type: ignore
        blocks = list(model.separate_stream(tmp_path / "a.wav", window=2.0, scale=scale))  # type: ignore
        assert len(blocks) > 3
        assert torch.allclose(torch.cat(blocks, dim=1), whole, atol=1e-6)


def test_a_stream_reads_no_further_than_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_audio(tmp_path / "a.wav", noise(60.0), RATE)
    read: list[int] = []
    channels = Recording._channels

    def spy(self: Recording):  # type: ignore[no-untyped-def]
        for block in channels(self):
            read.append(block.shape[1])
            yield block

    monkeypatch.setattr(Recording, "_channels", spy)
    model = bands(2)
    stream = model.separate_stream(tmp_path / "a.wav", window=3.0)
    assert not read
    assert next(stream).shape[0] == 2
    assert sum(read) <= 20 * RATE
    assert max(frames for _, frames in model.masker.calls) <= 3 * RATE // SIZE  # type: ignore
    rest = sum(block.shape[1] for block in stream)
    assert rest < 60 * RATE == sum(read)


# ---------------------------------------------------------------- rates, channels, scale


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 44101, 6000])
def test_any_rate_comes_back_with_its_samples(rate: int) -> None:
    for samples in (rate, rate + 1, 3 * rate + 17):
        mixture = noise(samples / rate, rate)
        found = one(bands(2).separate(mixture, rate, window=1.0))
        assert found.shape == (2, samples)
    time = torch.arange(2 * rate) / rate
    tone = 0.5 * (2 * math.pi * 440 * time).sin()
    found = one(bands(2).separate(tone, rate, window=0.7))
    middle = slice(rate // 4, -rate // 4)
    assert torch.allclose(found.sum(0)[middle], tone[middle], atol=2e-3)


def test_windows_at_another_rate_are_the_whole_resampled() -> None:
    model, mixture = bands(2), noise(5.0, 22050)
    low = one(model.separate(resample(mixture, 22050, RATE), RATE, window=100.0))
    expected = resample(low, RATE, 22050)[:, : len(mixture)]
    assert torch.allclose(one(model.separate(mixture, 22050, window=1.3)), expected, atol=1e-5)


def test_channels_are_averaged_and_files_are_tensors(tmp_path: Path) -> None:
    model = conv_tasnet()
    stereo = torch.stack([noise(1.0), noise(1.0, seed=1)])
    write_audio(tmp_path / "a.flac", stereo, RATE)
    written, _ = read_audio_channels(tmp_path / "a.flac")
    integers = (written * 32768).to(torch.int16)
    found = model.separate([tmp_path / "a.flac", written, integers, to_mono(written)], RATE)
    assert isinstance(found, list)
    for item in found:
        assert item.sample_rate == RATE
        assert torch.allclose(item.estimates, found[0].estimates, atol=1e-6)
    assert model.separate([]) == []


def test_mixture_scale_is_least_squares() -> None:
    mixture = noise(6.0)
    model = conv_tasnet()
    raw = one(model.separate(mixture, RATE, window=2.0))
    scaled = one(model.separate(mixture, RATE, window=2.0, scale="mixture"))
    gains = torch.linalg.lstsq(raw.T.double(), mixture.double()[:, None]).solution
    assert torch.allclose(scaled, raw * gains.float(), atol=1e-5)
    louder = bands(2, gains=True)
    found = one(louder.separate(mixture, RATE, window=100.0, scale="mixture"))
    assert torch.allclose(found.sum(0), mixture, atol=1e-5)


def test_gains_of_a_silent_source_are_zero() -> None:
    gains = MixtureGains(2)
    x = noise(1.0)
    list(gains.watch([torch.stack([torch.zeros_like(x), 4 * x, x])]))
    assert torch.allclose(gains.solve(), torch.tensor([[0.0], [0.25]]))


def test_enhance_gives_one_waveform(tmp_path: Path) -> None:
    mixture = noise(3.0, 16000)
    write_audio(tmp_path / "a.wav", mixture, 16000, subtype="FLOAT")
    model = conv_tasnet(1)
    found = model.enhance([tmp_path / "a.wav", mixture], 16000, window=1.0)
    assert isinstance(found, list)
    expected = one(model.separate(mixture, 16000, window=1.0))[0]
    for item in found:
        assert item.sample_rate == 16000
        assert torch.allclose(item.waveform, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"gives 2 sources.*call separate"):
        conv_tasnet(2).enhance(mixture, 16000)


# ---------------------------------------------------------------- bad input


def test_silence_gives_silence() -> None:
    for model in (conv_tasnet(), conv_tasnet(1)):
        for scale in ("none", "mixture"):
            found = one(model.separate(torch.zeros(3 * RATE), RATE, window=1.0, scale=scale))  # type: ignore
            assert torch.equal(found, torch.zeros(model.num_sources, 3 * RATE))


def test_a_clipped_mixture_is_warned_of_once(tmp_path: Path) -> None:
    mixture = 20 * noise(2.5)
    write_audio(tmp_path / "a.wav", torch.stack([mixture, torch.zeros_like(mixture)]), RATE)
    clipped = count_clipped(read_audio_channels(tmp_path / "a.wav")[0])
    assert clipped > 2000
    stream = bands(2).separate_stream(tmp_path / "a.wav", window=1.0, scale="mixture")
    with pytest.warns(UserWarning, match=rf"a\.wav: .*% of the samples \({clipped}\)") as caught:
        blocks = list(stream)
    assert len(caught) == 1
    assert all(bool(block.isfinite().all()) for block in blocks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        peak = noise(1.0)
        bands(2).separate(peak / peak.abs().max(), RATE)  # normalised, not clipped


def test_files_at_fault_are_named(tmp_path: Path) -> None:
    model = bands(2)
    empty, header, nan = (tmp_path / f"{name}.wav" for name in ("empty", "header", "nan"))
    empty.write_bytes(b"")
    soundfile.write(header, torch.zeros(0).numpy(), RATE)
    bad = noise(12.0)
    bad[-5] = math.nan
    soundfile.write(nan, bad.numpy(), RATE, subtype="FLOAT")
    for path, message in (
        (empty, "empty"),
        (header, "no samples"),
        (nan, "NaN or infinite"),
        (tmp_path / "gone.wav", "no such audio file"),
    ):
        with pytest.raises(DataError, match=rf"{path.name}.*{message}"):
            model.separate([noise(1.0), path], RATE)
    with pytest.raises(DataError, match=r"item 1 of the list: .*NaN"):
        model.separate([noise(1.0), bad], RATE)
    with pytest.raises(DataError, match="the tensor: the waveform holds no samples"):
        model.separate(torch.zeros(0), RATE)


def test_tensors_and_options_that_cannot_be() -> None:
    model = bands(2)
    for rate in (None, 0):
        with pytest.raises(ValueError, match="does not say its sampling rate"):
            model.separate(noise(1.0), rate)
    with pytest.raises(ValueError, match=r"\(100, 2\); transpose"):
        model.separate(torch.zeros(100, 2), RATE)
    with pytest.raises(TypeError, match="got int"):
        model.separate(3, RATE)  # type: ignore[arg-type]
    for options in ({"overlap": 0.0}, {"overlap": 11.0}, {"window": 0.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="at most half of the window"):
            model.separate_stream(noise(1.0), RATE, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown scale 'loud'"):
        model.separate(noise(1.0), RATE, scale="loud")  # type: ignore[arg-type]


def test_the_mode_stays_and_the_result_can_be_trained_on() -> None:
    model = conv_tasnet().train()
    found = one(model.separate(noise(0.1), RATE))
    assert model.training
    assert model.masker.training  # type: ignore[union-attr]
    weight = torch.ones(1, requires_grad=True)
    (found * weight).sum().backward()
    assert weight.grad is not None


def test_a_saved_model_separates_alike_in_a_fresh_process(tmp_path: Path) -> None:
    model = conv_tasnet()
    speechkit.save(model, tmp_path / "model")
    torch.save(noise(3.0, 16000), tmp_path / "x.pt")
    script = (
        "import sys, torch, speechkit; folder = sys.argv[1]\n"
        "model = speechkit.load(folder + '/model')\n"
        "found = model.separate(torch.load(folder + '/x.pt'), 16000, window=1.0)\n"
        "torch.save(found.estimates, folder + '/y.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    expected = one(model.separate(noise(3.0, 16000), 16000, window=1.0))
    assert torch.allclose(torch.load(tmp_path / "y.pt"), expected, atol=1e-6)
