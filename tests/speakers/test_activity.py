"""Voice activity by energy: edges, gaps, noise, silence."""

from __future__ import annotations

import pytest
import torch

import speechkit
from speechkit.data.errors import DataError
from speechkit.speakers.activity import (
    Detectors,
    active_frames,
    energy_activity,
    hysteresis,
    open_detectors,
    runs,
    smooth_regions,
)

RATE = 8000


def sound(*parts: tuple[float, float]) -> torch.Tensor:
    """Noise of the given seconds and amplitudes, one after the other."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([a * torch.randn(int(s * RATE), generator=generator) for s, a in parts])


@pytest.mark.parametrize("floor", [0.0, 1e-4, 1e-2])
def test_speech_between_pauses(floor):
    waveform = sound((1, floor), (2, 0.3), (1, floor), (0.5, 0.1), (1, floor))
    regions = energy_activity(waveform, RATE)
    assert len(regions) == 2
    for found, want in zip(regions, [(1, 3), (4, 4.5)]):
        assert found == pytest.approx(want, abs=0.08)
        assert found[0] <= want[0]
        assert found[1] >= want[1]


def test_short_gaps_close_and_clicks_vanish():
    waveform = sound((1, 0.3), (0.2, 0), (1, 0.3), (1, 0), (0.05, 0.3), (1, 0))
    assert energy_activity(waveform, RATE) == [(0.0, pytest.approx(2.25, abs=0.03))]
    assert len(energy_activity(waveform, RATE, min_silence=0.1, min_speech=0.0)) == 3


def test_padding_meets_in_the_middle_of_a_gap():
    waveform = sound((1, 0.3), (0.4, 0), (1, 0.3))
    (_, first), (second, end) = energy_activity(waveform, RATE, padding=0.5)
    assert first == second == pytest.approx(1.2, abs=0.02)
    assert end == 2.4


def test_silence_steady_sound_and_short_waveforms():
    assert energy_activity(torch.zeros(RATE), RATE) == []
    assert energy_activity(sound((1, 1e-5)), RATE) == []
    assert energy_activity(sound((3, 0.1)), RATE) == [(0.0, 3.0)]
    assert energy_activity(torch.full((10,), 0.5), RATE) == [(0.0, 10 / RATE)]


def test_frames_are_independent_of_level():
    waveform = sound((1, 0.3), (1, 0.003))
    assert torch.equal(active_frames(waveform, RATE), active_frames(0.1 * waveform, RATE))


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 5), torch.full((9,), torch.nan)])
def test_bad_waveforms_are_refused(bad):
    with pytest.raises(ValueError, match="finite samples"):
        energy_activity(bad, RATE)


def test_runs():
    assert runs(torch.tensor([], dtype=torch.bool)) == []
    assert runs(torch.tensor([False, False])) == []
    assert runs(torch.tensor([True, True, False, True])) == [(0, 2), (3, 4)]


def binarize(scores, onset, offset):
    """Give the frames as a loop over them would: pyannote.audio's Binarize, frame by frame."""
    active, found = False, []
    for score in scores.tolist():
        active = score >= offset if active else score > onset
        found.append(active)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_hysteresis_is_that_of_a_loop(seed):
    scores = torch.rand(200, generator=torch.Generator().manual_seed(seed))
    for onset, offset in ((0.5, 0.5), (0.8, 0.2), (0.6, 0.4)):
        assert hysteresis(scores, onset=onset, offset=offset).tolist() == binarize(
            scores, onset, offset
        )
    with pytest.raises(ValueError, match=r"offset must be at most onset=0\.2"):
        hysteresis(scores, onset=0.2, offset=0.5)


def test_smoothing_closes_before_it_drops():
    spans = [(1.0, 1.1), (1.15, 1.3), (4.0, 4.1)]
    options = {"min_speech": 0.2, "padding": 0.0}
    assert smooth_regions(spans, 5.0, min_silence=0.1, **options) == [(1.0, 1.3)]
    assert smooth_regions(spans, 5.0, min_silence=0.0, **options) == []


def test_a_folder_of_another_model_is_refused(tmp_path):
    assert open_detectors(None) == Detectors(energy_activity, None)
    speechkit.save(torch.nn.PReLU(), tmp_path / "model")
    with pytest.raises(DataError, match="holds a PReLU, which does not find speech"):
        open_detectors(tmp_path / "model")
