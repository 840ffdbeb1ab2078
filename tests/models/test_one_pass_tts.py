"""One-pass text to speech: it learns where symbols are, and says new texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechkit.losses.tts import OnePassLoss
from speechkit.models.one_pass_tts import OnePassTTS
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.convnext import ConvNeXtEncoder
from speechkit.nn.transformer import TransformerEncoder
from speechkit.pretrained import load, save

SYMBOLS, MELS = 12, 20


class Speech(NamedTuple):
    tokens: Tensor
    token_lengths: Tensor
    mels: Tensor
    mel_lengths: Tensor
    durations: Tensor


def synthetic(num_items: int, seed: int, noise: float = 0.2) -> Speech:
    """Each symbol is a spectrum of its own, of a length of its own."""
    spectra = torch.randn(SYMBOLS, MELS, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    tokens, mels, durations = [], [], []
    for i in range(num_items):
        drawn = torch.randint(0, SYMBOLS, (6 + i % 7,), generator=generator)
        item = torch.unique_consecutive(drawn)  # of two equal sounds nobody could find the border
        frames = 2 + (item * 5) % 7
        mel = spectra[item].repeat_interleave(frames, dim=0)
        mels.append(mel + noise * torch.randn(mel.shape, generator=generator))
        tokens.append(item)
        durations.append(frames)
    return Speech(
        pad_sequence(tokens, batch_first=True),
        torch.tensor([len(item) for item in tokens]),
        pad_sequence(mels, batch_first=True),
        torch.tensor([len(item) for item in mels]),
        pad_sequence(durations, batch_first=True),
    )


def convnext(size: int = 16) -> nn.Module:
    return ConvNeXtEncoder(input_size=size, embed_dim=size, num_layers=2, hidden_size=2 * size)


def transformer() -> nn.Module:
    return TransformerEncoder(
        input_size=16, embed_dim=16, num_heads=2, num_layers=1, feedforward_size=32
    )


def conformer() -> nn.Module:
    return ConformerEncoder(
        input_size=16, embed_dim=16, num_heads=2, num_layers=1, feedforward_size=32, kernel_size=5
    )


def small(**changes: Any) -> OnePassTTS:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_symbols": SYMBOLS,
        "num_mels": MELS,
        "encoder": convnext(),
        "decoder": convnext(),
        "predictor_size": 12,
        "attention_size": 10,
        **changes,
    }
    return OnePassTTS(**settings)


@pytest.fixture(scope="module")
def trained() -> OnePassTTS:
    """A model that saw 12 items 60 times."""
    speech = synthetic(12, seed=1)
    model = small(encoder=convnext(32), decoder=convnext(32), predictor_size=32, attention_size=32)
    loss, optimizer = OnePassLoss(), torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        outputs = model(*speech[:4])
        parts = loss(outputs, speech.mels, speech.mel_lengths, speech.token_lengths)
        optimizer.zero_grad()
        sum(part.mean() for part in parts.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    return model.eval()


def test_training_finds_the_borders(trained: OnePassTTS) -> None:
    speech = synthetic(12, seed=1)
    found = trained(*speech[:4]).durations
    wrong = (found.cumsum(dim=1) - speech.durations.cumsum(dim=1)).abs()
    borders = torch.arange(wrong.shape[1]) < (speech.token_lengths - 1).unsqueeze(1)
    assert (wrong[borders] <= 1).float().mean() > 0.95
    # ... which an even pace, with which the training begins, does not give.
    even = small()(*speech[:4]).durations
    wrong = (even.cumsum(dim=1) - speech.durations.cumsum(dim=1)).abs()
    assert (wrong[borders] <= 1).float().mean() < 0.6


def test_a_new_text_is_said_with_its_sounds(trained: OnePassTTS) -> None:
    new = synthetic(8, seed=7, noise=0.0)
    spoken = trained.generate(new.tokens, new.token_lengths)
    assert bool(spoken.stopped.all())
    ratio = spoken.lengths / new.mel_lengths
    assert 0.7 < float(ratio.min()) <= float(ratio.max()) < 1.3
    assert 0.9 < float(ratio.mean()) < 1.1
    exact = trained.generate(new.tokens, new.token_lengths, durations=new.durations)
    assert torch.equal(exact.lengths, new.mel_lengths)
    error = [(a[:n] - b[:n]).abs().mean() for a, b, n in zip(exact.mel, new.mels, exact.lengths)]
    silent = [b[:n].abs().mean() for b, n in zip(new.mels, exact.lengths)]
    assert float(torch.stack(error).mean() / torch.stack(silent).mean()) < 0.4


def test_speed(trained: OnePassTTS) -> None:
    new = synthetic(8, seed=7)
    plain = trained.generate(new.tokens, new.token_lengths).lengths
    slow = trained.generate(new.tokens, new.token_lengths, speed=0.5).lengths
    assert bool(((slow - 2 * plain).abs() <= 2).all())
    fastest = trained.generate(new.tokens, new.token_lengths, speed=1000.0)
    assert torch.equal(fastest.lengths, new.token_lengths)
    for speed in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="speed must be above zero"):
            trained.generate(new.tokens, new.token_lengths, speed=speed)


def test_the_longest_is_cut_and_says_so(trained: OnePassTTS) -> None:
    new = synthetic(8, seed=7)
    plain = trained.generate(new.tokens, new.token_lengths)
    limit = int(plain.lengths.min()) + 1
    cut = trained.generate(new.tokens, new.token_lengths, max_frames=limit)
    assert torch.equal(cut.stopped, plain.lengths <= limit)
    assert bool(cut.stopped.any())
    assert not bool(cut.stopped.all())
    assert torch.equal(cut.lengths, plain.lengths.clamp(max=limit))
    # Durations without end are cut before they are made.
    endless = torch.full(new.tokens.shape, 1e12)
    found = trained.generate(new.tokens, new.token_lengths, durations=endless, max_frames=9)
    assert found.mel.shape == (8, 9, MELS)


PARTS = {"convnext": convnext, "transformer": transformer, "conformer": conformer}


@pytest.mark.parametrize("part", PARTS)
def test_an_item_in_a_batch_is_the_item_alone(part: str) -> None:
    model = small(
        encoder=PARTS[part](),
        decoder=PARTS[part](),
        speaker_size=5,
        predict_pitch=True,
        predict_energy=True,
    ).eval()
    speech, speaker, pitch = synthetic(3, seed=2), torch.randn(3, 5), torch.randn(3, 99)
    pitch = pitch[:, : speech.mels.shape[1]].clone()
    pitch[:, ::3] = math.nan
    tokens, mels = speech.tokens.clone(), speech.mels.clone()
    for i in range(3):
        tokens[i, speech.token_lengths[i] :] = 777
        mels[i, speech.mel_lengths[i] :] = math.nan
    whole = model(tokens, speech.token_lengths, mels, speech.mel_lengths, speaker, pitch=pitch)
    spoken = model.generate(tokens, speech.token_lengths, speaker=speaker)
    for i in range(3):
        symbols, frames = int(speech.token_lengths[i]), int(speech.mel_lengths[i])
        one = slice(i, i + 1)
        text = (tokens[one, :symbols], speech.token_lengths[one])
        alone = model(
            *text,
            mels[one, :frames],
            speech.mel_lengths[one],
            speaker[one],
            pitch=pitch[one, :frames],
        )
        assert torch.equal(alone.durations[0], whole.durations[i, :symbols])
        torch.testing.assert_close(alone.mel[0], whole.mel[i, :frames], atol=1e-4, rtol=1e-4)
        for name in ("pitch", "energy"):
            for a, b in zip(getattr(alone, name), getattr(whole, name)):
                torch.testing.assert_close(a[0], b[i, :symbols], atol=1e-4, rtol=1e-4)
        again = model.generate(*text, speaker=speaker[one])
        frames = int(again.lengths)
        assert frames == int(spoken.lengths[i])
        torch.testing.assert_close(again.mel[0], spoken.mel[i, :frames], atol=1e-4, rtol=1e-4)
        assert float(spoken.mel[i, frames:].abs().sum()) == 0
        assert torch.equal(again.alignment[0], spoken.alignment[i, :frames, :symbols])


def test_generation_with_the_found_durations_is_the_training_output() -> None:
    model = small().eval()
    speech = synthetic(4, seed=3)
    outputs = model(*speech[:4])
    spoken = model.generate(speech.tokens, speech.token_lengths, durations=outputs.durations)
    torch.testing.assert_close(spoken.mel, outputs.mel, atol=1e-5, rtol=1e-5)
    assert torch.equal(spoken.alignment, outputs.alignment)


def test_every_weight_learns() -> None:
    model = small(speaker_size=5, predict_pitch=True, predict_energy=True)
    speech = synthetic(4, seed=3)
    pitch = torch.randn(speech.mels.shape[:2])
    outputs = model(*speech[:4], torch.randn(4, 5), pitch=pitch)
    losses = OnePassLoss()(outputs, speech.mels, speech.mel_lengths, speech.token_lengths)
    assert set(losses) == {"mel", "alignment", "binarization", "duration", "pitch", "energy"}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_the_voice_changes_the_speech() -> None:
    model = small(speaker_size=5).eval()
    speech = synthetic(1, seed=3)
    text = (speech.tokens, speech.token_lengths)
    durations = speech.durations
    one = model.generate(*text, speaker=torch.randn(1, 5), durations=durations).mel
    other = model.generate(*text, speaker=torch.randn(1, 5), durations=durations).mel
    assert float((one - other).abs().max()) > 1e-3


def test_pitch_and_energy_targets_are_means_over_the_symbols() -> None:
    model = small(predict_pitch=True, predict_energy=True).eval()
    speech = synthetic(1, seed=3)
    frames = speech.mels.shape[1]
    pitch = torch.arange(float(frames))[None].clone()
    pitch[0, 1] = math.nan
    outputs = model(*speech[:4], pitch=pitch)
    first = int(outputs.durations[0, 0])
    assert outputs.pitch is not None
    assert outputs.energy is not None
    expected = pitch[0, :first].nanmean()
    torch.testing.assert_close(outputs.pitch.target[0, 0], expected)
    torch.testing.assert_close(outputs.energy.target[0, 0], speech.mels[0, :first].mean())


def test_what_is_refused() -> None:
    speech = synthetic(2, seed=3)
    text = (speech.tokens, speech.token_lengths)
    with pytest.raises(ValueError, match="several voices"):
        small(speaker_size=5)(*speech[:4])
    with pytest.raises(ValueError, match="one voice"):
        small().generate(*text, speaker=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="predicts pitch"):
        small(predict_pitch=True)(*speech[:4])
    with pytest.raises(ValueError, match="predicts no pitch"):
        small()(*speech[:4], pitch=torch.zeros(speech.mels.shape[:2]))
    with pytest.raises(ValueError, match="item 1 has 3 frames"):
        small()(*speech[:3], torch.tensor([int(speech.mel_lengths[0]), 3]))
    with pytest.raises(ValueError, match="durations are"):
        small().generate(*text, durations=torch.ones(2, 1))
    with pytest.raises(ValueError, match="item 0 has 0 symbols"):
        small().generate(speech.tokens[:1], torch.tensor([0]))
    with pytest.raises(ValueError, match="gives 16 features, the decoder takes 8"):
        small(decoder=convnext(8))
    with pytest.raises(ValueError, match="Linear has no output_size"):
        small(encoder=nn.Linear(16, 16))


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    model = small(speaker_size=5, prior_scale=None, attention_kernel=3, predict_energy=True).eval()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.prior_scale is None
    speech, speaker = synthetic(2, seed=3), torch.randn(2, 5)
    text = (speech.tokens, speech.token_lengths)
    assert torch.equal(
        again.generate(*text, speaker=speaker).mel, model.generate(*text, speaker=speaker).mel
    )


def exact(x: Tensor) -> bool:
    """Say whether values have float32's digits, not only its type."""
    return x.dtype == torch.float32 and bool((x != x.bfloat16().float()).any())


def test_results_are_float32_under_autocast() -> None:
    speech = synthetic(3, seed=1)
    model = small(predict_energy=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(*speech[:4])
        spoken = model.eval().generate(speech.tokens, speech.token_lengths)
    assert exact(outputs.mel)
    assert exact(outputs.log_durations)
    assert exact(outputs.energy.predicted)
    assert exact(spoken.mel)
    wide = model.generate(speech.tokens, speech.token_lengths, durations=speech.durations)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = model.generate(speech.tokens, speech.token_lengths, durations=speech.durations)
    torch.testing.assert_close(near.mel, wide.mel, atol=0.1, rtol=0.1)
    outputs.mel.sum().backward()
    assert bool(model.output.weight.grad.isfinite().all())  # type: ignore[union-attr]
