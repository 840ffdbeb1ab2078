"""The detector of speech and overlap: padding, windows, thresholds, a folder, bad parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speechkit
from speechkit.data.audio import write_audio
from speechkit.data.errors import DataError
from speechkit.features.normalize import GlobalNorm
from speechkit.features.spectrum import LogMel
from speechkit.models.voice_activity import VoiceActivity, frame_regions
from speechkit.nn.conv import ConvEncoder
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack
from speechkit.speakers.activity import open_detectors

RATE = 8000


def features() -> LogMel:
    return LogMel(sample_rate=RATE, n_fft=200, hop_length=80, num_mels=12, floor=1e-6)


def detector(*, recurrent: bool = True, strides: tuple[int, ...] = (2,)) -> VoiceActivity:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        ConvEncoder(input_size=12, channels=(8,) * len(strides), strides=strides)
    ]
    if recurrent:
        layers.append(RecurrentEncoder(input_size=8, hidden_size=6, num_layers=1))
    model = VoiceActivity(
        features=features(),
        norm=GlobalNorm(num_features=12),
        encoder=Stack(layers),
        sample_rate=RATE,
    )
    model.norm(torch.randn(1, 500, 12) * 3 - 5, torch.tensor([500]))  # type: ignore[misc]
    return model.eval()


def by_loudness() -> VoiceActivity:
    """Give a detector that knows what it is about: speech is loud, overlap is louder."""
    encoder = ConvEncoder(input_size=12, channels=(1,), strides=(1,), kernel_size=1)
    block: Any = encoder.blocks[0]
    block.conv.weight.data.fill_(1 / 12)
    block.conv.bias.data.zero_()
    block.norm = nn.Identity()
    block.activation = nn.Identity()
    model = VoiceActivity(features=features(), encoder=encoder, sample_rate=RATE)
    model.head.weight.data.fill_(4.0)
    sound, size = torch.cat([steps(0.2), steps(1.0)]).view(2, -1), torch.tensor([RATE, RATE])
    thresholds = model.features(sound, size).data.mean(dim=(1, 2))
    model.head.bias.data.copy_(-4.0 * thresholds)
    return model.eval()


def steps(*levels: float) -> torch.Tensor:
    """Give a second of noise for each level."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([level * torch.randn(RATE, generator=generator) for level in levels])


def test_padding_changes_nothing() -> None:
    model = detector()
    waveform = torch.randn(3, 4000)
    lengths = torch.tensor([4000, 2500, 81])
    alone = [model(x[None, :n], torch.tensor([n])) for x, n in zip(waveform, lengths)]
    for row, length in zip(waveform, lengths):
        row[length:] = torch.nan
    with torch.no_grad():
        logits, frames = model(waveform, lengths)
    assert frames.tolist() == model.num_frames(lengths).tolist() == [26, 16, 1]
    for own, one, count in zip(logits, alone, frames.tolist()):
        assert torch.allclose(own[:count], one.data[0], atol=1e-5)
        assert float(own[count:].abs().sum()) == 0.0


@pytest.mark.parametrize("strides", [(1,), (2,), (2, 2)])
def test_windows_are_joined_where_they_have_context(strides: tuple[int, ...]) -> None:
    """Whatever sees less than half of the overlap gives what it gives for the whole."""
    model = detector(recurrent=False, strides=strides)
    waveform = torch.randn(round(9.37 * RATE))
    whole = model.probabilities(waveform, RATE, window_seconds=60.0)
    once, frames = model(waveform[None], torch.tensor([len(waveform)]))
    assert torch.allclose(whole, once[0].sigmoid(), atol=1e-6)
    assert len(whole) == int(frames)
    for window, batch_size in ((2.0, 8), (1.3, 2), (4.0, 1)):
        cut = model.probabilities(
            waveform, RATE, window_seconds=window, overlap_seconds=0.8, batch_size=batch_size
        )
        assert cut.shape == whole.shape
        assert torch.allclose(cut, whole, atol=1e-5)


def test_recurrent_windows_are_near_the_whole() -> None:
    model = detector()
    waveform = torch.randn(10 * RATE)
    whole = model.probabilities(waveform, RATE)
    near = model.probabilities(waveform, RATE, window_seconds=4.0, overlap_seconds=3.0)
    far = model.probabilities(waveform, RATE, window_seconds=4.0, overlap_seconds=0.0)
    assert float((near - whole).abs().max()) < 1e-3
    assert float((far - whole).abs().max()) > 10 * float((near - whole).abs().max())


def test_regions_of_both_levels() -> None:
    model = by_loudness()
    waveform = steps(0, 0.3, 0, 0.3, 3.0, 0.3)
    speech, overlap = model.activity(waveform, RATE), model.overlap(waveform, RATE)
    assert [value for span in speech for value in span] == pytest.approx([1, 2, 3, 6], abs=0.03)
    assert [value for span in overlap for value in span] == pytest.approx([4, 5], abs=0.03)
    assert model.regions(waveform, RATE) == speech
    doubled = nn.functional.interpolate(waveform[None, None], scale_factor=2)[0, 0]
    again = model.regions(doubled, 2 * RATE)
    assert torch.allclose(torch.tensor(again), torch.tensor(speech), atol=0.03)
    assert model.activity(torch.zeros(RATE), RATE) == []
    assert model.activity(steps(3.0)[:60], RATE) == [(0.0, 60 / RATE)]


def test_options_of_regions() -> None:
    model = by_loudness()
    waveform = steps(0, 0.3, 0, 0.3, 0)
    waveform[round(2.05 * RATE) : round(2.95 * RATE)] = 0.3 * torch.randn(round(0.9 * RATE))
    assert len(model.regions(waveform, RATE, min_silence=0.01)) == 3
    assert len(model.regions(waveform, RATE, min_silence=0.2)) == 1
    assert model.regions(waveform, RATE, min_speech=4.0) == []
    ((start, end),) = model.regions(waveform, RATE, pad=0.5)
    assert (start, end) == pytest.approx((0.5, 4.5), abs=0.03)
    # Speech that goes on more softly: it would not begin so, but does not end either.
    soft = steps(0, 0.3, 0.12, 0)
    ((_, short),) = model.regions(soft, RATE, onset=0.9, offset=0.9)
    ((_, held),) = model.regions(soft, RATE, onset=0.9, offset=0.001)
    assert short == pytest.approx(2.0, abs=0.05)
    assert held == pytest.approx(3.0, abs=0.05)


def test_a_folder_opens_as_detectors(tmp_path: Path) -> None:
    model = detector()
    write_audio(tmp_path / "a.wav", torch.randn(3 * RATE).clamp(-1, 1), RATE, subtype="FLOAT")
    want = model.probabilities(tmp_path / "a.wav")
    speechkit.save(model, tmp_path / "model")
    opened = speechkit.load(tmp_path / "model")
    assert isinstance(opened, VoiceActivity)
    assert torch.allclose(opened.probabilities(tmp_path / "a.wav"), want, atol=1e-6)
    found = open_detectors(tmp_path / "model")
    waveform = torch.randn(RATE)
    assert found.activity(waveform, RATE) == model.activity(waveform, RATE)
    assert found.overlap is not None
    assert found.overlap(waveform, RATE) == model.overlap(waveform, RATE)
    speech = VoiceActivity(
        features=features(),
        encoder=RecurrentEncoder(input_size=12, hidden_size=4, num_layers=1),
        num_levels=1,
        sample_rate=RATE,
    )
    speechkit.save(speech, tmp_path / "speech")
    assert open_detectors(tmp_path / "speech").overlap is None


def test_the_mode_stays() -> None:
    model = detector().train()
    model.probabilities(torch.randn(RATE))
    assert model.training


def test_what_cannot_be() -> None:
    model = detector()
    encoder = RecurrentEncoder(input_size=9, hidden_size=4, num_layers=1)
    with pytest.raises(ValueError, match="features gives 12 values and encoder takes 9"):
        VoiceActivity(features=features(), encoder=encoder, sample_rate=RATE)
    encoder = RecurrentEncoder(input_size=12, hidden_size=4, num_layers=1)
    with pytest.raises(ValueError, match="sample_rate is 16000, the features' 8000"):
        VoiceActivity(features=features(), encoder=encoder)
    with pytest.raises(ValueError, match="num_levels must be at least 1, is 0"):
        VoiceActivity(features=features(), encoder=encoder, num_levels=0, sample_rate=RATE)
    with pytest.raises(ValueError, match="level must be from 1 to 2, is 3"):
        model.regions(torch.randn(RATE), level=3)
    with pytest.raises(ValueError, match="offset must be at most onset"):
        model.regions(torch.randn(RATE), onset=0.2, offset=0.5)
    with pytest.raises(ValueError, match="overlap_seconds < window_seconds"):
        model.probabilities(torch.randn(RATE), window_seconds=1.0, overlap_seconds=1.0)
    with pytest.raises(DataError, match="no samples"):
        model.activity(torch.zeros(0), RATE)
    with pytest.raises(DataError):
        model.activity(torch.full((RATE,), torch.nan), RATE)


def test_frames_become_seconds() -> None:
    assert frame_regions(torch.zeros(3, dtype=torch.bool), 0.1, 0.2) == []
    assert frame_regions(torch.ones(3, dtype=torch.bool), 0.1, 0.2) == [(0.0, 0.2)]
