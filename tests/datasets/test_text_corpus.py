"""Text into splits: which line goes where, what is refused, what is not made again."""

from __future__ import annotations

import gzip
from itertools import chain
from pathlib import Path

import pytest

from speechkit.data.manifest import DataError, Utterance, write_manifest
from speechkit.datasets.text_corpus import from_manifest, prepare

SHARES = {"valid_share": 0.2, "test_share": 0.1}


def lines_of(splits: dict[str, Path]) -> dict[str, list[str]]:
    return {name: path.read_text().splitlines() for name, path in splits.items()}


def all_lines(splits: dict[str, list[str]]) -> list[str]:
    return sorted(chain.from_iterable(splits.values()))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.txt"
    path.write_text("".join(f"SENTENCE  {n}\n\n" for n in range(400)))
    return path


@pytest.fixture
def with_ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt.gz"
    rows = (f"{reader}-7-{n:04d} WORDS {reader} {n}\n" for reader in range(60) for n in range(5))
    path.write_bytes(gzip.compress("".join(rows).encode()))
    return path


def test_every_line_is_in_one_split(plain: Path, tmp_path: Path) -> None:
    splits = prepare(plain, tmp_path / "out", **SHARES)
    assert {name: path.name for name, path in splits.items()} == {
        name: f"{name}.txt" for name in ("train", "valid", "test")
    }
    lines = lines_of(splits)
    assert all_lines(lines) == sorted(f"SENTENCE {n}" for n in range(400))
    assert 50 < len(lines["valid"]) < 110
    assert 20 < len(lines["test"]) < 70
    order = [int(line.split()[1]) for line in lines["train"]]
    assert order == sorted(order)


def test_the_split_does_not_depend_on_what_else_there_is(plain: Path, tmp_path: Path) -> None:
    first = lines_of(prepare(plain, tmp_path / "a", **SHARES))
    more = tmp_path / "more.txt"
    more.write_text("SENTENCE 3\n" + "".join(f"ANOTHER {n}\n" for n in range(100)))
    second = lines_of(prepare([more, plain], tmp_path / "b", **SHARES))
    for name, lines in first.items():
        assert set(lines) <= set(second[name])
    assert sum(lines.count("SENTENCE 3") for lines in second.values()) == 2  # and in one split:
    assert sum("SENTENCE 3" in lines for lines in second.values()) == 1
    other = lines_of(prepare(plain, tmp_path / "c", **SHARES, seed=1))
    assert other["test"] != first["test"]


def test_readers_stay_together(with_ids: Path, tmp_path: Path) -> None:
    lines = lines_of(prepare(with_ids, tmp_path / "out", ids=True, group_parts=1, **SHARES))
    readers = {name: {line.split()[1] for line in own} for name, own in lines.items()}
    assert sum(map(len, readers.values())) == 60 == len(set.union(*readers.values()))
    assert sum(map(len, lines.values())) == 300
    apart = lines_of(prepare(with_ids, tmp_path / "apart", ids=True, **SHARES))
    shared = {line.split()[1] for line in apart["train"]} & {
        line.split()[1] for line in apart["test"]
    }
    assert shared
    assert all_lines(apart) == all_lines(lines)


def test_patterns_and_brackets(tmp_path: Path) -> None:
    for name in ("1/a.trans.txt", "2/b.trans.txt", "2/[x].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(f"{name} {n}\n" for n in range(9)))
    sources = [f"{tmp_path}/*/*.trans.txt", tmp_path / "2/[x].txt", tmp_path / "1/a.trans.txt"]
    lines = lines_of(prepare(sources, tmp_path / "out", valid_share=0.4, test_share=0.0))
    assert set(lines) == {"train", "valid"}
    assert sum(map(len, lines.values())) == 27  # a file named twice is read once


def test_nothing_is_made_twice(plain: Path, tmp_path: Path) -> None:
    splits = prepare(plain, tmp_path / "out", **SHARES)
    before = {path: path.stat().st_mtime_ns for path in splits.values()}
    assert prepare(plain, tmp_path / "out", **SHARES) == splits
    assert {path: path.stat().st_mtime_ns for path in splits.values()} == before
    splits["test"].write_text("changed\n")
    prepare(plain, tmp_path / "out", **SHARES)
    assert "changed" not in splits["test"].read_text()
    with plain.open("a") as file:
        file.write("ONE MORE LINE\n")
    assert "ONE MORE LINE" in all_lines(lines_of(prepare(plain, tmp_path / "out", **SHARES)))


def test_from_manifest(tmp_path: Path) -> None:
    for name, text in (("a", "ONE  TWO"), ("b", "THREE")):
        write_manifest(tmp_path / f"{name}.jsonl", [Utterance(name, "-", 1.0, 8000, text=text)])
    (tmp_path / "c.txt").write_text("FOUR\n")
    both = [tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.txt"]
    written = from_manifest({"train": both, "valid": tmp_path / "b.jsonl"}, tmp_path / "text")
    assert lines_of(written) == {"train": ["ONE TWO", "THREE", "FOUR"], "valid": ["THREE"]}
    with pytest.raises(DataError, match="no such manifest"):
        from_manifest({"train": tmp_path / "none.jsonl"}, tmp_path / "text")


def test_what_is_refused(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"nowhere.*: no such file"):
        prepare(tmp_path / "nowhere*.txt", out)
    with pytest.raises(DataError, match="at least one"):
        prepare([], out)
    with pytest.raises(ValueError, match="below 1 together"):
        prepare(plain, out, valid_share=0.5, test_share=0.5)
    with pytest.raises(ValueError, match="group_parts=1 needs ids=True"):
        prepare(plain, out, group_parts=1)
    plain.write_text("u1 ONE\nu2\n")
    with pytest.raises(DataError, match=r"line 2: 'u2' has no text\n.*utt_id TEXT"):
        prepare(plain, out, ids=True)
    plain.write_text("ONE\n")
    with pytest.raises(DataError, match="too little text: nothing falls into"):
        prepare(plain, out)
    assert not out.exists()
