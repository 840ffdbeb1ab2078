"""Mixtures: sums of what they say, at the levels asked for, and the same for any worker count."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.data import mixing
from speechkit.data.audio import read_audio, write_audio
from speechkit.data.loaders import SpeechData
from speechkit.data.manifest import DataError, Utterance, write_manifest
from speechkit.data.mixing import DynamicMixing, LoadSources, active_power
from speechkit.data.randomness import item_generator

RATE = 8000
TONES = {"ann": 500.0, "bob": 900.0, "cy": 1400.0, "dee": 2100.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four speakers, each a tone of their own, long and short utterances, at 16 kHz; and noise."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for speaker, frequency in TONES.items():
        for part, seconds in enumerate((2.5, 0.4)):
            path = folder / f"{speaker}-{part}.wav"
            time = torch.arange(int(seconds * 16000)) / 16000
            write_audio(path, 0.3 * torch.sin(2 * math.pi * frequency * time), 16000)
            rows.append(Utterance(path.stem, str(path), seconds, 16000, speaker=speaker))
    write_manifest(folder / "speech.jsonl", rows)
    write_manifest(folder / "long.jsonl", [row for row in rows if row.duration > 1])
    write_manifest(folder / "short.jsonl", [row for row in rows if row.duration < 1])
    noise = torch.randn(12000, generator=torch.Generator().manual_seed(1)) * 0.1
    write_audio(folder / "noise.wav", noise, RATE)
    response = torch.zeros(800)
    response[[20, 150, 700]] = torch.tensor([-0.8, 0.4, 0.2])
    write_audio(folder / "room.wav", response, RATE)
    return folder


def _mix(corpus: Path, *, manifest: str = "long.jsonl", **settings: Any) -> DynamicMixing:
    return DynamicMixing(
        sources=corpus / manifest, **{"sample_rate": RATE, "seconds": 1.0, **settings}
    )


def _draw(mix: DynamicMixing | LoadSources, name: str = "a", **item: Any) -> dict[str, Any]:
    return mix({"id": name, **item}, item_generator(0, 0, name))


def _db(power: float) -> float:
    return 10.0 * math.log10(power)


def _power(waveform: Tensor) -> float:
    return float(waveform.double().square().mean())


def _pitch(waveform: Tensor) -> float:
    """Frequency of the strongest component, in Hz."""
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform)))
    return float(spectrum.abs().argmax()) * RATE / len(waveform)


def _speaker(waveform: Tensor) -> str:
    return min(TONES, key=lambda name: abs(TONES[name] - _pitch(waveform)))


@settings(max_examples=30, deadline=None)
@given(
    name=st.text(max_size=5),
    most=st.integers(1, 4),
    noisy=st.booleans(),
    rt60=st.sampled_from([None, (0.1, 0.3)]),
    speed=st.sampled_from([None, (0.9, 1.1), [0.8, 1.0, 1.25]]),
    overlap=st.sampled_from([None, (0.0, 1.0)]),
    level=st.sampled_from([-26.0, 0.0]),  # the second one runs into the limit of the peak
)
def test_mixture_is_the_sum(corpus, name, most, noisy, rt60, speed, overlap, level):
    """Sources add up to the mixture, bit by bit; with noise, the rest is at the ratio asked for."""
    settings = {"num_speakers": (1, most), "rt60": rt60, "speed": speed, "overlap": overlap}
    settings |= {"reference_db": level, "manifest": "speech.jsonl"}
    noise = {"noise": [corpus / "noise.wav"], "snr_db": (5.0, 5.0)} if noisy else {}
    item = _draw(_mix(corpus, **settings, **noise), name)
    mixture, sources = item["waveform"], item["sources"]
    assert mixture.shape == (RATE,)
    assert sources.shape == (RATE, most)
    assert mixture.dtype == sources.dtype == torch.float32
    assert float(mixture.abs().max()) <= 0.9 + 1e-6
    rest = mixture - sources.sum(dim=1)
    if noisy:
        assert _db(_power(sources.sum(dim=1)) / _power(rest)) == pytest.approx(5.0, abs=0.01)
    else:
        assert torch.equal(mixture, sources.sum(dim=1))


def test_noise_is_a_piece_of_the_file(corpus):
    """And adding it changes nothing in the sources."""
    noisy = _draw(_mix(corpus, noise=[corpus / "noise.wav"], snr_db=(0.0, 10.0)))
    rest = noisy["waveform"] - noisy["sources"].sum(dim=1)
    recording, _ = read_audio(corpus / "noise.wav")
    size = 32768
    product = torch.fft.rfft(recording, size) * torch.fft.rfft(rest, size).conj()
    match = torch.fft.irfft(product).abs().max() / (rest.norm() * recording.norm())
    # A second out of 1.5 s of noise has this share of its norm.
    assert float(match) == pytest.approx(math.sqrt(2 / 3), abs=0.03)
    clean = _draw(_mix(corpus))
    torch.testing.assert_close(clean["sources"], noisy["sources"])


@pytest.mark.parametrize("manifest", ["long.jsonl", "short.jsonl"])
def test_levels(corpus, manifest):
    """Levels lie in the range, reach into both ends of it, and silence around does not count."""
    mix = _mix(corpus, manifest=manifest, level_db=(-4.0, 6.0), reference_db=-30.0, max_peak=None)
    levels = []
    for n in range(40):
        sources = _draw(mix, f"{n}")["sources"]
        levels += [_db(active_power(sources[:, s], RATE)) + 30.0 for s in range(2)]
        loud = sources[sources.abs().amax(dim=1) > 0]
        assert len(loud) > 0.35 * RATE
    assert -4.01 <= min(levels) < -3.0
    assert 5.0 < max(levels) <= 6.01


def test_peak_limit_keeps_the_ratio(corpus):
    settings = {"level_db": (0.0, 5.0), "reference_db": 0.0}
    free = _draw(_mix(corpus, **settings, max_peak=None))
    limited = _draw(_mix(corpus, **settings, max_peak=0.5))
    assert float(free["waveform"].abs().max()) > 1.0  # nothing is clipped
    assert float(limited["waveform"].abs().max()) == pytest.approx(0.5, abs=1e-5)
    gain = limited["sources"].norm() / free["sources"].norm()
    torch.testing.assert_close(limited["sources"], free["sources"] * gain)


def test_low_peak_limit(corpus):
    """Also where the mixture would not be clipped."""
    item = _draw(_mix(corpus, max_peak=0.05))
    assert float(item["waveform"].abs().max()) == pytest.approx(0.05, abs=1e-6)
    assert torch.equal(item["waveform"], item["sources"].sum(dim=1))


def test_silent_noise_changes_nothing(corpus):
    write_audio(corpus / "silence.wav", torch.zeros(RATE), RATE)
    item = _draw(_mix(corpus, noise=[corpus / "silence.wav"], snr_db=(0.0, 5.0)))
    assert torch.equal(item["waveform"], item["sources"].sum(dim=1))
    assert bool(item["waveform"].any())


def test_active_power_leaves_pauses_out():
    """Blocks 28 dB below the loudest count, blocks 32 dB below do not."""
    for gain_db, wanted in ((-28.0, (0.25 + 0.25 * 10**-2.8) / 2), (-32.0, 0.25)):
        quiet = torch.full((RATE,), 0.5 * 10 ** (gain_db / 20))
        waveform = torch.cat([quiet, torch.full((RATE,), -0.5), torch.zeros(RATE)])
        assert active_power(waveform, RATE) == pytest.approx(wanted, rel=1e-4)
    assert active_power(torch.full((3,), 0.5), RATE) == pytest.approx(0.25)
    assert active_power(torch.full((RATE,), 9e-4), RATE) == 0.0


def test_speakers_differ_and_all_occur(corpus):
    mix = _mix(corpus, num_speakers=3)
    seen = set()
    for n in range(30):
        sources = _draw(mix, f"{n}")["sources"]
        names = [_speaker(sources[:, s]) for s in range(3)]
        assert len(set(names)) == 3
        seen.add(tuple(names))
    assert {name for names in seen for name in names} == set(TONES)
    assert len(seen) > 10


def test_number_of_speakers_varies(corpus):
    """Sources that are missing to the maximum are silent, and last."""
    mix = _mix(corpus, num_speakers=(1, 3))
    counts = []
    for n in range(40):
        loud = _draw(mix, f"{n}")["sources"].abs().amax(dim=0) > 0
        assert loud.tolist() == sorted(loud.tolist(), reverse=True)
        counts.append(int(loud.sum()))
    assert set(counts) == {1, 2, 3}


def test_enhancement_is_one_speaker_and_noise(corpus):
    item = _draw(_mix(corpus, num_speakers=1, snr_db=(-3.0, -3.0)))
    assert item["sources"].shape == (RATE, 1)
    noise = item["waveform"] - item["sources"][:, 0]
    assert _db(_power(item["sources"]) / _power(noise)) == pytest.approx(-3.0, abs=0.01)


def test_crops_come_from_everywhere(tmp_path):
    """A ramp shows where in its file a sample was: there is 0 at -0.5 s."""
    ramp = torch.linspace(0.1, 0.9, 4 * RATE)
    rows = []
    for name in "ab":
        write_audio(tmp_path / f"{name}.wav", ramp, RATE, subtype="FLOAT")
        # The row is the file's part from 1 to 3 s: 0.3 to 0.7.
        path = str(tmp_path / f"{name}.wav")
        rows.append(Utterance(name, path, 2.0, RATE, start=1.0, speaker=name))
    write_manifest(tmp_path / "m.jsonl", rows)
    mix = _mix(tmp_path, manifest="m.jsonl", seconds=0.5, level_db=(0, 0), max_peak=None)
    starts = []
    for n in range(60):
        source = _draw(mix, f"{n}")["sources"][:, 0].double()
        step = float(source[-1] - source[0]) / (len(source) - 1)
        # The level is normalized, but not the ratio of the first sample to the step.
        starts.append(float(source[0]) / step / RATE - 0.5)
    assert 0.99 <= min(starts) < 1.15
    assert 2.35 < max(starts) <= 2.51


def test_short_utterances_lie_in_silence(corpus):
    mix = _mix(corpus, manifest="short.jsonl")
    starts = []
    for n in range(40):
        source = _draw(mix, f"{n}")["sources"][:, 0]
        loud = source.nonzero()[:, 0]
        assert 0.39 * RATE < loud[-1] - loud[0] < 0.41 * RATE
        starts.append(float(loud[0]) / RATE)
    assert min(starts) < 0.1
    assert max(starts) > 0.5


def test_overlap(corpus):
    """Speakers talk in turn, each for the same time, and share what was asked for."""
    item = _draw(_mix(corpus, num_speakers=3, overlap=(0.25, 0.25)))
    length = 1.0 / (3 - 2 * 0.25)
    for n in range(3):
        loud = item["sources"][:, n].nonzero()[:, 0]
        start = n * 0.75 * length
        assert float(loud[0]) / RATE == pytest.approx(start, abs=0.002)
        assert float(loud[-1] + 1) / RATE == pytest.approx(start + length, abs=0.002)


def test_speed_changes_pitch(corpus):
    write_manifest(corpus / "ann.jsonl", [_row(corpus / "ann-0.wav", "ann", 2.5)])
    for speed, wanted in (([0.8], {400}), ([1.25], {625}), ([0.8, 1.0, 1.25], {400, 500, 625})):
        mix = _mix(corpus, manifest="ann.jsonl", num_speakers=1, speed=speed)
        pitches = [_pitch(_draw(mix, f"{n}")["waveform"]) for n in range(20)]
        assert {round(pitch) for pitch in pitches} == wanted
    mix = _mix(corpus, manifest="ann.jsonl", num_speakers=1, speed=(0.9, 1.1))
    pitches = [_pitch(_draw(mix, f"{n}")["waveform"]) for n in range(30)]
    assert 449 <= min(pitches) < 470
    assert 530 < max(pitches) <= 551


def test_dry_target_is_the_direct_sound(corpus):
    """The mixture minus its dry sources is their reflections, of the response in the file."""
    settings = {"rooms": [corpus / "room.wav"], "num_speakers": 1, "seconds": 0.5}
    dry = _draw(_mix(corpus, target="dry", **settings))
    wet = _draw(_mix(corpus, target="reverberant", **settings))
    torch.testing.assert_close(dry["waveform"], wet["waveform"])
    assert torch.equal(wet["waveform"], wet["sources"][:, 0])
    source = dry["sources"][:, 0]
    expected = source.clone()
    expected[130:] += source[:-130] * 0.4 / -0.8
    expected[680:] += source[:-680] * 0.2 / -0.8
    torch.testing.assert_close(dry["waveform"], expected, atol=1e-5, rtol=1e-3)
    assert _db(active_power(dry["waveform"], RATE)) == pytest.approx(-26.0, abs=2.51)


def test_silent_room_changes_nothing(corpus):
    write_audio(corpus / "silent-room.wav", torch.zeros(100), RATE)
    item = _draw(_mix(corpus, rooms=[corpus / "silent-room.wav"]))
    torch.testing.assert_close(item["sources"].norm(dim=0) > 0.1, torch.tensor([True, True]))


def test_silent_crops_are_drawn_again(tmp_path):
    """Four fifths of the files are silence: nearly all crops have speech, none fails."""
    speech = torch.cat([torch.zeros(4 * RATE), torch.rand(RATE) - 0.5])
    write_manifest(tmp_path / "m.jsonl", [_row(tmp_path / f"{n}.wav", n, 5.0) for n in "ab"])
    for name in "ab":
        write_audio(tmp_path / f"{name}.wav", speech, RATE)
    mix = _mix(tmp_path, manifest="m.jsonl", num_speakers=1, seconds=1.0)
    silent = sum(_power(_draw(mix, f"{n}")["waveform"]) == 0.0 for n in range(100))
    # A crop of 1 s has speech with a probability of 1/4; five in a row have none with 0.24.
    assert 8 <= silent <= 40


def test_only_silence_is_taken_as_it_is(tmp_path):
    write_manifest(tmp_path / "m.jsonl", [_row(tmp_path / f"{n}.wav", n, 2.0) for n in "ab"])
    for name in "ab":
        write_audio(tmp_path / f"{name}.wav", torch.zeros(2 * RATE), RATE)
    item = _draw(_mix(tmp_path, manifest="m.jsonl", snr_db=(0.0, 0.0), rt60=(0.2, 0.2)))
    assert not item["waveform"].any()
    assert not item["sources"].any()


def test_result_depends_on_the_generator_alone(corpus):
    mix = _mix(corpus, manifest="speech.jsonl", snr_db=(0, 5), rt60=(0.1, 0.2), num_speakers=(1, 3))
    first = _draw(mix, utterance="kept")
    assert first["id"] == "a"
    assert first["utterance"] == "kept"
    torch.rand(3)
    _draw(mix, "b")
    again = _draw(pickle.loads(pickle.dumps(mix)), utterance="kept")
    assert torch.equal(first["waveform"], again["waveform"])
    assert torch.equal(first["sources"], again["sources"])
    assert not torch.equal(first["waveform"], _draw(mix, "b")["waveform"])


def test_same_batches_for_any_number_of_workers(corpus):
    write_manifest(corpus / "train.jsonl", [_row(corpus / f"{n}.wav", "-", 1.0) for n in range(6)])
    mix = _mix(corpus, manifest="speech.jsonl", speed=(0.9, 1.1), snr_db=(0, 5))
    batches = []
    for workers in (0, 2):
        data = SpeechData(
            train=corpus / "train.jsonl", transforms=[mix], max_batch_seconds=3, num_workers=workers
        )
        batches.append([batch for epoch in (1, 2) for batch in data.train_loader(epoch=epoch)])
    assert len(batches[0]) == len(batches[1]) == 4
    for one, other in zip(*batches):
        assert one.ids == other.ids
        assert one.sources.data.shape == (3, RATE, 2)
        assert torch.equal(one.waveform.data, other.waveform.data)
        assert torch.equal(one.sources.data, other.sources.data)
    assert not torch.equal(batches[0][0].waveform.data, batches[0][2].waveform.data)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(corpus, threads):
    """Of the training process, where items are made without workers; and they stay as set."""
    mix = _mix(corpus, speed=[1.1], rt60=(0.2, 0.2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        item = _draw(mix)
        assert torch.get_num_threads() == threads
        torch.set_num_threads(3 - threads)
        assert torch.equal(item["waveform"], _draw(mix)["waveform"])
    finally:
        torch.set_num_threads(before)


def test_only_the_span_is_read(corpus, monkeypatch):
    spans = []

    def read(path, *, start, duration):
        spans.append(duration)
        return read_audio(path, start=start, duration=duration)

    monkeypatch.setattr(mixing, "read_audio", read)
    _draw(_mix(corpus, seconds=0.5, speed=[1.25]))
    assert spans == [pytest.approx(0.625, abs=0.001)] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_speakers": 5}, r"long.jsonl: mixtures need 5 speakers, this has 4 \(ann, bob"),
        ({"num_speakers": 0}, "num_speakers must be"),
        ({"num_speakers": (3, 2)}, r"num_speakers must be .* got \(3, 2\)"),
        ({"num_speakers": (1.0, 2)}, "num_speakers must be whole numbers"),
        ({"sample_rate": 0}, "sample_rate=0 must be above 0"),
        ({"seconds": 0.0}, "seconds=0.0 at least"),
        ({"seconds": math.nan}, "seconds=nan at least"),
        ({"speed": [0.0, 1.0]}, r"speed must be factors in \[0.1, 10\]"),
        ({"speed": []}, "speed must be factors"),
        ({"speed": (1.1, 0.9)}, "speed must be"),
        ({"level_db": (3.0, -3.0)}, "level_db must be"),
        ({"overlap": (0.0, 1.5)}, "overlap must be"),
        ({"noise": ["x.wav"]}, "noise needs snr_db"),
        ({"noise": ["x.wav"], "snr_db": (0, 5)}, "x.wav: no such audio file"),
        ({"snr_db": (5, 0)}, "snr_db must be"),
        ({"rooms": ["x.wav"]}, "x.wav: no such audio file"),
        ({"rooms": ["x.wav"], "rt60": (0.1, 0.2)}, "rooms or rt60"),
        ({"target": "wet"}, "target must be"),
        ({"max_peak": 0.0}, "max_peak must be above 0"),
    ],
)
def test_wrong_settings(corpus, settings, message):
    with pytest.raises(ValueError, match=message):
        _mix(corpus, **settings)


def test_utterances_need_speakers(tmp_path):
    rows = [Utterance(f"u{n}", "a.wav", 1.0, RATE, speaker="x" if n else None) for n in range(3)]
    write_manifest(tmp_path / "m.jsonl", rows)
    with pytest.raises(DataError, match="utterances without 'speaker': 1\n  u0\nAdd it"):
        _mix(tmp_path, manifest="m.jsonl")


def _row(path: Path, speaker: str, seconds: float) -> Utterance:
    return Utterance(path.stem, str(path), seconds, RATE, speaker=speaker)


def _write_mixture(folder: Path, lengths: list[int], rates: list[int], **row: Any) -> Utterance:
    """Noise whose samples after the mixture's start are the same in every file."""
    paths = [folder / f"{n}.wav" for n in range(len(lengths))]
    for n, (path, length, rate) in enumerate(zip(paths, lengths, rates)):
        waveform = torch.sin(torch.arange(length) * 0.05 * RATE / rate) * 0.2 * (n + 1)
        write_audio(path, waveform, rate, subtype="FLOAT")
    settings = {"duration": lengths[0] / rates[0], "sample_rate": rates[0], **row}
    return Utterance("m", str(paths[0]), extra={"sources": [str(p) for p in paths[1:]]}, **settings)


def test_load_sources(tmp_path):
    row = _write_mixture(tmp_path, [8000, 8001, 7998], [RATE] * 3)
    item = _draw(LoadSources(sample_rate=RATE), utterance=row)
    assert item["waveform"].shape == (8000,)
    assert item["sources"].shape == (8000, 2)
    torch.testing.assert_close(item["sources"][:, 0], item["waveform"] * 2)
    torch.testing.assert_close(item["sources"][:7998, 1], item["waveform"][:7998] * 3)
    assert item["sources"].dtype == torch.float32
    assert not item["sources"][7998:, 1].any()
    assert item["utterance"] is row
    assert item["id"] == "a"


def test_load_sources_of_a_span_and_resampled(tmp_path):
    """Files of two rates, a row of a part of them: everything still lies in parallel."""
    row = _write_mixture(tmp_path, [32000, 16000], [16000, RATE], start=0.5, duration=1.0)
    item = _draw(LoadSources(sample_rate=RATE), utterance=row)
    assert item["sources"].shape == (8000, 1)
    inner = slice(50, -50)  # the ends of a resampled span know nothing of what lies beyond
    torch.testing.assert_close(
        item["sources"][inner, 0], item["waveform"][inner] * 2, atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("rates", [[RATE, RATE], [16000, RATE]])
def test_load_sources_crops_all_alike(tmp_path, rates):
    row = _write_mixture(tmp_path, [3 * rate for rate in rates], rates)
    load = LoadSources(sample_rate=RATE, seconds=0.5)
    crops = [_draw(load, f"{n}", utterance=row) for n in range(10)]
    for item in crops:
        assert item["waveform"].shape == (4000,)
        assert item["sources"].shape == (4000, 1)
        difference = item["sources"][50:-50, 0] - 2 * item["waveform"][50:-50]
        assert float(difference.abs().max()) < 2e-3
    assert len({float(item["waveform"][100]) for item in crops}) == 10
    assert torch.equal(crops[3]["sources"], _draw(load, "3", utterance=row)["sources"])
    whole = _draw(LoadSources(sample_rate=RATE, seconds=5.0), utterance=row)
    assert len(whole["waveform"]) == len(whole["sources"]) == 3 * RATE


def test_load_sources_of_silence(tmp_path):
    write_audio(tmp_path / "m.wav", torch.zeros(RATE), RATE)
    row = Utterance("m", str(tmp_path / "m.wav"), 1.0, RATE)
    row = Utterance("m", row.audio, 1.0, RATE, extra={"sources": [row.audio]})
    assert not _draw(LoadSources(sample_rate=RATE), utterance=row)["sources"].any()


@pytest.mark.parametrize("length", [7997, 8003, 4000, 12000])
def test_load_sources_of_another_length(tmp_path, length):
    row = _write_mixture(tmp_path, [8000, 8000, length], [RATE] * 3)
    message = f"2.wav has {length} samples at 8000 Hz, the mixture .*0.wav has 8000 at 8000 Hz"
    with pytest.raises(DataError, match=message):
        _draw(LoadSources(sample_rate=RATE), utterance=row)


@pytest.mark.parametrize("extra", [{}, {"sources": []}, {"sources": "a.wav"}, {"sources": [3]}])
def test_load_sources_needs_sources(extra):
    row = Utterance("m", "m.wav", 1.0, RATE, extra=extra)
    with pytest.raises(DataError, match="row needs 'sources', a list of the paths"):
        _draw(LoadSources(sample_rate=RATE), utterance=row)


def test_load_sources_wrong_settings():
    with pytest.raises(ValueError, match="sample_rate=0"):
        LoadSources(sample_rate=0)
    with pytest.raises(ValueError, match=r"seconds=-1\.0"):
        LoadSources(sample_rate=RATE, seconds=-1.0)
