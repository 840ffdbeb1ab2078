"""HiFi-GAN's generator, V1 at its published size, beside SpeechBrain's: mels to waveforms.

Both get the same weights, and what they make is compared. Weight norm is folded on both sides:
SpeechBrain can do it too, though its recipes and its interface do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tools.benchmarks.measure import Bench, Contest, Measurement, Target, peer

AREA = "vocoder"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model and of the inputs."""

    channels: int = 512
    frames: int = 400
    items: tuple[int, ...] = (1, 8)
    mels: int = 80


FULL = Sizes()
QUICK = Sizes(channels=16, frames=9, items=(1, 2))


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure batches of each size."""
    theirs = build_speechbrain(sizes)
    ours = build_ours(sizes, theirs).to(bench.device)
    if theirs is not None:
        theirs.remove_weight_norm()
        theirs = theirs.to(bench.device)
    for items in sizes.items:
        generator = torch.Generator().manual_seed(0)
        mel = torch.randn(items, sizes.frames, sizes.mels, generator=generator).to(bench.device)
        failed = theirs is not None and not same_waveforms(ours, theirs, mel)
        yield bench.compare(
            Contest(
                AREA,
                f"HiFi-GAN V1, {items} x {sizes.frames} frames",
                "speechbrain",
                calls_of(ours, mel),
                None if theirs is None else calls_of(theirs, mel.transpose(1, 2)),
                Target(ratio=1.0),
            ),
            note="the waveforms differ" if failed else "",
            failed=failed,
        )


def build_ours(sizes: Sizes, theirs: Any) -> Any:
    """Build our vocoder, with the peer's weights where there is one."""
    from speechkit.convert.hifigan import convert_hifigan, published_mel
    from speechkit.models.vocoder import NeuralVocoder
    from speechkit.nn.hifigan import HiFiGANGenerator

    if theirs is None:
        generator = HiFiGANGenerator(channels=sizes.channels, num_mels=sizes.mels)
    else:
        state, settings = convert_hifigan(theirs.state_dict())
        generator = HiFiGANGenerator(**settings)
        generator.load_state_dict(state)
    features = published_mel(num_mels=sizes.mels)
    return NeuralVocoder(features=features, generator=generator).fold_weight_norm().eval()


def build_speechbrain(sizes: Sizes) -> Any:
    """Build SpeechBrain's generator as its recipe does; None where it is not installed."""
    if peer("speechbrain") is None:
        return None
    from speechbrain.lobes.models.HifiGAN import HifiganGenerator

    torch.manual_seed(0)
    return HifiganGenerator(
        in_channels=sizes.mels,
        out_channels=1,
        resblock_type="1",
        resblock_dilation_sizes=[[1, 3, 5]] * 3,
        resblock_kernel_sizes=[3, 7, 11],
        upsample_kernel_sizes=[16, 16, 4, 4],
        upsample_initial_channel=sizes.channels,
        upsample_factors=[8, 8, 2, 2],
    ).eval()


def same_waveforms(ours: Any, theirs: Any, mel: Tensor) -> bool:
    """Whether both make the same of a mel."""
    with torch.no_grad():
        want = theirs(mel.transpose(1, 2)).squeeze(1)
        scale = float(want.abs().max())
        return torch.allclose(ours(mel).data, want, atol=1e-3 * scale)


def calls_of(model: Any, mel: Tensor) -> Callable[[], object]:
    """Return a function that makes the waveforms."""

    def run() -> None:
        with torch.no_grad():
            model(mel)

    return run
