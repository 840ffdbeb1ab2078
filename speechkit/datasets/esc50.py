"""ESC-50: 2,000 clips of 50 environmental sounds in five folds (Piczak, ACM Multimedia 2015).

The folder holds ``meta/esc50.csv`` and ``audio/``. Any part of the clips will do, in any format:
ESC-10, its ten classes under CC BY, is the rows whose ``esc10`` is true. The rest is CC BY-NC.
"""

from __future__ import annotations

import os
from pathlib import Path

from speechkit.datasets.download import fetch_corpus
from speechkit.datasets.folds import Clip, fold_numbers, prepare_folds, read_table

FOLDS = (1, 2, 3, 4, 5)
# A copy that stays as it is: GitHub's archive of the branch changes with each commit to its README.
URL = "https://paddleaudio.bj.bcebos.com/datasets/ESC-50-master.zip"
CHECKSUM = "md5:7771e4b9d86d0945acce719c7a59305a"
_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file")
_LAYOUT = (
    "Expected <root>/meta/esc50.csv with the columns filename, fold, target, category, esc10, "
    "src_file, take, and <root>/audio/<filename>, as in https://github.com/karolpiczak/ESC-50"
)


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    fold: int = 1,
    valid_fold: int | None = None,
    valid_share: float = 0.0,
    esc10: bool = False,
    seed: int = 0,
) -> dict[str, Path]:
    """Write the manifests of one turn of the rotation; does nothing where they are up to date.

    One fold is tested and the others train. The published protocol has no validation: with
    ``valid_fold`` another fold validates, with ``valid_share`` some of the recordings that training
    clips were cut from. Each row has ``label`` (the category), ``target``, ``fold``,
    ``source`` (the recording) and ``esc10``.

    Parameters
    ----------
    root : path
        The folder described above.
    out : path
        Where ``train.jsonl``, ``test.jsonl`` and perhaps ``valid.jsonl`` go: one folder a turn.
    fold : int
        Which fold is tested.
    valid_fold : int, optional
        Which fold validates.
    valid_share : float
        Instead: share of each label's training clips that validates, or a little more, as clips of
        one recording stay together.
    esc10 : bool
        Take the ten classes of ESC-10 only.
    seed : int
        Of the choice by ``valid_share``.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When the table is missing or wrong, a fold has no clips, or files are missing or unreadable:
        all of them are named (the first 20 in full).
    ValueError
        When the arguments contradict each other.
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    return prepare_folds(
        root, out, _clips(root, esc10), fold=fold, valid_fold=valid_fold, valid_share=valid_share,
        seed=seed, layout=_LAYOUT,
    )  # fmt: skip


def folds(root: str | os.PathLike[str], *, esc10: bool = False) -> list[int]:
    """Return the folds that have clips: the turns of the rotation.

    Parameters
    ----------
    root, esc10
        As in `prepare`, whose errors about the table this raises.
    """
    return fold_numbers(_clips(Path(root).absolute(), esc10))


def download(
    root: str | os.PathLike[str], *, url: str = URL, checksum: str | None = CHECKSUM
) -> Path:
    """Fetch ESC-50 (616 MiB) and extract it; nothing where it is there.

    Parameters
    ----------
    root : path
        Where ``ESC-50-master/`` goes.
    url, checksum : str
        Of another copy; no checksum takes what comes.

    Returns
    -------
    Path
        The folder that `prepare` takes.

    Raises
    ------
    DownloadError
        When the archive cannot be fetched, has another checksum or is not safe to extract.
    DataError
        When the archive does not hold ESC-50.
    """
    fetch_corpus(url, root, holds="ESC-50-master/meta/esc50.csv", checksum=checksum, layout=_LAYOUT)
    return Path(root).absolute() / "ESC-50-master"


def _clips(root: Path, esc10: bool) -> list[Clip]:
    def parse(row: dict[str, str]) -> Clip:
        name = row["filename"]
        if not row["category"] or Path(name).name != name or not name:
            raise ValueError(f"no category, or no plain file name: {row}")
        flag = row["esc10"].strip().lower()
        if flag not in ("true", "false"):
            raise ValueError(f"esc10 must be True or False, is {row['esc10']!r}")
        return Clip(
            id=Path(name).stem,
            path=root / "audio" / name,
            fold=int(row["fold"]),
            label=row["category"],
            source=row["src_file"],
            extra={"target": int(row["target"]), "esc10": flag == "true"},
        )

    clips = read_table(root / "meta" / "esc50.csv", _COLUMNS, parse, _LAYOUT)
    if esc10:
        clips = [clip for clip in clips if clip.extra["esc10"]]
    return clips
