"""LibriSpeech: read English audiobooks, 16 kHz (Panayotov et al., ICASSP 2015).

The layout is ``<subset>/<reader>/<chapter>/<reader>-<chapter>-<number>.flac`` with one
``<reader>-<chapter>.trans.txt`` a chapter, and ``SPEAKERS.TXT`` beside the subsets. Any part of a
subset will do, and so will any corpus in this layout.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from speechkit.data.audio import audio_info
from speechkit.data.manifest import DataError, Utterance
from speechkit.datasets import preparation
from speechkit.datasets.download import fetch_subsets

BASE_URL = "https://www.openslr.org/resources/12"
# MD5 of each archive, as OpenSLR publishes them.
CHECKSUMS = {
    "dev-clean": "md5:42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "md5:c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "md5:32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "md5:fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "md5:2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "md5:c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "md5:d1a0fd59409feb2c614ce4d30c387708",
}
_LAYOUT = (
    "Expected <root>/<subset>/<reader>/<chapter>/<reader>-<chapter>-0000.flac and "
    "<reader>-<chapter>.trans.txt, with SPEAKERS.TXT beside the subsets"
)
_FORMAT = 1  # raised when the same corpus gives another manifest than before


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    subsets: Sequence[str] | None = None,
) -> dict[str, Path]:
    """Write one manifest a subset; does nothing for those that are up to date.

    Each row has the transcript, the reader as ``speaker``, and in ``extra`` the ``chapter`` and,
    where SPEAKERS.TXT names the reader, the ``gender`` (``"F"`` or ``"M"``).

    Parameters
    ----------
    root : path
        The corpus folder, or the one that holds ``LibriSpeech/``.
    out : path
        Where ``<subset>.jsonl`` goes.
    subsets : sequence of str, optional
        Which subsets; all that are there by default.

    Returns
    -------
    dict
        Subset to manifest.

    Raises
    ------
    DataError
        When a subset is not there, or transcripts or audio files are missing or unreadable: all of
        them are named (the first 20 in full).
    """
    corpus = _find_corpus(Path(root).absolute())
    out = Path(out).absolute()
    present = sorted({path.parents[2].name for path in corpus.glob("*/*/*/*.trans.txt")})
    wanted = list(subsets) if subsets is not None else present
    missing = [subset for subset in wanted if not (corpus / subset).is_dir()]
    if missing or not wanted:
        raise DataError(
            f"{corpus}: no subset {', '.join(missing) or 'at all'} here"
            f" (found: {', '.join(present) or 'none'}). {_LAYOUT}; "
            "speechkit.datasets.librispeech.download fetches the genuine subsets"
        )
    genders = _read_genders(corpus / "SPEAKERS.TXT")
    return {subset: _prepare_subset(corpus, out, subset, genders) for subset in wanted}


def prepare_splits(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    splits: Mapping[str, Sequence[str]],
) -> dict[str, Path]:
    """Write one manifest a split, each of one or several subsets.

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


def _find_corpus(root: Path) -> Path:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. {_LAYOUT}")
    return root / "LibriSpeech" if (root / "LibriSpeech").is_dir() else root


def _prepare_subset(corpus: Path, out: Path, subset: str, genders: dict[str, str]) -> Path:
    manifest, stamp = out / f"{subset}.jsonl", out / f".{subset}.stamp.json"
    files = [path for path in (corpus / subset).glob("*/*/*") if path.is_file()]
    speakers = [path for path in [corpus / "SPEAKERS.TXT"] if path.is_file()]
    settings = {
        "format": _FORMAT,
        "corpus": str(corpus),
        "files": preparation.listing_sha256(corpus, files + speakers),
    }
    if preparation.is_current(stamp, settings):
        return manifest
    problems: list[str] = []
    rows: list[Utterance] = []
    for chapter in sorted({path.parent for path in files}):
        rows.extend(_read_chapter(chapter, genders, problems))
    if not rows and not problems:
        problems.append("no chapter with transcripts")
    preparation.raise_problems(
        corpus / subset, problems, f"{_LAYOUT}. Put the missing files back, or remove their rows"
    )
    preparation.write_manifests(stamp, settings, {subset: manifest}, {subset: rows})
    return manifest


def _read_chapter(
    folder: Path, genders: dict[str, str], problems: list[str]
) -> Iterator[Utterance]:
    """Yield the utterances of one chapter; what is wrong with it goes to `problems`."""
    reader, chapter = folder.parent.name, folder.name
    name = f"{reader}/{chapter}"
    transcripts = folder / f"{reader}-{chapter}.trans.txt"
    texts: dict[str, str] = {}
    if transcripts.is_file():
        texts = _read_transcripts(transcripts, problems)
    else:
        problems.append(f"{name}: no {transcripts.name}")
    untold = sorted({path.stem for path in folder.glob("*.flac")} - set(texts))
    if transcripts.is_file():
        problems.extend(f"{name}: {item}.flac has no row in {transcripts.name}" for item in untold)
    extra = {"chapter": chapter}
    if reader in genders:
        extra["gender"] = genders[reader]
    for item, text in texts.items():
        audio = folder / f"{item}.flac"
        if not audio.is_file():
            problems.append(f"{name}: {item} has a transcript, but there is no {audio.name}")
            continue
        try:
            info = audio_info(audio)
        except DataError as error:
            problems.append(str(error))
            continue
        yield Utterance(
            id=item,
            audio=str(audio),
            duration=info.num_samples / info.sample_rate,
            sample_rate=info.sample_rate,
            text=text,
            speaker=reader,
            extra=extra,
        )


def _read_transcripts(path: Path, problems: list[str]) -> dict[str, str]:
    """Read rows of ``<id> <WORDS>``."""
    texts: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        item, _, text = line.strip().partition(" ")
        if not text.strip():
            problems.append(f"{path.name}, row {number}: {item} has no text")
        elif item in texts:
            problems.append(f"{path.name}, row {number}: {item} is there twice")
        else:
            texts[item] = text.strip()
    return texts


def _read_genders(path: Path) -> dict[str, str]:
    """Read reader id to F or M from SPEAKERS.TXT; excerpts may lack the file."""
    if not path.is_file():
        return {}
    genders: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith(";") or not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 3 or fields[1] not in ("F", "M"):
            raise DataError(
                f"{path}, row {number}: expected 'ID | F or M | SUBSET | MINUTES | NAME', got "
                f"{line!r}"
            )
        genders[fields[0]] = fields[1]
    return genders


def download(
    root: str | os.PathLike[str],
    subsets: Sequence[str],
    *,
    base_url: str = BASE_URL,
    checksums: Mapping[str, str] | None = None,
    keep_archives: bool = False,
    num_retries: int = 5,
) -> Path:
    """Fetch subsets from OpenSLR, check their MD5 and extract them; those that are there stay.

    A download that was cut off goes on where it stopped, in this call or a later one.

    Parameters
    ----------
    root : path
        Where ``LibriSpeech/`` appears.
    subsets : sequence of str
        Names such as ``"train-clean-100"``.
    base_url : str
        Where the archives ``<subset>.tar.gz`` are; a mirror, for example.
    checksums : mapping, optional
        ``"md5:<hex>"`` of each subset's archive; those that OpenSLR publishes by default.
    keep_archives : bool
        Keep ``<root>/<subset>.tar.gz`` after extraction.
    num_retries : int
        How often a broken connection is taken up again.

    Returns
    -------
    Path
        ``<root>/LibriSpeech``.

    Raises
    ------
    ValueError
        When a subset has no known checksum.
    DownloadError
        When an archive cannot be fetched, has another checksum or is not safe to extract.
    """
    return fetch_subsets(
        subsets,
        root,
        base_url=base_url,
        corpus="LibriSpeech",
        checksums=CHECKSUMS if checksums is None else checksums,
        keep_archives=keep_archives,
        num_retries=num_retries,
    )
