"""Location-sensitive attention: its definition, padding, and forward attention step by step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.nn.location_attention import AttentionState, LocationAttention

LENGTHS = torch.tensor([7, 4])


def build() -> LocationAttention:
    torch.manual_seed(0)
    return LocationAttention(
        memory_size=5, query_size=6, attention_size=8, channels=3, kernel_size=5
    )


def written_out(
    attention: LocationAttention, query: Tensor, memory: Tensor, state: AttentionState
) -> Tensor:
    """Weights of one full item as the papers write them."""
    rows = torch.stack([state.previous, state.total], dim=1)
    features = F.conv1d(rows, attention.filters.weight, padding=2).transpose(1, 2)
    hidden = attention.query(query).unsqueeze(1) + attention.key(memory)
    energies = attention.energy((hidden + attention.location(features)).tanh())
    return energies.squeeze(-1).softmax(dim=-1)


def test_the_weights_are_those_of_the_papers() -> None:
    attention, memory = build(), torch.randn(2, 7, 5)
    fixed = attention.fix(memory, torch.tensor([7, 7]))
    state = attention.start(fixed)
    for _ in range(3):
        query = torch.randn(2, 6)
        want = written_out(attention, query, memory, state)
        out = attention(query, fixed, state)
        torch.testing.assert_close(out.weights, want)
        torch.testing.assert_close(out.context, (want.unsqueeze(1) @ memory).squeeze(1))
        torch.testing.assert_close(out.state.total, state.total + want)
        state = out.state


@pytest.mark.parametrize("forward_only", [False, True])
def test_padding_changes_nothing(forward_only: bool) -> None:
    attention = build()
    memory, queries = torch.randn(2, 7, 5), torch.randn(9, 2, 6)
    memory[1, 4:] = float("nan")
    both = attention.fix(memory, LENGTHS)
    alone = attention.fix(memory[1:, :4], LENGTHS[1:])
    states = attention.start(both), attention.start(alone)
    for query in queries:
        out = attention(query, both, states[0], forward_only=forward_only)
        one = attention(query[1:], alone, states[1], forward_only=forward_only)
        states = out.state, one.state
        torch.testing.assert_close(out.context[1:], one.context)
        torch.testing.assert_close(out.weights[1:, :4], one.weights)
        assert (out.weights[1, 4:] == 0).all()
        torch.testing.assert_close(out.weights.sum(dim=1), torch.ones(2))


def test_forward_attention_stays_or_goes_one_on() -> None:
    attention = build()
    fixed = attention.fix(torch.randn(1, 7, 5), torch.tensor([7]))
    state = attention.start(fixed)
    before = F.one_hot(torch.tensor([0]), 7).float()
    for step in range(9):
        query = torch.randn(1, 6)
        soft = attention(query, fixed, state).weights
        out = attention(query, fixed, state, forward_only=True)
        want = soft * (before + F.pad(before, (1, 0))[:, :-1])  # Zhang et al. 2018, eq. 6
        want = want / want.sum()
        torch.testing.assert_close(out.weights, want, atol=1e-6, rtol=1e-4)
        assert (out.weights[0, step + 2 :] == 0).all()
        before, state = out.weights, out.state


def test_forward_attention_survives_energies_against_all_it_can_reach() -> None:
    attention = build()
    with torch.no_grad():
        attention.energy.weight.mul_(1e4)
    fixed = attention.fix(torch.randn(1, 7, 5), torch.tensor([7]))
    state = attention.start(fixed)
    for _ in range(20):
        out = attention(torch.randn(1, 6), fixed, state, forward_only=True)
        assert torch.isfinite(out.weights).all()
        assert out.weights.sum().item() == pytest.approx(1.0, abs=1e-5)
        state = out.state


def test_an_item_without_symbols_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a symbol in each item; lengths: \[7, 0\]"):
        build().fix(torch.randn(2, 7, 5), torch.tensor([7, 0]))
    with pytest.raises(ValueError, match="odd"):
        LocationAttention(memory_size=5, query_size=6, kernel_size=4)
