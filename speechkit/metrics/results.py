"""The numbers that a run reports, and which scorer makes them from its per-utterance rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One number of a run, on one split.

    Attributes
    ----------
    metric : str
        Name, such as ``"WER"``.
    value : float
        Its value, in ``unit``; never NaN.
    unit : str
        ``"%"``, ``"dB"``, ``"words"``, ...
    count : int
        How many things the value was taken over (reference words for WER, sentences for SER).

    Examples
    --------
    >>> result = Result(metric="WER", value=2.5, unit="%", count=400)
    >>> Result.from_dict(result.to_dict()) == result
    True
    """

    metric: str
    value: float
    unit: str
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """Build a result from ``to_dict``'s dictionary; keys that are no fields are ignored.

        Raises
        ------
        ValueError
            Where a field is missing.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"a result needs {', '.join(names)}; missing: {', '.join(missing)}")
        return cls(
            metric=str(values["metric"]),
            value=float(values["value"]),
            unit=str(values["unit"]),
            count=int(values["count"]),
        )


Scorer = Callable[[list[dict[str, Any]]], list[Result]]


class _Scorers(Mapping[str, Scorer]):
    """Scorers by task, imported when they are asked for: a metric's libraries may be heavy."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        self.targets = dict(targets)

    def __getitem__(self, name: str) -> Scorer:
        if name not in self.targets:
            raise KeyError(f"no scorer {name!r}; there are: {', '.join(sorted(self.targets))}")
        module, function = self.targets[name].split(":")
        scorer: Scorer = getattr(import_module(module), function)
        return scorer

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __contains__(self, name: object) -> bool:
        return name in self.targets


SCORERS: Mapping[str, Scorer] = _Scorers(
    {
        "asr": "speechkit.metrics.wer:summarize",
        "classification": "speechkit.metrics.classification:summarize",
        "codec": "speechkit.metrics.quality_results:summarize",
        "codes": "speechkit.metrics.codes:summarize",
        "diarization": "speechkit.metrics.diarization:summarize",
        "folds": "speechkit.metrics.folds:summarize",
        "lm": "speechkit.metrics.perplexity:summarize",
        "separation": "speechkit.metrics.separation:summarize",
        "speaker": "speechkit.metrics.verification_results:summarize_with_intervals",
        "tts": "speechkit.metrics.tts_results:summarize",
        "vocoder": "speechkit.metrics.vocoder_results:summarize",
        "voice_activity": "speechkit.metrics.voice_activity:summarize",
    }
)
"""From a recipe's per-utterance rows to its results: ``SCORERS["asr"](rows)``."""
