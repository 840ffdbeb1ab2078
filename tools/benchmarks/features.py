"""Log-mel energies of ten minutes in a batch, and of one file of 10 s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechkit.features.spectrum import LogMel
from tools.benchmarks.measure import Bench, Contest, Measurement, Target, peer

# Each contest computes the same numbers on both sides, which is checked before it is timed.
SPEECHBRAIN = {
    "window": "hamming",
    "pad_mode": "constant",
    "filters": "symmetric",
    "log": "db",
    "top_db": 80.0,
}
FLOOR = 1e-6


@dataclass(frozen=True)
class Sizes:
    """Name, number of items, seconds and calls in a run, of each batch."""

    batches: tuple[tuple[str, int, float, int], ...] = (
        ("log-mel 80, 60 x 10 s", 60, 10.0, 1),
        ("log-mel 80, 1 x 10 s", 1, 10.0, 20),
    )


FULL = Sizes()
QUICK = Sizes(batches=(("log-mel 80, 6 x 10 s", 6, 10.0, 2), FULL.batches[1]))


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure every batch against torchaudio and SpeechBrain."""
    transforms = peer("torchaudio.transforms")
    lobes = peer("speechbrain.lobes.features")
    mel = (
        None
        if transforms is None
        else transforms.MelSpectrogram(16000, 400, hop_length=160, n_mels=80)
    )
    fbank = None if lobes is None else lobes.Fbank(n_mels=80)
    rivals: list[tuple[str, LogMel, nn.Module | None, Target | None]] = [
        ("torchaudio", LogMel(num_mels=80, floor=FLOOR), mel and _Log(mel), Target(ratio=1.0)),
        ("speechbrain", LogMel(num_mels=80, **SPEECHBRAIN), fbank, None),  # type: ignore[arg-type]
    ]
    for case, count, seconds, calls in sizes.batches:
        waveforms = torch.randn(count, int(16000 * seconds), device=bench.device) * 0.1
        lengths = torch.full((count,), waveforms.shape[1], device=bench.device)
        for name, log_mel, theirs, target in rivals:
            mine = _runner(log_mel.to(bench.device), waveforms, lengths)
            yours = theirs and _runner(theirs.to(bench.device), waveforms)
            same = yours is None or _close(mine(), yours())
            yield bench.compare(
                Contest("features", case, name, mine, yours, target, calls),
                note="" if same else "the features differ by more than 1e-3",
                failed=not same,
            )


class _Log(nn.Module):
    """torchaudio's spectrogram with the logarithm, which it leaves to the user."""

    def __init__(self, mel: nn.Module) -> None:
        super().__init__()
        self.mel = mel

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.mel(waveforms).clamp_min(FLOOR).log().transpose(1, 2)


def _runner(module: nn.Module, *inputs: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            out = module(*inputs)
        return out[0] if isinstance(out, tuple) else out

    return run


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)
