import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from seeded import seeded_codes, seeded_file, seeded_model

from speechkit.coding.integer_math import (
    attention_weights,
    cumulative_counts,
    exp2_table,
    norm_factor,
    quantize_rows,
)
from speechkit.coding.integer_model import CodeTransformer, IntegerCodeModel, IntegerProduct
from speechkit.coding.predictor import decode_streams, encode_codes
from speechkit.coding.range_coder import TOTAL, check_counts
from speechkit.coding.skc import read_skc
from speechkit.model_folder.safety import class_name

ROOT = Path(__file__).parents[2]

# The bytes of files that seeded integers make. They change only with the format or the arithmetic:
# then old files cannot be read, and the version in the header must change too.
GOLDEN_CODED = "57268fd7f6908c110870d8706b7b82aae853bfc376641d41e0af450b388ef7c0"
GOLDEN_PLAIN = "033709e77e06eef4b729f86aca2bbf9df262bb0eeb4f64bec334e2429a412419"


def make_model(**sizes) -> CodeTransformer:
    torch.manual_seed(0)
    defaults = {
        "num_codebooks": 3,
        "codebook_size": 50,
        "embed_dim": 24,
        "num_heads": 2,
        "ffn_dim": 40,
        "num_layers": 2,
        "max_distance": 8,
        "dropout": 0.0,
    }
    model = CodeTransformer(**{**defaults, **sizes})
    with torch.no_grad():  # far from uniform, as a trained model is
        model.head.weight.mul_(15)
        for block in model.blocks:
            block.distance_bias.normal_()
    return model.eval()


def float_bits(model: CodeTransformer, codes: np.ndarray) -> float:
    """Bits of codes ``(B, Q, T)`` under the float model."""
    x = torch.from_numpy(codes)
    with torch.no_grad():
        log_probs = model(x).double().log_softmax(-1).gather(-1, x.unsqueeze(-1))
    return float(-log_probs.sum() / np.log(2))


def integer_bits(model: IntegerCodeModel, codes: np.ndarray) -> float:
    return sum(float(-np.log2(model.intervals(item)[1] / TOTAL).sum()) for item in codes)


def test_golden_files():
    model, codes = seeded_model(), seeded_codes(4, 64, 200)
    coded, plain = seeded_file(model, codes, 64), seeded_file(None, codes, 64)
    assert len(coded) < 0.97 * len(plain)
    np.testing.assert_array_equal(read_skc(io.BytesIO(coded), model).codes, codes)
    np.testing.assert_array_equal(read_skc(io.BytesIO(plain)).codes, codes)
    assert hashlib.sha256(coded).hexdigest() == GOLDEN_CODED
    assert hashlib.sha256(plain).hexdigest() == GOLDEN_PLAIN


def test_any_number_of_threads_writes_the_same_bytes():
    processes = []
    for threads in (1, 2, 4):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        environment["PYTHONPATH"] = str(ROOT)
        script = [sys.executable, str(Path(__file__).with_name("seeded.py"))]
        processes.append(subprocess.Popen(script, env=environment, stdout=subprocess.PIPE))
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(outputs[0].split()[0]) == 64
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_batch_steps_and_parts_give_the_same_counts(num_codebooks, monkeypatch):
    model = IntegerCodeModel.from_float(make_model())
    codes = np.random.default_rng(1).integers(0, 50, (4, num_codebooks, 70))
    whole = np.stack([model.counts(item) for item in codes])
    check_counts(whole)
    state = model.start(4, num_codebooks)
    steps = [model.step(state, codes[:, :, t - 1] if t else None) for t in range(70)]
    np.testing.assert_array_equal(np.stack(steps, axis=1), whole)
    monkeypatch.setattr("speechkit.coding.integer_model._PART_FRAMES", 9)
    np.testing.assert_array_equal(model.counts(codes[2]), whole[2])
    starts, frequencies = model.intervals(codes[2])
    plain_starts, plain_frequencies = super(IntegerCodeModel, model).intervals(codes[2])
    np.testing.assert_array_equal(starts, plain_starts)
    np.testing.assert_array_equal(frequencies, plain_frequencies)
    assert model.counts(codes[0, :, :0]).shape == (0, num_codebooks, 51)


def test_a_frame_follows_from_the_frames_before_it():
    model = IntegerCodeModel.from_float(make_model())
    codes = np.random.default_rng(2).integers(0, 50, (3, 20))
    changed = codes.copy()
    changed[:, 11] = (changed[:, 11] + 1) % 50
    counts, others = model.counts(codes), model.counts(changed)
    np.testing.assert_array_equal(counts[:12], others[:12])
    assert (counts[12:] != others[12:]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_close_to_the_float_model(num_layers):
    model = make_model(num_layers=num_layers, embed_dim=64, ffn_dim=96)
    exact = IntegerCodeModel.from_float(model)
    codes = np.random.default_rng(3).integers(0, 50, (2, 3, 60))
    with torch.no_grad():
        probs = model(torch.from_numpy(codes)).softmax(-1).double().numpy()
    counts = np.stack([exact.counts(item) for item in codes]).astype(np.int64)
    own = np.diff(counts, axis=-1).transpose(0, 2, 1, 3) / TOTAL
    divergence = (probs * np.log2(probs / own)).sum(-1)
    entropy = -(probs * np.log2(probs)).sum(-1).mean()
    assert divergence.min() > -1e-9
    assert divergence.mean() < 0.005 * entropy
    assert 2.0 < entropy < 5.0  # bits: the distributions are not flat


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_trained_model_loses_less_than_half_a_percent():
    generator = np.random.default_rng(4)
    table = generator.permutation(64)

    def draw(num_items: int) -> np.ndarray:
        codes = generator.integers(0, 64, (num_items, 4, 75))
        for t in range(1, 75):
            kept = generator.random((num_items, 4)) < 0.8
            step = generator.geometric(0.4, (num_items, 4)) - 1
            codes[:, :, t] = np.where(kept, (table[codes[:, :, t - 1]] + step) % 64, codes[:, :, t])
        return codes

    train, test = torch.from_numpy(draw(120)), draw(6)
    model = make_model(
        num_codebooks=4, codebook_size=64, embed_dim=64, num_heads=4, ffn_dim=96, num_layers=2
    )
    torch.nn.init.normal_(model.head.weight, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(70):
        batch = train[torch.arange(12 * step, 12 * step + 12) % len(train)]
        loss = torch.nn.functional.cross_entropy(model(batch).flatten(0, 2), batch.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    exact = IntegerCodeModel.from_float(model)
    bits, own = float_bits(model, test), integer_bits(exact, test)
    written = [encode_codes(item, exact) for item in test]
    assert bits < 5.6 * test.size  # it has learnt something: 6 bits are all that a code can have
    assert own < 1.005 * bits
    assert sum(map(len, written)) * 8 < own + 16 * len(test)
    decoded = decode_streams(written, [75] * len(test), 4, exact)
    np.testing.assert_array_equal(np.stack(decoded), test)


def test_digest_follows_every_weight():
    model = make_model(num_layers=1)
    first = IntegerCodeModel.from_float(model).digest
    assert IntegerCodeModel.from_float(make_model(num_layers=1)).digest == first
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        other = make_model(num_layers=1)
        with torch.no_grad():
            other.get_parameter(name).mul_(1.7).add_(0.01)
        assert IntegerCodeModel.from_float(other).digest != first, name
    with torch.no_grad():
        model.start[3] = float("nan")
    with pytest.raises(ValueError, match=r"not finite: \['start'\]"):
        IntegerCodeModel.from_float(model)


def test_extreme_weights_stay_within_the_bounds():
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.sign(parameter) * 1e4 + parameter)
    exact = IntegerCodeModel.from_float(model)
    codes = np.random.default_rng(5).integers(0, 50, (3, 40))
    check_counts(exact.counts(codes))
    (decoded,) = decode_streams([encode_codes(codes, exact)], [40], 3, exact)
    np.testing.assert_array_equal(decoded, codes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    check_counts(IntegerCodeModel.from_float(model).counts(codes))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_symbols=st.sampled_from([2, 3, 64, 1024, 32768]),
    scale=st.floats(0, 20_000),
)
def test_counts_are_counts_for_any_logits(seed, num_symbols, scale):
    generator = np.random.default_rng(seed)
    logits = np.rint(generator.normal(size=(3, num_symbols)) * scale)
    counts = cumulative_counts(logits)
    check_counts(counts)
    probs = np.exp2((logits - logits.max(-1, keepdims=True)) / 128)
    probs /= probs.sum(-1, keepdims=True)
    own = np.diff(counts.astype(np.int64), axis=-1) / TOTAL
    # rounding and raised tails take at most one count for each symbol
    assert np.abs(own - probs).sum(-1).max() < 2.5 * num_symbols / TOTAL + 1e-4


@pytest.mark.parametrize("num_rows", [1, 2, 16, 75])
def test_products_are_exact_at_their_bound(num_rows):
    generator = np.random.default_rng(num_rows)
    rows = np.where(generator.random((num_rows, 1040)) < 0.999, 127.0, -127.0)
    weight = np.where(generator.random((300, 1040)) < 0.999, 127.0, 126.0)
    weight[0] = rows[0]  # the largest sum that there can be
    product = IntegerProduct(weight.astype(np.float32), np.ones(300), 1.0)
    sums = product.apply(rows.astype(np.float32), np.ones((num_rows, 1)))
    exact = rows.astype(np.int64) @ weight.astype(np.int64).T
    assert sums[0, 0] == 1040 * 127 * 127 < 2**24
    np.testing.assert_array_equal(sums, exact)


def test_tables_and_factors():
    table = exp2_table(128, 20, 20)
    expected = np.rint(2.0 ** (20 - np.arange(128 * 20) / 128))
    np.testing.assert_array_equal(table[:-1], expected)
    weights = attention_weights(np.array([[5.0, 5.0 - 65536 * 30, -np.inf]]))
    assert weights.tolist() == [[65536.0, 0.0, 0.0]]
    x = np.rint(np.random.default_rng(6).normal(size=(20, 1000)) * 3e5).clip(-(2**20), 2**20)
    rows, peak = quantize_rows(x)
    normed = rows * norm_factor(x, peak) / 2048 / 127
    expected = x / np.sqrt(np.square(x).mean(-1, keepdims=True))
    np.testing.assert_allclose(normed, expected, atol=0.02)
    zero_rows, zero_peak = quantize_rows(np.zeros((1, 4)))
    assert not zero_rows.any()
    assert np.isfinite(norm_factor(np.zeros((1, 4)), zero_peak)).all()


def test_padding_of_the_float_model_does_not_matter():
    model = make_model()
    codes = torch.randint(50, (2, 3, 12))
    codes[1, :, 7:] = -1  # no code at all
    logits = model(codes, torch.tensor([12, 7]))
    alone = model(codes[1:, :, :7], torch.tensor([7]))
    torch.testing.assert_close(logits[1:, :, :7], alone, atol=1e-5, rtol=0)
    few = model(codes[:1, :2], torch.tensor([12]))
    assert few.shape == (1, 2, 12, 50)
    assert model(codes[:, :, :0], torch.tensor([0, 0])).shape == (2, 3, 0, 50)
    with pytest.raises(ValueError, match="4 codebooks"):
        model(torch.zeros(1, 4, 3, dtype=torch.long))


def test_constructor_arguments_stay_under_their_names():
    import inspect

    model = make_model()
    assert class_name(type(model)) == "speechkit.coding.code_transformer.CodeTransformer"
    names = list(inspect.signature(CodeTransformer.__init__).parameters)[1:]
    again = CodeTransformer(**{name: getattr(model, name) for name in names})
    again.load_state_dict(model.state_dict())
    codes = torch.randint(50, (1, 3, 5))
    assert torch.equal(again.eval()(codes), model(codes))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"codebook_size": 1}, r"codebook_size \(1\)"),
        ({"codebook_size": 40_000}, "40000"),
        ({"embed_dim": 1042}, "1042"),
        ({"ffn_dim": 2000}, "exact in float32"),
        ({"num_heads": 5}, "must divide"),
        ({"num_layers": 0}, "at least 1"),
    ],
)
def test_sizes_out_of_bounds(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_model(**sizes)
    with pytest.raises(ValueError, match="the model has 3"):
        IntegerCodeModel.from_float(make_model()).start(1, 4)
