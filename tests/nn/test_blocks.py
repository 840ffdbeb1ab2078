"""Blocks on their own: errors, batch norm, recurrent parity with packed sequences, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speechkit.nn.conformer import ConformerConv, ConformerEncoder
from speechkit.nn.conv import ConvEncoder, ConvSubsampling, MaskedBatchNorm
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack
from speechkit.nn.transformer import FeedForward


def test_masked_batch_norm_is_batch_norm_over_the_valid_frames() -> None:
    ours, theirs = MaskedBatchNorm(num_features=5), nn.BatchNorm1d(5)
    lengths = torch.tensor([9, 4, 0])
    for _ in range(3):
        x = torch.randn(3, 9, 5) * 2 + 1
        valid = torch.cat([row[:n] for row, n in zip(x, lengths)])
        x[1, 4:] = float("nan")
        got = ours(x, lengths)
        torch.testing.assert_close(torch.cat([got[0], got[1, :4]]), theirs(valid))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    got = ours.eval()(x, lengths)
    torch.testing.assert_close(torch.cat([got[0], got[1, :4]]), theirs.eval()(valid))


def test_masked_batch_norm_without_a_frame_learns_nothing() -> None:
    norm = MaskedBatchNorm(num_features=2)
    assert (norm(torch.randn(1, 3, 2), torch.tensor([0])) == 0).all()
    assert norm.running_var.tolist() == [1, 1]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_encoder_equals_packed_sequences(cell: str) -> None:
    encoder = RecurrentEncoder(input_size=4, hidden_size=6, num_layers=2, cell=cell)  # type: ignore[arg-type]
    peer = (nn.LSTM if cell == "lstm" else nn.GRU)(
        4, 6, num_layers=2, bidirectional=True, batch_first=True
    )
    weights = peer.state_dict()
    for layer in range(2):
        for suffix, part in (("", encoder.ahead), ("_reverse", encoder.back)):
            for name, value in part[layer].named_parameters():
                key = name.replace("_l0", f"_l{layer}") + suffix
                value.data.copy_(weights[key])
    x, lengths = torch.randn(3, 9, 4), torch.tensor([9, 5, 1])
    packed = pack_padded_sequence(x, lengths, batch_first=True)
    want, _ = pad_packed_sequence(peer(packed)[0], batch_first=True)
    torch.testing.assert_close(encoder(x, lengths).data, want, atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    encoder = RecurrentEncoder(input_size=4, hidden_size=6, num_layers=2, dropout=0.5)
    x, lengths = torch.randn(1, 9, 4), torch.tensor([9])
    assert not torch.equal(encoder(x, lengths).data, encoder(x, lengths).data)
    encoder.eval()
    assert torch.equal(encoder(x, lengths).data, encoder(x, lengths).data)


def _conformer(size: int, heads: int, layers: int, front: int) -> nn.Module:
    return Stack(
        [
            ConvSubsampling(
                input_size=80, channels=(front, front), strides=(2, 2), output_size=size
            ),
            ConformerEncoder(
                input_size=size,
                embed_dim=size,
                num_heads=heads,
                num_layers=layers,
                feedforward_size=4 * size,
                kernel_size=31,
                norm="batch",
            ),
        ]
    )


@pytest.mark.parametrize(
    ("size", "heads", "layers", "low", "high"),
    [
        # NeMo's Conformer-CTC small, medium and large, which has no decoder: 13, 30 and 121
        # million by the table in its configuration, a linear head of some 0.1 to 0.5 included.
        (176, 4, 16, 12.5, 13.5),
        (256, 4, 18, 30.0, 31.0),
        (512, 8, 18, 120.5, 122.0),
        # Gulati et al. 2020, table 1: 10.3, 30.7 and 118.8 million with the decoder, at least
        # one LSTM layer of 320, 640 and 640 units: 0.8, 3.3 and 3.3. The rest of the decoder,
        # embedding and joint network, is not published: up to 1 million.
        (144, 4, 16, 8.5, 9.5),
        (256, 4, 16, 26.4, 27.4),
        (512, 8, 17, 114.5, 115.5),
    ],
)
def test_conformer_has_the_published_size(
    size: int, heads: int, layers: int, low: float, high: float
) -> None:
    with torch.device("meta"):
        encoder = _conformer(size, heads, layers, front=size)
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert low < millions < high, millions


@pytest.mark.parametrize(
    ("kind", "arguments"), [(ConvEncoder, {}), (ConvSubsampling, {"output_size": 3})]
)
def test_convolutions_refuse_bad_geometry(kind: type, arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"2 channels \[3, 4\] but 1 strides \[2\]"):
        kind(input_size=8, channels=(3, 4), strides=(2,), **arguments)
    with pytest.raises(ValueError, match=r"must be odd.*4"):
        kind(input_size=8, channels=(3,), strides=(2,), kernel_size=4, **arguments)
    with pytest.raises(ValueError, match="channels is empty"):
        kind(input_size=8, channels=(), strides=(), **arguments)
    with pytest.raises(ValueError, match="at least 1"):
        kind(input_size=8, channels=(3,), strides=(0,), **arguments)


def test_other_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match="unknown cell 'rnn'"):
        RecurrentEncoder(input_size=4, hidden_size=6, num_layers=1, cell="rnn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_layers must be at least 1, not 0"):
        RecurrentEncoder(input_size=4, hidden_size=6, num_layers=0)
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        FeedForward(embed_dim=4, hidden_size=8, activation="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown norm 'group'"):
        ConformerConv(embed_dim=4, norm="group")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be odd.*6"):
        ConformerConv(embed_dim=4, kernel_size=6)
    with pytest.raises(ValueError, match="at least one layer"):
        Stack([])
    first = RecurrentEncoder(input_size=4, hidden_size=6, num_layers=1)
    second = RecurrentEncoder(input_size=7, hidden_size=6, num_layers=1)
    with pytest.raises(ValueError, match=r"layers\[1\] .* takes 7 features, but .* gives 12"):
        Stack([first, second])


def test_a_batch_without_frames() -> None:
    conv = ConvEncoder(input_size=8, channels=(4,), strides=(2,))
    encoder = Stack([conv, RecurrentEncoder(input_size=4, hidden_size=3, num_layers=1)])
    out, lengths = encoder(torch.randn(2, 0, 8), torch.tensor([0, 0]))
    assert lengths.tolist() == [0, 0]
    assert (out == 0).all()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_layers_start_orthogonal_and_an_lstm_remembers(cell: str) -> None:
    encoder = RecurrentEncoder(input_size=5, hidden_size=6, num_layers=2, cell=cell)
    for layer in (*encoder.ahead, *encoder.back):
        for gate in layer.weight_hh_l0.split(6):
            torch.testing.assert_close(gate @ gate.T, torch.eye(6), atol=1e-5, rtol=0)
        biases = (layer.bias_ih_l0 + layer.bias_hh_l0).detach().split(6)
        forget = 1 if cell == "lstm" else None  # input, forget, cell, output
        assert [float(b.mean()) for b in biases] == [float(i == forget) for i in range(len(biases))]
