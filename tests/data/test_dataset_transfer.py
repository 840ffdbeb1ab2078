"""Batches through the ring of shared buffers: sizes that grow, several tensors, every type."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from speechkit.data.dataset import SpeechDataset
from speechkit.data.manifest import Utterance
from speechkit.data.transfer import Collate

TYPES = [torch.float32, torch.float64, torch.int16, torch.int64, torch.bool, torch.bfloat16]


def fields(item, generator):
    """Draw several big tensors of all types, and small and empty ones."""
    size = int(item["utterance"].duration * 200)
    out = {**item, "none": torch.zeros(0), "scalar": torch.rand((), generator=generator)}
    for n, dtype in enumerate(TYPES):
        values = torch.randint(0, 2, (size * (n + 1), 3), generator=generator)
        out[f"big{n}"] = values.to(dtype)
        out[f"small{n}"] = values[:5].to(dtype)
    return out


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_what_arrives_is_what_was_built(prefetch):
    sizes = [3, 40, 0.01, 12, 80, 5, 80, 1, 30, 30, 90, 2] * 2
    rows = [Utterance(f"u{n}", "-", float(size), 8000) for n, size in enumerate(sizes)]
    dataset = SpeechDataset(rows, transforms=[fields])
    keys = [[(1, n), (1, n + 1)] for n in range(0, len(rows), 2)]
    collate = Collate(epoch=1, prefetch_factor=prefetch)
    loader = DataLoader(
        dataset, batch_sampler=keys, collate_fn=collate, num_workers=2, prefetch_factor=prefetch
    )
    batches = list(loader)
    assert len(batches) == len(keys)
    for batch, pair in zip(batches, keys):
        items = [dataset[key] for key in pair]
        assert batch.ids == [item["id"] for item in items]
        for name in (f"{kind}{n}" for kind in ("big", "small") for n in range(len(TYPES))):
            padded = getattr(batch, name)
            assert padded.lengths.tolist() == [len(item[name]) for item in items]
            for row, item in zip(padded.data, items):
                assert torch.equal(row[: len(item[name])], item[name])
                assert not row[len(item[name]) :].any()
        assert torch.equal(batch.scalar, torch.stack([item["scalar"] for item in items]))
        assert batch.none.data.shape == (2, 0)
        batch.big0.data.add_(1)  # the trainer's own memory, which may be written to
