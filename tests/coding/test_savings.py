"""What entropy coding saves: sizes are those of real files, and a wrong decoder is found."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from speechkit.coding.predictor import FixedPredictor, encode_codes
from speechkit.coding.savings import file_size, measure_blocks
from speechkit.coding.skc import SkcHeader, read_skc, write_skc

COUNTS = np.array([[0, 60000, 64000, 65000, 65536], [0, 16384, 32768, 49152, 65536]])


def header(entropy_id: bytes = b"") -> SkcHeader:
    return SkcHeader(
        sample_rate=16000, channels=1, num_codebooks=2, codebook_size=4, hop_length=320,
        model_id=b"a codec!", entropy_id=entropy_id,
    )  # fmt: skip


def draw(num_frames: int) -> np.ndarray:
    generator = np.random.default_rng(num_frames)
    first = generator.choice(4, size=num_frames, p=np.diff(COUNTS[0]) / 65536)
    return np.stack([first, generator.integers(4, size=num_frames)])


@pytest.mark.parametrize("num_frames", [1, 49, 50, 51, 3300, 3333])
def test_sizes_are_those_of_a_file(num_frames: int) -> None:
    predictor, codes = FixedPredictor(COUNTS), draw(num_frames)
    blocks = [codes[:, n : n + 50] for n in range(0, num_frames, 50)]  # more than 64, of 3333
    sizes = measure_blocks(blocks, header(), predictor)
    assert [s.coded_bytes for s in sizes] == [len(encode_codes(b, predictor)) for b in blocks]
    bits = [
        -np.log2(np.diff(COUNTS)[np.arange(2)[:, None], block] / 65536).sum() for block in blocks
    ]
    assert [s.predictor_bits for s in sizes] == pytest.approx(bits)
    payloads = {
        "plain": [s.packed_bytes for s in sizes],
        "coded": [min(s.packed_bytes, s.coded_bytes) for s in sizes],
    }
    for kind, used in (("plain", None), ("coded", predictor)):
        head = header(used.digest if used else b"")
        file = io.BytesIO()
        write_skc(file, head, codes, 320 * num_frames, used)
        assert file.tell() == file_size(head, payloads[kind])
        file.seek(0)
        assert np.array_equal(read_skc(file, used).codes, codes)


def test_a_decoder_that_differs_is_found() -> None:
    class Other(FixedPredictor):
        def step(self, state: Any, codes: np.ndarray | None) -> np.ndarray:
            return super().step(state, codes)[:, ::-1]

        def intervals(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return FixedPredictor(COUNTS).intervals(codes)

    with pytest.raises(RuntimeError, match=r"block of \(2, 50\) codes does not come back"):
        measure_blocks([draw(50)], header(), Other(COUNTS))
