"""``speechkit classify``: what is heard in files, with a timeline of long ones."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, cast

import speechkit
from speechkit.cli.common import Add, UsageError, for_each, positive, seconds

if TYPE_CHECKING:
    import argparse

    from speechkit.models.classifier import Classified


def add_commands(add: Add) -> None:
    """Add the command."""
    sub = add("classify", _classify, "Say what is heard in audio files.")
    sub.add_argument("files", nargs="+", metavar="FILE", help="audio, of any rate and length")
    sub.add_argument("--model", required=True, metavar="FOLDER", help="a model folder, or a hub id")
    sub.add_argument(
        "--top", type=positive, default=5, metavar="N", help="labels to give (default: %(default)s)"
    )
    sub.add_argument(
        "--window",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="that go through the model at once; a longer file has a timeline (default: "
        "%(default)s)",
    )
    sub.add_argument(
        "--hop",
        type=seconds,
        metavar="SECONDS",
        help="from a window's start to the next one's (default: as long as the window)",
    )
    sub.add_argument(
        "--json", action="store_true", help="a JSON object for each file, with all windows"
    )
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")


def _classify(options: argparse.Namespace) -> int:
    from speechkit.models.classifier import SoundClassifier
    from speechkit.parallel import check_device

    if options.hop is not None and options.hop > options.window:
        raise UsageError(
            f"--hop {options.hop:g} is longer than --window {options.window:g}: what lies between "
            "two windows would not be heard"
        )
    device = check_device(options.device)
    model = speechkit.load(options.model, device=device)
    if not isinstance(model, SoundClassifier):
        raise UsageError(
            f"{options.model}: holds a {type(model).__name__}, which does not classify; give the "
            "folder of a classifier"
        )

    def classify(file: str) -> None:
        found = model.classify(file, top=options.top, window=options.window, hop=options.hop)
        _print(file, cast("Classified", found), options)

    return for_each(options.files, classify, options)


def _print(file: str, found: Classified, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"file": file, **_plain(found)}, ensure_ascii=False))
    else:
        prefix = f"{file}\t" if len(options.files) > 1 else ""
        for label, probability in found.labels:
            print(f"{prefix}{probability:.3f}\t{label}")
        if len(found.timeline) > 1:
            for start, end, labels in found.spans:
                best = labels[0]
                print(f"{prefix}{start:.2f}\t{end:.2f}\t{best.probability:.3f}\t{best.label}")
    sys.stdout.flush()  # who follows a long list sees each as it comes


def _plain(found: Classified) -> dict[str, Any]:
    """Give plain values: the labels of the whole, and of each window."""
    return {
        "labels": [scored._asdict() for scored in found.labels],
        "timeline": [
            {
                "start": stretch.start,
                "end": stretch.end,
                "labels": [scored._asdict() for scored in stretch.labels],
            }
            for stretch in found.timeline
        ],
    }
