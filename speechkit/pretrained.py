"""The model folder: save, load, fetch from a hub, refuse what is unsafe.

A folder holds ``config.json`` (JSON only; a YAML config is not read), ``model.safetensors``,
the files that arguments need (``tokenizer.model``) and a model card. It is data: opening one
that came from elsewhere executes nothing (see
:mod:`speechkit.model_folder.safety`), and there is no fallback to pickles.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import speechkit
from speechkit.distributed import unwrap
from speechkit.files import replace_folder, sync
from speechkit.model_folder import safety
from speechkit.model_folder.description import build, describe
from speechkit.model_folder.safety import PretrainedError, allow
from speechkit.model_folder.weights import LoadReport, MismatchError, load_into

__all__ = [
    "LoadReport",
    "MismatchError",
    "PretrainedError",
    "allow",
    "build",
    "describe",
    "load",
    "load_state",
    "read_config",
    "save",
]

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_HUB_PATTERNS = (CONFIG, WEIGHTS, "README.md", f"*{safety.FILE_SUFFIX}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


# --- saving --------------------------------------------------------------------------------


def save(model: nn.Module, folder: str | Path, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a model as a self-contained folder that :func:`load` opens.

    The folder is written beside its place, synced and renamed: a kill leaves the old one.

    Parameters
    ----------
    model : nn.Module
        Of classes that keep their constructor's arguments as attributes.
    folder : str or Path
        Replaced if it is a model folder already.
    extra : Mapping, optional
        More for ``config.json``: ``recipe``, ``results``, whatever JSON can hold.

    Raises
    ------
    PretrainedError
        If the model cannot be described, or the folder exists and is something else.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save(nn.PReLU(), Path(parent) / "model")
    ...     load(Path(parent) / "model")
    PReLU(num_parameters=1)
    """
    folder = Path(folder)
    model = unwrap(model)
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise PretrainedError(f"{folder}: exists and is not a model folder; nothing was written")
    files: dict[str, bytes] = {}
    config = {
        "format": FORMAT,
        "speechkit_version": speechkit.__version__,
        "model": _with_files(describe(model), ("model",), files),
        "extra": dict(extra or {}),
    }
    try:
        text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PretrainedError(f"extra: {error}; give what JSON can hold") from error
    files |= {CONFIG: text.encode() + b"\n", "README.md": _model_card(model, config).encode()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        _write_files(model, temporary, files)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _with_files(value: Any, path: tuple[str, ...], files: dict[str, bytes]) -> Any:
    """Replace the bytes in a description by names of files, which are collected."""
    if isinstance(value, bytes):
        parts = path[1:-1] if path[-1] == "model" and len(path) > 2 else path[1:]
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(part for part in parts if part != "args"))
        name = stem + safety.FILE_SUFFIX
        number = 2
        while name in files:
            name, number = f"{stem}-{number}{safety.FILE_SUFFIX}", number + 1
        files[name] = value
        return {"file": name, "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, list):
        return [_with_files(v, (*path, str(i)), files) for i, v in enumerate(value)]
    if isinstance(value, dict):
        return {key: _with_files(v, (*path, key), files) for key, v in value.items()}
    return value


def _write_files(model: nn.Module, folder: Path, files: Mapping[str, bytes]) -> None:
    from safetensors.torch import save_file

    state = model.state_dict()
    other = [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if other:
        raise PretrainedError(f"not tensors, so not kept in a model folder: {', '.join(other)}")
    # Clones, because safetensors refuses tensors that share memory (tied weights).
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for path in [*folder.iterdir(), folder]:
        sync(path)


def _model_card(model: nn.Module, config: Mapping[str, Any]) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    name = type(model).__name__
    uses = {
        "transcribe": 'model.transcribe("speech.wav").text',
        "separate": 'model.separate("mixture.wav").estimates',
        "score": 'model.score(["A LINE"])',
        "synthesize": 'model.synthesize("Some words.").waveform  # voice=..., reference=...',
        "verify": 'model.verify("one.wav", "other.wav")',
        "classify": 'model.classify("sound.wav").labels',
        "copy_synthesis": "waveform, lengths = model(mels, frames)  # mels as model.features makes",
        "rates_kbps": "codes = model.encode(waveform).codes  # or: speechkit encode a.wav a.skc",
    }
    use = next((line for name, line in uses.items() if hasattr(model, name)), "model.eval()")
    lines = [
        "---",
        "library_name: speechkit",
        "---",
        f"# {name}",
        "",
        f"{count:,} parameters, saved by speechkit {config['speechkit_version']}.",
        "",
        "```python",
        "import speechkit",
        "",
        'model = speechkit.load("path/to/this/folder")  # or a hub id: "organisation/name"',
        use,
        "```",
        "",
        "The folder is data: `config.json` names classes of speechkit and their arguments,",
        "`model.safetensors` holds the weights, and opening it executes no code from it.",
    ]
    for key, value in config["extra"].items():
        lines += ["", f"**{key}**: `{json.dumps(value, ensure_ascii=False)}`"]
    return "\n".join(lines) + "\n"


# --- loading -------------------------------------------------------------------------------


def load(
    source: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None
) -> nn.Module:
    """Open a model folder, or a model on a hub.

    Parameters
    ----------
    source : str or Path
        A folder, or a hub id ``organisation/name`` (needs ``pip install 'speechkit[hub]'``).
    device : str or torch.device
        Where the model goes.
    revision : str, optional
        Branch, tag or commit on the hub.

    Returns
    -------
    nn.Module
        In eval mode. Its floating-point weights have the type that its class makes.

    Raises
    ------
    PretrainedError
        If there is no such folder, it is damaged, from a newer version, or holds what is not
        allowed. Nothing in a folder is executed.
    """
    folder, root = _locate(source, revision)
    config = _read_config(folder, root)
    try:
        model = build(config["model"], folder, root=root)
    except PretrainedError as error:
        raise PretrainedError(f"{folder / CONFIG}: {error}") from error
    if not isinstance(model, nn.Module):
        raise PretrainedError(f"{folder}: {config['model']['class']} is not a model")
    load_into(model, _open_weights(folder, root), None, str(folder))
    return model.to(device).eval()


def _locate(source: str | Path, revision: str | None) -> tuple[Path, Path]:
    """Give the folder of a source, and the folder that links inside it may lead to."""
    folder = Path(source)
    if folder.is_dir():
        return folder, folder
    if folder.suffix in _PICKLES:
        raise PretrainedError(
            f"{source}: {folder.suffix} files are pickles, which can run any code when opened, so "
            "they are never read; convert what you trust to a model folder with speechkit.save"
        )
    if folder.is_file():
        raise PretrainedError(f"{source}: is a file; give the model folder")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        kept = folder.with_name(f".{folder.name}.old")
        hint = f"; an interrupted save left the model before it in {kept}" if kept.is_dir() else ""
        raise PretrainedError(f"{source}: there is no such folder{hint}")
    return _fetch(source, revision)


def _fetch(hub_id: str, revision: str | None) -> tuple[Path, Path]:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise PretrainedError(
            f"{hub_id}: there is no such folder here; to fetch a model of this name from the hub, "
            "pip install 'speechkit[hub]'"
        ) from None
    try:
        folder = Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=list(_HUB_PATTERNS))
        )
    except Exception as error:  # the hub's library raises dozens of kinds
        raise PretrainedError(
            f"{hub_id}: there is no such folder here, and fetching it from the hub failed: {error}"
        ) from error
    # The cache keeps <repository>/snapshots/<commit>/<file> as links to <repository>/blobs.
    in_cache = folder.parent.name == "snapshots"
    return folder, folder.parent.parent if in_cache else folder


def read_config(source: str | Path) -> dict[str, Any]:
    """Read and check a model folder's ``config.json``, building nothing.

    Parameters
    ----------
    source : str or Path
        A model folder or a hub id.

    Returns
    -------
    dict
        ``format``, ``speechkit_version``, ``model`` and ``extra``.
    """
    return _read_config(*_locate(source, None))


def _read_config(folder: Path, root: Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        yaml = [path.name for path in folder.iterdir() if path.suffix in (".yaml", ".yml")]
        if (folder / "model" / CONFIG).is_file():
            hint = f"; did you mean {folder / 'model'}?"
        elif yaml:
            hint = f"; {', '.join(yaml)} is not read: YAML can name any code"
        else:
            hint = "; give what speechkit.save wrote, or the folder 'model' of a run"
        raise PretrainedError(f"{folder}: not a model folder, it has no {CONFIG}{hint}")
    path = safety.plain_file(folder, CONFIG, root=root, limit=safety.MAX_CONFIG_BYTES)
    config = safety.parse_json(path.read_bytes(), str(path))
    version = config.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise PretrainedError(f"{path}: 'format' must be a number from 1 on, not {version!r}")
    if version > FORMAT:
        raise PretrainedError(
            f"{path}: format {version}, written by speechkit {config.get('speechkit_version')}; "
            f"this is {speechkit.__version__}, which reads up to format {FORMAT}: upgrade it"
        )
    model = config.get("model")
    if not isinstance(model, dict) or set(model) != {"class", "args"}:
        raise PretrainedError(f"{path}: 'model' must be an object with 'class' and 'args'")
    if not isinstance(model["args"], dict) or not isinstance(config.get("extra", {}), dict):
        raise PretrainedError(f"{path}: 'args' and 'extra' must be objects")
    return config


def _open_weights(folder: Path, root: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).exists():
        pickles = [path.name for path in folder.iterdir() if path.suffix in _PICKLES]
        hint = f"; {', '.join(pickles)} is a pickle, which is never read" if pickles else ""
        raise PretrainedError(f"{folder}: there is no {WEIGHTS}{hint}")
    path = safety.plain_file(folder, WEIGHTS, root=root, limit=2**63)
    header = safety.read_header(path)
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise PretrainedError(f"{path}: damaged: {error}") from error
    if set(state) != set(header):
        raise PretrainedError(f"{path}: damaged: the header names other tensors than the file")
    return state


def load_state(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    reinit: Sequence[str] = (),
) -> LoadReport:
    """Load the weights of a model folder into a model that may differ where it is said to.

    Parameters
    ----------
    model : nn.Module
        Changed in place, or not at all if an error is raised.
    source : str, Path or Mapping
        A model folder, a hub id, or a state dict.
    reinit : sequence of str
        Names of parts (``head``, ``encoder.layers.5``) that keep the weights they have here.

    Returns
    -------
    LoadReport
        What was loaded and what was left fresh.

    Raises
    ------
    MismatchError
        If, outside ``reinit``, a tensor is missing, unexpected or of another shape.
    PretrainedError
        If a name in ``reinit`` is no part of the model or the state, or the folder is refused.

    Examples
    --------
    >>> old, new = nn.Linear(4, 2), nn.Linear(4, 3)
    >>> print(load_state(new, {}, reinit=["weight", "bias"]))
    0 tensors loaded; fresh: weight, bias
    """
    if isinstance(source, Mapping):
        return load_into(model, source, reinit, "the given state")
    folder, root = _locate(source, None)
    return load_into(model, _open_weights(folder, root), reinit, str(source))
