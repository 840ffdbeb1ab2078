"""What a training of text to speech does with odd data, at a resume, and in the test of voices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.data.audio import write_audio
from speechkit.data.batch import collate
from speechkit.data.dataset import EncodeText, LoadAudio
from speechkit.data.loaders import SpeechData
from speechkit.data.manifest import DataError, Utterance, read_manifest, write_manifest
from speechkit.data.text_front_end import TextFrontEnd
from speechkit.features.spectrum import LogMel
from speechkit.losses.tts import OnePassLoss
from speechkit.models.one_pass_tts import OnePassTTS
from speechkit.models.speaker import SpeakerEncoder
from speechkit.models.synthesizer import Synthesizer
from speechkit.models.tacotron2 import Tacotron2
from speechkit.models.vocoder import GriffinLim
from speechkit.models.voices import ReferenceVoice
from speechkit.nn.convnext import ConvNeXtEncoder
from speechkit.nn.pooling import EmbeddingLayer, StatisticsPooling
from speechkit.nn.xvector import XVectorEncoder
from speechkit.results import read_rows
from speechkit.speaking import SpokenTest
from speechkit.speaking_frames import leave_out_short
from speechkit.training import Training

RATE, MELS, HOP = 8000, 12, 100
TEXT, LONG = "a bee, a cab", "bee cab " * 12
Recipe = Callable[[str], ModuleType]


def features() -> LogMel:
    return LogMel(sample_rate=RATE, n_fft=256, hop_length=HOP, num_mels=MELS, floor=1e-4)


def encoder() -> SpeakerEncoder:
    return SpeakerEncoder(
        features=LogMel(sample_rate=RATE, num_mels=12, n_fft=200, hop_length=80),
        encoder=XVectorEncoder(input_size=12, channels=(8,), kernel_sizes=(3,), dilations=(1,)),
        pooling=StatisticsPooling(input_size=8),
        projection=EmbeddingLayer(input_size=16, embed_dim=6),
    )


def synthesizer(*, voices: Any = None) -> Synthesizer:
    torch.manual_seed(0)
    front_end = TextFrontEnd.from_texts([TEXT])
    sizes = {"input_size": 8, "embed_dim": 8, "num_layers": 1, "hidden_size": 8}
    acoustic = OnePassTTS(
        num_symbols=front_end.vocab_size, num_mels=MELS, predictor_size=8,
        speaker_size=None if voices is None else voices.output_size,
        encoder=ConvNeXtEncoder(**sizes, dropout=0.1), decoder=ConvNeXtEncoder(**sizes),
    )  # fmt: skip
    return Synthesizer(
        front_end=front_end, acoustic=acoustic, features=features(), voices=voices,
        vocoder=GriffinLim(features=features(), iterations=1),
    )  # fmt: skip


def utterances(folder: Path, split: str, texts: list[str], speakers: str = "x") -> Path:
    rows = []
    for number, text in enumerate(texts):
        path = folder / f"{split}{number}.wav"
        time = torch.arange(round((0.6 + 0.05 * (number % 3)) * RATE)) / RATE
        write_audio(path, torch.sin(2 * torch.pi * (200 + 40 * number) * time) * 0.3, RATE)
        speaker = speakers[number % len(speakers)]
        rows.append(
            Utterance(f"{split}{number}", str(path), len(time) / RATE, RATE, text=text,
                      speaker=speaker)
        )  # fmt: skip
    write_manifest(folder / f"{split}.jsonl", rows)
    return folder / f"{split}.jsonl"


def training(
    recipe: Recipe,
    folder: Path,
    splits: dict[str, list[str]],
    *,
    brain: Any = None,
    epochs: int = 1,
    loss: OnePassLoss | None = None,
    model: Synthesizer | None = None,
    speakers: str = "x",
    **options: Any,
) -> Any:
    """A brain on tones with these texts; its run is the folder ``run``."""
    model = model or synthesizer()
    paths = {name: utterances(folder, name, texts, speakers) for name, texts in splits.items()}
    transforms = [LoadAudio(sample_rate=RATE), EncodeText(tokenizer=model.front_end)]
    data = SpeechData(
        train=paths["train"], valid=paths.get("valid"), test={"test": paths["test"]},
        transforms=transforms, max_batch_seconds=3.0, max_bad_share=0.2,
    )  # fmt: skip
    return (brain or recipe("tts").TextToSpeech)(
        model=model, data=data, optimizer=partial(torch.optim.AdamW, lr=1e-3),
        training=Training(epochs=epochs, checkpoint_minutes=0.0), folder=folder / "run",
        loss=loss or OnePassLoss(), **options,
    )  # fmt: skip


def test_recordings_too_short_for_their_texts_are_left_out(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = {"train": [TEXT] * 8 + [LONG], "valid": [TEXT, LONG], "test": [LONG, TEXT]}
    brain = training(
        recipe, tmp_path, texts, epochs=2, spoken_test=SpokenTest(num_examples=0),
        export=str(tmp_path / "mels"),
    )  # fmt: skip
    caplog.set_level(logging.WARNING)
    brain.fit()
    said = [r.getMessage() for r in caplog.records if "each symbol needs a frame" in r.getMessage()]
    assert len(said) == 2  # once each, in two epochs
    assert "valid: left valid1 out of the loss: 53 frames of 100 samples for 96 symbols" in said[1]
    assert "skipped utterance train8: 57 frames of 100 samples for 96 symbols" in said[0]
    assert "correct the row or remove it" in said[0]
    assert "lower model.features.hop_length" in said[0]
    # A test speaks these texts too.
    brain.test()
    rows = read_rows(tmp_path / "run/test/test/rows.jsonl")
    assert {row["id"] for row in rows} == {"test0", "test1"}
    kept = {split: len(read_manifest(tmp_path / f"mels/{split}.jsonl")) for split in texts}
    assert kept == {"train": 8, "valid": 1, "test": 1}


def test_too_many_short_recordings_stop_it(recipe: Recipe, tmp_path: Path) -> None:
    brain = training(recipe, tmp_path, {"train": [TEXT, LONG, LONG], "test": [TEXT]})
    with pytest.raises(DataError, match=r"of 3 training .*max_bad_share=0.2.*each symbol needs"):
        brain.fit()


def test_what_is_left_is_what_it_is_alone() -> None:
    model = synthesizer()
    texts, sizes = ["bee", LONG, "a cab"], [3000, 5000, 4000]
    items = [
        {
            "id": text, "text": text, "waveform": torch.randn(size), "number": torch.tensor(size),
            "tokens": torch.tensor(model.front_end.encode(text)),
        }
        for text, size in zip(texts, sizes)
    ]  # fmt: skip
    batch = leave_out_short(model, collate(items, epoch=3))
    expected = collate([items[0], items[2]], epoch=3)
    assert (batch.ids, batch.text, batch.epoch) == (expected.ids, expected.text, 3)
    assert torch.equal(batch.number, expected.number)
    for name in ("waveform", "tokens"):
        for found, wanted in zip(batch.fields[name], expected.fields[name]):
            assert torch.equal(found, wanted)
    assert [failure.id for failure in batch.failures] == [LONG]
    assert leave_out_short(model, expected) is expected
    nothing = leave_out_short(model, collate([items[1]]))
    assert len(nothing) == 0
    assert len(nothing.failures) == 1
    assert leave_out_short(model, nothing) is nothing
    # A model with attention learns from all of them.
    model.acoustic = Tacotron2(
        num_symbols=model.front_end.vocab_size, num_mels=MELS, embed_dim=4, encoder_size=4,
        prenet_sizes=(4,), attention_lstm_size=4, decoder_lstm_size=4, postnet_size=4,
    )  # fmt: skip
    assert len(leave_out_short(model, collate(items))) == 3


def test_a_resumed_training_makes_alignments_hard_at_the_same_update(
    recipe: Recipe, tmp_path: Path
) -> None:
    texts = {"train": [TEXT] * 8, "valid": [TEXT], "test": [TEXT]}
    made = []

    class Stopped(recipe("tts").TextToSpeech):  # type: ignore[misc]
        stop_at = -1

        def fit_batches(self, batches: Any) -> None:
            if self.position.step == self.stop_at:
                raise InterruptedError
            super().fit_batches(batches)

    for name, stops in (("whole", [-1]), ("parts", [1, 3, -1])):
        (tmp_path / name).mkdir()
        for stop in stops:
            brain = training(
                recipe, tmp_path / name, texts, epochs=3, brain=Stopped,
                loss=OnePassLoss(binarization_start=3),
            )  # fmt: skip
            brain.stop_at = stop
            if stop < 0:
                brain.fit()
            else:
                with pytest.raises(InterruptedError):
                    brain.fit()
        made.append((brain.model.state_dict(), brain.folder / "metrics.jsonl"))
    assert brain.position.step == 6
    for one, other in zip(*(weights.values() for weights, _ in made)):
        assert torch.equal(one, other)
    logs = [
        [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(path)]
        for _, path in made
    ]
    assert logs[0] == logs[1]
    hard = [row["train/binarization"] for row in logs[0]]
    assert hard[0] == 0.0
    assert 0.0 < hard[1] < hard[2]  # the second epoch has one update with it, of two
    # Validation counts it always: a loss that grew in the middle would choose the wrong epoch.
    assert all(row["valid/binarization"] > 0.05 for row in logs[0])


def test_the_voice_of_a_test_is_that_of_another_recording(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    model = synthesizer(voices=ReferenceVoice(encoder=encoder(), sample_rate=RATE))
    texts = {"train": [TEXT] * 2, "test": [TEXT] * 4}
    brain = training(recipe, tmp_path, texts, model=model, speakers="aba")
    asked: list[Tensor] = []
    generate = model.generate

    def watched(tokens: Tensor, sizes: Tensor, *, speaker: Tensor, **options: Any) -> Any:
        asked.extend(speaker)
        return generate(tokens, sizes, speaker=speaker, **options)

    model.generate = watched  # type: ignore[method-assign]
    caplog.set_level(logging.INFO)
    brain.test()
    rows = read_rows(tmp_path / "run/test/test/rows.jsonl")
    # a: test0, test2, test3; b: test1 alone.
    wanted = {"test0": "test2", "test2": "test3", "test3": "test0", "test1": "test1"}
    assert {row["id"]: row["voice_of"] for row in rows} == wanted
    copies = read_rows(tmp_path / "run/test/test@copy-synthesis/rows.jsonl")
    assert not any("voice_of" in row for row in copies)
    assert "test: 3 texts are spoken in the voice of another recording" in caplog.text
    assert "test: 1 texts are spoken in the voice of their own recording" in caplog.text
    assert "0.5 s at least: test1" in caplog.text
    assert len(asked) == 4
    for name in wanted.values():
        voice = model.voices.vector(tmp_path / f"{name}.wav")[0]  # type: ignore[union-attr,operator]
        near = [float((vector - voice).norm()) < 1e-3 for vector in asked]
        assert sum(near) == 1, name
