"""Manifests: round trips, every fault with its row, files on disk checked."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechkit.data.audio import write_audio
from speechkit.data.manifest import (
    DataError,
    Utterance,
    check_manifest,
    manifest_sha256,
    read_manifest,
    write_manifest,
)

GOOD = {"id": "a", "audio": "a.wav", "duration": 1.0, "sample_rate": 8000}


def write_rows(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Utterance,
            id=st.text(min_size=1),
            audio=st.sampled_from(["/elsewhere/x.wav", "/elsewhere/y z.flac"]),
            duration=st.floats(1e-3, 1e6),
            sample_rate=st.integers(1, 192000),
            start=st.floats(0, 1e6),
            text=st.none() | st.text(),
            speaker=st.none() | st.text(),
            extra=st.dictionaries(st.sampled_from(["label", "snr"]), st.integers() | st.text()),
        ),
        unique_by=lambda utterance: utterance.id,
        min_size=1,
    )
)
def test_round_trip(tmp_path, utterances):
    try:
        for utterance in utterances:
            json.dumps([utterance.id, utterance.text, utterance.speaker]).encode()
            f"{utterance.id}{utterance.text}{utterance.speaker}{utterance.extra}".encode()
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    write_manifest(tmp_path / "m.jsonl", utterances)
    assert read_manifest(tmp_path / "m.jsonl") == utterances
    assert pickle.loads(pickle.dumps(utterances)) == utterances


def test_a_folder_can_be_moved(tmp_path):
    old = tmp_path / "old"
    sources = [str(old / "s1.wav"), str(old / "s2.wav")]
    row = Utterance("a", str(old / "wav/a.wav"), 1.0, 8000, extra={"sources": sources})
    write_manifest(old / "m.jsonl", [row])
    old.rename(tmp_path / "new")
    moved = read_manifest(tmp_path / "new" / "m.jsonl")[0]
    assert moved.audio == str(tmp_path / "new/wav/a.wav")
    assert moved.extra["sources"] == [str(tmp_path / "new" / f"s{n}.wav") for n in (1, 2)]
    keys = list(json.loads((tmp_path / "new" / "m.jsonl").read_text()))
    assert keys == ["id", "audio", "start", "duration", "sample_rate", "sources"]


def test_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "m.jsonl"
    good = Utterance("a", "/a.wav", 1.0, 8000)
    write_manifest(path, [good])
    with pytest.raises(DataError, match="'a' twice"):
        write_manifest(path, [good, good])
    assert read_manifest(path) == [good]
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({k: v for k, v in GOOD.items() if k != "audio"}, "missing field 'audio'"),
        ({k: v for k, v in GOOD.items() if k != "duration"}, "missing field 'duration'"),
        ({**GOOD, "duration": -1}, "'duration' must be .* is -1"),
        ({**GOOD, "duration": "1"}, "'duration' must be .* is '1'"),
        ({**GOOD, "duration": float("nan")}, "'duration' must be"),
        ({**GOOD, "duration": True}, "'duration' must be"),
        ({**GOOD, "start": -0.1}, "'start' must be"),
        ({**GOOD, "sample_rate": 8000.5}, "'sample_rate' must be"),
        ({**GOOD, "id": 7}, "'id' must be"),
        ({**GOOD, "text": ["a"]}, "'text' must be"),
        ([1], "must be a JSON object, is list"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = write_rows(tmp_path / "m.jsonl", {**GOOD, "id": "fine"}, row)
    with pytest.raises(DataError, match=f"row 2.*{message}") as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert [problem.row for problem in check_manifest(path, open_audio=False)] == [2]


def test_duplicate_ids_and_the_limit_of_what_is_shown(tmp_path):
    path = write_rows(tmp_path / "m.jsonl", *[GOOD] * 31)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    text = str(caught.value)
    assert "30 bad rows" in text
    assert "row 2 (a): duplicate id, first in row 1" in text
    assert "row 21" in text
    assert "row 22" not in text
    assert "and 10 more" in text
    assert len(check_manifest(path, open_audio=False)) == 30


def test_missing_and_empty_manifests(tmp_path):
    for function in (read_manifest, check_manifest, manifest_sha256):
        with pytest.raises(DataError, match="no such manifest"):
            function(tmp_path / "none.jsonl")
        with pytest.raises(DataError, match="cannot be read"):
            function(tmp_path)
    write_rows(tmp_path / "m.jsonl", "", "  ")
    with pytest.raises(DataError, match="no rows"):
        read_manifest(tmp_path / "m.jsonl")
    assert "no rows" in str(check_manifest(tmp_path / "m.jsonl")[0])


def test_unusual_but_right_files(tmp_path):
    row = {**GOOD, "text": "line\u2028separator"}
    text = "\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n\r\n"
    (tmp_path / "m.jsonl").write_bytes(text.encode())
    assert read_manifest(tmp_path / "m.jsonl")[0].text == "line\u2028separator"
    (tmp_path / "bad.jsonl").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(DataError, match="row 1: not JSON in UTF-8"):
        read_manifest(tmp_path / "bad.jsonl")


def test_check_opens_the_audio(tmp_path):
    write_audio(tmp_path / "a.wav", torch.zeros(8000), 8000)
    write_audio(tmp_path / "nan.wav", torch.zeros(8000), 8000, subtype="FLOAT")
    raw = bytearray((tmp_path / "nan.wav").read_bytes())
    raw[-4:] = b"\xff\xff\xff\x7f"
    (tmp_path / "nan.wav").write_bytes(raw)
    rows = [
        GOOD,
        {**GOOD, "id": "b", "audio": "missing.wav"},
        {**GOOD, "id": "c", "sample_rate": 16000},
        {**GOOD, "id": "d", "start": 0.5},
        {**GOOD, "id": "e", "audio": "nan.wav"},
    ]
    path = write_rows(tmp_path / "m.jsonl", *rows)
    problems = check_manifest(path)
    assert [(p.row, p.id) for p in problems] == [(2, "b"), (3, "c"), (4, "d")]
    assert "missing.wav" in problems[0].message
    assert "16000" in problems[1].message
    assert "1.000 s" in problems[2].message
    assert [p.id for p in check_manifest(path, read_samples=True)] == ["b", "c", "d", "e"]
    assert check_manifest(path, open_audio=False) == []


def test_sha256(tmp_path):
    (tmp_path / "m").write_bytes(b"abc")
    assert manifest_sha256(tmp_path / "m").startswith("ba7816bf")
