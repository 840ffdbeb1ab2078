"""A run's folder as the sections of its page see it, and what the page may still take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechkit.data.manifest import DataError
from speechkit.results import RunResults, read_rows

MAX_PLAYERS = 24
MAX_SECONDS = 12.0  # of each player and picture
MAX_MEDIA_BYTES = 3_500_000  # base64 adds a third to the sound; the page stays below 5 MB


@dataclass
class Run:
    """A run's folder, read, and how much sound and how many pictures the page may still take.

    Attributes
    ----------
    folder : Path
        Where it is.
    results : RunResults or None
        RESULTS.json; None when the run was not tested.
    metrics : list of dict
        Rows of metrics.jsonl.
    hparams : str
        Text of hparams.yaml.
    players, media_bytes : int
        What is left of the page's allowance.
    """

    folder: Path
    results: RunResults | None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    hparams: str = ""
    players: int = MAX_PLAYERS
    media_bytes: int = MAX_MEDIA_BYTES

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Read what there is in a run's folder; a run that was not tested has less of it."""
        folder = Path(folder)
        results, metrics, hparams = (
            folder / name for name in ("RESULTS.json", "metrics.jsonl", "hparams.yaml")
        )
        if not any(path.exists() for path in (results, metrics, hparams)):
            raise DataError(
                f"{folder}: not a run's folder (no RESULTS.json, metrics.jsonl or hparams.yaml)"
            )
        return cls(
            folder=folder,
            results=RunResults.read(results) if results.exists() else None,
            metrics=read_rows(metrics) if metrics.exists() else [],
            hparams=hparams.read_text(encoding="utf-8") if hparams.exists() else "",
        )

    def splits(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Give each test split's name and per-utterance rows."""
        files = sorted(self.folder.glob("test/*/rows.jsonl"))
        return [(path.parent.name, read_rows(path)) for path in files]

    def take(self, players: int, size: int) -> bool:
        """Take players and bytes from the page's allowance, if that much is left.

        Examples
        --------
        >>> run = Run(Path(), None, players=3, media_bytes=100)
        >>> run.take(2, 60), run.take(1, 60), run.media_bytes
        (True, False, 40)
        """
        if players > self.players or size > self.media_bytes:
            return False
        self.players -= players
        self.media_bytes -= size
        return True


Section = Callable[[Run], str]
