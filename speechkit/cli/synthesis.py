"""``speechkit synthesize``: text to speech."""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import speechkit
from speechkit.cli.common import OK, Add, UsageError, complain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from speechkit.models.speech import Sentence, Speech
    from speechkit.models.synthesizer import Synthesizer
    from speechkit.models.vocoder import Vocoder

_FAULTY = 1


def add_commands(add: Add) -> None:
    """Add the command."""
    sub = add("synthesize", _synthesize, "Speak a text.")
    sub.add_argument("text", nargs="?", metavar="TEXT", help="what to say; - reads standard input")
    sub.add_argument("--text_file", metavar="FILE", help="in the place of TEXT")
    sub.add_argument("--model", required=True, metavar="FOLDER", help="a model folder, or a hub id")
    sub.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="out.wav, out.flac; - for standard output, each sentence as soon as it is spoken",
    )
    sub.add_argument("--voice", metavar="NAME", help="one of the model's voices")
    sub.add_argument(
        "--reference", metavar="FILE", help="a recording of someone, to speak in that voice"
    )
    sub.add_argument(
        "--vocoder", metavar="FOLDER", help="a vocoder's model folder (default: the model's own)"
    )
    sub.add_argument(
        "--attention",
        choices=("soft", "forward"),
        help="of Tacotron 2: forward only stays at a symbol or goes on to the next one, for texts "
        "that are repeated or skipped (default: soft)",
    )
    sub.add_argument("--speed", type=float, default=1.0, metavar="X", help="1.2 is faster")
    sub.add_argument(
        "--pause", type=float, default=0.2, metavar="SECONDS",
        help="between sentences (default: %(default)s)",
    )  # fmt: skip
    sub.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another one sounds different"
    )
    sub.add_argument("--json", action="store_true", help="say in JSON what was made")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")


def _synthesize(options: argparse.Namespace) -> int:
    from speechkit.data.audio import write_audio
    from speechkit.models.speech import Speech, check_pause, join
    from speechkit.parallel import check_device
    from speechkit.tracking import progress_bar

    text = _text(options)
    check_pause(options.pause)
    _check_out(options.out)
    model = _open(options.model, check_device(options.device))
    _check_format(options.out, model.sample_rate)
    more = _attention(options, model)
    vocoder = _open_vocoder(options)
    sentences: list[Sentence] = []
    spoken = model.stream(
        text, voice=options.voice, reference=options.reference, speed=options.speed,
        vocoder=vocoder, seed=options.seed, **more,
    )  # fmt: skip
    if options.out == "-":
        _pipe(spoken, sentences, model.sample_rate, options.pause)
    else:
        with progress_bar("sentences", 0) as bar:
            for sentence in spoken:
                sentences.append(sentence)
                bar.update()
    waveform = join(sentences, model.sample_rate, options.pause)
    speech = Speech(waveform, model.sample_rate, tuple(sentences))
    if options.out != "-":
        write_audio(options.out, speech.waveform, speech.sample_rate)
    _say(options, speech)
    return OK if speech.stopped else _FAULTY


def _pipe(
    spoken: Iterator[Sentence], sentences: list[Sentence], sample_rate: int, pause: float
) -> None:
    """Write a WAV of unknown length to standard output, sentence by sentence."""
    from torch.nn import functional as F

    from speechkit.data.wav_stream import WavWriterStream

    writer = None
    for sentence in spoken:
        waveform = sentence.waveform
        if writer is None:  # what is wrong with the first sentence is said before anything is out
            writer = WavWriterStream(sys.stdout.buffer, sample_rate, 1, None, subtype="PCM_16")
        else:
            waveform = F.pad(waveform, (round(pause * sample_rate), 0))
        writer.write(waveform[None])
        sys.stdout.buffer.flush()
        sentences.append(sentence)
    if writer is not None:
        writer.finish()


def _text(options: argparse.Namespace) -> str:
    """Find the text: an argument, a file, or what is piped in."""
    if (options.text is None) == (options.text_file is None):
        raise UsageError('give either a text ("Good morning.") or --text_file FILE')
    if options.text_file is not None:
        return Path(options.text_file).read_text(encoding="utf-8")
    return sys.stdin.read() if options.text == "-" else str(options.text)


def _check_out(out: str) -> None:
    """Refuse, before minutes of work, a place where nothing can be written."""
    if out == "-":
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal: give --out the name of a file")
        return
    path = Path(out)
    if path.is_dir():
        raise UsageError(f"--out {out}: is a folder; give a file, such as {path / 'out.wav'}")
    # Folders that are missing are made, in the last one that is there.
    there = path if path.exists() else next(p for p in path.absolute().parents if p.exists())
    if there != path and not there.is_dir():
        raise UsageError(f"--out {out}: {there} is a file, no folder to write into")
    if not os.access(there, os.W_OK):
        raise UsageError(f"--out {out}: no permission to write {there}")


def _check_format(out: str, sample_rate: int) -> None:
    """Refuse an ending that is no format, or a format without the model's sample rate."""
    import soundfile
    import torch

    from speechkit.data.audio import write_audio

    if out == "-":
        return
    with tempfile.TemporaryDirectory() as folder:  # only writing tells
        try:
            write_audio(Path(folder, "trial" + Path(out).suffix), torch.zeros(1), sample_rate)
        except (ValueError, TypeError, soundfile.LibsndfileError) as error:
            ending = Path(out).suffix or "a name without an ending"
            raise UsageError(
                f"--out {out}: {ending} cannot be written at {sample_rate} Hz; take .wav, .flac "
                "or .ogg"
            ) from error


def _attention(options: argparse.Namespace, model: Synthesizer) -> dict[str, Any]:
    """Give the option of the attention, where the acoustic model has that choice."""
    if options.attention is None:
        return {}
    acoustic = model.acoustic
    if "attention" not in inspect.signature(acoustic.generate).parameters:  # type: ignore[arg-type]
        raise UsageError(
            f"--attention is a choice of Tacotron2; {options.model} holds a "
            f"{type(acoustic).__name__}, which has no such choice: leave it out"
        )
    return {"attention": options.attention}


def _open(folder: str, device: str) -> Synthesizer:
    from speechkit.models.synthesizer import Synthesizer

    model = speechkit.load(folder, device=device)
    if not isinstance(model, Synthesizer):
        raise UsageError(
            f"{folder}: holds a {type(model).__name__}, which does not speak; give the folder of a "
            "synthesizer (recipes/tts)"
        )
    return model


def _open_vocoder(options: argparse.Namespace) -> Vocoder | None:
    from speechkit.models.vocoder import NeuralVocoder, Vocoder

    if options.vocoder is None:
        return None
    model = speechkit.load(options.vocoder, device=options.device)
    if not isinstance(model, Vocoder):
        raise UsageError(
            f"{options.vocoder}: holds a {type(model).__name__}, which is no vocoder; give the "
            "folder of one (recipes/vocoder)"
        )
    if isinstance(model, NeuralVocoder):
        model.fold_weight_norm()
    return model


def _say(options: argparse.Namespace, speech: Speech) -> None:
    """Say what was made, and on standard error what went wrong in it."""
    seconds = len(speech.waveform) / speech.sample_rate
    out = sys.stderr if options.out == "-" else sys.stdout
    if options.json:
        told = {
            "file": options.out,
            "seconds": seconds,
            "sample_rate": speech.sample_rate,
            "stopped": speech.stopped,
            "alignment_score": speech.alignment_score,
            "problems": speech.problems,
            "sentences": [sentence.text for sentence in speech.sentences],
        }
        print(json.dumps(told, ensure_ascii=False), file=out)
    else:
        count = len(speech.sentences)
        print(f"{options.out}: {seconds:.2f} s, {count} sentence{'s' * (count > 1)}", file=out)
    for problem in speech.problems:
        complain(problem, "warning")
