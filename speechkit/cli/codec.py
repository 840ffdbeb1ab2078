"""``speechkit encode``, ``decode`` and ``info``: recordings as ``.skc`` files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from speechkit.cli.codec_jobs import Job, Settings, run_jobs
from speechkit.cli.common import FAULTS, OK, Add, UsageError, for_each, positive, seconds

if TYPE_CHECKING:
    from speechkit.codec_files.info import DamagedPart, SkcInfo
    from speechkit.codec_files.places import Place

_AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64")
_SUBTYPES = ("PCM_16", "PCM_24", "FLOAT")


def add_commands(add: Add) -> None:
    """Add the commands."""
    sub = add("encode", _encode, "Write recordings as .skc files, by a codec.")
    _add_places(sub, "audio, of any rate and length; - for a WAV on standard input", ".skc")
    sub.add_argument(
        "--kbps", type=_rate, metavar="RATE", help="bit rate: one of those that the codec has"
    )
    sub = add("decode", _decode, "Write .skc files as WAV files, by the codec that made them.")
    _add_places(sub, "an .skc file; - for standard input", ".wav")
    sub.add_argument(
        "--conceal",
        action="store_true",
        help="put silence in the place of what is damaged, and say where (default: an error)",
    )
    sub.add_argument("--start", type=_start, default=0.0, metavar="SECONDS", help="begin there")
    sub.add_argument("--duration", type=seconds, metavar="SECONDS", help="end so much later")
    sub.add_argument(
        "--subtype",
        choices=_SUBTYPES,
        default="PCM_16",
        help="of the samples; integers are clipped at full scale (default: %(default)s)",
    )
    sub = add("info", _info, "Say what .skc files hold, and whether they are damaged.")
    sub.add_argument("files", nargs="+", metavar="FILE", help=".skc; - for standard input")
    sub.add_argument("--json", action="store_true", help="a JSON object for each file")


def _add_places(sub: argparse.ArgumentParser, what: str, ending: str) -> None:
    sub.add_argument("input", metavar="INPUT", help=f"{what}; or a folder of such files")
    sub.add_argument(
        "output",
        metavar="OUTPUT",
        help=f"a {ending} file, which replaces an older one; - for standard output; or a folder",
    )
    sub.add_argument("--model", required=True, metavar="FOLDER", help="of the codec, or a hub id")
    sub.add_argument(
        "--entropy", metavar="FOLDER", help="of a language model of the codec's codes, or a hub id"
    )
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    sub.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="of a folder, files at once, each by a process with one thread (default: %(default)s)",
    )


def _number(text: str, what: str) -> float:
    """Read a number from 0 on, in plain digits."""
    if not text.replace(".", "", 1).isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from 0 on")
    return float(text)


def _rate(text: str) -> float:
    return _number(text, "a bit rate in kbit/s")


def _start(text: str) -> float:
    return _number(text, "a number of seconds")


def _encode(options: argparse.Namespace) -> int:
    settings = _settings(options, kbps=options.kbps)
    return run_jobs(settings, _jobs(options, _AUDIO, ".skc"), options)


def _decode(options: argparse.Namespace) -> int:
    settings = _settings(
        options,
        conceal=options.conceal,
        start=options.start,
        duration=options.duration,
        subtype=options.subtype,
    )
    return run_jobs(settings, _jobs(options, (".skc",), ".wav"), options)


def _settings(options: argparse.Namespace, **numbers: Any) -> Settings:
    from speechkit.parallel import check_device

    device = check_device(options.device)
    return Settings(options.command is _encode, options.model, options.entropy, device, numbers)


def _jobs(options: argparse.Namespace, endings: tuple[str, ...], ending: str) -> list[Job]:
    """Pair what is to be read with what is to be written; none of the latter is read."""
    if not Path(options.input).is_dir():
        _check_target(options.output, ending)
        return [Job(options.input, options.output)]
    folder, target = Path(options.input), Path(options.output)
    if options.output == "-" or (target.exists() and not target.is_dir()):
        raise UsageError(
            f"{options.input} is a folder, and {options.output} is none: give a folder for the "
            "results"
        )
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings and path.is_file() and not path.name.startswith(".")
    )
    if not files:
        raise UsageError(f"{folder}: has no files that end in {', '.join(endings)}")
    inputs = {path.resolve() for path in files}
    owners: dict[Path, Path] = {}
    for path in files:
        place = target / path.relative_to(folder).with_suffix(ending)
        if place.resolve() in inputs:
            raise UsageError(
                f"{path}: its result {place} would overwrite a file that is to be read; choose "
                "another folder"
            )
        other = owners.setdefault(place, path)
        if other != path:
            raise UsageError(
                f"{other} and {path} would both be written to {place}; rename one of them"
            )
    return [Job(str(path), str(place)) for place, path in owners.items()]


def _check_target(output: str, ending: str) -> None:
    """See that the output is what its name says, and that it can be."""
    path = Path(output)
    if output == "-":
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal: give the name of a file")
    elif path.is_dir():
        raise UsageError(f"{output}: is a folder; give the name of a {ending} file")
    elif path.suffix.lower() != ending and (path.is_file() or not path.exists()):
        raise UsageError(f"{output}: what is written is a {ending} file; let its name say so")


def _info(options: argparse.Namespace) -> int:
    from speechkit.codec_files.files import inspect_file

    damaged = False

    def show(file: str) -> None:
        nonlocal damaged
        info = inspect_file(cast("Place", sys.stdin.buffer if file == "-" else file))
        damaged = damaged or bool(info.damages)
        if options.json:
            print(json.dumps({"file": file, **_fields(info)}, ensure_ascii=False), flush=True)
        else:
            print("\n".join(_lines(file, info)), flush=True)

    status = for_each(options.files, show, options)
    return FAULTS if damaged and status == OK else status


def _fields(info: SkcInfo) -> dict[str, Any]:
    header = info.header
    kbps = info.written_kbps
    return {
        "codec": header.model_id.hex(),
        "entropy": header.entropy_id.hex() or None,
        "sample_rate": header.sample_rate,
        "channels": header.channels,
        "num_codebooks": header.num_codebooks,
        "codebook_size": header.codebook_size,
        "kbps_nominal": round(info.nominal_kbps, 4),
        "kbps_written": None if kbps is None else round(kbps, 4),
        "duration": info.duration,
        "num_samples": info.num_samples,
        "num_frames": info.num_frames,
        "num_chunks": info.num_chunks,
        "num_bytes": info.num_bytes,
        "damages": [_damage_fields(damage) for damage in info.damages],
    }


def _damage_fields(damage: DamagedPart) -> dict[str, Any]:
    fields = damage._asdict()
    return {**fields, "start": round(damage.start, 3), "end": round(damage.end, 3)}


def _lines(file: str, info: SkcInfo) -> list[str]:
    header = info.header
    # Two digits: a rate's third may be the rounding of the header's hop length.
    nominal = float(f"{info.nominal_kbps:.2g}")
    kbps = info.written_kbps
    written = "" if kbps is None else f", {kbps:.3f} as written"
    lost = ", its end is lost" if info.num_samples is None else f" ({info.num_samples} samples)"
    return [
        f"{file}",
        f"  codec     {header.model_id.hex()}, {header.num_codebooks} codebooks of "
        f"{header.codebook_size}",
        f"  entropy   {header.entropy_id.hex() or 'none'}",
        f"  audio     {header.sample_rate} Hz, channels: {header.channels}",
        f"  duration  {info.duration:.3f} s{lost}",
        f"  rate      {nominal:g} kbit/s nominal{written}",
        f"  chunks    {info.num_chunks} sound, {info.num_bytes} bytes",
        *([] if info.damages else ["  damage    none"]),
        *(f"  damage    {damage}" for damage in info.damages),
    ]
