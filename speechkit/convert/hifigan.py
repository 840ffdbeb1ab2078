"""HiFi-GAN's published checkpoints to our `NeuralVocoder`.

They exist in two layouts of the same network: that of the authors (a file whose ``"generator"`` is
a state dict, with ``config.json`` beside it) and that of SpeechBrain (``generator.ckpt``, a state
dict), whose convolutions see the mirror image beyond the ends. Both are read as tensors alone
(``weights_only=True``): a file that holds anything else is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.data.errors import DataError, listing
from speechkit.features.spectrum import LogMel
from speechkit.models.vocoder import NeuralVocoder
from speechkit.nn.hifigan import HiFiGANGenerator

_NAME = re.compile(
    r"(conv_pre|conv_post|ups\.(?P<stage>\d+)|resblocks\.(?P<block>\d+)\.convs(?P<kind>[12]?)\."
    r"(?P<step>\d+))\.(?P<peer>conv\.)?(?P<part>bias|weight|weight_g|weight_v|"
    r"parametrizations\.weight\.original[01])"
)
_PARTS = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
_DILATIONS = {
    "1": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "2": [[1, 2], [2, 6], [3, 12]],
}


class Converted(NamedTuple):
    """What `convert_hifigan` gives.

    Attributes
    ----------
    state : dict of str to Tensor
        For `speechkit.nn.hifigan.HiFiGANGenerator`.
    settings : dict
        Its arguments.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any]


def published_mel(**changes: Any) -> LogMel:
    """Make the mels of the published LJSpeech models, with some settings changed.

    The authors center their frames half a hop later: with ours their generators give the same sound
    half a hop late.

    Examples
    --------
    >>> published_mel().output_size, published_mel(sample_rate=16000).sample_rate
    (80, 16000)
    """
    settings: dict[str, Any] = {
        "sample_rate": 22050, "n_fft": 1024, "hop_length": 256, "num_mels": 80, "f_max": 8000.0,
        "mel_scale": "slaney", "norm": "slaney", "power": 1.0, "floor": 1e-5,
    }  # fmt: skip
    return LogMel(**{**settings, **changes})


def convert_hifigan(
    weights: Mapping[str, Tensor],
    *,
    upsample_rates: Sequence[int] | None = None,
    block_dilations: Sequence[Sequence[int]] | None = None,
) -> Converted:
    """Convert the state dict of a generator, in either layout.

    Kong et al. 2020, "HiFi-GAN".

    Parameters
    ----------
    weights : mapping of str to Tensor
        With weight norm, or folded.
    upsample_rates : sequence of int, optional
        What the weights do not tell; by default half of each kernel, as in all published models.
    block_dilations : sequence of sequence of int, optional
        Nor do they tell these; by default those of V1 and V2, or of V3.

    Returns
    -------
    Converted
        The state dict and the settings that fit it.

    Raises
    ------
    DataError
        If a weight is missing, or one is there that HiFi-GAN does not have.

    Examples
    --------
    >>> convert_hifigan({"conv_pre.bias": torch.zeros(512)})
    Traceback (most recent call last):
    speechkit.data.errors.DataError: the state dict has no 'conv_post': it is not a whole HiFi-GAN
    """
    found = {name: _NAME.fullmatch(name) for name in weights}
    strange = [repr(name) for name, match in found.items() if match is None]
    if strange:
        raise DataError(listing("weights that HiFi-GAN does not have:", strange, "Leave them out."))
    matches = {name: match for name, match in found.items() if match is not None}
    settings = _settings(weights, matches, upsample_rates, block_dilations)
    blocks = len(settings["block_kernels"])
    state = {_ours(match, blocks): weights[name] for name, match in matches.items()}
    try:
        expected = HiFiGANGenerator(**settings).state_dict()
    except ValueError as error:
        raise DataError(f"the state dict is not a whole HiFi-GAN: {error}") from error
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise DataError(
            listing("HiFi-GAN's state dict lacks what becomes:", missing, "Give a whole one.")
        )
    odd = [n for n, value in state.items() if n not in expected or value.shape != expected[n].shape]
    if odd:
        raise DataError(
            listing("these do not fit HiFi-GAN's other weights:", sorted(odd), "Give a whole one.")
        )
    return Converted(state, settings)


def load_hifigan(
    path: str | Path, *, features: LogMel | None = None, config: str | Path | None = None
) -> NeuralVocoder:
    """Read a published generator and build its vocoder, in eval mode, with weight norm folded.

    Parameters
    ----------
    path : path
        The authors' ``generator_v1`` or ``g_...``, or SpeechBrain's ``generator.ckpt``.
    features : LogMel, optional
        The mels that it was trained on; by default as the authors' configuration says, else
        `published_mel`.
    config : path, optional
        The authors' configuration; by default ``config.json`` beside the file, if there is one.

    Returns
    -------
    NeuralVocoder
        It can be saved as a model folder.

    Raises
    ------
    DataError
        If a file is missing or no HiFi-GAN, or its mels are not those of ``features``.
    """
    path = Path(path)
    weights = _load_tensors(path)
    beside = path.with_name("config.json")
    place = Path(config) if config is not None else (beside if beside.is_file() else None)
    options: dict[str, Any] = {}
    if place is not None:
        found = _read_config(place)
        features = features or published_mel(**found.pop("mel"))
        options = {name: found[name] for name in ("upsample_rates", "block_dilations")}
    state, settings = convert_hifigan(weights, **options)
    generator = HiFiGANGenerator(**settings)
    generator.load_state_dict(state)
    try:
        model = NeuralVocoder(features=features or published_mel(), generator=generator)
    except ValueError as error:
        raise DataError(f"{path}: {error}; give the features that it was trained on") from error
    return model.fold_weight_norm().eval()


def _read_config(path: Path) -> dict[str, Any]:
    names = {
        "sampling_rate": "sample_rate", "n_fft": "n_fft", "hop_size": "hop_length",
        "win_size": "win_length", "num_mels": "num_mels", "fmin": "f_min", "fmax": "f_max",
    }  # fmt: skip
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        mel = {ours: found[theirs] for theirs, ours in names.items()}
        return {
            "mel": mel,
            "upsample_rates": list(found["upsample_rates"]),
            "block_dilations": [list(d) for d in found["resblock_dilation_sizes"]],
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a configuration of HiFi-GAN: {error!r}") from error


def _load_tensors(path: Path) -> Mapping[str, Tensor]:
    import pickle

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} is not a file of tensors alone: {error}") from error
    if isinstance(found, Mapping) and isinstance(found.get("generator"), Mapping):
        found = found["generator"]
    if not isinstance(found, Mapping) or not all(torch.is_tensor(v) for v in found.values()):
        raise DataError(f"{path} holds something other than named tensors")
    return found


def _ours(match: re.Match[str], blocks: int) -> str:
    """Give our name of a weight; ``blocks`` are the residual blocks of a stage."""
    return f"{_layer(match, blocks)}.{_PARTS.get(match['part'], match['part'])}"


def _layer(match: re.Match[str], blocks: int) -> str:
    if match["stage"] is not None:
        return f"upsamplers.{match['stage']}"
    if match["block"] is not None:
        stage, block = divmod(int(match["block"]), blocks)
        side = "second" if match["kind"] == "2" else "first"
        return f"blocks.{stage}.{block}.{side}.{match['step']}"
    return "input" if match[1] == "conv_pre" else "output"


def _settings(
    weights: Mapping[str, Tensor],
    matches: Mapping[str, re.Match[str]],
    rates: Sequence[int] | None,
    dilations: Sequence[Sequence[int]] | None,
) -> dict[str, Any]:
    """Read off the weights what the network was built with."""
    kernels: dict[str, Tensor] = {}  # of each layer, by its name in the checkpoint
    for name, match in matches.items():
        if match["part"] in ("weight", "weight_v", "parametrizations.weight.original1"):
            kernels[match[1]] = weights[name]
    stages = sum(layer.startswith("ups.") for layer in kernels)
    indices = {int(match["block"]) for match in matches.values() if match["block"] is not None}
    for layer in ("conv_post", "conv_pre", "ups.0", "resblocks.0"):
        if not any(f"{name}.".startswith(f"{layer}.") for name in kernels):
            raise DataError(f"the state dict has no {layer!r}: it is not a whole HiFi-GAN")
    blocks = max(1, len(indices) // stages)
    kind = "1" if "resblocks.0.convs1.0" in kernels else "2"
    first = "convs1" if kind == "1" else "convs"
    needed = [f"resblocks.{i}.{first}.0" for i in range(blocks)]
    needed += [f"ups.{i}" for i in range(stages)]
    missing = [name for name in needed if name not in kernels]
    if missing:
        raise DataError(f"the state dict has no {missing[0]!r}: it is not a whole HiFi-GAN")
    sizes = [int(kernels[f"ups.{i}"].shape[2]) for i in range(stages)]
    mirrored = any(match["peer"] for match in matches.values())
    return {
        "num_mels": int(kernels["conv_pre"].shape[1]),
        "channels": int(kernels["conv_pre"].shape[0]),
        "upsample_rates": list(rates or [size // 2 for size in sizes]),
        "upsample_kernels": sizes,
        "block_kind": kind,
        "block_kernels": [int(kernels[f"resblocks.{i}.{first}.0"].shape[2]) for i in range(blocks)],
        "block_dilations": [list(d) for d in dilations or _DILATIONS[kind][:blocks]],
        "norm": "none" if any(m["part"] == "weight" for m in matches.values()) else "weight",
        "pad_mode": "reflect" if mirrored else "constant",
    }
