"""LibriTTS: sentences of LibriSpeech's audiobooks, 24 kHz, with punctuation (Zen et al., 2019).

The layout is ``<subset>/<reader>/<chapter>/<reader>_<chapter>_<paragraph>_<sentence>.wav`` with
``.normalized.txt`` and ``.original.txt`` beside each, and ``speakers.tsv`` or ``SPEAKERS.txt``
beside the subsets. Any part of it will do; LibriTTS-R has the same layout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechkit.data.manifest import DataError
from speechkit.datasets import preparation
from speechkit.datasets.download import fetch_subsets
from speechkit.datasets.spoken_texts import Clip, prepare_clips

BASE_URL = "https://www.openslr.org/resources/60"
CHECKSUMS = {
    "dev-clean": "sha256:da0864e1bd26debed35da8a869dd5c04dfc27682921936de7cff9c8a254dbe1a",
    "dev-other": "sha256:d413eda26f3a152ac7c9cf3658ef85504dfb1b625296e5fa83727f5186cca79c",
    "test-clean": "sha256:234ea5b25859102a87024a4b9b86641f5b5aaaf1197335c95090cde04fe9a4f5",
    "test-other": "sha256:33a5342094f3bba7ccc2e0500b9e72d558f72eb99328ac8debe1d9080402f10d",
    "train-clean-100": "sha256:c5608bf1ef74bb621935382b8399c5cdd51cd3ee47cec51f00f885a64c6c7f6b",
    "train-clean-360": "sha256:ce7cff44dcac46009d18379f37ef36551123a1dc4e5c8e4eb73ae57260de4886",
    "train-other-500": "sha256:e35f7e34deeb2e2bdfe4403d88c8fdd5fbf64865cae41f027a185a6965f0a5df",
}
_LAYOUT = (
    "Expected <root>/<subset>/<reader>/<chapter>/<reader>_<chapter>_000000_000000.wav and "
    ".normalized.txt of the same name, as in https://www.openslr.org/60"
)


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    subsets: Sequence[str] | None = None,
) -> dict[str, Path]:
    """Write one manifest a subset; does nothing for those that are up to date.

    Each row has the normalized text, the reader as ``speaker``, the ``chapter``, the text as
    printed as ``raw_text`` where it is there, and ``gender`` (``"F"`` or ``"M"``) where the table
    of speakers names the reader.

    Parameters
    ----------
    root : path
        The corpus folder, or the one that holds ``LibriTTS/``.
    out : path
        Where ``<subset>.jsonl`` goes.
    subsets : sequence of str, optional
        Which subsets, such as ``"train-clean-100"``; all that are there by default.

    Returns
    -------
    dict
        Subset to manifest.

    Raises
    ------
    DataError
        When a subset is not there, or texts or audio files are missing, empty or unreadable: all of
        them are named (the first 20 in full).
    """
    corpus = Path(root).absolute()
    if (corpus / "LibriTTS").is_dir():
        corpus = corpus / "LibriTTS"
    out = Path(out).absolute()
    present = sorted({path.parents[2].name for path in corpus.glob("*/*/*/*.wav")})
    wanted = list(subsets) if subsets is not None else present
    missing = [subset for subset in wanted if subset not in present]
    if missing or not wanted:
        raise DataError(
            f"{corpus}: no subset {', '.join(missing) or 'at all'} here (found: "
            f"{', '.join(present) or 'none'}). {_LAYOUT}"
        )
    genders = _genders(corpus)
    written: dict[str, Path] = {}
    for subset in wanted:
        problems: list[str] = []
        clips = _clips(corpus / subset, genders, problems)
        written |= prepare_clips(
            out, clips, problems, corpus=f"libritts-{subset}", root=corpus, layout=_LAYOUT,
            tables=(corpus / subset).glob("*/*/*.txt"), valid=0.0, test=0.0, seed=0,
        )  # fmt: skip
    return written


def prepare_splits(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    splits: Mapping[str, Sequence[str]],
) -> dict[str, Path]:
    """Write one manifest a split, each of one or several subsets.

    Readers of LibriTTS are in one subset only, so splits of different subsets have different ones.

    Parameters
    ----------
    root : path
        As `prepare` takes it.
    out : path
        Where ``<split>.jsonl`` goes; the subsets' own manifests go to ``subsets/`` in it.
    splits : mapping of str to sequence of str
        Such as ``{"train": ["train-clean-100", "train-clean-360"], "valid": ["dev-clean"]}``.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        As `prepare`.
    """
    return preparation.join_subsets(
        lambda out, subsets: prepare(root, out, subsets=subsets), out, splits
    )


def download(
    root: str | os.PathLike[str],
    subsets: Sequence[str],
    *,
    base_url: str = BASE_URL,
    checksums: Mapping[str, str] | None = None,
    keep_archives: bool = False,
) -> Path:
    """Fetch subsets from OpenSLR, check them and extract them; those that are there stay.

    A download that was cut off goes on where it stopped, in this call or a later one.

    Parameters
    ----------
    root : path
        Where ``LibriTTS/`` appears.
    subsets : sequence of str
        Names such as ``"train-clean-100"``.
    base_url : str
        Where the archives ``<subset>.tar.gz`` are; a mirror, for example.
    checksums : mapping, optional
        ``"sha256:<hex>"`` of each subset's archive; those of OpenSLR's by default.
    keep_archives : bool
        Keep ``<root>/<subset>.tar.gz`` after extraction.

    Returns
    -------
    Path
        ``<root>/LibriTTS``.

    Raises
    ------
    ValueError
        When a subset has no known checksum.
    DownloadError
        When an archive cannot be fetched, has another checksum or is not safe to extract.
    DataError
        When an archive does not hold its subset.
    """
    return fetch_subsets(
        subsets,
        root,
        base_url=base_url,
        corpus="LibriTTS",
        checksums=CHECKSUMS if checksums is None else checksums,
        keep_archives=keep_archives,
    )


def _clips(folder: Path, genders: Mapping[str, str], problems: list[str]) -> list[Clip]:
    ending = ".normalized.txt"
    audio = {path.stem: path for path in sorted(folder.glob("*/*/*.wav"))}
    texts = {path.name[: -len(ending)]: path for path in sorted(folder.glob(f"*/*/*{ending}"))}
    problems.extend(f"{texts[item]} has no {item}.wav" for item in sorted({*texts} - {*audio}))
    clips = []
    for item, path in audio.items():
        reader, chapter = path.parts[-3], path.parts[-2]
        if item not in texts:
            problems.append(f"{path} has no {item}{ending}")
            continue
        text = _read(texts[item])
        if not text:
            problems.append(f"{texts[item]} is empty")
            continue
        extra = {"chapter": chapter}
        if reader in genders:
            extra["gender"] = genders[reader]
        original = path.with_name(f"{item}.original.txt")
        if original.is_file():
            extra["raw_text"] = _read(original)
        clips.append(Clip(item, path, text, reader, extra, str(path), folder.name))
    return clips


def _read(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not text in UTF-8 ({error.reason} at byte {error.start}); convert the file"
        ) from error


def _genders(corpus: Path) -> dict[str, str]:
    """Read reader to F or M: ``ID | SEX | ...`` in SPEAKERS.txt, ID tab SEX tab in speakers.tsv."""
    found = {}
    for name, separator in (("SPEAKERS.txt", "|"), ("speakers.tsv", "\t")):
        path = corpus / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            fields = [field.strip() for field in line.split(separator)]
            if len(fields) >= 2 and fields[1] in ("F", "M"):
                found[fields[0]] = fields[1]
    return found
