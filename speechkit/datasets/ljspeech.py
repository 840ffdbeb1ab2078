"""LJSpeech: one reader of English books, 24 hours at 22.05 kHz (Ito & Johnson, 2017).

The folder holds ``metadata.csv`` with rows ``id|text|text in words`` and ``wavs/<id>.wav``. Any
part of the clips will do, and so will FLAC files, in ``flac/`` or ``wavs/``.
"""

from __future__ import annotations

import os
from pathlib import Path

from speechkit.data.manifest import DataError
from speechkit.datasets.download import fetch_corpus
from speechkit.datasets.spoken_texts import Clip, prepare_clips

URL = "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2"
CHECKSUM = "sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"
_PLACES = ("wavs/{}.wav", "flac/{}.flac", "wavs/{}.flac")
_LAYOUT = (
    "Expected <root>/metadata.csv with rows id|text|text in words, and <root>/wavs/<id>.wav, as in "
    "https://keithito.com/LJ-Speech-Dataset"
)


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    extra_root: str | os.PathLike[str] | None = None,
    valid: float = 0.02,
    test: float = 0.04,
    seed: int = 0,
) -> dict[str, Path]:
    """Write one manifest a split; does nothing where they are up to date.

    The split of a clip is a function of its id and the seed alone: a hash gives each id a place in
    [0, 1), and places below ``test`` are tested, those below ``test + valid`` validate. So a clip
    that an excerpt trains on is never tested in the whole corpus. Each row has the text in words,
    ``speaker`` ``"LJ"``, and the text as printed as ``raw_text``.

    Parameters
    ----------
    root : path
        The folder described above.
    out : path
        Where ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl`` go.
    extra_root : path, optional
        A second folder like it, with other clips.
    valid, test : float
        Shares of the clips, about; where one is 0 there is no such split.
    seed : int
        Of the hash.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When rows are malformed, audio files are missing or unreadable or have no row (all of them
        are named, with row and file, the first 20 in full), or a split is empty.
    ValueError
        When the shares leave nothing to train on.
    """
    out = Path(out).absolute()
    roots = [Path(folder).absolute() for folder in (root, extra_root) if folder is not None]
    problems: list[str] = []
    clips = [clip for folder in roots for clip in _read_folder(folder, problems)]
    return prepare_clips(
        out, clips, problems, corpus="ljspeech", root=roots[0], layout=_LAYOUT,
        tables=[folder / "metadata.csv" for folder in roots], valid=valid, test=test, seed=seed,
    )  # fmt: skip


def _read_folder(root: Path, problems: list[str]) -> list[Clip]:
    """Read the rows of a folder that are good; what is wrong with others goes to `problems`."""
    table = root / "metadata.csv"
    if not table.is_file():
        raise DataError(f"{table}: no such file. {_LAYOUT}; ljspeech.download fetches the corpus")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table}: not text in UTF-8 ({error.reason} at byte {error.start}); convert the file"
        ) from error
    clips: list[Clip] = []
    # Quotes are quotes here, whatever a CSV reader would make of them.
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{table}, row {number}"
        fields = [field.strip() for field in line.strip().split("|")]
        if fields == [""]:
            continue
        if len(fields) != 3 or not all(fields):
            problems.append(f"{where}: expected id|text|text in words, got {line[:200]!r}")
            continue
        found = [root / place.format(fields[0]) for place in _PLACES]
        path = next((path for path in found if path.is_file()), None)
        if path is None or Path(fields[0]).name != fields[0]:
            problems.append(f"{where}: {fields[0]} has no audio file {found[0]}")
            continue
        clips.append(Clip(fields[0], path, fields[2], "LJ", {"raw_text": fields[1]}, where))
    if not clips and not problems:
        problems.append(f"{table}: no rows")
    known = {clip.id for clip in clips}
    audio = [*root.glob("wavs/*.wav"), *root.glob("wavs/*.flac"), *root.glob("flac/*.flac")]
    if not problems:
        problems.extend(
            f"{path} has no row in {table.name}" for path in sorted(audio) if path.stem not in known
        )
    return clips


def download(
    root: str | os.PathLike[str], *, url: str = URL, checksum: str | None = CHECKSUM
) -> Path:
    """Fetch LJSpeech (2.6 GB) and extract it; nothing where it is there.

    A download that was cut off goes on where it stopped, in this call or a later one.

    Parameters
    ----------
    root : path
        Where ``LJSpeech-1.1/`` goes.
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
        When the archive does not hold LJSpeech.
    """
    fetch_corpus(url, root, holds="LJSpeech-1.1/metadata.csv", checksum=checksum, layout=_LAYOUT)
    return Path(root).absolute() / "LJSpeech-1.1"
