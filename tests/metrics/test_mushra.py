"""The MUSHRA-proxy: its curve, its refusals, and what it says of Opus and the anchors."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechkit.metrics import mushra
from speechkit.metrics.mushra import (
    CAUTION,
    KNOTS,
    mushra_proxy,
    quality_share,
    rank_condition,
    ranking_score,
    score_condition,
    score_of_share,
)
from speechkit.metrics.results import SCORERS

PUBLISHED = [
    (0.0, 0.0), (0.299, 30.1), (0.471, 49.2), (0.556, 67.0), (0.623, 76.5), (0.647, 83.1),
    (0.722, 90.6), (1.0, 95.5),
]  # fmt: skip
MEASURED = Path(__file__).with_name("opus_ljspeech.json")


def measured(condition: str) -> list[dict[str, Any]]:
    """Rows of one condition: LJSpeech at 24 kHz, made by tools/mushra_proxy.py."""
    rows = json.loads(MEASURED.read_text())["rows"]
    return [row for row in rows if row["condition"] == condition]


def mean(condition: str, key: str) -> float:
    rows = measured(condition)
    return sum(row[key] for row in rows) / len(rows)


def test_the_knots_are_the_published_ones_with_their_sources():
    assert [(knot.q, knot.score) for knot in KNOTS] == PUBLISHED
    for knot in KNOTS[1:]:
        assert "MUSHRA scores of clean speech" in knot.score_source
    assert all("not measured here" in k.q_source for k in KNOTS if "EnCodec" in k.condition)
    for q, score in PUBLISHED:
        assert float(score_of_share(q)) == pytest.approx(score, abs=1e-9)


def test_the_curve_is_scipys_pchip():
    interpolate = pytest.importorskip("scipy.interpolate")
    q = np.linspace(0, 1, 2001)
    expected = interpolate.PchipInterpolator(*np.array(PUBLISHED).T)(q)
    np.testing.assert_allclose(score_of_share(q), expected, atol=1e-10)


def test_the_curve_rises_everywhere_and_is_clipped():
    scores = score_of_share(np.linspace(0, 1, 5001))
    assert (np.diff(scores) > 0).all()
    assert [float(score_of_share(q)) for q in (-0.5, 1.5)] == pytest.approx([0.0, 95.5])


@pytest.mark.parametrize(
    ("values", "shares"),
    [
        ((1.04, 1.0, 12.0), (0, 0, 0)),
        ((4.64, 4.73, 0.0), (1, 1, 1)),
        ((2.0, 3.0, 4.5), (0.96 / 3.6, 2 / 3.73, 1 - 4.5 / 12)),
        ((1.02, 4.75, 30.0), (0, 1, 0)),  # beyond the ends
    ],
)
def test_the_shares_are_as_defined(values, shares):
    assert quality_share(*values) == pytest.approx(sum(shares) / 3)
    assert mushra_proxy(*values) == pytest.approx(float(score_of_share(sum(shares) / 3)))


def test_ranking_is_of_its_own_three():
    assert ranking_score(4.64, 5.0, 0.0) == pytest.approx(1.0)
    assert ranking_score(1.04, 1.0, 12.0) == 0.0
    assert ranking_score(2.0, 3.0, 4.5) == pytest.approx((0.96 / 3.6 + 0.5 + 0.625) / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_score_of_no_number(bad):
    with pytest.raises(ValueError, match="finite"):
        mushra_proxy(2.0, bad, 3.0)
    with pytest.raises(ValueError, match="finite"):
        ranking_score(2.0, 3.0, bad)


def test_the_interval_is_over_items_and_the_same_each_time():
    rows = [{"pesq": 1.5 + i / 10, "visqol_audio": 2.5, "mel_db": 9.0} for i in range(10)]
    found = score_condition(rows)
    assert found == score_condition(rows)
    assert found.low < found.score < found.high
    assert found.mean == pytest.approx(np.mean([quality_share(*row.values()) for row in rows]))
    assert found.score == pytest.approx(float(score_of_share(found.mean)))
    many = score_condition(rows * 10)
    assert many.score == pytest.approx(found.score)
    assert many.high - many.low < 0.5 * (found.high - found.low)
    # Against the normal approximation of the mean's spread, through the curve.
    spread = 1.96 * np.std([quality_share(*row.values()) for row in rows * 10]) / 10
    low, high = score_of_share(np.array([found.mean - spread, found.mean + spread]))
    assert (many.low, many.high) == pytest.approx((low, high), abs=0.15)
    assert CAUTION in found.describe()
    assert f"{found.low:.1f} to {found.high:.1f} over 10 items" in found.describe()


def test_one_item_has_no_interval():
    found = score_condition([{"pesq": 2.0, "visqol_audio": 2.5, "mel_db": 9.0}])
    assert (found.low, found.high, found.count) == (None, None, 1)
    assert "no interval" in found.describe()
    assert CAUTION in found.describe()


def test_the_proxy_refuses_and_does_not_guess():
    rows = [
        {"id": "a", "pesq": 2.0, "visqol_audio": 2.5, "mel_db": 9.0},
        {"id": "b", "pesq": 2.0, "mel_db": None},
    ]
    with pytest.raises(ValueError, match="'b' lacks visqol_audio, mel_db"):
        score_condition(rows)
    with pytest.raises(ValueError, match="one item at least"):
        score_condition([])
    with pytest.raises(ValueError, match="visqol_speech"):
        rank_condition(rows)


# ---------------------------------------------------------------- the scorer


def test_scorer_gives_means_the_proxy_and_its_interval():
    rows = measured("Opus 12")
    results = {result.metric: result for result in SCORERS["codec"](rows)}
    for metric, key in (("bit rate", "kbps"), ("PESQ-WB", "pesq"), ("ESTOI", "estoi")):
        assert results[metric].value == pytest.approx(mean("Opus 12", key))
        assert results[metric].count == len(rows)
    found = score_condition(rows)
    assert results["MUSHRA-proxy"].value == found.score
    assert CAUTION in results["MUSHRA-proxy"].unit
    assert results["MUSHRA-proxy, 95 % from"].value == found.low
    assert results["MUSHRA-proxy, 95 % to"].value == found.high
    assert "ranking score" not in results


def test_scorer_ranks_where_there_is_nothing_of_24_khz():
    rows = [{k: v for k, v in row.items() if k != "mel_db"} for row in measured("Opus 12")]
    results = {result.metric: result.value for result in SCORERS["codec"](rows)}
    assert "MUSHRA-proxy" not in results
    assert results["ranking score"] == rank_condition(rows).score


@pytest.mark.parametrize("key", mushra.PROXY_KEYS)
def test_scorer_without_a_measure_has_no_proxy(key):
    rows = [dict(row) for row in measured("Opus 6")]
    del rows[0][key]
    with pytest.warns(UserWarning, match="no MUSHRA-proxy: of 12 rows"):
        metrics = [result.metric for result in SCORERS["codec"](rows)]
    assert not [metric for metric in metrics if "proxy" in metric]
    for row in rows:
        row.pop(key, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = [result.metric for result in SCORERS["codec"](rows)]
    assert not [metric for metric in metrics if "proxy" in metric]


@pytest.mark.parametrize("bad", [math.nan, "3.1", True])
def test_scorer_names_the_row_of_a_bad_value(bad):
    with pytest.raises(ValueError, match=r"row 2 \(id 'b'\): 'pesq'"):
        SCORERS["codec"]([{"id": "a", "pesq": 1.0}, {"id": "b", "pesq": bad}])
    with pytest.raises(ValueError, match="none to count"):
        SCORERS["codec"]([{"id": "a"}])


# ---------------------------------------------------------------- real speech, as measured


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ("Opus 6", "Opus 12"), ("Opus 12", "Opus 24"), ("Opus 24", "hidden reference"),
        ("anchor 3.5 kHz", "anchor 7 kHz"), ("anchor 7 kHz", "hidden reference"),
        ("anchor 3.5 kHz", "Opus 12"),
    ],
)  # fmt: skip
def test_order_on_real_speech(worse, better):
    low, high = score_condition(measured(worse)), score_condition(measured(better))
    assert low.count == high.count == 12
    assert low.high < high.low  # apart by more than the items scatter
    assert rank_condition(measured(worse)).score < rank_condition(measured(better)).score + 1e-9


def test_the_reference_has_the_references_score():
    assert score_condition(measured("hidden reference")).score == pytest.approx(95.5, abs=0.01)


@pytest.mark.parametrize(("condition", "published"), [("Opus 6", 30.1), ("Opus 12", 76.5)])
def test_opus_is_within_ten_points_of_what_listeners_said(condition, published):
    assert score_condition(measured(condition)).score == pytest.approx(published, abs=10)


@pytest.mark.parametrize("key", ["si_snr", "stoi"])
def test_negative_control_si_snr_and_stoi_prefer_a_telephone(key):
    """Both hold the 3.5 kHz anchor better than Opus at 12 kbps, which listeners do not.

    SI-SNR counts power, of which little is above 3.5 kHz; STOI looks no higher than 4.3 kHz.
    """
    assert mean("anchor 3.5 kHz", key) > mean("Opus 12", key)
    anchor, opus = (score_condition(measured(x)) for x in ("anchor 3.5 kHz", "Opus 12"))
    assert anchor.high < opus.low
