"""Any folder with a metadata.csv: its forms, and rows that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechkit.data.audio import write_audio
from speechkit.data.manifest import DataError, Utterance, check_manifest, read_manifest
from speechkit.datasets import metadata_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("one.wav", "wavs/two.wav", "clips/a/three.flac"):
        write_audio(tmp_path / "data" / name, torch.rand(1600) - 0.5, 16000)
    return tmp_path / "data"


def rows_of(root: Path, table: str, **arguments: float | str) -> list[Utterance]:
    (root / "metadata.csv").write_text(table, encoding="utf-8")
    shares = {"valid": 0.0, "test": 0.0, **arguments}
    made = metadata_folder.prepare(root, root.parent / "out", **shares)  # type: ignore[arg-type]
    assert check_manifest(made["train"], read_samples=True) == []
    return read_manifest(made["train"])


TABLES = {
    "two columns": "one|A, \"b\".\ntwo|C\na/three|D\n",
    "three columns": "one|1|A, \"b\".\ntwo|C|C\na/three|D|D\n",
    "bars": "File|Text\none.wav|A, \"b\".\nwavs/two.wav|C\na/three.flac|D\n",
    "tabs": "\ufeffpath\tsentence\r\none.wav\tA, \"b\".\r\ntwo.wav\tC\r\na/three.flac\tD\r\n",
    "commas": 'file_name,transcription\none.wav,"A, ""b""."\ntwo.wav,C\na/three.flac,D\n',
}  # fmt: skip


@pytest.mark.parametrize("form", TABLES)
def test_every_form(form: str, root: Path) -> None:
    rows = rows_of(root, TABLES[form], speaker="me")
    assert [(row.id.removeprefix("wavs/"), row.text) for row in rows] == [
        ("one", 'A, "b".'), ("two", "C"), ("a/three", "D"),
    ]  # fmt: skip
    assert {row.speaker for row in rows} == {"me"}
    assert rows[0].extra == ({"raw_text": "1"} if form == "three columns" else {})


def test_columns_of_speaker_split_and_more(root: Path) -> None:
    (root / "metadata.csv").write_text(
        "id|text|normalized_text|speaker|split|style|duration\none|1|One|anna|train|sad|9\n"
        "two|2|Two|bert|train||9\na/three|3|Three|anna|other_test|calm|9\n"
    )
    made = metadata_folder.prepare(root, root.parent / "out", speaker="nobody")
    assert list(made) == ["other_test", "train"]
    rows = read_manifest(made["train"])
    assert [(row.text, row.speaker, row.duration) for row in rows] == [
        ("One", "anna", 0.1), ("Two", "bert", 0.1),
    ]  # fmt: skip
    assert rows[0].extra == {"raw_text": "1", "style": "sad"}


def test_shares_divide_by_ids(root: Path) -> None:
    for number in range(60):
        write_audio(root / f"c{number}.wav", torch.rand(80), 16000)
    (root / "metadata.csv").write_text("".join(f"c{i}|text {i}\n" for i in range(60)))
    made = metadata_folder.prepare(root, root.parent / "out", valid=0.2, test=0.2)
    sizes = {split: len(read_manifest(path)) for split, path in made.items()}
    assert sum(sizes.values()) == 60
    assert min(sizes.values()) >= 5


def test_a_row_without_audio_is_named_with_its_file(root: Path) -> None:
    table = "file|text|split\none.wav|A|train\nnine.wav|B|train\ntwo.wav||train\n\n"
    table += "|x|train\ntwo.wav|C\ntwo.wav|C|../up\n"
    with pytest.raises(DataError) as caught:
        rows_of(root, table)
    for part in (
        "5 problems", "metadata.csv, row 3: there is no audio file nine.wav", "row 4: no text",
        "row 6: no file", "row 7: 2 fields, but the header has 3", "row 8: '../up' cannot be",
    ):  # fmt: skip
        assert part in str(caught.value)
    (root / "two.wav").write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"row 2: .*two\.wav"):
        rows_of(root, "one|A\ntwo|B\n")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "no clips"),
        ("file|words\none.wav|A\n", "names no column of the text"),
        ("speaker,text\na,b\n", "names no column of the file"),
        ("one|A|B|C\n", "row 1: 4 fields"),
        ("one|A\none|B\n", r"one is in .*row 1 too"),
    ],
)
def test_wrong_tables(table: str, message: str, root: Path) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(root, table)


def test_no_table_and_no_text(root: Path) -> None:
    with pytest.raises(DataError, match=r"metadata\.csv: no such table"):
        metadata_folder.prepare(root, root.parent / "out")
    (root / "metadata.csv").write_bytes(b"one|\xff\xfe")
    with pytest.raises(DataError, match=r"not text in UTF-8 .* at byte 4"):
        metadata_folder.prepare(root, root.parent / "out")
