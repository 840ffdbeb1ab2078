"""Measures of decoded audio: what is declared is undone, what is missing is left out and said."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechkit.metrics import quality
from speechkit.metrics.quality import MEASURES, compensate, low_pass, measure, missing_packages
from speechkit.metrics.quality_mel import mel_distance, multi_scale_mel_distance

RATE = 24000


@pytest.fixture(autouse=True)
def _every_warning_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_warned", set())


def speechlike(seconds: float = 1.5, rate: int = RATE, channels: int = 1) -> Tensor:
    """Noise in bursts, as syllables come: the packages look for active parts."""
    time = torch.arange(int(seconds * rate)) / rate
    noise = torch.randn(channels, len(time), generator=torch.Generator().manual_seed(0))
    return 0.1 * noise * (torch.sin(2 * math.pi * 3 * time) > 0)


def degraded(reference: Tensor, level: float = 0.02) -> Tensor:
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    return reference + level * noise


def test_each_measure_falls_with_noise():
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    x = speechlike()
    names = ["si_snr", "stoi", "estoi", "pesq", "mel", "mel_db"]
    same, near, far = (measure(x, degraded(x, z), RATE, metrics=names) for z in (0.0, 0.003, 0.1))
    for name in names:
        values = [found[name] for found in (same, near, far)]
        assert values == sorted(values, reverse=not name.startswith("mel")), name
        assert len(set(values)) == 3, name
    assert same["si_snr"] == pytest.approx(80.0, abs=1e-3)
    assert same["stoi"] == pytest.approx(1.0, abs=1e-6)
    assert (same["mel"], same["mel_db"]) == (0.0, 0.0)


def test_packages_get_what_they_would_directly():
    pystoi, pesq = pytest.importorskip("pystoi"), pytest.importorskip("pesq")
    x = speechlike(rate=16000)
    y = degraded(x)
    found = measure(x, y, 16000, metrics=["stoi", "estoi", "pesq"])
    a, b = x[0].double().numpy(), y[0].double().numpy()
    assert found["pesq"] == pytest.approx(pesq.pesq(16000, a, b, "wb"), abs=1e-6)
    for name, extended in (("stoi", False), ("estoi", True)):
        assert found[name] == pytest.approx(pystoi.stoi(a, b, 16000, extended=extended), abs=1e-6)


def test_visqol_in_both_modes(monkeypatch):
    visqol = pytest.importorskip("visqol")
    x = speechlike(rate=16000)
    y = degraded(x)
    same = measure(x, x, 16000, metrics=["visqol_speech"])["visqol_speech"]
    assert same == pytest.approx(5.0, abs=0.05)
    found = measure(x, y, 16000, metrics=["visqol_speech"])["visqol_speech"]
    api = visqol.VisqolApi()
    api.create(mode="speech", use_lattice_model=False)
    a, b = x[0].double().numpy(), y[0].double().numpy()
    assert found == pytest.approx(api.measure_from_arrays(a, b, 16000).moslqo, abs=1e-9)
    assert found < same
    x = speechlike(rate=48000, seconds=1.1)
    found = measure(x, x, 48000, metrics=["visqol_audio"])["visqol_audio"]
    assert found == pytest.approx(4.73, abs=0.01)  # what the proxy takes for the most


def test_delay_is_undone_as_declared_and_never_searched_for():
    x = speechlike()
    late = torch.nn.functional.pad(x, (100, 0))
    undeclared = measure(*compensate(x, late), RATE, metrics=["si_snr"])
    assert undeclared["si_snr"] < -10
    a, b = compensate(x, late, delay=100)
    assert torch.equal(a, b)
    assert torch.equal(a, x)
    a, b = compensate(x, late[:, : x.shape[1]], delay=100)  # a codec that keeps the length
    assert torch.equal(a, x[:, :-100])
    assert torch.equal(a, b)


def test_gain_is_one_factor_for_all_channels():
    x = speechlike(channels=2)
    noisy = degraded(x)
    _, y = compensate(x, 3.0 * noisy, gain=True)
    factor = (x * noisy).double().sum() / noisy.double().square().sum()
    torch.testing.assert_close(y, (factor * noisy).float())
    error = [(x - scale * y).square().sum() for scale in (0.99, 1.0, 1.01)]
    assert error[1] < min(error[0], error[2])
    for wrong in (-x, torch.zeros_like(x)):
        with pytest.raises(ValueError, match="inverted, silent or not of this recording"):
            compensate(x, wrong, gain=True)


@pytest.mark.parametrize("delay", [-1, 36000])
def test_an_impossible_delay_is_refused(delay):
    with pytest.raises(ValueError, match="36000 samples"):
        compensate(speechlike(), speechlike(), delay=delay)
    with pytest.raises(ValueError, match="channels disagree"):
        compensate(speechlike(), speechlike(channels=2))


@pytest.mark.parametrize(
    ("rate", "cutoff"),
    [(48000, 3500), (48000, 7000), (24000, 3500), (24000, 7000), (22050, 7000), (16000, 7000)],
)
def test_anchors_are_within_the_limits_of_bs_1534(rate, cutoff):
    impulse = torch.zeros(1, 8001, dtype=torch.float64)
    impulse[0, 4000] = 1.0
    response = low_pass(impulse, rate, cutoff)[0]
    torch.testing.assert_close(response, response.flip(0))  # no delay
    gains = 20 * torch.fft.rfft(response, n=2**16).abs().clamp_min(1e-12).log10()
    hertz = torch.arange(len(gains)) * rate / 2**16
    assert gains[hertz <= cutoff].abs().max() < 0.1
    assert gains[hertz >= cutoff * 8 / 7].max() < -50 if cutoff * 8 / 7 < rate / 2 else True
    assert gains[hertz <= cutoff].numel() > 1000


def test_an_anchor_needs_its_band():
    with pytest.raises(ValueError, match="at least 16000 Hz, this has 8000"):
        low_pass(torch.zeros(1, 800), 8000, 7000)


def test_mel_distance_counts_level_but_not_both_levels():
    x = speechlike()[0]
    for distance in (mel_distance, multi_scale_mel_distance):
        y = degraded(x)
        assert distance(x, y, RATE) == pytest.approx(distance(x / 8, y / 8, RATE), rel=1e-4)
        assert 2 < distance(x, x / 2, RATE) <= 6.03
        assert distance(x, torch.zeros_like(x), RATE) < 80
        assert distance(x, x + 1e-7, RATE) < 1e-3  # far below its floor


def test_mel_db_is_of_24_khz_at_any_rate():
    generator = torch.Generator().manual_seed(0)
    x = low_pass(torch.randn(1, 48000, generator=generator), 48000, 9000)
    y = low_pass(x, 48000, 3500)
    high = measure(x, y, 48000, metrics=["mel_db"])["mel_db"]
    low = measure(x[:, ::2], y[:, ::2], 24000, metrics=["mel_db"])["mel_db"]
    assert high == pytest.approx(low, rel=0.02)


def test_channels_are_averaged_and_silent_ones_left_out():
    left, right = speechlike(), speechlike(2.0)[:, -36000:]
    names = ["si_snr", "mel"]
    apart = [measure(x, degraded(x), RATE, metrics=names) for x in (left, right)]
    x = torch.cat([left, right])
    y = torch.cat([degraded(left), degraded(right)])
    both = measure(x, y, RATE, metrics=names)
    for name in names:
        assert both[name] == pytest.approx((apart[0][name] + apart[1][name]) / 2)
    silent = torch.zeros_like(left)
    half = measure(torch.cat([left, silent]), torch.cat([degraded(left), silent]), RATE,
                   metrics=names)  # fmt: skip
    assert half == apart[0]


def test_a_silent_estimate_is_the_worst_and_a_silent_reference_is_nothing():
    for package in ("pystoi", "pesq", "visqol"):
        pytest.importorskip(package)
    x = speechlike()
    found = measure(x, torch.zeros_like(x), RATE, metrics=list(MEASURES))
    assert found["si_snr"] == pytest.approx(-80, abs=1e-6)
    assert (found["pesq"], found["visqol_audio"], found["stoi"]) == (1.04, 1.0, 0.0)
    assert found["mel_db"] > 12
    assert set(found) == set(MEASURES)
    with pytest.warns(UserWarning, match="a silent reference"):
        assert measure(torch.zeros_like(x), x, RATE, metrics=list(MEASURES)) == {}


@pytest.mark.parametrize(
    ("package", "names"),
    [("pystoi", ["stoi", "estoi"]), ("pesq", ["pesq"]),
     ("visqol", ["visqol_audio", "visqol_speech"])],
)  # fmt: skip
def test_a_missing_package_leaves_its_measures_out_and_says_so_once(monkeypatch, package, names):
    monkeypatch.setitem(sys.modules, package, None)
    x = speechlike()
    with pytest.warns(UserWarning, match=r"pip install 'speechkit\[metrics\]'") as caught:
        found = measure(x, x, RATE, metrics=["si_snr", *names])
    assert list(found) == ["si_snr"]
    assert len(caught) == len(names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(measure(x, x, RATE, metrics=["si_snr", *names])) == ["si_snr"]
    assert list(missing_packages(list(MEASURES))) == names


def test_what_a_rate_or_a_length_does_not_allow_is_left_out():
    pytest.importorskip("visqol")
    x = speechlike(rate=16000)
    with pytest.warns(UserWarning, match="mel_db is left out: it needs audio of at least 24000"):
        assert list(measure(x, x, 16000, metrics=["mel", "mel_db"])) == ["mel"]
    with pytest.warns(UserWarning, match="at least 16000 Hz, not 8000"):
        assert measure(x, x, 8000, metrics=["pesq", "visqol_speech"]) == {}
    short = speechlike(0.2)
    with pytest.warns(UserWarning, match="is left out") as caught:
        assert measure(short, short, RATE, metrics=["stoi", "visqol_audio"]) == {}
    texts = [str(warning.message) for warning in caught]
    assert "STOI needs about 0.4 s" in texts[0]
    assert "ViSQOL needs about a second" in texts[1]


def test_bad_input_is_named():
    x = speechlike()
    with pytest.raises(ValueError, match=r"no metric \['mos'\]; there are: \['si_snr'"):
        measure(x, x, RATE, metrics=["mos"])
    with pytest.raises(ValueError, match=r"\(1, 36000\), estimate \(1, 35999\)"):
        measure(x, x[:, 1:], RATE, metrics=["mel"])
    with pytest.raises(ValueError, match="not finite"):
        measure(x, x / 0, RATE, metrics=["mel"])
    with pytest.raises(ValueError, match="sample_rate"):
        measure(x, x, 0, metrics=["mel"])


def test_importing_costs_no_package_of_the_extra():
    code = (
        "import sys, speechkit.metrics.quality, speechkit.metrics.mushra; "
        "assert not {'visqol', 'scipy', 'pesq', 'pystoi', 'torchaudio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
