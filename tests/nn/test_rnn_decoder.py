"""The recurrent decoder: stepping is teacher forcing, padding is nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.contexts import AdditiveContext, DotContext, LocationContext, MeanContext
from speechkit.nn.rnn_decoder import RNNDecoder
from speechkit.nn.stepping import select_beams

VOCAB, MEMORY, HIDDEN = 11, 5, 8
LENGTHS, TOKEN_LENGTHS = torch.tensor([9, 4, 1]), torch.tensor([6, 3, 1])
SIZES: dict[str, Any] = {"memory_size": MEMORY, "query_size": HIDDEN, "attention_size": 7}
CONTEXTS = {
    "dot": lambda: DotContext(**SIZES),
    "additive": lambda: AdditiveContext(**SIZES, value_size=6),
    "location": lambda: LocationContext(**SIZES, kernel_size=5),
    "cumulative": lambda: LocationContext(**SIZES, kernel_size=3, cumulative=True),
    "mean": lambda: MeanContext(memory_size=MEMORY),
}


def _decoder(context: str = "additive", **changes: Any) -> RNNDecoder:
    torch.manual_seed(3)
    sizes = {"vocab_size": VOCAB, "memory_size": MEMORY, "embed_dim": 4, "hidden_size": HIDDEN}
    decoder = RNNDecoder(**{**sizes, "context": CONTEXTS[context](), **changes})
    with torch.no_grad():  # a decoder that listens to everything it is given
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder


def _batch(garbage: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    memory = torch.randn(3, 9 + extra, MEMORY, generator=generator)
    tokens = torch.randint(1, VOCAB, (3, 6 + extra), generator=generator)
    tokens[:, 0] = 0
    for row, length in zip(memory, LENGTHS):
        row[length:] = garbage
    return tokens, memory


def _grads(loss: Tensor, decoder: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*decoder.parameters()], retain_graph=True))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("context", CONTEXTS)
def test_stepping_equals_teacher_forcing(context: str, cell: str, num_layers: int) -> None:
    decoder = _decoder(context, cell=cell, num_layers=num_layers)
    tokens, memory = _batch()
    logits, attention = decoder(tokens, torch.full((3,), 6), memory, LENGTHS)
    fixed, state = decoder.start(memory, LENGTHS)
    for u in range(6):
        step = decoder.step(tokens[:, u : u + 1], fixed, state)
        state = step.state
        want = logits[:, u : u + 1].log_softmax(-1)
        torch.testing.assert_close(step.log_probs, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(step.attention, attention[:, u : u + 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 6))
    assert (attention[1, :, 4:] == 0).all()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_reordered_beams_equal_teacher_forcing_of_their_prefixes(context: str, cell: str) -> None:
    decoder, (_, memory) = _decoder(context, cell=cell), _batch()
    generator = torch.Generator().manual_seed(2)
    fixed, state = decoder.start(memory, LENGTHS)
    prefixes = torch.zeros(3, 1, 1, dtype=torch.long)
    for _ in range(5):
        step = decoder.step(prefixes[..., -1], fixed, state)
        for k in range(prefixes.shape[1]):
            full = torch.full((3,), prefixes.shape[2])
            want = decoder(prefixes[:, k], full, memory, LENGTHS).logits[:, -1].log_softmax(-1)
            torch.testing.assert_close(step.log_probs[:, k], want, atol=1e-5, rtol=1e-5)
        parents = torch.randint(prefixes.shape[1], (3, 4), generator=generator)
        state = select_beams(step.state, parents)
        new = torch.randint(VOCAB, (3, 4, 1), generator=generator)
        prefixes = torch.cat([select_beams(prefixes, parents), new], dim=-1)


@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan"), float("inf")])
@pytest.mark.parametrize("context", CONTEXTS)
def test_padding_changes_nothing(context: str, garbage: float) -> None:
    """Each item alone gives the rows of the batch, and the sum of their gradients."""
    decoder = _decoder(context)
    tokens, memory = _batch(garbage, extra=3)
    for row, length in zip(tokens, TOKEN_LENGTHS):
        row[length:] = -100
    logits, attention = decoder(tokens, TOKEN_LENGTHS, memory, LENGTHS)
    total, together = torch.zeros(()), torch.zeros(())
    for i, (length, count) in enumerate(zip(LENGTHS.tolist(), TOKEN_LENGTHS.tolist())):
        alone = decoder(
            tokens[i : i + 1, :count],
            TOKEN_LENGTHS[i : i + 1],
            memory[i : i + 1, :length],
            LENGTHS[i : i + 1],
        )
        torch.testing.assert_close(logits[i, :count], alone.logits[0], atol=1e-5, rtol=1e-5)
        got = attention[i, :count, :length]
        torch.testing.assert_close(got, alone.attention[0], atol=1e-5, rtol=1e-5)
        together = together + logits[i, :count].square().sum()
        total = total + alone.logits.square().sum()
    for got, want in zip(_grads(together, decoder), _grads(total, decoder)):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_cells_are_those_of_torch(cell: str) -> None:
    """The mean context is known beforehand, so that torch's own cells can be asked."""
    decoder, (tokens, memory) = _decoder("mean", cell=cell, num_layers=2), _batch()
    mean = torch.stack([row[:length].mean(0) for row, length in zip(memory, LENGTHS)])
    states: list[Any] = [None, None]
    given, expected = torch.zeros_like(mean), []
    for u in range(6):
        below = torch.cat([decoder.embedding(tokens[:, u]), given], dim=-1)
        for i, layer in enumerate(decoder.cells):
            states[i] = layer(below, states[i])
            below = states[i][0] if cell == "lstm" else states[i]
        given = mean
        expected.append(decoder.output(torch.cat([below, mean], dim=-1)))
    want = torch.stack(expected, dim=1)
    got = decoder(tokens, torch.full((3,), 6), memory, LENGTHS).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(
        _grads(got.square().sum(), decoder), _grads(want.square().sum(), decoder)
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("context", CONTEXTS)
def test_gradients_of_teacher_forcing_are_those_of_steps(context: str) -> None:
    """Steps multiply by the plain memory; teacher forcing shares its gradient products."""
    decoder, (tokens, memory) = _decoder(context), _batch()
    memory.requires_grad_()
    out = decoder(tokens, torch.full((3,), 6), memory, LENGTHS)
    loss = out.logits.log_softmax(-1).square().sum() + out.attention.square().sum()
    fixed, state = decoder.start(memory, LENGTHS)
    other = torch.zeros(())
    for u in range(6):
        step = decoder.step(tokens[:, u : u + 1], fixed, state)
        state = step.state
        other = other + step.log_probs.square().sum() + step.attention.square().sum()
    variables = [memory, *decoder.parameters()]
    for got, want in zip(
        torch.autograd.grad(loss, variables), torch.autograd.grad(other, variables)
    ):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)


def test_scheduled_sampling_of_zero_is_teacher_forcing_and_draws_nothing() -> None:
    decoder, (tokens, memory) = _decoder(scheduled_sampling=0.0).train(), _batch()
    before = torch.get_rng_state()
    trained = decoder(tokens, TOKEN_LENGTHS, memory, LENGTHS).logits
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(trained, decoder.eval()(tokens, TOKEN_LENGTHS, memory, LENGTHS).logits)


def test_scheduled_sampling_of_one_reads_its_own_tokens_in_training() -> None:
    decoder, (tokens, memory) = _decoder(scheduled_sampling=1.0).train(), _batch()
    full = torch.full((3,), 6)
    own = decoder(tokens, full, memory, LENGTHS).logits
    reference = decoder.eval()(tokens, full, memory, LENGTHS).logits
    assert torch.equal(own[:, 0], reference[:, 0])
    assert not torch.allclose(own, reference, atol=1e-3)
    fed = torch.cat([tokens[:, :1], own.argmax(-1)[:, :-1]], dim=1)
    torch.testing.assert_close(own, decoder(fed, full, memory, LENGTHS).logits)


@pytest.mark.parametrize(
    ("context", "scheduled_sampling"),
    [("dot", 0.0), ("additive", 0.5), ("location", 0.0), ("mean", 1.0)],
)
def test_it_learns_with_scheduled_sampling(context: str, scheduled_sampling: float) -> None:
    decoder = _decoder(context, scheduled_sampling=scheduled_sampling, dropout=0.1)
    tokens, memory = _batch()
    targets = torch.cat([tokens[:, 1:], torch.zeros(3, 1, dtype=torch.long)], dim=1)
    optimizer = torch.optim.Adam(decoder.parameters(), 0.02)
    losses = []
    for _ in range(25):
        logits = decoder(tokens, torch.full((3,), 6), memory, LENGTHS).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for parameter_name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    assert losses[-1] < 0.7 * losses[0]


def test_bfloat16_autocast_trains() -> None:
    for context in CONTEXTS:
        decoder, (tokens, memory) = _decoder(context), _batch()
        full = decoder(tokens, TOKEN_LENGTHS, memory, LENGTHS).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = decoder(tokens, TOKEN_LENGTHS, memory, LENGTHS).logits.float()
            step = decoder.step(tokens[:, :1], *decoder.start(memory, LENGTHS))
        assert step.log_probs.dtype == torch.float32
        assert (low - full).norm() < 0.1 * full.norm()
        low.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match="unknown cell 'rnn'"):
        _decoder(cell="rnn")
    with pytest.raises(ValueError, match="num_layers must be at least 1, not 0"):
        _decoder(num_layers=0)
    with pytest.raises(ValueError, match="scheduled_sampling must lie in"):
        _decoder(scheduled_sampling=1.5)
    with pytest.raises(ValueError, match="query_size=8, but this decoder gives it 9"):
        _decoder(hidden_size=9)
    with pytest.raises(ValueError, match="memory_size=5, but this decoder gives it 6"):
        _decoder(memory_size=6)
    with pytest.raises(ValueError, match="U > 0"):
        _decoder()(torch.zeros(3, 0, dtype=torch.long), TOKEN_LENGTHS, _batch()[1], LENGTHS)
