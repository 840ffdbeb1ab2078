"""Codes as data: files, pieces of utterances, blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechkit.data.code_files import CodeLayout, Rate, read_codes, read_layout, write_codes
from speechkit.data.codes import CodeData, cut_blocks
from speechkit.data.errors import DataError

LENGTHS = {"a": 25, "b": 7, "c": 10, "d": 39}


def layout(**changes: Any) -> CodeLayout:
    values: dict[str, Any] = {
        "codec_id": "0123456789abcdef", "sample_rate": 16000, "channels": 1, "hop_length": 320,
        "num_codebooks": 2, "codebook_size": 1000, "rates": (Rate(0.5, 1), Rate(1.0, 2)), **changes,
    }  # fmt: skip
    return CodeLayout(**values)


def numbered() -> list[tuple[str, np.ndarray]]:
    """Give codes that say where they are: hundreds the utterance, the rest the frame."""
    return [
        (name, np.stack([100 * n + np.arange(size), np.zeros(size)]).astype(np.int64))
        for n, (name, size) in enumerate(LENGTHS.items())
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_codes(tmp_path / "train.json", layout(), numbered(), manifest_sha256="abc")
    return tmp_path / "train.json"


def epoch(data: CodeData, number: int, **options: Any) -> dict[str, list[int]]:
    return {
        name: codes[:length, 0].tolist()
        for batch in data.train_loader(number, **options)
        for name, codes, length in zip(batch.ids, *batch.codes)
    }


def test_files_come_back(path: Path) -> None:
    file = read_codes(path)
    assert file.layout == layout() == read_layout(path)
    assert file.layout.chunk_frames == 50
    assert file.frames.dtype == np.uint16
    for (name, codes), utterance in zip(numbered(), file.utterances):
        assert utterance.id == name
        part = file.frames[utterance.start : utterance.start + utterance.num_frames]
        assert np.array_equal(part.T, codes)
    assert json.loads(path.read_text())["manifest_sha256"] == "abc"
    assert path.with_suffix(".npy").stat().st_size == 128 + 2 * 2 * sum(LENGTHS.values())


def test_pieces_lie_side_by_side_at_another_place_every_epoch(path: Path) -> None:
    data = CodeData(train=path, crop_frames=10, max_batch_frames=40, seed=1)
    starts = set()
    for number in range(12):
        pieces = epoch(data, number)
        assert sorted(pieces) == ["a#0", "a#1", "b#0", "c#0", "d#0", "d#1", "d#2"]
        for name, codes in pieces.items():
            assert codes == list(range(codes[0], codes[0] + min(10, LENGTHS[name[0]])))
        assert pieces["a#1"][0] == pieces["a#0"][0] + 10
        assert 0 <= pieces["a#0"][0] <= 5
        assert pieces["b#0"][0] == 100
        assert 300 <= pieces["d#0"][0] == pieces["d#2"][0] - 20 <= 309
        starts.add(pieces["a#0"][0])
    assert len(starts) > 2
    assert epoch(data, 3) == epoch(CodeData(train=path, crop_frames=10, max_batch_frames=20,
                                            seed=1), 3)  # fmt: skip


def test_a_loader_resumes_and_is_shared_out(path: Path) -> None:
    data = CodeData(train=path, crop_frames=10, max_batch_frames=20)
    ids = [batch.ids for batch in data.train_loader(2)]
    assert [batch.ids for batch in data.train_loader(2, start_batch=2)] == ids[2:]
    parts = [[b.ids for b in data.train_loader(2, rank=r, world_size=2)] for r in (0, 1)]
    assert parts[0] == ids[0::2]
    assert len(parts[0]) == len(parts[1]) == -(-len(ids) // 2)


def test_evaluation_takes_whole_utterances_once(path: Path) -> None:
    data = CodeData(train=path, valid=path, crop_frames=10, max_batch_frames=20)
    seen = {
        name: int(length)
        for batch in data.eval_loader("valid")
        for name, length in zip(batch.ids, batch.codes.lengths)
    }
    assert seen == LENGTHS
    assert [len(batch) for batch in data.eval_loader("valid")] == [1, 1, 2]


def test_overfitting_and_limits(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "valid.json"
    write_codes(other, layout(), [("v", np.ones((2, 5)))], manifest_sha256="")
    data = CodeData(train=path, valid=other, crop_frames=10, max_batch_frames=100, overfit=2)
    assert epoch(data, 0) == epoch(data, 5)
    assert epoch(data, 0)["a#1"] == list(range(10, 20))
    (batch,) = data.eval_loader("valid")
    assert batch.ids == ["a", "b"]
    assert batch.codes.data[0, :, 0].tolist() == list(range(25))
    limited = CodeData(train=path, valid=other, crop_frames=10, max_batch_frames=100, limit=3)
    assert sorted(epoch(limited, 0)) == ["a#0", "a#1", "b#0", "c#0"]
    short = CodeData(train=path, max_batch_frames=50, max_utterance_frames=10)
    assert sorted(epoch(short, 0)) == ["b#0", "c#0"]
    with pytest.raises(DataError, match="longer than max_batch_frames=20: a, d"):
        CodeData(train=path, max_batch_frames=20)


def test_splits_of_two_codecs_are_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "valid.json"
    write_codes(other, layout(codec_id="00" * 8), [("v", np.ones((2, 5)))], manifest_sha256="")
    with pytest.raises(DataError, match=r"valid.json is not of the codec of .*train.json"):
        CodeData(train=path, valid=other, max_batch_frames=50)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([("a", np.ones((3, 5)))], r"codes of 'a' are \(3, 5\), not \(2, frames\)"),
        ([("a", np.ones((2, 0)))], "at least one frame"),
        ([("a", np.full((2, 5), 1000))], "lie between 1000 and 1000; the codebooks have 0 to 999"),
        ([("a", np.full((2, 5), -1))], "lie between -1 and -1"),
        ([], "no utterance"),
    ],
)
def test_what_is_not_written(
    codes: list[tuple[str, np.ndarray]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        write_codes(tmp_path / "train.json", layout(), codes, manifest_sha256="")
    assert not list(tmp_path.iterdir())


def damage_index(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), r"train.json: no such file"),
        (lambda p: p.with_suffix(".npy").unlink(), r"train.npy: no such file"),
        (lambda p: p.write_text("{"), "not a file of codes"),
        (lambda p: damage_index(p, format=99), "'format' is not 1"),
        (lambda p: damage_index(p, utterances=[["a", 80]]), r"names \(80, 2\) codes, .* \(81, 2\)"),
        (lambda p: damage_index(p, layout={"rates": []}), "not a file of codes"),
        (lambda p: p.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00"), "not a file of codes"),
        (lambda p: np.save(p.with_suffix(".npy"), np.full((81, 2), 1000, dtype=np.uint16)),
         "codes above 999"),
    ],
)  # fmt: skip
def test_broken_files_are_named(path: Path, damage: Any, message: str) -> None:
    damage(path)
    with pytest.raises(DataError, match=message):
        read_codes(path)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 12))
def test_blocks_are_the_utterances(lengths: list[int], size: int) -> None:
    codes = torch.arange(1, len(lengths) * 2 * max(lengths) + 1).view(len(lengths), 2, -1)
    blocks, frames, owners = cut_blocks(codes, torch.tensor(lengths), size)
    assert blocks.shape[1:] == (2, size)
    assert int(frames.min()) > 0
    for item, length in enumerate(lengths):
        own = [b[:, :n] for b, n, o in zip(blocks, frames, owners) if int(o) == item]
        assert all(part.shape[1] == size for part in own[:-1])
        assert torch.equal(torch.cat(own, dim=1), codes[item, :, :length])
