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
from speechkit.datasets.spoken_texts import Clip, prepare_clips

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
