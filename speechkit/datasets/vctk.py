"""VCTK: 110 English speakers of many accents, 48 kHz (Yamagishi et al., 2019).

Version 0.92 has ``wav48_silence_trimmed/<speaker>/<speaker>_<number>_mic1.flac`` and ``_mic2``,
version 0.80 ``wav48/<speaker>/<speaker>_<number>.wav``; both have ``speaker-info.txt`` and
``txt/<speaker>/<speaker>_<number>.txt``. Copies resampled to 16 kHz (``wav16``) and excerpts will
do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from speechkit.data.manifest import DataError
from speechkit.datasets.download import fetch_corpus
from speechkit.datasets.spoken_texts import Clip, prepare_clips

URL = "https://datashare.is.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip"
CHECKSUM = "sha256:f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c"
AUDIO_FOLDERS = ("wav48_silence_trimmed", "wav48", "wav16")
MICROPHONES = ("mic1", "mic2")
# What the published corpus itself lacks: the texts of p315, and some of the audio of p362 and, of
# the second microphone, of p280.
_NO_TEXT = frozenset({"p315"})
_NO_AUDIO = frozenset({("p362", "mic1"), ("p362", "mic2"), ("p280", "mic2")})
_LAYOUT = (
    "Expected <root>/txt/<speaker>/<speaker>_<number>.txt and, beside txt, "
    "wav48_silence_trimmed/<speaker>/<speaker>_<number>_mic1.flac (0.92) or "
    "wav48/<speaker>/<speaker>_<number>.wav (0.80), as in "
    "https://datashare.ed.ac.uk/handle/10283/3443"
)


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    microphone: str = "mic1",
    unseen_speakers: Sequence[str] = (),
    valid: float = 0.02,
    test: float = 0.04,
    seed: int = 0,
) -> dict[str, Path]:
    """Write one manifest a split; does nothing where they are up to date.

    All clips of the unseen speakers are the split ``unseen``. Those of the others are divided by a
    hash of their ids, as in `speechkit.datasets.spoken_texts.prepare_clips`. Rows have ``gender``
    (``"F"`` or ``"M"``) and ``accent`` where speaker-info.txt tells. Speaker p315, who has no
    texts, is left out, and so are the texts of p362 (and of p280 with ``mic2``) that have no audio.

    Parameters
    ----------
    root : path
        The folder described above.
    out : path
        Where ``train.jsonl``, ``valid.jsonl``, ``test.jsonl`` and perhaps ``unseen.jsonl`` go.
    microphone : str
        ``"mic1"`` or ``"mic2"``, of version 0.92.
    unseen_speakers : sequence of str
        Speakers who are neither trained on nor validated with.
    valid, test : float
        Shares of the other speakers' clips, about.
    seed : int
        Of the hash.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When texts and audio files do not pair up or are unreadable: all of them are named (the
        first 20 in full); when an unseen speaker is not in the corpus, or a split is empty.
    ValueError
        When the microphone is unknown, or the shares leave nothing to train on.
    """
    if microphone not in MICROPHONES:
        raise ValueError(f"microphone must be one of {', '.join(MICROPHONES)}, got {microphone!r}")
    root, out = Path(root).absolute(), Path(out).absolute()
    audio = next((root / name for name in AUDIO_FOLDERS if (root / name).is_dir()), None)
    if audio is None or not (root / "txt").is_dir():
        there = sorted(path.name for path in root.glob("*") if path.is_dir())
        raise DataError(
            f"{root}: no {'txt' if audio else 'audio'} folder (found: "
            f"{', '.join(there) or 'no folders'}). {_LAYOUT}"
        )
    problems: list[str] = []
    texts = {path.stem: path for path in sorted((root / "txt").glob("*/*.txt"))}
    files = _audio_files(audio, microphone)
    clips = _clips(root, texts, files, microphone, unseen_speakers, problems)
    unknown = sorted({*unseen_speakers} - {str(clip.speaker) for clip in clips})
    if unknown and not problems:
        speakers = sorted({str(clip.speaker) for clip in clips})
        raise DataError(
            f"{root}: no clips of the unseen speakers {', '.join(unknown)}; there are "
            f"{', '.join(speakers) or 'none'}"
        )
    about = root / "speaker-info.txt"
    return prepare_clips(
        out, clips, problems, corpus="vctk", root=root, layout=_LAYOUT,
        tables=[*texts.values(), *([about] if about.is_file() else [])],
        valid=valid, test=test, seed=seed,
    )  # fmt: skip


def download(
    root: str | os.PathLike[str], *, url: str = URL, checksum: str | None = CHECKSUM
) -> Path:
    """Fetch VCTK 0.92 (10.9 GB) and extract it; nothing where it is there.

    A download that was cut off goes on where it stopped, in this call or a later one.

    Parameters
    ----------
    root : path
        Where ``VCTK-Corpus-0.92/`` goes.
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
        When the archive does not hold VCTK.
    """
    # The archive has no folder of its own.
    folder = Path(root).absolute() / "VCTK-Corpus-0.92"
    return fetch_corpus(url, folder, holds="speaker-info.txt", checksum=checksum, layout=_LAYOUT)


def _audio_files(folder: Path, microphone: str) -> dict[str, Path]:
    """Find each clip's file by its id; the other microphone's are not looked at."""
    files: dict[str, Path] = {}
    for path in sorted([*folder.glob("*/*.flac"), *folder.glob("*/*.wav")]):
        item, mark, name = path.stem.partition("_mic")
        if not mark or f"mic{name}" == microphone:
            files[item] = path
    return files


def _clips(
    root: Path,
    texts: dict[str, Path],
    files: dict[str, Path],
    microphone: str,
    unseen_speakers: Sequence[str],
    problems: list[str],
) -> list[Clip]:
    about = _speakers(root / "speaker-info.txt")
    clips = []
    for item in sorted({*texts, *files}):
        speaker = item.partition("_")[0]
        if item not in files:
            if (speaker, microphone) not in _NO_AUDIO:
                problems.append(f"{texts[item]} has no audio file of {microphone}")
            continue
        if item not in texts:
            if speaker not in _NO_TEXT:
                problems.append(f"{files[item]} has no txt/{speaker}/{item}.txt")
            continue
        try:
            text = " ".join(texts[item].read_text(encoding="utf-8").split())
        except UnicodeDecodeError as error:
            problems.append(f"{texts[item]}: not text in UTF-8 ({error.reason})")
            continue
        if not text:
            problems.append(f"{texts[item]} is empty")
            continue
        split = "unseen" if speaker in unseen_speakers else None
        where = str(texts[item])
        clips.append(Clip(item, files[item], text, speaker, about.get(speaker, {}), where, split))
    return clips


def _speakers(path: Path) -> dict[str, dict[str, str]]:
    """Read gender and accent of each speaker: columns ID, AGE, GENDER, ACCENTS, and so on."""
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 4 and fields[2] in ("F", "M"):
            # Version 0.80 writes 225 for p225.
            name = f"p{fields[0]}" if fields[0].isdigit() else fields[0]
            found[name] = {"gender": fields[2], "accent": fields[3]}
    return found
