"""EnCodec's published checkpoints to our `Codec`.

They exist in two layouts of the same weights: those of the ``encodec`` package (a ``.th`` file for
24 kHz mono and one for 48 kHz stereo) and those of ``transformers`` (safetensors). Both are read as
tensors alone: a file that holds anything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.data.errors import DataError, listing
from speechkit.models.codec import Codec
from speechkit.nn.quantize import ResidualVectorQuantizer
from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder

_LAYER = re.compile(r"(encoder|decoder)\.(?:model|layers)\.(\d+)\.(.+)")
_CODEBOOK = re.compile(
    r"quantizer\.(?:vq\.)?layers\.(\d+)\._?codebook\.(inited|cluster_size|embed|embed_avg)"
)
_BUFFERS = {"embed": "codebook", "embed_avg": "ema_sums", "cluster_size": "ema_counts"}
_UNIT = {"block.1": "conv1", "block.3": "conv2", "shortcut": "shortcut"}
_WEIGHTS = {
    "bias": "conv.bias",
    "weight": "conv.weight",
    "weight_g": "conv.parametrizations.weight.original0",
    "weight_v": "conv.parametrizations.weight.original1",
    "parametrizations.weight.original0": "conv.parametrizations.weight.original0",
    "parametrizations.weight.original1": "conv.parametrizations.weight.original1",
}


class Converted(NamedTuple):
    """What `convert_encodec` gives.

    Attributes
    ----------
    state : dict of str to Tensor
        For `speechkit.models.codec.Codec`.
    settings : dict
        Arguments: ``"encoder"`` of `SEANetEncoder`, ``"quantizer"`` of `ResidualVectorQuantizer`,
        ``"decoder"`` of `SEANetDecoder`, ``"codec"`` of `Codec`.
    """

    state: dict[str, Tensor]
    settings: dict[str, dict[str, Any]]


def convert_encodec(weights: Mapping[str, Tensor], *, sample_rate: int | None = None) -> Converted:
    """Convert a state dict of EnCodec, in either layout.

    Défossez et al. 2022, "High fidelity neural audio compression".

    Parameters
    ----------
    weights : mapping of str to Tensor
        Of ``encodec.EncodecModel`` or ``transformers.EncodecModel``.
    sample_rate : int, optional
        What the weights do not tell; by default that of the published checkpoints, 24 kHz for a
        mono and 48 kHz for a stereo model.

    Returns
    -------
    Converted
        The state dict and the settings that fit it.

    Raises
    ------
    DataError
        If a weight is missing, or one is there that EnCodec does not have.

    Examples
    --------
    >>> convert_encodec({"encoder.layers.0.conv.bias": torch.zeros(32)})
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: EnCodec's state dict has no LSTM 'encoder...lstm.weight_ih_l0':
    it is not a whole EnCodec
    """
    plan = {side: _Plan(weights, side) for side in ("encoder", "decoder")}
    state: dict[str, Tensor] = {}
    strange, initialised = [], []
    for name, value in weights.items():
        layer, codebook = _LAYER.fullmatch(name), _CODEBOOK.fullmatch(name)
        ours = None
        if layer is not None:
            ours = plan[layer[1]].name(int(layer[2]), layer[3])
        elif codebook is not None and codebook[2] == "inited":
            initialised.append(bool(value.all()))
            continue
        elif codebook is not None:
            ours = f"quantizer.layers.{codebook[1]}.{_BUFFERS[codebook[2]]}"
        if ours is None:
            strange.append(repr(name))
        else:
            state[ours] = value
    if strange:
        raise DataError(listing("weights that EnCodec does not have:", strange, "Leave them out."))
    if "quantizer.layers.0.codebook" not in state:
        raise DataError("EnCodec's state dict has no codebooks: it is not a whole EnCodec")
    state["quantizer.initialised"] = torch.tensor(all(initialised))
    return Converted(state, _settings(state, plan["encoder"], plan["decoder"], sample_rate))


class _Plan:
    """Which layer of a list is which, on one side: the list's order is the network's.

    ::

        encoder   conv, [units..., activation, strided conv] x stages, LSTM, activation, conv
        decoder   conv, LSTM, [activation, transposed conv, units...] x stages, activation, conv
    """

    def __init__(self, weights: Mapping[str, Tensor], side: str) -> None:
        found = [match for match in map(_LAYER.fullmatch, weights) if match and match[1] == side]
        rest = {(int(match[2]), match[3]) for match in found}
        recurrent = [index for index, name in rest if name == "lstm.weight_ih_l0"]
        units = sorted({index for index, name in rest if name.startswith("shortcut.")})
        if len(recurrent) != 1 or not units:
            raise DataError(
                f"EnCodec's state dict has no LSTM '{side}...lstm.weight_ih_l0': it is not a whole "
                "EnCodec"
            )
        self.side = side
        self.lstm = recurrent[0]
        self.lstm_layers = sum(name.startswith("lstm.weight_ih_l") for _, name in rest)
        self.last = max(index for index, _ in rest)
        # Units of a stage lie side by side; an activation and a convolution are between stages.
        self.units = sum(index < units[0] + len(units) and index - units[0] == place
                         for place, index in enumerate(units))  # fmt: skip
        self.first = 1 if side == "encoder" else 2
        self.stages = len(units) // self.units
        self.time_norm = any("norm." in name for _, name in rest)

    def name(self, index: int, rest: str) -> str | None:
        """Give our name for ``rest`` of the layer at ``index``; None for what is not EnCodec's."""
        if index == self.lstm:
            known = re.fullmatch(r"lstm\.(weight|bias)_[ih]h_l\d+", rest)
            return f"{self.side}.lstm.{rest}" if known else None
        if index in (0, self.last):
            return self._convolution("input" if index == 0 else "output", rest)
        stage, place = divmod(index - self.first, self.units + 2)
        if self.side == "decoder":
            place -= 2  # the activation and the transposed convolution come first
        if 0 <= place < self.units:
            for theirs, ours in _UNIT.items():
                if rest.startswith(f"{theirs}."):
                    prefix = f"stages.{stage}.units.{place}.{ours}"
                    return self._convolution(prefix, rest[len(theirs) + 1 :])
            return None
        if place == (self.units + 1 if self.side == "encoder" else -1):
            return self._convolution(f"stages.{stage}.resample", rest)
        return None

    def _convolution(self, ours: str, rest: str) -> str | None:
        """Take off what wraps a convolution: ``conv.conv.`` or ``conv.``, ``conv.norm.`` ..."""
        known = re.fullmatch(r"(?:conv\.|convtr\.)?norm\.(weight|bias)", rest)
        if known:
            return f"{self.side}.{ours}.time_norm.{known[1]}"
        known = re.fullmatch(r"(?:conv\.conv|convtr\.convtr|conv)\.(.+)", rest)
        if known is None or known[1] not in _WEIGHTS:
            return None
        return f"{self.side}.{ours}.{_WEIGHTS[known[1]]}"


def _weight(state: Mapping[str, Tensor], name: str) -> Tensor:
    for suffix in ("weight", "parametrizations.weight.original1"):
        if f"{name}.conv.{suffix}" in state:
            return state[f"{name}.conv.{suffix}"]
    raise DataError(f"EnCodec's state dict has no weight for {name!r}: it is not a whole EnCodec")


def _settings(
    state: Mapping[str, Tensor], encoder: _Plan, decoder: _Plan, sample_rate: int | None
) -> dict[str, dict[str, Any]]:
    first, last = _weight(state, "encoder.input"), _weight(state, "encoder.output")
    unit = _weight(state, "encoder.stages.0.units.0.conv1")
    channels = first.shape[1]
    weighted = "encoder.input.conv.parametrizations.weight.original0" in state
    strides = [
        _weight(state, f"encoder.stages.{stage}.resample").shape[2] // 2
        for stage in range(encoder.stages)
    ]
    shared = {
        "channels": channels,
        "num_filters": first.shape[0],
        "latent_size": last.shape[0],
        "residual_layers": encoder.units,
        "kernel_size": first.shape[2],
        "last_kernel_size": last.shape[2],
        "residual_kernel_size": unit.shape[2],
        "compress": first.shape[0] // unit.shape[0],
        "lstm_layers": encoder.lstm_layers,
        "causal": not encoder.time_norm,
        "norm": "weight" if weighted else "time_group" if encoder.time_norm else "none",
        "pad_mode": "reflect",
    }
    numbers = [name for name in state if re.fullmatch(r"quantizer\.layers\.\d+\.codebook", name)]
    codebook = state["quantizer.layers.0.codebook"]
    stereo = channels > 1
    rates = [3.0, 6.0, 12.0, 24.0] if stereo else [1.5, 3.0, 6.0, 12.0, 24.0]
    rate = sample_rate or (48000 if stereo else 24000)
    published = rate == (48000 if stereo else 24000) and len(numbers) == (16 if stereo else 32)
    return {
        "encoder": {**shared, "strides": strides},
        "decoder": {**shared, "strides": strides[::-1]},
        "quantizer": {
            "latent_size": codebook.shape[1],
            "codebook_size": codebook.shape[0],
            "num_codebooks": len(numbers),
        },
        "codec": {
            "sample_rate": rate,
            "channels": channels,
            "rates_kbps": rates if published else None,
            "normalize": stereo,
            "segment_seconds": 1.0 if stereo else None,
            "overlap": 0.01,
        },
    }


def build_encodec(weights: Mapping[str, Tensor], *, sample_rate: int | None = None) -> Codec:
    """Build the codec of a state dict that `convert_encodec` takes, with its weights, in eval mode.

    Raises
    ------
    DataError
        If the weights do not make a whole EnCodec.

    Examples
    --------
    >>> build_encodec({})
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: EnCodec's state dict has no LSTM ...
    """
    state, settings = convert_encodec(weights, sample_rate=sample_rate)
    codec = Codec(
        encoder=SEANetEncoder(**settings["encoder"]),
        quantizer=ResidualVectorQuantizer(**settings["quantizer"]),
        decoder=SEANetDecoder(**settings["decoder"]),
        **settings["codec"],
    )
    try:
        codec.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"these weights do not make a whole EnCodec: {error}") from error
    return codec.eval()


def load_encodec(path: Path, *, sample_rate: int | None = None) -> Codec:
    """Read a published checkpoint, ``.th`` or ``.safetensors``, and build its codec.

    Parameters
    ----------
    path : Path
        The file.
    sample_rate : int, optional
        See `convert_encodec`.

    Raises
    ------
    DataError
        If the file is missing, holds more than tensors, or is no EnCodec.

    Examples
    --------
    >>> load_encodec(Path("missing.th"))
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: missing.th is missing: download EnCodec's checkpoint ...
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: download EnCodec's checkpoint to there")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return build_encodec(load_file(path), sample_rate=sample_rate)
        except SafetensorError as error:
            raise DataError(f"{path} is not a safetensors file: {error}") from error
    import pickle

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} is not a file of tensors alone: {error}") from error
    if not isinstance(weights, Mapping) or not all(torch.is_tensor(v) for v in weights.values()):
        raise DataError(f"{path} holds something other than named tensors")
    return build_encodec(weights, sample_rate=sample_rate)
