"""Tacotron 2: its published size, padding, several voices, stops, and a text that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.losses.tacotron import TacotronLoss
from speechkit.models.tacotron2 import Tacotron2

SMALL: dict[str, Any] = {
    "num_symbols": 12,
    "num_mels": 5,
    "embed_dim": 8,
    "encoder_size": 8,
    "prenet_sizes": (8, 6),
    "attention_size": 8,
    "location_channels": 3,
    "location_kernel": 5,
    "attention_lstm_size": 10,
    "decoder_lstm_size": 9,
    "postnet_size": 8,
    "postnet_convs": 3,
}
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 2, 1, 0, 0, 0]])
TOKEN_LENGTHS = torch.tensor([6, 3])
MEL_LENGTHS = torch.tensor([13, 8])


def build(**changes: Any) -> Tacotron2:
    torch.manual_seed(0)
    return Tacotron2(**{**SMALL, **changes}).eval()


def mels() -> Tensor:
    return torch.randn(2, 13, 5, generator=torch.Generator().manual_seed(2))


def test_the_published_size() -> None:
    """28.2 million: what NVIDIA's has with its 148 symbols, counted layer by layer."""
    with torch.device("meta"):
        model = Tacotron2(num_symbols=148)
    count = sum(parameter.numel() for parameter in model.parameters())
    encoder = 148 * 512 + 3 * (512 * 512 * 5 + 3 * 512) + 2 * (4 * 256 * (512 + 256) + 8 * 256)
    attention = 1024 * 128 + 512 * 128 + 128 + 2 * 32 * 31 + 32 * 128
    lstms = 4 * 1024 * (256 + 512 + 1024 + 2) + 4 * 1024 * (1024 + 512 + 1024 + 2)
    outputs = 80 * 256 + 256 * 256 + 1536 * 81 + 81
    convs = 80 * 512 * 5 * 2 + 3 * 512 * 512 * 5
    assert count == encoder + attention + lstms + outputs + convs + 4 * 3 * 512 + 3 * 80
    assert count == 28_193_153


@pytest.mark.parametrize("factor", [1, 2, 5])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(factor: int, training: bool) -> None:
    """In training, dropout off: the statistics of the batch norms, too, are of valid frames."""
    off = dict.fromkeys(("encoder_dropout", "prenet_dropout", "attention_dropout"), 0.0)
    off |= {"decoder_dropout": 0.0, "postnet_dropout": 0.0}
    model = build(reduction_factor=factor, **off).train(training)
    loss = TacotronLoss(mel="both")
    found = []
    for padding in (0.0, float("nan")):
        frames, tokens = mels(), TOKENS.clone()
        frames[1, 8:] = padding
        tokens[1, 3:] = 0 if padding == 0.0 else 11
        model.zero_grad()
        out = model(tokens, TOKEN_LENGTHS, frames, MEL_LENGTHS)
        parts = loss(out, frames, MEL_LENGTHS, TOKEN_LENGTHS)
        torch.stack(list(parts.values())).sum().backward()
        found.append([out.mel, *parts.values(), *(p.grad for p in model.parameters())])
    for first, second in zip(*found):
        assert torch.equal(first, second)


def test_a_batch_gives_what_each_item_gives_alone() -> None:
    model = build(reduction_factor=2)
    out = model(TOKENS, TOKEN_LENGTHS, mels(), MEL_LENGTHS)
    alone = model(TOKENS[1:, :3], TOKEN_LENGTHS[1:], mels()[1:, :8], MEL_LENGTHS[1:])
    torch.testing.assert_close(out.mel[1:, :8], alone.mel, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.alignment[1:, :4, :3], alone.alignment, atol=1e-5, rtol=1e-4)
    assert out.step_lengths.tolist() == [7, 4]
    assert not out.mel[1, 8:].any()
    for attention in ("soft", "forward"):
        said = model.generate(TOKENS, TOKEN_LENGTHS, max_frames=21, attention=attention)
        one = model.generate(TOKENS[1:, :3], TOKEN_LENGTHS[1:], max_frames=21, attention=attention)
        assert one.lengths[0] == said.lengths[1] == one.mel.shape[1]
        torch.testing.assert_close(said.mel[1, : one.mel.shape[1]], one.mel[0])
        torch.testing.assert_close(said.alignment[1, : one.mel.shape[1], :3], one.alignment[0])


def test_what_speaking_gives() -> None:
    model = build(reduction_factor=2)
    said = model.generate(TOKENS, TOKEN_LENGTHS, max_frames=21, stop_threshold=1.0)
    assert said.mel.shape == (2, 20, 5)  # whole steps that fit into 21
    assert said.alignment.shape == (2, 20, 6)
    assert said.lengths.tolist() == [20, 20]
    assert not said.stopped.any()
    torch.testing.assert_close(said.alignment.sum(dim=2), torch.ones(2, 20))
    assert not said.alignment[1, :, 3:].any()
    at_once = model.generate(TOKENS, TOKEN_LENGTHS, max_frames=21, stop_threshold=0.0)
    assert at_once.lengths.tolist() == [2, 2]
    assert at_once.stopped.all()
    again = model.generate(TOKENS, TOKEN_LENGTHS, max_frames=21, stop_threshold=1.0)
    other = model.generate(TOKENS, TOKEN_LENGTHS, max_frames=21, stop_threshold=1.0, seed=1)
    assert torch.equal(said.mel, again.mel)
    assert not torch.allclose(said.mel, other.mel)


@pytest.mark.parametrize("projection", [None, 3])
def test_voices(projection: int | None) -> None:
    model = build(speaker_size=4, speaker_projection=projection)
    assert model.decoder.memory_size == 8 + (projection or 4)
    voices = torch.randn(2, 4)
    out = model(TOKENS, TOKEN_LENGTHS, mels(), MEL_LENGTHS, voices)
    other = model(TOKENS, TOKEN_LENGTHS, mels(), MEL_LENGTHS, voices.flip(0))
    assert not torch.allclose(out.mel, other.mel, atol=1e-4)
    said = model.generate(TOKENS, TOKEN_LENGTHS, speaker=voices, max_frames=5)
    assert torch.isfinite(said.mel).all()
    with pytest.raises(ValueError, match=r"in several voices: give speaker, \(2, 4\)"):
        model.generate(TOKENS, TOKEN_LENGTHS, max_frames=5)
    with pytest.raises(ValueError, match="one voice"):
        build()(TOKENS, TOKEN_LENGTHS, mels(), MEL_LENGTHS, voices)
    with pytest.raises(ValueError, match="speaker_projection without speaker_size"):
        build(speaker_projection=3)


def test_it_works_in_bfloat16_too() -> None:
    model = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(TOKENS, TOKEN_LENGTHS, mels(), MEL_LENGTHS)
        parts = TacotronLoss()(out, mels(), MEL_LENGTHS, TOKEN_LENGTHS)
    for result in (out.coarse, out.mel, out.stop_logits):  # float32, and not rounded before
        assert result.dtype == torch.float32
        assert bool((result != result.bfloat16()).any())
    torch.stack(list(parts.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval()
    wide = model.generate(TOKENS[:1], TOKEN_LENGTHS[:1], max_frames=6, stop_threshold=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = model.generate(TOKENS[:1], TOKEN_LENGTHS[:1], max_frames=6, stop_threshold=1.0)
    torch.testing.assert_close(said.mel.float(), wide.mel, atol=0.1, rtol=0.1)


def test_it_learns_a_text_with_a_straight_alignment() -> None:
    """Each symbol is five equal frames: speech by heart needs the alignment and the stop."""
    torch.manual_seed(0)
    model = Tacotron2(
        **{**SMALL, "attention_lstm_size": 32, "decoder_lstm_size": 32},
        prenet_dropout=0.0,
        encoder_dropout=0.0,
        postnet_dropout=0.0,
        reduction_factor=2,
    )
    frames = torch.randn(12, 5)[TOKENS[:1]].repeat_interleave(5, dim=1)
    lengths = torch.tensor([30])
    loss = TacotronLoss(stop_positive_weight=5.0, guided_weight=5.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(120):
        out = model(TOKENS[:1], TOKEN_LENGTHS[:1], frames, lengths)
        parts = loss(out, frames, lengths, TOKEN_LENGTHS[:1])
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    said = model.eval().generate(TOKENS[:1], TOKEN_LENGTHS[:1], max_frames=60)
    assert said.stopped.all()
    assert 26 <= said.lengths.item() <= 34
    looked = said.alignment[0].argmax(dim=1)
    assert (looked.diff() >= 0).all()
    assert set(looked.tolist()) >= {0, 2, 3, 4}
    overlap = min(30, said.mel.shape[1])
    error = (said.mel[0, :overlap] - frames[0, :overlap]).square().mean()
    assert error < 0.5 * frames.var()


def test_wrong_input_is_refused() -> None:
    model = build(reduction_factor=2)
    with pytest.raises(ValueError, match=r"mels must be \(B, T, 5\), T > 0: \(2, 13, 4\)"):
        model(TOKENS, TOKEN_LENGTHS, mels()[..., :4], MEL_LENGTHS)
    with pytest.raises(ValueError, match=r"\(2, 0, 5\)"):
        model(TOKENS, TOKEN_LENGTHS, mels()[:, :0], torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="has 0 symbols"):
        model.generate(TOKENS, torch.tensor([6, 0]))
    with pytest.raises(ValueError, match=r"max_frames \(1\) is less than a step of 2 frames"):
        model.generate(TOKENS, TOKEN_LENGTHS, max_frames=1)
    with pytest.raises(ValueError, match="unknown attention 'hard'"):
        model.generate(TOKENS, TOKEN_LENGTHS, attention="hard")  # type: ignore[arg-type]
