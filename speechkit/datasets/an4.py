"""AN4: spelled and spoken census answers and commands, 16 kHz (CMU, 1991).

The folder holds ``etc/an4_{train,test}.fileids`` and ``.transcription`` and the audio they name
under ``wav/``, as WAV or as the original NIST SPHERE files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from speechkit.data.audio import audio_info
from speechkit.data.manifest import DataError, Utterance
from speechkit.datasets import preparation

SPLITS = ("train", "test")
_KINDS = ("fileids", "transcription")
_FORMAT = 1  # raised when the same corpus gives another manifest than before
_LAYOUT = (
    "Expected <root>/etc/an4_train.fileids and .transcription (and an4_test.*), and "
    "<root>/wav/<file id>.wav or .sph"
)
_ROW = re.compile(r"(.*)\(([^()\s]+)\)\s*")


def prepare(root: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Path]:
    """Write the manifests of AN4's own two splits; does nothing for those that are up to date.

    Each row has the transcript, the ``speaker`` and, in ``extra``, the ``gender`` (``"F"`` or
    ``"M"``, the first letter of a speaker's name). The WAV is taken where there is a SPHERE file
    too.

    Parameters
    ----------
    root : path
        The folder that holds ``etc/`` and ``wav/``.
    out : path
        Where ``train.jsonl`` and ``test.jsonl`` go.

    Returns
    -------
    dict
        ``{"train": ..., "test": ...}``.

    Raises
    ------
    DataError
        When a list is not there, or transcripts or audio files are missing or unreadable: all of
        them are named (the first 20 in full).
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    lists = [root / "etc" / f"an4_{s}.{kind}" for s in SPLITS for kind in _KINDS]
    missing = [path.relative_to(root).as_posix() for path in lists if not path.is_file()]
    if missing:
        raise DataError(f"{root}: no {', '.join(missing)}. {_LAYOUT}")
    return {split: _prepare_split(root, out, split) for split in SPLITS}


def _prepare_split(root: Path, out: Path, split: str) -> Path:
    ids_path, texts_path = (root / "etc" / f"an4_{split}.{kind}" for kind in _KINDS)
    ids = [line.strip() for line in ids_path.read_text().splitlines() if line.strip()]
    audio = {item: _find_audio(root, item) for item in ids}
    found = [path for path in audio.values() if path is not None]
    settings = {
        "format": _FORMAT,
        "root": str(root),
        "files": preparation.listing_sha256(root, [ids_path, texts_path, *found]),
    }
    manifest, stamp = out / f"{split}.jsonl", out / f".{split}.stamp.json"
    if None not in audio.values() and preparation.is_current(stamp, settings):
        return manifest
    problems: list[str] = []
    texts = _read_transcription(texts_path, problems)
    rows = []
    for item, path in audio.items():
        text = texts.get(item.rpartition("/")[2])
        if text is None:
            problems.append(f"{item}: no row in {texts_path.name}")
        if path is None:
            problems.append(f"{item}: no wav/{item}.wav or .sph")
        if text is None or path is None:
            continue
        try:
            rows.append(_utterance(item, path, text))
        except DataError as error:
            problems.append(str(error))
    if not ids:
        problems.append(f"{ids_path.name} is empty")
    preparation.raise_problems(
        root, problems, f"{_LAYOUT}. Put the missing files back, or remove their rows"
    )
    preparation.write_manifests(stamp, settings, {split: manifest}, {split: rows})
    return manifest


def _utterance(item: str, path: Path, text: str) -> Utterance:
    info = audio_info(path)
    speaker = path.parent.name
    gender = {"f": "F", "m": "M"}.get(speaker[:1])
    return Utterance(
        id=path.stem,
        audio=str(path),
        duration=info.num_samples / info.sample_rate,
        sample_rate=info.sample_rate,
        text=text,
        speaker=speaker,
        extra={"gender": gender} if gender else {},
    )


def _find_audio(root: Path, item: str) -> Path | None:
    """Find a file id's audio; the name is joined, not parsed: ids may hold dots."""
    candidates = [root / "wav" / f"{item}{ending}" for ending in (".wav", ".sph")]
    return next((path for path in candidates if path.is_file()), None)


def _read_transcription(path: Path, problems: list[str]) -> dict[str, str]:
    """Read rows of ``WORDS (id)``; the training list has ``<s> WORDS </s> (id)``."""
    texts: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        match = _ROW.fullmatch(line)
        words = [word for word in match[1].split() if word not in ("<s>", "</s>")] if match else []
        if match is None or not words:
            problems.append(f"{path.name}, row {number}: expected 'WORDS (id)', got {line!r}")
        elif match[2] in texts:
            problems.append(f"{path.name}, row {number}: {match[2]} is there twice")
        else:
            texts[match[2]] = " ".join(words)
    return texts
