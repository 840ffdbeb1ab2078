"""Stopping a run by signal without losing work."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from speechkit import distributed

logger = logging.getLogger(__name__)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where there is nothing to save first."""


@contextlib.contextmanager
def termination_unwinds() -> Iterator[None]:
    """Let SIGTERM raise, as Ctrl-C does, so that half-made files are removed on the way out.

    Examples
    --------
    >>> import os
    >>> try:
    ...     with termination_unwinds():
    ...         os.kill(os.getpid(), signal.SIGTERM)
    ... except Terminated:
    ...     print("unwound")
    unwound
    """

    def unwind(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        previous = signal.signal(signal.SIGTERM, unwind)
    except ValueError:
        logger.debug("signals can be caught on the main thread only")
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """Remembers that SIGINT or SIGTERM asked the run to stop.

    Attributes
    ----------
    number : int or None
        The signal, once one has come.

    Examples
    --------
    >>> import os
    >>> stop = StopRequest()
    >>> with stop.caught():
    ...     os.kill(os.getpid(), signal.SIGTERM)
    >>> stop.number == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def agreed(self) -> bool:
        """Whether any process of the run was asked to stop; all of them must ask at once."""
        return distributed.any_rank(self.number is not None)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the first signal of each kind; a second one ends the process at once."""
        process = os.getpid()

        def request(number: int, frame: FrameType | None) -> None:
            signal.signal(number, previous[number])
            if os.getpid() != process:
                return  # a worker of the loader: it serves until its run has saved
            self.number = number
            logger.warning("signal %d: saving after this step; once more ends at once", number)

        previous: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, request)
        except ValueError:
            # Not the main thread, as in some notebooks: the signals stay as they were.
            logger.debug("signals can be caught on the main thread only")
        try:
            yield
        finally:
            for caught, handler in previous.items():
                signal.signal(caught, handler)
