"""Attention contexts: weights over the valid frames, and nothing of the padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechkit.nn.contexts import AdditiveContext, DotContext, LocationContext, MeanContext
from speechkit.nn.stepping import select_beams

LENGTHS = torch.tensor([9, 4, 1])
SIZES = {"memory_size": 5, "query_size": 6, "attention_size": 7}
CONTEXTS = {
    "dot": lambda **more: DotContext(**SIZES, **more),
    "additive": lambda **more: AdditiveContext(**SIZES, **more),
    "location": lambda **more: LocationContext(**SIZES, kernel_size=5, sharpening=1.5, **more),
    "cumulative": lambda **more: LocationContext(**SIZES, kernel_size=3, cumulative=True, **more),
    "mean": lambda **more: MeanContext(memory_size=5, **more),
}


def _memory(garbage: float = 0.0, extra: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    memory = torch.full((3, 9 + extra, 5), garbage)
    for row, length in zip(memory, LENGTHS):
        row[:length] = torch.randn(9, 5, generator=generator)[:length]
    return memory


@pytest.fixture(params=CONTEXTS)
def name(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(5)
    return request.param


@pytest.mark.parametrize("value_size", [None, 4])
@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan"), float("inf")])
def test_padding_changes_nothing(name: str, value_size: int | None, garbage: float) -> None:
    """Two steps of a padded batch equal each item alone; gradients stay finite."""
    context = CONTEXTS[name](value_size=value_size)
    queries = torch.randn(2, 3, 2, 6)
    memory = _memory(garbage, extra=4).requires_grad_()

    def two_steps(memory: Tensor, lengths: Tensor, queries: Tensor) -> list[Tensor]:
        fixed = context.fix(memory, lengths)
        state = select_beams(context.start(fixed), torch.zeros(len(lengths), 2, dtype=torch.long))
        outs = []
        for query in queries:
            out = context(query, fixed, state)
            state = out.state
            outs += [out.context, out.weights]
        return outs

    outs = two_steps(memory, LENGTHS, queries)
    for i, length in enumerate(LENGTHS.tolist()):
        alone = two_steps(memory[i : i + 1, :length], LENGTHS[i : i + 1], queries[:, i : i + 1])
        for got, want in zip(outs, alone):
            valid = got[i : i + 1, :, : want.shape[-1]]
            torch.testing.assert_close(valid, want, atol=1e-5, rtol=1e-5)
            assert (got[i, :, want.shape[-1] :] == 0).all()
    assert outs[0].shape == (3, 2, context.output_size)
    (grad,) = torch.autograd.grad(sum(out.square().sum() for out in outs), memory)
    assert grad.isfinite().all()
    assert (grad[1, 4:] == 0).all()


def test_weights_are_a_distribution_over_valid_frames(name: str) -> None:
    context = CONTEXTS[name]()
    fixed = context.fix(_memory(), LENGTHS)
    out = context(torch.randn(3, 1, 6), fixed, context.start(fixed))
    torch.testing.assert_close(out.weights.sum(-1), torch.ones(3, 1))
    assert (out.weights >= 0).all()
    assert (out.weights[1, :, 4:] == 0).all()
    torch.testing.assert_close(out.context, out.weights @ _memory(), atol=1e-6, rtol=1e-5)


def test_an_item_without_frames_gives_zeros(name: str) -> None:
    context = CONTEXTS[name](value_size=3)
    memory = torch.full((2, 4, 5), float("nan"))
    memory[0] = 1.0
    fixed = context.fix(memory, torch.tensor([4, 0]))
    out = context(torch.randn(2, 1, 6), fixed, context.start(fixed))
    assert (out.context[1] == 0).all()
    assert (out.weights[1] == 0).all()
    assert out.context.isfinite().all()


@pytest.mark.parametrize("kind", ["dot", "additive", "mean"])
def test_many_queries_at_once_equal_one_after_the_other(kind: str) -> None:
    context = CONTEXTS[kind]()
    fixed = context.fix(_memory(), LENGTHS)
    queries = torch.randn(3, 6, 6)
    together = context(queries, fixed, None)
    for k in range(6):
        alone = context(queries[:, k : k + 1], fixed, None)
        torch.testing.assert_close(together.context[:, k : k + 1], alone.context)
        torch.testing.assert_close(together.weights[:, k : k + 1], alone.weights)


def test_additive_energies_are_those_of_the_paper() -> None:
    context = AdditiveContext(**SIZES)
    queries, memory = torch.randn(3, 2, 6), _memory()
    hidden = context.query(queries)[:, :, None] + context.key(memory)[:, None]
    energies = context.energy(hidden.tanh()).squeeze(-1)
    fixed = context.fix(memory, torch.full((3,), 9))
    torch.testing.assert_close(context(queries, fixed, None).weights, energies.softmax(-1))


def test_dot_energies_are_those_of_the_paper() -> None:
    context = DotContext(**SIZES)
    queries, memory = torch.randn(3, 2, 6), _memory()
    energies = context.query(queries) @ context.key(memory).mT / math.sqrt(7)
    fixed = context.fix(memory, torch.full((3,), 9))
    torch.testing.assert_close(context(queries, fixed, None).weights, energies.softmax(-1))


def test_mean_is_the_mean() -> None:
    context = MeanContext(memory_size=5)
    memory = _memory(float("nan"))
    out = context(torch.randn(3, 2, 6), context.fix(memory, LENGTHS), None)
    for i, length in enumerate(LENGTHS.tolist()):
        expected = memory[i, :length].mean(0)
        torch.testing.assert_close(out.context[i], expected.expand(2, -1))
        torch.testing.assert_close(out.weights[i, 0, :length], torch.full((length,), 1 / length))


def test_location_follows_the_previous_alignment() -> None:
    """Filters that copy the alignment one frame later, and nothing else: it moves by a frame."""
    context = LocationContext(**SIZES, channels=1, kernel_size=3, sharpening=100.0)
    with torch.no_grad():
        for parameter in context.parameters():
            parameter.zero_()
        context.filters.weight[0, 0, 0] = 1.0
        context.location.weight[0, 0] = context.energy.weight[0, 0] = 1.0
    fixed = context.fix(_memory(), LENGTHS)
    state = torch.eye(9)[None, :1].repeat(3, 1, 1)
    for step in range(1, 4):
        state = context(torch.randn(3, 1, 6), fixed, state).state
        assert state[0, 0].argmax() == step
        assert state[0, 0, step] > 0.99


def test_cumulative_state_is_the_sum_of_the_weights() -> None:
    context = CONTEXTS["cumulative"]()
    fixed = context.fix(_memory(), LENGTHS)
    state, total = context.start(fixed), torch.zeros(3, 1, 9)
    for _ in range(3):
        out = context(torch.randn(3, 1, 6), fixed, state)
        state, total = out.state, total + out.weights
    torch.testing.assert_close(state, total)


def test_the_previous_alignment_gets_a_gradient() -> None:
    context = CONTEXTS["location"]()
    fixed = context.fix(_memory(), LENGTHS)
    state = context.start(fixed).requires_grad_()
    context(torch.randn(3, 1, 6), fixed, state).context.square().sum().backward()
    assert state.grad is not None
    assert state.grad[0].abs().sum() > 0


def test_sharpening_narrows_the_alignment() -> None:
    queries, peaks = torch.randn(3, 1, 6), []
    for sharpening in (0.5, 1.0, 4.0):
        torch.manual_seed(7)
        context = LocationContext(**SIZES, kernel_size=5, sharpening=sharpening)
        fixed = context.fix(_memory(), LENGTHS)
        peaks.append(context(queries, fixed, context.start(fixed)).weights[0].max().item())
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1]


def test_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match="odd and positive, not 4"):
        LocationContext(**SIZES, kernel_size=4)
    with pytest.raises(ValueError, match="positive, not 0"):
        LocationContext(**SIZES, sharpening=0.0)
    context = CONTEXTS["location"]()
    with pytest.raises(ValueError, match=r"memory \(B, T, 5\), not \(3, 9, 8\)"):
        context.fix(torch.zeros(3, 9, 8), LENGTHS)
    fixed = context.fix(_memory(), LENGTHS)
    with pytest.raises(ValueError, match="each of the 2 queries"):
        context(torch.zeros(3, 2, 6), fixed, context.start(fixed))


@pytest.mark.parametrize("kind", ["additive", "location"])
def test_items_in_blocks_equal_all_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    context = CONTEXTS[kind](value_size=None)
    memory, queries = _memory(0.0), torch.randn(3, 2, 6)
    fixed = context.fix(memory, LENGTHS)
    state = select_beams(context.start(fixed), torch.zeros(3, 2, dtype=torch.long))
    whole = context(queries, fixed, state)  # with gradients: never in blocks
    monkeypatch.setattr("speechkit.nn.contexts._BLOCK_VALUES", 1)
    with torch.no_grad():
        blocks = context(queries, fixed, state)
    torch.testing.assert_close(blocks.context, whole.context)
    torch.testing.assert_close(blocks.weights, whole.weights)
