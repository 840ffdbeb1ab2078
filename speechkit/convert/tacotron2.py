"""Published Tacotron 2 checkpoints, of SpeechBrain and of NVIDIA, to our `Tacotron2`.

Both name their weights alike. SpeechBrain's file is the state dict itself, NVIDIA's holds it as
``state_dict`` beside the optimizer's, its names beginning with ``module.`` where several GPUs made
it. Files are read as tensors alone (``weights_only=True``): one that holds code is refused.

What the weights do not say is which symbol has which number, and how the log-mel spectra were
made: both belong to the recipe that the checkpoint came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.models.tacotron2 import Tacotron2

_WHOLE = {
    "embedding.weight": "encoder.embedding.weight",
    "decoder.attention_layer.query_layer.linear_layer.weight": "decoder.attention.query.weight",
    "decoder.attention_layer.memory_layer.linear_layer.weight": "decoder.attention.key.weight",
    "decoder.attention_layer.v.linear_layer.weight": "decoder.attention.energy.weight",
    "decoder.attention_layer.location_layer.location_conv.conv.weight": (
        "decoder.attention.filters.weight"
    ),
    "decoder.attention_layer.location_layer.location_dense.linear_layer.weight": (
        "decoder.attention.location.weight"
    ),
    "decoder.linear_projection.linear_layer.weight": "decoder.frame_output.weight",
    "decoder.linear_projection.linear_layer.bias": "decoder.frame_output.bias",
    "decoder.gate_layer.linear_layer.weight": "decoder.stop_output.weight",
    "decoder.gate_layer.linear_layer.bias": "decoder.stop_output.bias",
}
_PATTERNS = (
    (r"(encoder|postnet)\.convolutions\.(\d+)\.0\.conv\.(weight|bias)", r"\1.convs.\2.conv.\3"),
    (
        r"(encoder|postnet)\.convolutions\.(\d+)\.1\.(weight|bias|running_mean|running_var)",
        r"\1.convs.\2.norm.\3",
    ),
    (r"encoder\.lstm\.((?:weight|bias)_[ih]h_l0)", r"encoder.lstm.ahead.0.\1"),
    (r"encoder\.lstm\.((?:weight|bias)_[ih]h_l0)_reverse", r"encoder.lstm.back.0.\1"),
    (r"decoder\.prenet\.layers\.(\d+)\.linear_layer\.weight", r"decoder.prenet.layers.\1.weight"),
    (r"decoder\.attention_rnn\.((?:weight|bias)_[ih]h)", r"decoder.attention_lstm.\1"),
    (r"decoder\.decoder_rnn\.((?:weight|bias)_[ih]h)", r"decoder.decoder_lstm.\1"),
)


class Converted(NamedTuple):
    """What `convert_tacotron2` gives.

    Attributes
    ----------
    state : dict of str to Tensor
        For `speechkit.models.tacotron2.Tacotron2`.
    settings : dict
        Its arguments.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any]


def convert_tacotron2(weights: Mapping[str, Tensor]) -> Converted:
    """Convert the state dict of SpeechBrain's or NVIDIA's Tacotron 2.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Their names and tensors, float32 or float16.

    Returns
    -------
    Converted
        The state dict, float32, and the settings that fit it.

    Raises
    ------
    DataError
        If a weight is missing, one is there that a Tacotron 2 does not have, or the model gives
        several frames a step: theirs then sees all of them, ours the last one.

    Examples
    --------
    >>> convert_tacotron2({"mel.weight": torch.zeros(1)})
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: weights that a Tacotron 2 does not have: ['mel.weight']
    """
    state, unknown = {}, []
    for name, value in weights.items():
        name = name.removeprefix("module.")
        ours = _our_name(name)
        if ours is not None:
            state[ours] = value.float()
        elif not name.endswith("num_batches_tracked"):
            unknown.append(name)
    if unknown:
        raise DataError(f"weights that a Tacotron 2 does not have: {sorted(unknown)}")
    settings = _settings(state)
    with torch.device("meta"):
        wanted = Tacotron2(**settings).state_dict()
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise DataError(
            f"not a whole Tacotron 2; for these of our weights there are none: {missing}"
        )
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise DataError(
                f"the weight for {name} is {tuple(state[name].shape)}, but the others ask for "
                f"{tuple(tensor.shape)}"
            )
    return Converted(state, settings)


def load_tacotron2(path: str | Path) -> Tacotron2:
    """Read a published checkpoint and build its model, in eval mode.

    Parameters
    ----------
    path : path
        SpeechBrain's ``model.ckpt`` or NVIDIA's ``.pt``.

    Raises
    ------
    DataError
        If the file is missing, holds anything but plain data and tensors, or other tensors than a
        Tacotron 2's.
    """
    import pickle

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is missing")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} is not a file of tensors alone: {error}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(torch.is_tensor(v) for v in found.values()):
        raise DataError(f"{path} holds something other than named tensors")
    try:
        state, settings = convert_tacotron2(found)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    model = Tacotron2(**settings)
    model.load_state_dict(state)
    return model.eval()


def _our_name(name: str) -> str | None:
    """Return our name of a weight of theirs; None if there is none."""
    if name in _WHOLE:
        return _WHOLE[name]
    for pattern, ours in _PATTERNS:
        found = re.fullmatch(pattern, name)
        if found is not None:
            return found.expand(ours)
    return None


def _settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off a converted state what it was built with."""

    def shape(name: str, dimensions: int) -> torch.Size:
        if name not in state or state[name].dim() != dimensions:
            raise DataError(f"not a Tacotron 2: it has no weight that would be our {name}")
        return state[name].shape

    def count(pattern: str) -> int:
        found = [re.match(pattern, name) for name in state]
        return max((int(match[1]) + 1 for match in found if match), default=0)

    num_symbols, embed_dim = shape("encoder.embedding.weight", 2)
    encoder_size, _, encoder_kernel = shape("encoder.convs.0.conv.weight", 3)
    postnet_size, num_mels, postnet_kernel = shape("postnet.convs.0.conv.weight", 3)
    attention_size, query_size = shape("decoder.attention.query.weight", 2)
    channels, _, kernel = shape("decoder.attention.filters.weight", 3)
    prenet = [
        shape(f"decoder.prenet.layers.{index}.weight", 2)[0]
        for index in range(count(r"decoder\.prenet\.layers\.(\d+)\."))
    ]
    frames = shape("decoder.frame_output.weight", 2)[0] / num_mels
    if frames != 1:
        raise DataError(
            f"the model gives {frames:g} frames a step, all of which its next step sees; ours "
            "sees the last one: only models of one frame a step can be converted"
        )
    return {
        "num_symbols": num_symbols,
        "num_mels": num_mels,
        "embed_dim": embed_dim,
        "encoder_size": encoder_size,
        "encoder_convs": count(r"encoder\.convs\.(\d+)\."),
        "encoder_kernel": encoder_kernel,
        "prenet_sizes": prenet,
        "attention_size": attention_size,
        "location_channels": channels,
        "location_kernel": kernel,
        "attention_lstm_size": query_size,
        "decoder_lstm_size": shape("decoder.decoder_lstm.weight_hh", 2)[1],
        "postnet_size": postnet_size,
        "postnet_convs": count(r"postnet\.convs\.(\d+)\."),
        "postnet_kernel": postnet_kernel,
    }
