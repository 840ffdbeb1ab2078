"""Published CNN14 checkpoints of the pretrained audio neural networks (PANNs) to our classifier.

A checkpoint is one file, ``Cnn14_mAP=0.431.pth`` (32 kHz), ``Cnn14_16k_mAP=0.438.pth`` or
``Cnn14_8k_mAP=0.416.pth``. It is read as tensors and arrays alone (``weights_only=True``): a file
that holds anything else is refused.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.features.mel import mel_filters
from speechkit.features.spectrum import LogMel
from speechkit.models.classifier import SoundClassifier
from speechkit.nn.cnn14 import CNN14, MaxMeanPooling

# Samples of a frame tell the variant; a frame is 32 ms and the hop 10 ms in all of them.
_FEATURES: dict[int, dict[str, Any]] = {
    1024: {"sample_rate": 32000, "n_fft": 1024, "hop_length": 320, "f_max": 14000.0},
    512: {"sample_rate": 16000, "n_fft": 512, "hop_length": 160, "f_max": 8000.0},
    256: {"sample_rate": 8000, "n_fft": 256, "hop_length": 80, "f_max": 4000.0},
}
_MEL: dict[str, Any] = {"f_min": 50.0, "mel_scale": "slaney", "norm": "slaney"}
_STFT = "spectrogram_extractor.stft.conv_real.weight"
_FILTERS = "logmel_extractor.melW"
_NORM = ("weight", "bias", "running_mean", "running_var")
_BLOCK = re.compile(r"conv_block\d+\.(conv[12]\.weight|bn[12]\.(weight|bias|running_(mean|var)))")
_LAYERS = {"fc1": "embedding", "fc_audioset": "head"}


class Converted(NamedTuple):
    """What `convert_cnn14` gives.

    Attributes
    ----------
    state : dict of str to Tensor
        For `speechkit.models.classifier.SoundClassifier`.
    settings : dict
        Arguments: ``"features"`` of `LogMel`, ``"encoder"`` of `CNN14`, and ``"num_labels"``.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any]


def convert_cnn14(weights: Mapping[str, Tensor]) -> Converted:
    """Convert the state dict of a PANNs CNN14.

    Kong et al. 2020, "PANNs: large-scale pretrained audio neural networks for audio pattern
    recognition". What its features are is read off their stored tables, which are then left out.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Under ``"model"`` in the file.

    Returns
    -------
    Converted
        The state dict and the settings that fit it.

    Raises
    ------
    DataError
        If a weight is missing, or one is there that a CNN14 does not have, or it was trained on
        other features.

    Examples
    --------
    >>> convert_cnn14({"cnn.weight": torch.zeros(1)})
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: the checkpoint has no weight 'bn0.weight': it is not a CNN14...
    """
    state = {f"encoder.bn0.{part}": _take(weights, f"bn0.{part}") for part in _NORM}
    for theirs, ours in _LAYERS.items():
        for part in ("weight", "bias"):
            state[f"{ours}.{part}"] = _take(weights, f"{theirs}.{part}")
    known = {f"bn0.{part}" for part in _NORM}
    known |= {f"{name}.{part}" for name in _LAYERS for part in ("weight", "bias")}
    for name, value in weights.items():
        ours_not_kept = name.endswith(".num_batches_tracked") or "_extractor." in name
        if name in known or ours_not_kept:
            continue
        if _BLOCK.fullmatch(name) is None:
            raise DataError(f"the checkpoint has a weight that a CNN14 does not have: {name!r}")
        state[f"encoder.{name}"] = value
    channels: list[int] = []
    while f"conv_block{len(channels) + 1}.conv2.weight" in weights:
        channels.append(weights[f"conv_block{len(channels) + 1}.conv2.weight"].shape[0])
    num_mels = state["encoder.bn0.weight"].shape[0]
    return Converted(
        state,
        {
            "features": _features(weights, num_mels),
            "encoder": {"input_size": num_mels, "channels": channels},
            "num_labels": state["head.weight"].shape[0],
        },
    )


def load_cnn14(
    path: str | os.PathLike[str],
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
) -> SoundClassifier:
    """Read a published CNN14 and build its classifier, in eval mode.

    Parameters
    ----------
    path : path
        The ``.pth`` file.
    labels : sequence of str, or path, optional
        Names of its outputs, or AudioSet's ``class_labels_indices.csv``; by default their numbers.

    Returns
    -------
    SoundClassifier
        Multi-label, as AudioSet is. ``speechkit.save`` makes a model folder of it, and training
        with ``init_from`` that folder and ``reinit: [head]`` gives it other labels.

    Raises
    ------
    DataError
        If the file is missing, holds anything but tensors and arrays, or other tensors than a
        CNN14's; if there is another number of labels.
    """
    state, settings = convert_cnn14(_read_checkpoint(Path(path)))
    count = settings["num_labels"]
    if labels is None:
        names = [str(number) for number in range(count)]
    elif isinstance(labels, (str, os.PathLike)):
        names = read_audioset_labels(labels)
    else:
        names = list(labels)
    if len(names) != count:
        raise DataError(f"{path}: has {count} outputs, but there are {len(names)} labels")
    encoder = CNN14(**settings["encoder"])
    model = SoundClassifier(
        features=LogMel(**settings["features"]),
        encoder=encoder,
        pooling=MaxMeanPooling(input_size=encoder.output_size),
        labels=names,
        embedding_size=state["embedding.weight"].shape[0],
        dropout=0.5,
        multi_label=True,
        sample_rate=settings["features"]["sample_rate"],
    )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{path}: not the weights of a CNN14: {error}") from error
    return model.eval()


def read_audioset_labels(path: str | os.PathLike[str]) -> list[str]:
    """Read the display names of AudioSet's ``class_labels_indices.csv``, in order.

    Raises
    ------
    DataError
        If the file is missing, or is no such table.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not rows or any(
        row.get("index") != str(number) or not row.get("display_name")
        for number, row in enumerate(rows)
    ):
        raise DataError(f"{path}: expected the columns index (0, 1, 2, ...), mid, display_name")
    return [row["display_name"] for row in rows]


def _features(weights: Mapping[str, Tensor], num_mels: int) -> dict[str, Any]:
    """Find which features a checkpoint was trained on, from their stored tables."""
    n_fft = _take(weights, _STFT).shape[-1]
    if n_fft not in _FEATURES:
        raise DataError(
            f"the checkpoint has frames of {n_fft} samples; known are those of {sorted(_FEATURES)}"
        )
    settings = {**_FEATURES[n_fft], **_MEL, "num_mels": num_mels}
    want = mel_filters(
        n_fft // 2 + 1,
        num_mels=num_mels,
        f_max=settings["f_max"],
        sample_rate=settings["sample_rate"],
        **_MEL,
    )
    have = _take(weights, _FILTERS).float()
    if have.shape != want.shape or float((have - want).abs().max()) > 1e-3 * float(want.max()):
        raise DataError(
            f"the checkpoint has other mel filters, {tuple(have.shape)}, than the published CNN14 "
            f"for frames of {n_fft} samples: it was trained on other features"
        )
    return {**settings, "log": "db", "floor": 1e-10}


def _read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    import pickle

    import numpy as np

    if not path.is_file():
        raise DataError(f"{path} is missing")
    # The training keeps its sampler's state beside the weights: plain arrays of numbers.
    rebuild: Any = np.zeros(1).__reduce__()[0]
    allowed: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "lifd?")]
    allowed += [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} is not a file of tensors and arrays alone: {error}") from error
    weights = found.get("model", found) if isinstance(found, Mapping) else None
    if not isinstance(weights, Mapping) or not all(torch.is_tensor(v) for v in weights.values()):
        raise DataError(f"{path} holds no named tensors")
    return weights


def _take(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise DataError(f"the checkpoint has no weight {name!r}: it is not a CNN14 of PANNs")
    return weights[name]
