"""``speechkit transcribe``: what is said in files or on standard input."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, cast

import speechkit
from speechkit.cli.common import Add, UsageError, for_each, positive, seconds

if TYPE_CHECKING:
    import argparse
    import io
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from speechkit.models.transcript import Transcript, Word

_STREAM_SECONDS = 0.25  # of a file or of standard input, read at once with --stream


def add_commands(add: Add) -> None:
    """Add the command."""
    sub = add("transcribe", _transcribe, "Write down what is said in audio files.")
    sub.add_argument(
        "files", nargs="+", metavar="FILE", help="audio, of any rate and length; see --stream for -"
    )
    sub.add_argument("--model", required=True, metavar="FOLDER", help="a model folder, or a hub id")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON object for each file, with words")
    form.add_argument(
        "--words", action="store_true", help="a line for each word: times, confidence"
    )
    sub.add_argument(
        "--beam", type=positive, metavar="N", help="beam search with N beams (else greedy)"
    )
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    sub.add_argument(
        "--stream",
        action="store_true",
        help="print each word as soon as it is final; FILE may be -, standard input: raw 16-bit "
        "little-endian samples of one channel",
    )
    sub.add_argument("--sample_rate", type=positive, metavar="HZ", help="of standard input")
    sub.add_argument(
        "--pause",
        type=seconds,
        metavar="SECONDS",
        help="with --stream: silence after which a word is final (default: when the next begins)",
    )


def _transcribe(options: argparse.Namespace) -> int:
    from speechkit.models.transcribe import Transcriber
    from speechkit.parallel import check_device

    _check_stream_options(options)
    device = check_device(options.device)
    model = speechkit.load(options.model, device=device)
    if not isinstance(model, Transcriber):
        raise UsageError(
            f"{options.model}: holds a {type(model).__name__}, which does not transcribe; give the "
            "folder of a recogniser"
        )
    search = model.beam_search(options.beam) if options.beam else None
    if options.stream:
        from speechkit.models.streaming import StreamingTranscriber

        StreamingTranscriber(model)  # where the model cannot stream, no file is at fault

    def transcribe(file: str) -> None:
        if options.stream:
            _print_stream(model, file, options)
        else:
            transcript = cast("Transcript", model.transcribe(file, search=search))
            _print_transcript(file, transcript, options)

    return for_each(options.files, transcribe, options)


def _print_transcript(file: str, transcript: Transcript, options: argparse.Namespace) -> None:
    prefix = f"{file}\t" if len(options.files) > 1 else ""
    if options.json:
        print(json.dumps({"file": file, **transcript.to_dict()}, ensure_ascii=False))
    elif options.words:
        for word in transcript.words:
            print(prefix + _word_line(word))
    else:
        print(prefix + transcript.text)
    sys.stdout.flush()  # who follows a long list sees each as it comes


def _word_line(word: Word) -> str:
    return f"{word.start:.2f}\t{word.end:.2f}\t{word.confidence:.3f}\t{word.text}"


def _check_stream_options(options: argparse.Namespace) -> None:
    if options.stream:
        if options.beam:
            raise UsageError("--beam needs the whole recording; --stream is greedy: drop one")
        if ("-" in options.files) != (options.sample_rate is not None):
            raise UsageError(
                "--sample_rate says how many samples a second standard input (-) has: give both "
                "or none; a file knows its own"
            )
        return
    for name, given in (
        ("-", "-" in options.files),
        ("--sample_rate", options.sample_rate is not None),
        ("--pause", options.pause is not None),
    ):
        if given:
            raise UsageError(f"{name} goes with --stream only")


def _print_stream(model: Any, file: str, options: argparse.Namespace) -> None:
    """Print the words of a file, or of standard input, each as soon as it is final."""
    from speechkit.models.streaming import StreamingTranscriber

    listens = file == "-"
    rate = options.sample_rate if listens else model.sample_rate
    stream = StreamingTranscriber(model, sample_rate=rate, pause=options.pause)
    blocks = _standard_input(rate) if listens else _file_blocks(file, rate)
    prefix = f"{file}\t" if len(options.files) > 1 else ""
    printed, complete = 0, False

    def show(words: Sequence[Word]) -> None:
        nonlocal printed
        for word in words:
            if options.json:
                print(json.dumps({"file": file, **word._asdict()}, ensure_ascii=False), flush=True)
            elif options.words:
                print(prefix + _word_line(word), flush=True)
            else:  # one line for a file, which grows
                print(" " if printed else prefix, word.text, sep="", end="", flush=True)
            printed += 1

    try:
        for block in blocks:
            show(stream.push(block).words)
        show(stream.finish().words[printed:])
        complete = True
    finally:
        if not (options.json or options.words) and (printed or complete):
            print("" if printed else prefix, flush=True)


def _file_blocks(file: str, sample_rate: int) -> Iterator[Tensor]:
    from speechkit.data.audio import stream_audio

    return stream_audio(file, block_seconds=_STREAM_SECONDS, sample_rate=sample_rate)


def _standard_input(sample_rate: int) -> Iterator[Tensor]:
    import numpy as np
    import torch

    from speechkit.data.errors import DataError

    source = cast("io.BufferedReader", sys.stdin.buffer)
    rest = b""
    # read1 gives what is there, without waiting for a whole block.
    while data := source.read1(2 * max(1, round(_STREAM_SECONDS * sample_rate))):
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield torch.from_numpy(np.frombuffer(data[:whole], dtype="<i2").astype(np.int16))
    if rest:
        raise DataError(
            "standard input ended within a sample (an odd number of bytes): give raw 16-bit samples"
        )
