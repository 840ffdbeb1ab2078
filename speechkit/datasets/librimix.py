"""LibriMix: mixtures of LibriSpeech readers, clean or with WHAM! noise (Cosentino et al., 2020).

A rendered corpus lies as ``Libri2Mix/wav8k/min/train-100/{s1,s2,mix_clean,mix_both,noise}/*.wav``.
`prepare` reads it, and can render it first from LibriSpeech and the published metadata, whose rows
are ``mixture_ID,source_1_path,source_1_gain,...,noise_path,noise_gain``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechkit.datasets.librimix_render import (
    check_choices,
    check_files,
    find_metadata,
    make,
    read_metadata,
)
from speechkit.datasets.mixture_folder import (
    find_rates,
    prepare_folders,
    prepare_singles,
    rate_name,
    split_folders,
)

__all__ = ["SPLITS", "make", "prepare"]

SPLITS: Mapping[str, Sequence[str]] = {
    "train": ("train-100",),
    "valid": ("dev",),
    "test": ("test",),
}


def prepare(
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
    librispeech: str | os.PathLike[str] | None = None,
    noise: str | os.PathLike[str] | None = None,
    num_speakers: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    mixture: str = "mix_clean",
    splits: Mapping[str, str | Sequence[str]] = SPLITS,
) -> dict[str, Path]:
    """Write manifests of mixtures; with `metadata`, render the files that are missing before.

    Give `root` alone to read a corpus that LibriMix rendered. Give `metadata` and `librispeech`
    (and `noise`, for the noisy mixtures) to render it here, into `root` or else into `out`. Done
    work is kept: files that are there, and manifests that are up to date.

    ``<split>.jsonl`` has a row a mixture: ``sources``, ``speakers`` and, where noise is in the
    mixture, ``noise``. With `metadata` come ``<split>-sources.jsonl``, the LibriSpeech utterances
    that the split mixes (one row each, with ``speaker``, not scaled), and, with `noise`,
    ``<split>-noise.jsonl``, for mixing on the fly.

    Parameters
    ----------
    out : path
        Where the manifests go.
    root : path, optional
        The folder ``Libri<N>Mix``, or the one that holds it.
    metadata : path, optional
        The folder of ``libri<N>mix_<subset>.csv`` (or ``.csv.gz``), or the one above.
    librispeech : path, optional
        The folder that holds ``train-clean-100/`` and so on.
    noise : path, optional
        The folder ``wham_noise``, which holds ``tr/``, ``cv/`` and ``tt/``.
    num_speakers : int
        2 for Libri2Mix, 3 for Libri3Mix.
    sample_rate : int
        8000 or 16000, in Hz.
    mode : str
        ``"min"``: a mixture ends with its shortest source; ``"max"``: with its longest.
    mixture : str
        ``"mix_clean"``; ``"mix_both"``, with noise; ``"mix_single"``, one speaker with noise.
    splits : mapping
        Split to one subset or several: ``{"train": ["train-100", "train-360"], "valid": "dev"}``.

    Returns
    -------
    dict
        ``"train"``, ``"train-sources"`` and so on to manifest.

    Raises
    ------
    DataError
        When files or folders are missing, unreadable or do not fit together: of a metadata file,
        the row and column are named.
    ValueError
        When the arguments do not.
    ImportError
        When mixtures must be rendered and scipy is not there.
    """
    check_choices([sample_rate], [mode], [mixture])
    out = Path(out).absolute()
    subsets = {
        split: [names] if isinstance(names, str) else list(names) for split, names in splits.items()
    }
    if metadata is None:
        if root is None or librispeech is not None or noise is not None:
            raise ValueError(
                "give root (a rendered LibriMix) alone, or metadata and librispeech (and noise)"
            )
        name = f"Libri{num_speakers}Mix"
        corpus = find_rates(
            Path(root).absolute(),
            name,
            f"Expected {name}/wav8k/min/<subset>/..., as LibriMix's scripts render it; or give "
            "metadata and librispeech, and it is rendered here",
        )
    else:
        if librispeech is None:
            raise ValueError("metadata alone makes no mixtures: give librispeech, its folder, too")
        corpus = make(
            metadata,
            librispeech,
            out if root is None else root,
            noise=noise,
            num_speakers=num_speakers,
            sample_rates=(sample_rate,),
            modes=(mode,),
            types=(mixture,),
            subsets=[name for names in subsets.values() for name in names],
        )
    place = corpus / rate_name(sample_rate) / mode
    single, clean = mixture == "mix_single", mixture == "mix_clean"
    manifests = prepare_folders(
        split_folders(place, subsets),
        out,
        mixture=mixture,
        sources=[f"s{i + 1}" for i in range(1 if single else num_speakers)],
        noise=None if clean else "noise",
        sample_rate=sample_rate,
        speakers=lambda name: _speakers(name, num_speakers)[: 1 if single else None] or None,
        layout=f"Expected {place}/<subset>/{{s1,s2,{mixture},...}}/<mixture>.wav",
    )
    if metadata is not None:
        assert librispeech is not None
        speech = Path(librispeech).absolute()
        noises = None if noise is None else Path(noise).absolute()
        files = find_metadata(Path(metadata).absolute(), num_speakers)
        for split, names in subsets.items():
            csvs = [files[name] for name in names]
            manifests.update(_write_material(split, csvs, num_speakers, speech, noises, out))
    return manifests


def _write_material(
    split: str,
    csvs: Sequence[Path],
    num_speakers: int,
    librispeech: Path,
    noise: Path | None,
    out: Path,
) -> dict[str, Path]:
    """Write the manifests of the utterances and noises that a split is mixed of."""
    speech: dict[str, Path] = {}
    noises: dict[str, Path] = {}
    for path in csvs:
        mixtures = read_metadata(path, num_speakers)
        check_files(path, mixtures, (librispeech, noise))
        for mixture in mixtures:
            speech.update({Path(name).stem: librispeech / name for name in mixture.sources})
            if noise is not None:
                item = "-".join(Path(mixture.noise).with_suffix("").parts)
                noises[item] = noise / mixture.noise
    manifests = {}
    for kind, files in (("sources", speech), ("noise", noises)):
        if files:
            manifests[f"{split}-{kind}"] = prepare_singles(
                f"{split}-{kind}",
                dict(sorted(files.items())),
                out,
                speaker=_reader if kind == "sources" else lambda path: None,
            )
    return manifests


def _reader(path: Path) -> str:
    return path.stem.partition("-")[0]


def _speakers(name: str, num_speakers: int) -> list[str]:
    """Read the speakers from ``<reader>-<chapter>-<number>_...``; none where the name differs."""
    utterances = name.split("_")
    if len(utterances) != num_speakers or not all(item.count("-") == 2 for item in utterances):
        return []
    return [item.partition("-")[0] for item in utterances]
