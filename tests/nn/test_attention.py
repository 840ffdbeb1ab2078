from __future__ import annotations

import pytest
import torch

from speechkit.nn.attention import MultiHeadAttention, RelPosMultiHeadAttention
from speechkit.nn.positional import absolute_positions, relative_positions, relative_shift

ATTENTIONS = [MultiHeadAttention, RelPosMultiHeadAttention]


def _written_out(attention: RelPosMultiHeadAttention, x: torch.Tensor) -> torch.Tensor:
    """One frame, head and offset at a time, after the formula of the paper."""
    heads, size = attention.num_heads, attention.embed_dim // attention.num_heads
    num_frames = x.shape[0]
    query, key, value = attention.in_proj(x).view(num_frames, 3, heads, size).unbind(1)
    table = attention.pos_proj(relative_positions(num_frames, attention.embed_dim, x.device))
    table = table.view(-1, heads, size)
    out = torch.zeros(num_frames, heads, size)
    for h in range(heads):
        for i in range(num_frames):
            scores = []
            for j in range(num_frames):
                offset = table[num_frames - 1 - (i - j), h]
                content = (query[i, h] + attention.content_bias[h]) @ key[j, h]
                position = (query[i, h] + attention.position_bias[h]) @ offset
                scores.append((content + position) / size**0.5)
            out[i, h] = torch.stack(scores).softmax(0) @ value[:, h]
    return attention.out_proj(out.flatten(1))


@pytest.mark.parametrize("grad", [True, False], ids=["with_gradient", "fused"])
@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_relative_attention_follows_the_formula(num_frames: int, grad: bool) -> None:
    attention = RelPosMultiHeadAttention(embed_dim=12, num_heads=3).eval()
    x = torch.randn(2, num_frames, 12)
    with torch.set_grad_enabled(grad):
        got = attention(x)
    for row, item in zip(got, x):
        torch.testing.assert_close(row, _written_out(attention, item), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
def test_relative_shift_is_a_gather(num_frames: int) -> None:
    scores = torch.randn(2, 3, num_frames, 2 * num_frames - 1, requires_grad=True)
    step = torch.arange(num_frames)
    index = num_frames - 1 - step[:, None] + step
    want = scores.gather(-1, index.expand(2, 3, -1, -1))
    got = relative_shift(scores)
    assert torch.equal(got, want)
    weight = torch.randn_like(want)
    grads = [torch.autograd.grad((y * weight).sum(), scores)[0] for y in (got, want)]
    assert torch.equal(*grads)


def test_relative_positions_count_down_through_zero() -> None:
    table = relative_positions(4, 6, torch.device("cpu"))
    assert torch.equal(table[3:].flip(0)[-1], absolute_positions(1, 6, torch.device("cpu"))[0])
    torch.testing.assert_close(table[:4].flip(0), absolute_positions(4, 6, torch.device("cpu")))
    torch.testing.assert_close(table[4:, 0::2], -table[:3].flip(0)[:, 0::2])  # sines are odd


@pytest.mark.parametrize("cls", ATTENTIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("training", [False, True])
def test_masked_keys_are_not_seen(cls: type, dropout: float, training: bool) -> None:
    attention = cls(embed_dim=8, num_heads=2, dropout=dropout).train(training)
    x = torch.randn(2, 6, 8)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    changed = x.clone()
    changed[:, 4:] = 7.0
    outputs = []
    for given in (x, changed):
        torch.manual_seed(5)
        outputs.append(attention(given, torch.tensor([6, 5]), attn_mask=causal)[:, :4])
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("cls", ATTENTIONS)
@pytest.mark.parametrize("shape", [(5, 5), (2, 5, 5)], ids=str)
def test_a_query_that_sees_nothing_is_finite(cls: type, shape: tuple[int, ...]) -> None:
    attention = cls(embed_dim=8, num_heads=2, dropout=0.1)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 1, :] = False
    x = torch.randn(2, 5, 8, requires_grad=True)
    out = attention(x, torch.tensor([5, 3]), attn_mask=mask)
    torch.testing.assert_close(out[:, 1], attention.out_proj.bias.expand(2, -1))
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_training_without_dropout_equals_evaluation() -> None:
    for cls in ATTENTIONS:
        attention = cls(embed_dim=8, num_heads=2)
        x, lengths = torch.randn(2, 5, 8), torch.tensor([5, 2])
        with torch.no_grad():
            quiet = attention.eval()(x, lengths)
        torch.testing.assert_close(attention.train()(x, lengths), quiet, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", ATTENTIONS)
def test_errors(cls: type) -> None:
    with pytest.raises(ValueError, match="10 does not divide into 4 heads"):
        cls(embed_dim=10, num_heads=4)
    attention = cls(embed_dim=8, num_heads=2)
    with pytest.raises(ValueError, match="must be bool"):
        attention(torch.randn(1, 3, 8), attn_mask=torch.zeros(3, 3))
