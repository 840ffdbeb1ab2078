"""Phonemes of text by espeak-ng: letters of the International Phonetic Alphabet with stress marks.

espeak-ng is spoken to in a process of its own, which runs this very file as a script: the library
keeps state, and its licence (GPL 3) is not that of a program that only talks to it. So this file
must import nothing of speechkit when it is the script.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

_RETRIEVAL = 1  # AUDIO_OUTPUT_RETRIEVAL: nothing is played
_CHARACTERS_UTF8 = 1
_IPA = 2  # of espeak_TextToPhonemes
_VOICE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,12}){0,3}(\+[A-Za-z0-9_]{1,24})?")
# A pause with the white space around it, and what may stand between it and a word.
_PAUSES = re.compile(r"[\"'()\[\]{}\s]{0,8}([,.;:!?]|\s-+(?=\s))[\"'()\[\]{}\s,.;:!?-]*(?=\s|$)")


def check_voice(voice: str) -> None:
    """Refuse what is no voice's name: espeak-ng would take a path for one.

    Examples
    --------
    >>> check_voice("en-us")
    >>> check_voice("../voice")
    Traceback (most recent call last):
    ValueError: a voice of espeak-ng is named like 'en-us' or 'de', not '../voice'
    """
    if not isinstance(voice, str) or not _VOICE.fullmatch(voice):
        raise ValueError(f"a voice of espeak-ng is named like 'en-us' or 'de', not {voice!r}")


class Phonemizer:
    """Text to phonemes.

    Clauses keep one of ``, . ; : ! ?`` at their ends, and words one space between them; quotes and
    brackets are left out. A text gives the same phonemes whatever came before it. The process
    starts with the first text, ends with this object, and is not shared: a copy of the object, in
    another process too, starts its own.

    Parameters
    ----------
    voice : str
        A language of espeak-ng, such as ``"en-us"``, with a variant or not.

    Raises
    ------
    ValueError
        If the voice is not named so.

    Examples
    --------
    >>> Phonemizer("en-us")("Hello, world!")
    'həlˈoʊ, wˈɜːld!'
    """

    def __init__(self, voice: str) -> None:
        check_voice(voice)
        self.voice = voice
        self._reset()

    def _reset(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"voice": self.voice}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.voice = state["voice"]
        self._reset()

    def __call__(self, text: str) -> str:
        """Give the phonemes of one text.

        Parameters
        ----------
        text : str
            Words and punctuation; numbers in words.

        Returns
        -------
        str
            One character is one symbol.

        Raises
        ------
        ImportError
            When ``espeakng-loader`` is not installed.
        RuntimeError
            When the library does not know the voice, or ends early; its message is included.
        """
        clauses, pauses = _clauses(text)
        if not any(clauses):
            return ""
        spoken = iter(self._ask([clause for clause in clauses if clause]))
        read = [next(spoken) if clause else "" for clause in clauses]
        return " ".join(part + pause for part, pause in zip(read, pauses) if part).strip()

    def _ask(self, clauses: Sequence[str]) -> list[str]:
        if self._child is not None and self._owner != os.getpid():
            # A forked worker has the parent's pipes: two who talk through one get wrong answers.
            self._reset()
        with self._lock:
            if self._child is None:
                self._child, self._owner = _start(self.voice), os.getpid()
                weakref.finalize(self, _stop, self._child, self._owner)
            child = self._child
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps(list(clauses)).encode() + b"\n")
                child.stdin.flush()
                answer = child.stdout.readline()
            except BrokenPipeError:
                answer = b""
            if not answer:
                self._child = None
                assert child.stderr is not None
                message = child.stderr.read().decode(errors="replace").strip() or "no message"
                _stop(child, os.getpid())
                raise RuntimeError(f"espeak-ng gave no phonemes of {list(clauses)}: {message}")
        return list(json.loads(answer))


def _clauses(text: str) -> tuple[list[str], list[str]]:
    """Cut a text at its pauses: the clauses, and what follows each (the last: perhaps nothing)."""
    clauses, pauses, begin = [], [], 0
    for match in _PAUSES.finditer(text):
        clauses.append(text[begin : match.start()])
        pauses.append(match[1] if match[1] in ",.;:!?" else ",")
        begin = match.end()
    clauses.append(text[begin:])
    pauses.append("")
    # What is left of other punctuation would only make espeak-ng pause.
    clean = [" ".join(re.sub(r"[^\w' -]|(?<!\w)'|'(?!\w)|_", " ", c).split()) for c in clauses]
    return clean, pauses


def _start(voice: str) -> subprocess.Popen[bytes]:
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ImportError(
            "phonemes need espeak-ng, which the package espeakng-loader carries: "
            "pip install speechkit[tts]"
        )
    return subprocess.Popen(
        [sys.executable, str(Path(__file__)), voice],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _stop(child: subprocess.Popen[bytes], owner: int) -> None:
    for stream in (child.stdin, child.stdout, child.stderr):
        # Of a process that died: what it has not read is still to be written.
        with contextlib.suppress(BrokenPipeError):
            if stream is not None:
                stream.close()
    if owner == os.getpid():  # the child of a parent is the parent's to end
        child.kill()
        child.wait()


def _serve(voice: str, requests: IO[bytes], out: IO[bytes]) -> None:
    """Answer each line, a list of clauses, with the list of their phonemes."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [
        ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int,
    ]  # fmt: skip
    if library.espeak_Initialize(_RETRIEVAL, 0, espeakng_loader.get_data_path().encode(), 0) <= 0:
        raise SystemExit("espeak-ng did not start")
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise SystemExit(f"espeak-ng has no voice {voice!r}")
    for line in requests:
        answers = []
        for clause in json.loads(line):
            rest = ctypes.c_char_p(clause.encode())
            parts = []
            while rest.value:  # it moves on by a clause at a time, and ends with a null pointer
                found = library.espeak_TextToPhonemes(ctypes.byref(rest), _CHARACTERS_UTF8, _IPA)
                parts.append((found or b"").decode())
            # A language switch is marked like "(en)"; it is no sound.
            answers.append(" ".join(re.sub(r"\([a-z-]+\)", "", " ".join(parts)).split()))
        out.write(json.dumps(answers).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
