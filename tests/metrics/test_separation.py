"""Metrics of separation: one order for all, improvements, silence, missing packages, rows."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import Tensor

from speechkit.metrics.results import Result
from speechkit.metrics.separation import (
    NotComputableError,
    pesq,
    score_utterance,
    signal_to_distortion,
    stoi,
    summarize,
)

RATE = 8000
PACKAGES = {"sdr": "fast_bss_eval", "pesq": "pesq", "stoi": "pystoi"}


def bursts(speakers: int, seconds: float = 1.0) -> Tensor:
    """Noise with pauses, as speech has: the packages look for active parts."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(int(seconds * RATE)) / RATE
    noise = torch.randn(speakers, len(time), generator=generator)
    phases = torch.arange(speakers).unsqueeze(1)
    return 0.1 * noise * (torch.sin(2 * math.pi * 3 * time + phases) > 0)


def separated(speakers: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    sources = bursts(speakers)
    mixture = sources.sum(0)
    return (sources + 0.1 * mixture).roll(1, dims=0), sources, mixture


def need(*metrics: str) -> None:
    for metric in metrics:
        pytest.importorskip(PACKAGES[metric])


@pytest.mark.parametrize("speakers", [1, 2, 3])
def test_si_snr_in_order_with_improvements(speakers):
    estimates, sources, mixture = separated(speakers)
    mixture = mixture + 0.1 * bursts(speakers + 1)[-1]
    row = score_utterance(estimates, sources, mixture, RATE, metrics=["si_snr"])
    assert row["order"] == [(s + 1) % speakers for s in range(speakers)]
    for s, (source, place) in enumerate(zip(sources.double(), row["order"])):
        for key, signal in (("si_snr", estimates[place]), ("si_snr_mixture", mixture)):
            x, y = signal.double() - signal.double().mean(), source - source.mean()
            part = (x @ y) / (y @ y) * y
            want = 10 * math.log10((part @ part) / ((x - part) @ (x - part) + 1e-12))
            assert row[key][s] == pytest.approx(min(want, 80), abs=0.01)
        assert row["si_snri"][s] == row["si_snr"][s] - row["si_snr_mixture"][s]
    assert row["notes"] == []


def test_one_order_for_all_metrics_in_json():
    need("sdr", "pesq", "stoi")
    estimates, sources, mixture = separated()
    row = score_utterance(estimates, sources, mixture, RATE)
    assert row["order"] == [1, 0]
    swapped = score_utterance(estimates.flip(0), sources, mixture, RATE)
    assert swapped["order"] == [0, 1]
    for key in ("si_snr", "si_snr_mixture", "sdr", "sdr_mixture", "sdri", "pesq", "stoi"):
        assert len(row[key]) == 2
        assert swapped[key] == pytest.approx(row[key])
    ordered = estimates[row["order"]]
    for s in range(2):
        assert row["sdr"][s] == pytest.approx(signal_to_distortion(ordered[s], sources[s]))
        assert row["pesq"][s] == pytest.approx(pesq(ordered[s], sources[s], RATE))
        assert row["stoi"][s] == pytest.approx(stoi(ordered[s], sources[s], RATE))
    assert row["sdr"][0] > row["sdr_mixture"][0] + 10
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_sdr_forgives_a_filter_and_ends_at_80_db():
    need("sdr")
    source = bursts(1)[0]
    delayed = torch.cat([torch.zeros(3), source[:-3]]) + 0.5 * source
    assert signal_to_distortion(delayed, source) > 40
    assert signal_to_distortion(source, source) == 80.0
    assert signal_to_distortion(0 * source, source) == -80.0


def test_silent_source_is_not_counted_and_said():
    need("sdr", "pesq", "stoi")
    _, sources, mixture = separated()
    sources = torch.stack([sources[0], torch.full_like(sources[0], 0.1)])
    row = score_utterance(sources + 0.01 * mixture, sources, mixture, RATE)
    for key in ("si_snr", "si_snr_mixture", "si_snri", "sdr", "sdr_mixture", "pesq", "stoi"):
        assert row[key][1] is None
        assert math.isfinite(row[key][0])
    assert row["notes"] == ["source 1: silent"]
    assert {result.count for result in summarize([row])} == {1}


def test_silent_estimate_counts_as_a_failure():
    need("sdr", "pesq", "stoi")
    _, sources, mixture = separated()
    row = score_utterance(torch.zeros_like(sources), sources, mixture, RATE)
    assert row["si_snr"] == pytest.approx([-80.0, -80.0])
    assert row["sdr"] == [-80.0, -80.0]
    assert row["pesq"] == [None, None]
    assert row["notes"] == [f"source {s}: PESQ of a silent estimate" for s in range(2)]
    assert [r.count for r in summarize([row]) if r.metric == "SI-SNRi"] == [2]


@pytest.mark.parametrize("package", [None, "fast_bss_eval", "pesq", "pystoi"])
def test_missing_package_leaves_its_metric_out_with_a_warning(package, monkeypatch):
    for name in PACKAGES.values() if package is None else [package]:
        monkeypatch.setitem(sys.modules, name, None)
    missing = {m for m, name in PACKAGES.items() if package in (None, name)}
    metrics = ["si_snr", *missing]
    with pytest.warns(UserWarning, match=r"left out.*speechkit\[metrics\]") as caught:
        row = score_utterance(*separated(), RATE, metrics=metrics)
    assert len([w for w in caught if "left out" in str(w.message)]) == len(missing)
    assert set(row) == {"order", "si_snr", "si_snr_mixture", "si_snri", "notes"}
    assert [result.metric for result in summarize([row])] == ["SI-SNRi", "SI-SNR"]
    signal = bursts(1)[0]
    if "sdr" in missing:
        with pytest.raises(ImportError, match=r"fast_bss_eval is not installed.*\[metrics\]"):
            signal_to_distortion(signal, signal)


def test_pesq_says_where_it_does_not_exist():
    need("pesq")
    signal = bursts(1)[0]
    with pytest.raises(NotComputableError, match="8000 and 16000 Hz, not at 11025"):
        pesq(signal, signal, 11025)
    with pytest.raises(NotComputableError, match="at least 1/4 of a second"):
        pesq(signal[:1000], signal[:1000], RATE)
    with pytest.raises(NotComputableError, match="the source is silent"):
        pesq(signal, 0 * signal, RATE)
    assert pesq(signal, signal, 8000) == pytest.approx(4.549, abs=0.01)  # most of narrow band
    wide = torch.cat([signal, signal])
    assert pesq(wide, wide, 16000) == pytest.approx(4.644, abs=0.01)  # and of wide band


@pytest.mark.parametrize("samples", [50, 400, 2600])
def test_stoi_says_what_is_too_short(samples):
    need("stoi")
    signal = bursts(1)[0]
    with pytest.raises(NotComputableError, match=r"about 0\.4 s"):
        stoi(signal[:samples], signal[:samples], RATE)
    assert stoi(signal, signal, RATE) == pytest.approx(1.0)


def test_wrong_input_is_named():
    estimates, sources, mixture = separated()
    with pytest.raises(ValueError, match=r"another number of speakers.*\(3, 8000\)"):
        score_utterance(bursts(3), sources, mixture, RATE)
    with pytest.raises(ValueError, match=r"different lengths.*\(7999,\)"):
        score_utterance(estimates, sources, mixture[1:], RATE)
    with pytest.raises(ValueError, match=r"expected \(S, T\), \(S, T\) and \(T,\)"):
        score_utterance(estimates[0], sources, mixture, RATE)
    with pytest.raises(ValueError, match="nothing to score"):
        score_utterance(estimates[:, :0], sources[:, :0], mixture[:0], RATE)
    with pytest.raises(ValueError, match="estimates hold samples that are not finite"):
        score_utterance(estimates * float("nan"), sources, mixture, RATE)
    with pytest.raises(ValueError, match=r"no metric \['mos'\].*'stoi'"):
        score_utterance(estimates, sources, mixture, RATE, metrics=["mos"])
    with pytest.raises(ValueError, match=r"expected two signals \(T,\)"):
        stoi(mixture, mixture[1:], RATE)


def test_summary_is_the_mean_over_sources_that_have_a_value():
    rows = [
        {
            "id": "a",
            "si_snr": [10.0, 14.0],
            "si_snr_mixture": [0.0, -2.0],
            "sdr": [11.0, None],
            "sdr_mixture": [1.0, None],
            "pesq": [2.0, 3.0],
            "stoi": [0.5, None],
        },
        {"id": "b", "si_snr": [6.0], "si_snr_mixture": [0.0], "pesq": [None]},
    ]
    assert summarize(rows) == [
        Result("SI-SNRi", (10.0 + 16.0 + 6.0) / 3, "dB", 3),
        Result("SDRi", 10.0, "dB", 1),
        Result("SI-SNR", 10.0, "dB", 3),
        Result("SDR", 11.0, "dB", 1),
        Result("PESQ", 2.5, "MOS", 2),
        Result("STOI", 0.5, "", 1),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"si_snr": [1.0]}, r"row 2 \(id 'x'\) needs 'si_snr' and 'si_snr_mixture'"),
        ({"si_snr": [1.0], "si_snr_mixture": [1.0, 2.0]}, r"row 2.*numbers of sources"),
        ({"si_snr": 1.0, "si_snr_mixture": [1.0]}, r"row 2.*'si_snr' must list a number or null"),
        ({"si_snr": [float("nan")], "si_snr_mixture": [1.0]}, r"row 2.*has \[nan\]"),
    ],
)
def test_broken_rows_are_named(row, message):
    good = {"id": "w", "si_snr": [1.0], "si_snr_mixture": [0.0]}
    with pytest.raises(ValueError, match=message):
        summarize([good, {"id": "x", **row}])


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="none to count"):
        summarize([])
    with pytest.raises(ValueError, match="none to count"):
        summarize([{"si_snr": [None], "si_snr_mixture": [None]}])
