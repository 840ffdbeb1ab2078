"""An epoch of short WAV files through dataset, padding and sampler."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from speechkit.data.dataset import LoadAudio
from speechkit.data.loaders import SpeechData
from speechkit.data.manifest import Utterance, write_manifest
from tools.benchmarks.measure import Bench, Contest, Measurement, Target, peer

RATE = 16000


@dataclass(frozen=True)
class Sizes:
    """Files, seconds of each, seconds of a batch, and the numbers of workers."""

    files: int = 2000
    seconds: float = 3.0
    batch_seconds: float = 48.0
    workers: tuple[int, ...] = (0, 2)


FULL = Sizes()
QUICK = Sizes(files=300)


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure an epoch against SpeechBrain, each with its own reader, sampler and batches.

    Not counted: reading the manifest. Counted, on both sides: making an epoch's batches once,
    starting the workers, and taking every batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        wavs = write_wavs(Path(folder), sizes)
        manifest = Path(folder) / "train.jsonl"
        write_manifest(manifest, [Utterance(p.stem, str(p), sizes.seconds, RATE) for p in wavs])
        for workers in sizes.workers:
            case = (
                f"{sizes.files} wavs of {sizes.seconds:g} s, {workers} "
                f"worker{'' if workers == 1 else 's'}"
            )
            ours = epoch_of_ours(manifest, sizes, workers)
            theirs = _speechbrain(wavs, sizes, workers)
            target = Target(ratio=2.0)
            yield bench.compare(
                Contest("data", case, "speechbrain", ours, theirs, target), on_cpu=True
            )


def write_wavs(folder: Path, sizes: Sizes) -> list[Path]:
    """Write 16-bit noise; return the files."""
    noise = np.random.default_rng(0)
    paths = [folder / f"u{n}.wav" for n in range(sizes.files)]
    for path in paths:
        samples = noise.standard_normal(int(RATE * sizes.seconds), dtype=np.float32) * 3000
        soundfile.write(path, samples.astype(np.int16), RATE)
    return paths


def epoch_of_ours(manifest: Path, sizes: Sizes, workers: int) -> Callable[[], int]:
    """Return a function that takes every batch of an epoch and counts the utterances."""
    data = SpeechData(
        train=manifest,
        transforms=[LoadAudio(sample_rate=RATE)],
        max_batch_seconds=sizes.batch_seconds,
        num_workers=workers,
    )
    epoch = iter(range(10**9))

    def run() -> int:
        return _count([len(batch.waveform.data) for batch in data.train_loader(next(epoch))], sizes)

    return run


def _speechbrain(wavs: list[Path], sizes: Sizes, workers: int) -> Callable[[], int] | None:
    if peer("speechbrain") is None:
        return None
    from speechbrain.dataio.batch import PaddedBatch
    from speechbrain.dataio.dataio import read_audio
    from speechbrain.dataio.dataloader import SaveableDataLoader
    from speechbrain.dataio.dataset import DynamicItemDataset
    from speechbrain.dataio.sampler import DynamicBatchSampler

    def read(wav: str) -> torch.Tensor:
        return read_audio(wav)

    dataset = DynamicItemDataset(
        {path.stem: {"wav": str(path), "duration": sizes.seconds} for path in wavs}
    )
    dataset.add_dynamic_item(read, takes="wav", provides="sig")
    dataset.set_output_keys(["id", "sig"])
    # At the end of an epoch it makes the next one's batches: one epoch's worth in every run.
    sampler = DynamicBatchSampler(
        dataset,
        max_batch_length=sizes.batch_seconds,
        num_buckets=20,
        length_func=lambda item: item["duration"],
        shuffle=True,
        batch_ordering="random",
    )
    loader = SaveableDataLoader(
        dataset, batch_sampler=sampler, collate_fn=PaddedBatch, num_workers=workers
    )

    def run() -> int:
        return _count([len(batch.sig.data) for batch in loader], sizes)

    return run


def _count(rows: list[int], sizes: Sizes) -> int:
    if sum(rows) != sizes.files:
        raise RuntimeError(f"an epoch gave {sum(rows)} utterances instead of {sizes.files}")
    return sum(rows)
