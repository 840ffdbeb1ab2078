"""Speaker losses: values by their definition, warm-up, sub-centres, faults."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from speechkit.losses.speaker import SpeakerLoss


def _at_angle(degrees: float) -> torch.Tensor:
    angle = math.radians(degrees)
    return 2.0 * torch.tensor([[math.cos(angle), math.sin(angle)]])


def _loss(**changes: Any) -> SpeakerLoss:
    settings: dict = {"embed_dim": 2, "num_speakers": 2, "scale": 10.0, **changes}
    loss = SpeakerLoss(**settings)
    with torch.no_grad():
        loss.weight.copy_(torch.eye(2).repeat_interleave(loss.num_centers, 0))
    return loss


@pytest.mark.parametrize("degrees", [0.0, 30.0, 60.0, 120.0, 175.0])
@pytest.mark.parametrize("kind", ["am", "aam"])
def test_the_value_is_the_definition(kind: Any, degrees: float) -> None:
    """Speaker 0's weight lies at 0 degrees, speaker 1's at 90."""
    angle, margin = math.radians(degrees), 0.3
    if kind == "am":
        own = math.cos(angle) - margin
    elif angle + margin < math.pi:
        own = math.cos(angle + margin)
    else:
        own = math.cos(angle) - margin * math.sin(margin)
    logits = 10.0 * torch.tensor([[own, math.cos(angle - math.pi / 2)]])
    got = _loss(kind=kind, margin=margin)(_at_angle(degrees), torch.tensor([0]))
    # An angle of 0 is kept off 0 by 4e-4, for the gradient's sake.
    torch.testing.assert_close(
        got, F.cross_entropy(logits, torch.tensor([0]))[None], rtol=2e-3, atol=2e-3
    )


def test_softmax_is_a_linear_layer() -> None:
    loss = SpeakerLoss(embed_dim=3, num_speakers=4, kind="softmax")
    x, speakers = torch.randn(5, 3), torch.tensor([0, 3, 1, 2, 0])
    logits = x @ loss.weight.T + loss.bias
    torch.testing.assert_close(
        loss(x, speakers), F.cross_entropy(logits, speakers, reduction="none")
    )
    torch.testing.assert_close(loss.scores(x), logits)


def test_gradients_are_finite_at_the_ends() -> None:
    loss = _loss()
    x = torch.cat([_at_angle(0.0), _at_angle(180.0), torch.zeros(1, 2)]).requires_grad_()
    loss(x, torch.tensor([0, 0, 0])).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_loss_grows_with_the_angle_without_a_step_down() -> None:
    degrees = torch.linspace(0.0, 180.0, 181).tolist()
    x = torch.cat([_at_angle(angle) for angle in degrees])
    speakers = torch.zeros(len(x), dtype=torch.int64)
    loss = _loss(margin=0.5)
    with torch.no_grad():
        loss.weight[1] = -loss.weight[0]  # the other one is farther the nearer one's own is
    assert (loss(x, speakers).diff() >= -1e-4).all()


def test_the_nearest_centre_counts() -> None:
    loss = SpeakerLoss(embed_dim=2, num_speakers=2, num_centers=2, scale=1.0)
    with torch.no_grad():
        loss.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]))
    scores = loss.scores(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, -1.0]]))
    assert scores.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    loss(torch.tensor([[0.6, 0.8]]), torch.tensor([0])).sum().backward()
    assert loss.weight.grad is not None
    assert loss.weight.grad[0].abs().sum() == 0  # the farther centre of speaker 0
    assert loss.weight.grad[1].abs().sum() > 0


def test_the_margin_grows_and_its_count_is_kept() -> None:
    loss = _loss(margin=0.4, warmup_start=1, warmup_steps=4)
    seen = []
    for _ in range(7):
        seen.append(round(loss.current_margin().item(), 6))
        loss(torch.eye(2), torch.tensor([0, 1]))
    assert seen == [0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.4]
    loss.eval()(torch.eye(2), torch.tensor([0, 1]))
    assert loss.steps == 7
    again = _loss(margin=0.4, warmup_start=1, warmup_steps=4)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.current_margin(), loss.current_margin())
    plain = _loss(margin=0.0)(_at_angle(20.0), torch.tensor([0]))
    warming = _loss(margin=0.4, warmup_steps=9)(_at_angle(20.0), torch.tensor([0]))
    torch.testing.assert_close(plain, warming)


@pytest.mark.parametrize("kind", ["softmax", "am", "aam"])
def test_a_few_steps_tell_speakers_apart(kind: Any) -> None:
    loss = SpeakerLoss(embed_dim=4, num_speakers=3, kind=kind, hidden_size=6)
    speakers = torch.arange(30) % 3
    x = torch.eye(4)[speakers] + 0.1 * torch.randn(30, 4)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    first = loss(x, speakers).mean()
    for _ in range(30):
        optimizer.zero_grad()
        loss(x, speakers).mean().backward()
        optimizer.step()
    assert loss(x, speakers).mean() < 0.2 * first
    assert (loss.scores(x).argmax(1) == speakers).all()


def test_bfloat16_autocast_keeps_cosines_exact() -> None:
    loss, x = _loss(), torch.randn(4, 2)
    speakers = torch.tensor([0, 1, 0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = loss(x, speakers)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, loss(x, speakers))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "arc"}, "'arc'"),
        ({"kind": "softmax", "num_centers": 2}, "num_centers=2"),
        ({"margin": -0.1}, "-0.1"),
        ({"scale": 0.0}, "0.0"),
        ({"num_speakers": 0}, "at least 1.*0"),
        ({"warmup_steps": -1}, "negative.*-1"),
    ],
)
def test_settings_that_cannot_be(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeakerLoss(**{"embed_dim": 2, "num_speakers": 2, **settings})


def test_shapes_that_disagree() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(2,\)"):
        _loss()(torch.zeros(3, 2), torch.tensor([0, 1]))
