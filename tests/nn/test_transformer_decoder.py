"""The Transformer decoder: teacher forcing, stepping, padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import speechkit
from speechkit.nn.masking import length_mask
from speechkit.nn.stepping import select_beams
from speechkit.nn.token_cache import TokenState
from speechkit.nn.transformer_decoder import TransformerDecoder, TransformerDecoderLayer

V, M = 11, 12
LENGTHS = torch.tensor([9, 4, 7])
VARIANTS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post": {"pre_norm": False, "activation": "gelu"},
    "tied": {"tie_embeddings": True, "memory_size": 16, "num_layers": 1},
}


def _decoder(**changes: Any) -> TransformerDecoder:
    arguments: dict[str, Any] = {
        "vocab_size": V,
        "memory_size": M,
        "embed_dim": 16,
        "num_heads": 4,
        "num_layers": 2,
        "feedforward_size": 24,
        **changes,
    }
    decoder = TransformerDecoder(**arguments).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():  # also what starts at 0 or 1
            parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def decoder(request: pytest.FixtureRequest) -> TransformerDecoder:
    return _decoder(**request.param)


def _memory(decoder: TransformerDecoder) -> Tensor:
    return torch.randn(len(LENGTHS), int(LENGTHS.max()), decoder.memory_size)


def _follow(
    decoder: TransformerDecoder, memory: Tensor, num_prefixes: int, num_steps: int
) -> tuple[Tensor, list[Tensor], list[Tensor], TokenState]:
    """Step with random tokens and random reorderings.

    Give the prefixes ``(B, K, U)`` that are left and for each step what their ancestors were
    given: log-probabilities ``(B, K, V)`` and attention ``(B, K, T)``.
    """
    fixed, state = decoder.start(memory, LENGTHS)
    size = len(LENGTHS)
    state = select_beams(state, torch.zeros(size, num_prefixes, dtype=torch.int64))
    prefixes = torch.zeros(size, num_prefixes, 0, dtype=torch.int64)
    scores: list[Tensor] = []
    looks: list[Tensor] = []
    for step in range(num_steps):
        tokens = torch.randint(V, (size, num_prefixes)) * (step > 0)
        out = decoder.step(tokens, fixed, state)
        parents = torch.randint(num_prefixes, (size, num_prefixes))
        prefixes = torch.cat([prefixes, tokens.unsqueeze(2)], dim=2)
        everything = (prefixes, [*scores, out.log_probs], [*looks, out.attention], out.state)
        prefixes, scores, looks, state = select_beams(everything, parents)
    return prefixes, scores, looks, state


@torch.no_grad()
def test_stepping_equals_teacher_forcing(decoder: TransformerDecoder) -> None:
    memory = _memory(decoder)
    prefixes, scores, looks, _ = _follow(decoder, memory, num_prefixes=3, num_steps=7)
    for k in range(3):
        out = decoder(prefixes[:, k], torch.full((3,), 7), memory, LENGTHS)
        stepped = torch.stack([each[:, k] for each in scores], dim=1)
        torch.testing.assert_close(stepped, out.logits.log_softmax(-1), atol=1e-5, rtol=1e-5)
        looked = torch.stack([each[:, k] for each in looks], dim=1)
        torch.testing.assert_close(looked, out.attention, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_slots_that_no_prefix_sees_are_dropped_without_a_trace() -> None:
    decoder = _decoder()
    memory = _memory(decoder)
    prefixes, scores, _, state = _follow(decoder, memory, num_prefixes=4, num_steps=60)
    assert state.seen.shape[2] < 200 < 4 * 60
    assert state.seen.sum(2).eq(60).all()
    out = decoder(prefixes[:, 2], torch.full((3,), 60), memory, LENGTHS)
    stepped = torch.stack([each[:, 2] for each in scores], dim=1)
    torch.testing.assert_close(stepped, out.logits.log_softmax(-1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_two_steps_from_one_state_do_not_disturb_each_other() -> None:
    decoder = _decoder()
    memory = _memory(decoder)
    fixed, empty = decoder.start(memory, LENGTHS)
    state = decoder.step(torch.zeros(3, 1, dtype=torch.int64), fixed, empty).state
    left, right = (decoder.step(torch.full((3, 1), token), fixed, state).state for token in (2, 5))
    for token, state in ((2, left), (5, right)):
        tokens = torch.tensor([[0, token, 7]]).expand(3, -1)
        want = decoder(tokens, torch.full((3,), 3), memory, LENGTHS).logits[:, -1].log_softmax(-1)
        got = decoder.step(tokens[:, 2:], fixed, state).log_probs[:, 0]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_stepping_has_the_gradients_of_teacher_forcing() -> None:
    decoder = _decoder()
    memory = _memory(decoder)
    tokens = torch.tensor([[0, 3, 4, 1]]).expand(3, -1)
    fixed, state = decoder.start(memory, LENGTHS)
    stepped = []
    for token in tokens.unbind(1):
        log_probs, state, _ = decoder.step(token.unsqueeze(1), fixed, state)
        stepped.append(log_probs[:, 0])
    out = decoder(tokens, torch.full((3,), 4), memory, LENGTHS)
    weight = torch.randn(3, 4, V)
    parameters = list(decoder.parameters())
    got = torch.autograd.grad((torch.stack(stepped, 1) * weight).sum(), parameters)
    want = torch.autograd.grad((out.logits.log_softmax(-1) * weight).sum(), parameters)
    for mine, theirs in zip(got, want):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_later_token_changes_nothing_earlier(decoder: TransformerDecoder) -> None:
    memory = _memory(decoder)
    tokens = torch.randint(V, (3, 8))
    changed = tokens.clone()
    changed[:, 5:] = (tokens[:, 5:] + 1) % V
    out, other = (
        decoder(t, torch.full((3,), 8), memory, LENGTHS).logits for t in (tokens, changed)
    )
    torch.testing.assert_close(out[:, :5], other[:, :5], atol=1e-6, rtol=1e-6)
    assert (out[:, 5:] - other[:, 5:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(decoder: TransformerDecoder, training: bool) -> None:
    decoder.train(training)
    memory = _memory(decoder)
    memory[~length_mask(LENGTHS, memory.shape[1])] = float("nan")
    tokens = torch.randint(V, (3, 6))
    token_lengths = torch.tensor([2, 6, 4])
    tokens[~length_mask(token_lengths, 6)] = -100
    out = decoder(tokens, token_lengths, memory, LENGTHS, need_attention=True)
    assert out.logits.isfinite().all()
    for i, (length, frames) in enumerate(zip(token_lengths.tolist(), LENGTHS.tolist())):
        alone = decoder(
            tokens[i : i + 1, :length],
            token_lengths[i : i + 1],
            memory[i : i + 1, :frames],
            LENGTHS[i : i + 1],
            need_attention=True,
        )
        torch.testing.assert_close(out.logits[i, :length], alone.logits[0], atol=1e-5, rtol=1e-5)
        attention = out.attention[i, :length]
        torch.testing.assert_close(attention[:, :frames], alone.attention[0], atol=1e-5, rtol=1e-5)
        assert attention[:, frames:].eq(0).all()
        torch.testing.assert_close(attention.sum(-1), torch.ones(length))


@torch.no_grad()
def test_padding_changes_nothing_in_steps(decoder: TransformerDecoder) -> None:
    memory = _memory(decoder)
    memory[~length_mask(LENGTHS, memory.shape[1])] = float("nan")
    tokens = torch.tensor([[0, 0], [0, 0], [0, 0]])
    fixed, state = decoder.start(memory, LENGTHS)
    out = decoder.step(tokens, fixed, select_beams(state, torch.zeros_like(tokens)))
    for i, frames in enumerate(LENGTHS.tolist()):
        fixed, state = decoder.start(memory[i : i + 1, :frames], LENGTHS[i : i + 1])
        alone = decoder.step(tokens[i : i + 1, :1], fixed, state)
        torch.testing.assert_close(out.log_probs[i, 1], alone.log_probs[0, 0])
        torch.testing.assert_close(out.attention[i, 1, :frames], alone.attention[0, 0])


def test_attention_is_given_in_evaluation_or_when_asked_for() -> None:
    decoder = _decoder()
    call = (torch.zeros(3, 2, dtype=torch.int64), torch.full((3,), 2), _memory(decoder), LENGTHS)
    with torch.no_grad():
        shown = decoder(*call)
        assert shown.attention.shape == (3, 2, 9)
        fused = decoder(*call, need_attention=False)
    assert fused.attention is None
    torch.testing.assert_close(fused.logits, shown.logits, atol=1e-5, rtol=1e-5)
    decoder.train()
    assert decoder(*call).attention is None
    assert decoder(*call, need_attention=True).attention is not None


def test_an_item_without_frames_is_finite(decoder: TransformerDecoder) -> None:
    lengths = torch.tensor([0, 3, 9])
    out = decoder(
        torch.zeros(3, 2, dtype=torch.int64), torch.full((3,), 2), _memory(decoder), lengths
    )
    assert out.logits.isfinite().all()
    out.logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


def test_bfloat16_autocast_steps_as_it_teaches() -> None:
    decoder = _decoder()
    memory = _memory(decoder)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        prefixes, scores, _, _ = _follow(decoder, memory, num_prefixes=2, num_steps=4)
        out = decoder(prefixes[:, 1], torch.full((3,), 4), memory, LENGTHS)
    assert scores[-1].dtype == torch.float32
    stepped = torch.stack([each[:, 1] for each in scores], dim=1)
    want = out.logits.float().log_softmax(-1)
    torch.testing.assert_close(stepped, want, atol=0.1, rtol=0.1)


def test_dropout_acts_in_training_only() -> None:
    decoder = _decoder(dropout=0.3)
    call = (torch.zeros(3, 2, dtype=torch.int64), torch.full((3,), 2), _memory(decoder), LENGTHS)
    assert torch.equal(decoder(*call).logits, decoder(*call).logits)
    decoder.train()
    assert not torch.equal(decoder(*call).logits, decoder(*call).logits)


def test_a_model_folder_gives_it_back(decoder: TransformerDecoder, tmp_path: Path) -> None:
    speechkit.save(decoder, tmp_path / "model")
    loaded = speechkit.load(tmp_path / "model")
    memory = _memory(decoder)
    call = (torch.randint(V, (3, 5)), torch.full((3,), 5), memory, LENGTHS)
    assert torch.equal(loaded(*call).logits, decoder(*call).logits)
    if decoder.tie_embeddings:
        assert loaded.output.weight is loaded.embedding.weight


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1, not 0"):
        _decoder(num_layers=0)
    with pytest.raises(ValueError, match="16 does not divide into 3 heads"):
        _decoder(num_heads=3)
    with pytest.raises(ValueError, match="memory has 5 features, the decoder's memory_size is 12"):
        _decoder().start(torch.randn(1, 4, 5), torch.tensor([4]))


def test_a_layer_without_memory_has_no_weights_for_one() -> None:
    layer = TransformerDecoderLayer(
        embed_dim=8, num_heads=2, feedforward_size=16, cross_attention=False
    )
    assert not [name for name, _ in layer.named_parameters() if "memory" in name]
