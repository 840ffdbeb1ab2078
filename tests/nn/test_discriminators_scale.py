"""HiFi-GAN's multi-scale discriminator: size, padding, several discriminators as one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechkit.losses.adversarial import discriminator_loss
from speechkit.nn.discriminators_scale import (
    CombinedDiscriminator,
    MultiScaleDiscriminator,
    ScaleDiscriminator,
)
from speechkit.nn.discriminators_vocoder import MultiPeriodDiscriminator

LAYERS = ((4, 15, 1, 1), (4, 11, 2, 2), (8, 11, 4, 4), (6, 5, 1, 2))


def _make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    scale = MultiScaleDiscriminator(layers=LAYERS)
    if kind == "combined":
        period = MultiPeriodDiscriminator(periods=(2, 3), widths=(4, 6))
        return CombinedDiscriminator(parts=[period, scale]).eval()
    return scale.eval()  # spectral norm learns its vectors in training, at each pass


@pytest.mark.parametrize("kind", ["scale", "combined"])
@pytest.mark.parametrize("longest", [300, 301, 302, 303])
def test_each_item_is_judged_as_alone(kind: str, longest: int) -> None:
    judge = _make(kind)
    # The second is full at half the rate already.
    lengths = torch.tensor([longest, longest - 1, 131, 7])
    batch = torch.randn(4, 1, longest)
    for row, size in enumerate(lengths.tolist()):
        batch[row, :, size:] = float("nan")
    together = judge(batch, lengths)
    assert together.frames is not None
    assert len(together.frames) == len(together.logits)
    for row, size in enumerate(lengths.tolist()):
        alone = judge(batch[row : row + 1, :, :size])
        for k, logits in enumerate(together.logits):
            maps = [*together.features[k], logits]
            wants = [*alone.features[k], alone.logits[k]]
            assert len(maps) == len(wants) == len(together.frames[k])
            for got, want, frames in zip(maps, wants, together.frames[k]):
                size_there = int(frames[row])
                assert size_there == want.shape[2]
                near = got[row : row + 1, :, :size_there]
                torch.testing.assert_close(near, want, atol=1e-5, rtol=1e-4)
                assert not got[row, :, size_there:].any()


def test_published_size() -> None:
    judge = MultiScaleDiscriminator()
    # Without the lengths that weight norm adds: one for each output channel of two scales.
    count = sum(p.numel() for n, p in judge.named_parameters() if not n.endswith("original0"))
    assert round(count / 1e6, 2) == 29.61


def test_it_learns_to_tell_noise_from_a_tone() -> None:
    torch.manual_seed(0)
    judge = CombinedDiscriminator(parts=[MultiScaleDiscriminator(layers=LAYERS)])
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.01)
    tone = torch.sin(torch.arange(400) * 0.2).view(1, 1, -1)
    losses = []
    for _ in range(30):
        real, fake = judge(tone), judge(0.7 * torch.randn(1, 1, 400))
        loss = discriminator_loss(real, fake, kind="least_squares").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match="odd kernels"):
        ScaleDiscriminator(layers=((4, 14, 1, 1),))
    with pytest.raises(ValueError, match="norm must be one of"):
        ScaleDiscriminator(layers=LAYERS, norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_scales must be at least 1"):
        MultiScaleDiscriminator(num_scales=0)
    with pytest.raises(ValueError, match="parts is empty"):
        CombinedDiscriminator(parts=[])
    with pytest.raises(ValueError, match=r"need a waveform \(B, 1, T\)"):
        ScaleDiscriminator(layers=LAYERS)(torch.zeros(1, 2, 30))
