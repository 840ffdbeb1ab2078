import io
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from seeded import seeded_codes, seeded_model
from skc_files import (
    CHUNK,
    Pipe,
    likely_predictor,
    make_file,
    make_header,
    record_starts,
    small_codes,
)

from speechkit.coding.skc import (
    SkcError,
    SkcHeader,
    SkcReader,
    SkcWriter,
    check_model_id,
    read_skc,
    weights_id,
    write_skc,
)
from speechkit.coding.skc_layout import RecordLayout, pack_codes, unpack_codes
from speechkit.data.errors import DataError


@given(
    seed=st.integers(0, 2**32 - 1),
    num_codebooks=st.integers(1, 9),
    codebook_size=st.sampled_from([2, 3, 64, 1000, 1024, 65536]),
    num_frames=st.integers(0, 23),
    missing=st.integers(0, 319),
    part=st.integers(1, 12),
    side_size=st.just(0),
)
def test_round_trip_through_pipes_in_parts(
    seed, num_codebooks, codebook_size, num_frames, missing, part, side_size
):
    codes = np.random.default_rng(seed).integers(0, codebook_size, (num_codebooks, num_frames))
    samples = max(num_frames * 320 - missing, 0)
    sizes = {
        "num_codebooks": num_codebooks,
        "codebook_size": codebook_size,
        "sample_rate": 1601,
        "side_size": side_size,
    }
    whole = make_file(codes, num_samples=samples, **sizes)
    file = io.BytesIO()
    with SkcWriter(file, make_header(**sizes)) as writer:
        for first in range(0, num_frames, part):
            writer.write(codes[:, first : first + part])
        writer.finish(samples)
    assert file.getvalue() == whole
    content = read_skc(Pipe(whole))
    np.testing.assert_array_equal(content.codes, codes)
    assert content.num_samples == samples
    assert content.header == make_header(**sizes)
    assert content.gaps == []


@given(num_frames=st.integers(0, 60), seed=st.integers(0, 1000))
def test_round_trip_with_entropy_coding(num_frames, seed):
    predictor = likely_predictor()
    codes = small_codes(num_frames, seed)
    data = make_file(codes, predictor, num_samples=0)
    content = read_skc(Pipe(data), predictor)
    np.testing.assert_array_equal(content.codes, codes)
    assert content.num_samples == 0
    # not one chunk is longer than a plain one; the header has eight bytes more
    assert len(data) <= len(make_file(codes, num_samples=0)) + 8


def test_entropy_coding_with_the_integer_model_saves():
    model, codes = seeded_model(), seeded_codes(4, 64, 300)
    sizes = {"sample_rate": 24000}
    plain, coded = make_file(codes, **sizes), make_file(codes, model, **sizes)
    assert len(coded) < 0.97 * len(plain)
    np.testing.assert_array_equal(read_skc(io.BytesIO(coded), model).codes, codes)
    one_by_one = SkcReader(Pipe(coded, 5000), model, num_streams=1).chunks()
    assert next(one_by_one).codes.tolist() == codes[:, :75].tolist()
    with pytest.raises(SkcError, match=f"model {model.digest.hex()}"):
        read_skc(io.BytesIO(coded))
    other = seeded_model(num_layers=1)
    with pytest.raises(SkcError, match=f"{model.digest.hex()}.*{other.digest.hex()}"):
        read_skc(io.BytesIO(coded), other)
    np.testing.assert_array_equal(read_skc(io.BytesIO(plain), model).codes, codes)


def test_sizes_on_the_disk():
    codes = np.zeros((8, 750), dtype=np.int64)
    header = SkcHeader(
        sample_rate=24000,
        channels=1,
        num_codebooks=8,
        codebook_size=1024,
        hop_length=320,
        model_id=bytes(8),
    )
    file = io.BytesIO()
    write_skc(file, header, codes, 240_000)
    # 10 s at 6 kbps: 7500 bytes of codes, and 6 for each chunk, 8 for the last, 24 at the start
    assert len(file.getvalue()) == 7500 + 60 + 8 + 24
    assert header.chunk_frames == 75
    for rate, hop, codebooks, size in [
        (48000, 320, 32, 65536),
        (768_000, 1, 256, 65536),
        (8, 8, 1, 2),
    ]:
        header = make_header(
            sample_rate=rate, hop_length=hop, num_codebooks=codebooks, codebook_size=size
        )
        assert 1 <= header.chunk_frames <= rate / hop
        assert header.packed_size(header.chunk_frames) <= 16_000


@pytest.mark.parametrize("coded", [False, True])
def test_bytes_that_are_no_file(coded):
    predictor = likely_predictor() if coded else None
    generator = np.random.default_rng(1)
    for size in [0, 1, 3, 4, 5, 15, 16, 17, 23, 24, 31, 32, 200, 100_000]:
        for start in (b"", b"SKC", b"SKC\x01", make_file(small_codes(1), predictor)[:32]):
            data = (start + generator.bytes(size))[: max(size, len(start))]
            with pytest.raises(SkcError):
                read_skc(io.BytesIO(data), predictor)
    with pytest.raises(SkcError, match=r"not an \.skc file"):
        read_skc(io.BytesIO(b"RIFF" + bytes(100)))
    with pytest.raises(SkcError, match="version 2"):
        read_skc(io.BytesIO(b"SKC\x02" + bytes(100)))


def test_errors_say_where():
    codes = small_codes(4 * CHUNK)
    data = bytearray(make_file(codes))
    start, end = record_starts(bytes(data))[2:4]
    data[start + 9] ^= 4
    message = rf"chunk 2 \(2.00 s to 3.00 s, bytes {start} to {end}\) is damaged: the checksum"
    with pytest.raises(DataError, match=message):
        read_skc(io.BytesIO(data))
    content = read_skc(io.BytesIO(data), conceal=True)
    (gap,) = content.gaps
    assert (gap.number, gap.first_frame, gap.num_frames) == (2, 2 * CHUNK, CHUNK)
    assert gap.damage.offset == start
    assert not content.codes[:, 2 * CHUNK : 3 * CHUNK].any()
    np.testing.assert_array_equal(content.codes[:, 3 * CHUNK :], codes[:, 3 * CHUNK :])
    assert content.num_samples == 4 * CHUNK * 320 - 7
    summary = SkcReader(io.BytesIO(data)).summary()
    assert (summary.num_chunks, summary.num_frames, summary.num_bytes) == (3, 20, len(data))
    assert [damage.first_chunk for damage in summary.damages] == [2]


def test_a_hole_longer_than_the_window():
    codes = np.random.default_rng(2).integers(0, 64, (4, 8000 * CHUNK))
    data = bytearray(make_file(codes))
    first, end = 40_000, 120_000
    data[first:end] = bytes(end - first)
    content = read_skc(io.BytesIO(data), conceal=True)
    (gap,) = content.gaps
    assert content.codes.shape == codes.shape
    lost = slice(gap.first_frame, gap.first_frame + gap.num_frames)
    assert 0 <= gap.num_frames - (end - first) / 21 * CHUNK < 3 * CHUNK
    same = (content.codes == codes).all(0)
    assert same[: lost.start].all()
    assert same[lost.stop :].all()


@pytest.mark.parametrize("coded", [False, True])
def test_reading_from_a_chunk_on(coded):
    predictor = likely_predictor() if coded else None
    codes = small_codes(30 * CHUNK + 2)
    data = make_file(codes, predictor)
    file = io.BytesIO(b"before" + data)
    file.seek(6)
    reader = SkcReader(file, predictor)
    for first in (0, 1, 17, 30, 3):
        chunks = list(reader.chunks(first))
        assert chunks[0].number == first
        found = np.concatenate([chunk.codes for chunk in chunks], axis=1)
        np.testing.assert_array_equal(found, codes[:, first * CHUNK :])
        assert reader.num_samples == codes.shape[1] * 320 - 7
    with pytest.raises(SkcError, match="no chunk 31; the file ends at chunk 30"):
        list(reader.chunks(31))
    summary = reader.summary()
    assert summary[:4] == (31, codes.shape[1], codes.shape[1] * 320 - 7, len(data))
    assert summary.damages == []
    pipe = SkcReader(Pipe(data), predictor)
    assert next(pipe.chunks(12)).first_frame == 12 * CHUNK
    with pytest.raises(SkcError, match="read once"):
        next(pipe.chunks())
    # damage before the place does not hinder
    damaged = bytearray(data)
    damaged[record_starts(data)[3] + 7] ^= 1
    chunks = list(SkcReader(io.BytesIO(damaged), predictor).chunks(9))
    assert [chunk.number for chunk in chunks] == list(range(9, 31))


def test_hours_at_flat_memory():
    codes = np.random.default_rng(3).integers(0, 64, (4, 40 * CHUNK))
    blocks = 100  # 4000 chunks

    class Counter(io.RawIOBase):
        """Keeps the last block, for what is read again is the same."""

        def __init__(self) -> None:
            super().__init__()
            self.size = 0

        def write(self, data) -> int:
            self.size += len(data)
            return len(data)

    def parts(data: bytes, layout: RecordLayout):
        yield data[:24]
        packed = pack_codes(codes[:, :CHUNK], 6)
        for number in range(4000):
            yield layout.build(number, packed, False, None)

    class Generated(io.RawIOBase):
        def __init__(self, source) -> None:
            super().__init__()
            self.source, self.left = source, b""

        def read(self, size: int = -1) -> bytes:
            while len(self.left) < size and (block := next(self.source, None)):
                self.left += block
            data, self.left = self.left[:size], self.left[size:]
            return data

    header = make_header()
    counter = Counter()
    tracemalloc.start()
    with SkcWriter(counter, header) as writer:
        for _ in range(blocks):
            writer.write(codes)
        writer.finish(0)
    reader = SkcReader(Generated(parts(header.to_bytes(), RecordLayout(header))), conceal=True)
    frames = sum(chunk.num_frames for chunk in reader.chunks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counter.size == 24 + 4000 * 21 + 8
    assert frames == 4000 * CHUNK
    assert [damage.reason for damage in reader.damages] == ["the last chunk is missing"]
    assert peak < 1.5e6


def test_side_bytes():
    header = make_header(side_size=4)
    codes = small_codes(2 * CHUNK + 1)
    file = io.BytesIO()
    with SkcWriter(file, header) as writer:
        for number in range(3):
            part = codes[:, number * CHUNK : (number + 1) * CHUNK]
            writer.write(part, struct.pack(">f", number + 0.5))
        with pytest.raises(ValueError, match="a chunk of 5 frames at a time"):
            writer.write(codes[:, :1], bytes(4))
        writer.finish(codes.shape[1] * 320)
    file.seek(0)
    chunks = list(SkcReader(file).chunks())
    assert [struct.unpack(">f", chunk.side)[0] for chunk in chunks] == [0.5, 1.5, 2.5]
    np.testing.assert_array_equal(np.concatenate([c.codes for c in chunks], axis=1), codes)
    with pytest.raises(ValueError, match="0 side bytes"):
        SkcWriter(io.BytesIO(), header).write(codes[:, :CHUNK])
    empty = io.BytesIO()
    SkcWriter(empty, header).finish(0)
    empty.seek(0)
    assert [chunk.num_frames for chunk in SkcReader(empty).chunks()] == [0]


def test_what_the_writer_refuses():
    writer = SkcWriter(io.BytesIO(), make_header())
    with pytest.raises(ValueError, match=r"lie in \[0, 64\)"):
        writer.write(np.full((4, 2), 64))
    with pytest.raises(ValueError, match="3 codebooks"):
        writer.write(np.zeros((3, 2), dtype=int))
    writer.write(np.zeros((4, 2), dtype=int))
    with pytest.raises(ValueError, match="641 samples, but 2 frames cover 0 to 640"):
        writer.finish(641)
    writer.finish(640)
    for again in (lambda: writer.finish(640), lambda: writer.write(np.zeros((4, 1), dtype=int))):
        with pytest.raises(ValueError, match="finished"):
            again()
    with pytest.raises(ValueError, match="call finish"), SkcWriter(io.BytesIO(), make_header()):
        pass
    with pytest.raises(SkcError, match="none"):
        SkcWriter(io.BytesIO(), make_header(), likely_predictor())
    with pytest.raises(SkcError, match="for 4 codebooks of 64 codes"):
        SkcWriter(
            io.BytesIO(), make_header(likely_predictor(), num_codebooks=5), likely_predictor()
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_rate", 0),
        ("sample_rate", 1 << 24),
        ("channels", 17),
        ("num_codebooks", 257),
        ("codebook_size", 1),
        ("hop_length", 1601),
        ("side_size", 65),
        ("model_id", b"short"),
        ("entropy_id", b"x"),
    ],
)
def test_header_bounds(name, value):
    with pytest.raises(SkcError, match=name):
        make_header(**{name: value})


def test_codes_that_the_checksum_cannot_catch():
    """Someone wrote sound records around codes that are none."""
    header = make_header(codebook_size=60)
    layout = RecordLayout(header)
    good = pack_codes(np.full((4, CHUNK), 7), 6)
    bad = pack_codes(np.full((4, CHUNK), 61), 6)
    data = header.to_bytes() + layout.build(0, bad, False, None)
    data += layout.build(1, good, False, (CHUNK, 100))
    with pytest.raises(SkcError, match="a code is 61, but there are 60"):
        read_skc(io.BytesIO(data))
    content = read_skc(io.BytesIO(data), conceal=True)
    assert (content.codes == [[0] * CHUNK + [7] * CHUNK] * 4).all()
    assert content.num_samples == 100
    absurd = header.to_bytes() + layout.build(0, good, False, (CHUNK, 1 << 40))
    with pytest.raises(SkcError, match="the last chunk is missing"):
        read_skc(io.BytesIO(absurd))
    coded = make_header(likely_predictor())
    wrong = RecordLayout(coded).build(0, bytes(range(1, 15)), True, (CHUNK, 100))
    with pytest.raises(SkcError, match="do not end where they should"):
        read_skc(io.BytesIO(coded.to_bytes() + wrong), likely_predictor())


def test_packed_codes():
    generator = np.random.default_rng(5)
    for bits in (1, 7, 10, 16):
        codes = generator.integers(0, 1 << bits, (3, 5))
        data = pack_codes(codes, bits)
        np.testing.assert_array_equal(unpack_codes(data, 3, 5, bits), codes)
        number = int.from_bytes(data, "big") >> (-15 * bits % 8)
        assert number & ((1 << bits) - 1) == codes[-1, -1]
    with pytest.raises(SkcError, match="2 bytes of packed codes"):
        unpack_codes(b"ab", 1, 1, 3)
    with pytest.raises(SkcError, match="not zero"):
        unpack_codes(b"\x01", 1, 1, 3)


def test_model_ids():
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    assert weights_id(first) == weights_id(second)
    with torch.no_grad():
        second.weight[1, 1] += 1e-6
    header = make_header(model_id=weights_id(first))
    check_model_id(header, weights_id(first))
    ids = f"{weights_id(first).hex()}.*{weights_id(second).hex()}"
    with pytest.raises(SkcError, match=ids):
        check_model_id(header, weights_id(second))
