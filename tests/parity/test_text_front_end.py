"""The symbols of published Tacotron 2 models, against SpeechBrain's text_to_sequence."""

from __future__ import annotations

import warnings

import pytest

from speechkit.data.text_front_end import TextFrontEnd


def test_the_ids_of_published_models() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("speechbrain.utils.text_to_sequence")
    front_end = TextFrontEnd.tacotron2()
    assert front_end.vocab_size == len(peer.symbols) == 148
    assert front_end.symbols == peer.symbols[1:]
    for text in ("Hello, world!", "it's (quite) plain: a-b; or? yes."):
        assert front_end.encode(text) == peer.text_to_sequence(text, ["basic_cleaners"])
