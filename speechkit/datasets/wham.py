"""WHAM! and WHAMR!: WSJ0-2Mix in noise, and in noisy rooms.

Wichern et al., Interspeech 2019; Maciejewski et al., ICASSP 2020.
Both lie as ``wav8k/min/{tr,cv,tt}/<signal>/*.wav``. The signals of WHAM! are ``s1``, ``s2``,
``noise``, ``mix_clean``, ``mix_both`` and ``mix_single``; those of WHAMR! are ``noise`` and the
others with ``_anechoic`` or ``_reverb`` behind them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from speechkit.datasets.mixture_folder import (
    find_rates,
    prepare_folders,
    rate_name,
    split_folders,
)
from speechkit.datasets.wsj0mix import SPLITS, mixture_speakers
from speechkit.datasets.wsj0mix_render import MODES

ROOMS = ("", "_anechoic", "_reverb")
MIXTURES = tuple(
    f"{kind}{room}" for room, kind in product(ROOMS, ("mix_clean", "mix_both", "mix_single"))
)


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    mixture: str = "mix_both",
    sources: Sequence[str] | None = None,
    sample_rate: int = 8000,
    mode: str = "min",
    splits: Mapping[str, str | Sequence[str]] = SPLITS,
) -> dict[str, Path]:
    """Write one manifest of mixtures a split; does nothing for those that are up to date.

    Parameters
    ----------
    root : path
        The folder that holds ``wav8k/``, or the one above, if that is named ``2speakers_wham`` or
        ``whamr``.
    out : path
        Where ``<split>.jsonl`` goes: a row a mixture, with ``sources``, ``speakers`` and, where
        noise is in the mixture, ``noise``.
    mixture : str
        One of `MIXTURES`: ``"mix_both"`` is two speakers in noise, ``"mix_single"`` the first one
        in noise, ``"mix_clean"`` two without; ``"mix_both_reverb"`` and so on for WHAMR!.
    sources : sequence of str, optional
        The signals to recover. By default ``s1`` and ``s2`` (``s1`` alone of ``mix_single``); of
        WHAMR!, those without reverberation, as its authors do: give ``["s1_reverb", "s2_reverb"]``
        to keep it.
    sample_rate : int
        8000 or 16000, in Hz.
    mode : str
        ``"min"`` or ``"max"``.
    splits : mapping
        Split to folder (or several): ``{"train": "tr", "valid": "cv", "test": "tt"}`` by default.

    Returns
    -------
    dict
        Split to manifest.

    Raises
    ------
    DataError
        When folders or files are missing, unreadable or do not fit together: all of them are named
        (the first 20 in full).
    ValueError
        When the mixture, the mode or the sample rate is none that there is.
    """
    if mixture not in MIXTURES:
        raise ValueError(f"unknown mixture {mixture!r}; known: {', '.join(MIXTURES)}")
    if mode not in MODES or sample_rate not in (8000, 16000):
        raise ValueError(
            f"mode must be min or max and sample_rate 8000 or 16000, got {mode!r}, {sample_rate}"
        )
    num_speakers = 1 if mixture.startswith("mix_single") else 2
    if sources is None:
        room = "_anechoic" if mixture.endswith(ROOMS[1:]) else ""
        sources = [f"s{i + 1}{room}" for i in range(num_speakers)]
    layout = f"Expected {rate_name(sample_rate)}/{mode}/{{tr,cv,tt}}/{{{mixture},...}}/*.wav"
    root = Path(root).absolute()
    name = "2speakers_wham" if (root / "2speakers_wham").is_dir() else "whamr"
    corpus = find_rates(root, name, layout)
    return prepare_folders(
        split_folders(corpus / rate_name(sample_rate) / mode, splits),
        Path(out).absolute(),
        mixture=mixture,
        sources=sources,
        noise=None if mixture.startswith("mix_clean") else "noise",
        sample_rate=sample_rate,
        speakers=lambda item: (mixture_speakers(item, 2) or [])[:num_speakers],
        layout=layout,
    )
