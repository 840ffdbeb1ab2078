"""Enrolled speakers: refusals of recordings, the file, identification, and speed."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from speechkit.data.errors import DataError
from speechkit.speakers.enrollment import EnrolledSpeakers, check_speech

RATE = 16000


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(int(seconds * RATE), generator=generator)


def embed(waveforms):
    return torch.stack([torch.tensor([x.abs().mean(), x.std(), 0.01]) for x in waveforms])


def some(*, people: int = 4, size: int = 8) -> EnrolledSpeakers:
    speakers = EnrolledSpeakers(embedding_size=size, model="m")
    for number in range(people):
        generator = torch.Generator().manual_seed(number)
        speakers.add(f"speaker {number}", torch.randn(3, size, generator=generator))
    return speakers


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(RATE), r"anna: silence \(1.00 s\)"),
        (noise(0.4), "0.40 s are too short"),
        (1e-5 * noise(2.0), "silence"),
        (torch.cat([noise(0.2), torch.zeros(5 * RATE)]), "only 0.2. s of 5.20 s are not silence"),
        (torch.full((RATE,), float("nan")), "NaN"),
        (torch.zeros(0), "too short"),
    ],
)
def test_recordings_that_say_nothing_are_refused(waveform, message):
    speakers = EnrolledSpeakers(embedding_size=3, model="m")
    with pytest.raises(DataError, match=message):
        speakers.enroll("anna", [waveform], embed, sample_rate=RATE)
    assert len(speakers) == 0
    with pytest.raises(DataError, match="anna, recording 2"):
        speakers.enroll("anna", [noise(1.0), waveform], embed, sample_rate=RATE)
    assert "anna" not in speakers


def test_enough_sound_is_accepted():
    check_speech(noise(0.5), RATE, "a")
    check_speech(torch.cat([torch.zeros(RATE), noise(0.6), torch.zeros(RATE)]), RATE, "a")
    speakers = EnrolledSpeakers(embedding_size=3, model="m")
    speakers.enroll("anna", [noise(1.0), noise(0.7, 1)], embed, sample_rate=RATE)
    assert speakers.counts == [2]
    with pytest.raises(DataError, match="no recording"):
        speakers.enroll("ben", [], embed, sample_rate=RATE)


def test_one_by_one_is_as_all_at_once():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    once, later = (EnrolledSpeakers(embedding_size=8, model="m") for _ in range(2))
    once.add("a", x)
    for row in x:
        later.add("a", row[None])
    torch.testing.assert_close(once.means, later.means)
    want = torch.nn.functional.normalize(x).mean(0)
    torch.testing.assert_close(once.means[0], want)


def test_the_file_gives_back_the_same(tmp_path):
    speakers = some()
    speakers.add("Zoë 你好", torch.ones(1, 8))
    speakers.save(tmp_path / "a.safetensors")
    again = EnrolledSpeakers.load(tmp_path / "a.safetensors", model="m")
    assert (again.names, again.counts, again.model) == (speakers.names, speakers.counts, "m")
    probe = torch.randn(2, 8, generator=torch.Generator().manual_seed(9))
    assert torch.equal(again.scores(probe), speakers.scores(probe))
    again.remove("speaker 1")
    assert again.names == ["speaker 0", "speaker 2", "speaker 3", "Zoë 你好"]
    assert torch.equal(again.scores(probe), speakers.scores(probe)[:, [0, 2, 3, 4]])
    with pytest.raises(DataError, match="no speaker 'speaker 1'"):
        again.remove("speaker 1")
    EnrolledSpeakers(embedding_size=8, model="m").save(tmp_path / "none")
    assert len(EnrolledSpeakers.load(tmp_path / "none")) == 0


def test_identify_knows_strangers_by_a_threshold():
    speakers = some()
    own = speakers.means[2]
    matches = speakers.identify(own, top=3)
    assert [len(matches), matches[0].speaker] == [3, "speaker 2"]
    assert matches[0].score == pytest.approx(1.0)
    assert matches[0].score > matches[1].score > matches[2].score
    assert [match.speaker for match in speakers.identify(own, threshold=0.99)] == ["speaker 2"]
    assert speakers.identify(-own, threshold=0.99) == []
    assert len(speakers.identify(own, top=100)) == 4
    with pytest.raises(DataError, match="nobody is enrolled"):
        EnrolledSpeakers(embedding_size=8, model="m").identify(own)


def test_a_thousand_speakers_are_one_product():
    speakers = EnrolledSpeakers(embedding_size=192, model="m")
    means = torch.randn(1000, 192, generator=torch.Generator().manual_seed(0))
    speakers.names, speakers.counts = [str(n) for n in range(1000)], [1] * 1000
    speakers.means = means
    probes = means + 0.1 * torch.randn(1000, 192, generator=torch.Generator().manual_seed(1))
    assert speakers.scores(probes).argmax(dim=1).tolist() == list(range(1000))


def test_other_files_are_refused(tmp_path):
    place = tmp_path / "a.safetensors"
    with pytest.raises(DataError, match="no such file"):
        EnrolledSpeakers.load(place)
    for content in (b"", b"hello", pickle.dumps({"means": [1.0]})):
        place.write_bytes(content)
        with pytest.raises(DataError, match="not a file of enrolled speakers"):
            EnrolledSpeakers.load(place)
    save_file({"means": torch.ones(1, 2)}, place)
    with pytest.raises(DataError, match="format None"):
        EnrolledSpeakers.load(place)
    some().save(place)
    with pytest.raises(DataError, match="with the model 'm', not with 'n'"):
        EnrolledSpeakers.load(place, model="n")
    good = place.read_bytes()
    place.write_bytes(good[:-8])
    with pytest.raises(DataError, match="not a file"):
        EnrolledSpeakers.load(place)


@pytest.mark.parametrize("names", ['["a"]', '["a", "a"]', "{}", "[1, 2]", "[", "[" * 100_000])
def test_damaged_names_are_refused(tmp_path, names):
    metadata = {"format": "speechkit enrolled speakers 1", "model": "m", "speakers": names}
    tensors = {"means": torch.ones(2, 3), "counts": torch.ones(2, dtype=torch.long)}
    save_file(tensors, tmp_path / "a", metadata)
    with pytest.raises(DataError, match="damaged"):
        EnrolledSpeakers.load(tmp_path / "a")


def test_bad_embeddings_are_refused():
    speakers = some()
    with pytest.raises(ValueError, match=r"\(N, 8\)"):
        speakers.add("x", torch.ones(1, 7))
    with pytest.raises(ValueError, match="no embedding"):
        speakers.add("x", torch.ones(0, 8))
    with pytest.raises(ValueError, match="zero or not finite"):
        speakers.add("x", torch.stack([torch.ones(8), -torch.ones(8)]))
    for name in ("", "a\nb"):
        with pytest.raises(ValueError, match="name"):
            speakers.add(name, torch.ones(1, 8))
    assert len(speakers) == len(speakers.means) == 4
