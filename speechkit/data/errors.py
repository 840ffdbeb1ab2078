"""What is raised where the user's data is at fault."""

from __future__ import annotations

from collections.abc import Sequence

MAX_SHOWN = 20


class DataError(ValueError):
    """The user's data is at fault: the message says what, where and what to do."""


def listing(head: str, problems: Sequence[object], advice: str) -> str:
    """Write a message that lists problems, the first 20 in full.

    Examples
    --------
    >>> print(listing("a.jsonl: 2 problems", ["row 1: no id", "row 2: no audio"], "Correct them."))
    a.jsonl: 2 problems
      row 1: no id
      row 2: no audio
    Correct them.
    """
    lines = [head, *(f"  {problem}" for problem in problems[:MAX_SHOWN])]
    if len(problems) > MAX_SHOWN:
        lines.append(f"  ... and {len(problems) - MAX_SHOWN} more")
    return "\n".join([*lines, advice])
