"""WSJ0-2Mix and WSJ0-3Mix: mixtures of Wall Street Journal readers (Hershey et al., ICASSP 2016).

The corpus lies as ``2speakers/wav8k/min/{tr,cv,tt}/{mix,s1,s2}/*.wav``. `prepare` reads it, and can
make it first from WSJ0 and the published lists, ``mix_2_spk_tr.txt`` and so on, whose rows are
``<path> <gain in dB> <path> <gain in dB>``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechkit.datasets.mixture_folder import (
    find_rates,
    prepare_folders,
    prepare_singles,
    rate_name,
    split_folders,
)
from speechkit.datasets.wsj0mix_render import (
    check_choices,
    find_list,
    find_sources,
    make,
    read_list,
)

__all__ = ["SPLITS", "make", "mixture_speakers", "prepare"]

SPLITS: Mapping[str, str] = {"train": "tr", "valid": "cv", "test": "tt"}
_WSJ0_ID = re.compile(r"[0-9a-z]{3}[a-z][0-9a-z]{4}")


def prepare(
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    lists: str | os.PathLike[str] | None = None,
    wsj0: str | os.PathLike[str] | None = None,
    num_speakers: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    level: str = "active",
    splits: Mapping[str, str | Sequence[str]] = SPLITS,
) -> dict[str, Path]:
    """Write manifests of mixtures; with `lists`, make the files that are missing before.

    Give `root` alone to read a corpus that the original scripts made. Give `lists` and `wsj0` to
    make it here, into `root` or else into `out`; then ``<split>-sources.jsonl`` names the
    utterances that the split mixes, one row each with ``speaker``, for mixing on the fly.

    Parameters
    ----------
    out : path
        Where ``<split>.jsonl`` goes: a row a mixture, with ``sources`` and ``speakers``.
    root : path, optional
        The folder that holds ``wav8k/``, or the one that holds ``<N>speakers/``.
    lists, wsj0, level
        As `make` takes them.
    num_speakers : int
        2 or 3 (or more, where there are lists).
    sample_rate : int
        8000 or 16000, in Hz.
    mode : str
        ``"min"``: a mixture ends with its shortest source; ``"max"``: with its longest.
    splits : mapping
        Split to folder (or several): `SPLITS` by default.

    Returns
    -------
    dict
        ``"train"``, and with `lists` ``"train-sources"``, and so on to manifest.

    Raises
    ------
    DataError
        When files or folders are missing, unreadable or do not fit together.
    ValueError
        When the arguments do not.
    """
    check_choices(num_speakers, [sample_rate], [mode], level)
    if (lists is None) != (wsj0 is None) or (root is None and lists is None):
        raise ValueError("give root (a folder of mixtures), or lists and wsj0 to make one")
    out, name = Path(out).absolute(), f"{num_speakers}speakers"
    layout = (
        f"Expected {name}/{rate_name(sample_rate)}/{mode}/{{tr,cv,tt}}/{{mix,s1,s2,...}}/*.wav, as "
        f"create_wav_{num_speakers}speakers.m makes it; or give lists and wsj0"
    )
    folders = [x for own in splits.values() for x in ([own] if isinstance(own, str) else own)]
    if lists is not None and wsj0 is not None:
        corpus = make(
            lists,
            wsj0,
            out if root is None else root,
            num_speakers=num_speakers,
            sample_rates=(sample_rate,),
            modes=(mode,),
            level=level,
            splits=folders,
        )
    else:
        assert root is not None
        corpus = find_rates(Path(root).absolute(), name, layout)
    own = split_folders(corpus / rate_name(sample_rate) / mode, splits)
    manifests = prepare_folders(
        own,
        out,
        mixture="mix",
        sources=[f"s{i + 1}" for i in range(num_speakers)],
        noise=None,
        sample_rate=sample_rate,
        speakers=lambda item: mixture_speakers(item, num_speakers),
        layout=layout,
    )
    if lists is not None and wsj0 is not None:
        for split, places in own.items():
            files: dict[str, Path] = {}
            for place in places:
                path = find_list(Path(lists).absolute(), num_speakers, place.name)
                files.update(_utterances(path, num_speakers, Path(wsj0).absolute()))
            manifest = f"{split}-sources"
            manifests[manifest] = prepare_singles(
                manifest, dict(sorted(files.items())), out, speaker=lambda path: _speaker(path.stem)
            )
    return manifests


def _utterances(path: Path, num_speakers: int, wsj0: Path) -> dict[str, Path]:
    mixtures = read_list(path, num_speakers)
    found: dict[str, Path | None] = {}
    find_sources(path, mixtures, wsj0, found)
    return {file.stem: file for file in found.values() if file}


def mixture_speakers(item: str, num_speakers: int) -> list[str] | None:
    """Read the speakers from a mixture's name, ``<utterance>_<gain>_<utterance>_<gain>``.

    >>> mixture_speakers("40na010x_1.9857_01xo031a_-1.9857", 2)
    ['40n', '01x']
    """
    fields = item.split("_")
    speakers = [_speaker(name) for name in fields[::2]]
    known = [speaker for speaker in speakers if speaker is not None]
    return known if len(fields) == 2 * num_speakers and len(known) == num_speakers else None


def _speaker(utterance: str) -> str | None:
    """Tell the speaker of a WSJ0 utterance (three letters), or of one named as in LibriSpeech."""
    if _WSJ0_ID.fullmatch(utterance):
        return utterance[:3]
    return utterance.partition("-")[0] if utterance.count("-") == 2 else None
