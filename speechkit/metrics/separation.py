"""How well sources were separated: SI-SNR, SDR, PESQ, STOI and their improvements.

The estimates of an utterance are put in order once, by SI-SNR, and every metric uses that order.
SI-SNR is computed here; the others come from packages of the extra ``metrics`` (``fast_bss_eval``,
``pesq``, ``pystoi``), and a metric whose package is missing is left out of the row with a warning.

What cannot be computed is None and has its reason under ``"notes"``:

- a silent source (constant, up to rounding) has none of the metrics, and is not counted;
- PESQ finds no utterance in silence and exists at 8 and 16 kHz only; STOI needs about 0.4 s of
  speech.

A silent estimate of a source that is not silent is a failure and counts as one: -80 dB of SI-SNR
and SDR, which is also the least (and 80 dB the most) that any pair can have.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from speechkit.losses.separation import pairwise_si_snr, permutation_invariant
from speechkit.metrics.results import Result

_SILENCE = 1e-16  # variance; audio of 32 bits has more
_MOST_DB = 80.0  # of SI-SNR by its definition in losses.separation; SDR is clamped to the same


class NotComputableError(ValueError):
    """A metric has no value for these signals; the message says why."""


def score_utterance(
    estimates: Tensor,
    sources: Tensor,
    mixture: Tensor,
    sample_rate: int,
    *,
    metrics: Sequence[str] = ("si_snr", "sdr", "pesq", "stoi"),
) -> dict[str, Any]:
    """Score the separation of one mixture.

    Parameters
    ----------
    estimates : Tensor
        Shape ``(S, T)``, in any order.
    sources : Tensor
        Shape ``(S, T)``: what the estimates should be.
    mixture : Tensor
        Shape ``(T,)``: what improvements are measured from.
    sample_rate : int
        In Hz.
    metrics : sequence of str
        From ``"si_snr"``, ``"sdr"``, ``"pesq"``, ``"stoi"``. SI-SNR is always there: it gives the
        order.

    Returns
    -------
    dict
        What JSON can hold: ``"order"`` (of each source, its estimate's index), and per metric a
        list with a number or None for each source: ``"si_snr"``, ``"si_snr_mixture"``,
        ``"si_snri"`` (their difference), ``"sdr"``, ``"sdr_mixture"``, ``"sdri"`` (all in dB),
        ``"pesq"`` (MOS-LQO, narrow band at 8 kHz and wide band at 16 kHz), ``"stoi"`` (up to 1).
        ``"notes"`` lists why something is None.

    Raises
    ------
    ValueError
        Where shapes disagree, there is no sample, a sample is not finite, or a metric is unknown.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> sources = torch.randn(2, 8000, generator=generator)
    >>> mixture = sources.sum(0)
    >>> estimates = sources.flip(0) + 0.1 * mixture
    >>> row = score_utterance(estimates, sources, mixture, 8000, metrics=["si_snr"])
    >>> row["order"], [round(value) for value in row["si_snri"]]
    ([1, 0], [21, 21])
    """
    unknown = [name for name in metrics if name != "si_snr" and name not in _MEASURES]
    if unknown:
        raise ValueError(f"no metric {unknown}; there are: {['si_snr', *_MEASURES]}")
    estimates, sources, mixture = _checked(estimates, sources, mixture)
    length = torch.tensor([sources.shape[1]])
    scores = pairwise_si_snr(estimates[None], sources[None], length)
    order = permutation_invariant(scores).order[0]
    estimates = estimates[order]
    silent = _is_silent(sources)
    notes = [f"source {s}: silent" for s, is_silent in enumerate(silent) if is_silent]
    row: dict[str, Any] = {
        "order": order.tolist(),
        "si_snr": _known(scores[0].gather(0, order[None])[0], silent),
        "si_snr_mixture": _known(
            pairwise_si_snr(mixture[None, None], sources[None], length)[0, 0], silent
        ),
    }
    row["si_snri"] = _differences(row["si_snr"], row["si_snr_mixture"])
    for name in (name for name in _MEASURES if name in metrics):
        try:
            row[name] = _measure(name, estimates, sources, sample_rate, silent, notes)
            if name == "sdr":
                inputs = mixture.expand_as(sources)
                row["sdr_mixture"] = _measure(name, inputs, sources, sample_rate, silent, notes)
                row["sdri"] = _differences(row["sdr"], row["sdr_mixture"])
        except ImportError as error:
            warnings.warn(f"{name} is left out: {error}", stacklevel=2)
    row["notes"] = notes
    return row


def signal_to_distortion(estimate: Tensor, source: Tensor) -> float:
    """Compute the SDR of BSS-eval version 3, in dB, through ``fast_bss_eval``.

    The part of the estimate that a filter of 512 taps can make from the source counts as signal,
    all else as distortion. Clamped to -80 and 80 dB.

    Parameters
    ----------
    estimate, source : Tensor
        Shape ``(T,)``.

    Raises
    ------
    NotComputableError
        Where the source is silent, or no filter can be solved for.
    ImportError
        Without ``fast_bss_eval``.

    References
    ----------
    Vincent, Gribonval and Fevotte (2006), "Performance measurement in blind audio source
    separation"; Scheibler (2022), "SDR - medium rare with fast computations".
    """
    fast_bss_eval = _imported("fast_bss_eval")
    estimate, source = _speech(estimate, source)
    try:
        # in torch: the package's numpy half does not know numpy 2
        value = -float(fast_bss_eval.sdr_loss(estimate[None], source[None], filter_length=512))
    except torch.linalg.LinAlgError as error:
        raise NotComputableError(f"SDR finds no filter: {error}") from error
    if math.isnan(value):
        raise NotComputableError("SDR finds no filter: the source is too regular")
    return max(-_MOST_DB, min(_MOST_DB, value))


def pesq(estimate: Tensor, source: Tensor, sample_rate: int) -> float:
    """Compute PESQ (MOS-LQO, 1 to about 4.6) through ``pesq``.

    Narrow band (ITU-T P.862.1) at 8 kHz, wide band (P.862.2) at 16 kHz.

    Parameters
    ----------
    estimate, source : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.

    Raises
    ------
    NotComputableError
        At other rates; where one of the two is silent or too short, or holds no utterance.
    ImportError
        Without ``pesq``.
    """
    package = _imported("pesq")
    modes = {8000: "nb", 16000: "wb"}
    if sample_rate not in modes:
        raise NotComputableError(f"PESQ exists at 8000 and 16000 Hz, not at {sample_rate}")
    estimate, source = _speech(estimate, source)
    if _is_silent(estimate[None])[0]:
        raise NotComputableError("PESQ of a silent estimate")
    try:
        value = package.pesq(sample_rate, source.numpy(), estimate.numpy(), modes[sample_rate])
    except package.PesqError as error:
        text = error.args[0] if error.args else error
        reason = text.decode() if isinstance(text, bytes) else str(text)
        raise NotComputableError(f"PESQ: {reason}") from error
    return float(value)


def stoi(estimate: Tensor, source: Tensor, sample_rate: int) -> float:
    """Compute short-time objective intelligibility (up to 1) through ``pystoi``.

    Parameters
    ----------
    estimate, source : Tensor
        Shape ``(T,)``.
    sample_rate : int
        In Hz.

    Raises
    ------
    NotComputableError
        Where the source is silent, or has too little speech (30 frames, about 0.4 s).
    ImportError
        Without ``pystoi``.

    References
    ----------
    Taal, Hendriks, Heusdens and Jensen (2011), "An algorithm for intelligibility prediction of
    time-frequency weighted noisy speech".
    """
    package = _imported("pystoi")
    estimate, source = _speech(estimate, source)
    too_short = "STOI needs about 0.4 s of speech"
    if len(source) < 0.3 * sample_rate:  # the package fails below one of its frames
        raise NotComputableError(too_short)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the value tells what they say
        value = float(package.stoi(source.numpy(), estimate.numpy(), sample_rate))
    if value == 1e-5:  # what the package returns for too few frames
        raise NotComputableError(too_short)
    if not math.isfinite(value):
        raise NotComputableError(f"STOI is {value}")
    return value


def summarize(rows: Iterable[dict[str, Any]]) -> list[Result]:
    """Make a separator's results from its per-utterance rows.

    Parameters
    ----------
    rows : iterable of dict
        As :func:`score_utterance` gives; other keys are ignored.

    Returns
    -------
    list of Result
        SI-SNRi, SDRi, SI-SNR, SDR (dB), PESQ (MOS) and STOI, those that the rows have. Each is the
        mean over sources, and its count says over how many: those with a value.

    Raises
    ------
    ValueError
        Where a row lacks SI-SNR, lists of a row differ in length, a value is no number, or no
        source has a value at all (the row's number and id are named).

    Examples
    --------
    >>> rows = [{"id": "a", "si_snr": [12.0, 10.0], "si_snr_mixture": [0.0, None]}]
    >>> [(r.metric, r.value, r.count) for r in summarize(rows)]
    [('SI-SNRi', 12.0, 1), ('SI-SNR', 11.0, 2)]
    """
    values: dict[str, list[float]] = {metric: [] for metric, *_ in _COLUMNS}
    for number, row in enumerate(rows, start=1):
        where = f"row {number} (id {row.get('id')!r})"
        lists = {key: _numbers(row, key, where) for key in _KEYS if key in row}
        if not {"si_snr", "si_snr_mixture"} <= lists.keys():
            raise ValueError(f"{where} needs 'si_snr' and 'si_snr_mixture', has {sorted(row)}")
        if len({len(numbers) for numbers in lists.values()}) > 1:
            sizes = {key: len(numbers) for key, numbers in lists.items()}
            raise ValueError(f"{where}: metrics have other numbers of sources: {sizes}")
        for metric, key, base, _ in _COLUMNS:
            if key in lists and (base is None or base in lists):
                found = lists[key] if base is None else _differences(lists[key], lists[base])
                values[metric] += [value for value in found if value is not None]
    if not values["SI-SNRi"]:
        raise ValueError("no row has a source with an SI-SNR and one of its mixture: none to count")
    return [
        Result(metric, math.fsum(values[metric]) / len(values[metric]), unit, len(values[metric]))
        for metric, _, _, unit in _COLUMNS
        if values[metric]
    ]


_COLUMNS: tuple[tuple[str, str, str | None, str], ...] = (
    ("SI-SNRi", "si_snr", "si_snr_mixture", "dB"),
    ("SDRi", "sdr", "sdr_mixture", "dB"),
    ("SI-SNR", "si_snr", None, "dB"),
    ("SDR", "sdr", None, "dB"),
    ("PESQ", "pesq", None, "MOS"),
    ("STOI", "stoi", None, ""),
)
_KEYS = ("si_snr", "si_snr_mixture", "sdr", "sdr_mixture", "pesq", "stoi")
_MEASURES: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "sdr": lambda estimate, source, sample_rate: signal_to_distortion(estimate, source),
    "pesq": pesq,
    "stoi": stoi,
}


def _checked(estimates: Tensor, sources: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give the signals in float64 on the CPU, or an error that names the shapes."""
    shapes = (
        f"estimates {tuple(estimates.shape)}, sources {tuple(sources.shape)}, "
        f"mixture {tuple(mixture.shape)}"
    )
    if estimates.dim() != 2 or sources.dim() != 2 or mixture.dim() != 1:
        raise ValueError(f"expected (S, T), (S, T) and (T,), got {shapes}")
    if estimates.shape[0] != sources.shape[0]:
        raise ValueError(f"an estimate with another number of speakers than the sources: {shapes}")
    if not estimates.shape[1] == sources.shape[1] == mixture.shape[0]:
        raise ValueError(f"signals of different lengths: {shapes}")
    if sources.numel() == 0:
        raise ValueError(f"nothing to score: {shapes}")
    for name, x in (("estimates", estimates), ("sources", sources), ("mixture", mixture)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name} hold samples that are not finite: {shapes}")
    estimates, sources, mixture = (x.detach().cpu() for x in (estimates, sources, mixture))
    return estimates.double(), sources.double(), mixture.double()


def _is_silent(signals: Tensor) -> list[bool]:
    """Which of (S, T) are constant up to rounding."""
    silent: list[bool] = (signals.var(dim=1, correction=0) <= _SILENCE).tolist()
    return silent


def _speech(estimate: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Both as a package takes them, or an error for a source that nothing can be compared with."""
    if estimate.shape != source.shape or source.dim() != 1 or source.numel() == 0:
        raise ValueError(
            f"expected two signals (T,), got {tuple(estimate.shape)} and {tuple(source.shape)}"
        )
    if _is_silent(source[None])[0]:
        raise NotComputableError("the source is silent")
    return estimate.detach().cpu().double(), source.detach().cpu().double()


def _imported(package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package} is not installed: pip install 'speechkit[metrics]'"
        ) from error


def _measure(
    name: str,
    estimates: Tensor,
    sources: Tensor,
    sample_rate: int,
    silent: Sequence[bool],
    notes: list[str],
) -> list[float | None]:
    """One metric of each source; reasons for None go to the notes."""
    values: list[float | None] = []
    for s, (estimate, source) in enumerate(zip(estimates, sources)):
        value = None
        if not silent[s]:
            try:
                value = _MEASURES[name](estimate, source, sample_rate)
            except NotComputableError as error:
                notes.append(f"source {s}: {error}")
        values.append(value)
    return values


def _known(values: Tensor, silent: Sequence[bool]) -> list[float | None]:
    return [None if is_silent else x for x, is_silent in zip(values.tolist(), silent)]


def _differences(
    values: Sequence[float | None], bases: Sequence[float | None]
) -> list[float | None]:
    return [None if x is None or y is None else x - y for x, y in zip(values, bases)]


def _numbers(row: dict[str, Any], key: str, where: str) -> list[float | None]:
    values = row[key]
    good = isinstance(values, list) and all(
        x is None or (isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x))
        for x in values
    )
    if not good:
        raise ValueError(f"{where}: {key!r} must list a number or null per source, has {values!r}")
    return list(values)
