"""Recordings to ``.skc`` files and back, of any length at flat memory.

What `speechkit.coding.skc` leaves to whoever writes a file:

- The header's rate and channels are those of the recording. Where the codec has another rate, the
  recording is resampled, and the header's hop length is the codec's at the recording's rate,
  rounded up to whole samples. Channels are those of the recording, or one where it has more than
  one and the codec another number: they are averaged.
- Where the codec normalizes loudness, the side bytes of a chunk are the loudness of each segment
  that it touches, as float32, big-endian, and zeros.
"""

from __future__ import annotations

from speechkit.codec_files.info import DamagedPart, SkcInfo, inspect_file
from speechkit.codec_files.opened import FileCodec
from speechkit.codec_files.reading import DecodedFile, SkcAudio, decode_file
from speechkit.codec_files.writing import DownmixWarning, EncodedFile, encode_file

__all__ = [
    "DamagedPart",
    "DecodedFile",
    "DownmixWarning",
    "EncodedFile",
    "FileCodec",
    "SkcAudio",
    "SkcInfo",
    "decode_file",
    "encode_file",
    "inspect_file",
]
