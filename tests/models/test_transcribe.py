"""Transcribing files and tensors, short and long."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError
from speechkit.data.tokenizer import CharTokenizer
from speechkit.decoding.ctc import greedy
from speechkit.models.transcribe import Transcriber
from speechkit.models.transcript import Word
from speechkit.models.windows import SILENCE_DBFS

RATE = 8000
STRIDE = 200
FRAME = STRIDE / RATE
LETTERS = "abcdefgh"


class Output(NamedTuple):
    log_probs: Tensor
    lengths: Tensor


class ToneReader(Transcriber, nn.Module):
    """Hears the letter i in a tone of amplitude (i + 1) / 10, a space at amplitude 0.9.

    A frame sees `context` frames on either side, zeros beyond the audio, and answers from the
    median of them all.
    """

    def __init__(self, context: int = 2) -> None:
        super().__init__()
        self.tokenizer = CharTokenizer(symbols=[*LETTERS, " "])
        self.sample_rate = RATE
        self.context = context
        self.weight = nn.Parameter(torch.ones(1))
        self.calls: list[int] = []

    def num_frames(self, lengths: Tensor) -> Tensor:
        return torch.div(lengths + STRIDE - 1, STRIDE, rounding_mode="floor")

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Output:
        self.calls.append(waveforms.shape[1])
        T = waveforms.shape[1]
        mask = torch.arange(T)[None] < lengths[:, None]
        x = torch.where(mask, waveforms, torch.zeros(()))
        x = nn.functional.pad(x, (0, -T % STRIDE))
        mean = x.unflatten(1, (-1, STRIDE)).abs().mean(-1)
        padded = nn.functional.pad(mean, (self.context, self.context))
        level = padded.unfold(1, 2 * self.context + 1, 1).median(-1).values
        targets = torch.arange(self.tokenizer.vocab_size) / 10
        logits = -100 * (level[..., None] - targets).abs() * self.weight
        return Output(logits.log_softmax(-1), self.num_frames(lengths))


def say(text: str, frames: int = 20) -> Tensor:
    """Make the audio of a text: each character for 20 frames (half a second), then as much rest."""
    parts = []
    for character in text:
        level = 0.9 if character == " " else (LETTERS.index(character) + 1) / 10
        parts += [torch.full((frames * STRIDE,), level), torch.zeros(frames * STRIDE)]
    return torch.cat(parts)


@pytest.fixture
def model() -> ToneReader:
    return ToneReader()


def test_words_have_times_and_confidence(model: ToneReader) -> None:
    transcript = model.transcribe(say("ab c"), RATE)
    assert transcript.text == "ab c"
    assert transcript.duration == 4.0
    first, second = transcript.words
    assert (first.text, second.text) == ("ab", "c")
    assert first.start == pytest.approx(0.0, abs=FRAME)
    assert first.end == pytest.approx(1.5, abs=FRAME)
    assert second.start == pytest.approx(3.0, abs=FRAME)
    assert second.end == pytest.approx(3.5, abs=FRAME)
    assert 0.9 < first.confidence <= 1.0
    assert transcript.to_dict()["words"][1]["text"] == "c"


def test_confidence_is_the_geometric_mean_of_the_pieces(model: ToneReader) -> None:
    sure, unsure = say("a"), say("b")
    unsure[: 20 * STRIDE] = 0.21
    word = model.transcribe(torch.cat([sure, unsure]), RATE).words[0]
    single = [model.transcribe(x, RATE).words[0].confidence for x in (sure, unsure)]
    assert word.confidence == pytest.approx(math.sqrt(single[0] * single[1]), rel=1e-5)
    assert single[1] < single[0]


@pytest.mark.parametrize("search", [None, greedy, lambda x, n: [[h] for h in greedy(x, n)]])
@pytest.mark.parametrize("window", [3.0, 7.3, 11.05])
def test_windows_give_what_the_whole_gives(model: ToneReader, window: float, search) -> None:
    audio = say("abc de fgh ab ca ged bach fade")
    whole = model.transcribe(audio, RATE, window=1000.0, search=search)
    model.calls.clear()
    cut = model.transcribe(audio, RATE, window=window, overlap=1.0, batch_size=2, search=search)
    assert len(model.calls) > 1
    assert max(model.calls) <= window * RATE + STRIDE
    assert cut.text == whole.text == "abc de fgh ab ca ged bach fade"
    assert cut.duration == whole.duration
    for a, b in zip(cut.words, whole.words):
        assert isinstance(a, Word)
        assert a.text == b.text
        assert a[1:] == pytest.approx(b[1:], abs=1e-5)


def test_every_length_around_a_window_is_whole(model: ToneReader) -> None:
    audio = say("abcdefgh")
    for extra in (-STRIDE - 1, -1, 0, 1, STRIDE - 1, STRIDE, 3 * STRIDE + 7):
        piece = audio[: 4 * RATE + extra]
        whole = model.transcribe(piece, RATE, window=100.0)
        cut = model.transcribe(piece, RATE, window=2.0, overlap=0.5)
        assert cut.text == whole.text
        assert cut.duration == whole.duration == pytest.approx(len(piece) / RATE)


def test_a_list_gives_what_singles_give(model: ToneReader, tmp_path: Path) -> None:
    write_audio(tmp_path / "x.wav", say("cab"), RATE)
    sources = [say("ab"), tmp_path / "x.wav", say("abc de fgh abc"), torch.zeros(0), say("h")]
    several = model.transcribe(sources, RATE, window=4.0, overlap=1.0, batch_size=3)
    singles = [model.transcribe(s, RATE, window=4.0, overlap=1.0) for s in sources]
    assert [t.text for t in several] == ["ab", "cab", "abc de fgh abc", "", "h"]
    for a, b in zip(several, singles):
        assert (a.text, a.duration) == (b.text, b.duration)
        for x, y in zip(a.words, b.words):
            assert x[1:] == pytest.approx(y[1:], abs=1e-4)
    assert model.transcribe([], RATE) == []


def test_other_rates_and_channels_are_converted(model: ToneReader, tmp_path: Path) -> None:
    audio = say("ba fa")
    double = audio.repeat_interleave(2)
    stereo = torch.stack([audio * 1.5, audio * 0.5]) / 2
    write_audio(tmp_path / "stereo.flac", torch.stack([double, double]), 2 * RATE)
    assert model.transcribe(double, 2 * RATE).text == "ba fa"
    assert model.transcribe(stereo * 2, RATE).text == "ba fa"
    assert model.transcribe((audio * 32767).round().short(), RATE).text == "ba fa"
    assert model.transcribe(audio.numpy(), RATE).text == "ba fa"
    assert model.transcribe(tmp_path / "stereo.flac").text == "ba fa"
    assert model.transcribe(str(tmp_path / "stereo.flac"), 4000).text == "ba fa"  # the file's own
    times = model.transcribe(say("dad").repeat_interleave(2), 2 * RATE).words[0]
    assert times.end == pytest.approx(2.5, abs=2 * FRAME)


def test_silence_has_no_words(model: ToneReader) -> None:
    model.weight.data.neg_()  # a model that shouts when nothing is heard
    assert model.transcribe(torch.zeros(3 * RATE), RATE).text == ""
    faint = 10 ** ((SILENCE_DBFS - 3) / 20)
    assert model.transcribe(torch.full((RATE,), faint), RATE).words == []
    assert not model.calls
    model.transcribe(torch.full((RATE,), faint * 2), RATE)
    assert model.calls


def test_a_click_in_the_last_samples_is_no_silence(model: ToneReader) -> None:
    audio = torch.zeros(RATE + 50)
    audio[-10:] = 0.5
    model.transcribe(audio, RATE)
    assert model.calls


def test_silent_windows_between_words_keep_words_apart(model: ToneReader) -> None:
    audio = torch.cat([say("ab"), torch.zeros(12 * RATE), say("c")])
    transcript = model.transcribe(audio, RATE, window=4.0, overlap=1.0)
    assert transcript.text == "ab c"
    assert transcript.words[1].start == pytest.approx(14.0, abs=FRAME)


def test_nothing_to_hear(model: ToneReader) -> None:
    assert model.transcribe(torch.zeros(0), RATE) == ("", [], 0.0)
    assert model.transcribe(torch.zeros(2, 0), RATE).duration == 0.0
    assert model.transcribe(torch.full((3,), 0.5), RATE).duration == 3 / RATE


def test_the_mode_is_left_as_it_was(model: ToneReader) -> None:
    seen = []
    model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    model.train()
    model.transcribe(say("a"), RATE)
    assert model.training
    assert seen == [False]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_an_error(model: ToneReader, value: float) -> None:
    audio = say("ab")
    audio[5000] = value
    with pytest.raises(DataError, match=r"item 1 of the list.*NaN or infinite"):
        model.transcribe([say("a"), audio], RATE)
    assert model.training


def test_a_tensor_needs_its_rate(model: ToneReader) -> None:
    with pytest.raises(ValueError, match=r"sample_rate=.*8000"):
        model.transcribe(say("a"))
    with pytest.raises(
        TypeError, match=r"item 1 of the list: expected a path or a tensor, got int"
    ):
        model.transcribe([say("a"), 16000], RATE)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="transpose"):
        model.transcribe(torch.zeros(RATE, 2), RATE)


def test_bad_files_are_named_before_any_work(model: ToneReader, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("these are not samples, but they are long enough to read")
    for name in ("missing.wav", "notes.wav"):
        with pytest.raises(DataError, match=name):
            model.transcribe([say("a"), tmp_path / name], RATE)
    assert not model.calls


@pytest.mark.parametrize(
    "options", [{"window": 2.0, "overlap": 2.0}, {"overlap": -1.0}, {"batch_size": 0}]
)
def test_windows_that_make_no_sense(model: ToneReader, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="the overlap must be shorter than the window"):
        model.transcribe(say("a"), RATE, **options)


def test_a_model_that_eats_frames_needs_an_overlap(model: ToneReader) -> None:
    eats = model.num_frames
    model.num_frames = lambda n: (eats(n) - 8).clamp(min=0)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"overlap=0.1 s is too short"):
        model.transcribe(say("a"), RATE, overlap=0.1)


def test_sentencepiece_marks_begin_words() -> None:
    class Pieces:
        pieces = ("<blank>", "\u2581he", "llo", "\u2581", "w", "orld")
        vocab_size = 6

        def decode(self, ids: list[int]) -> str:
            return "".join(self.pieces[i] for i in ids).replace("\u2581", " ").strip()

    class Fixed(ToneReader):
        def forward(self, waveforms: Tensor, lengths: Tensor) -> Output:
            ids = torch.tensor([1, 0, 2, 3, 4, 4, 5, 0])
            log_probs = nn.functional.one_hot(ids, 6).float().mul(20).log_softmax(-1)
            return Output(log_probs[None], torch.tensor([8]))

    model = Fixed()
    model.tokenizer = Pieces()  # type: ignore[assignment]
    transcript = model.transcribe(torch.full((8 * STRIDE,), 0.5), RATE)
    assert transcript.text == "hello world"
    assert transcript.words[0].end == pytest.approx(3 * FRAME)
    assert transcript.words[1].start == pytest.approx(4 * FRAME)


def test_a_recogniser_of_the_toolkit_transcribes() -> None:
    from speechkit.features.spectrum import LogMel
    from speechkit.models.asr import CTCRecognizer
    from speechkit.nn.conv import ConvSubsampling

    torch.manual_seed(0)
    features = LogMel(sample_rate=RATE, n_fft=256, hop_length=80, win_length=200, num_mels=16)
    encoder = ConvSubsampling(
        input_size=16, channels=(4, 4), strides=(2, 2), kernel_size=3, output_size=8
    )
    model = CTCRecognizer(
        features=features,
        encoder=encoder,
        tokenizer=CharTokenizer(symbols=[*LETTERS, " "]),
        sample_rate=RATE,
    )
    audio = torch.randn(9 * RATE + 123) / 10
    whole = model.transcribe(audio, RATE, window=60.0)
    cut = model.transcribe(audio, RATE, window=3.0, overlap=0.8)
    assert whole.text
    assert cut.text == whole.text
    for a, b in zip(cut.words, whole.words):
        assert a[1:] == pytest.approx(b[1:], abs=1e-3)
    assert model.transcribe([audio, audio[:RATE]], RATE)[0].text == whole.text


HOUR = """
import resource, sys, time
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
from test_transcribe import ToneReader, say
model = ToneReader()
model.transcribe({short!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
transcript = model.transcribe({long!r})
growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(len(transcript.words), transcript.duration, growth, time.process_time() - start)
"""


def test_an_hour_goes_through_at_flat_memory(tmp_path: Path) -> None:
    import soundfile

    minute = (torch.cat([say("abc "), torch.zeros(56 * RATE)]).numpy() * 32767).astype(np.int16)
    for name, minutes in (("short.wav", 1), ("long.wav", 60)):
        with soundfile.SoundFile(tmp_path / name, "w", RATE, 1, subtype="PCM_16") as file:
            for _ in range(minutes):
                file.write(minute + 1)  # no digital silence, which would spare the model the work
    script = HOUR.format(
        folder=str(Path(__file__).parent),
        short=str(tmp_path / "short.wav"),
        long=str(tmp_path / "long.wav"),
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    words, duration, growth_mib, seconds = map(float, done.stdout.split())
    assert (words, duration) == (60, 3600.0)
    assert growth_mib < 40, f"memory grew by {growth_mib:.0f} MiB"  # the hour itself is 110 MiB
    assert seconds < 20
