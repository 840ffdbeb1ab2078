"""A recogniser that listens: words are those of the whole recording, before it has ended."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from speechkit.data.audio import resample
from speechkit.data.manifest import DataError
from speechkit.data.tokenizer import CharTokenizer
from speechkit.features.normalize import GlobalNorm, UtteranceNorm
from speechkit.features.spectrum import LogMel
from speechkit.models.asr import CTCRecognizer
from speechkit.models.streaming import StreamingTranscriber, StreamUpdate, _WordCollector
from speechkit.models.transcribe import Transcript
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.conv import ConvSubsampling
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack
from speechkit.nn.transformer import TransformerEncoder

RATE = 8000
_CHUNKS: dict[str, Any] = {"chunk_size": 4, "left_chunks": 3}
_SIZES: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "num_layers": 2, "feedforward_size": 32}


def _encoder(name: str) -> nn.Module:
    layers: dict[str, Any] = {
        "conformer": lambda: ConformerEncoder(input_size=16, causal=True, kernel_size=5, **_CHUNKS,
                                              **_SIZES),
        "transformer": lambda: TransformerEncoder(input_size=16, **_CHUNKS, **_SIZES),
        "lstm": lambda: RecurrentEncoder(input_size=16, hidden_size=16, num_layers=2,
                                         bidirectional=False),
    }  # fmt: skip
    front = ConvSubsampling(input_size=20, channels=(4, 4), strides=(2, 1), output_size=16)
    encoder = Stack([front, layers[name]()])
    for parameter_name, parameter in encoder.named_parameters():
        if "bias_ih" in parameter_name:  # an LSTM that forgets, so that its labels change
            nn.init.constant_(parameter, -0.5)
    return encoder


def _audio(seconds: float = 3.0) -> Tensor:
    """Syllables of noise and of tones, loud and quiet."""
    generator = torch.Generator().manual_seed(1)
    count = int(seconds * 12)
    size = int(seconds * RATE) // count
    time = torch.arange(size) / RATE
    parts = []
    for index in range(count):
        tone = torch.sin(2 * torch.pi * (150 + 411 * (index % 7)) * time)
        noise = torch.randn(size, generator=generator)
        parts.append((0.3, 0.02, 0.1)[index % 3] * (tone + 0.5 * (index % 2) * noise))
    return torch.cat(parts)


def _model(name: str, **changes: Any) -> CTCRecognizer:
    torch.manual_seed(5 if name == "lstm" else 7)  # models that say something
    arguments: dict[str, Any] = {
        "features": LogMel(sample_rate=RATE, n_fft=200, hop_length=80, num_mels=20),
        "normalize": GlobalNorm(num_features=20),
        "encoder": _encoder(name),
        "tokenizer": CharTokenizer(symbols=["a", "b", " "]),
        "sample_rate": RATE,
        **changes,
    }
    model = CTCRecognizer(**arguments)
    x = _audio()[None]
    with torch.no_grad():  # labels that change with the sound: each likeliest as often
        model(x, torch.tensor([x.shape[1]]))
        model.eval()
        model.head.weight.mul_(4)
        logits = model.encode(x, torch.tensor([x.shape[1]])).data[0] @ model.head.weight.T
        model.head.bias.copy_(-logits.mean(dim=0))
    return model


MODELS = {name: _model(name) for name in ("conformer", "transformer", "lstm")}


def _listen(
    model: nn.Module, audio: Tensor, cuts: list[int], **options: Any
) -> tuple[list[StreamUpdate], Transcript]:
    stream = StreamingTranscriber(model, **options)
    places = [0, *sorted(cuts), len(audio)]
    updates = [stream.push(audio[a:b]) for a, b in itertools.pairwise(places)]
    return updates, stream.finish()


def _assert_same(found: Transcript, expected: Any) -> None:
    assert found.text == expected.text
    assert found.duration == expected.duration
    for mine, word in zip(found.words, expected.words, strict=True):
        assert mine.text == word.text
        assert mine[1:] == pytest.approx(word[1:], abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8)
@given(data=st.data())
def test_words_and_times_are_those_of_transcribe(name: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(RATE // 10, 3 * RATE), label="samples")
    cuts = data.draw(st.lists(st.integers(0, size), max_size=12), label="cuts")
    audio = _audio()[:size]
    updates, transcript = _listen(MODELS[name], audio, cuts)
    _assert_same(transcript, MODELS[name].transcribe(audio, RATE))
    early = [word for update in updates for word in update.words]
    assert transcript.words[: len(early)] == early


@pytest.mark.parametrize("name", MODELS)
def test_words_come_before_the_end_and_stay(name: str) -> None:
    audio = _audio()
    whole = MODELS[name].transcribe(audio, RATE)
    assert isinstance(whole, Transcript)
    assert len(whole.words) >= 7, "the test's model says something"
    stream = StreamingTranscriber(MODELS[name])
    half = stream.push(audio[: len(audio) // 2])
    assert len(half.words) >= 3
    assert stream.words == half.words
    due = [
        w for w, after in zip(whole.words, whole.words[1:]) if after.start + stream.latency < 1.5
    ]
    assert len(half.words) >= len(due), "no word waits longer than the stated latency"
    assert whole.words[len(half.words)].text.startswith(half.partial)
    for rest in (torch.zeros(4000), 0.5 * torch.randn(9000)):  # whatever follows
        other = torch.cat([audio[: len(audio) // 2], rest])
        words = _listen(MODELS[name], other, [])[1].words[: len(half.words)]
        for word, mine in zip(words, half.words, strict=True):
            assert word.text == mine.text
            assert word[1:] == pytest.approx(mine[1:], abs=1e-4)


def test_latency_is_that_of_the_parts() -> None:
    stream = StreamingTranscriber(MODELS["conformer"])
    # Half a window (100 samples), 1 + 2 frames of 80 of the convolutions, 3 of 160 of the chunk.
    assert stream.latency == pytest.approx((100 + 3 * 80 + 3 * 160) / RATE)
    assert StreamingTranscriber(MODELS["conformer"], sample_rate=16000).latency > stream.latency


def test_another_rate_and_16_bit_samples() -> None:
    audio = _audio(1.5)
    fast = (resample(audio, RATE, 16000).clamp(-1, 1) * 32767).to(torch.int16)
    _, transcript = _listen(MODELS["lstm"], fast, [5000, 5001, 9000], sample_rate=16000)
    _assert_same(transcript, MODELS["lstm"].transcribe(fast, 16000))
    stereo = torch.stack([audio, audio])
    stream = StreamingTranscriber(MODELS["lstm"])
    stream.push(stereo[:, :7000])
    stream.push(stereo[:, 7000:].numpy())
    _assert_same(stream.finish(), MODELS["lstm"].transcribe(audio, RATE))


def test_nothing_heard_says_nothing() -> None:
    stream = StreamingTranscriber(MODELS["lstm"])
    assert stream.push(torch.zeros(0)) == StreamUpdate([], "")
    assert stream.finish() == Transcript("", [], 0.0)


def test_finish_twice_is_the_same_and_a_finished_stream_hears_no_more() -> None:
    stream = StreamingTranscriber(MODELS["lstm"])
    stream.push(_audio(1.0))
    assert stream.finish() == stream.finish()
    with pytest.raises(ValueError, match="stream is finished: open a new one"):
        stream.push(torch.zeros(10))


def test_mode_of_the_model_stays() -> None:
    model = _model("conformer", dropout=0.5)
    expected = model.transcribe(_audio(1.0), RATE)
    model.train()
    _, transcript = _listen(model, _audio(1.0), [3000])
    assert model.training
    assert model.encoder.training
    _assert_same(transcript, expected)


# ---------------------------------------------------------------- words from labels


def _collector(pieces: str | list[str], quiet: float = float("inf")) -> _WordCollector:
    pieces = ["<blank>", *pieces]
    tokenizer = SimpleNamespace(
        pieces=pieces, decode=lambda ids: "".join(pieces[i] for i in ids).replace("▁", " ")
    )
    return _WordCollector(tokenizer, 1.0, quiet)


def _times(collector: _WordCollector) -> list[tuple[str, float, float]]:
    return [word[:3] for word in collector.words]


def test_a_space_ends_a_word_and_a_run_may_reach_across_pieces() -> None:
    collector = _collector("ab ")
    collector.add([0, 1, 1], [-0.5, -0.4, -0.2])
    assert (collector.words, collector.partial()) == ([], "a")
    collector.add([1, 2], [-0.3, -0.1])
    assert collector.partial() == "ab"
    collector.add([3], [-0.1])
    assert _times(collector) == [("ab", 1.0, 5.0)]
    assert collector.words[0].confidence == pytest.approx(torch.tensor(-0.15).exp().item())
    assert collector.partial() == ""
    collector.add([3, 3, 0, 3, 1, 0, 1], [-0.1] * 7)
    assert collector.partial() == "aa"
    collector.end()
    assert _times(collector)[1:] == [("aa", 10.0, 13.0)]


def test_a_mark_begins_the_next_word() -> None:
    collector = _collector(["▁he", "y", "▁you"])
    collector.add([1, 2, 2, 0], [-0.1] * 4)
    assert (_times(collector), collector.partial()) == ([], "hey")
    collector.add([3], [-0.1])
    assert (_times(collector), collector.partial()) == ([("hey", 0.0, 3.0)], "you")
    collector.add([3, 3], [-0.1] * 2)
    collector.end()
    assert _times(collector)[1:] == [("you", 4.0, 7.0)]


def test_a_pause_ends_a_word_where_it_is_asked_to() -> None:
    collector = _collector("ab ", quiet=3)
    collector.add([1, 0, 0], [-0.1] * 3)
    assert collector.words == []
    collector.add([0], [-0.1])
    assert _times(collector) == [("a", 0.0, 1.0)]
    collector.add([0, 0, 0, 2], [-0.1] * 4)
    collector.end()
    assert _times(collector)[1:] == [("b", 7.0, 8.0)]


def test_a_pause_in_seconds_reaches_the_words() -> None:
    audio = torch.cat([_audio(1.0), torch.zeros(2 * RATE)])
    model = _model("lstm")
    with torch.no_grad():  # the blank is likeliest in silence
        model.head.weight[0] = 0
        silence = model.encode(audio[None], torch.tensor([len(audio)])).data[0, -50:]
        model.head.bias[0] = (silence @ model.head.weight.T + model.head.bias)[:, 1:].max() + 0.1
    waits, pauses = StreamingTranscriber(model), StreamingTranscriber(model, pause=0.5)
    assert waits.push(audio).partial != ""
    update = pauses.push(audio)
    assert update.partial == ""
    assert update.words == waits.finish().words
    for pause in (0.0, -1.0):
        with pytest.raises(ValueError, match="pause must be above 0 s"):
            StreamingTranscriber(model, pause=pause)


def test_words_of_silence_take_no_memory() -> None:
    collector = _collector("ab ")
    for _ in range(300):
        collector.add([0, 1, 3, 0, 0, 0], [-0.1] * 6)
    assert len(collector._tokens) == 1
    assert len(collector.words) == 300


# ---------------------------------------------------------------- what is refused


def test_models_that_cannot_stream_say_what_to_train() -> None:
    with pytest.raises(ValueError, match="GlobalNorm"):
        StreamingTranscriber(_model("lstm", normalize=UtteranceNorm()))
    both_ways = RecurrentEncoder(input_size=20, hidden_size=8, num_layers=1)
    with pytest.raises(ValueError, match="bidirectional=False"):
        StreamingTranscriber(_model("lstm", encoder=both_ways))
    everything = TransformerEncoder(input_size=20, **_SIZES)
    with pytest.raises(ValueError, match="train one with chunk_size"):
        StreamingTranscriber(_model("lstm", encoder=everything))
    with pytest.raises(ValueError, match=r"Linear has no features, .*a CTC head"):
        StreamingTranscriber(nn.Linear(2, 2))


def test_samples_that_are_none() -> None:
    stream = StreamingTranscriber(MODELS["lstm"])
    with pytest.raises(DataError, match="finite"):
        stream.push(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="floats in"):
        stream.push(torch.zeros(10, dtype=torch.int64))
    with pytest.raises(ValueError, match="sample_rate must be above 0 Hz: -1"):
        StreamingTranscriber(MODELS["lstm"], sample_rate=-1)
