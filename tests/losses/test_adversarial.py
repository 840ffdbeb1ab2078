from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest
import torch

from speechkit.losses.adversarial import (
    KINDS,
    discriminator_loss,
    discriminator_turn,
    feature_matching_loss,
    generator_loss,
    judge_pair,
)
from speechkit.losses.balancer import Balancer
from speechkit.nn.discriminators import Discriminators, Judgement, MultiScaleSTFTDiscriminator
from speechkit.nn.discriminators_vocoder import (
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # On a busy machine the threads of tiny convolutions wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _judge() -> Discriminators:
    torch.manual_seed(0)
    return Discriminators(
        parts=[
            MultiScaleSTFTDiscriminator(num_filters=3, windows=(64, 32)),
            MultiPeriodDiscriminator(periods=(2, 3), widths=(3, 5)),
            MultiResolutionDiscriminator(num_filters=3, resolutions=((64, 10, 40),)),
        ]
    )


def _losses(real: Judgement, fake: Judgement, scale: str) -> list[torch.Tensor]:
    return [
        *(discriminator_loss(real, fake, kind=kind) for kind in KINDS),
        *(generator_loss(fake, kind=kind) for kind in KINDS),
        feature_matching_loss(fake, real, scale=scale, with_logits=True),
        feature_matching_loss(fake, real, scale=scale),
    ]


@pytest.mark.parametrize("scale", ["item", "none"])
def test_each_item_gives_what_it_gives_alone(scale: str) -> None:
    judge = _judge()
    lengths = torch.tensor([400, 301, 20])
    real, fake = torch.randn(3, 1, 400), torch.randn(3, 1, 400)
    for x in (real, fake):
        x[1, :, 301:] = float("nan")
        x[2, :, 20:] = float("inf")
    batched = _losses(judge(real, lengths), judge(fake, lengths), scale)
    for row, length in enumerate(lengths.tolist()):
        pieces = [judge(x[row : row + 1, :, :length]) for x in (real, fake)]
        alone = _losses(*pieces, scale)
        for ours, theirs in zip(batched, alone):
            torch.testing.assert_close(ours[row : row + 1], theirs, atol=1e-5, rtol=1e-4)


def test_losses_follow_their_formulas() -> None:
    real_logits, fake_logits = [torch.randn(2, 1, 3, 4), torch.randn(2, 1, 5, 2)], []
    fake_logits = [torch.randn_like(x) for x in real_logits]
    real_maps = [[torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 2)], [torch.randn(2, 2, 5, 2)]]
    fake_maps = [[torch.randn_like(x) for x in maps] for maps in real_maps]
    real, fake = Judgement(real_logits, real_maps), Judgement(fake_logits, fake_maps)
    pairs = list(zip(real_logits, fake_logits))

    hinge = sum((1 - x).clamp(min=0).mean() + (1 + y).clamp(min=0).mean() for x, y in pairs) / 2
    squares = sum(((x - 1) ** 2).mean() + (y**2).mean() for x, y in pairs) / 2
    assert torch.isclose(discriminator_loss(real, fake).mean(), hinge)
    assert torch.isclose(discriminator_loss(real, fake, kind="least_squares").mean(), squares)
    wants = {
        "hinge": sum((1 - y).clamp(min=0).mean() for _, y in pairs) / 2,
        "hinge_linear": sum(-y.mean() for _, y in pairs) / 2,
        "least_squares": sum(((y - 1) ** 2).mean() for _, y in pairs) / 2,
    }
    for kind, want in wants.items():
        assert torch.isclose(generator_loss(fake, kind=kind).mean(), want)
    # EnCodec, equation 3: over K sub-discriminators and L layers.
    layers = [(y, x) for ys, xs in zip(fake_maps, real_maps) for y, x in zip(ys, xs)]
    relative = sum((y - x).abs().mean() / x.abs().mean() for y, x in layers) / len(layers)
    assert torch.isclose(feature_matching_loss(fake, real).mean(), relative)
    plain = sum((y - x).abs().mean() for y, x in [*layers, *((b, a) for a, b in pairs)]) / 5
    got = feature_matching_loss(fake, real, scale="none", with_logits=True).mean()
    assert torch.isclose(got, plain)


def _tensors(judgement: Judgement) -> list[torch.Tensor]:
    nested = [*judgement.features, *(judgement.frames or [])]
    return [*judgement.logits, *chain.from_iterable(nested)]


def test_a_pair_is_judged_as_each_alone() -> None:
    judge = _judge()
    real, fake = torch.randn(2, 1, 400), torch.randn(2, 1, 400)
    lengths = torch.tensor([400, 250])
    for got, x in zip(judge_pair(judge, real, fake, lengths), (real, fake)):
        want = judge(x, lengths)
        assert got.frames is not None
        for ours, theirs in zip(_tensors(got), _tensors(want), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_batch_scale_counts_valid_frames_only() -> None:
    judge = _judge()
    real, fake = torch.randn(2, 1, 400), torch.randn(2, 1, 400)
    full = torch.tensor([400, 400])
    want = feature_matching_loss(judge(fake), judge(real))
    torch.testing.assert_close(
        feature_matching_loss(judge(fake, full), judge(real, full)), want, atol=1e-6, rtol=1e-5
    )
    padded = [torch.nn.functional.pad(x, (0, 100), value=9.0) for x in (fake, real)]
    got = feature_matching_loss(*(judge(x, full) for x in padded))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_equal_signals_match_and_no_gradient_goes_to_the_real_one() -> None:
    judge = _judge()
    real = torch.randn(1, 1, 400, requires_grad=True)
    fake = real.detach().clone().requires_grad_()
    loss = feature_matching_loss(judge(fake), judge(real))
    assert loss.item() == 0.0
    other = (fake + 0.1).detach().requires_grad_()
    loss = feature_matching_loss(judge(other), judge(real)).sum()
    gradients = torch.autograd.grad(loss, [other, real], allow_unused=True)
    assert gradients[0] is not None
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None


def test_one_pass_serves_discriminators_and_generator() -> None:
    # A training step may share the graph of the generated signals between its two losses.
    judge, model = _judge(), torch.nn.Conv1d(1, 1, 5, padding=2)
    x = torch.randn(2, 1, 400)
    parameters = list(judge.parameters())
    apart = discriminator_loss(judge(x), judge(model(x).detach())).mean()
    want = torch.autograd.grad(apart, parameters)

    y = model(x)
    real, fake = judge(x), judge(y)
    discriminator_loss(real, fake).mean().backward(inputs=parameters, retain_graph=True)
    assert model.weight.grad is None
    losses = {"adversarial": generator_loss(fake), "features": feature_matching_loss(fake, real)}
    Balancer(weights={"adversarial": 1.0, "features": 1.0}).loss(losses, y).mean().backward()
    assert model.weight.grad is not None
    for parameter, expected in zip(parameters, want):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)


def test_gradients_are_finite_on_silence() -> None:
    judge = _judge()
    fake = torch.zeros(2, 1, 400, requires_grad=True)
    lengths = torch.tensor([400, 100])
    ours, theirs = judge(fake, lengths), judge(torch.zeros(2, 1, 400), lengths)
    for loss in _losses(theirs, ours, "batch") + _losses(theirs, ours, "item"):
        inputs = [fake, *judge.parameters()]
        gradients = torch.autograd.grad(loss.sum(), inputs, retain_graph=True, allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in gradients)


def test_turns() -> None:
    assert [discriminator_turn(s, updates=1, period=2) for s in range(4)] == [False, True] * 2
    for updates, period in ((0, 3), (2, 3), (3, 3), (5, 7)):
        turns = [discriminator_turn(s, updates=updates, period=period) for s in range(70 * period)]
        assert sum(turns) == 70 * updates
    with pytest.raises(ValueError, match="got 4 and 3"):
        discriminator_turn(0, updates=4)


def test_unknown_choices_and_strangers_are_named() -> None:
    judge = _judge()
    real = judge(torch.randn(1, 1, 400))
    with pytest.raises(ValueError, match="hinge_linear"):
        generator_loss(real, kind="wasserstein")
    with pytest.raises(ValueError, match="'nothing'"):
        feature_matching_loss(real, real, scale="nothing")
    with pytest.raises(ValueError, match="differ in shape"):
        discriminator_loss(real, judge(torch.randn(1, 1, 500)))
