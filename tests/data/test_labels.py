"""Label sets, their place in items and batches, imbalance, and mixup."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechkit.data.batch import collate
from speechkit.data.dataset import SpeechDataset
from speechkit.data.labels import (
    EncodeLabel,
    LabelSet,
    as_targets,
    check_labels,
    class_weights,
    labels_of,
)
from speechkit.data.manifest import DataError, Utterance, write_manifest
from speechkit.data.mixup import Mixup


def _row(name: str, label: object, **fields: object) -> Utterance:
    return Utterance(name, "-", 1.0, 8000, extra={"label": label, **fields})


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    write_manifest(path, [_row("a", "dog"), _row("b", "cat"), _row("c", "dog"), _row("d", "dog")])
    return path


def test_a_label_set_is_a_sequence_of_names(train: Path) -> None:
    labels = LabelSet.from_manifest(train)
    assert list(labels) == ["cat", "dog"]
    assert (len(labels), labels[1], labels[:1], "dog" in labels, "cow" in labels) == (
        2, "dog", ["cat"], True, False,
    )  # fmt: skip
    assert LabelSet.from_manifest([train, train]).names == labels.names
    with pytest.raises(DataError, match=r"there twice: \['a'\]"):
        LabelSet(names=["a", "b", "a"])
    with pytest.raises(DataError, match="labels must be names"):
        LabelSet(names=[])


def test_any_field_may_hold_the_label(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [
        Utterance("a", "-", 1.0, 8000, speaker="anna", extra={"emotion": ["calm", "sad"]}),
        Utterance("b", "-", 1.0, 8000, speaker="ben", extra={"emotion": []}),
    ]
    write_manifest(path, rows)
    assert LabelSet.from_manifest(path, "speaker").names == ["anna", "ben"]
    assert LabelSet.from_manifest(path, "emotion").names == ["calm", "sad"]
    assert labels_of(rows[1], "emotion") == []
    with pytest.raises(DataError, match=r"2 rows without labels[\s\S]*'b' has no 'label'"):
        LabelSet.from_manifest(path)


def test_unknown_labels_are_named_before_and_during(train: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    write_manifest(path, [_row("x", "cow"), _row("y", "dog"), _row("z", "cow")])
    labels = LabelSet.from_manifest(train)
    with pytest.raises(DataError, match=r"there were cat, dog:[\s\S]*test: 'cow', in 2 rows of "):
        check_labels(labels, {"train": train, "test": path})
    check_labels(labels, {"train": train})
    dataset = SpeechDataset([_row("x", "cow")], transforms=[EncodeLabel(labels=labels)])
    with pytest.raises(DataError, match=r"utterance 'x': label 'cow' is not among the 2 labels"):
        dataset[0]


def test_items_become_targets() -> None:
    names = ["cat", "dog", "rain"]
    rows = [_row("a", "dog"), _row("b", "cat")]
    batch = collate(
        [SpeechDataset(rows, transforms=[EncodeLabel(labels=names)])[i] for i in (0, 1)]
    )
    assert as_targets(batch.label, 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    several = EncodeLabel(labels=names, multi_label=True)
    rows = [_row("a", ["rain", "dog"]), _row("b", "cat"), _row("c", [])]
    batch = collate([SpeechDataset(rows, transforms=[several])[i] for i in range(3)])
    assert as_targets(batch.label, 3).tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    with pytest.raises(DataError, match=r"2 labels \['rain', 'dog'\] under 'label', wanted is one"):
        SpeechDataset([_row("a", ["rain", "dog"])], transforms=[EncodeLabel(labels=names)])[0]
    with pytest.raises(ValueError, match=r"must lie in 0 \.\. 1"):
        as_targets(torch.tensor([2]), 2)
    with pytest.raises(ValueError, match=r"expected labels \(B, 4\)"):
        as_targets(batch.label, 4)


def test_class_weights(train: Path, tmp_path: Path) -> None:
    weights = class_weights(train, ["cat", "dog"])
    torch.testing.assert_close(weights, torch.tensor([2.0, 2 / 3]))
    assert torch.isclose((weights * torch.tensor([1.0, 3.0])).sum() / 4, torch.tensor(1.0))
    root = class_weights(train, ["cat", "dog"], power=0.5)
    torch.testing.assert_close(root, weights.sqrt())
    assert class_weights(train, ["cat", "dog"], power=0.0).tolist() == [1.0, 1.0]
    path = tmp_path / "many.jsonl"
    write_manifest(path, [_row("a", ["x", "y"]), _row("b", "x"), _row("c", []), _row("d", [])])
    assert class_weights(path, ["x", "y"], multi_label=True).tolist() == [1.0, 3.0]
    with pytest.raises(DataError, match=r"without utterances \(cow\)"):
        class_weights(train, ["cat", "cow", "dog"])
    write_manifest(path, [_row("a", "dog")])
    with pytest.raises(DataError, match=r"all of them \(dog\)"):
        class_weights(path, ["dog"], multi_label=True)
    with pytest.raises(ValueError, match="power must be in"):
        class_weights(train, ["cat", "dog"], power=2.0)


def _generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 * seed + n) for n in range(count)]


def test_mixup_mixes_sound_and_label_alike() -> None:
    # With one sample an item equal to its target, both must come out equal again.
    x = torch.eye(6)
    out = Mixup(alpha=1.0)(x, torch.full((6,), 6), torch.eye(6), _generators(6))
    torch.testing.assert_close(out.waveforms, out.targets)
    torch.testing.assert_close(out.targets.sum(1), torch.ones(6))
    assert ((out.targets > 0).sum(1) == 2).all(), "nobody is mixed with itself"
    assert (out.targets.diagonal() >= 0.5).all()
    assert len({round(float(v), 6) for v in out.targets.diagonal()}) == 6
    again = Mixup(alpha=1.0)(x, torch.full((6,), 6), torch.eye(6), _generators(6))
    assert torch.equal(again.waveforms, out.waveforms)


def test_mixup_of_lengths_and_padding() -> None:
    x = torch.tensor([[1.0, 1.0, 1.0], [1.0, float("nan"), float("nan")]])
    out = Mixup(alpha=1.0)(x, torch.tensor([3, 1]), torch.eye(2), _generators(2))
    assert out.lengths.tolist() == [3, 3]
    assert out.waveforms.isfinite().all()
    share = out.targets[1, 1]
    torch.testing.assert_close(out.waveforms[1], torch.stack([share / share, 1 - share, 1 - share]))
    frames = torch.randn(2, 4, 5)
    assert Mixup()(frames, torch.tensor([4, 4]), torch.eye(2), _generators(2)).waveforms.shape == (
        2, 4, 5,
    )  # fmt: skip


def test_mixup_spares_whom_it_should() -> None:
    x, lengths = torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([1, 2])
    out = Mixup(prob=0.0)(x, lengths, torch.eye(2), _generators(2))
    assert torch.equal(out.waveforms, x)
    assert out.lengths.tolist() == [1, 2]
    alone = Mixup()(x[:1], lengths[:1], torch.eye(2)[:1], _generators(1))
    assert torch.equal(alone.waveforms, x[:1])
    mixed = 0
    for seed in range(20):
        targets = Mixup(prob=0.5)(x, lengths, torch.eye(2), _generators(2, seed)).targets
        mixed += int((targets.diagonal() < 1).sum())
    assert 10 <= mixed <= 30
    with pytest.raises(ValueError, match="a generator for each of 2 items, got 1"):
        Mixup()(x, lengths, torch.eye(2), _generators(1))
    with pytest.raises(ValueError, match="need alpha > 0"):
        Mixup(alpha=0.0)
