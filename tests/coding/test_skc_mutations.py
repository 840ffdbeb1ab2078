"""Seeded damage of every kind: found always, and confined to the chunks that it hits."""

import binascii
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from skc_files import CHUNK, Pipe, likely_predictor, make_file, record_starts, small_codes

from speechkit.coding.skc import SkcError, SkcReader, read_skc


class Mutation:
    """One seeded change of a file, and the chunks that it leaves untouched."""

    def __init__(self, data: bytes, starts: list[int], seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.data, self.starts = data, starts  # the starts of records, and the end of the last
        self.most_lost = 13
        self.kind = (
            "flip",
            "cut",
            "swap",
            "noise",
            "insert",
            "delete",
            "repeat",
            "header",
            "tail",
        )[seed % 9]
        self.result: bytes = getattr(self, self.kind)()

    def draw(self, low: int, high: int) -> int:
        return int(self.generator.integers(low, high))

    def keep(self, first: int, end: int) -> None:
        """Note that the bytes in [first, end) are not what they were."""
        pairs = zip(self.starts, self.starts[1:])
        self.intact = [i for i, (a, b) in enumerate(pairs) if b <= first or a >= end]
        self.header_hit = first < self.starts[0]

    def flip(self) -> bytes:
        place = self.draw(0, len(self.data))
        self.keep(place, place + 1)
        changed = bytearray(self.data)
        changed[place] ^= 1 << self.draw(0, 8)
        return bytes(changed)

    def cut(self) -> bytes:
        size = self.draw(0, len(self.data))
        self.keep(size, len(self.data))
        return self.data[:size]

    def swap(self) -> bytes:
        i, j = sorted(self.generator.choice(len(self.starts) - 1, 2, replace=False).tolist())
        (a, b), (c, d) = self.starts[i : i + 2], self.starts[j : j + 2]
        self.keep(0, 0)
        self.intact = []  # of three in the wrong order, the one that is kept need not be the middle
        self.most_lost = 2
        data = self.data
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]

    def noise(self) -> bytes:
        first = self.draw(0, len(self.data))
        end = min(first + self.draw(1, 60), len(self.data))
        self.keep(first, end)
        return self.data[:first] + self.generator.bytes(end - first) + self.data[end:]

    def insert(self) -> bytes:
        place = self.draw(0, len(self.data))
        self.keep(place, place)
        self.intact = [
            i for i, (a, b) in enumerate(zip(self.starts, self.starts[1:])) if not a < place < b
        ]
        self.header_hit = place < self.starts[0]
        return self.data[:place] + self.generator.bytes(self.draw(1, 40)) + self.data[place:]

    def delete(self) -> bytes:
        first = self.draw(0, len(self.data))
        end = min(first + self.draw(1, 60), len(self.data))
        self.keep(first, end)
        return self.data[:first] + self.data[end:]

    def repeat(self) -> bytes:
        i = self.draw(0, len(self.starts) - 1)
        a, b = self.starts[i : i + 2]
        self.keep(0, 0)
        return self.data[:b] + self.data[a:b] + self.data[b:]

    def header(self) -> bytes:
        """Absurd fields, half of the time with the right checksum."""
        changed = bytearray(self.data)
        place, size = [(3, 1), (4, 1), (5, 1), (6, 3), (9, 2), (11, 2), (13, 1), (14, 2), (16, 8)][
            self.draw(0, 9)
        ]
        choice = self.draw(0, 3)
        changed[place : place + size] = [b"\xff" * size, bytes(size), self.generator.bytes(size)][
            choice
        ]
        if self.draw(0, 2):
            ids = bytes(changed[16 : self.starts[0]])
            changed[14:16] = struct.pack(">H", binascii.crc_hqx(bytes(changed[:14]) + ids, 0))
        self.keep(0, len(self.data))
        self.header_hit = True
        return bytes(changed)

    def tail(self) -> bytes:
        self.keep(0, 0)
        return self.data + self.generator.bytes(self.draw(1, 100))


@pytest.mark.parametrize("coded", [False, True])
def test_seeded_mutations(coded):
    predictor = likely_predictor() if coded else None
    codes = small_codes(12 * CHUNK + 3)
    data = make_file(codes, predictor)
    starts = record_starts(data)
    assert len(starts) == 14
    concealed = 0
    for seed in range(600):
        mutation = Mutation(data, starts, seed)
        if mutation.result == data:
            continue
        where = f"seed {seed}, {mutation.kind}"
        with pytest.raises(SkcError):
            read_skc(io.BytesIO(mutation.result), predictor)
        try:
            reader = SkcReader(Pipe(mutation.result, 1000), predictor, conceal=True)
            chunks = list(reader.chunks())
        except SkcError:
            assert mutation.header_hit, where
            continue
        assert reader.damages, where
        whole = {chunk.number: chunk for chunk in chunks if chunk.codes is not None}
        if mutation.kind == "header":
            assert not whole, where
            continue
        for number, chunk in whole.items():
            expected = codes[:, number * CHUNK : (number + 1) * CHUNK]
            np.testing.assert_array_equal(chunk.codes, expected, err_msg=where)
        assert set(mutation.intact) <= set(whole), where
        assert len(whole) >= 13 - mutation.most_lost, where
        ends = [chunk.first_frame + chunk.num_frames for chunk in chunks]
        assert [chunk.first_frame for chunk in chunks] == [0, *ends[:-1]], where
        concealed += 1
    assert concealed > 400
