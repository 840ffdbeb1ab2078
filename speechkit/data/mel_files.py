"""Files of mel spectra that an acoustic model made, for the fine-tuning of a vocoder.

A file is safetensors with one tensor ``"mel"``, ``(T, num_mels)`` float32, and as metadata the
settings of the mels (`speechkit.features.mel_settings`), so that mels of another kind are refused.
A manifest's row has its path in the field ``mel``, beside the audio that it belongs to.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechkit.data.dataset import LoadAudio
from speechkit.data.errors import DataError
from speechkit.features.mel_settings import mel_differences, mel_settings
from speechkit.features.spectrum import LogMel
from speechkit.files import atomic_file

__all__ = ["LoadWithMel", "read_mel", "write_mel"]


def write_mel(path: str | os.PathLike[str], mel: Tensor, features: LogMel) -> None:
    """Write a mel spectrum.

    Parameters
    ----------
    path : path
        Of the file, by custom ``.safetensors``.
    mel : Tensor
        Shape ``(T, num_mels)``.
    features : LogMel
        What it stands for: the settings are kept.

    Raises
    ------
    ValueError
        If the mel has another shape.
    """
    from safetensors.torch import save

    if mel.dim() != 2 or mel.shape[1] != features.num_mels:
        raise ValueError(f"need a mel (T, {features.num_mels}), got shape {tuple(mel.shape)}")
    settings = json.dumps(mel_settings(features))
    data = save({"mel": mel.detach().float().cpu().contiguous()}, {"mel_settings": settings})
    with atomic_file(Path(path)) as file:
        file.write(data)


def read_mel(path: str | os.PathLike[str], features: LogMel) -> Tensor:
    """Read a mel spectrum.

    Parameters
    ----------
    path : path
        Written by `write_mel`.
    features : LogMel
        What kind of mel is needed.

    Returns
    -------
    Tensor
        Shape ``(T, num_mels)``, float32.

    Raises
    ------
    DataError
        If there is no such file, it is damaged, or was made with other settings (all that differ
        are named).

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> write_mel(path, torch.zeros(5, 80), LogMel())
    >>> read_mel(path, LogMel()).shape
    torch.Size([5, 80])
    >>> read_mel(path, LogMel(hop_length=200))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    speechkit.data.errors.DataError: ...: this mel was made with hop_length: 160, needed is 200; ...
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            mel: Tensor = file.get_tensor("mel")
            theirs = json.loads((file.metadata() or {})["mel_settings"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a file of a mel: {error}; export it again") from error
    needed = mel_settings(features)
    differences = mel_differences(theirs, needed)
    if differences:
        told = "; ".join(difference.replace(" and ", ", needed is ") for difference in differences)
        raise DataError(
            f"{path}: this mel was made with {told}; export the mels with the vocoder's settings"
        )
    if mel.dim() != 2 or mel.shape[1] != features.num_mels or not bool(mel.isfinite().all()):
        raise DataError(f"{path}: shape {tuple(mel.shape)} or values of a mel are wrong")
    return mel


class LoadWithMel:
    """Set ``"waveform"`` ``(N,)``, and ``"mel"`` ``(N // hop + 1, num_mels)`` if a row names one.

    Where a row has no field ``mel``, the vocoder makes the mels of the audio.

    Parameters
    ----------
    features : LogMel
        Of the vocoder.
    crop_frames : int, optional
        Take so many frames from anywhere in the utterance, and their samples; a shorter one is
        taken whole.

    Raises
    ------
    ValueError
        If ``crop_frames`` is not above 0.
    """

    def __init__(self, *, features: LogMel, crop_frames: int | None = None) -> None:
        if crop_frames is not None and crop_frames < 1:
            raise ValueError(f"crop_frames={crop_frames} must be above 0")
        # A copy: a model that has the same ones may go to a GPU.
        self.features = copy.deepcopy(features)
        self.crop_frames = crop_frames
        rate, seconds = features.sample_rate, None
        if crop_frames is not None:
            seconds = crop_frames * features.hop_length / rate
        self.load_whole = LoadAudio(sample_rate=rate)
        self.load_part = LoadAudio(sample_rate=rate, crop_seconds=seconds)

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Read an utterance; `DataError` where that fails or mel and audio differ in length."""
        path = item["utterance"].extra.get("mel")
        if path is None:
            return self.load_part(item, generator)
        if not isinstance(path, str):
            raise DataError(f"'mel' must be the path of a file, is {path!r}")
        item = self.load_whole(item, generator)
        mel, waveform = read_mel(path, self.features), item["waveform"]
        hop = self.features.hop_length
        if len(mel) != len(waveform) // hop + 1:
            raise DataError(
                f"{path}: {len(mel)} frames for {len(waveform)} samples, which have "
                f"{len(waveform) // hop + 1}: start and duration of the row must be what the mel "
                "was made for"
            )
        if self.crop_frames is not None and len(waveform) > self.crop_frames * hop:
            free = len(waveform) // hop - self.crop_frames
            first = int(torch.randint(free + 1, (), generator=generator))
            # One frame more: it is centred where the crop ends.
            mel = mel[first : first + self.crop_frames + 1]
            waveform = waveform[first * hop : (first + self.crop_frames) * hop]
        return {**item, "waveform": waveform, "mel": mel}
