"""The synthesizer: text in, speech out; voices, long texts, and what it refuses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import speechkit
from speechkit.data.audio import write_audio
from speechkit.data.errors import DataError
from speechkit.data.text_front_end import TextFrontEnd
from speechkit.features.normalize import GlobalNorm
from speechkit.features.spectrum import LogMel
from speechkit.models.one_pass_tts import OnePassTTS
from speechkit.models.sentences import split_sentences
from speechkit.models.speaker import SpeakerEncoder
from speechkit.models.synthesizer import Synthesizer
from speechkit.models.tacotron2 import Tacotron2
from speechkit.models.vocoder import GriffinLim
from speechkit.models.voices import ReferenceVoice, VoiceTable
from speechkit.nn.convnext import ConvNeXtEncoder
from speechkit.nn.pooling import EmbeddingLayer, StatisticsPooling
from speechkit.nn.xvector import XVectorEncoder

MELS = 16
RATE = 8000


def front_end() -> TextFrontEnd:
    return TextFrontEnd.from_texts(["The quick brown fox, jumps over; the lazy dog. Really? Yes!"])


def features(**settings: Any) -> LogMel:
    sizes = {"n_fft": 256, "hop_length": 100, "num_mels": MELS, "floor": 1e-4}
    return LogMel(sample_rate=RATE, **{**sizes, **settings})


def one_pass(num_symbols: int, speaker_size: int | None) -> OnePassTTS:
    sizes = {"input_size": 8, "embed_dim": 8, "num_layers": 1, "hidden_size": 8}
    return OnePassTTS(
        num_symbols=num_symbols, num_mels=MELS, speaker_size=speaker_size, predictor_size=8,
        encoder=ConvNeXtEncoder(**sizes), decoder=ConvNeXtEncoder(**sizes),
    )  # fmt: skip


def tacotron(num_symbols: int, speaker_size: int | None) -> Tacotron2:
    return Tacotron2(
        num_symbols=num_symbols, num_mels=MELS, speaker_size=speaker_size, reduction_factor=2,
        embed_dim=8, encoder_size=8, encoder_convs=1, prenet_sizes=(8, 8), attention_size=8,
        location_channels=2, location_kernel=5, attention_lstm_size=8, decoder_lstm_size=8,
        postnet_size=8, postnet_convs=2,
    )  # fmt: skip


def speaker_encoder() -> SpeakerEncoder:
    return SpeakerEncoder(
        features=LogMel(sample_rate=16000, num_mels=12),
        encoder=XVectorEncoder(input_size=12, channels=(8,), kernel_sizes=(3,), dilations=(1,)),
        pooling=StatisticsPooling(input_size=8),
        projection=EmbeddingLayer(input_size=16, embed_dim=6),
    )


def synthesizer(kind: str = "one_pass", voices: Any = None) -> Synthesizer:
    torch.manual_seed(0)
    text = front_end()
    made = {"one_pass": one_pass, "tacotron": tacotron}[kind]
    size = None if voices is None else voices.output_size
    return Synthesizer(
        front_end=text, acoustic=made(text.vocab_size, size), features=features(), voices=voices,
        norm=GlobalNorm(num_features=MELS),
    ).eval()  # fmt: skip


TEXT = "The quick brown fox jumps. Really? Yes, the lazy dog."


@pytest.mark.parametrize("kind", ["one_pass", "tacotron"])
def test_a_text_is_spoken_sentence_by_sentence(kind: str) -> None:
    model = synthesizer(kind)
    options: dict[str, Any] = {"max_frames": 40}
    speech = model.synthesize(TEXT, pause=0.5, **options)
    assert [s.text for s in speech.sentences] == split_sentences(TEXT)
    assert speech.sample_rate == RATE
    parts = [len(s.waveform) for s in speech.sentences]
    assert len(speech.waveform) == sum(parts) + 2 * RATE // 2
    alone = model.synthesize("Really?", **options)
    assert torch.equal(alone.waveform, speech.sentences[1].waveform)
    assert torch.isfinite(speech.waveform).all()
    for sentence in speech.sentences:
        assert sentence.alignment.shape[1] == len(sentence.pieces)
        assert torch.allclose(sentence.alignment.sum(1), torch.ones(len(sentence.alignment)))
        assert len(sentence.waveform) == len(sentence.mel) * 100
    assert speech.mel.shape[0] == sum(len(s.mel) for s in speech.sentences)
    assert speech.alignment.shape[1] == sum(len(s.pieces) for s in speech.sentences)
    if not speech.stopped:
        assert any("cut" in problem for problem in speech.problems)


def test_sentences_come_one_by_one() -> None:
    model = synthesizer()
    stream = model.stream(TEXT)
    first = next(iter(stream))
    assert torch.equal(first.waveform, model.synthesize(TEXT).sentences[0].waveform)


@pytest.mark.parametrize("kind", ["one_pass", "tacotron"])
def test_speed(kind: str) -> None:
    model = synthesizer(kind)
    if isinstance(model.acoustic, OnePassTTS):
        last = model.acoustic.predictors["duration"]
        for name, parameter in last.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.constant_(parameter, 1.5)  # some frames a symbol
    options: dict[str, Any] = {"max_frames": 2000 if kind == "one_pass" else 40}
    sizes = [len(model.synthesize(TEXT, speed=s, **options).mel) for s in (0.5, 1.0, 2.0)]
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2]
    for wrong in (0.0, 9.0):
        with pytest.raises(ValueError, match="speed must be from"):
            model.synthesize(TEXT, speed=wrong)


def test_a_table_of_voices() -> None:
    model = synthesizer(voices=VoiceTable(names=["ann", "bob"], output_size=4))
    ann, bob = (model.synthesize("Really?", voice=name) for name in ("ann", "bob"))
    assert not torch.equal(ann.mel[:5], bob.mel[:5])
    with pytest.raises(DataError, match="2 voices: name one of ann, bob"):
        model.synthesize("Really?")
    with pytest.raises(DataError, match=r"'bo' is none of the model's 2 voices.*bob"):
        model.synthesize("Really?", voice="bo")
    with pytest.raises(DataError, match="does not take the voice of a recording: its voices are"):
        model.synthesize("Really?", reference=torch.randn(RATE), sample_rate=RATE)


def test_the_voice_of_a_recording(tmp_path: Path) -> None:
    voices = ReferenceVoice(encoder=speaker_encoder(), sample_rate=RATE)
    model = synthesizer(voices=voices)
    noise = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    low = torch.nn.functional.avg_pool1d(noise[:1], 8, 1)[0]
    write_audio(tmp_path / "a.wav", noise[1], RATE)
    one = model.synthesize("Really?", reference=tmp_path / "a.wav")
    other = model.synthesize("Really?", reference=low, sample_rate=RATE)
    assert one.mel[:5].shape == other.mel[:5].shape
    assert not torch.equal(one.mel[:5], other.mel[:5])
    with pytest.raises(DataError, match="silence"):
        model.synthesize("Really?", reference=torch.zeros(RATE), sample_rate=RATE)
    with pytest.raises(DataError, match="too short"):
        model.synthesize("Really?", reference=noise[0, :800], sample_rate=RATE)
    with pytest.raises(DataError, match="give reference"):
        model.synthesize("Really?")
    with pytest.raises(DataError, match="no voice 'ann': give reference"):
        model.synthesize("Really?", voice="ann")


def test_the_encoder_of_voices_does_not_learn(tmp_path: Path) -> None:
    model = synthesizer(voices=ReferenceVoice(encoder=speaker_encoder(), sample_rate=RATE)).train()
    assert not model.voices.encoder.training  # type: ignore[union-attr]
    assert not any(p.requires_grad for p in model.voices.parameters())  # type: ignore[union-attr]
    folder = tmp_path / "encoder"
    speechkit.save(speaker_encoder(), folder)
    assert ReferenceVoice.from_folder(folder, RATE).output_size == 6
    speechkit.save(torch.nn.PReLU(), folder)
    with pytest.raises(DataError, match="holds a PReLU, which knows no voices"):
        ReferenceVoice.from_folder(folder, RATE)


def test_a_model_folder_speaks_the_same(tmp_path: Path) -> None:
    for number, voices in enumerate(
        (None, VoiceTable(names=["ann"], output_size=4),
         ReferenceVoice(encoder=speaker_encoder(), sample_rate=RATE))
    ):  # fmt: skip
        model = synthesizer(voices=voices)
        folder = tmp_path / str(number)
        speechkit.save(model, folder)
        there: Any = speechkit.load(folder)
        options: dict[str, Any] = {}
        if number == 2:
            options = {"reference": torch.randn(RATE), "sample_rate": RATE}
        spoken = [m.synthesize("Really?", **options).waveform for m in (model, there)]
        assert torch.equal(*spoken)


def test_vocoders_of_other_mels_are_refused() -> None:
    model = synthesizer()
    own = model.synthesize("Really?", vocoder=GriffinLim(features=features()))
    assert torch.equal(own.waveform, model.synthesize("Really?").waveform)
    with pytest.raises(ValueError, match="floor"):
        model.synthesize("Really?", vocoder=GriffinLim(features=features(floor=1e-5)))
    with pytest.raises(ValueError, match="hop_length"):
        Synthesizer(
            front_end=model.front_end, acoustic=model.acoustic, features=model.features,
            vocoder=GriffinLim(features=features(hop_length=80)),
        )  # fmt: skip


@pytest.mark.parametrize("text", ["", "  \n", "... !!", "—"])
def test_nothing_to_speak(text: str) -> None:
    with pytest.raises(DataError, match="nothing to speak"):
        synthesizer().synthesize(text)


@pytest.mark.parametrize("text", ["Really 🙂 yes?", "Yes! Привет."])
def test_other_scripts_are_named_before_anything_is_spoken(text: str) -> None:
    with pytest.raises(DataError, match=r"U\+(1F642|041F|043F)"):
        next(iter(synthesizer().stream(text)))


def test_punctuation_that_the_model_never_saw_is_left_out() -> None:
    text = TextFrontEnd.from_texts(["a bee"])
    assert text.encode("A bee!") == text.encode("a bee")
    assert text.pieces("(a) bee...") == text.pieces("a bee")


def test_a_paragraph_of_ten_thousand_characters() -> None:
    model = synthesizer()
    text = ("The quick brown fox jumps over the lazy dog, " * 250)[:10_000]
    speech = model.synthesize(text)
    assert max(len(s.text) for s in speech.sentences) <= 250
    assert "".join(s.text for s in speech.sentences).replace(" ", "") == text.replace(" ", "")


def test_a_word_of_ten_thousand_letters_is_spoken_in_parts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = synthesizer("tacotron")
    spoken: list[int] = []
    whole = model.acoustic.generate

    @functools.wraps(whole)
    def watched(tokens: Tensor, *arguments: Any, **options: Any) -> Any:
        spoken.append(tokens.numel())
        return whole(tokens, *arguments, **options)

    model.acoustic.generate = watched  # type: ignore[method-assign]
    speech = model.synthesize("fox" * 3000 + " jumps.", max_frames=2, pause=0.0)
    assert len(spoken) == len(speech.sentences) == 37
    assert max(spoken) == 251  # the end's symbol is one more
    assert "word of 9000 characters" in caplog.text


@pytest.mark.parametrize("kind", ["one_pass", "tacotron"])
def test_texts_are_pronounced_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = synthesizer(kind)
    read: list[str] = []
    normalize = TextFrontEnd.normalize
    monkeypatch.setattr(
        TextFrontEnd, "normalize", lambda self, text: [read.append(text), normalize(self, text)][1]
    )
    speech = model.synthesize(TEXT, max_frames=4)
    assert read == [sentence.text for sentence in speech.sentences]
    for sentence in speech.sentences:
        assert list(sentence.pieces) == model.front_end.pieces(sentence.text)


def test_parts_must_agree() -> None:
    text = front_end()
    with pytest.raises(ValueError, match="has 5 symbols, the front end"):
        Synthesizer(front_end=text, acoustic=one_pass(5, None), features=features())
    with pytest.raises(ValueError, match="makes 16 mels, features 20"):
        Synthesizer(
            front_end=text, acoustic=one_pass(text.vocab_size, None), features=features(num_mels=20)
        )
    with pytest.raises(ValueError, match=r"speaker_size of the acoustic model is 3.*none"):
        Synthesizer(front_end=text, acoustic=one_pass(text.vocab_size, 3), features=features())
    with pytest.raises(ValueError, match="has no option colour of synthesis"):
        synthesizer().synthesize("Really?", colour=1)


def test_forward_is_what_items_alone_give() -> None:
    model = synthesizer("tacotron", VoiceTable(names=["ann", "bob"], output_size=4))
    tokens = [torch.tensor(model.front_end.encode(t)) for t in ("Yes", "The lazy dog")]
    waves = [torch.randn(2400), torch.randn(4000)]
    ids = torch.tensor([1, 0])

    def padded(items: list[Tensor]) -> tuple[Tensor, Tensor]:
        sizes = torch.tensor([len(item) for item in items])
        return torch.nn.utils.rnn.pad_sequence(items, batch_first=True), sizes

    together = model(*padded(tokens), *padded(waves), ids)
    alone = model(*padded(tokens[:1]), *padded(waves[:1]), ids[:1])
    frames = int(alone.mels.lengths[0])
    assert torch.allclose(together.mels.data[0, :frames], alone.mels.data[0], atol=1e-5)
    with pytest.raises(ValueError, match="give voice_ids"):
        model(*padded(tokens), *padded(waves))


def test_the_folder_says_how_to_speak(tmp_path: Path) -> None:
    speechkit.save(synthesizer(), tmp_path / "model")
    assert 'model.synthesize("Some words.")' in (tmp_path / "model/README.md").read_text()
