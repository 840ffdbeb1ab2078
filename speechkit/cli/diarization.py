"""``speechkit diarize`` and ``speechkit detect``: who speaks when, and whether anybody does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from speechkit.cli.common import Add, UsageError, for_each, positive, seconds
from speechkit.cli.speaker import open_encoder

if TYPE_CHECKING:
    import argparse


def add_commands(add: Add) -> None:
    """Add the commands."""
    _add_detect(add)
    sub = add("diarize", _diarize, "Find who speaks when in audio files.")
    sub.add_argument("files", nargs="+", metavar="FILE", help="audio, of any rate and length")
    sub.add_argument("--model", required=True, metavar="FOLDER", help="a model folder, or a hub id")
    sub.add_argument(
        "--num_speakers", type=positive, metavar="N", help="how many there are (default: estimated)"
    )
    sub.add_argument(
        "--max_speakers", type=positive, default=8, metavar="N",
        help="of an estimate (default: %(default)s)",
    )  # fmt: skip
    sub.add_argument(
        "--window", type=seconds, default=1.5, metavar="SECONDS",
        help="that one embedding is made of (default: %(default)s)",
    )  # fmt: skip
    sub.add_argument(
        "--hop", type=seconds, default=0.5, metavar="SECONDS",
        help="from one window to the next (default: %(default)s)",
    )  # fmt: skip
    sub.add_argument(
        "--threshold", type=float, metavar="X",
        help="windows that score above are of one speaker: fewer speakers are found where voices "
        "are alike (default: the model's own; without one, speakers are counted by clusters alone)",
    )  # fmt: skip
    sub.add_argument(
        "--activity", metavar="FOLDER",
        help="a model folder that finds speech, and where two speak at once, who then get a turn "
        "each (default: speech is what is loud, and one speaks at a time)",
    )  # fmt: skip
    sub.add_argument(
        "--out", default=".", metavar="DIR",
        help="where FILE.rttm goes, in the place of an older one (default: here)",
    )  # fmt: skip
    sub.add_argument(
        "--json", action="store_true", help="print a JSON object for each file, write no RTTM"
    )
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")


def _add_detect(add: Add) -> None:
    sub = add("detect", _detect, "Find where somebody speaks, and where two do, in audio files.")
    sub.add_argument("files", nargs="+", metavar="FILE", help="audio, of any rate and length")
    sub.add_argument(
        "--model", required=True, metavar="FOLDER",
        help="a model folder of recipes/voice_activity, or a hub id",
    )  # fmt: skip
    sub.add_argument(
        "--onset", type=float, default=0.5, metavar="P",
        help="probability at which a stretch begins (default: %(default)s)",
    )  # fmt: skip
    sub.add_argument(
        "--offset", type=float, default=0.35, metavar="P",
        help="probability below which it ends (default: %(default)s)",
    )  # fmt: skip
    sub.add_argument("--json", action="store_true", help="print a JSON object for each file")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")


def _detect(options: argparse.Namespace) -> int:
    from speechkit.parallel import check_device
    from speechkit.speakers.activity import open_detector

    if not 0 <= options.offset <= options.onset <= 1:
        raise UsageError(
            f"need 0 <= --offset <= --onset <= 1, got {options.offset:g} and {options.onset:g}"
        )
    model = open_detector(options.model, device=check_device(options.device))
    names = ("speech", "overlap", *(f"{n} at once" for n in range(3, model.num_levels + 1)))

    def detect(file: str) -> None:
        found = dict(zip(names, model.levels(file, onset=options.onset, offset=options.offset)))
        if options.json:
            print(json.dumps({"file": file, **found}), flush=True)
            return
        rows = sorted((*region, level) for level in found for region in found[level])
        for start, end, name in rows:
            print(f"{file}\t{start:.2f}\t{end:.2f}\t{name}", flush=True)

    return for_each(options.files, detect, options)


def _diarize(options: argparse.Namespace) -> int:
    from speechkit.parallel import check_device
    from speechkit.speakers.activity import open_detectors
    from speechkit.speakers.diarization import Diarizer
    from speechkit.speakers.rttm import write_rttm

    model = open_encoder(options)
    diarizer = Diarizer(
        model.embed_windows,
        sample_rate=model.sample_rate,
        window=options.window,
        hop=options.hop,
        max_speakers=options.max_speakers,
        threshold=model.decision_threshold if options.threshold is None else options.threshold,
        **open_detectors(options.activity, device=check_device(options.device))._asdict(),
    )
    names = {file: "_".join(Path(file).stem.split()) for file in options.files}
    if not options.json and len(set(names.values())) < len(names):
        raise UsageError(
            "two of the files have one name, and their results would be one file; give them one "
            "by one, each with its own --out"
        )

    def diarize(file: str) -> None:
        turns = diarizer(file, num_speakers=options.num_speakers).turns
        if options.json:
            rows = [[turn.start, turn.end, turn.speaker] for turn in turns]
            print(json.dumps({"file": file, "turns": rows}), flush=True)
            return
        path = Path(options.out) / f"{names[file]}.rttm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rttm(path, {names[file]: turns})
        print(path, flush=True)

    return for_each(options.files, diarize, options)
