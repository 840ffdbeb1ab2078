"""Collation: padding, lists, failures, and what cannot be put together."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechkit.data.batch import Batch, Failure, collate
from speechkit.data.manifest import DataError
from speechkit.nn.masking import Padded


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from([(), (3,), (2, 2)]))
def test_padding(lengths, trailing):
    tensors = [torch.randn(n, *trailing) for n in lengths]
    items = [{"id": str(n), "x": tensor} for n, tensor in enumerate(tensors)]
    batch = collate(items, epoch=4)
    assert batch.ids == [str(n) for n in range(len(lengths))]
    assert batch.x.lengths.tolist() == lengths
    assert batch.x.lengths.dtype == torch.int64
    assert batch.x.data.shape == (len(lengths), max(lengths), *trailing)
    for row, tensor in zip(batch.x.data, tensors):
        assert torch.equal(row[: len(tensor)], tensor)
        assert not row[len(tensor) :].any()
    assert batch.epoch == 4


def test_kinds_of_fields():
    items = [
        {"id": "a", "tokens": torch.tensor([1, 2]), "label": torch.tensor(3), "text": "x", "n": 1},
        Failure("b", "empty file"),
        {"id": "c", "tokens": torch.tensor([5]), "label": torch.tensor(4), "text": "y", "n": 2},
    ]
    batch = collate(items)
    assert isinstance(batch.tokens, Padded)
    assert batch.tokens.data.tolist() == [[1, 2], [5, 0]]
    assert batch.tokens.data.dtype == torch.int64
    assert batch.label.tolist() == [3, 4]
    assert (batch.text, batch.n, len(batch)) == (["x", "y"], [1, 2], 2)
    assert batch.failures == [Failure("b", "empty file")]
    assert "tokens" in batch
    assert "speaker" not in batch
    assert "tokens" in repr(batch)
    with pytest.raises(AttributeError, match="no field 'speaker'; it has: label, n, text, tokens"):
        _ = batch.speaker


def test_all_failed():
    batch = collate([Failure("a", "x"), Failure("b", "y")])
    assert len(batch) == 0
    assert [failure.id for failure in batch.failures] == ["a", "b"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"x": torch.zeros(3)}, {"y": torch.zeros(3)}, "different fields"),
        ({"x": torch.zeros(3, 2)}, {"x": torch.zeros(3, 4)}, r"\(3, 2\).*'b'.*\(3, 4\)"),
        ({"x": torch.zeros(3)}, {"x": torch.zeros(3).long()}, "float32.*int64"),
        ({"x": torch.zeros(3)}, {"x": torch.zeros(())}, "only axis 0"),
        ({"x": torch.zeros(3)}, {"x": "text"}, "a str"),
    ],
)
def test_items_that_do_not_fit(first, second, message):
    with pytest.raises(DataError, match=message):
        collate([{"id": "a", **first}, {"id": "b", **second}])


def test_to_and_pickle():
    batch = collate([{"id": "a", "x": torch.ones(2), "n": torch.tensor(1), "text": "t"}])
    moved = batch.to("meta")
    assert moved.x.data.device.type == moved.x.lengths.device.type == "meta"
    assert moved.n.device.type == "meta"
    assert moved.text == ["t"]
    again = pickle.loads(pickle.dumps(batch))
    assert isinstance(again, Batch)
    assert torch.equal(again.x.data, batch.x.data)
    assert again.ids == ["a"]
