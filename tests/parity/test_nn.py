"""Our blocks against the peers' own, with the same random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.attention import MultiHeadAttention, RelPosMultiHeadAttention
from speechkit.nn.conformer import ConformerEncoder, ConformerLayer
from speechkit.nn.masking import length_mask
from speechkit.nn.positional import absolute_positions, relative_positions
from speechkit.nn.transformer import TransformerEncoder

LENGTHS = torch.tensor([19, 12, 5])
SIZE, HEADS = 24, 4


def _input() -> Tensor:
    return torch.randn(len(LENGTHS), int(LENGTHS.max()), SIZE)


def _padding() -> Tensor:
    return ~length_mask(LENGTHS, int(LENGTHS.max()))


def _assert_valid_frames_close(ours: Tensor, theirs: Tensor) -> None:
    for got, want, length in zip(ours, theirs, LENGTHS):
        torch.testing.assert_close(got[:length], want[:length], atol=1e-5, rtol=1e-4)


def _randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def _copy(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy weights by order of definition within one block."""
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values())))


def _copy_torch_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    ours.in_proj.weight.data.copy_(theirs.in_proj_weight.data)
    ours.in_proj.bias.data.copy_(theirs.in_proj_bias.data)
    _copy(ours.out_proj, theirs.out_proj)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_multi_head_attention_equals_torch(cross: bool) -> None:
    """Outputs and input gradients of torch.nn.MultiheadAttention, padded keys masked."""
    theirs = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
    _randomise(theirs)
    ours = MultiHeadAttention(embed_dim=SIZE, num_heads=HEADS)
    _copy_torch_attention(ours, theirs)
    x, memory = torch.randn(3, 7, SIZE).requires_grad_(), _input().requires_grad_()
    query = x if cross else memory
    got = ours(query, LENGTHS, memory=memory if cross else None)
    want, _ = theirs(query, memory, memory, key_padding_mask=_padding())
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        *(torch.autograd.grad(y.square().sum(), memory)[0] for y in (got, want)),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder_equals_torch(pre_norm: bool, activation: Any) -> None:
    """torch.nn.TransformerEncoder given the input plus our sinusoids: valid frames."""
    layer = nn.TransformerEncoderLayer(
        SIZE, HEADS, 40, 0.0, activation, batch_first=True, norm_first=pre_norm
    )
    theirs = nn.TransformerEncoder(
        layer, 3, nn.LayerNorm(SIZE) if pre_norm else None, enable_nested_tensor=False
    )
    _randomise(theirs)
    ours = TransformerEncoder(
        input_size=SIZE,
        embed_dim=SIZE,
        num_heads=HEADS,
        num_layers=3,
        feedforward_size=40,
        pre_norm=pre_norm,
        activation=activation,
    )
    for mine, peer in zip(ours.layers, theirs.layers):
        _copy_torch_attention(mine.attention, peer.self_attn)
        _copy(mine.feedforward.expand, peer.linear1)
        _copy(mine.feedforward.reduce, peer.linear2)
        _copy(mine.attention_norm, peer.norm1)
        _copy(mine.feedforward_norm, peer.norm2)
    if pre_norm:
        _copy(ours.norm, theirs.norm)
    x = _input()
    positions = absolute_positions(x.shape[1], SIZE, x.device)
    want = theirs(
        x.masked_fill(_padding()[..., None], 0) + positions, src_key_padding_mask=_padding()
    )
    _assert_valid_frames_close(ours(x, LENGTHS).data, want)


def _copy_speechbrain_attention(ours: RelPosMultiHeadAttention, theirs: Any) -> None:
    # Theirs keeps query, key and value of a head together; ours, as torch, the heads of each.
    weight = theirs.in_proj_weight.data.view(HEADS, 3, SIZE // HEADS, SIZE)
    ours.in_proj.weight.data.copy_(weight.transpose(0, 1).reshape(3 * SIZE, SIZE))
    if ours.in_proj.bias is not None:
        ours.in_proj.bias.data.zero_()  # theirs has none
    ours.out_proj.weight.data.copy_(theirs.out_proj.weight.data)
    if ours.out_proj.bias is not None:
        ours.out_proj.bias.data.copy_(theirs.out_proj.bias.data)
    _copy(ours.pos_proj, theirs.linear_pos)
    ours.content_bias.data.copy_(theirs.pos_bias_u.data.view(HEADS, -1))
    ours.position_bias.data.copy_(theirs.pos_bias_v.data.view(HEADS, -1))
    # Theirs divides by sqrt(embed_dim), the papers and we by sqrt(head size).
    theirs.scale = (SIZE // HEADS) ** -0.5


@pytest.mark.parametrize("grad", [True, False], ids=["with_gradient", "fused"])
def test_relative_attention_equals_speechbrain(grad: bool) -> None:
    """RelPosMHAXL with the papers' scale, fed our offset embeddings (its own make the sine of
    an offset and of its opposite the same); padded keys masked; outputs and input gradients.
    """
    peer = pytest.importorskip("speechbrain.nnet.attention")
    theirs = peer.RelPosMHAXL(SIZE, HEADS)
    _randomise(theirs)
    ours = RelPosMultiHeadAttention(embed_dim=SIZE, num_heads=HEADS)
    _copy_speechbrain_attention(ours, theirs)
    x = _input().requires_grad_(grad)
    positions = relative_positions(x.shape[1], SIZE, x.device)
    with torch.set_grad_enabled(grad):
        got = ours(x, LENGTHS, positions=positions)
        want, _ = theirs(x, x, x, positions[None], key_padding_mask=_padding())
    _assert_valid_frames_close(got, want)
    if grad:
        weight = (~_padding())[..., None]
        grads = [torch.autograd.grad((y * weight).square().sum(), x)[0] for y in (got, want)]
        torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


def _copy_speechbrain_layer(ours: ConformerLayer, theirs: Any) -> None:
    for norm, feedforward, peer in (
        (ours.first_norm, ours.first, theirs.ffn_module1),
        (ours.second_norm, ours.second, theirs.ffn_module2),
    ):
        _copy(norm, peer[0])
        _copy(feedforward.expand, peer[1].ffn[0])
        _copy(feedforward.reduce, peer[1].ffn[3])
    _copy(ours.attention_norm, theirs.norm1.norm)
    _copy_speechbrain_attention(ours.attention, theirs.mha_layer)
    module = theirs.convolution_module
    _copy(ours.conv_norm, module.layer_norm)
    ours.conv.expand.weight.data.copy_(module.bottleneck[0].weight.data.squeeze(2))
    ours.conv.expand.bias.data.copy_(module.bottleneck[0].bias.data)
    _copy(ours.conv.depthwise, module.conv)
    _copy(ours.conv.depthwise_norm, module.after_conv[0])
    _copy(ours.conv.reduce, module.after_conv[2])
    _copy(ours.last_norm, theirs.norm2.norm)


@pytest.mark.parametrize("batch", ["padded", "alone"])
def test_conformer_encoder_equals_speechbrain(batch: str) -> None:
    """All layers of ConformerEncoder without its extra last norm. Theirs does not mask before
    the depthwise convolution, so a padded batch is compared with each item alone.
    """
    peer = pytest.importorskip("speechbrain.lobes.models.transformer.Conformer")
    theirs = peer.ConformerEncoder(3, SIZE, 40, HEADS, kernel_size=7)
    theirs.norm = nn.Identity()
    _randomise(theirs)
    ours = ConformerEncoder(
        input_size=SIZE,
        embed_dim=SIZE,
        num_heads=HEADS,
        num_layers=3,
        feedforward_size=40,
        kernel_size=7,
    )
    for mine, layer in zip(ours.layers, theirs.layers):
        _copy_speechbrain_layer(mine, layer)
    x = _input()
    padded = ours(x, LENGTHS).data
    for i, length in enumerate(LENGTHS.tolist()):
        item = x[i : i + 1, :length]
        want, _ = theirs(item, pos_embs=relative_positions(length, SIZE, x.device)[None])
        alone = (
            padded[i : i + 1, :length] if batch == "padded" else ours(item, LENGTHS[i : i + 1]).data
        )
        torch.testing.assert_close(alone, want, atol=5e-5, rtol=1e-4)
