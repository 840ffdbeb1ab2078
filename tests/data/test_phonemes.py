"""Phonemes by espeak-ng: what is spoken, and the process that is asked."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal

import pytest

from speechkit.data.phonemes import Phonemizer, check_voice

pytest.importorskip("espeakng_loader")

PHRASES = ["hello world", "the case", "a", "cats and dogs", "it's well-known", "read", "yes"]


@pytest.fixture(scope="module")
def phonemizer() -> Phonemizer:
    return Phonemizer("en-us")


def test_pauses_stay_and_other_punctuation_goes(phonemizer: Phonemizer) -> None:
    read = phonemizer("He said, \"yes\" (twice) - and left... Don't; it's me!")
    assert [c for c in read if c in ",.;:!?\"'()-"] == list(",,.;!")
    words = ["he", "said", "yes", "twice", "left", "don't"]
    assert len(read.replace(",", "").split()) == len(words) + len(["and", "it's", "me"])
    assert "ˈ" in read
    assert "\u0361" not in read  # no ties: one character is one symbol


@pytest.mark.parametrize("text", ["", "!!!", '"', " - ", "(...)"])
def test_no_words_are_no_phonemes(phonemizer: Phonemizer, text: str) -> None:
    assert phonemizer(text) == ""


def test_what_was_said_before_changes_nothing(phonemizer: Phonemizer) -> None:
    alone = {phrase: Phonemizer("en-us")(phrase) for phrase in PHRASES[:3]}
    forward = {phrase: phonemizer(phrase) for phrase in PHRASES}
    backward = {phrase: phonemizer(phrase) for phrase in reversed(PHRASES)}
    assert forward == backward
    assert alone == {phrase: forward[phrase] for phrase in alone}


def test_a_long_text_is_read_whole(phonemizer: Phonemizer) -> None:
    sentence = "the quick brown fox jumps over the lazy dog"
    alone = phonemizer(sentence)
    assert phonemizer(" ".join([f"{sentence}."] * 250)) == " ".join([f"{alone}."] * 250)
    unbroken = phonemizer(" ".join([sentence] * 250)).split()
    assert len(unbroken) == 250 * len(sentence.split())


def test_other_voices(phonemizer: Phonemizer) -> None:
    assert Phonemizer("de")("Straße") == "ʃtɾˈɑːsə"
    assert Phonemizer("en-gb-x-rp")("hot") != phonemizer("hot")
    with pytest.raises(RuntimeError, match="no voice 'xx'"):
        Phonemizer("xx")("hello")


@pytest.mark.parametrize("voice", ["", "../en", "en/us", "EN", "en-us\n", "en-us+../x", "a" * 99])
def test_a_path_is_no_voice(voice: str) -> None:
    with pytest.raises(ValueError, match="is named like"):
        check_voice(voice)


def test_copies_have_their_own_process(phonemizer: Phonemizer) -> None:
    said = phonemizer("hello")
    for other in (copy.deepcopy(phonemizer), pickle.loads(pickle.dumps(phonemizer))):
        assert other("hello") == said
        assert other._child.pid != phonemizer._child.pid


_INHERITED = Phonemizer("en-us")


def _say_inherited(phrase: str) -> tuple[str, int]:
    # By its name: as an argument it would come pickled, as a copy.
    return _INHERITED(phrase), _INHERITED._child.pid


def test_forked_workers_do_not_share_a_pipe() -> None:
    said = {phrase: _say_inherited(phrase) for phrase in PHRASES}
    with multiprocessing.get_context("fork").Pool(2) as pool:
        theirs = dict(zip(PHRASES, pool.map(_say_inherited, PHRASES, chunksize=1)))
    assert {phrase: found[0] for phrase, found in theirs.items()} == {
        phrase: found[0] for phrase, found in said.items()
    }
    ours = {pid for _, pid in said.values()}
    assert len(ours) == 1
    assert not ours & {pid for _, pid in theirs.values()}
    assert _say_inherited("hello world") == said["hello world"]


def test_a_process_that_died_is_told_and_another_starts() -> None:
    phonemizer = Phonemizer("en-us")
    said = phonemizer("hello")
    os.kill(phonemizer._child.pid, signal.SIGKILL)
    phonemizer._child.wait()
    with pytest.raises(RuntimeError, match=r"no phonemes of \['hello'\]"):
        phonemizer("hello")
    assert phonemizer("hello") == said


def test_the_process_ends_with_its_object() -> None:
    phonemizer = Phonemizer("en-us")
    phonemizer("hello")
    child = phonemizer._child
    del phonemizer
    assert child.poll() is not None
