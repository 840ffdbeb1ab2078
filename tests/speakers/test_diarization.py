"""Diarization of toy voices, whose pitch is who they are: turns, overlap, one voice, silence."""

from __future__ import annotations

import itertools

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.errors import DataError
from speechkit.metrics.diarization import Turn, diarization_errors
from speechkit.speakers.diarization import Diarizer
from speechkit.speakers.rttm import read_rttm

RATE = 8000
PITCHES = {"a": 300.0, "b": 900.0, "c": 2100.0}
BANDS = 16


def embed(waveforms: list[torch.Tensor]) -> torch.Tensor:
    """Power in bands of equal width, so that the longer of two voices decides, and some noise.

    As with real models, two windows of a voice are alike but not the same.
    """
    rows = []
    for x in waveforms:
        power = torch.fft.rfft(x).abs().square()
        edges = torch.linspace(0, len(power), BANDS + 1).long().tolist()
        bands = torch.stack([power[i:j].sum() for i, j in itertools.pairwise(edges)])
        generator = torch.Generator().manual_seed(int(1e9 * x.double().abs().mean()))
        noise = torch.randn(BANDS, generator=generator) / BANDS**0.5
        rows.append(bands / bands.norm().clamp_min(1e-6) + 0.5 * noise)
    return torch.stack(rows)


def sound(reference: list[Turn], seconds: float, seed: int = 0) -> torch.Tensor:
    """Tones with noise of their own; silence between."""
    generator = torch.Generator().manual_seed(seed)
    waveform = torch.zeros(int(seconds * RATE))
    for turn in reference:
        first, last = int(turn.start * RATE), int(turn.end * RATE)
        time = torch.arange(first, last) / RATE
        tone = torch.sin(2 * torch.pi * PITCHES[turn.speaker] * time)
        waveform[first:last] += 0.2 * tone + 0.05 * torch.randn(last - first, generator=generator)
    return waveform


def talk(order: str, *, pause: float = 0.0, length: float = 4.0) -> tuple[list[Turn], float]:
    turns, time = [], pause
    for number, name in enumerate(order):
        turns.append(Turn(time, time + length + number % 3, name))
        time = turns[-1].end + pause
    return turns, time


@pytest.mark.parametrize("pause", [0.0, 1.0])
@pytest.mark.parametrize("order", ["abababab", "abcacbabc"])
def test_finds_the_turns(order, pause):
    reference, seconds = talk(order, pause=pause)
    found = Diarizer(embed, sample_rate=RATE)(sound(reference, seconds))
    assert found.speakers == [f"speaker_{n + 1}" for n in range(len(set(order)))]
    assert found.embeddings.shape == (len(found.speakers), BANDS)
    assert found.turns == sorted(found.turns)
    # Borders are found to within half a hop: a fraction of turns of several seconds.
    assert diarization_errors(reference, found.turns, regions=[(0, seconds)]).rate < 8
    assert diarization_errors(reference, found.turns, collar=0.5).rate < 1


def test_one_voice_is_one_speaker():
    reference, seconds = talk("aaaaaaaa", pause=0.5)
    found = Diarizer(embed, sample_rate=RATE)(sound(reference, seconds))
    assert found.speakers == ["speaker_1"]
    assert diarization_errors(reference, found.turns, collar=0.25).rate < 1
    short = Diarizer(embed, sample_rate=RATE)(sound([Turn(0, 1, "a")], 1.0))
    assert short.turns == [Turn(0.0, 1.0, "speaker_1")]


def test_silence_has_no_turns():
    found = Diarizer(embed, sample_rate=RATE)(torch.zeros(5 * RATE))
    assert (found.turns, found.speakers, len(found.embeddings)) == ([], [], 0)


def both_in(reference):
    """Give the stretches in which two of the reference's turns are, as a detector would."""
    pairs = itertools.combinations(reference, 2)
    common = [(max(a.start, b.start), min(a.end, b.end)) for a, b in pairs]
    return lambda waveform, rate: sorted(span for span in common if span[0] < span[1])


def test_two_at_once_are_both_found_where_overlap_is_known():
    reference = [Turn(0, 12, "a"), Turn(8, 20, "b"), Turn(21, 26, "a")]
    waveform = sound(reference, 26)
    plain = Diarizer(embed, sample_rate=RATE)(waveform, num_speakers=2)
    missed = diarization_errors(reference, plain.turns, collar=0.25)
    assert missed.missed > 3
    assert missed.confusion + missed.false_alarm < 0.5
    knowing = Diarizer(embed, sample_rate=RATE, overlap=both_in(reference))
    for number in (None, 2):
        both = knowing(waveform, num_speakers=number)
        assert len(both.speakers) == 2
        assert diarization_errors(reference, both.turns, collar=0.1).rate < 0.5
    # The overlap's borders are those that were found, to the sample.
    assert both.turns[0] == Turn(0.0, 12.0, "speaker_1")
    assert both.turns[1].start == 8.0


def test_the_voice_of_two_is_no_speaker():
    # By numbers the three mixtures are as much as each of the voices.
    reference = [
        turn
        for start in (0, 16, 32)
        for turn in (Turn(start, start + 9, "a"), Turn(start + 5, start + 14, "b"))
    ]
    waveform = sound(reference, 46)
    assert len(Diarizer(embed, sample_rate=RATE)(waveform).speakers) == 3
    found = Diarizer(embed, sample_rate=RATE, overlap=both_in(reference))(waveform)
    assert len(found.speakers) == 2
    assert diarization_errors(reference, found.turns, collar=0.25).rate < 1


@pytest.mark.parametrize("number", [None, 2])
def test_who_is_never_alone_is_known_by_the_overlap(number):
    reference = [Turn(0, 20, "a"), Turn(6, 12, "c")]
    waveform = sound(reference, 20)
    diarizer = Diarizer(embed, sample_rate=RATE, threshold=0.4, overlap=both_in(reference))
    found = diarizer(waveform, num_speakers=number)
    assert found.turns == [Turn(0.0, 20.0, "speaker_1"), Turn(6.0, 12.0, "speaker_2")]
    # The number alone, without a place for the second voice, cuts the first.
    blind = Diarizer(embed, sample_rate=RATE, threshold=0.4)(waveform, num_speakers=2)
    assert diarization_errors(reference, blind.turns).rate > 10


def test_of_three_the_two_nearest_are_in_the_overlap():
    reference = [Turn(0, 6, "a"), Turn(7, 13, "b"), Turn(14, 22, "c"), Turn(18, 26, "a")]
    found = Diarizer(embed, sample_rate=RATE, overlap=both_in(reference))(
        sound(reference, 26), num_speakers=3
    )
    assert len(found.speakers) == 3
    assert diarization_errors(reference, found.turns, collar=0.25).rate < 1


def test_overlap_everywhere_and_overlap_outside_of_speech():
    reference = [Turn(0, 8, "a"), Turn(0, 8, "c")]
    whole = Diarizer(embed, sample_rate=RATE, overlap=both_in(reference))(sound(reference, 8))
    assert [turn[:2] for turn in whole.turns] == [(0.0, 8.0), (0.0, 8.0)]
    one = Diarizer(embed, sample_rate=RATE, max_speakers=1, overlap=both_in(reference))
    assert one(sound(reference, 8)).turns == [Turn(0.0, 8.0, "speaker_1")]
    late = Diarizer(embed, sample_rate=RATE, overlap=lambda waveform, rate: [(6.0, 8.0)])
    found = late(sound([Turn(0, 4, "a")], 8), regions=[(0.0, 4.0)])
    assert found.turns == [Turn(0.0, 4.0, "speaker_1")]


def test_given_regions_number_and_threshold():
    reference, seconds = talk("abab", pause=1.0)
    waveform = sound(reference, seconds)
    diarizer = Diarizer(embed, sample_rate=RATE)
    regions = [turn[:2] for turn in reference]
    found = diarizer(waveform, num_speakers=2, regions=regions)
    assert diarization_errors(reference, found.turns).rate == pytest.approx(0.0, abs=1e-6)
    assert diarizer(waveform, regions=[]).turns == []
    assert len(diarizer(waveform, num_speakers=3).speakers) == 3
    alike = Diarizer(embed, sample_rate=RATE, threshold=-1.0)
    assert alike(waveform).speakers == ["speaker_1"]


def test_files_and_other_rates_give_the_same(tmp_path):
    reference, seconds = talk("abab", length=3.0)
    waveform = sound(reference, seconds)
    write_audio(tmp_path / "a.wav", torch.stack([waveform, waveform]), RATE, subtype="FLOAT")
    diarizer = Diarizer(embed, sample_rate=RATE)
    want = diarizer(waveform, num_speakers=2).turns
    assert diarizer(tmp_path / "a.wav", num_speakers=2).turns == want
    doubled = torch.nn.functional.interpolate(waveform[None, None], scale_factor=2)[0, 0]
    again = diarizer(doubled, 2 * RATE, num_speakers=2).turns
    assert diarization_errors(want, again).rate < 2


def test_short_stretches_are_widened_and_batches_bounded():
    sizes = []

    def watched(waveforms):
        sizes.extend(len(x) for x in waveforms)
        assert len(waveforms) <= 4
        return embed(waveforms)

    reference = [Turn(0, 0.3, "a"), Turn(1, 6, "b"), Turn(8.8, 9, "a")]
    diarizer = Diarizer(watched, sample_rate=RATE, batch_size=4)
    found = diarizer(sound(reference, 9), regions=[turn[:2] for turn in reference], num_speakers=2)
    assert min(sizes) == RATE // 2
    assert max(sizes) == 1.5 * RATE
    assert [turn.start for turn in found.turns] == [0.0, 1.0, 8.8]
    assert diarization_errors(reference, found.turns).rate == pytest.approx(0.0, abs=1e-6)


def test_bad_numbers_regions_and_models():
    waveform = sound([Turn(0, 3, "a")], 3)
    with pytest.raises(DataError, match="4 windows of speech cannot hold 9"):
        Diarizer(embed, sample_rate=RATE)(waveform, num_speakers=9)
    for regions in ([(2.0, 1.0)], [(0.0, 2.0), (1.0, 3.0)], [(-1.0, 1.0)], [(4.0, 5.0)]):
        with pytest.raises(ValueError, match="regions must be sorted"):
            Diarizer(embed, sample_rate=RATE)(waveform, regions=regions)
    for bad in (lambda x: torch.ones(3), lambda x: [1.0], lambda x: torch.ones(1, 2)):
        with pytest.raises(ValueError, match="windows, not"):
            Diarizer(bad, sample_rate=RATE)(waveform)
    with pytest.raises(ValueError, match="zero or not finite"):
        Diarizer(lambda x: torch.full((len(x), 2), torch.nan), sample_rate=RATE)(waveform)
    for bad in ({"hop": 0.0}, {"hop": 2.0}, {"max_speakers": 0}):
        with pytest.raises(ValueError, match=r"must be|need"):
            Diarizer(embed, sample_rate=RATE, **bad)


def test_energy_finds_most_speech_of_real_conversations(real_data):
    """Voice activity alone: one speaker for all, so that only overlap is missed by rule."""
    folder = real_data / "LibriSpeechMix"
    constant = Diarizer(lambda x: torch.ones(len(x), 2), sample_rate=16000)
    missed = alarms = total = 0.0
    for place in sorted((folder / "rttm").glob("*.rttm"))[:6]:
        ((_, reference),) = read_rttm(place).items()
        found = constant(folder / "flac" / f"{place.stem}.flac")
        merged = [Turn(turn.start, turn.end, "all") for turn in reference]
        errors = diarization_errors(merged, found.turns)
        missed, alarms = missed + errors.missed, alarms + errors.false_alarm
        total += errors.total
    # The reference counts pauses within an utterance as speech; energy does not.
    assert missed < 0.15 * total
    assert alarms < 0.02 * total
