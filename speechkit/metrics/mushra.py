"""MUSHRA-proxy: what a listening test might have said of a codec for clean speech, plus minus 10.

A number between PESQ, ViSQOL and a mel distance, put on the scale of published listening tests.
It orders codecs of one kind; it is **not a listening test**, and nothing that it says of a codec
unlike those at its knots has been checked by anyone's ears. For audio of at least 24 kHz: below,
only a ranking is offered (`ranking_score`).

========= =================================================
measure   share
========= =================================================
PESQ-WB   ``P = clip((PESQ - 1.04) / 3.60)``
ViSQOL    ``V = clip((ViSQOL-audio - 1) / 3.73)``
mel       ``L = clip(1 - distance / 12 dB)``, 80 bands
========= =================================================

``q`` is their mean, clip is to [0, 1], and the score is the monotone cubic through the knots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

CAUTION = "±10, a proxy, not a listening test"
"""What stands beside every score that is printed."""
PROXY_KEYS = ("pesq", "visqol_audio", "mel_db")
RANKING_KEYS = ("pesq", "visqol_speech", "mel")

_MUSHRA_TABLE = (
    "Defossez, Copet, Synnaeve and Adi (2022), 'High fidelity neural audio compression', MUSHRA "
    "scores of clean speech at 24 kHz"
)
_ASSEMBLED = "assembled from published PESQ, ViSQOL and mel distances; not measured here"
_OPUS = "given with the proxy; docs/measures.md has what was measured here"


class Knot(NamedTuple):
    """A point of the score curve.

    Attributes
    ----------
    q : float
        Mean of the three shares.
    score : float
        MUSHRA score.
    condition : str
        The codec and its rate.
    q_source, score_source : str
        Where the two come from.
    """

    q: float
    score: float
    condition: str
    q_source: str
    score_source: str


KNOTS: tuple[Knot, ...] = (
    Knot(0.0, 0.0, "nothing", "by definition", "by definition"),
    Knot(0.299, 30.1, "Opus 6 kbps", _OPUS, _MUSHRA_TABLE),
    Knot(0.471, 49.2, "EnCodec 1.5 kbps", _ASSEMBLED, _MUSHRA_TABLE),
    Knot(0.556, 67.0, "EnCodec 3 kbps", _ASSEMBLED, _MUSHRA_TABLE),
    Knot(0.623, 76.5, "Opus 12 kbps", _OPUS, _MUSHRA_TABLE),
    Knot(0.647, 83.1, "EnCodec 6 kbps", _ASSEMBLED, _MUSHRA_TABLE),
    Knot(0.722, 90.6, "EnCodec 12 kbps", _ASSEMBLED, _MUSHRA_TABLE),
    Knot(1.0, 95.5, "hidden reference", "by definition", _MUSHRA_TABLE),
)
"""The published scores and where they lie on the scale of ``q``."""


@dataclass(frozen=True, slots=True)
class ConditionScore:
    """The score of one condition of a test.

    Attributes
    ----------
    score : float
        Of the mean over items.
    low, high : float or None
        Ends of the 95 % bootstrap interval over items; None for a single item. How far the proxy
        is from listeners is not in it.
    mean : float
        Of the items, in [0, 1].
    count : int
        Items.
    """

    score: float
    low: float | None
    high: float | None
    mean: float
    count: int

    def describe(self) -> str:
        """Write the score, its interval and what it is not.

        Examples
        --------
        >>> ConditionScore(30.06, 28.0, 32.5, 0.3, 12).describe()
        '30.1 (28.0 to 32.5 over 12 items; ±10, a proxy, not a listening test)'
        """
        if self.low is None or self.high is None:
            return f"{self.score:.1f} (one item, no interval; {CAUTION})"
        return (
            f"{self.score:.1f} ({self.low:.1f} to {self.high:.1f} over {self.count} items; "
            f"{CAUTION})"
        )


def quality_share(pesq: float, visqol_audio: float, mel_db: float) -> float:
    """Average the three shares of the proxy: ``q`` of the module's table.

    Parameters
    ----------
    pesq : float
        PESQ wide band, MOS-LQO.
    visqol_audio : float
        ViSQOL in audio mode, MOS-LQO.
    mel_db : float
        Mel distance at 24 kHz, in dB.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        Where a measure is not a finite number.

    Examples
    --------
    >>> round(quality_share(2.84, 2.865, 6.0), 6), quality_share(4.64, 4.73, 0.0)
    (0.5, 1.0)
    """
    _check_finite(pesq=pesq, visqol_audio=visqol_audio, mel_db=mel_db)
    shares = ((pesq - 1.04) / 3.60, (visqol_audio - 1.0) / 3.73, 1.0 - mel_db / 12.0)
    return sum(_clip(share) for share in shares) / 3.0


def ranking_score(pesq: float, visqol_speech: float, mel: float) -> float:
    """Average three shares of speech at 16 kHz and below: for an order of codecs, no score.

    There is no published listening test at these rates to put it on the scale of.

    Parameters
    ----------
    pesq : float
        PESQ wide band, MOS-LQO.
    visqol_speech : float
        ViSQOL in speech mode (polynomial), MOS-LQO 1 to 5.
    mel : float
        Mel distance over several windows, in dB.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        Where a measure is not a finite number.

    Examples
    --------
    >>> round(ranking_score(2.84, 3.0, 6.0), 6)
    0.5
    """
    _check_finite(pesq=pesq, visqol_speech=visqol_speech, mel=mel)
    shares = ((pesq - 1.04) / 3.60, (visqol_speech - 1.0) / 4.0, 1.0 - mel / 12.0)
    return sum(_clip(share) for share in shares) / 3.0


def score_of_share(q: float | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Read the score curve: the monotone piecewise cubic (PCHIP) through `KNOTS`.

    Parameters
    ----------
    q : float or ndarray
        Means of the shares; clipped to [0, 1].

    Returns
    -------
    ndarray
        Scores, 0 to 95.5, of ``q``'s shape.

    References
    ----------
    Fritsch and Butland (1984), "A method for constructing local monotone piecewise cubic
    interpolants".

    Examples
    --------
    >>> [round(float(score_of_share(q)), 2) for q in (-1.0, 0.299, 0.647, 1.0)]
    [0.0, 30.1, 83.1, 95.5]
    """
    x, y = np.array([(knot.q, knot.score) for knot in KNOTS]).T
    q = np.clip(np.asarray(q, dtype=np.float64), 0.0, 1.0)
    slopes = _pchip_slopes(x, y)
    left = np.clip(np.searchsorted(x, q, side="right") - 1, 0, len(x) - 2)
    width = x[left + 1] - x[left]
    t = (q - x[left]) / width
    value = (
        (1 + 2 * t) * (1 - t) ** 2 * y[left]
        + t * (1 - t) ** 2 * width * slopes[left]
        + t**2 * (3 - 2 * t) * y[left + 1]
        + t**2 * (t - 1) * width * slopes[left + 1]
    )
    return np.asarray(np.clip(value, 0.0, 100.0))


def mushra_proxy(pesq: float, visqol_audio: float, mel_db: float) -> float:
    """Give the MUSHRA-proxy of three measures (of one item, or of means over items).

    For clean speech at 24 kHz and above: plus minus 10, a proxy, not a listening test.

    Parameters
    ----------
    pesq, visqol_audio, mel_db : float
        As in `quality_share`.

    Returns
    -------
    float
        0 to 95.5.

    Raises
    ------
    ValueError
        Where a measure is not a finite number.

    Examples
    --------
    >>> mushra_proxy(4.644, 4.732, 0.0), mushra_proxy(1.04, 1.0, 20.0)
    (95.5, 0.0)
    """
    return float(score_of_share(quality_share(pesq, visqol_audio, mel_db)))


def score_condition(
    rows: Iterable[Mapping[str, Any]], *, resamples: int = 2000, seed: int = 0
) -> ConditionScore:
    """Score a condition from its items: the curve's value at the mean of their shares.

    The knots are means over items too, so the mean is taken before the curve.

    Parameters
    ----------
    rows : iterable of dict
        ``"pesq"``, ``"visqol_audio"`` and ``"mel_db"`` of each item.
    resamples : int
        Draws of the bootstrap.
    seed : int
        Of those draws.

    Returns
    -------
    ConditionScore
        With its interval over items.

    Raises
    ------
    ValueError
        Where there is no item or one lacks a measure: the proxy does not guess.

    Examples
    --------
    >>> rows = [{"pesq": 2.0 + i / 10, "visqol_audio": 2.5, "mel_db": 9.0} for i in range(8)]
    >>> found = score_condition(rows)
    >>> found.low < found.score < found.high, found.count
    (True, 8)
    """
    shares = _shares(rows, PROXY_KEYS, quality_share, "the MUSHRA-proxy")
    return _scored(shares, score_of_share, resamples, seed)


def rank_condition(
    rows: Iterable[Mapping[str, Any]], *, resamples: int = 2000, seed: int = 0
) -> ConditionScore:
    """Do the same for the ranking at 16 kHz and below; its score is 100 times the mean share.

    Parameters and errors are `score_condition`'s, with ``"pesq"``, ``"visqol_speech"`` and
    ``"mel"``.

    Examples
    --------
    >>> rank_condition([{"pesq": 2.84, "visqol_speech": 3.0, "mel": 6.0}]).low is None
    True
    """
    shares = _shares(rows, RANKING_KEYS, ranking_score, "the ranking")
    return _scored(shares, lambda q: 100.0 * np.asarray(q), resamples, seed)


def _shares(
    rows: Iterable[Mapping[str, Any]],
    keys: Sequence[str],
    share: Callable[[float, float, float], float],
    name: str,
) -> np.ndarray[Any, Any]:
    rows = list(rows)
    lacking = [
        f"{row.get('id', number)!r} lacks {', '.join(k for k in keys if row.get(k) is None)}"
        for number, row in enumerate(rows)
        if any(row.get(key) is None for key in keys)
    ]
    if lacking or not rows:
        what = "; ".join(lacking[:5]) + ("; ..." if len(lacking) > 5 else "")
        raise ValueError(
            f"{name} needs {', '.join(keys)} of every item, of one item at least: {what or 'none'}"
        )
    return np.array([share(*(float(row[key]) for key in keys)) for row in rows])


def _scored(
    shares: np.ndarray[Any, Any],
    score: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    resamples: int,
    seed: int,
) -> ConditionScore:
    mean = shares.mean()
    low = high = None
    if len(shares) > 1:
        draws = np.random.default_rng(seed).integers(len(shares), size=(resamples, len(shares)))
        low, high = (
            float(end) for end in np.quantile(score(shares[draws].mean(1)), [0.025, 0.975])
        )
    return ConditionScore(float(score(mean)), low, high, float(mean), len(shares))


def _pchip_slopes(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Slopes at the knots that keep the curve monotone, as SciPy's ``PchipInterpolator``.

    Not SciPy itself: numbers are computed again from rows on machines that have no extra.
    """
    width = np.diff(x)
    rise = np.diff(y) / width
    weight = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    inner = (weight[0] + weight[1]) / (weight[0] / rise[:-1] + weight[1] / rise[1:])
    return np.array(
        [
            _end_slope(width[0], width[1], rise[0], rise[1]),
            *inner,
            _end_slope(width[-1], width[-2], rise[-1], rise[-2]),
        ]
    )


def _end_slope(width: float, next_width: float, rise: float, next_rise: float) -> float:
    """Three-point slope at an end, limited for monotony; all rises are above zero here."""
    slope = ((2 * width + next_width) * rise - width * next_rise) / (width + next_width)
    return max(slope, 0.0)


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _check_finite(**measures: float) -> None:
    bad = {name: value for name, value in measures.items() if not math.isfinite(value)}
    if bad:
        raise ValueError(f"measures must be finite numbers, got {bad}")
