"""Speaker encoders on recordings: rates, lists, long ones, what is refused, the model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import speechkit
from speechkit.data.audio import write_audio
from speechkit.data.errors import DataError
from speechkit.features.normalize import UtteranceNorm
from speechkit.features.spectrum import LogMel
from speechkit.models.speaker import SpeakerEncoder
from speechkit.nn.ecapa import ECAPAEncoder
from speechkit.nn.pooling import AttentiveStatisticsPooling, EmbeddingLayer
from speechkit.pretrained import save

RATE = 8000


def _model(**changes: Any) -> SpeakerEncoder:
    parts: dict = {
        "features": LogMel(sample_rate=RATE, n_fft=200, hop_length=80, num_mels=20),
        "norm": UtteranceNorm(mean_only=True),
        "encoder": ECAPAEncoder(input_size=20, channels=8, output_size=12, scale=4, se_size=4),
        "pooling": AttentiveStatisticsPooling(input_size=12, attention_size=4),
        "projection": EmbeddingLayer(input_size=24, embed_dim=6, norm_input=True),
        **changes,
    }
    return SpeakerEncoder(**parts)


def _noise(seconds: float, seed: int = 0, rate: int = RATE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(seconds * rate), generator=generator)


def test_a_list_gives_what_its_items_give(tmp_path: Path) -> None:
    """Files and tensors of other lengths, rates and channels."""
    model = _model().train()
    write_audio(tmp_path / "a.wav", _noise(1.3), RATE)
    stereo = torch.stack([_noise(2.0, 1, 16000), _noise(2.0, 2, 16000)])
    write_audio(tmp_path / "b.flac", stereo, 16000)
    sources: list[Any] = [tmp_path / "a.wav", str(tmp_path / "b.flac"), _noise(0.7, 3)]
    together = model.embed(sources, RATE, batch_size=2)
    assert together.shape == (3, model.embed_dim)
    assert model.training
    for row, source in zip(together, sources):
        torch.testing.assert_close(row, model.embed(source, RATE), atol=1e-4, rtol=1e-4)
    want = model.eval()(_noise(0.7, 3)[None], torch.tensor([5600]))[0]
    torch.testing.assert_close(together[2], want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[1], model.embed(stereo, 16000), atol=1e-2, rtol=1e-2)
    assert model.embed([]).shape == (0, model.embed_dim)


def test_windows_are_embedded_as_they_are() -> None:
    """In the order in which they came, silence too."""
    model = _model()
    windows = [_noise(1.0, 1), torch.zeros(800), _noise(0.3, 2), _noise(1.0, 3)]
    out = model.embed_windows(windows, batch_size=3)
    assert out.isfinite().all()
    for row, window in zip(out, windows):
        torch.testing.assert_close(row, model.embed_windows([window])[0], atol=1e-4, rtol=1e-4)
    assert model.embed_windows([]).shape == (0, model.embed_dim)


def test_a_long_recording_is_the_mean_of_its_pieces() -> None:
    model = _model()
    waveform = torch.cat([_noise(1.0, 1), torch.zeros(RATE), _noise(1.0, 2)])
    got = model.embed(waveform, RATE, max_seconds=1.0)
    pieces = model.embed_windows([waveform[:RATE], waveform[2 * RATE :]])
    directions = torch.nn.functional.normalize(pieces).mean(0)
    assert torch.cosine_similarity(got, directions, dim=0) > 0.99999
    torch.testing.assert_close(got.norm(), pieces.norm(dim=1).mean())


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (_noise(0.49), r"0\.49 s are too short.*0\.5 s"),
        (torch.zeros(RATE), "silence, no 25 ms are above -70 dBFS"),
        (torch.full((RATE,), float("nan")), "finite|NaN"),
        (torch.zeros(0), "no samples"),
    ],
)
def test_recordings_that_tell_nothing_are_refused(waveform: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _model().embed(waveform, RATE)
    with pytest.raises(DataError, match="item 1 of the list"):
        _model().embed([_noise(1.0), waveform], RATE)


def test_a_refused_file_is_named(tmp_path: Path) -> None:
    write_audio(tmp_path / "short.wav", _noise(0.2), RATE)
    with pytest.raises(DataError, match=r"short\.wav: 0\.20 s are too short"):
        _model().embed(tmp_path / "short.wav")
    with pytest.raises(DataError, match=r"none\.wav"):
        _model().embed(tmp_path / "none.wav")


def test_arguments_that_cannot_be() -> None:
    model = _model()
    with pytest.raises(ValueError, match=r"does not say its sampling rate.*8000"):
        model.embed(_noise(1.0))
    with pytest.raises(TypeError, match="int"):
        model.embed(3, 8000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_seconds <= max_seconds"):
        model.embed(_noise(1.0), RATE, max_seconds=0.1)
    with pytest.raises(ValueError, match="features gives 20 values and encoder takes 21"):
        _model(encoder=ECAPAEncoder(input_size=21, channels=8, output_size=12, scale=4))


def test_a_model_folder_keeps_threshold_and_calibration(tmp_path: Path) -> None:
    calibration = {"method": "logistic", "slope": 12.5, "offset": -4.0}
    model = _model(threshold=0.31, calibration=calibration).eval()
    save(model, tmp_path / "model")
    again = speechkit.load(tmp_path / "model")
    assert isinstance(again, SpeakerEncoder)
    assert (again.threshold, again.calibration) == (0.31, calibration)
    assert torch.equal(again.embed(_noise(1.0), RATE), model.embed(_noise(1.0), RATE))
    assert _model().threshold is None


def test_verification_decides_only_where_something_was_fitted() -> None:
    model = _model().eval()
    a, b = _noise(1.0, 1), torch.sin(torch.arange(RATE) * 0.2)
    plain = model.verify(a, b, RATE)
    want = torch.cosine_similarity(model.embed(a, RATE), model.embed(b, RATE), dim=0)
    assert abs(plain.score - want) < 1e-5
    assert (plain.same_speaker, plain.probability) == (None, None)
    for offset, same in ((1e-3, True), (-1e-3, False)):
        model.threshold = plain.score - offset
        assert model.verify(a, b, RATE)._replace(score=0.0) == (0.0, same, None)
    model.calibration = {"method": "logistic", "slope": 2.0, "offset": -2.0 * plain.score + 0.5}
    verdict = model.verify(a, b, RATE)
    assert verdict.probability == pytest.approx(torch.sigmoid(torch.tensor(0.5)).item(), abs=1e-4)
    assert verdict.same_speaker is False  # by the threshold that was given
    model.threshold = None
    assert model.verify(a, b, RATE).same_speaker is True  # by the calibration
    with pytest.raises(ValueError, match="no calibration method 'magic'"):
        _model(calibration={"method": "magic"})
