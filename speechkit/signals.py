"""Stopping a run by signal without losing work."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger(__name__)


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

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the first signal of each kind; a second one ends the process at once."""

        def request(number: int, frame: FrameType | None) -> None:
            self.number = number
            logger.warning("signal %d: saving after this step; once more ends at once", number)
            signal.signal(number, previous[number])

        previous = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, request)
        except ValueError:
            # Not the main thread, as in some notebooks: the signals stay as they were.
            logger.debug("signals can be caught on the main thread only")
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
