"""Trial lists: VoxCeleb's format, faults with their lines, files to embeddings to rows."""

from __future__ import annotations

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.errors import DataError
from speechkit.metrics.verification import equal_error_rate, summarize
from speechkit.speakers.trials import (
    Trial,
    embed_files,
    read_trials,
    score_trials,
    trial_files,
    trial_rows,
    trial_speakers,
    write_trials,
)

RATE = 8000


@pytest.fixture
def corpus(tmp_path):
    """Four files: two "speakers" who hum at their own pitch; one file has another rate."""
    for name, pitch, seconds, rate in [
        ("a/1.wav", 200, 1.0, RATE),
        ("a/2.wav", 200, 0.7, RATE),
        ("b/1.wav", 900, 0.5, RATE),
        ("b/2.wav", 900, 1.2, 2 * RATE),
    ]:
        time = torch.arange(int(seconds * rate)) / rate
        write_audio(tmp_path / name, 0.3 * torch.sin(2 * torch.pi * pitch * time), rate)
    return tmp_path


def embed(waveforms):
    """Power below 500 Hz and above."""
    power = [torch.fft.rfft(x).abs().square() for x in waveforms]
    cut = [round(len(p) * 500 / (RATE / 2)) for p in power]
    return torch.stack([torch.stack([p[:c].mean(), p[c:].mean()]) for p, c in zip(power, cut)])


TRIALS = [
    Trial(True, "a/1.wav", "a/2.wav"),
    Trial(False, "a/1.wav", "b/1.wav"),
    Trial(True, "b/2.wav", "b/1.wav"),
    Trial(False, "b/2.wav", "a/2.wav"),
]


def test_files_to_rows(corpus):
    write_trials(corpus / "trials.txt", TRIALS)
    trials = read_trials(corpus / "trials.txt", corpus)
    assert trials == TRIALS
    calls = []

    def counted(waveforms):
        calls.append(len(waveforms))
        return embed(waveforms)

    files = trial_files(trials)
    embeddings = embed_files(files, corpus, counted, sample_rate=RATE, batch_size=3)
    assert list(embeddings) == files
    assert sorted(calls) == [1, 3]
    scores = score_trials(trials, embeddings, chunk=3)
    assert scores[[0, 2]].min() > 0.99 > 0.5 > scores[[1, 3]].max()
    assert summarize(trial_rows(trials, scores))[0].value == 0.0
    assert embed_files(files, corpus, embed, sample_rate=RATE).keys() == embeddings.keys()


def test_voxceleb_lines_are_read_as_they_are(tmp_path):
    place = tmp_path / "veri_test.txt"
    place.write_text(
        "1 id10270/5r0dWxy17C8/00001.wav id10270/x6uYqmx31kE/00001.wav\r\n\n"
        "0 id10270/5r0dWxy17C8/00001.wav id10300/ize_eiCFEg0/00003.wav\n",
        encoding="utf-8",
    )
    first, second = read_trials(place)
    assert first == Trial(True, "id10270/5r0dWxy17C8/00001.wav", "id10270/x6uYqmx31kE/00001.wav")
    assert second.target is False


def test_missing_files_and_bad_lines_are_named(corpus):
    place = corpus / "trials.txt"
    place.write_text("1 a/1.wav a/2.wav\n0 a/1.wav c/9.wav\n0 c/9.wav d.wav\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_trials(place, corpus)
    assert "2 files do not exist" in str(error.value)
    assert "line 2: c/9.wav" in str(error.value)
    assert "line 3: d.wav" in str(error.value)
    assert len(read_trials(place)) == 3
    place.write_text("1 a b\n2 a b\n1 a\nyes a b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"3 lines are no trials\n  line 2: '2 a b'"):
        read_trials(place)
    place.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="empty"):
        read_trials(place)
    place.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_trials(place)
    with pytest.raises(DataError, match="No such file"):
        read_trials(corpus / "none.txt")
    with pytest.raises(DataError, match="no such audio file"):
        embed_files(["none.wav"], corpus, embed, sample_rate=RATE)


def test_speakers_follow_from_target_trials():
    trials = [
        Trial(True, "a1", "a2"),
        Trial(True, "a3", "a2"),
        Trial(True, "b1", "b2"),
        Trial(False, "a3", "b1"),
        Trial(False, "c1", "a1"),
    ]
    pairs = trial_speakers(trials)
    a, b = pairs[0][0], pairs[2][0]
    assert a != b
    assert pairs == [(a, a), (a, a), (b, b), (a, b), ("c1", a)]
    with pytest.raises(DataError, match="trial 6 says that a3 and a1"):
        trial_speakers([*trials, Trial(False, "a3", "a1")])


def test_faults_of_embeddings_and_scores(corpus):
    with pytest.raises(DataError, match=r"a/1\.wav: its embedding is zero or not finite"):
        embed_files(["a/1.wav"], corpus, lambda x: torch.zeros(len(x), 2), sample_rate=RATE)
    with pytest.raises(ValueError, match="gave"):
        embed_files(["a/1.wav"], corpus, lambda x: torch.ones(2), sample_rate=RATE)
    with pytest.raises(DataError, match="1 files of 1 trials"):
        score_trials([Trial(True, "a", "b")], {"a": torch.ones(2)})
    with pytest.raises(ValueError, match="is nan"):
        trial_rows(TRIALS[:1], torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="file name 'a b'"):
        write_trials(corpus / "x.txt", [Trial(True, "a b", "c")])


def test_real_list_with_its_speakers(real_data):
    """All pairs of some LibriSpeech readers: what the target trials join are the readers."""
    folder = real_data / "LibriSpeech-trials"
    trials = read_trials(folder / "veri_test-other.txt", real_data / "LibriSpeech")
    assert {trial.target for trial in trials} == {True, False}
    pairs = trial_speakers(trials)
    reader = {}
    for trial, pair in zip(trials, pairs):
        for name, speaker in zip(trial[1:], pair):
            reader.setdefault(speaker, set()).add(name.split("/")[1])
    assert all(len(names) == 1 for names in reader.values())
    same = torch.tensor([trial.target for trial in trials])
    assert equal_error_rate(same.double(), same).value == 0.0
