"""The classifier: padding, folders, files and windows of any length and rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import speechkit
from speechkit import pretrained
from speechkit.data.audio import write_audio
from speechkit.data.errors import DataError
from speechkit.data.labels import LabelSet
from speechkit.features.normalize import GlobalNorm
from speechkit.features.spectrum import LogMel
from speechkit.losses.classification import classification_loss
from speechkit.models.classifier import Scored, SoundClassifier, Stretch
from speechkit.nn.cnn14 import CNN14, MaxMeanPooling
from speechkit.nn.conv2d_classifier import Conv2dEncoder
from speechkit.nn.masking import Padded

RATE = 8000


def _model(**changes: Any) -> SoundClassifier:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "features": LogMel(sample_rate=RATE, n_fft=200, hop_length=80, num_mels=16),
        "normalize": GlobalNorm(num_features=16),
        "encoder": Conv2dEncoder(input_size=16, channels=(4, 6), pools=(2, 2)),
        "pooling": MaxMeanPooling(input_size=6),
        "labels": ["cat", "dog", "rain"],
        "sample_rate": RATE,
        **changes,
    }
    return SoundClassifier(**arguments)


class _Level(nn.Module):
    """Features of one frame: each sample of a window of 1 s."""

    sample_rate = 10
    output_size = 1

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Padded:
        return Padded(waveforms.unsqueeze(2), lengths)


class _Frames(nn.Module):
    """Passes on what it gets."""

    input_size = output_size = 1

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        return Padded(x, lengths)


class _Mean(nn.Module):
    input_size = output_size = 1

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
        return (x[..., 0] * mask).sum(1, keepdim=True) / lengths.unsqueeze(1)


def _level_model(*, multi_label: bool = False) -> SoundClassifier:
    """Says how likely a window's mean is above 0, at 10 Hz."""
    model = SoundClassifier(
        features=_Level(), encoder=_Frames(), pooling=_Mean(), labels=["low", "high"],
        sample_rate=10, multi_label=multi_label,
    )  # fmt: skip
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.head.bias.zero_()
    return model


@pytest.mark.parametrize("embedding_size", [None, 5])
def test_padding_changes_nothing(embedding_size: int | None) -> None:
    model = _model(embedding_size=embedding_size, dropout=0.5).eval()
    items = [torch.randn(n) for n in (4000, 2500, 801, 1)]
    x = torch.full((4, 5000), float("nan"))
    for row, item in zip(x, items):
        row[: len(item)] = item
    out = model(x, torch.tensor([len(item) for item in items]))
    assert out.shape == (4, 3)
    for row, item in zip(out, items):
        torch.testing.assert_close(
            row, model(item[None], torch.tensor([len(item)]))[0], atol=1e-4, rtol=1e-4
        )


def test_it_learns() -> None:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    time = torch.arange(800) / RATE
    waves = torch.stack([torch.sin(6.28 * f * time) for f in (300, 1200, 3000)]).repeat(2, 1)
    targets = torch.eye(3).repeat(2, 1)
    lengths = torch.full((6,), 800)
    for _ in range(12):
        optimizer.zero_grad()
        loss = classification_loss(model(waves, lengths), targets).mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3
    found = model.classify(waves[1], RATE, top=1)
    assert found.labels[0].label == "dog"


def test_a_model_folder_keeps_labels_and_outputs(tmp_path: Path) -> None:
    model = _model(labels=LabelSet(names=["b", "a"]), multi_label=True, embedding_size=4)
    pretrained.save(model, tmp_path / "model")
    again = speechkit.load(tmp_path / "model")
    assert again.labels == ["b", "a"]
    assert again.multi_label
    x, lengths = torch.randn(2, 900), torch.tensor([900, 500])
    assert torch.equal(again.eval()(x, lengths), model.eval()(x, lengths))


def test_another_label_set_needs_only_a_new_head(tmp_path: Path) -> None:
    pretrained.save(_model(), tmp_path / "model")
    other = _model(labels=["calm", "sad", "angry", "glad"])
    with pytest.raises(pretrained.MismatchError, match=r"head.weight"):
        pretrained.load_state(other, tmp_path / "model")
    report = pretrained.load_state(
        other, tmp_path / "model", reinit=list(SoundClassifier.vocabulary_parts)
    )
    assert report.fresh == ["head.weight", "head.bias"]


def test_the_feature_transform_sees_normalised_features() -> None:
    model = _model().eval()
    seen = []

    def look(features: Tensor, lengths: Tensor) -> Tensor:
        seen.append((features.shape, lengths.tolist()))
        return torch.zeros_like(features)

    x = torch.randn(2, 800)
    out = model(x, torch.tensor([800, 800]), feature_transform=look)
    assert seen == [((2, 11, 16), [11, 11])]
    torch.testing.assert_close(out[0], out[1])


def test_files_of_any_rate_and_channels(tmp_path: Path) -> None:
    model = _model().train()
    wave = 0.1 * torch.randn(2, 22050)
    write_audio(tmp_path / "a.wav", wave, 22050, subtype="FLOAT")
    from_file = model.classify(tmp_path / "a.wav", top=2)
    from_tensor = model.classify(wave, 22050, top=2)
    assert model.training, "the mode is as it was"
    assert from_file == from_tensor
    assert len(from_file.labels) == 2
    assert [s[:2] for s in from_file.timeline] == [(0.0, 1.0)]
    everything = model.classify([tmp_path / "a.wav", tmp_path / "a.wav"], top=9)
    assert [len(item.labels) for item in everything] == [3, 3]
    assert sum(p for _, p in everything[0].labels) == pytest.approx(1.0)
    with pytest.raises(DataError, match=r"missing\.wav"):
        model.classify(tmp_path / "missing.wav")
    with pytest.raises(ValueError, match="sampling rate"):
        model.classify(wave)
    with pytest.raises(ValueError, match="hop above 0 and at most the window"):
        model.classify(wave, 22050, window=1.0, hop=2.0)


def test_short_clips_and_silence_are_classified() -> None:
    model = _model()
    for wave in (torch.zeros(4000), torch.full((1,), 0.1)):
        (best, *_) = model.classify(wave, RATE).labels
        assert 1 / 3 <= best.probability <= 1


@pytest.mark.parametrize("length", [19, 20, 21, 45, 60, 350])
@pytest.mark.parametrize("hop", [1.0, 2.0])
def test_windows_cover_the_recording(length: int, hop: float) -> None:
    model = _level_model()
    wave = 0.5 * torch.sin(torch.arange(length).float())
    found = model.classify(wave, 10, window=2.0, hop=hop, batch_size=3)
    step = round(hop * 10)
    starts = list(range(0, max(1, length - 20 + 1), step))
    if starts[-1] + 20 < length:
        starts.append(length - 20)  # the last one is a whole window too
    assert [round(s.start * 10) for s in found.timeline] == starts
    assert [round(s.end * 10) for s in found.timeline] == [min(s + 20, length) for s in starts]
    for stretch, start in zip(found.timeline, starts):
        mean = wave[start : start + 20].mean()
        want = torch.softmax(torch.stack([-mean, mean]), 0).max()
        assert stretch.labels[0].probability == pytest.approx(float(want), abs=1e-5)


def test_the_whole_is_the_mean_by_seconds_or_the_maximum() -> None:
    wave = torch.cat([torch.full((20,), -0.5), torch.full((10,), 0.5)])  # 2 s low, 1 s high
    found = _level_model().classify(wave, 10, window=2.0)
    windows = [{s.label: s.probability for s in w.labels}["low"] for w in found.timeline]
    assert found.labels[0].label == "low"
    assert found.labels[0].probability == pytest.approx((20 * windows[0] + 10 * windows[1]) / 30)
    several = _level_model(multi_label=True).classify(wave, 10, window=1.0)
    peak = float(torch.tensor(0.5).sigmoid())
    assert [s.probability for s in several.labels] == pytest.approx([peak, peak])


def test_neighbours_of_the_same_label_are_joined() -> None:
    wave = torch.cat([torch.full((25,), -0.5), torch.full((20,), 0.5)])
    found = _level_model().classify(wave, 10, window=1.0, top=1)
    assert [round(s.start, 2) for s in found.timeline] == [0.0, 1.0, 2.0, 3.0, 3.5]
    spans = found.spans
    assert [(s.start, s.end, s.labels[0].label) for s in spans][1] == (3.0, 4.5, "high")
    assert spans[0][:2] == (0.0, 3.0)
    assert isinstance(spans[0], Stretch)
    assert isinstance(spans[0].labels[0], Scored)


def test_parts_must_fit() -> None:
    with pytest.raises(ValueError, match="features are for 8000 Hz, the classifier for 16000"):
        _model(sample_rate=16000)
    with pytest.raises(ValueError, match="CNN14 takes 64 features, but LogMel gives 16"):
        _model(encoder=CNN14())
    with pytest.raises(ValueError, match="MaxMeanPooling takes 7 features, but Conv2dEncoder"):
        _model(pooling=MaxMeanPooling(input_size=7))
    for labels in ([], ["a", "a"], "ab", ["a", ""]):
        with pytest.raises(ValueError, match="labels must be names"):
            _model(labels=labels)
