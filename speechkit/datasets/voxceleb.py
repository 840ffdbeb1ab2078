"""VoxCeleb: interviews of celebrities from the web (Nagrani et al. 2017; Chung et al. 2018).

The layout is ``<speaker>/<video>/<number>.wav`` with speakers ``id10001`` to ``id11251`` in
VoxCeleb1 and ``id00012`` to ``id09272`` in VoxCeleb2, below ``wav/`` or any other folder. VoxCeleb2
comes as ``.m4a``, which is not read here: convert it first, for example with
``ffmpeg -i in.m4a -ar 16000 out.wav``. The trial lists (``veri_test2.txt`` is VoxCeleb1-O,
``list_test_all2.txt`` E and ``list_test_hard2.txt`` H, all cleaned) name files from the speaker on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechkit.data.audio import audio_info
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance
from speechkit.datasets import preparation, speaker_splits
from speechkit.speakers.trials import read_trials, trial_files

File = str | os.PathLike[str]
_SPEAKER = re.compile(r"id\d{5}")
_SUFFIXES = (".wav", ".flac")
_LAYOUT = "Expected <root>/<speaker>/<video>/<number>.wav with speakers such as id10001"
_FORMAT = 1  # raised when the same corpus gives another manifest than before


def prepare(
    train_roots: Sequence[File],
    test_root: File,
    out: File,
    *,
    trials: Mapping[str, File],
    valid_speakers: int,
    crop_every: float = 1e6,
    piece_seconds: float = 3.0,
    seed: int = 0,
) -> dict[str, Path]:
    """Write the splits that `speechkit.datasets.speaker_splits` describes.

    Speakers of the trial lists are left out of the training, so that a folder of VoxCeleb1 that
    holds its test speakers too will do.

    Parameters
    ----------
    train_roots : sequence of paths
        Folders that hold speakers, or ``wav/`` with them.
    test_root : path
        Such a folder, which the trial lists name files of.
    out : path
        Where the manifests go.
    trials : mapping of name to path
        Trial lists of the test.
    valid_speakers, crop_every, piece_seconds, seed
        As `speechkit.datasets.speaker_splits.prepare`; by default a recording gives one crop an
        epoch.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When a folder has another layout, files are unreadable, or a file of the trials is missing.
    """
    out, root = Path(out).absolute(), _find_root(test_root)
    tested = {
        Path(name).parts[0]
        for path in trials.values()
        for name in trial_files(read_trials(path, root))
    }
    roots = [train_roots] if isinstance(train_roots, (str, os.PathLike)) else train_roots
    manifests = []
    for number, one in enumerate(roots):
        manifests.append(_prepare_root(_find_root(one), out / f"recordings-{number}.jsonl", tested))
    return speaker_splits.prepare(
        manifests, out, trials=trials, root=root, valid_speakers=valid_speakers,
        crop_every=crop_every, piece_seconds=piece_seconds, seed=seed,
    )  # fmt: skip


def _find_root(root: File) -> Path:
    place = Path(root).absolute()
    place = place / "wav" if (place / "wav").is_dir() else place
    if not place.is_dir() or not any(_SPEAKER.fullmatch(path.name) for path in place.iterdir()):
        raise DataError(f"{root}: no folder with speakers. {_LAYOUT}")
    return place


def _prepare_root(root: Path, manifest: Path, left_out: set[str]) -> Path:
    """Write the manifest of one folder, unless it is up to date."""
    files = sorted(
        path
        for path in root.glob("id*/*/*")
        if path.suffix in _SUFFIXES and _SPEAKER.fullmatch(path.parts[-3])
        and path.parts[-3] not in left_out
    )  # fmt: skip
    stamp = manifest.with_name(f".{manifest.stem}.stamp.json")
    settings = {
        "format": _FORMAT,
        "corpus": str(root),
        "files": preparation.listing_sha256(root, files),
    }
    if preparation.is_current(stamp, settings):
        return manifest
    problems: list[str] = [] if files else ["no recordings to train on"]
    rows = []
    for path in files:
        try:
            info = audio_info(path)
        except DataError as error:
            problems.append(str(error))
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        seconds = info.num_samples / info.sample_rate
        speaker, video = path.parts[-3:-1]
        rows.append(
            Utterance(name, str(path), seconds, info.sample_rate, speaker=speaker,
                      extra={"video": video})
        )  # fmt: skip
    preparation.raise_problems(root, problems, f"{_LAYOUT}. Remove or repair these files")
    preparation.write_manifests(stamp, settings, {"train": manifest}, {"train": rows})
    return manifest
