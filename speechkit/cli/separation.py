"""``speechkit separate`` and ``enhance``: the sources of recordings, as WAV files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import speechkit
from speechkit.cli.common import Add, UsageError, for_each, plain_warnings, seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from speechkit.models.separate import AudioSeparator

_SUBTYPES = ("FLOAT", "PCM_16", "PCM_24")


def add_commands(add: Add) -> None:
    """Add the commands."""
    for name, command, text, result in (
        ("separate", _separate, "Write each source of audio files to a file.", "source1.wav, ..."),
        ("enhance", _enhance, "Write audio files without their noise.", "enhanced.wav"),
    ):
        sub = add(name, command, text)
        sub.add_argument("files", nargs="+", metavar="FILE", help="audio, of any rate and length")
        sub.add_argument(
            "--model", required=True, metavar="FOLDER", help="a model folder, or a hub id"
        )
        sub.add_argument(
            "--out",
            default=".",
            metavar="DIR",
            help=f"where FILE-{result} goes, in the place of an older one (default: here)",
        )
        sub.add_argument(
            "--subtype",
            choices=_SUBTYPES,
            default="FLOAT",
            help="of the samples; integers are clipped at full scale (default: %(default)s)",
        )
        sub.add_argument(
            "--scale",
            choices=("none", "mixture"),
            default="none",
            help="none: as loud as the model makes it; mixture: sources add up to the recording, "
            "which takes twice the time (default: %(default)s)",
        )
        sub.add_argument(
            "--window",
            type=seconds,
            default=20.0,
            metavar="SECONDS",
            help="that go through the model at once (default: %(default)s)",
        )
        sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")


def _separate(options: argparse.Namespace) -> int:
    model = _open(options)
    return _write_all(model, [f"source{i + 1}" for i in range(model.num_sources)], options)


def _enhance(options: argparse.Namespace) -> int:
    model = _open(options)
    if model.num_sources != 1:
        raise UsageError(
            f"{options.model}: gives {model.num_sources} sources, so none of them is the recording "
            "without noise; use: speechkit separate"
        )
    return _write_all(model, ["enhanced"], options)


def _open(options: argparse.Namespace) -> AudioSeparator:
    from speechkit.models.separate import AudioSeparator
    from speechkit.parallel import check_device

    device = check_device(options.device)
    model = speechkit.load(options.model, device=device)
    if not isinstance(model, AudioSeparator):
        raise UsageError(
            f"{options.model}: holds a {type(model).__name__}, which does not separate; give the "
            "folder of a separator"
        )
    return model


def _write_all(model: AudioSeparator, endings: Sequence[str], options: argparse.Namespace) -> int:
    outputs = _outputs(options.files, Path(options.out), endings)

    def write(file: str) -> None:
        _write(model, file, outputs[file], options)
        for path in outputs[file]:
            print(path, flush=True)  # who follows a long list sees each as it comes

    with plain_warnings():
        return for_each(options.files, write, options)


def _outputs(files: Sequence[str], folder: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
    """Name the files to be written; none of them is an input or belongs to two inputs."""
    outputs = {
        file: [folder / f"{Path(file).stem}-{ending}.wav" for ending in endings] for file in files
    }
    inputs = {Path(file).resolve(): file for file in files}
    owners: dict[Path, str] = {}
    for file, paths in outputs.items():
        for path in paths:
            place = path.resolve()
            if place in inputs:
                raise UsageError(
                    f"{file}: its result {path} would overwrite {inputs[place]}, which is to be "
                    "read; choose another folder with --out"
                )
            if owners.setdefault(place, file) != file:
                raise UsageError(
                    f"{owners[place]} and {file} would both be written to {path}; give them one "
                    "by one, each with its own --out"
                )
    return outputs


def _write(
    model: AudioSeparator, file: str, paths: Sequence[Path], options: argparse.Namespace
) -> None:
    from contextlib import ExitStack

    from speechkit.cli.wav import WavWriter
    from speechkit.data.audio import audio_info

    info = audio_info(file)
    blocks = model.separate_stream(file, window=options.window, scale=options.scale)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                WavWriter(path, info.sample_rate, info.num_samples, subtype=options.subtype)
            )
            for path in paths
        ]
        for block in blocks:
            for writer, samples in zip(writers, block):
                writer.write(samples)
    for path, writer in zip(paths, writers):
        if writer.clipped:
            warnings.warn(
                f"{path}: {writer.clipped} samples are beyond full scale and were clipped; "
                "--subtype FLOAT keeps them",
                stacklevel=2,
            )
