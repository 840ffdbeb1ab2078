"""Small ``.skc`` files: 12 chunks of five frames or so, each a second."""

import io

import numpy as np

from speechkit.coding.predictor import FixedPredictor
from speechkit.coding.skc import SkcHeader, write_skc

CHUNK = 5  # frames


def make_header(predictor=None, **changes) -> SkcHeader:
    fields = {
        "sample_rate": 1600,
        "channels": 2,
        "num_codebooks": 4,
        "codebook_size": 64,
        "hop_length": 320,
        "model_id": b"codec 01",
        "entropy_id": predictor.digest if predictor else b"",
    }
    return SkcHeader(**{**fields, **changes})


def make_file(codes: np.ndarray, predictor=None, num_samples: int | None = None, **changes):
    file = io.BytesIO()
    header = make_header(predictor, **changes)
    samples = codes.shape[1] * 320 - 7 if num_samples is None else num_samples
    write_skc(file, header, codes, samples, predictor)
    return file.getvalue()


def likely_predictor() -> FixedPredictor:
    """Small codes are likely, in every codebook."""
    counts = np.zeros((4, 65), dtype=np.int64)
    counts[:, 1:] = np.floor(65472 * (1 - 0.9 ** np.arange(1, 65)) / (1 - 0.9**64))
    return FixedPredictor(counts + np.arange(65))


def small_codes(num_frames: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.minimum(generator.geometric(0.1, (4, num_frames)) - 1, 63)


class Pipe(io.RawIOBase):
    """Bytes that come in small parts and cannot be sought in."""

    def __init__(self, data: bytes, part: int = 7) -> None:
        super().__init__()
        self.stream, self.part = io.BytesIO(data), part

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.stream.read(min(size, self.part) if size >= 0 else self.part)


def record_starts(data: bytes) -> list[int]:
    starts = [24 if not data[4] >> 4 else 32]
    while starts[-1] < len(data):
        word = int.from_bytes(data[starts[-1] : starts[-1] + 2], "big")
        starts.append(starts[-1] + 6 + (word & 0x3FFF))
    assert starts[-1] == len(data)
    return starts
