"""A codec as ``.skc`` files need it; see `speechkit.codec_files.files`."""

from __future__ import annotations

import copy
import dataclasses
import os

from speechkit.codec_files.pieces import frames_of_segment
from speechkit.coding.integer_model import IntegerCodeModel
from speechkit.coding.predictor import CodePredictor
from speechkit.coding.skc import SkcHeader, weights_id
from speechkit.data.audio import _ratio
from speechkit.data.errors import DataError
from speechkit.models.codec import Codec

MIN_RATE, MAX_RATE = 1_000, 768_000


@dataclasses.dataclass(frozen=True)
class FileCodec:
    """A codec as files need it: fast, and with the names of what files depend on.

    Attributes
    ----------
    codec : Codec
        In eval mode, its weight norm folded.
    model_id : bytes
        `speechkit.coding.skc.weights_id` of the codec as it was trained.
    predictor : CodePredictor or None
        For entropy coding.
    """

    codec: Codec
    model_id: bytes
    predictor: CodePredictor | None = None

    @classmethod
    def of(cls, codec: Codec, predictor: CodePredictor | None = None) -> FileCodec:
        """Take a copy of a codec whose weight norm is not folded."""
        model_id = weights_id(codec)
        return cls(copy.deepcopy(codec).eval().fold_weight_norm(), model_id, predictor)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        entropy: str | os.PathLike[str] | None = None,
        *,
        device: str = "cpu",
    ) -> FileCodec:
        """Open model folders.

        Parameters
        ----------
        folder : str or PathLike
            Of a `Codec`; a hub id will do.
        entropy : str or PathLike, optional
            Of a `speechkit.coding.code_transformer.CodeTransformer`.
        device : str
            Where the codec computes. Entropy coding is on the CPU, where it is exact.

        Raises
        ------
        DataError
            If a folder holds something else, or the two do not go together.
        """
        from speechkit.coding.code_transformer import CodeTransformer
        from speechkit.pretrained import load

        codec = load(os.fspath(folder), device=device)
        if not isinstance(codec, Codec):
            raise DataError(
                f"{folder}: holds a {type(codec).__name__}, which is no codec; give the folder of "
                "a codec"
            )
        model_id = weights_id(codec)
        codec.eval().fold_weight_norm()
        if entropy is None:
            return cls(codec, model_id)
        model = load(os.fspath(entropy))
        if not isinstance(model, CodeTransformer):
            raise DataError(
                f"{entropy}: holds a {type(model).__name__}, which does not predict codes; give "
                "the folder of a CodeTransformer"
            )
        if model.codebook_size != codec.codebook_size:
            raise DataError(
                f"{entropy}: predicts codes of codebooks of {model.codebook_size}, those of "
                f"{folder} have {codec.codebook_size}; give the model that was trained on its codes"
            )
        return cls(codec, model_id, IntegerCodeModel.from_float(model))

    def header(
        self, *, sample_rate: int, channels: int, num_codebooks: int, coded: bool
    ) -> SkcHeader:
        """Make the header of a file for a recording of this rate and with these channels.

        Raises
        ------
        DataError
            If the rate is not one that can be resampled, or a number does not fit a header.
        """
        codec = self.codec
        if not MIN_RATE <= sample_rate <= MAX_RATE:
            raise DataError(
                f"a sampling rate of {sample_rate} Hz; rates from {MIN_RATE} to {MAX_RATE} Hz can "
                "be converted"
            )
        there, here = _ratio(sample_rate, codec.sample_rate)
        header = SkcHeader(
            sample_rate=sample_rate,
            channels=channels,
            num_codebooks=num_codebooks,
            codebook_size=codec.codebook_size,
            hop_length=-(-codec.hop_length * there // here),
            model_id=self.model_id,
            entropy_id=self.predictor.digest if coded and self.predictor is not None else b"",
        )
        if not codec.normalize:
            return header
        count = scales_in_chunk(header.chunk_frames, frames_of_segment(codec))
        return dataclasses.replace(header, side_size=4 * count)


def scales_in_chunk(chunk_frames: int, segment_frames: int | None) -> int:
    """Count the segments that a chunk may touch.

    Examples
    --------
    >>> scales_in_chunk(150, 150), scales_in_chunk(150, 100), scales_in_chunk(150, None)
    (1, 2, 1)
    """
    if segment_frames is None:
        return 1
    starts = [chunk * chunk_frames for chunk in range(segment_frames)]
    return max(
        (start + chunk_frames - 1) // segment_frames - start // segment_frames + 1
        for start in starts
    )
