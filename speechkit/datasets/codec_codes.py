"""Recordings turned into the codes of a codec, for language models over codes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechkit.coding.skc_checks import weights_id
from speechkit.data.audio import read_audio, read_audio_channels
from speechkit.data.code_files import FORMAT, CodeLayout, Rate, write_codes
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance, manifest_sha256, read_manifest
from speechkit.datasets import preparation
from speechkit.models.codec import Codec

logger = logging.getLogger(__name__)

File = str | os.PathLike[str]


def prepare(
    *, codec: str | Path, manifests: Mapping[str, File], out: File, device: str | None = None
) -> dict[str, Path]:
    """Encode every split at the codec's highest rate; does nothing where that is done.

    A split is encoded anew when its manifest, the codec or what was written has changed.

    Parameters
    ----------
    codec : path
        The model folder of a `speechkit.models.codec.Codec`.
    manifests : mapping of str to path
        Split to manifest.
    out : path
        Where ``<split>.json`` and ``<split>.npy`` go.
    device : str, optional
        Where the codec runs; by default on a GPU, if there is one.

    Returns
    -------
    dict
        Split to the ``.json``, which `speechkit.data.codes.CodeData` takes.

    Raises
    ------
    DataError
        If the folder holds another kind of model, a manifest is wrong, or recordings cannot be
        read: all of a split at once.
    """
    from speechkit.pretrained import load

    model = load(codec)
    if not isinstance(model, Codec):
        raise DataError(f"{codec}: holds a {type(model).__name__}; give the folder of a codec")
    layout = layout_of(model)
    out = Path(out)
    places = {split: out / f"{split}.json" for split in manifests}
    digests = {split: manifest_sha256(path) for split, path in manifests.items()}
    on_device = False
    for split, path in manifests.items():
        stamp = out / f".{split}.codes"
        settings = {"format": FORMAT, "layout": asdict(layout), "manifest": digests[split]}
        if preparation.is_current(stamp, settings):
            continue
        if not on_device:  # after the layout, whose id is that of the weights as they were saved
            model = model.fold_weight_norm().to(device or _default_device())
            on_device = True
        files = write_codes(
            places[split],
            layout,
            _encode_all(model, layout, Path(path)),
            manifest_sha256=digests[split],
        )
        preparation.write_stamp(stamp, settings, files)
    return places


def layout_of(codec: Codec) -> CodeLayout:
    """Describe a codec's codes at its highest rate.

    Parameters
    ----------
    codec : Codec
        As it was saved: before weight norms are folded.
    """
    kbps = sorted(set(codec.rates_kbps))
    rates = tuple(Rate(rate, codec.codebooks_for(rate)) for rate in kbps)
    return CodeLayout(
        codec_id=weights_id(codec).hex(),
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        hop_length=codec.hop_length,
        num_codebooks=rates[-1].num_codebooks,
        codebook_size=codec.codebook_size,
        rates=rates,
    )


def _default_device() -> str:
    from speechkit.distributed import default_device

    return default_device()


def _encode_all(
    codec: Codec, layout: CodeLayout, manifest: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield id and codes ``(Q, T)``; what cannot be read is told of at the end, all at once."""
    from speechkit.tracking import progress_bar

    rows = read_manifest(manifest)
    device = next(codec.parameters()).device
    logger.info("encoding %d utterances of %s on %s", len(rows), manifest.name, device)
    problems = []
    with progress_bar(f"encoding {manifest.name}", len(rows)) as bar:
        for row in rows:
            bar.update()
            try:
                waveform = _waveform(row, codec)
            except DataError as error:
                problems.append(f"{row.id}: {error}")
                continue
            encoded = codec.encode(waveform.to(device), num_codebooks=layout.num_codebooks)
            yield row.id, encoded.codes[0].cpu().numpy()
    preparation.raise_problems(manifest, problems, "Repair the audio, or remove these rows.")


def _waveform(row: Utterance, codec: Codec) -> Tensor:
    """Read an utterance as ``(1, C, T)`` with the codec's channels and rate."""
    span: dict[str, Any] = {
        "start": row.start, "duration": row.duration, "sample_rate": codec.sample_rate,
    }  # fmt: skip
    if codec.channels > 1:
        waveform, _ = read_audio_channels(row.audio, **span)
        if len(waveform) != codec.channels:
            waveform = waveform.mean(0, keepdim=True).expand(codec.channels, -1)
    else:
        waveform = read_audio(row.audio, **span)[0].unsqueeze(0)
    return torch.as_tensor(waveform).unsqueeze(0)
