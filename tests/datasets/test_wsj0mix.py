"""WSJ0-mix: made from lists as the Matlab scripts do, and read back."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechkit.data.manifest import DataError, check_manifest, read_manifest
from speechkit.data.speech_level import active_speech_level
from speechkit.datasets import wsj0mix
from speechkit.datasets.wsj0mix_render import _num2str

signal = pytest.importorskip("scipy.signal")
SIZES = {"01t/01to030v": 20001, "20g/20ga010m": 16000, "40e/40ec020o": 24000}
PAIR = "01to030v_0.76421_20ga010m_-0.76421"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Lay out ``lists`` of two and three speakers and ``wsj0`` with three endings."""
    random = np.random.default_rng(0)
    for (name, size), ending in zip(SIZES.items(), (".wav", ".flac", ".wv1")):
        path = tmp_path / "data/wsj0/si_tr_s" / f"{name}{ending}"
        path.parent.mkdir(parents=True)
        envelope = np.repeat(random.uniform(0, 0.1, size // 1000 + 1), 1000)[:size]
        kind = {".wv1": "NIST", ".wav": "WAV", ".flac": "FLAC"}[ending]
        soundfile.write(path, random.normal(size=size) * envelope, 16000, format=kind)
    lists = tmp_path / "lists"
    lists.mkdir()
    rows = [f"wsj0/si_tr_s/{name}.wav" for name in SIZES]
    two = f"{rows[0]} 0.76421 {rows[1]} -0.76421 \n{rows[2]} 1.5 {rows[0]} -1.5 \n"
    three = f"{rows[0]} 1.2972 {rows[1]} -1.2972 {rows[2]} 0 \n"
    for split in ("tr", "cv", "tt"):
        (lists / f"mix_2_spk_{split}.txt").write_text(two)
        (lists / f"mix_3_spk_{split}.txt.gz").write_bytes(gzip.compress(three.encode()))
    return tmp_path


def make(corpus: Path, **changes: object) -> Path:
    return wsj0mix.make(corpus / "lists", corpus / "data", corpus / "out", **changes)  # type: ignore[arg-type]


def source(corpus: Path, name: str) -> np.ndarray:
    return soundfile.read(next((corpus / "data").rglob(f"{name}.*")))[0]


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0].astype(float)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("level", ["active", "rms"])
def test_files_are_what_the_script_says(corpus: Path, mode: str, rate: int, level: str) -> None:
    make(corpus, sample_rates=(rate,), modes=(mode,), level=level, splits=("cv",))
    scaled = []
    for name, gain in (("01to030v", 0.76421), ("20ga010m", -0.76421)):
        x = source(corpus, name)
        x8 = signal.resample_poly(x, 1, 2, window=("kaiser", 5.0))
        power = np.mean(x8**2)
        if level == "active":
            power = active_speech_level(torch.from_numpy(x8), 8000).power
        scaled.append((x8 if rate == 8000 else x) * 10 ** (gain / 20) / math.sqrt(power))
    size = {"min": 16000, "max": 20001}[mode]
    size = size if rate == 16000 else (size + 1) // 2
    signals = [np.concatenate([x, np.zeros(size)])[:size] for x in scaled]
    signals = [np.sum(signals, axis=0), *signals]
    peak = max(np.abs(x).max() for x in signals)
    place = corpus / "out/2speakers" / f"wav{rate // 1000}k" / mode / "cv"
    for part, x in zip(("mix", "s1", "s2"), signals):
        got = samples(place / part / f"{PAIR}.wav")
        assert len(got) == size
        np.testing.assert_allclose(got, x * 0.9 / peak * 32768, atol=0.5001)
    peaks = [np.abs(samples(place / part / f"{PAIR}.wav")).max() for part in ("mix", "s1", "s2")]
    assert max(peaks) == round(0.9 * 32768)


def test_ratio_of_the_active_levels_is_the_difference_of_the_gains(corpus: Path) -> None:
    place = make(corpus, modes=("max",), splits=("cv",)) / "wav8k/max/cv"
    # Without the padding: the hangover would count 0.2 s of it as speech.
    one, two = (
        active_speech_level(torch.from_numpy(samples(place / part / f"{PAIR}.wav")[:size]), 8000).db
        for part, size in (("s1", 10001), ("s2", 8000))
    )
    assert one - two == pytest.approx(2 * 0.76421, abs=0.15)


def test_prepare_makes_and_reads(corpus: Path) -> None:
    manifests = wsj0mix.prepare(
        corpus / "out", lists=corpus / "lists", wsj0=corpus / "data/wsj0", num_speakers=3
    )
    assert sorted(manifests) == [
        "test", "test-sources", "train", "train-sources", "valid", "valid-sources",
    ]  # fmt: skip
    [row] = read_manifest(manifests["train"])
    assert row.id == "01to030v_1.2972_20ga010m_-1.2972_40ec020o_0"
    assert row.extra["speakers"] == ["01t", "20g", "40e"]
    assert [Path(path).parent.name for path in row.extra["sources"]] == ["s1", "s2", "s3"]
    assert (row.sample_rate, row.duration) == (8000, 1.0)
    speech = read_manifest(manifests["train-sources"])
    assert [(x.id, x.speaker) for x in speech] == [(n[4:], n[:3]) for n in SIZES]
    assert all(check_manifest(path, read_samples=True) == [] for path in manifests.values())
    again = wsj0mix.prepare(corpus / "read", root=corpus / "out", num_speakers=3)
    assert [read_manifest(again["valid"])[0].id] == [row.id]


def test_done_work_is_kept_and_another_level_makes_anew(corpus: Path) -> None:
    path = make(corpus) / "wav8k/min/tr/s1" / f"{PAIR}.wav"
    before, data = path.stat().st_mtime_ns, path.read_bytes()
    make(corpus)
    assert path.stat().st_mtime_ns == before
    make(corpus, level="rms")
    assert path.read_bytes() != data


def test_missing_files_and_bad_rows_are_named(corpus: Path) -> None:
    (corpus / "data/wsj0/si_tr_s/20g/20ga010m.flac").unlink()
    with pytest.raises(DataError, match=r"row 1, source 2: no file .*20ga010m.wav"):
        make(corpus)
    path = corpus / "lists/mix_2_spk_tr.txt"
    path.write_text(path.read_text() * 2 + "a.wav 1 b.wav\na.wav x b.wav 0\n")
    with pytest.raises(DataError) as error:
        make(corpus)
    for text in ("row 3: the mixture of row 1 again", "row 5: not 2 times", "row 6: not 2 times"):
        assert text in str(error.value)
    path.unlink()
    with pytest.raises(DataError, match=r"no mix_2_spk_tr.txt or .*found: mix_2_spk_cv.txt"):
        make(corpus)


def test_silent_source_and_other_rates_are_refused(corpus: Path) -> None:
    path = corpus / "data/wsj0/si_tr_s/01t/01to030v.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    with pytest.raises(DataError, match=r"01to030v.wav: is silent"):
        make(corpus)
    soundfile.write(path, np.ones(16000) / 2, 8000)
    with pytest.raises(DataError, match=r"01to030v.wav: has 8000 Hz"):
        make(corpus)


def test_arguments_that_make_no_sense(corpus: Path) -> None:
    with pytest.raises(ValueError, match="give root"):
        wsj0mix.prepare(corpus / "out")
    for changes, message in (
        ({"num_speakers": 1}, "2 or more"),
        ({"sample_rates": (11025,)}, "8000 or 16000"),
        ({"modes": ()}, "min or max"),
        ({"level": "peak"}, "active or rms"),
    ):
        with pytest.raises(ValueError, match=message):
            make(corpus, **changes)


def test_numbers_are_written_as_matlab_does() -> None:
    values = {0.0: "0", -0.0799694: "-0.079969", 1.98571: "1.9857", 12.34567: "12.3457", 2.5: "2.5"}
    assert {value: _num2str(value) for value in values} == values


def test_genuine_lists_and_the_small_corpus(real_data: Path, tmp_path: Path) -> None:
    """The small corpus' levels are root mean squares, so it is made by level="rms"."""
    text = (real_data / "LibriMix-mini/wsj0_format/mix_2_spk_tt.txt").read_text().splitlines()[:2]
    (tmp_path / "mix_2_spk_tt.txt").write_text("\n".join(text))
    manifests = wsj0mix.prepare(
        tmp_path / "out", lists=tmp_path, wsj0=real_data, level="rms", splits={"test": "tt"}
    )
    row = read_manifest(manifests["test"])[0]
    assert row.extra["speakers"] == ["1688", "2033"]
    for line in text:
        one, gain, two, _ = line.split()
        pair = [signal.resample_poly(soundfile.read(real_data / p)[0], 1, 2) for p in (one, two)]
        pair = [x / np.sqrt(np.mean(x**2)) for x in pair]
        size = min(map(len, pair))
        a, b = pair[0][:size] * 10 ** (float(gain) / 20), pair[1][:size] / 10 ** (float(gain) / 20)
        scale = 0.9 / max(np.abs(x).max() for x in (a, b, a + b))
        item = f"{Path(one).stem}_{gain}_{Path(two).stem}_-{gain}"
        got = samples(tmp_path / f"out/2speakers/wav8k/min/tt/mix/{item}.wav")
        np.testing.assert_allclose(got, (a + b) * scale * 32768, atol=0.5001)
    with pytest.raises(DataError, match=r"mix_3_spk_tr.txt.gz: 60000 problems"):
        wsj0mix.make(real_data / "wsj0-mix-lists", tmp_path, tmp_path / "o", num_speakers=3)
