"""Text front ends: ids, and errors that point at what cannot be spoken."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import speechkit
from speechkit.data.dataset import EncodeText, SpeechDataset
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance, write_manifest
from speechkit.data.text_front_end import TextFrontEnd
from speechkit.model_folder.description import describe

LETTERS = [*" '!,.?abcdefghijklmnopqrstuvwxyz", "<end>"]


@pytest.fixture(scope="module")
def characters() -> TextFrontEnd:
    return TextFrontEnd(symbols=LETTERS)


@pytest.fixture(scope="module")
def phonemes() -> TextFrontEnd:
    pytest.importorskip("espeakng_loader")
    return TextFrontEnd.from_texts(["The quick brown fox, Mr. Dog!"], phonemes="en-us")


def test_ids_stand_for_the_pieces(characters: TextFrontEnd) -> None:
    pieces = characters.pieces("Dr. Bee's in!")
    assert "".join(pieces) == "doctor bee's in!<end>"
    ids = characters.encode("Dr. Bee's in!")
    assert [characters.symbols[i - 1] for i in ids] == pieces
    assert min(ids) > characters.pad_id == 0
    assert max(ids) == characters.vocab_size - 1 == len(LETTERS)


def test_case_and_normalisation_are_choices() -> None:
    kept = TextFrontEnd.from_texts(["Dr. X"], normalization=None, lowercase=False, end=False)
    assert kept.symbols == [" ", ".", "D", "X", "r"]
    assert kept.encode(" Dr. X ") == [3, 5, 2, 1, 4]
    assert TextFrontEnd.from_texts(["Dr. Xa"]).symbols == [*" acdortx", "<end>"]


def test_phonemes_have_stress_and_pauses(phonemes: TextFrontEnd) -> None:
    assert {"ˈ", ",", "!", " ", "<end>"} <= set(phonemes.symbols)
    assert phonemes.encode("THE FOX!") == phonemes.encode("the fox!")
    assert len(phonemes.encode("Mister Dog")) == len(phonemes.pieces("Mister Dog"))


@pytest.mark.parametrize("text", ["", "   ", "!?...", "\u200b", "—", "😀", "ʼ"])
@pytest.mark.parametrize("kind", ["characters", "phonemes"])
def test_nothing_to_speak(text: str, kind: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(DataError, match="nothing to speak"):
        request.getfixturevalue(kind).encode(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hello 😀 there", ["'😀' (U+1F600 GRINNING FACE)", "position 6", "hello >>😀<< there"]),
        ("the Москва river", ["CYRILLIC", "the >>М<<осква river"]),
        ("say 你好", ["CJK UNIFIED IDEOGRAPH-4F60", "say >>你<<好"]),
        ("x" * 100 + "*" + "y" * 100, ["ASTERISK", "position 100", "...xxx", ">>*<<", "yyy..."]),
        ("5 * 5", ["5 >>*<< 5"]),
    ],
)
def test_unknown_symbols_are_named_in_their_place(
    text: str, parts: list[str], characters: TextFrontEnd
) -> None:
    with pytest.raises(DataError) as caught:
        characters.encode(text)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["hello 😀", "the Москва river", "five * five", "a 你 b", "a/ b"])
def test_what_espeak_would_pass_over_is_an_error(text: str, phonemes: TextFrontEnd) -> None:
    with pytest.raises(DataError, match=r"cannot be pronounced: .*>>.<<"):
        phonemes.encode(text)


def test_unknown_phonemes_are_shown_among_phonemes(phonemes: TextFrontEnd) -> None:
    with pytest.raises(DataError, match=r"'ʒ' \(U\+0292 .* as it is read: '.*>>u<<ːʒ'"):
        phonemes.encode("the rouge")


def test_many_unknown_symbols_are_counted(characters: TextFrontEnd) -> None:
    with pytest.raises(DataError, match=r"'\+'.* and 1 more; at position 1 of"):
        characters.encode("a+[]{}*^~")


def test_a_long_paragraph(characters: TextFrontEnd, phonemes: TextFrontEnd) -> None:
    text = ("the quick brown fox. " * 500)[:10_000]
    assert len(characters.encode(text)) == len(text.strip()) + 1
    assert len(phonemes.encode("the quick brown fox! " * 476)) > 8_000


def test_from_a_manifest(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "audio": "a.wav", "duration": 1.0, "sample_rate": 8000, "said": text}
        for i, text in enumerate(["ab", "cd 2"])
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = TextFrontEnd.from_manifest(path, field="said", end=False)
    assert made.symbols == list(" abcdotw")
    with pytest.raises(DataError, match="no text in the field 'text'"):
        TextFrontEnd.from_manifest(path)
    with pytest.raises(DataError, match="no text"):
        TextFrontEnd.from_texts([])


def test_items_of_a_dataset(characters: TextFrontEnd) -> None:
    row = Utterance("a", "a.wav", duration=1.0, sample_rate=8000, text="No. 2")
    item = SpeechDataset([row], transforms=[EncodeText(tokenizer=characters)])[0, 0]
    assert isinstance(item, dict)
    assert item["tokens"].tolist() == characters.encode("number two")


class Voice(nn.Module):
    """A model that keeps a front end, as a synthesizer does."""

    def __init__(self, *, front_end: TextFrontEnd) -> None:
        super().__init__()
        self.front_end = front_end
        self.weight = nn.Parameter(torch.zeros(front_end.vocab_size))


def test_model_folders_keep_it(
    phonemes: TextFrontEnd, tmp_path: Path, characters: TextFrontEnd
) -> None:
    pretrained = pytest.importorskip("speechkit.pretrained")
    pretrained.allow(Voice)
    for front_end in (phonemes, characters):
        folder = tmp_path / str(front_end.vocab_size)
        speechkit.save(Voice(front_end=front_end), folder)
        opened = speechkit.load(folder).front_end
        assert describe(opened) == describe(front_end)
        assert opened.encode("the fox") == front_end.encode("the fox")
        assert pickle.loads(pickle.dumps(front_end)).encode("fox") == front_end.encode("fox")


@pytest.mark.parametrize(
    "arguments",
    [
        {"symbols": []},
        {"symbols": ["a", "a"]},
        {"symbols": ["a", ""]},
        {"symbols": ["a", "<pad>"]},
        {"symbols": ["a", 3]},
        {"symbols": ["a"], "normalization": "german"},
        {"symbols": ["a"], "phonemes": "../en"},
    ],
)
def test_wrong_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|is named like"):
        TextFrontEnd(**arguments)  # type: ignore[arg-type]


def test_a_folder_cannot_name_other_things_of_its_modules(tmp_path: Path) -> None:
    from speechkit.model_folder import safety

    for name in ("normalize_english", "DataError", "Phonemizer", "Path"):
        with pytest.raises(safety.PretrainedError, match="not allowed"):
            safety.resolve_class(f"speechkit.data.text_front_end.{name}")
    assert safety.resolve_class("speechkit.data.text_front_end.TextFrontEnd") is TextFrontEnd


def test_a_manifest_with_texts_that_cannot_be_spoken_names_the_rows(tmp_path: Path) -> None:
    texts = ["a fox", "...", "a dog", "!"]
    path = tmp_path / "m.jsonl"
    write_manifest(path, [Utterance(f"u{n}", "-", 1.0, 8000, text=t) for n, t in enumerate(texts)])
    said = r"m.jsonl: 2 texts cannot be spoken \(ids: u1, u3\); the first: nothing to speak.*'...'"
    with pytest.raises(DataError, match=said):
        TextFrontEnd.from_manifest(path)


def test_ids_give_the_pieces_back() -> None:
    front_end = TextFrontEnd.from_texts(["The fox, the dog"])
    for text in ("The dog!", "fox, fox"):
        assert front_end.names(front_end.encode(text)) == front_end.pieces(text)
    for wrong in (0, front_end.vocab_size):
        with pytest.raises(ValueError, match=f"id {wrong} is no symbol's"):
            front_end.names([1, wrong])
