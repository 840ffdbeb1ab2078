"""``speechkit score``, ``report`` and ``check``: runs' folders and manifests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from speechkit.cli.common import FAULTS, OK, Add, complain

if TYPE_CHECKING:
    import argparse


def add_commands(add: Add) -> None:
    """Add the commands."""
    sub = add("score", _score, "Compute a run's numbers again, from its per-utterance rows.")
    sub.add_argument("folder", metavar="FOLDER", help="a run's folder")
    sub.add_argument("--json", action="store_true", help="a JSON object for each number")

    sub = add("report", _report, "Make a run's report.html again.")
    sub.add_argument("folder", metavar="FOLDER", help="a run's folder")

    sub = add("check", _check, "Say what is wrong with a manifest, row by row.")
    sub.add_argument("manifest", metavar="MANIFEST", help="a JSON Lines file")
    sub.add_argument("--no-audio", action="store_true", help="do not open the audio files")
    sub.add_argument("--decode", action="store_true", help="read all samples too, which takes time")


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
        complain(f"{options.folder}: {problem}")
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
        complain(f"{options.manifest}: {count}; correct these rows")
        return FAULTS
    utterances = read_manifest(options.manifest)
    hours = sum(utterance.duration for utterance in utterances) / 3600
    print(f"{options.manifest}: {len(utterances)} utterances, {hours:.2f} h, no problem")
    return OK
