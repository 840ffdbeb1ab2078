"""The parts of Tacotron 2: pre-net masks, steps with and without known frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkit.nn.tacotron import NormedConv, PostNet, Prenet, TacotronEncoder
from speechkit.nn.tacotron_decoder import TacotronDecoder

MELS, MEMORY = 5, 6
LENGTHS = torch.tensor([8, 5])


def build(**changes: object) -> TacotronDecoder:
    torch.manual_seed(0)
    settings = {
        "num_mels": MELS,
        "memory_size": MEMORY,
        "prenet_sizes": (7, 4),
        "attention_size": 8,
        "location_channels": 3,
        "location_kernel": 5,
        "attention_lstm_size": 9,
        "decoder_lstm_size": 10,
    }
    return TacotronDecoder(**{**settings, **changes}).eval()  # type: ignore[arg-type]


@pytest.fixture
def memory() -> Tensor:
    return torch.randn(2, 8, MEMORY, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("factor", [1, 3])
def test_speaking_is_knowing_what_one_says(factor: int, memory: Tensor) -> None:
    """Its own frames given as known ones make it say the same, pre-net dropout included."""
    decoder = build(reduction_factor=factor)
    spoken = decoder.speak(memory, LENGTHS, max_steps=70, stop_threshold=1.0, seed=5)
    last = spoken.frames[:, factor - 1 :: factor]
    previous = torch.cat([torch.zeros(2, 1, MELS), last[:, :-1]], dim=1)
    known = decoder(memory, LENGTHS, previous, seed=5)
    torch.testing.assert_close(known.frames, spoken.frames, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(known.alignment, spoken.alignment, atol=1e-5, rtol=1e-4)
    assert spoken.frames.shape == (2, 70 * factor, MELS)
    other = decoder.speak(memory, LENGTHS, max_steps=70, stop_threshold=1.0, seed=6)
    assert not torch.allclose(other.frames, spoken.frames, atol=1e-3)


def test_each_item_stops_by_itself(memory: Tensor) -> None:
    decoder = build()
    free = decoder.speak(memory, LENGTHS, max_steps=12, stop_threshold=1.0)
    assert not free.stopped.any()
    assert free.steps.tolist() == [12, 12]
    previous = torch.cat([torch.zeros(2, 1, MELS), free.frames[:, :-1]], dim=1)
    odds = decoder(memory, LENGTHS, previous).stop_logits.sigmoid()
    # Between the two items' largest values only one of them ever stops.
    low, high = odds.amax(dim=1).sort().values.tolist()
    assert high - low > 1e-4
    out = decoder.speak(memory, LENGTHS, max_steps=12, stop_threshold=(low + high) / 2)
    said = odds > (low + high) / 2
    assert out.stopped.tolist() == said.any(dim=1).tolist()
    for item in range(2):
        first = int(said[item].int().argmax()) + 1 if said[item].any() else 12
        assert out.steps[item].item() == first


def test_training_draws_dropout_and_evaluation_does_not(memory: Tensor) -> None:
    decoder, previous = build(), torch.randn(2, 4, MELS)
    first, second = (decoder(memory, LENGTHS, previous).frames for _ in range(2))
    assert torch.equal(first, second)
    decoder.train()
    first, second = (decoder(memory, LENGTHS, previous).frames for _ in range(2))
    assert not torch.allclose(first, second)


def test_the_gradients_are_those_of_finite_differences(memory: Tensor) -> None:
    decoder = build(prenet_dropout=0.0, attention_dropout=0.0, decoder_dropout=0.0)
    previous = torch.randn(2, 4, MELS)

    def value() -> Tensor:
        out = decoder(memory, LENGTHS, previous)
        valid = out.alignment[..., :5].square().sum()
        return out.frames.square().mean() + out.stop_logits.square().mean() + valid

    decoder.zero_grad()
    value().backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in decoder.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator)
        direction /= direction.norm()
        assert parameter.grad is not None, name
        found = (parameter.grad * direction).sum().item()
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-2)
            above = value().item()
            parameter.sub_(direction, alpha=2e-2)
            below = value().item()
            parameter.add_(direction, alpha=1e-2)
        assert found == pytest.approx((above - below) / 2e-2, abs=2e-4, rel=2e-2), name


def test_masks_step_by_step_are_those_drawn_at_once() -> None:
    prenet = Prenet(input_size=3, sizes=(5, 4), dropout=0.25)
    whole = prenet.draw(40, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    parts = [prenet.draw(steps, generator) for steps in (1, 8, 31)]
    for layer, size in enumerate((5, 4)):
        assert whole[layer].shape == (40, size)
        assert torch.equal(torch.cat([part[layer] for part in parts]), whole[layer])
    kept = torch.cat([mask.flatten() for mask in prenet.draw(2000, generator)])
    assert (kept > 0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert kept.max().item() == pytest.approx(1 / 0.75)


def test_the_prenet_drops_in_evaluation_too() -> None:
    prenet = Prenet(input_size=3, sizes=(400,), dropout=0.5).eval()
    x = torch.randn(1, 3)
    assert not torch.equal(prenet(x), prenet(x))


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing_of_encoder_and_postnet(training: bool) -> None:
    torch.manual_seed(0)
    encoder = TacotronEncoder(num_symbols=9, embed_dim=6, output_size=8, dropout=0.0)
    tokens = torch.randint(0, 9, (2, 8))
    outs = []
    for padding in (0, 8):
        padded = tokens.clone()
        padded[1, 5:] = padding
        outs.append(encoder.train(training)(padded, LENGTHS).data)
    assert torch.equal(*outs)
    postnet = PostNet(num_mels=MELS, size=6, num_convs=2, dropout=0.0).train(training)
    frames = torch.randn(2, 8, MELS)
    outs = []
    for value in (0.0, float("nan")):
        frames[1, 5:] = value
        outs.append(postnet(frames, LENGTHS))
    assert torch.equal(*outs)
    assert (outs[0][1, 5:] == 0).all()


def test_a_postnet_without_layers_corrects_nothing() -> None:
    assert not PostNet(num_mels=MELS, num_convs=0)(torch.randn(1, 3, MELS), torch.tensor([3])).any()


def test_impossible_settings_are_refused(memory: Tensor) -> None:
    with pytest.raises(ValueError, match="reduction_factor must be at least 1, not 0"):
        build(reduction_factor=0)
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), not 1.0"):
        build(decoder_dropout=1.0)
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), not 1.5"):
        build(prenet_dropout=1.5)
    with pytest.raises(ValueError, match="sizes is empty"):
        Prenet(input_size=3, sizes=())
    with pytest.raises(ValueError, match="over two directions: not 7"):
        TacotronEncoder(num_symbols=3, output_size=7)
    with pytest.raises(ValueError, match="odd, so that frames stay centred: 4"):
        NormedConv(input_size=3, output_size=3, kernel_size=4, gain="relu")
    with pytest.raises(ValueError, match="unknown attention 'hard'"):
        build().speak(memory, LENGTHS, max_steps=3, attention="hard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_steps must be at least 1, not 0"):
        build().speak(memory, LENGTHS, max_steps=0)
