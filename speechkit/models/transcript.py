"""What recognisers return: words with times."""

from __future__ import annotations

from typing import Any, NamedTuple


class Word(NamedTuple):
    """A recognised word.

    Attributes
    ----------
    text : str
        The word.
    start, end : float
        Seconds from the start of the recording, at the resolution of the model's frames.
    confidence : float
        0 to 1: geometric mean of the probabilities of the word's pieces.
    """

    text: str
    start: float
    end: float
    confidence: float


class Transcript(NamedTuple):
    """What was said in a recording.

    Attributes
    ----------
    text : str
        The words, joined by a space.
    words : list of Word
        With their times.
    duration : float
        Seconds of audio.

    Examples
    --------
    >>> Transcript("yes", [Word("yes", 0.1, 0.4, 0.9)], 0.5).to_dict()["words"]
    [{'text': 'yes', 'start': 0.1, 'end': 0.4, 'confidence': 0.9}]
    """

    text: str
    words: list[Word]
    duration: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        words = [word._asdict() for word in self.words]
        return {"text": self.text, "words": words, "duration": self.duration}
