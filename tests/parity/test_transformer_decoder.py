"""The Transformer decoder against the peers' own, with the same random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.attention import MultiHeadAttention
from speechkit.nn.masking import length_mask
from speechkit.nn.transformer_decoder import TransformerDecoder

LENGTHS = torch.tensor([19, 12, 5])
TOKEN_LENGTHS = torch.tensor([4, 7, 6])
V, SIZE, HEADS, HIDDEN, LAYERS = 13, 24, 4, 40, 3


def _ours(pre_norm: bool) -> TransformerDecoder:
    return TransformerDecoder(
        vocab_size=V,
        memory_size=SIZE,
        embed_dim=SIZE,
        num_heads=HEADS,
        num_layers=LAYERS,
        feedforward_size=HIDDEN,
        pre_norm=pre_norm,
    )


def _randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def _copy(ours: nn.Module, theirs: nn.Module) -> None:
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values())))


def _copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    ours.in_proj.weight.data.copy_(theirs.in_proj_weight.data)
    ours.in_proj.bias.data.copy_(theirs.in_proj_bias.data)
    _copy(ours.out_proj, theirs.out_proj)


def _masks() -> tuple[Tensor, Tensor, Tensor]:
    """Give what may not be seen: later tokens, padded tokens, padded frames."""
    size = int(TOKEN_LENGTHS.max())
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    return later, ~length_mask(TOKEN_LENGTHS, size), ~length_mask(LENGTHS, int(LENGTHS.max()))


def _assert_valid_tokens_close(got: Tensor, want: Tensor) -> None:
    for mine, theirs, length in zip(got, want, TOKEN_LENGTHS):
        torch.testing.assert_close(mine[:length], theirs[:length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [True, False], ids=["pre_norm", "post_norm"])
def test_equals_torch(pre_norm: bool) -> None:
    """torch.nn.TransformerDecoder between our embedding and our output layer: logits, and the
    gradients of the memory and of the embedding, of a padded batch.
    """
    ours = _ours(pre_norm)
    layer = nn.TransformerDecoderLayer(
        SIZE, HEADS, HIDDEN, dropout=0.0, batch_first=True, norm_first=pre_norm
    )
    theirs = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(SIZE) if pre_norm else None)
    _randomise(theirs)
    for mine, peer in zip(ours.layers, theirs.layers):
        _copy_attention(mine.attention, peer.self_attn)
        _copy_attention(mine.memory_attention, peer.multihead_attn)
        _copy(mine.feedforward.expand, peer.linear1)
        _copy(mine.feedforward.reduce, peer.linear2)
        _copy(mine.attention_norm, peer.norm1)
        _copy(mine.memory_norm, peer.norm2)
        _copy(mine.feedforward_norm, peer.norm3)
    if pre_norm:
        _copy(ours.norm, theirs.norm)
    tokens = torch.randint(V, (3, 7))
    memory = torch.randn(3, 19, SIZE, requires_grad=True)
    later, padded_tokens, padded_frames = _masks()
    got = ours(tokens, TOKEN_LENGTHS, memory, LENGTHS).logits
    peer_out = theirs(
        ours._embed(tokens, 0),
        memory,
        tgt_mask=later,
        tgt_key_padding_mask=padded_tokens,
        memory_key_padding_mask=padded_frames,
    )
    want = ours.output(peer_out)
    _assert_valid_tokens_close(got, want)
    weight = torch.randn(3, 7, V) * ~padded_tokens[..., None]
    sources = [memory, ours.embedding.weight]
    grads = [torch.autograd.grad((y * weight).sum(), sources) for y in (got, want)]
    for mine, peer in zip(*grads):
        torch.testing.assert_close(mine, peer, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pre_norm", [True, False], ids=["pre_norm", "post_norm"])
def test_equals_speechbrain(pre_norm: bool) -> None:
    """speechbrain's TransformerDecoder between our embedding and our output layer: logits and the
    last layer's attention to the memory. Its final norm, which it also has after post-norm
    layers, is put in front of our output there.
    """
    peer = pytest.importorskip("speechbrain.lobes.models.transformer.Transformer")
    theirs = peer.TransformerDecoder(
        LAYERS, HEADS, HIDDEN, SIZE, normalize_before=pre_norm, attention_type="regularMHA"
    ).eval()
    _randomise(theirs)
    ours = _ours(pre_norm).eval()
    for mine, layer in zip(ours.layers, theirs.layers):
        _copy_attention(mine.attention, layer.self_attn.att)
        _copy_attention(mine.memory_attention, layer.multihead_attn.att)
        _copy(mine.feedforward.expand, layer.pos_ffn.ffn[0])
        _copy(mine.feedforward.reduce, layer.pos_ffn.ffn[3])
        _copy(mine.attention_norm, layer.norm1.norm)
        _copy(mine.memory_norm, layer.norm2.norm)
        _copy(mine.feedforward_norm, layer.norm3.norm)
    last = nn.LayerNorm(SIZE)
    last.load_state_dict(theirs.norm.norm.state_dict())
    last.eps = theirs.norm.norm.eps
    ours.norm = last
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6  # as theirs
    tokens, memory = torch.randint(V, (3, 7)), torch.randn(3, 19, SIZE)
    later, padded_tokens, padded_frames = _masks()
    with torch.no_grad():
        got = ours(tokens, TOKEN_LENGTHS, memory, LENGTHS)
        want, _, attentions = theirs(
            ours._embed(tokens, 0),
            memory,
            tgt_mask=later,
            tgt_key_padding_mask=padded_tokens,
            memory_key_padding_mask=padded_frames,
        )
    _assert_valid_tokens_close(got.logits, ours.output(want))
    assert got.attention is not None
    _assert_valid_tokens_close(got.attention, attentions[-1])
