"""A training step of a small Conformer recogniser, and the peak memory of its training.

Forward, CTC loss, backward and AdamW on 80 features of 8 x 10 s, from convolutional subsampling to
5,000 tokens; the settings are those of SpeechBrain's recipe for the small Conformer (144 features,
12 layers). Peak memory is measured in a fresh process for each side:
``python -m tools.benchmarks.conformer ours '{"layers": 2}' cpu 1`` prints it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.conv import ConvSubsampling
from speechkit.nn.stack import Stack
from tools.benchmarks.measure import Bench, Contest, Measurement, Target, child, peak_mib, peer

NUM_FEATURES = 80
CHANNELS = (64, 32)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model and of the batch."""

    items: int = 8
    frames: int = 1000
    tokens: int = 5000
    embed_dim: int = 144
    heads: int = 4
    layers: int = 12
    feedforward: int = 1024
    kernel: int = 31
    dropout: float = 0.1
    peak_steps: int = 3


FULL = Sizes()
QUICK = Sizes(items=2, layers=2, peak_steps=2)


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure the step and the peak memory against SpeechBrain."""
    ours = build_ours(sizes).to(bench.device)
    theirs = build_speechbrain(sizes)
    peaks = (
        peak_of("ours", sizes, bench.device),
        None if theirs is None else peak_of("speechbrain", sizes, bench.device),
    )
    note = f"{_millions(ours)} parameters against {_millions(theirs)}" if theirs else ""
    yield bench.compare(
        Contest(
            "conformer",
            f"training step, {sizes.layers} layers, {sizes.items} x {sizes.frames / 100:g} s",
            "speechbrain",
            trainer(ours, sizes, bench.device),
            theirs and trainer(theirs.to(bench.device), sizes, bench.device),
            Target(ratio=1.2),
        ),
        peaks=peaks,
        note=note,
    )


class Ours(nn.Module):
    """Subsampling, Conformer and head of speechkit."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = Stack([
            ConvSubsampling(
                input_size=NUM_FEATURES,
                channels=CHANNELS,
                strides=(2, 2),
                output_size=sizes.embed_dim,
                norm=True,
                dropout=sizes.dropout,
            ),
            ConformerEncoder(
                input_size=sizes.embed_dim,
                embed_dim=sizes.embed_dim,
                num_heads=sizes.heads,
                num_layers=sizes.layers,
                feedforward_size=sizes.feedforward,
                kernel_size=sizes.kernel,
                dropout=sizes.dropout,
            ),
        ])  # fmt: skip
        self.head = nn.Linear(sizes.embed_dim, sizes.tokens)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map ``(B, T, 80)`` and frames ``(B,)`` to logits ``(B, T', V)``."""
        return self.head(self.encoder(x, lengths).data)


class Theirs(nn.Module):
    """The same of SpeechBrain; its convolutions without the dropout that ours do not have."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
        from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
        from speechbrain.nnet.activations import Swish

        self.front = ConvolutionFrontEnd(
            input_shape=(sizes.items, 10, NUM_FEATURES),
            num_blocks=2,
            num_layers_per_block=1,
            out_channels=CHANNELS,
            kernel_sizes=(3, 3),
            strides=(2, 2),
            residuals=(False, False),
            dropout=0.0,
        )
        self.transformer = TransformerASR(
            input_size=NUM_FEATURES // 4 * CHANNELS[-1],
            tgt_vocab=sizes.tokens,
            d_model=sizes.embed_dim,
            nhead=sizes.heads,
            num_encoder_layers=sizes.layers,
            num_decoder_layers=0,
            d_ffn=sizes.feedforward,
            dropout=sizes.dropout,
            activation=Swish,
            kernel_size=sizes.kernel,
            encoder_module="conformer",
            attention_type="RelPosMHAXL",
            normalize_before=True,
            causal=False,
        )
        # Without a decoder its embedding of the tokens is never used: it is not part of the size.
        self.transformer.custom_tgt_module = nn.Identity()
        self.head = nn.Linear(sizes.embed_dim, sizes.tokens)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map ``(B, T, 80)`` and frames ``(B,)`` to logits ``(B, T', V)``."""
        return self.head(self.transformer.encode(self.front(x), lengths / lengths.max()))


def build_ours(sizes: Sizes) -> nn.Module:
    """Build our recogniser."""
    return Ours(sizes)


def build_speechbrain(sizes: Sizes) -> nn.Module | None:
    """Build SpeechBrain's; None where it is not installed."""
    return None if peer("speechbrain") is None else Theirs(sizes)


def trainer(model: nn.Module, sizes: Sizes, device: torch.device) -> Callable[[], float]:
    """Return a function that takes one step, always on the same batch, and returns the loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sizes.items, sizes.frames, NUM_FEATURES, generator=generator).to(device)
    shares = torch.linspace(1.0, 0.8, sizes.items)  # bucketed batches are nearly as long
    lengths = (shares * sizes.frames).long().to(device)
    labels = max(1, sizes.frames // 25)
    targets = torch.randint(1, sizes.tokens, (sizes.items, labels), generator=generator).to(device)
    counts = torch.full((sizes.items,), labels, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        log_probs = model(x, lengths).log_softmax(-1).transpose(0, 1)
        loss = F.ctc_loss(log_probs, targets, lengths // 4, counts)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def peak_of(side: str, sizes: Sizes, device: torch.device) -> float:
    """Train one side in a fresh process and return its peak memory in MiB."""
    options = json.dumps(dataclasses.asdict(sizes))
    threads = str(torch.get_num_threads())
    arguments = ["-m", "tools.benchmarks.conformer", side, options, str(device), threads]
    return float(child(arguments))


def main(arguments: Sequence[str]) -> None:
    """Train one side for a few steps and print the peak memory in MiB."""
    side, options, device, threads = arguments
    torch.set_num_threads(int(threads))
    sizes = Sizes(**json.loads(options))
    model = build_ours(sizes) if side == "ours" else build_speechbrain(sizes)
    if model is None:
        raise SystemExit(f"{side} is not installed")
    step = trainer(model.to(device), sizes, torch.device(device))
    for _ in range(sizes.peak_steps):
        step()
    print(peak_mib(torch.device(device)))


def _millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"


if __name__ == "__main__":
    main(sys.argv[1:])
