"""The ``speechkit`` command: what one does with a trained model, a run's folder and a manifest.

Exit status: 0 when all is well, 1 when what was looked at has faults (a file that is not audio, a
number that its rows do not give, a bad row), 2 when the command itself cannot be carried out.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import speechkit
from speechkit.cli import (
    classification,
    codec,
    diarization,
    runs,
    separation,
    speaker,
    synthesis,
    transcription,
)
from speechkit.cli.common import OK, UNUSABLE, Command, complain


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
        complain(error)
        return UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speechkit", description="Use a trained model, a run's folder or a manifest."
    )
    parser.add_argument("--version", action="version", version=f"speechkit {speechkit.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    modules = (
        transcription, separation, synthesis, codec, classification, speaker, diarization, runs,
    )  # fmt: skip
    for module in modules:
        module.add_commands(add)
    return parser
