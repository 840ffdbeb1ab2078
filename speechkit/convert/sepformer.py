"""SpeechBrain's published SepFormer checkpoints to our `Separator`.

A checkpoint is three files: ``encoder.ckpt``, ``masknet.ckpt`` and ``decoder.ckpt``, each a state
dict. They are read as tensors alone (``weights_only=True``): a file that holds anything else is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.models.separator import Separator
from speechkit.nn.dual_path_models import SepFormerMasker
from speechkit.nn.filterbank import FilterbankDecoder, FilterbankEncoder

_FILES = ("encoder.ckpt", "masknet.ckpt", "decoder.ckpt")
_LAYER = {
    "self_att.att.in_proj_weight": "attention.in_proj.weight",
    "self_att.att.in_proj_bias": "attention.in_proj.bias",
    "self_att.att.out_proj.weight": "attention.out_proj.weight",
    "self_att.att.out_proj.bias": "attention.out_proj.bias",
    "pos_ffn.ffn.0.weight": "feedforward.expand.weight",
    "pos_ffn.ffn.0.bias": "feedforward.expand.bias",
    "pos_ffn.ffn.3.weight": "feedforward.reduce.weight",
    "pos_ffn.ffn.3.bias": "feedforward.reduce.bias",
    "norm1.norm.weight": "attention_norm.weight",
    "norm1.norm.bias": "attention_norm.bias",
    "norm2.norm.weight": "feedforward_norm.weight",
    "norm2.norm.bias": "feedforward_norm.bias",
}
_FRAME = {
    "norm.weight": "input_norm.weight",
    "norm.bias": "input_norm.bias",
    "conv1d.weight": "bottleneck.weight",
    "prelu.weight": "prelu.weight",
    "conv2d.weight": "split.weight",
    "conv2d.bias": "split.bias",
    "end_conv1x1.weight": "output.weight",
}
_GATE = ("output.0.weight", "output.0.bias", "output_gate.0.weight", "output_gate.0.bias")
_MODEL = re.compile(r"dual_mdl\.(\d+)\.(intra|inter)_(mdl|norm|linear)\.(.+)")


class Converted(NamedTuple):
    """What `convert_sepformer` gives.

    Attributes
    ----------
    state : dict of str to Tensor
        For `speechkit.models.separator.Separator`.
    settings : dict
        Arguments: ``"filterbank"`` of `FilterbankEncoder` and `FilterbankDecoder`, ``"masker"`` of
        `speechkit.nn.dual_path_models.SepFormerMasker`.
    """

    state: dict[str, Tensor]
    settings: dict[str, dict[str, Any]]


def convert_sepformer(
    encoder: Mapping[str, Tensor],
    masknet: Mapping[str, Tensor],
    decoder: Mapping[str, Tensor],
    *,
    chunk_size: int = 250,
    num_heads: int = 8,
) -> Converted:
    """Convert the state dicts of SpeechBrain's SepFormer.

    Subakan et al. 2021, "Attention is all you need in speech separation".

    Parameters
    ----------
    encoder, masknet, decoder : mapping of str to Tensor
        Contents of ``encoder.ckpt``, ``masknet.ckpt`` and ``decoder.ckpt``.
    chunk_size, num_heads : int
        What the weights do not tell; the defaults are those of all published SepFormers.

    Returns
    -------
    Converted
        The state dict and the settings that fit it.

    Raises
    ------
    DataError
        If a weight is missing, or one is there that a SepFormer does not have.

    Examples
    --------
    >>> convert_sepformer({}, {}, {})
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: encoder.ckpt has no weight 'conv1d.weight': it is not a ...
    """
    filters = _take(encoder, "conv1d.weight", "encoder.ckpt")
    kernels = _take(decoder, "weight", "decoder.ckpt")
    if filters.dim() != 3 or filters.shape != kernels.shape:
        raise DataError(
            f"encoder.ckpt has filters of shape {tuple(filters.shape)} and decoder.ckpt of "
            f"{tuple(kernels.shape)}: they should be the same (N, 1, K)"
        )
    for name, extra in (
        ("encoder.ckpt", encoder.keys() - {"conv1d.weight"}),
        ("decoder.ckpt", decoder.keys() - {"weight"}),
    ):
        if extra:
            raise DataError(f"{name} has weights that a SepFormer does not have: {sorted(extra)}")
    state = {"encoder.conv.weight": filters, "decoder.conv.weight": kernels}
    masker = convert_masknet(masknet)
    state.update({f"masker.{name}": value for name, value in masker.items()})
    num_filters, _, kernel_size = filters.shape
    return Converted(
        state,
        {
            "filterbank": {
                "num_filters": num_filters,
                "kernel_size": kernel_size,
                "stride": kernel_size // 2,
            },
            "masker": {
                **_settings(masker, has_positions=any(".pos_enc." in name for name in masknet)),
                "chunk_size": chunk_size,
                "num_heads": num_heads,
            },
        },
    )


def convert_masknet(masknet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of SpeechBrain's ``Dual_Path_Model`` with ``SBTransformerBlock``.

    Buffers of positions are left out: ours are computed.

    Parameters
    ----------
    masknet : mapping of str to Tensor
        Contents of ``masknet.ckpt``.

    Returns
    -------
    dict of str to Tensor
        For `speechkit.nn.dual_path_models.SepFormerMasker`.

    Raises
    ------
    DataError
        If a weight is missing, or one is there that a SepFormer does not have.

    Examples
    --------
    >>> convert_masknet({"dual_mdl.0.intra_mdl.mdl.rnn.weight_ih_l0": torch.zeros(1)})
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: masknet.ckpt has no weight 'norm.weight': it is not a ...
    """
    state = {}
    for theirs, ours in _FRAME.items():
        value = _take(masknet, theirs, "masknet.ckpt")
        state[ours] = value.flatten(1) if value.dim() > 2 else value.flatten()
    parts = [_take(masknet, name, "masknet.ckpt") for name in _GATE]
    state["gate.weight"] = torch.cat([parts[0], parts[2]]).flatten(1)
    state["gate.bias"] = torch.cat([parts[1], parts[3]])
    for name, value in masknet.items():
        if name in _FRAME or name in _GATE or name.endswith("pos_enc.pe"):
            continue
        ours_name = _block_name(name)
        if ours_name is None:
            raise DataError(f"masknet.ckpt has a weight that a SepFormer does not have: {name!r}")
        state[ours_name] = value.flatten() if "_norm" in name else value
    return state


def load_sepformer(
    folder: str | Path, *, sample_rate: int = 8000, chunk_size: int = 250, num_heads: int = 8
) -> Separator:
    """Read the three files of a published SepFormer and build its separator, in eval mode.

    Parameters
    ----------
    folder : path
        Holds ``encoder.ckpt``, ``masknet.ckpt`` and ``decoder.ckpt``.
    sample_rate : int
        Hz, which the files do not say: 8000 of those of WSJ0-mix, 16000 of some others.
    chunk_size, num_heads : int
        As in `convert_sepformer`.

    Raises
    ------
    DataError
        If a file is missing, holds anything but tensors, or other tensors than a SepFormer's.
    """
    parts = []
    for name in _FILES:
        path = Path(folder) / name
        if not path.is_file():
            raise DataError(f"{path} is missing; a SepFormer of SpeechBrain is {', '.join(_FILES)}")
        parts.append(_load_tensors(path))
    state, settings = convert_sepformer(*parts, chunk_size=chunk_size, num_heads=num_heads)
    model = Separator(
        sample_rate=sample_rate,
        encoder=FilterbankEncoder(**settings["filterbank"]),
        masker=SepFormerMasker(**settings["masker"]),
        decoder=FilterbankDecoder(**settings["filterbank"]),
    )
    model.load_state_dict(state)
    return model.eval()


def _load_tensors(path: Path) -> Mapping[str, Tensor]:
    import pickle

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} is not a file of tensors alone: {error}") from error
    if not isinstance(found, Mapping) or not all(torch.is_tensor(v) for v in found.values()):
        raise DataError(f"{path} holds something other than named tensors")
    return found


def _take(weights: Mapping[str, Tensor], name: str, file: str) -> Tensor:
    if name not in weights:
        raise DataError(f"{file} has no weight {name!r}: it is not a SepFormer of SpeechBrain")
    return weights[name]


def _block_name(name: str) -> str | None:
    """Return our name of a weight inside ``dual_mdl``; None if there is none."""
    found = _MODEL.fullmatch(name)
    if found is None:
        return None
    block, side, part, rest = found.groups()
    if part == "norm":
        return f"blocks.{block}.{side}_norm.{rest}" if rest in ("weight", "bias") else None
    prefix = f"blocks.{block}.{side}"
    if part == "linear":
        return f"{prefix}.output.{rest[2:]}" if rest in ("w.weight", "w.bias") else None
    if rest in ("mdl.norm.norm.weight", "mdl.norm.norm.bias"):
        return f"{prefix}.norm.{rest.rpartition('.')[2]}"
    layer = re.fullmatch(r"mdl\.layers\.(\d+)\.(.+)", rest)
    if layer is None or layer[2] not in _LAYER:
        return None
    return f"{prefix}.layers.{layer[1]}.{_LAYER[layer[2]]}"


def _settings(state: Mapping[str, Tensor], *, has_positions: bool) -> dict[str, Any]:
    """Read off a converted state what it was built with."""

    def count(pattern: str) -> int:
        found = [re.match(pattern, name) for name in state]
        return max((int(match[1]) + 1 for match in found if match), default=0)

    hidden = "blocks.0.intra.layers.0.feedforward.expand.weight"
    if hidden not in state:
        raise DataError("masknet.ckpt has no Transformer layers: it is not a SepFormer")
    split, bottleneck = state["split.weight"].shape
    return {
        "num_features": state["output.weight"].shape[0],
        "bottleneck_size": bottleneck,
        "num_sources": split // bottleneck,
        "num_blocks": count(r"blocks\.(\d+)\."),
        "intra_layers": count(r"blocks\.0\.intra\.layers\.(\d+)\."),
        "inter_layers": count(r"blocks\.0\.inter\.layers\.(\d+)\."),
        "feedforward_size": state[hidden].shape[0],
        "positions": has_positions,
        "linear": "blocks.0.intra.output.weight" in state,
    }
