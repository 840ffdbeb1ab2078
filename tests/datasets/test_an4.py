"""AN4: lists, transcripts in both styles, WAV and SPHERE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechkit.data.audio import read_audio, write_audio
from speechkit.data.manifest import DataError, check_manifest, read_manifest
from speechkit.datasets import an4


def make_corpus(root: Path) -> Path:
    (root / "etc").mkdir(parents=True)
    lists = {
        "train.fileids": "an4_clstk/fash/an251-fash-b\nan4_clstk/mtje/an32-mtje-b\n",
        "train.transcription": "<s> YES </s> (an251-fash-b)\n<s> GO ON </s> (an32-mtje-b)\n",
        "test.fileids": "an4test_clstk/fcaw/an409-fcaw-b\n",
        "test.transcription": "TWO FORTY (an409-fcaw-b)\n",
    }
    for name, text in lists.items():
        (root / "etc" / f"an4_{name}").write_text(text)
        if name.endswith("fileids"):
            for item in text.split():
                write_audio(root / "wav" / f"{item}.wav", torch.rand(4000) - 0.5, 16000)
    return root


def test_rows(tmp_path: Path) -> None:
    manifests = an4.prepare(make_corpus(tmp_path / "an4"), tmp_path / "out")
    train, test = (read_manifest(manifests[split]) for split in ("train", "test"))
    assert [(row.id, row.text, row.speaker, row.extra["gender"]) for row in train + test] == [
        ("an251-fash-b", "YES", "fash", "F"),
        ("an32-mtje-b", "GO ON", "mtje", "M"),
        ("an409-fcaw-b", "TWO FORTY", "fcaw", "F"),
    ]
    assert (train[0].duration, train[0].sample_rate) == (0.25, 16000)
    before = manifests["train"].stat().st_mtime_ns
    an4.prepare(tmp_path / "an4", tmp_path / "out")
    assert manifests["train"].stat().st_mtime_ns == before


def test_everything_wrong_is_named(tmp_path: Path) -> None:
    root = make_corpus(tmp_path / "an4")
    (root / "wav/an4_clstk/fash/an251-fash-b.wav").unlink()
    (root / "wav/an4_clstk/mtje/an32-mtje-b.wav").write_bytes(b"no audio")
    with (root / "etc/an4_train.fileids").open("a") as file:
        file.write("an4_clstk/mtje/an33-mtje-b\n")
    with (root / "etc/an4_train.transcription").open("a") as file:
        file.write("NO ID\n")
    with pytest.raises(DataError) as caught:
        an4.prepare(root, tmp_path / "out")
    for part in (
        "5 problems", "no wav/an4_clstk/fash/an251-fash-b.wav or .sph", "an32-mtje-b.wav",
        "an33-mtje-b: no row in an4_train.transcription", "an33-mtje-b.wav or .sph",
        "row 3: expected 'WORDS (id)', got 'NO ID'",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_wrong_folder_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no etc/an4_train\.fileids[\s\S]*Expected <root>/etc"):
        an4.prepare(tmp_path, tmp_path / "out")


def test_real_excerpt_and_sphere_files(real_data: Path, tmp_path: Path) -> None:
    manifests = an4.prepare(real_data / "an4", tmp_path / "out")
    assert len(read_manifest(manifests["train"])) > 40
    for path in manifests.values():
        assert not check_manifest(path)
    # The same utterances with the original SPHERE files alone give the same samples.
    sphere = sorted((real_data / "an4" / "wav" / "an4_clstk").glob("*/*.sph"))
    root = make_corpus(tmp_path / "sphere")
    items = [path.relative_to(real_data / "an4" / "wav").with_suffix("") for path in sphere]
    (root / "etc/an4_train.fileids").write_text("".join(f"{item}\n" for item in items))
    (root / "etc/an4_train.transcription").write_text(
        "".join(f"<s> A </s> ({item.name})\n" for item in items)
    )
    for item, path in zip(items, sphere):
        (root / "wav" / item).parent.mkdir(parents=True, exist_ok=True)
        (root / "wav" / item).with_suffix(".wav").unlink(missing_ok=True)
        (root / "wav" / item).with_suffix(".sph").write_bytes(path.read_bytes())
    rows = read_manifest(an4.prepare(root, tmp_path / "out2")["train"])
    assert {Path(row.audio).suffix for row in rows} == {".sph"}
    for row, path in zip(rows, sphere):
        assert torch.equal(read_audio(row.audio)[0], read_audio(path.with_suffix(".wav"))[0])
