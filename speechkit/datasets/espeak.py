"""Drive the espeak-ng library in retrieval mode: text in, 16-bit samples out.

espeak-ng keeps state between utterances (the phase of its pitch flutter, for one) that neither
``espeak_Terminate`` nor a new voice resets. So that the same requests always give the same samples,
`synthesize` runs this very file as a script in a fresh process: it must import nothing of speechkit
(a plain script starts in a tenth of a second; one that imports torch needs seconds).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

SAMPLE_RATE = 22050  # what espeak-ng's voices give; the library confirms it when it starts

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, nothing is played
_POSITION_CHARACTER = 1
_CHARACTERS_UTF8 = 1
_PARAMETERS = {"rate": 1, "pitch": 3, "pitch_range": 4}  # the library's espeak_PARAMETER numbers


class Request(NamedTuple):
    """One utterance to speak.

    Attributes
    ----------
    text : str
        What is said.
    voice : str
        A voice with an optional variant, such as ``"en-us+f3"``.
    rate : int
        Words per minute, 80 to 450.
    pitch : int
        Base pitch, 0 to 99; 50 is the voice's own.
    pitch_range : int
        Liveliness of the intonation, 0 (monotone) to 99; 50 is the voice's own.
    """

    text: str
    voice: str
    rate: int = 165
    pitch: int = 50
    pitch_range: int = 50


def synthesize(requests: Sequence[Request]) -> Iterator[np.ndarray]:
    """Speak each request, in order, in one fresh process.

    Parameters
    ----------
    requests : sequence of Request
        What to say; the same sequence always gives the same samples.

    Yields
    ------
    numpy.ndarray
        Shape ``(T,)``, int16 at `SAMPLE_RATE`, one array for each request.

    Raises
    ------
    ImportError
        When ``espeakng-loader`` is not installed.
    RuntimeError
        When the library refuses a request or ends early; its message is included.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ImportError(
            "synthetic speech needs espeak-ng, which the package espeakng-loader carries: "
            "pip install speechkit[toy]"
        )
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        # The child reads everything before it writes, so the two pipes cannot wait for each other.
        child.stdin.write(json.dumps([list(request) for request in requests]).encode())
        child.stdin.close()
        for request in requests:
            yield _read_block(child.stdout, child.stderr, request)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()


def _read_block(stream: IO[bytes], errors: IO[bytes], request: Request) -> np.ndarray:
    """Read one utterance: a 32-bit count, then that many samples."""
    header = stream.read(4)
    count = struct.unpack("<i", header)[0] if len(header) == 4 else 0
    data = stream.read(2 * count)
    if count == 0 or len(data) != 2 * count:
        message = errors.read().decode(errors="replace").strip() or "no message"
        raise RuntimeError(f"espeak-ng did not speak {request}: {message}")
    return np.frombuffer(data, dtype="<i2")


def _check(code: int, what: str) -> None:
    if code != 0:
        raise SystemExit(f"espeak-ng: {what} failed with code {code}")


def _speak_all(requests: Sequence[Request], out: IO[bytes]) -> None:
    """Speak the requests with the library of this process and write the samples to `out`."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data_path = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, 0)
    if rate != SAMPLE_RATE:
        raise SystemExit(f"espeak-ng: expected a sampling rate of {SAMPLE_RATE} Hz, got {rate}")
    # Breathy variants (f2, f3) draw noise, by default from a source seeded by the clock.
    _check(library.espeak_ng_SetRandSeed(ctypes.c_long(1)), "seeding")
    blocks: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def callback(samples: int | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            blocks.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    library.espeak_SetSynthCallback(callback)
    for request in requests:
        blocks.clear()
        voice = request.voice.encode()
        _check(library.espeak_SetVoiceByName(voice), f"choosing the voice {request.voice!r}")
        for name, number in _PARAMETERS.items():
            value = getattr(request, name)
            _check(library.espeak_SetParameter(number, value, 0), f"setting {name}={value}")
        text = request.text.encode() + b"\0"
        code = library.espeak_Synth(
            text, len(text), 0, _POSITION_CHARACTER, 0, _CHARACTERS_UTF8, None, None
        )
        _check(code, f"speaking {request.text!r}")
        _check(library.espeak_Synchronize(), "finishing the utterance")
        data = b"".join(blocks)
        out.write(struct.pack("<i", len(data) // 2) + data)
    out.flush()


if __name__ == "__main__":
    _speak_all([Request(*row) for row in json.load(sys.stdin)], sys.stdout.buffer)
