"""The pyramidal encoder: half the frames per layer, padding nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechkit.nn.masking import length_mask
from speechkit.nn.pyramid import PyramidalEncoder
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack

LENGTHS = (23, 17, 6, 1)


def _encoder(**changes: Any) -> PyramidalEncoder:
    torch.manual_seed(3)
    return PyramidalEncoder(**{"input_size": 8, "hidden_size": 6, "num_layers": 3, **changes})


@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan"), float("inf")])
@pytest.mark.parametrize("extra", [0, 4, 5])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_padding_changes_nothing(num_layers: int, cell: str, extra: int, garbage: float) -> None:
    encoder = _encoder(num_layers=num_layers, cell=cell)
    x = torch.full((4, max(LENGTHS) + extra, 8), garbage)
    for row, length in zip(x, LENGTHS):
        row[:length] = torch.randn(length, 8)
    x.requires_grad_()
    lengths = torch.tensor(LENGTHS)
    out, out_lengths = encoder(x, lengths)
    assert out_lengths.tolist() == encoder.num_frames(lengths).tolist()
    for i, length in enumerate(LENGTHS):
        alone = encoder(x[i : i + 1, :length], lengths[i : i + 1])
        assert alone.data.shape[1] == alone.lengths[0] == out_lengths[i]
        torch.testing.assert_close(out[i, : out_lengths[i]], alone.data[0], atol=1e-5, rtol=1e-5)
    assert (out[~length_mask(out_lengths, out.shape[1])] == 0).all()
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert grad.isfinite().all()
    assert (grad[~length_mask(lengths, x.shape[1])] == 0).all()


def test_one_layer_is_a_recurrent_encoder() -> None:
    encoder = _encoder(num_layers=1)
    plain = RecurrentEncoder(input_size=8, hidden_size=6, num_layers=1)
    plain.load_state_dict(encoder.layers[0].state_dict())
    x, lengths = torch.randn(2, 7, 8), torch.tensor([7, 4])
    assert torch.equal(encoder(x, lengths).data, plain(x, lengths).data)


def test_a_layer_reads_pairs_of_frames() -> None:
    encoder = _encoder(num_layers=2)
    below = encoder.layers[0](torch.ones(1, 5, 8), torch.tensor([5])).data[0]
    pairs = [torch.cat([below[0], below[1]]), torch.cat([below[2], below[3]])]
    pairs.append(torch.cat([below[4], torch.zeros(12)]))
    want = encoder.layers[1](torch.stack(pairs)[None], torch.tensor([3])).data
    torch.testing.assert_close(encoder(torch.ones(1, 5, 8), torch.tensor([5])).data, want)


def test_empty_items_and_batches() -> None:
    out = _encoder()(torch.randn(2, 5, 8), torch.tensor([5, 0]))
    assert out.lengths.tolist() == [2, 0]
    assert (out.data[1] == 0).all()
    assert _encoder()(torch.randn(2, 0, 8), torch.tensor([0, 0])).data.shape == (2, 0, 12)


def test_it_stacks_and_says_its_sizes() -> None:
    stack = Stack([_encoder(), RecurrentEncoder(input_size=12, hidden_size=4, num_layers=1)])
    assert stack.num_frames(torch.tensor([9])).tolist() == [3]
    assert stack(torch.randn(1, 9, 8), torch.tensor([9])).data.shape == (1, 3, 8)


def test_dropout_acts_between_layers_in_training_alone() -> None:
    x, lengths = torch.randn(1, 8, 8), torch.tensor([8])
    encoder = _encoder(dropout=0.5).train()
    assert not torch.equal(encoder(x, lengths).data, encoder(x, lengths).data)
    encoder.eval()
    assert torch.equal(encoder(x, lengths).data, encoder(x, lengths).data)


def test_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        _encoder(num_layers=0)
    with pytest.raises(ValueError, match="unknown cell 'rnn'"):
        _encoder(cell="rnn")
