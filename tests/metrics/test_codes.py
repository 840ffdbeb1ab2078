"""Numbers of a language model over codes: from rows to results."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from speechkit.metrics.codes import code_bits, summarize
from speechkit.metrics.results import SCORERS


def row(name: str, frames: int, scale: float, **changes: Any) -> dict[str, Any]:
    rate = {
        "kbps": 1.5, "num_codebooks": 2, "bits": 10.0 * frames * scale,
        "packed_bytes": 2 * frames, "coded_bytes": math.ceil(1.5 * frames * scale),
        "predictor_bits": 11.0 * frames * scale, "packed_file_bytes": 2 * frames + 38,
        "coded_file_bytes": math.ceil(1.5 * frames * scale) + 46, **changes,
    }  # fmt: skip
    low = {"kbps": 0.75, "num_codebooks": 1, "bits": 7.0 * frames}
    return {"id": name, "frames": frames, "rates": [rate, low]}


def test_results_are_of_all_codes_together() -> None:
    """Long utterances count for more; a mean of the utterances' own numbers would not do."""
    rows = [row("a", 100, 1.0), row("b", 900, 0.5)]
    results = {r.metric: r for r in SCORERS["codes"](rows)}
    bits = 10.0 * 100 + 10.0 * 900 * 0.5
    coded = 150 + 675
    expected = {
        "bits_per_code": ((bits + 7000) / 3000, 3000),
        "bits_per_code_0.75kbps": (7.0, 1000),
        "bits_per_code_1.5kbps": (bits / 2000, 2000),
        "saving_1.5kbps": (100 * (1 - coded / 2000), 2000),
        "file_saving_1.5kbps": (100 * (1 - (coded + 92) / 2076), 2000),
        "coded_bits_per_code_1.5kbps": (8 * coded / 2000, 2000),
        "excess_1.5kbps": (100 * (8 * coded / bits - 1), 2000),
        "rounding_1.5kbps": (10.0, 2000),
    }
    assert {name: (r.value, r.count) for name, r in results.items()} == {
        name: (pytest.approx(value), count) for name, (value, count) in expected.items()
    }
    # The same in any order, to the last bit.
    assert summarize(rows[::-1]) == summarize(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "nothing was measured"),
        ([{"id": "a", "frames": 5}], "nothing was measured"),
        ([row("a", 9, 1.0), row("b", 9, 1.0, bits=math.nan)], r"row 2 \(id 'b'\).*'bits', has nan"),
        ([row("a", 9, 1.0, coded_bytes=None)], "'coded_bytes', has None"),
        ([row("a", 9, 1.0, kbps=True)], "'kbps', has True"),
        ([row("a", 9, 1.0, packed_bytes=0)], "'packed_bytes' is 0, must be above 0"),
    ],
)
def test_rows_that_lack_something(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarize(rows)


def test_code_bits_leave_padding_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, 5, generator=generator, requires_grad=True)
    codes = torch.randint(5, (2, 3, 7), generator=generator)
    bits = code_bits(logits, codes, torch.tensor([7, 4]))
    log_probs = logits.log_softmax(3).gather(3, codes[..., None])[..., 0] / math.log(2)
    expected = -torch.stack([log_probs[0].sum(1), log_probs[1, :, :4].sum(1)])
    torch.testing.assert_close(bits, expected)
    bits.sum().backward()
    assert logits.grad is not None
    assert logits.grad[1, :, 4:].abs().max() == 0 < logits.grad[1, :, :4].abs().min()
