"""What the commands share: exit statuses, types of options, and how faults are shown."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

OK, FAULTS, UNUSABLE = 0, 1, 2

Command: TypeAlias = Callable[[argparse.Namespace], int]
Add: TypeAlias = Callable[[str, Command, str], argparse.ArgumentParser]
"""Makes the parser of a command: its name, what carries it out, what it does in words."""


class UsageError(ValueError):
    """A command that cannot be carried out as it was given."""


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def complain(message: object, kind: str = "error") -> None:
    """Show an error, or a warning."""
    print(f"speechkit: {kind}: {message}", file=sys.stderr)


def for_each(
    files: Sequence[str], command: Callable[[str], None], options: argparse.Namespace
) -> int:
    """Do something with each file; a file at fault does not cost the others.

    Returns
    -------
    int
        Exit status: `FAULTS` where a file is at fault.
    """
    status = OK
    for file in files:
        try:
            command(file)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            if options.debug:
                raise
            complain(error)
            status = FAULTS
    return status


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as the command's own, each one, without the line of code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"speechkit: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
