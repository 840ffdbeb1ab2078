import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.coding.predictor import FixedPredictor, check_codes, decode_streams, encode_codes
from speechkit.coding.range_coder import (
    TOTAL,
    RangeDecoder,
    StreamError,
    check_counts,
    encode_intervals,
    encode_symbols,
)


def make_counts(weights: np.ndarray) -> np.ndarray:
    """Cumulative counts for positive weights ``(..., V)``, each symbol with at least 1."""
    num_symbols = weights.shape[-1]
    sums = np.cumsum(weights, axis=-1, dtype=np.float64)
    counts = np.zeros((*weights.shape[:-1], num_symbols + 1), dtype=np.int64)
    counts[..., 1:] = np.floor(sums / sums[..., -1:] * (TOTAL - num_symbols))
    counts += np.arange(num_symbols + 1)
    check_counts(counts)
    return counts


def information(symbols: np.ndarray, counts: np.ndarray) -> float:
    """Bits of the symbols ``(N,)`` under the counts ``(N, V + 1)``."""
    rows = np.arange(len(symbols))
    frequencies = counts[rows, symbols + 1] - counts[rows, symbols]
    return float(-np.log2(frequencies / TOTAL).sum())


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_symbols=st.sampled_from([1, 2, 3, 17, 300, 4096]),
    length=st.integers(0, 60),
    sharpness=st.floats(0.0, 40.0),
    first_state=st.integers(0, TOTAL - 1),
)
def test_round_trip(seed, num_symbols, length, sharpness, first_state):
    generator = np.random.default_rng(seed)
    weights = np.exp(sharpness * generator.random((length, num_symbols)))
    counts = make_counts(weights) if length else np.zeros((0, num_symbols + 1), dtype=np.int64)
    symbols = generator.integers(0, num_symbols, length)
    rows = np.arange(length)
    starts = counts[rows, symbols]
    frequencies = counts[rows, symbols + 1] - starts
    data = encode_intervals(starts.tolist(), frequencies.tolist(), first_state)
    decoder = RangeDecoder(data)
    half = length // 2
    decoded = decoder.decode(counts[:half]) + decoder.decode(counts[half:])
    assert decoded == symbols.tolist()
    assert decoder.finish(limit=first_state + 1) == first_state


@pytest.mark.parametrize("sharpness", [0.0, 3.0, 12.0])
def test_overhead_is_below_a_thousandth_and_three_bytes(sharpness):
    generator = np.random.default_rng(int(sharpness))
    counts = make_counts(np.exp(sharpness * generator.random((20_000, 40))))
    slots = generator.integers(0, TOTAL, len(counts))
    symbols = (counts[:, 1:] <= slots[:, None]).sum(1)  # drawn with the coder's probabilities
    bits = information(symbols, counts)
    size = 8 * len(encode_symbols(symbols, counts))
    assert bits - 1 <= size <= bits + 2.3e-5 * len(symbols) + 24
    assert size < 1.001 * bits + 24
    # a stream of one symbol costs no more than its state
    assert len(encode_symbols(symbols[:1], counts[:1])) <= 2


def test_blocks_of_codes_cost_about_a_byte():
    generator = np.random.default_rng(3)
    table = make_counts(np.exp(4 * generator.random((8, 1024))))
    predictor = FixedPredictor(table)
    total_bits = total_size = 0.0
    for _ in range(20):
        slots = generator.integers(0, TOTAL, (75, 8))
        codes = np.stack([np.searchsorted(table[q], slots[:, q], "right") - 1 for q in range(8)])
        total_bits += sum(information(codes[q], table[np.full(75, q)]) for q in range(8))
        data = encode_codes(codes, predictor)
        total_size += 8 * len(data)
        (decoded,) = decode_streams([data], [75], 8, predictor)
        np.testing.assert_array_equal(decoded, codes)
    assert total_size < 1.003 * total_bits


def test_other_counts_are_noticed():
    generator = np.random.default_rng(4)
    counts = make_counts(generator.random((200, 64)) + 0.01)
    symbols = generator.integers(0, 64, 200)
    data = encode_symbols(symbols, counts)
    other = counts.copy()
    other[7, 1:-1] += 1  # a single count of a single symbol
    check_counts(other)
    decoder = RangeDecoder(data)
    decoded = decoder.decode(other)
    with pytest.raises(StreamError, match="do not end where they should"):
        decoder.finish()
    assert decoded != symbols.tolist()


def test_damaged_streams_decode_to_something_else_or_fail():
    generator = np.random.default_rng(5)
    table = make_counts(generator.random((2, 64)) ** 4)
    predictor = FixedPredictor(table)
    codes = generator.integers(0, 64, (2, 30))
    good = encode_codes(codes, predictor)
    streams = []
    for _ in range(300):
        data = bytearray(good)
        data[generator.integers(len(data))] ^= 1 << generator.integers(8)
        streams.append(bytes(data))
    streams += [good[:size] for size in range(len(good))] + [good + b"\0", b"\0", good]
    blocks = decode_streams(streams, [30] * len(streams), 2, predictor)
    np.testing.assert_array_equal(blocks[-1], codes)
    assert all(
        isinstance(block, StreamError) or not np.array_equal(block, codes) for block in blocks[:-1]
    )
    assert sum(isinstance(block, StreamError) for block in blocks) > 0.8 * (len(blocks) - 1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_codebooks=st.integers(1, 5),
    codebook_size=st.sampled_from([2, 5, 16, 200, 1000]),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_streams_of_several_lengths(seed, num_codebooks, codebook_size, lengths):
    generator = np.random.default_rng(seed)
    table = make_counts(generator.random((num_codebooks + 1, codebook_size)) + 1e-3)
    predictor = FixedPredictor(table)
    blocks = [generator.integers(0, codebook_size, (num_codebooks, size)) for size in lengths]
    streams = [encode_codes(block, predictor) for block in blocks]
    decoded = decode_streams(streams, lengths, num_codebooks, predictor)
    for block, result in zip(blocks, decoded):
        np.testing.assert_array_equal(result, block)


def test_large_shares_are_cheap():
    counts = np.array([0, 65535, 65536])
    symbols = np.zeros(100_000, dtype=np.int64)
    symbols[::1000] = 1
    bits = information(symbols, np.broadcast_to(counts, (len(symbols), 3)))
    assert 8 * len(encode_symbols(symbols, counts)) < bits + 2.3e-5 * len(symbols) + 24
    assert math.isclose(bits, 1600 + 99900 * -math.log2(65535 / 65536))


def test_bad_arguments():
    with pytest.raises(ValueError, match="rise from 0"):
        check_counts(np.array([0, 5, 65535]))
    with pytest.raises(ValueError, match="are integers"):
        check_counts(np.array([0.0, 65536.0]))
    with pytest.raises(ValueError, match="2 starts, but 1"):
        encode_intervals([0, 1], [1])
    with pytest.raises(ValueError, match="first state"):
        encode_intervals([], [], TOTAL)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\)"):
        encode_symbols(np.array([1]), np.array([0, 65536]))
    with pytest.raises(ValueError, match="float64"):
        check_codes(np.zeros((1, 2)), 1, 4)
    with pytest.raises(ValueError, match="2 codebooks"):
        check_codes(np.zeros((2, 2), dtype=int), 1, 4)
    with pytest.raises(ValueError, match="codebooks, symbols"):
        FixedPredictor(np.array([0, TOTAL]))
