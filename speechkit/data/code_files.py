"""Files of codes: what `speechkit.data.codes.CodeData` reads.

A split is two files: ``train.npy`` with the codes of all utterances one after the other,
``(frames, codebooks)`` uint16, and ``train.json``, which says whose they are and of which codec.
`speechkit.datasets.codec_codes.prepare` makes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechkit.coding.skc_layout import SkcHeader
from speechkit.data.errors import DataError
from speechkit.files import atomic_file, atomic_write, file_digest

FORMAT = 1  # raised when files are written in another way than before
MAX_CODES = 1 << 16  # of a codebook, in 16 bits


class Rate(NamedTuple):
    """A bit rate of a codec without entropy coding, and how many codebooks it has."""

    kbps: float
    num_codebooks: int


@dataclass(frozen=True, kw_only=True)
class CodeLayout:
    """What a codec's codes look like.

    Attributes
    ----------
    codec_id : str
        `speechkit.coding.skc.weights_id` of the codec, in hexadecimal.
    sample_rate, channels, hop_length : int
        Of the codec: a frame of codes stands for ``hop_length`` samples.
    num_codebooks, codebook_size : int
        Codebooks of the highest rate, and codes of each.
    rates : tuple of Rate
        From the lowest to the highest.

    Examples
    --------
    >>> layout = CodeLayout(
    ...     codec_id="00" * 8, sample_rate=24000, channels=1, hop_length=320, num_codebooks=8,
    ...     codebook_size=1024, rates=(Rate(1.5, 2), Rate(6.0, 8)))
    >>> layout.chunk_frames
    75
    """

    codec_id: str
    sample_rate: int
    channels: int
    hop_length: int
    num_codebooks: int
    codebook_size: int
    rates: tuple[Rate, ...]

    def header(self, num_codebooks: int, entropy_id: bytes = b"") -> SkcHeader:
        """Return the header of an ``.skc`` file with so many codebooks."""
        return SkcHeader(
            sample_rate=self.sample_rate,
            channels=self.channels,
            num_codebooks=num_codebooks,
            codebook_size=self.codebook_size,
            hop_length=self.hop_length,
            model_id=bytes.fromhex(self.codec_id),
            entropy_id=entropy_id,
        )

    @property
    def chunk_frames(self) -> int:
        """Frames of an ``.skc`` file's chunk: the entropy coder's model knows no more of a past."""
        return self.header(self.num_codebooks).chunk_frames


class CodedUtterance(NamedTuple):
    """An utterance: its id, and the rows ``[start, start + num_frames)`` that its codes are."""

    id: str
    start: int
    num_frames: int


class CodeFile(NamedTuple):
    """The codes of a split.

    Attributes
    ----------
    layout : CodeLayout
        Of the codec.
    utterances : list of CodedUtterance
        In the order of the manifest.
    frames : np.ndarray
        Shape ``(frames, Q)``, uint16, on the disk until it is looked at.
    """

    layout: CodeLayout
    utterances: list[CodedUtterance]
    frames: np.ndarray


def write_codes(
    path: str | os.PathLike[str],
    layout: CodeLayout,
    codes: Iterable[tuple[str, np.ndarray]],
    *,
    manifest_sha256: str,
) -> tuple[Path, Path]:
    """Write the codes of a split; each file is the old one or the new one.

    Parameters
    ----------
    path : path
        Where the ``.json`` goes; the ``.npy`` lies beside it.
    layout : CodeLayout
        Of the codec.
    codes : iterable of (str, np.ndarray)
        Id and codes ``(Q, T)`` of each utterance. All are held in memory, 2 bytes a code.
    manifest_sha256 : str
        Of the manifest whose utterances they are.

    Returns
    -------
    tuple of Path
        Both files.

    Raises
    ------
    DataError
        When the codes are not those of the layout, or there are none.

    Examples
    --------
    >>> import tempfile
    >>> layout = CodeLayout(codec_id="00" * 8, sample_rate=8000, channels=1, hop_length=80,
    ...                     num_codebooks=2, codebook_size=16, rates=(Rate(0.8, 2),))
    >>> path = Path(tempfile.mkdtemp()) / "train.json"
    >>> _ = write_codes(path, layout, [("a", np.ones((2, 5)))], manifest_sha256="")
    >>> file = read_codes(path)
    >>> file.layout == layout, file.utterances, file.frames.shape
    (True, [CodedUtterance(id='a', start=0, num_frames=5)], (5, 2))
    """
    path = Path(path)
    ids, parts = [], []
    for name, array in codes:
        if array.ndim != 2 or len(array) != layout.num_codebooks or not array.shape[1]:
            raise DataError(
                f"{path}: the codes of {name!r} are {array.shape}, not ({layout.num_codebooks}, "
                "frames) with at least one frame"
            )
        if array.min() < 0 or array.max() >= min(layout.codebook_size, MAX_CODES):
            raise DataError(
                f"{path}: codes of {name!r} lie between {array.min()} and {array.max()}; the "
                f"codebooks have 0 to {layout.codebook_size - 1}"
            )
        ids.append(name)
        parts.append(np.ascontiguousarray(array.T, dtype="<u2"))
    if not ids:
        raise DataError(f"{path}: there is no utterance to write")
    total = sum(len(part) for part in parts)
    frames = path.with_suffix(".npy")
    with atomic_file(frames) as file:
        head = {"descr": "<u2", "fortran_order": False, "shape": (total, layout.num_codebooks)}
        np.lib.format.write_array_header_1_0(file, head)
        for part in parts:
            file.write(part.tobytes())
    index = {
        "format": FORMAT,
        "layout": asdict(layout),
        "manifest_sha256": manifest_sha256,
        "codes_sha256": file_digest(frames),  # so that this file's own digest names both
        "utterances": [[name, len(part)] for name, part in zip(ids, parts)],
    }
    atomic_write(path, json.dumps(index, ensure_ascii=False) + "\n")
    return path, frames


def read_codes(path: str | os.PathLike[str]) -> CodeFile:
    """Read what `write_codes` wrote.

    Raises
    ------
    DataError
        When a file is missing or broken, or the two do not belong together.
    """
    path = Path(path)
    advice = "remove it, and it is made anew"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        layout = _layout(index)
        frames = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        sizes = [(str(name), int(size)) for name, size in index["utterances"]]
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: no such file; prepare the codes, or correct the path"
        ) from None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{path}: not a file of codes ({error}); {advice}") from error
    utterances, start = [], 0
    for name, size in sizes:
        utterances.append(CodedUtterance(name, start, size))
        start += size
    shape = (start, layout.num_codebooks)
    if frames.shape != shape or frames.dtype != np.uint16 or not start:
        raise DataError(
            f"{path}: names {shape} codes, but {path.stem}.npy has {frames.shape} of "
            f"{frames.dtype}; {advice}"
        )
    if int(frames.max()) >= layout.codebook_size:
        raise DataError(f"{path}: there are codes above {layout.codebook_size - 1}; {advice}")
    return CodeFile(layout, utterances, frames)


def read_layout(path: str | os.PathLike[str]) -> CodeLayout:
    """Read of which codec a file's codes are, for the sizes of a model in a YAML."""
    return read_codes(path).layout


def _layout(index: Any) -> CodeLayout:
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"its 'format' is not {FORMAT}")
    values = dict(index["layout"])
    rates = tuple(Rate(float(kbps), int(count)) for kbps, count in values.pop("rates"))
    return CodeLayout(**values, rates=rates)
