"""UrbanSound8K: 8,732 clips of ten sounds of the city in ten folds (Salamon et al., 2014).

The folder holds ``metadata/UrbanSound8K.csv`` and ``audio/fold1/`` to ``audio/fold10/``. Clips are
up to 4 s, of many rates and one or two channels. The corpus is CC BY-NC.
"""

from __future__ import annotations

import os
from pathlib import Path

from speechkit.datasets.download import fetch_corpus
from speechkit.datasets.folds import Clip, fold_numbers, prepare_folds, read_table

FOLDS = tuple(range(1, 11))
URL = "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz"
CHECKSUM = "md5:9aa69802bbf37fb986f71ec1483a196e"
_COLUMNS = ("slice_file_name", "fsID", "salience", "fold", "classID", "class")
_LAYOUT = (
    "Expected <root>/metadata/UrbanSound8K.csv with the columns slice_file_name, fsID, start, end, "
    "salience, fold, classID, class, and <root>/audio/fold<number>/<slice_file_name>, as in "
    "https://urbansounddataset.weebly.com/urbansound8k.html"
)


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    fold: int = 1,
    valid_fold: int | None = None,
    valid_share: float = 0.0,
    seed: int = 0,
) -> dict[str, Path]:
    """Write the manifests of one turn of the rotation; does nothing where they are up to date.

    The corpus asks for its own ten folds in rotation, and the mean of the ten results: clips of
    one recording are in one fold. Each row has ``label`` (the class), ``target``, ``fold``,
    ``source`` (the recording) and ``salience`` (1 in the foreground, 2 in the background).

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
        root, out, _clips(root), fold=fold, valid_fold=valid_fold, valid_share=valid_share,
        seed=seed, layout=_LAYOUT,
    )  # fmt: skip


def folds(root: str | os.PathLike[str]) -> list[int]:
    """Return the folds that have clips: the turns of the rotation."""
    return fold_numbers(_clips(Path(root).absolute()))


def download(
    root: str | os.PathLike[str], *, url: str = URL, checksum: str | None = CHECKSUM
) -> Path:
    """Fetch UrbanSound8K (5.6 GiB) and extract it; nothing where it is there.

    Parameters
    ----------
    root : path
        Where ``UrbanSound8K/`` goes.
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
        When the archive does not hold UrbanSound8K.
    """
    fetch_corpus(
        url, root, holds="UrbanSound8K/metadata/UrbanSound8K.csv", checksum=checksum, layout=_LAYOUT
    )
    return Path(root).absolute() / "UrbanSound8K"


def _clips(root: Path) -> list[Clip]:
    def parse(row: dict[str, str]) -> Clip:
        name, fold = row["slice_file_name"], int(row["fold"])
        if not row["class"] or Path(name).name != name or not name:
            raise ValueError(f"no class, or no plain file name: {row}")
        return Clip(
            id=Path(name).stem,
            path=root / "audio" / f"fold{fold}" / name,
            fold=fold,
            label=row["class"],
            source=row["fsID"],
            extra={"target": int(row["classID"]), "salience": int(row["salience"])},
        )

    return read_table(root / "metadata" / "UrbanSound8K.csv", _COLUMNS, parse, _LAYOUT)
