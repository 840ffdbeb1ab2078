"""Whether an ``.skc`` file and what is to read it fit, and words for what is wrong with it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from speechkit.coding.predictor import CodePredictor
from speechkit.coding.skc_layout import ID_SIZE, SkcError, SkcHeader
from speechkit.coding.skc_records import Damage


def check_predictor(header: SkcHeader, predictor: CodePredictor | None, *, reading: bool) -> None:
    """Refuse a predictor that is not the file's.

    Raises
    ------
    SkcError
        If header and predictor do not fit; both ids are named.
    """
    stated = header.entropy_id.hex() or "none"
    given = "none" if predictor is None else predictor.digest.hex()
    if reading and not header.entropy_id:
        return  # a plain file needs no predictor
    if stated != given:
        raise SkcError(
            f"the file's entropy coder has the model {stated}, but the model given is {given}; "
            "use the model that belongs to the file"
        )
    if predictor is not None and (
        predictor.codebook_size != header.codebook_size
        or predictor.num_codebooks < header.num_codebooks
    ):
        raise SkcError(
            f"the entropy coder's model is for {predictor.num_codebooks} codebooks of "
            f"{predictor.codebook_size} codes, the file has {header.num_codebooks} of "
            f"{header.codebook_size}"
        )


def check_model_id(header: SkcHeader, model_id: bytes) -> None:
    """Refuse a codec that did not make the file.

    Raises
    ------
    SkcError
        If it did not; both ids are named.

    Examples
    --------
    >>> header = SkcHeader(sample_rate=16000, channels=1, num_codebooks=2, codebook_size=8,
    ...                    hop_length=320, model_id=b"abcdefgh")
    >>> check_model_id(header, b"abcdefgh")
    """
    if header.model_id != model_id:
        raise SkcError(
            f"the file was made with the model {header.model_id.hex()}, but the model given is "
            f"{model_id.hex()}; use the model that belongs to the file"
        )


def weights_id(model: nn.Module) -> bytes:
    """Eight bytes that name a model: of the SHA-256 of its weights' names, shapes and values.

    Fold weight norms and the like after this, not before: folded weights are others.

    Parameters
    ----------
    model : nn.Module
        On any device.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> first = weights_id(layer)
    >>> nn.init.constant_(layer.bias, 3.0) is layer.bias, len(first), weights_id(layer) == first
    (True, 8, False)
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(data.tobytes())
    return digest.digest()[:ID_SIZE]


def describe_damage(damage: Damage, header: SkcHeader) -> str:
    """Say where a file is damaged, and what to do.

    Examples
    --------
    >>> header = SkcHeader(sample_rate=16000, channels=1, num_codebooks=2, codebook_size=8,
    ...                    hop_length=320, model_id=bytes(8))
    >>> describe_damage(Damage(3, 1, 400, 80, "the checksum is wrong"), header)
    'chunk 3 (3.00 s to 4.00 s, bytes 400 to 480) is damaged: the checksum is wrong; get the file
    again, or conceal the damage to have the rest'
    """
    first, end = damage.first_chunk, damage.first_chunk + max(damage.num_chunks, 1)
    name = f"chunk {first}" if end == first + 1 else f"chunks {first} to {end - 1}"
    time = f"{header.seconds(first):.2f} s to {header.seconds(end):.2f} s"
    place = f"bytes {damage.offset} to {damage.offset + damage.num_bytes}"
    return (
        f"{name} ({time}, {place}) is damaged: {damage.reason}; "
        "get the file again, or conceal the damage to have the rest"
    )
