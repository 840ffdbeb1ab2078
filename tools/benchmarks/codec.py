"""The neural codec at 24 kHz: encode, decode, entropy coding, and a step of its training.

Encoding and decoding are against EnCodec's package and transformers, with the same random weights.
Entropy coding by a Transformer is against EnCodec's, both of the published size, untrained: what
takes time is the same. A step of training is against the same losses put together plainly: the
discriminators judge the generated sound twice, once for each side. The range coder alone has no
peer: its target is symbols a second.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tools.benchmarks.measure import Bench, Contest, Measurement, Target, peer

RATE = 24000


@dataclass(frozen=True)
class Sizes:
    """Sizes of the input, of the models, and of what is trained."""

    seconds: float = 10.0
    kbps: float = 6.0
    coded_s: float = 1.0
    layers: int = 5
    embed_dim: int = 200
    symbols: int = 50_000
    items: int = 2
    crop_s: float = 1.0
    filters: int = 32
    judge_filters: int = 32
    windows: tuple[int, ...] = (2048, 1024, 512, 256, 128)


FULL = Sizes()
QUICK = Sizes(
    seconds=0.2, coded_s=0.1, layers=1, embed_dim=16, symbols=500, items=1, crop_s=0.1, filters=2,
    judge_filters=2, windows=(128, 64),
)  # fmt: skip


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure the codec, the entropy coder and the training step."""
    yield from measure_codec(bench, sizes)
    yield from measure_entropy(bench, sizes)
    yield from measure_range_coder(bench, sizes)
    yield from measure_step(bench, sizes)


# ---------------------------------------------------------------- the codec


def measure_codec(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure encoding and decoding against both peers."""
    x = 0.1 * torch.randn(1, 1, int(RATE * sizes.seconds), generator=_generator()).to(bench.device)
    for name, build in (("encodec", _encodec), ("transformers", _transformers)):
        theirs = build()
        ours = _as_ours(theirs, sizes).to(bench.device)
        encode, decode = (None, None)
        codes = ours.encode(x, kbps=sizes.kbps).codes
        same = True
        if theirs is not None:
            encode, decode = _calls(name, theirs.to(bench.device), x, codes, sizes.kbps)
            same = bool(torch.equal(encode(), codes))
        for case, run, run_theirs in (
            ("encode", lambda: ours.encode(x, kbps=sizes.kbps), encode),  # noqa: B023
            ("decode", lambda: ours.decode(codes), decode),  # noqa: B023
        ):
            yield bench.compare(
                Contest(
                    "codec",
                    f"{case}, {sizes.seconds:g} s, {sizes.kbps:g} kbit/s",
                    name,
                    torch.inference_mode()(run),
                    run_theirs,
                    Target(ratio=1.2) if name == "encodec" else None,
                ),
                note="" if same else "the codes differ",
                failed=not same,
            )


def _encodec() -> Any | None:
    package = peer("encodec")
    if package is None:
        return None
    torch.manual_seed(0)
    return _with_codebooks(package.EncodecModel.encodec_model_24khz(pretrained=False).eval())


def _transformers() -> Any | None:
    package = peer("transformers")
    if package is None:
        return None
    torch.manual_seed(0)
    return _with_codebooks(package.EncodecModel(package.EncodecConfig()).eval())


def _with_codebooks(model: Any) -> Any:
    """Give the codebooks, zeros at first, vectors far apart: no two codes are equally near."""
    for name, buffer in model.named_buffers():
        if name.endswith("inited"):
            buffer.fill_(1.0)
        if name.endswith("codebook.embed"):
            buffer.copy_(torch.randn(buffer.shape, generator=_generator(len(name))))
    return model


def _as_ours(theirs: Any | None, sizes: Sizes) -> Any:
    from speechkit.convert.encodec import build_encodec

    if theirs is not None:
        return build_encodec(theirs.state_dict()).eval().fold_weight_norm()
    from speechkit.models.codec import Codec
    from speechkit.nn.quantize import ResidualVectorQuantizer
    from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder

    codec = Codec(
        sample_rate=RATE,
        channels=1,
        encoder=SEANetEncoder(num_filters=sizes.filters),
        quantizer=ResidualVectorQuantizer(latent_size=128, kmeans_iterations=0),
        decoder=SEANetDecoder(num_filters=sizes.filters),
    )
    return codec.eval().fold_weight_norm()


def _calls(
    name: str, theirs: Any, x: Tensor, codes: Tensor, kbps: float
) -> tuple[Callable[[], Tensor], Callable[[], object]]:
    """Return a peer's encoding, which gives its codes, and decoding of ours."""
    if name == "encodec":
        theirs.set_target_bandwidth(kbps)

        def encode() -> Tensor:
            with torch.inference_mode():
                return theirs.encode(x)[0][0]

        def decode() -> object:
            with torch.inference_mode():
                return theirs.decode([(codes, None)])

        return encode, decode

    def encode_too() -> Tensor:
        with torch.inference_mode():
            return theirs.encode(x, bandwidth=kbps).audio_codes[0]

    def decode_too() -> object:
        with torch.inference_mode():
            return theirs.decode(codes[None], [None])

    return encode_too, decode_too


# ---------------------------------------------------------------- entropy coding


def measure_entropy(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure the Transformer and the range coder together, both ways."""
    from speechkit.coding.code_transformer import CodeTransformer
    from speechkit.coding.integer_model import IntegerCodeModel
    from speechkit.coding.predictor import decode_streams, encode_codes

    frames = max(1, int(75 * sizes.coded_s))
    torch.manual_seed(0)
    model = CodeTransformer(
        num_codebooks=32, codebook_size=1024, embed_dim=sizes.embed_dim, num_heads=8,
        ffn_dim=4 * sizes.embed_dim, num_layers=sizes.layers, max_distance=75,
    )  # fmt: skip
    predictor = IntegerCodeModel.from_float(model.eval())
    codes = np.random.default_rng(0).integers(0, 1024, (8, frames))
    data = encode_codes(codes, predictor)
    decoded = decode_streams([data], [frames], 8, predictor)[0]
    theirs = _EncodecCoder.build(sizes, codes)
    for case, run, run_theirs in (
        ("encode", lambda: encode_codes(codes, predictor), theirs.encode if theirs else None),
        (
            "decode",
            lambda: decode_streams([data], [frames], 8, predictor),
            theirs.decode if theirs else None,
        ),
    ):
        yield bench.compare(
            Contest(
                "codec",
                f"entropy {case}, {sizes.coded_s:g} s of 8 codebooks",
                "encodec",
                run,
                run_theirs,
                Target(ratio=2.0),
            ),
            failed=not (isinstance(decoded, np.ndarray) and np.array_equal(decoded, codes)),
        )


class _EncodecCoder:
    """EnCodec's Transformer and arithmetic coder, a frame at a time, as its package offers them."""

    def __init__(self, model: Any, coding: Any, codes: np.ndarray) -> None:
        self.model, self.coding = model, coding
        self.codes = torch.from_numpy(codes)
        self.data = b""
        self.data = self.encode()

    @classmethod
    def build(cls, sizes: Sizes, codes: np.ndarray) -> _EncodecCoder | None:
        models, coding = peer("encodec.model"), peer("encodec.quantization.ac")
        if models is None or coding is None:
            return None
        torch.manual_seed(0)
        model = models.LMModel(
            32, 1024, dim=sizes.embed_dim, num_layers=sizes.layers, past_context=262
        )
        return cls(model.eval(), coding, codes)

    def _steps(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each frame's number and its codebooks' cumulative counts, ``(Q, K)``."""
        states, offset = None, 0
        entered = torch.zeros(1, len(self.codes), 1, dtype=torch.int64)
        for frame in range(self.codes.shape[1]):
            with torch.inference_mode():
                shares, states, offset = self.model(entered, states, offset)
            entered = 1 + self.codes[None, :, frame : frame + 1]
            yield (
                frame,
                torch.stack([
                    self.coding.build_stable_quantized_cdf(shares[0, :, k, 0], 24, check=False)
                    for k in range(len(self.codes))
                ]),
            )  # fmt: skip

    def encode(self) -> bytes:
        """Encode all codes."""
        buffer = io.BytesIO()
        coder = self.coding.ArithmeticCoder(buffer)
        for frame, counts in self._steps():
            for code, row in zip(self.codes[:, frame].tolist(), counts):
                coder.push(code, row)
        coder.flush()
        return buffer.getvalue()

    def decode(self) -> list[int]:
        """Decode them; the model is given the right codes, which is what they are."""
        coder = self.coding.ArithmeticDecoder(io.BytesIO(self.data))
        return [coder.pull(row) for _, counts in self._steps() for row in counts]


def measure_range_coder(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure the range coder alone, with counts that are at hand."""
    from speechkit.coding.range_coder import RangeDecoder, encode_symbols

    rng = np.random.default_rng(0)
    counts = np.concatenate([[0], np.sort(rng.choice(65535, 1023, replace=False) + 1), [65536]])
    symbols = rng.integers(0, 1024, sizes.symbols)
    table = np.broadcast_to(counts, (sizes.symbols, 1025))
    data = encode_symbols(symbols, table)
    same = RangeDecoder(data).decode(table) == symbols.tolist()
    seconds = Target(seconds=sizes.symbols / 200_000)  # 0.2 M symbols a second
    for case, run in (
        ("encode", lambda: encode_symbols(symbols, table)),
        ("decode", lambda: RangeDecoder(data).decode(table)),
    ):
        name = f"range coder, {case} {sizes.symbols} symbols"
        yield bench.compare(Contest("codec", name, "", run, None, seconds), failed=not same)


# ---------------------------------------------------------------- training


def measure_step(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure one update's gradients of codec and discriminators."""
    with tempfile.TemporaryDirectory() as folder:
        brain, batch = _brain(bench, sizes, Path(folder))

        def ours() -> None:
            brain.model.zero_grad()
            brain.train_batch(batch, 1.0, last=True)

        yield bench.compare(
            Contest(
                "codec",
                f"training step, {sizes.items} x {sizes.crop_s:g} s",
                "plain losses",
                ours,
                lambda: plain_step(brain, batch),
                Target(ratio=1.1),
            )
        )


def _brain(bench: Bench, sizes: Sizes, folder: Path) -> tuple[Any, Any]:
    from functools import partial

    from speechkit.data.batch import Batch
    from speechkit.gan import GANBrain, Generated
    from speechkit.losses.balancer import Balancer
    from speechkit.losses.codec import MultiScaleMelLoss, waveform_l1
    from speechkit.models.codec import Codec
    from speechkit.nn.discriminators import MultiScaleSTFTDiscriminator
    from speechkit.nn.masking import Padded
    from speechkit.nn.quantize import ResidualVectorQuantizer
    from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder
    from speechkit.training import Stage, Training

    mel = MultiScaleMelLoss(sample_rate=RATE).to(bench.device)

    class Training1(GANBrain):
        def compute_forward(self, batch: Batch, stage: Stage) -> Any:
            return self.forward(batch.waveform.data.transpose(1, 2), num_codebooks=8)

        def generated(self, outputs: Any, batch: Batch) -> Generated:
            waveform, lengths = batch.waveform
            return Generated(outputs.estimate, waveform.transpose(1, 2), lengths)

        def distances(self, pair: Generated) -> dict[str, Tensor]:
            return {"l1": waveform_l1(*pair), "mel": mel(*pair)}

        def other_loss(self, outputs: Any) -> Tensor:
            return outputs.commitment

    torch.manual_seed(0)
    brain = Training1(
        model=Codec(
            sample_rate=RATE,
            channels=1,
            encoder=SEANetEncoder(num_filters=sizes.filters),
            quantizer=ResidualVectorQuantizer(latent_size=128, kmeans_iterations=0),
            decoder=SEANetDecoder(num_filters=sizes.filters),
        ),
        discriminator=MultiScaleSTFTDiscriminator(
            num_filters=sizes.judge_filters, windows=sizes.windows
        ),
        balancer=Balancer(weights={"l1": 0.1, "mel": 1.0, "adversarial": 3.0, "features": 3.0}),
        turns=(1, 1),
        data=None,
        optimizer=partial(torch.optim.AdamW, lr=1e-4),
        training=Training(epochs=1),
        folder=folder,
        device=str(bench.device),
    )
    samples = int(RATE * sizes.crop_s)
    noise = 0.1 * torch.randn(sizes.items, samples, 1, generator=_generator())
    waveform = Padded(noise.to(bench.device), torch.full((sizes.items,), samples))
    return brain, Batch(ids=["-"] * sizes.items, fields={"waveform": waveform})


def plain_step(brain: Any, batch: Any) -> None:
    """Compute the same gradients one after the other, as a loop written down at once does."""
    from speechkit.losses.adversarial import (
        discriminator_loss,
        feature_matching_loss,
        generator_loss,
    )
    from speechkit.training import Stage

    judge: nn.Module = brain.discriminator
    brain.model.zero_grad()
    outputs = brain.compute_forward(batch, Stage.TRAIN)
    estimate, target, lengths = pair = brain.generated(outputs, batch)
    loss = discriminator_loss(judge(target, lengths), judge(estimate.detach(), lengths))
    loss.mean().backward()
    judged = [p.grad for p in judge.parameters()]
    fake, real = judge(estimate, lengths), judge(target, lengths)
    losses = {
        **brain.distances(pair),
        "adversarial": generator_loss(fake),
        "features": feature_matching_loss(fake, real),
    }
    gradient = torch.zeros_like(estimate)
    for name, loss in losses.items():
        (own,) = torch.autograd.grad(loss.sum(), [estimate], retain_graph=True)
        gradient += brain.balancer.weights[name] * own / own.flatten(1).norm(dim=1).mean()
    outputs.commitment.mean().backward(retain_graph=True)
    estimate.backward(gradient / len(estimate))
    for parameter, kept in zip(judge.parameters(), judged):
        parameter.grad = kept


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
