"""A model of seeded integers, the same everywhere: no generator of numpy or torch is asked."""

import hashlib
import io

import numpy as np

from speechkit.coding.integer_model import IntegerBlock, IntegerCodeModel, IntegerProduct
from speechkit.coding.skc import SkcHeader, read_skc, write_skc


def octets(name: str, size: int) -> np.ndarray:
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(size), dtype=np.uint8)


def integers(name: str, shape: tuple[int, ...], limit: int) -> np.ndarray:
    """Integers in [-limit, limit], float64."""
    size = int(np.prod(shape))
    words = octets(name, 4 * size).view("<u4").astype(np.int64)
    return (words % (2 * limit + 1) - limit).reshape(shape).astype(np.float64)


def product(name: str, num_in: int, num_out: int, shift: int) -> IntegerProduct:
    multiplier = 2048 + np.abs(integers(name + " multiplier", (num_out,), 2047))
    weight = integers(name, (num_out, num_in), 127).astype(np.float32)
    return IntegerProduct(weight, multiplier, 2.0**-shift)


def seeded_model(
    num_codebooks: int = 4,
    codebook_size: int = 64,
    embed_dim: int = 32,
    ffn_dim: int = 48,
    num_layers: int = 2,
    num_heads: int = 4,
) -> IntegerCodeModel:
    D = embed_dim
    ring = np.arange(codebook_size)  # small codes and those just below the size are likely
    return IntegerCodeModel(
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        num_heads=num_heads,
        embedding=integers("embedding", (num_codebooks * codebook_size, D), 2000),
        start=integers("start", (D,), 2000),
        blocks=[
            IntegerBlock(
                project_in=product(f"{i} in", D, 3 * D, 31),
                distance_bias=integers(f"{i} bias", (num_heads, 20), 100_000),
                project_out=product(f"{i} out", D, D, 24),
                ffn_in=product(f"{i} ffn in", D, ffn_dim, 31),
                ffn_out=product(f"{i} ffn out", ffn_dim, D, 24),
            )
            for i in range(num_layers)
        ],
        head=product("head", D, num_codebooks * codebook_size, 33),
        head_bias=np.tile(
            np.rint(-800 / codebook_size * np.minimum(ring, codebook_size - ring)), num_codebooks
        ),
    )


def seeded_codes(num_codebooks: int, codebook_size: int, num_frames: int) -> np.ndarray:
    """Codes that rise and fall slowly, so that they are no noise."""
    steps = integers("codes", (num_codebooks, num_frames), 2).cumsum(1)
    return steps.astype(np.int64) % codebook_size


def make_header(model: IntegerCodeModel | None, num_codebooks: int, codebook_size: int):
    return SkcHeader(
        sample_rate=24000,
        channels=1,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        hop_length=320,
        model_id=b"codec 01",
        entropy_id=b"" if model is None else model.digest,
    )


def seeded_file(model: IntegerCodeModel | None, codes: np.ndarray, codebook_size: int) -> bytes:
    file = io.BytesIO()
    header = make_header(model, len(codes), codebook_size)
    write_skc(file, header, codes, codes.shape[1] * 320 - 100, model)
    return file.getvalue()


def main() -> None:
    """Print the SHA-256 of a file that large products make, once it was read back."""
    model = seeded_model(8, 1024, embed_dim=128, ffn_dim=512)
    codes = seeded_codes(8, 1024, 90)
    data = seeded_file(model, codes, 1024)
    assert np.array_equal(read_skc(io.BytesIO(data), model).codes, codes)
    print(hashlib.sha256(data).hexdigest(), len(data))


if __name__ == "__main__":
    main()
