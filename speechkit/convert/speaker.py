"""SpeechBrain's published speaker models to our `SpeakerEncoder`.

``spkrec-ecapa-voxceleb`` and ``spkrec-xvect-voxceleb`` keep the network in
``embedding_model.ckpt``, a state dict. It is read as tensors alone (``weights_only=True``): a file
that holds anything else is refused. The features are not in the file: those of the two models are
SpeechBrain's log-mel with the mean of each utterance removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.features.normalize import UtteranceNorm
from speechkit.features.spectrum import LogMel
from speechkit.models.speaker import SpeakerEncoder
from speechkit.nn.ecapa import ECAPAEncoder
from speechkit.nn.pooling import AttentiveStatisticsPooling, EmbeddingLayer, StatisticsPooling
from speechkit.nn.xvector import XVectorEncoder

_FILE = "embedding_model.ckpt"
# Their modules, and ours; each has the weights that `_LEAF` names.
_ECAPA = (
    (r"blocks\.0\.(conv|norm)\.\1", r"encoder.first.\1"),
    (r"blocks\.(\d+)\.tdnn1\.(conv|norm)\.\2", r"encoder.blocks.\1.expand.\2"),
    (r"blocks\.(\d+)\.tdnn2\.(conv|norm)\.\2", r"encoder.blocks.\1.reduce.\2"),
    (
        r"blocks\.(\d+)\.res2net_block\.blocks\.(\d+)\.(conv|norm)\.\3",
        r"encoder.blocks.\1.res2net.layers.\2.\3",
    ),
    (r"blocks\.(\d+)\.se_block\.conv1\.conv", r"encoder.blocks.\1.gate.squeeze"),
    (r"blocks\.(\d+)\.se_block\.conv2\.conv", r"encoder.blocks.\1.gate.excite"),
    (r"mfa\.(conv|norm)\.\1", r"encoder.aggregate.\1"),
    (r"asp\.tdnn\.conv\.conv", r"pooling.hidden"),
    (r"asp\.tdnn\.norm\.norm", r"pooling.norm"),
    (r"asp\.conv\.conv", r"pooling.score"),
    (r"asp_bn\.norm", r"projection.before"),
    (r"fc\.conv", r"projection.linear"),
)
_LINEAR = re.compile(r"pooling\.(hidden|score)|projection\.linear|.*\.gate\.(squeeze|excite)")
_LEAF = r"\.(weight|bias|running_mean|running_var)"


class Converted(NamedTuple):
    """What `convert_ecapa` and `convert_xvector` give.

    Attributes
    ----------
    state : dict of str to Tensor
        For `speechkit.models.speaker.SpeakerEncoder`, without the tables of the features.
    settings : dict
        Arguments of its parts: ``"encoder"``, ``"pooling"``, ``"projection"``.
    """

    state: dict[str, Tensor]
    settings: dict[str, dict[str, Any]]


def convert_ecapa(
    weights: Mapping[str, Tensor], *, dilations: tuple[int, ...] = (2, 3, 4)
) -> Converted:
    """Convert the state dict of SpeechBrain's ``ECAPA_TDNN``.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Contents of ``embedding_model.ckpt``.
    dilations : tuple of int
        Of the blocks, which the weights do not tell; the default is that of the published model.

    Returns
    -------
    Converted
        The state dict and the settings that fit it.

    Raises
    ------
    DataError
        If a weight is missing, or one is there that an ECAPA-TDNN does not have.

    Examples
    --------
    >>> convert_ecapa({"blocks.0.conv.weight": torch.zeros(1)})
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: embedding_model.ckpt has weights that an ECAPA-TDNN of ...
    """
    state = _rename(weights, _ecapa_name, "an ECAPA-TDNN")
    # Our blocks are counted without the layer before them.
    state = {
        re.sub(r"(?<=^encoder\.blocks\.)\d+", lambda m: str(int(m[0]) - 1), name): value
        for name, value in state.items()
    }

    def shape(name: str) -> torch.Size:
        return _shape(state, name, "an ECAPA-TDNN")

    channels, input_size, first_kernel = shape("encoder.first.conv.weight")
    output_size = shape("encoder.aggregate.conv.weight")[0]
    layer = shape("encoder.blocks.0.res2net.layers.0.conv.weight")
    attention_size, seen = shape("pooling.hidden.weight")
    encoder = {
        "input_size": input_size,
        "channels": channels,
        "output_size": output_size,
        "kernel_size": layer[2],
        "dilations": dilations,
        "first_kernel_size": first_kernel,
        "scale": channels // layer[0],
        "se_size": shape("encoder.blocks.0.gate.squeeze.weight")[0],
        "padding": "reflect",
        "sum_inputs": False,
    }
    pooling = {
        "input_size": output_size,
        "attention_size": attention_size,
        "context": seen != output_size,
    }
    projection = {
        "input_size": 2 * output_size,
        "embed_dim": shape("projection.linear.weight")[0],
        "norm_input": True,
    }
    settings: dict[str, Any] = {"encoder": encoder, "pooling": pooling, "projection": projection}
    return Converted(state, settings)


def convert_xvector(
    weights: Mapping[str, Tensor], *, dilations: tuple[int, ...] = (1, 2, 3, 1, 1)
) -> Converted:
    """Convert the state dict of SpeechBrain's ``Xvector``.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Contents of ``embedding_model.ckpt``.
    dilations : tuple of int
        Of the layers, which the weights do not tell; the default is that of the published model.

    Returns
    -------
    Converted
        The state dict and the settings that fit it.

    Raises
    ------
    DataError
        If a weight is missing, or one is there that an x-vector does not have.

    Examples
    --------
    >>> convert_xvector({})
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: embedding_model.ckpt has no weight for ...
    """
    # Theirs is one list: convolution, activation and norm of each layer, pooling, linear layer.
    last = 3 * len(dilations) + 1

    def rename(name: str) -> str | None:
        found = re.fullmatch(rf"blocks\.(\d+)\.(conv|norm|w){_LEAF}", name)
        if found is None:
            return None
        index, part, leaf = int(found[1]), found[2], found[3]
        if part == "w":
            return f"projection.linear.{leaf}" if index == last else None
        if index >= last - 1 or index % 3 != {"conv": 0, "norm": 2}[part]:
            return None
        return f"encoder.layers.{index // 3}.{part}.{leaf}"

    state = _rename(weights, rename, "an x-vector")
    shapes = [
        _shape(state, f"encoder.layers.{index}.conv.weight", "an x-vector")
        for index in range(len(dilations))
    ]
    output_size = shapes[-1][0]
    encoder = {
        "input_size": shapes[0][1],
        "channels": tuple(shape[0] for shape in shapes),
        "kernel_sizes": tuple(shape[2] for shape in shapes),
        "dilations": dilations,
        "padding": "reflect",
        "activation": "leaky_relu",
    }
    projection = {
        "input_size": 2 * output_size,
        "embed_dim": _shape(state, "projection.linear.weight", "an x-vector")[0],
    }
    pooling = {"input_size": output_size, "correction": 1}
    settings: dict[str, Any] = {"encoder": encoder, "pooling": pooling, "projection": projection}
    return Converted(state, settings)


def load_ecapa(path: str | Path) -> SpeakerEncoder:
    """Open SpeechBrain's published ``spkrec-ecapa-voxceleb``, in eval mode.

    Parameters
    ----------
    path : path
        The folder with ``embedding_model.ckpt``, or that file.

    Raises
    ------
    DataError
        If the file is missing, holds anything but tensors, or other tensors than an ECAPA-TDNN's.
    """
    converted = convert_ecapa(_load_tensors(path))
    pooling = AttentiveStatisticsPooling(**converted.settings["pooling"])
    encoder = ECAPAEncoder(**converted.settings["encoder"])
    return _assemble(converted, encoder, pooling)


def load_xvector(path: str | Path) -> SpeakerEncoder:
    """Open SpeechBrain's published ``spkrec-xvect-voxceleb``, in eval mode.

    Its pooling adds noise of 1e-5 to the means at each call, which is left out here.

    Parameters
    ----------
    path : path
        The folder with ``embedding_model.ckpt``, or that file.

    Raises
    ------
    DataError
        If the file is missing, holds anything but tensors, or other tensors than an x-vector's.
    """
    converted = convert_xvector(_load_tensors(path))
    pooling = StatisticsPooling(**converted.settings["pooling"])
    encoder = XVectorEncoder(**converted.settings["encoder"])
    return _assemble(converted, encoder, pooling)


def _assemble(
    converted: Converted,
    encoder: ECAPAEncoder | XVectorEncoder,
    pooling: AttentiveStatisticsPooling | StatisticsPooling,
) -> SpeakerEncoder:
    model = SpeakerEncoder(
        features=LogMel(
            sample_rate=16000,
            num_mels=encoder.input_size,
            window="hamming",
            pad_mode="constant",
            filters="symmetric",
            log="db",
            floor=1e-10,
            top_db=80.0,
        ),
        norm=UtteranceNorm(mean_only=True),
        encoder=encoder,
        pooling=pooling,
        projection=EmbeddingLayer(**converted.settings["projection"]),
    )
    own = {name for name in model.state_dict() if not name.startswith("features.")}
    missing, extra = own - converted.state.keys(), converted.state.keys() - own
    if missing or extra:
        raise DataError(
            f"{_FILE} is not whole: weights for {sorted(missing)} are missing, and those for "
            f"{sorted(extra)} have no place"
        )
    model.load_state_dict(converted.state, strict=False)  # tables of features are no weights
    return model.eval()


def _load_tensors(path: str | Path) -> Mapping[str, Tensor]:
    import pickle

    path = Path(path)
    file = path / _FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file} is missing; a speaker model of SpeechBrain keeps it in {_FILE}")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{file} is not a file of tensors alone: {error}") from error
    if not isinstance(found, Mapping) or not all(torch.is_tensor(v) for v in found.values()):
        raise DataError(f"{file} holds something other than named tensors")
    return found


def _rename(
    weights: Mapping[str, Tensor], rename: Callable[[str], str | None], what: str
) -> dict[str, Tensor]:
    state, unknown = {}, []
    for name, value in weights.items():
        if name.endswith(".num_batches_tracked"):
            continue
        ours = rename(name)
        if ours is None:
            unknown.append(name)
            continue
        linear = _LINEAR.fullmatch(ours.rpartition(".")[0])
        state[ours] = value.squeeze(2) if linear and value.dim() == 3 else value
    if unknown:
        raise DataError(
            f"{_FILE} has weights that {what} of SpeechBrain does not have: {sorted(unknown)}"
        )
    return state


def _ecapa_name(name: str) -> str | None:
    for theirs, ours in _ECAPA:
        found = re.fullmatch(theirs + _LEAF, name)
        if found:
            return found.expand(ours) + name[name.rindex(".") :]
    return None


def _shape(state: Mapping[str, Tensor], name: str, what: str) -> torch.Size:
    if name not in state:
        raise DataError(f"{_FILE} has no weight for {name!r}: it is not {what} of SpeechBrain")
    return state[name].shape
