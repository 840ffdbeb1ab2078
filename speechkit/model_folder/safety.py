"""What a model folder from elsewhere may name and hold; everything else is refused.

A model folder is data, not code. Its config may name classes of speechkit that build models,
and some of ``torch.nn``; nothing in it is executed, and resolving a name imports nothing but
speechkit's own modules. What remains possible is a config that asks for a very large model.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import nn

C = TypeVar("C", bound=type)

MAX_CONFIG_BYTES = 16 * 2**20
MAX_DEPTH = 64
MAX_HEADER_BYTES = 64 * 2**20
MAX_FILE_BYTES = 256 * 2**20
FILE_SUFFIX = ".model"

# Sub-packages whose classes build models. speechkit.run, .cli, .datasets and the like are not
# importable through a config.
_PACKAGES = (
    "speechkit.nn",
    "speechkit.models",
    "speechkit.features",
    "speechkit.losses",
    "speechkit.decoding",
    "speechkit.lm",
    "speechkit.coding",
    "speechkit.data.tokenizer",
    "speechkit.data.text_front_end",
)
_MODULE_NAME = re.compile(r"speechkit(\.[a-z][a-z0-9_]*)+")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

# torch.nn classes with the constructor arguments that are kept.
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_CONV = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("bias", "padding_mode"),
)
TORCH_CLASSES: dict[str, tuple[str, ...]] = {
    "BatchNorm1d": _NORM,
    "BatchNorm2d": _NORM,
    "Conv1d": _CONV,
    "Conv2d": _CONV,
    "Dropout": ("p", "inplace"),
    "ELU": ("alpha", "inplace"),
    "Embedding": ("num_embeddings", "embedding_dim", "padding_idx"),
    "GELU": ("approximate",),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "Hardswish": ("inplace",),
    "Hardtanh": ("min_val", "max_val", "inplace"),
    "Identity": (),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine", "bias"),
    "LeakyReLU": ("negative_slope", "inplace"),
    "Linear": ("in_features", "out_features", "bias"),
    "PReLU": ("num_parameters",),
    "ReLU": ("inplace",),
    "ReLU6": ("inplace",),
    "SiLU": ("inplace",),
    "Sigmoid": (),
    "Softplus": ("beta", "threshold"),
    "Tanh": (),
}
_ALLOWED: dict[str, type] = {}


class PretrainedError(ValueError):
    """A model folder cannot be opened or written, or holds what is not allowed."""


def class_name(cls: type) -> str:
    """Return the name under which a config names a class: ``torch.nn.ReLU``, ``speechkit...``.

    Examples
    --------
    >>> class_name(nn.ReLU)
    'torch.nn.ReLU'
    """
    if cls.__module__.startswith("torch.nn.") and getattr(nn, cls.__name__, None) is cls:
        return f"torch.nn.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def allow(cls: C) -> C:
    """Let model folders name a class that does not live in speechkit; usable as a decorator.

    It must be called in each process that opens such a folder, before ``speechkit.load``.

    Examples
    --------
    >>> @allow
    ... class Doubler(nn.Module):
    ...     def forward(self, x):
    ...         return 2 * x
    >>> resolve_class(class_name(Doubler)) is Doubler
    True
    """
    _ALLOWED[class_name(cls)] = cls
    return cls


def resolve_class(name: Any) -> type:
    """Turn a config's class name into the class, if it may be built.

    Parameters
    ----------
    name : str
        ``speechkit.<module>.<Class>``, ``torch.nn.<Class>`` or what :func:`allow` was given.

    Raises
    ------
    PretrainedError
        For any other name. No module outside speechkit's model packages is imported, and no
        attribute of a module is followed further than to a class defined in that very module.

    Examples
    --------
    >>> resolve_class("torch.nn.ReLU")
    <class 'torch.nn.modules.activation.ReLU'>
    """
    if not isinstance(name, str) or len(name) > 256:
        raise PretrainedError(f"a class name must be a string, not {str(name)[:80]!r}")
    if name in _ALLOWED:
        return _ALLOWED[name]
    module_name, _, attribute = name.rpartition(".")
    if module_name == "torch.nn" and attribute in TORCH_CLASSES:
        return getattr(nn, attribute)
    refusal = PretrainedError(
        f"class {name!r} is not allowed in a model folder: it must be a module, tokenizer or text "
        "front end of speechkit, one of the torch.nn classes in "
        "speechkit.model_folder.safety.TORCH_CLASSES, or a class that this program has passed to "
        "speechkit.pretrained.allow"
    )
    if not _MODULE_NAME.fullmatch(module_name) or not attribute.isidentifier():
        raise refusal
    if not any(module_name == p or module_name.startswith(p + ".") for p in _PACKAGES):
        raise refusal
    module = _own_module(module_name)
    cls = vars(module).get(attribute) if module is not None else None
    if not isinstance(cls, type):
        raise refusal
    if cls.__module__ != module_name or cls.__qualname__ != attribute:
        raise refusal
    if not issubclass(cls, nn.Module) and not _is_tokenizer(cls):
        raise refusal
    return cls


def _own_module(name: str) -> Any:
    """Import a module of speechkit, only if it is a source file inside the package."""
    if name in sys.modules:
        return sys.modules[name]
    import speechkit

    root = Path(next(iter(speechkit.__path__)))
    path = root.joinpath(*name.split(".")[1:])
    if not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file():
        return None
    return importlib.import_module(name)


def _is_tokenizer(cls: type) -> bool:
    modules = ("speechkit.data.tokenizer", "speechkit.data.text_front_end")
    return cls.__module__ in modules and hasattr(cls, "encode")


def plain_file(folder: Path, name: Any, *, root: Path | None = None, limit: int) -> Path:
    """Return the path of a file of a folder, refusing to leave the folder.

    Parameters
    ----------
    folder : Path
        The model folder.
    name : str
        A plain file name: no separators, no ``..``, no drive.
    root : Path, optional
        Where links may lead to; by default the folder itself. (A hub's cache keeps the files
        of a snapshot as links to a folder of blobs beside it.)
    limit : int
        The largest size in bytes.
    """
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or ".." in name:
        raise PretrainedError(f"{folder}: {str(name)[:120]!r} is not a plain file name")
    path = folder / name
    if not path.exists():
        raise PretrainedError(f"{folder}: there is no file {name!r}")
    if not path.resolve().is_relative_to((root or folder).resolve()):
        raise PretrainedError(f"{path}: this link leaves the model folder")
    if not path.is_file():
        raise PretrainedError(f"{path}: not a regular file")
    size = path.stat().st_size
    if size > limit:
        raise PretrainedError(f"{path}: {size} bytes, at most {limit} are read")
    return path


def file_argument(folder: Path, entry: dict[str, Any], root: Path | None) -> bytes:
    """Read the bytes that ``{"file": name, "sha256": hex}`` in a config stands for."""
    name, expected = entry.get("file"), entry.get("sha256")
    if set(entry) != {"file", "sha256"} or not isinstance(expected, str):
        raise PretrainedError(f"{folder}: a file argument needs 'file' and 'sha256', not {entry}")
    if not isinstance(name, str) or not name.endswith(FILE_SUFFIX):
        raise PretrainedError(
            f"{folder}: file argument {str(name)[:120]!r} must end in {FILE_SUFFIX}; "
            "pickles (.pt, .bin, .ckpt, .pkl) are never read"
        )
    data = plain_file(folder, name, root=root, limit=MAX_FILE_BYTES).read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise PretrainedError(f"{folder / name}: damaged, its sha256 is not the one in config.json")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise PretrainedError(f"these names occur twice: {', '.join(twice[:5])}")
    return result


def _no_constant(text: str) -> Any:
    raise PretrainedError(f"{text} is not JSON")


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse strict JSON (one object, no duplicate names, no NaN, bounded depth).

    Examples
    --------
    >>> parse_json(b'{"a": 1}', "config.json")
    {'a': 1}
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
        check_depth(value)
    except PretrainedError as error:
        raise PretrainedError(f"{where}: {error}") from None
    except RecursionError:
        raise PretrainedError(f"{where}: nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, too many digits
        raise PretrainedError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise PretrainedError(f"{where}: must be a JSON object, not {type(value).__name__}")
    return value


def check_depth(value: Any, depth: int = 0) -> None:
    """Refuse what is nested more than ``MAX_DEPTH`` levels deep."""
    if depth > MAX_DEPTH:
        raise PretrainedError(f"nested more than {MAX_DEPTH} levels deep")
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list | tuple):
        for child in children:
            check_depth(child, depth + 1)


class TensorInfo(NamedTuple):
    """What a safetensors header says about a tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read a safetensors file's header strictly: safetensors itself lets duplicate names pass."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise PretrainedError(
                f"{path}: not a safetensors file, or truncated (header of {size} bytes)"
            )
        header = parse_json(file.read(size), str(path))
    header.pop("__metadata__", None)
    infos = {}
    for name, entry in header.items():
        try:
            infos[name] = TensorInfo(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
        except (TypeError, KeyError, ValueError) as error:
            raise PretrainedError(f"{path}: tensor {name!r} is not described: {error}") from None
    return infos
