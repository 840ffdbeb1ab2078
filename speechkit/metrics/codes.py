"""How well a language model predicts a codec's codes, and what that saves in files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from speechkit.losses.cross_entropy import sequence_cross_entropy
from speechkit.metrics.results import Result

_SIZES = ("packed_bytes", "coded_bytes", "predictor_bits", "packed_file_bytes", "coded_file_bytes")


def code_bits(logits: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
    """Cross-entropy of each codebook in bits, summed over an item's valid frames.

    Parameters
    ----------
    logits : Tensor
        Shape ``(B, Q, T, V)``.
    codes : Tensor
        Shape ``(B, Q, T)``, int64; what lies beyond an item's length means nothing.
    lengths : Tensor
        Shape ``(B,)``: valid frames.

    Returns
    -------
    Tensor
        Shape ``(B, Q)``, float32, with gradients.

    Examples
    --------
    >>> import torch
    >>> code_bits(torch.zeros(1, 2, 5, 16), torch.zeros(1, 2, 5).long(), torch.tensor([3]))
    tensor([[12., 12.]])
    """
    B, Q, _, _ = logits.shape
    nats = sequence_cross_entropy(
        logits.flatten(0, 1), codes.flatten(0, 1), lengths.repeat_interleave(Q)
    )
    return nats.view(B, Q) / math.log(2.0)


def summarize(rows: Iterable[Mapping[str, Any]]) -> list[Result]:
    """Make the results of a language model over codes from its rows, one an utterance.

    Parameters
    ----------
    rows : iterable of mappings
        Each with ``"frames"`` and ``"rates"``, a list of one mapping a bit rate: ``"kbps"``,
        ``"num_codebooks"`` and ``"bits"`` (cross-entropy of the float model); of a test also
        ``"packed_bytes"`` and ``"coded_bytes"`` (the codes packed plainly and entropy-coded),
        ``"predictor_bits"`` (cross-entropy of the integer model), ``"packed_file_bytes"`` and
        ``"coded_file_bytes"`` (whole ``.skc`` files).

    Returns
    -------
    list of Result
        ``bits_per_code`` over all rates together, then for each rate, ``R``: ``saving_R`` (codes)
        and ``file_saving_R`` (whole files), in percent of plain packing; ``bits_per_code_R`` of
        the float model; ``coded_bits_per_code_R`` of the bytes; ``excess_R`` of the bytes over the
        float model's entropy, in percent, and the part of it that rounding to integers takes,
        ``rounding_R``.

    Raises
    ------
    ValueError
        If there is no row, or a row lacks a number (its number and id are named).

    Examples
    --------
    >>> rates = [{"kbps": 6.0, "num_codebooks": 2, "bits": 144.0, "packed_bytes": 25,
    ...           "coded_bytes": 19, "predictor_bits": 146.0, "packed_file_bytes": 63,
    ...           "coded_file_bytes": 65}]
    >>> results = summarize([{"id": "a", "frames": 10, "rates": rates}])
    >>> {r.metric: round(r.value, 2) for r in results}
    {'bits_per_code': 7.2, 'saving_6kbps': 24.0, 'file_saving_6kbps': -3.17,
     'bits_per_code_6kbps': 7.2, 'coded_bits_per_code_6kbps': 7.6, 'excess_6kbps': 5.56,
     'rounding_6kbps': 1.39}
    """
    totals: dict[float, dict[str, list[float]]] = {}
    for number, row in enumerate(rows, start=1):
        place = f"row {number} (id {row.get('id')!r})"
        frames = _number(row, "frames", place)
        for rate in row.get("rates") or ():
            total = totals.setdefault(_number(rate, "kbps", place), {})
            codes = frames * _number(rate, "num_codebooks", place)
            total.setdefault("codes", []).append(codes)
            for key in ("bits", *(_SIZES if _SIZES[0] in rate else ())):
                total.setdefault(key, []).append(_number(rate, key, place))
    if not totals:
        raise ValueError("there is no row with a rate: nothing was measured")
    # exact sums: the same in any order of the rows
    sums = {
        kbps: {key: math.fsum(values) for key, values in total.items()}
        for kbps, total in sorted(totals.items())
    }
    bits, codes = (math.fsum(s[key] for s in sums.values()) for key in ("bits", "codes"))
    results = [Result("bits_per_code", bits / codes, "bits", int(codes))]
    return results + [result for kbps, total in sums.items() for result in _of_rate(kbps, total)]


def _of_rate(kbps: float, total: Mapping[str, float]) -> list[Result]:
    codes, bits = total["codes"], total["bits"]
    values = {"bits_per_code": (bits / codes, "bits")}
    if "coded_bytes" in total:
        coded = 8.0 * total["coded_bytes"]
        values = {
            "saving": (_percent_less(total["coded_bytes"], total["packed_bytes"]), "%"),
            "file_saving": (
                _percent_less(total["coded_file_bytes"], total["packed_file_bytes"]), "%",
            ),
            **values,
            "coded_bits_per_code": (coded / codes, "bits"),
            "excess": (-_percent_less(coded, bits), "%"),
            "rounding": (-_percent_less(total["predictor_bits"], bits), "%"),
        }  # fmt: skip
    return [
        Result(f"{name}_{kbps:g}kbps", value, unit, int(codes))
        for name, (value, unit) in values.items()
    ]


def _percent_less(value: float, reference: float) -> float:
    return 100.0 * (1.0 - value / reference)


def _number(values: Mapping[str, Any], key: str, place: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{place} needs a number under {key!r}, has {value!r}")
    if value <= 0:
        raise ValueError(f"{place}: {key!r} is {value}, must be above 0")
    return float(value)
