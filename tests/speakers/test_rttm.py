"""RTTM and UEM files: there and back, real ones, faults with their lines."""

from __future__ import annotations

import pytest

from speechkit.data.errors import DataError
from speechkit.metrics.diarization import Turn
from speechkit.speakers.rttm import read_rttm, read_uem, write_rttm


def test_there_and_back(tmp_path):
    turns = {
        "a": [Turn(0.0, 1.25, "x"), Turn(1.0, 3.5, "y")],
        "b": [Turn(10.0, 11.001, "x")],
        "none": [],
    }
    write_rttm(tmp_path / "a.rttm", turns)
    again = read_rttm(tmp_path / "a.rttm")
    assert again.keys() == {"a", "b"}
    for name, own in again.items():
        for found, want in zip(own, turns[name], strict=True):
            assert found[:2] == pytest.approx(want[:2])
            assert found.speaker == want.speaker


def test_turns_that_touch_still_do_in_milliseconds(tmp_path):
    middle = 1.00049999
    turns = [Turn(0.0004, middle, "x"), Turn(middle, 2.0, "y"), Turn(3.0, 3.0002, "y")]
    write_rttm(tmp_path / "a.rttm", {"a": turns})
    lines = (tmp_path / "a.rttm").read_text().splitlines()
    assert [line.split()[3:5] for line in lines] == [["0.000", "1.000"], ["1.000", "1.000"]]


def test_other_lines_are_left_out(tmp_path):
    place = tmp_path / "a.rttm"
    place.write_text(
        ";; a comment\nSPKR-INFO a 1 <NA> <NA> <NA> unknown x <NA>\n\n"
        "SPEAKER a 1 2.5 1 <NA> <NA> x <NA>\nNON-LEX a 1 3 1 <NA> laugh x <NA>\n"
        "SPEAKER a 1 0 1.5 <NA> <NA> y\n",
        encoding="utf-8",
    )
    assert read_rttm(place) == {"a": [Turn(0.0, 1.5, "y"), Turn(2.5, 3.5, "x")]}


def test_faulty_lines_are_named(tmp_path):
    place = tmp_path / "a.rttm"
    good = "SPEAKER a 1 0 1 <NA> <NA> x <NA> <NA>\n"
    bad = ["SPEAKER a 1 0 1 <NA> <NA>\n", "SPEAKER a 1 0 -1 <NA> <NA> x\n"]
    bad += ["SPEAKER a 1 zero 1 <NA> <NA> x\n", "SPEAKER a 1 nan 1 <NA> <NA> x\n", "hello\n"]
    place.write_text(good + "".join(bad), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_rttm(place)
    assert "5 lines are no turns" in str(error.value)
    assert all(f"line {number}:" in str(error.value) for number in range(2, 7))
    place.write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="UTF-8"):
        read_rttm(place)
    with pytest.raises(DataError, match="No such file"):
        read_rttm(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "turn", "message"),
    [
        ("a b", Turn(0, 1, "x"), "name 'a b'"),
        ("a", Turn(0, 1, ""), "name ''"),
        ("a", Turn(1, 1, "x"), "no turn"),
        ("a", Turn(-1, 1, "x"), "no turn"),
        ("a", Turn(0, float("inf"), "x"), "no turn"),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path, name, turn, message):
    with pytest.raises(ValueError, match=message):
        write_rttm(tmp_path / "a.rttm", {name: [turn]})
    assert not (tmp_path / "a.rttm").exists()


def test_uem(tmp_path):
    place = tmp_path / "a.uem"
    place.write_text("a 1 5 7\n;; no\na 1 0 2.5\nb 1 0 1\n", encoding="utf-8")
    assert read_uem(place) == {"a": [(0.0, 2.5), (5.0, 7.0)], "b": [(0.0, 1.0)]}
    place.write_text("a 1 0 1\na 1 5\na 1 7 5\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"2 lines are no regions\n  line 2: 'a 1 5'\n  line 3"):
        read_uem(place)


def test_real_conversations(real_data):
    """Two people in each; the recording that the lines name has another split than the file."""
    files = sorted((real_data / "LibriSpeechMix" / "rttm").glob("*.rttm"))
    assert len(files) >= 10
    for place in files:
        (name, turns), *others = read_rttm(place).items()
        assert not others
        assert name.split("-")[-1] == place.stem.split("-")[-1]
        assert len({turn.speaker for turn in turns}) == 2
