"""Transformer TTS: its cache, its causality, its sizes, and that it learns to read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechkit.losses.tts import TransformerTTSLoss
from speechkit.metrics.wer import character_errors
from speechkit.models.transformer_tts import TransformerTTS
from speechkit.nn.durations import alignment_matrix
from speechkit.pretrained import load, save

SYMBOLS, MELS = 12, 20
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [9, 1, 0, 0, 0]])
TOKEN_LENGTHS = torch.tensor([5, 3, 2])
NEVER = 2.0
"""A stop threshold that no probability reaches."""


def small(**changes: Any) -> TransformerTTS:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_symbols": SYMBOLS,
        "num_mels": MELS,
        "embed_dim": 16,
        "num_heads": 4,
        "feedforward_size": 24,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "prenet_sizes": (12, 10),
        "postnet_size": 8,
        **changes,
    }
    return TransformerTTS(**settings)


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("speaker_size", [None, 5])
def test_generation_with_the_cache_is_the_teacher_forced_output(
    pre_norm: bool, factor: int, speaker_size: int | None
) -> None:
    model = small(pre_norm=pre_norm, reduction_factor=factor, speaker_size=speaker_size).eval()
    speaker = None if speaker_size is None else torch.randn(3, speaker_size)
    coarse = []  # a step sees the decoder's own frames, without the post-net
    hook = model.postnet.register_forward_pre_hook(lambda _, inputs: coarse.append(inputs[0]))
    spoken = model.generate(
        TOKENS, TOKEN_LENGTHS, speaker=speaker, max_frames=40, stop_threshold=NEVER
    )
    hook.remove()
    assert spoken.mel.shape == (3, 40 // factor * factor, MELS)
    assert not bool(spoken.stopped.any())
    outputs = model(TOKENS, TOKEN_LENGTHS, coarse[0], spoken.lengths, speaker)
    torch.testing.assert_close(outputs.coarse, coarse[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs.mel, spoken.mel, atol=1e-4, rtol=1e-4)
    steps = outputs.alignment.repeat_interleave(factor, dim=1)
    torch.testing.assert_close(steps, spoken.alignment, atol=1e-5, rtol=1e-4)


def test_no_step_sees_a_later_frame() -> None:
    model = small(postnet_convs=0, reduction_factor=2).eval()
    mels = torch.randn(3, 20, MELS, requires_grad=True)
    lengths = torch.tensor([20, 20, 20])
    outputs = model(TOKENS, TOKEN_LENGTHS, mels, lengths)
    outputs.coarse[:, 8].sum().backward()  # of the fifth step: it sees frames 1, 3, 5, 7
    seen = mels.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()  # type: ignore[union-attr]
    assert seen == [1, 3, 5, 7]


@pytest.mark.parametrize("factor", [1, 2])
def test_an_item_in_a_batch_is_the_item_alone(factor: int) -> None:
    model = small(reduction_factor=factor, speaker_size=5).eval()
    mels, mel_lengths = torch.randn(3, 15, MELS), torch.tensor([15, 9, 4])
    speaker, tokens = torch.randn(3, 5), TOKENS.clone()
    for i in range(3):
        mels[i, mel_lengths[i] :] = math.nan
        tokens[i, TOKEN_LENGTHS[i] :] = 777
    whole = model(tokens, TOKEN_LENGTHS, mels, mel_lengths, speaker)
    spoken = model.generate(tokens, TOKEN_LENGTHS, speaker=speaker, max_frames=12)
    assert whole.step_lengths.tolist() == [-(-n // factor) for n in mel_lengths.tolist()]
    for i in range(3):
        symbols, frames, steps = TOKEN_LENGTHS[i], mel_lengths[i], whole.step_lengths[i]
        one = slice(i, i + 1)
        text = (tokens[one, :symbols], TOKEN_LENGTHS[one])
        alone = model(*text, mels[one, :frames], mel_lengths[one], speaker[one])
        close = {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(alone.mel[0], whole.mel[i, :frames], **close)
        torch.testing.assert_close(alone.stop_logits[0], whole.stop_logits[i, :steps], **close)
        torch.testing.assert_close(
            alone.alignment[0], whole.alignment[i, :steps, :symbols], **close
        )
        assert float(whole.mel[i, frames:].detach().abs().sum()) == 0
        assert float(whole.alignment[i, :, symbols:].detach().abs().sum()) == 0
        again = model.generate(*text, speaker=speaker[one], max_frames=12)
        length = int(again.lengths)
        assert length == int(spoken.lengths[i])
        torch.testing.assert_close(again.mel[0], spoken.mel[i, :length], **close)


def test_each_item_stops_by_itself() -> None:
    model = small(reduction_factor=2).eval()
    logits = model(TOKENS, TOKEN_LENGTHS, torch.zeros(3, 4, MELS), torch.tensor([4, 4, 4]))
    # A threshold between the items' first probabilities: some stop at once, some not.
    first = logits.stop_logits[:, 0].sigmoid()
    threshold = float(first.sort().values[:2].mean().detach())
    spoken = model.generate(TOKENS, TOKEN_LENGTHS, max_frames=6, stop_threshold=threshold)
    at_once = first >= threshold
    assert at_once.sum() == 2
    assert spoken.lengths[at_once].tolist() == [2, 2]
    assert int(spoken.lengths[~at_once]) > 2
    assert bool(spoken.stopped[at_once].all())
    for mel, alignment, length in zip(spoken.mel, spoken.alignment, spoken.lengths.tolist()):
        assert float(mel[length:].abs().sum()) == 0
        sums = alignment.sum(dim=1)
        torch.testing.assert_close(sums[:length], torch.ones(length))
        assert float(sums[length:].sum()) == 0


def test_the_seed_draws_the_dropout_of_the_pre_net() -> None:
    model = small().eval()

    def speak(seed: int) -> Tensor:
        return model.generate(
            TOKENS, TOKEN_LENGTHS, max_frames=9, stop_threshold=NEVER, seed=seed
        ).mel

    torch.manual_seed(5)
    first = speak(3)
    state = torch.get_rng_state()
    assert torch.equal(speak(3), first)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is left alone
    assert float((speak(4) - first).abs().max()) > 1e-3


def test_published_sizes() -> None:
    with torch.device("meta"):
        model = TransformerTTS(num_symbols=60, num_mels=80)
    d, ff = 512, 2048
    attention, feedforward, norm = 4 * d * d + 4 * d, 2 * d * ff + d + ff, 2 * d
    conv = 5 * d * d + d + norm
    encoder = 60 * d + 3 * conv + d * d + d + 1 + 6 * (attention + feedforward + 2 * norm) + norm
    prenet = 80 * 256 + 256 * 256 + 256 * d + d + 1
    decoder = 6 * (2 * attention + feedforward + 3 * norm) + norm + d * 80 + 80 + d + 1
    edges = 5 * 80 * d + d + norm + 5 * 80 * d + 80 + 160
    assert sum(p.numel() for p in model.parameters()) == (
        encoder + prenet + decoder + edges + 3 * conv
    )


def test_every_weight_learns() -> None:
    model = small(speaker_size=5, reduction_factor=2)
    mels, lengths = torch.randn(3, 15, MELS), torch.tensor([15, 9, 4])
    outputs = model(TOKENS, TOKEN_LENGTHS, mels, lengths, torch.randn(3, 5))
    losses = TransformerTTSLoss()(outputs, mels, lengths, TOKEN_LENGTHS)
    assert all(value.shape == (3,) for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_it_learns_to_read() -> None:
    """After 120 steps on 6 texts it says them by itself, looks where it reads, and stops."""
    generator = torch.Generator().manual_seed(0)
    spectra = torch.randn(SYMBOLS, MELS, generator=generator)
    drawn = [torch.randint(1, SYMBOLS, (4 + i % 3,), generator=generator) for i in range(6)]
    texts = [torch.unique_consecutive(text) for text in drawn]
    durations = [torch.full_like(text, 4) for text in texts]
    speech = [spectra[t].repeat_interleave(d, dim=0) for t, d in zip(texts, durations)]
    tokens, mels = pad_sequence(texts, batch_first=True), pad_sequence(speech, batch_first=True)
    token_lengths = torch.tensor([len(text) for text in texts])
    mel_lengths = torch.tensor([len(mel) for mel in speech])
    model = small(
        embed_dim=48,
        feedforward_size=96,
        decoder_layers=2,
        encoder_convs=1,
        dropout=0.0,
        prenet_sizes=(32,),
        prenet_dropout=0.1,
        postnet_size=24,
        postnet_convs=3,
        postnet_dropout=0.0,
        guided_layers=1,
        reduction_factor=2,
    )
    loss, optimizer = TransformerTTSLoss(), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        outputs = model(tokens, token_lengths, mels, mel_lengths)
        losses = loss(outputs, mels, mel_lengths, token_lengths)
        optimizer.zero_grad()
        sum(part.mean() for part in losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    spoken = model.eval().generate(tokens, token_lengths, max_frames=80)
    assert bool(spoken.stopped.all())
    frames = min(spoken.mel.shape[1], mels.shape[1])
    right = alignment_matrix(pad_sequence(durations, batch_first=True), frames)
    mass = (spoken.alignment[:, :frames] * right).sum(dim=(1, 2)) / mel_lengths
    assert float(mass.mean()) > 0.5  # even attention: less than 0.2
    heard = torch.cdist(spoken.mel, spectra[None]).argmin(dim=2)
    said = [_letters(h[:n]) for h, n in zip(heard, spoken.lengths.tolist())]
    counts = character_errors([_letters(text) for text in texts], said)
    # Between two sounds a frame may be like a third one: insertions do not count.
    assert counts.hits > 0.8 * counts.reference_length
    assert (spoken.lengths - mel_lengths).abs().max() <= 8


def _letters(symbols: Tensor) -> str:
    """Write symbols, each run of one as one letter."""
    return "".join(chr(ord("a") + symbol) for symbol in symbols.unique_consecutive().tolist())


def test_what_is_refused() -> None:
    mels, lengths = torch.randn(3, 15, MELS), torch.tensor([15, 9, 4])
    with pytest.raises(ValueError, match="several voices"):
        small(speaker_size=5)(TOKENS, TOKEN_LENGTHS, mels, lengths)
    with pytest.raises(ValueError, match="one voice"):
        small().generate(TOKENS, TOKEN_LENGTHS, speaker=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="mels must be"):
        small()(TOKENS, TOKEN_LENGTHS, mels[..., :7], lengths)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.11"):
        small().generate(TOKENS + 9, TOKEN_LENGTHS)
    with pytest.raises(ValueError, match=r"max_frames \(2\) is less than a step of 3"):
        small(reduction_factor=3).generate(TOKENS, TOKEN_LENGTHS, max_frames=2)
    for name, value in (("reduction_factor", 0), ("guided_layers", 4), ("guided_heads", 5)):
        with pytest.raises(ValueError, match=name):
            small(**{name: value})


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    model = small(speaker_size=5, reduction_factor=2, guided_heads=3, pre_norm=False).eval()
    save(model, tmp_path / "model")
    again, speaker = load(tmp_path / "model"), torch.randn(3, 5)
    first = model.generate(TOKENS, TOKEN_LENGTHS, speaker=speaker, max_frames=10)
    second = again.generate(TOKENS, TOKEN_LENGTHS, speaker=speaker, max_frames=10)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def exact(x: Tensor) -> bool:
    """Say whether values have float32's digits, not only its type."""
    return x.dtype == torch.float32 and bool((x != x.bfloat16().float()).any())


def test_frames_and_stops_are_float32_under_autocast() -> None:
    model = small(reduction_factor=2)
    mels, lengths = torch.randn(3, 20, MELS), torch.tensor([20, 20, 11])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(TOKENS, TOKEN_LENGTHS, mels, lengths)
        spoken = model.eval().generate(TOKENS, TOKEN_LENGTHS, max_frames=8, stop_threshold=NEVER)
    for name in ("coarse", "mel", "stop_logits"):
        assert exact(getattr(outputs, name)), name
    assert exact(spoken.mel)
    wide = model.generate(TOKENS, TOKEN_LENGTHS, max_frames=8, stop_threshold=NEVER)
    torch.testing.assert_close(spoken.mel, wide.mel, atol=0.1, rtol=0.1)
    outputs.mel.sum().backward()
    assert bool(model.frames.weight.grad.isfinite().all())  # type: ignore[union-attr]
