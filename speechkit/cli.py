"""The ``speechkit`` command: what one does with a trained model, a run's folder and a manifest.

Exit status: 0 when all is well, 1 when what was looked at has faults (a file that is not audio, a
number that its rows do not give, a bad row), 2 when the command itself cannot be carried out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import speechkit

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

    from torch import Tensor

    from speechkit.models.transcript import Transcript, Word

OK, FAULTS, UNUSABLE = 0, 1, 2
_STREAM_SECONDS = 0.25  # of a file or of standard input, read at once with --stream


class UsageError(ValueError):
    """A command that cannot be carried out as it was given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; by default the process's own.

    Returns
    -------
    int
        Exit status: 0, 1 or 2.

    Examples
    --------
    >>> main(["check", "missing.jsonl"])
    2
    """
    options = _parser().parse_args(argv)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # `speechkit ... | head` has read enough; without this Python complains at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as error:
        if options.debug:
            raise
        _complain(error)
        return UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speechkit", description="Use a trained model, a run's folder or a manifest."
    )
    parser.add_argument("--version", action="version", version=f"speechkit {speechkit.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

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
        "--beam", type=_positive, metavar="N", help="beam search with N beams (else greedy)"
    )
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    sub.add_argument(
        "--stream",
        action="store_true",
        help="print each word as soon as it is final; FILE may be -, standard input: raw 16-bit "
        "little-endian samples of one channel",
    )
    sub.add_argument("--sample_rate", type=_positive, metavar="HZ", help="of standard input")
    sub.add_argument(
        "--pause",
        type=_seconds,
        metavar="SECONDS",
        help="with --stream: silence after which a word is final (default: when the next begins)",
    )

    sub = add("score", _score, "Compute a run's numbers again, from its per-utterance rows.")
    sub.add_argument("folder", metavar="FOLDER", help="a run's folder")
    sub.add_argument("--json", action="store_true", help="a JSON object for each number")

    sub = add("report", _report, "Make a run's report.html again.")
    sub.add_argument("folder", metavar="FOLDER", help="a run's folder")

    sub = add("check", _check, "Say what is wrong with a manifest, row by row.")
    sub.add_argument("manifest", metavar="MANIFEST", help="a JSON Lines file")
    sub.add_argument("--no-audio", action="store_true", help="do not open the audio files")
    sub.add_argument("--decode", action="store_true", help="read all samples too, which takes time")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _complain(message: object) -> None:
    print(f"speechkit: error: {message}", file=sys.stderr)


# ---------------------------------------------------------------- commands


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
    status = OK
    for file in options.files:
        try:
            if options.stream:
                _print_stream(model, file, options)
            else:
                transcript = cast("Transcript", model.transcribe(file, search=search))
                _print_transcript(file, transcript, options)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:  # the other files are still worth their transcripts
            if options.debug:
                raise
            _complain(error)
            status = FAULTS
    return status


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


def _score(options: argparse.Namespace) -> int:
    from speechkit.results import disagreements, score_folder

    scored = score_folder(options.folder, check=False)
    for split, result in scored:
        if options.json:
            print(json.dumps({"split": split, **result.to_dict()}))
        else:
            value = f"{result.value:.2f} {result.unit}".rstrip()
            print(f"{split}\t{result.metric}\t{value}\t(of {result.count})")
    problems = disagreements(options.folder, scored)
    for problem in problems:
        _complain(f"{options.folder}: {problem}")
    return FAULTS if problems else OK


def _report(options: argparse.Namespace) -> int:
    from speechkit.report import write_report

    print(write_report(options.folder))
    return OK


def _check(options: argparse.Namespace) -> int:
    from speechkit.data.manifest import check_manifest, read_manifest

    problems = check_manifest(
        options.manifest, open_audio=not options.no_audio, read_samples=options.decode
    )
    for problem in problems:
        print(f"{options.manifest}: {problem}")
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        _complain(f"{options.manifest}: {count}; correct these rows")
        return FAULTS
    utterances = read_manifest(options.manifest)
    hours = sum(utterance.duration for utterance in utterances) / 3600
    print(f"{options.manifest}: {len(utterances)} utterances, {hours:.2f} h, no problem")
    return OK


if __name__ == "__main__":
    sys.exit(main())
