"""Mask networks of speech separation, and permutation-invariant SI-SNR.

SepFormer against SpeechBrain's, dual-path RNN and Conv-TasNet against asteroid's, all at their
published sizes and without filter banks, which cost next to nothing: forward on 4 s, forward and
backward on 2 s, at 8 kHz. Peak memory of a forward and backward pass of the SepFormers is measured
in a fresh process for each side: ``python -m tools.benchmarks.separation ours '{}' cpu 1`` prints
it. Such a process hands every freed megabyte back to the system, on both sides: else the figure is
that of glibc's fragmentation, which changes with the order of allocations.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tools.benchmarks.measure import (
    Bench,
    Contest,
    Measurement,
    Target,
    child,
    give_back_memory,
    peak_mib,
    peer,
)

Masks = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models and of the inputs; frames are those of 8 kHz."""

    filters: int = 256
    kernel: int = 16
    chunk: int = 250
    layers: int = 8
    heads: int = 8
    feedforward: int = 1024
    forward_s: float = 4.0
    step_s: float = 2.0
    rnn_filters: int = 64
    rnn_chunk: int = 100
    rnn_blocks: int = 6
    rnn_hidden: int = 128
    tcn_blocks: int = 8
    tcn_repeats: int = 3
    speakers: tuple[int, ...] = (2, 3, 5)
    items: int = 8
    loss_s: float = 4.0


FULL = Sizes()
QUICK = Sizes(
    filters=16, chunk=20, layers=1, heads=2, feedforward=32, forward_s=0.2, step_s=0.1,
    rnn_filters=8, rnn_chunk=10, rnn_blocks=1, rnn_hidden=8, tcn_blocks=2, tcn_repeats=1,
    items=2, loss_s=0.2,
)  # fmt: skip
LOSS_TARGETS = {2: 1.0, 3: 2.0, 5: 10.0}


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure the mask networks, then the loss."""
    yield from measure_sepformer(bench, sizes)
    for name, filters, build, build_theirs in (
        ("dual-path RNN", sizes.rnn_filters, build_rnn, build_asteroid_rnn),
        ("Conv-TasNet", 2 * sizes.filters, build_tcn, build_asteroid_tcn),
    ):
        ours = build(sizes).to(bench.device)
        theirs = build_theirs(sizes)
        theirs = theirs and theirs.to(bench.device)
        yield from passes(bench, sizes, name, filters, "asteroid", ours, theirs, 1.1)
    yield from measure_loss(bench, sizes)


def measure_sepformer(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure SepFormer, and the memory of both sides."""
    ours = build_sepformer(sizes).to(bench.device)
    theirs = build_speechbrain(sizes)
    peaks = (
        peak_of("ours", sizes, bench.device),
        None if theirs is None else peak_of("speechbrain", sizes, bench.device),
    )
    theirs = theirs and theirs.to(bench.device)
    yield from passes(
        bench, sizes, "SepFormer", sizes.filters, "speechbrain", ours, theirs, 1.3, peaks
    )


def passes(
    bench: Bench,
    sizes: Sizes,
    name: str,
    filters: int,
    against: str,
    ours: nn.Module,
    theirs: nn.Module | None,
    ratio: float,
    peaks: tuple[float | None, float | None] = (None, None),
) -> Iterator[Measurement]:
    """Measure forward, then forward and backward, of two mask networks."""
    note = ""
    if theirs is not None:
        note = f"{_millions(ours)} parameters against {_millions(theirs)}"
    if peaks[0] is not None and peaks[1] is not None:
        note += f"; memory {peaks[0] / peaks[1]:.2f} of theirs (target 0.7)"
    for case, seconds, run in (
        ("forward", sizes.forward_s, forward),
        ("forward and backward", sizes.step_s, step),
    ):
        x = frames_of(sizes, filters, seconds).to(bench.device)
        yield bench.compare(
            Contest(
                "separation",
                f"{name}, {case}, {seconds:g} s",
                against,
                run(ours, mine(ours), x),
                theirs and run(theirs, theirs_of(theirs), x),
                Target(ratio=ratio),
            ),
            peaks=peaks if run is step else (None, None),
            note=note if run is step else "",
        )


def frames_of(sizes: Sizes, filters: int, seconds: float) -> Tensor:
    """Return frames ``(1, T, N)`` as filter banks with half-overlapping kernels give them."""
    count = int(8000 * seconds) // (sizes.kernel // 2) - 1
    return torch.randn(1, count, filters, generator=torch.Generator().manual_seed(0)).relu()


def mine(model: nn.Module) -> Masks:
    """Return our masks of frames ``(B, T, N)``."""
    return lambda x: model(x, torch.full((len(x),), x.shape[1], device=x.device))


def theirs_of(model: nn.Module) -> Masks:
    """Return a peer's masks of frames ``(B, T, N)``: peers take ``(B, N, T)``."""
    return lambda x: model(x.transpose(1, 2))


def forward(model: nn.Module, masks: Masks, x: Tensor) -> Callable[[], object]:
    """Return a function that computes the masks, as in inference."""

    def run() -> None:
        model.eval()
        with torch.no_grad():
            masks(x)

    return run


def step(model: nn.Module, masks: Masks, x: Tensor) -> Callable[[], object]:
    """Return a function that computes masks and the gradients of all weights."""

    def run() -> None:
        model.train()
        model.zero_grad()
        masks(x).square().mean().backward()

    return run


def build_sepformer(sizes: Sizes) -> nn.Module:
    """Build our SepFormer."""
    from speechkit.nn.dual_path_models import SepFormerMasker

    return SepFormerMasker(
        num_features=sizes.filters,
        num_sources=2,
        bottleneck_size=sizes.filters,
        chunk_size=sizes.chunk,
        intra_layers=sizes.layers,
        inter_layers=sizes.layers,
        num_heads=sizes.heads,
        feedforward_size=sizes.feedforward,
    )


def build_speechbrain(sizes: Sizes) -> nn.Module | None:
    """Build SpeechBrain's SepFormer as its recipe does; None where it is not installed."""
    if peer("speechbrain") is None:
        return None
    from speechbrain.lobes.models.dual_path import Dual_Path_Model, SBTransformerBlock

    def block() -> nn.Module:
        return SBTransformerBlock(
            num_layers=sizes.layers,
            d_model=sizes.filters,
            nhead=sizes.heads,
            d_ffn=sizes.feedforward,
            dropout=0.0,
            use_positional_encoding=True,
            norm_before=True,
        )

    return Dual_Path_Model(
        sizes.filters,
        sizes.filters,
        block(),
        block(),
        num_layers=2,
        K=sizes.chunk,
        linear_layer_after_inter_intra=False,
    )


def build_rnn(sizes: Sizes) -> nn.Module:
    """Build our dual-path RNN."""
    from speechkit.nn.dual_path_models import DualPathRNNMasker

    return DualPathRNNMasker(
        num_features=sizes.rnn_filters,
        num_sources=2,
        bottleneck_size=sizes.rnn_filters,
        hidden_size=sizes.rnn_hidden,
        chunk_size=sizes.rnn_chunk,
        num_blocks=sizes.rnn_blocks,
    )


def build_asteroid_rnn(sizes: Sizes) -> nn.Module | None:
    """Build asteroid's dual-path RNN; None where it is not installed."""
    if peer("asteroid") is None:
        return None
    from asteroid.masknn.recurrent import DPRNN

    return DPRNN(
        sizes.rnn_filters,
        2,
        bn_chan=sizes.rnn_filters,
        hid_size=sizes.rnn_hidden,
        chunk_size=sizes.rnn_chunk,
        n_repeats=sizes.rnn_blocks,
    )


def build_tcn(sizes: Sizes) -> nn.Module:
    """Build our Conv-TasNet."""
    from speechkit.nn.tcn import ConvTasNetMasker

    return ConvTasNetMasker(
        num_features=2 * sizes.filters,
        num_sources=2,
        bottleneck_size=sizes.filters // 2,
        hidden_size=2 * sizes.filters,
        skip_size=sizes.filters // 2,
        num_blocks=sizes.tcn_blocks,
        num_repeats=sizes.tcn_repeats,
    )


def build_asteroid_tcn(sizes: Sizes) -> nn.Module | None:
    """Build asteroid's Conv-TasNet; None where it is not installed."""
    if peer("asteroid") is None:
        return None
    from asteroid.masknn.convolutional import TDConvNet

    return TDConvNet(
        2 * sizes.filters,
        2,
        bn_chan=sizes.filters // 2,
        hid_chan=2 * sizes.filters,
        skip_chan=sizes.filters // 2,
        n_blocks=sizes.tcn_blocks,
        n_repeats=sizes.tcn_repeats,
        mask_act="relu",
    )


def measure_loss(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure permutation-invariant SI-SNR, forward and backward."""
    from speechkit.losses.separation import SeparationLoss

    losses = peer("speechbrain.nnet.losses")
    ours = SeparationLoss(kind="si_snr")
    samples = int(8000 * sizes.loss_s)
    for speakers in sizes.speakers:
        generator = torch.Generator().manual_seed(0)
        shape = (2, sizes.items, speakers, samples)
        targets, noise = torch.randn(shape, generator=generator).to(bench.device)
        estimates = (targets.flip(1) + noise).requires_grad_()
        lengths = torch.full((sizes.items,), samples, device=bench.device)
        # Each side gets the layout that its own models give: theirs is (B, T, S).
        last = estimates.detach().transpose(1, 2).contiguous().requires_grad_()
        last_targets = targets.transpose(1, 2).contiguous()

        def mine(x: Tensor = estimates, y: Tensor = targets, lengths: Tensor = lengths) -> Tensor:
            x.grad = None
            loss = ours(x, y, lengths)[0].mean()
            loss.backward()
            return loss.detach()

        def theirs(x: Tensor = last, y: Tensor = last_targets) -> Tensor:
            assert losses is not None
            x.grad = None
            loss = losses.get_si_snr_with_pitwrapper(y, x).mean()
            loss.backward()
            return loss.detach()

        same = losses is None or torch.allclose(mine(), theirs(), atol=1e-2)
        yield bench.compare(
            Contest(
                "separation",
                f"PIT SI-SNR, {sizes.items} x {sizes.loss_s:g} s, {speakers} speakers",
                "speechbrain",
                mine,
                None if losses is None else theirs,
                Target(ratio=LOSS_TARGETS.get(speakers, 1.0)),
            ),
            note="" if same else "the losses differ",
            failed=not same,
        )


def peak_of(side: str, sizes: Sizes, device: torch.device) -> float:
    """Run one side's forward and backward pass in a fresh process; return its peak in MiB."""
    options = json.dumps(dataclasses.asdict(sizes))
    threads = str(torch.get_num_threads())
    arguments = ["-m", "tools.benchmarks.separation", side, options, str(device), threads]
    return float(child(arguments))


def main(arguments: Sequence[str]) -> None:
    """Run one side's forward and backward pass and print the peak memory in MiB."""
    side, options, device, threads = arguments
    torch.set_num_threads(int(threads))
    give_back_memory()
    sizes = Sizes(**json.loads(options))
    model = build_sepformer(sizes) if side == "ours" else build_speechbrain(sizes)
    if model is None:
        raise SystemExit(f"{side} is not installed")
    model = model.to(device)
    masks = mine(model) if side == "ours" else theirs_of(model)
    step(model, masks, frames_of(sizes, sizes.filters, sizes.step_s).to(device))()
    print(peak_mib(torch.device(device)))


def _millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"


if __name__ == "__main__":
    main(sys.argv[1:])
