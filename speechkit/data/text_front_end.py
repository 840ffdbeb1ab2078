"""Text to the symbols that a synthesizer speaks: characters or phonemes. Id 0 is padding."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from speechkit.data.errors import DataError
from speechkit.data.manifest import read_manifest
from speechkit.data.phonemes import Phonemizer, check_voice
from speechkit.data.text_normalization import normalize_english
from speechkit.data.tokenizer import manifest_texts

PAD = "<pad>"
END = "<end>"
PAUSES = ",.;:!?"
"""Punctuation that is kept beside phonemes; the rest of it is not heard."""
_SILENT = frozenset(".,;:!?…-–—'\"‘’“”«»()[]")  # is left out where a model has not seen it
_SHOWN = 30  # characters of context on either side of what is pointed at
_NAMED = 5  # symbols that an error names
_WORDLESS = frozenset("#%&*/@\\_§¶†‡•‰")  # Unicode calls them punctuation, but people read them


class TextFrontEnd:
    """Text to normalised text, to characters or phonemes, to ids.

    Parameters
    ----------
    symbols : sequence of str
        What the model can speak; the first gets id 1, as id 0 pads. The symbol ``<end>``, if it is
        among them, is put after every text.
    normalization : str, optional
        ``"english"`` writes out numbers and the like
        (`speechkit.data.text_normalization.normalize_english`); None leaves the text as it is, but
        for white space at its ends.
    phonemes : str, optional
        A voice of espeak-ng, such as ``"en-us"`` (see `speechkit.data.phonemes`): symbols are
        letters of the International Phonetic Alphabet, stress marks and `PAUSES`. None: characters.
    lowercase : bool
        Of characters: capitals are read as small letters.

    Raises
    ------
    ValueError
        If a symbol is empty or given twice, or another argument is none of the above.

    Examples
    --------
    >>> front_end = TextFrontEnd(symbols=[*" abcdefghijklmnopqrstuvwxyz", "<end>"])
    >>> front_end.pieces("Mr. Bee")[:6]
    ['m', 'i', 's', 't', 'e', 'r']
    >>> front_end.encode("Bee")
    [3, 6, 6, 28]
    >>> front_end.vocab_size
    29
    """

    pad_id: int = 0

    def __init__(
        self,
        *,
        symbols: Sequence[str],
        normalization: str | None = "english",
        phonemes: str | None = None,
        lowercase: bool = True,
    ) -> None:
        self.symbols = list(symbols)
        self.normalization = normalization
        self.phonemes = phonemes
        self.lowercase = lowercase
        wrong = [s for s in self.symbols if not isinstance(s, str) or not s or s == PAD]
        twice = sorted({str(s) for s in self.symbols if self.symbols.count(s) > 1})
        if wrong or twice or not self.symbols:
            raise ValueError(
                f"symbols must be different strings, not empty and not {PAD!r}; wrong are "
                f"{(wrong or twice)[:10]!r} of {len(self.symbols)}"
            )
        if normalization not in (None, "english"):
            raise ValueError(f'normalization must be "english" or None, got {normalization!r}')
        if phonemes is not None:
            check_voice(phonemes)
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols, start=1)}
        self._phonemizer = None if phonemes is None else Phonemizer(phonemes)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        normalization: str | None = "english",
        phonemes: str | None = None,
        lowercase: bool = True,
        end: bool = True,
    ) -> TextFrontEnd:
        """Collect the symbols of some texts, in code point order.

        Parameters
        ----------
        texts : iterable of str
            The training transcripts.
        normalization, phonemes, lowercase
            As the constructor takes them.
        end : bool
            Put ``<end>`` after every text: a symbol for the silence after it.

        Raises
        ------
        DataError
            If a text holds what cannot be spoken, or nothing; it is shown.

        Examples
        --------
        >>> TextFrontEnd.from_texts(["ba", "a cB"]).symbols
        [' ', 'a', 'b', 'c', '<end>']
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be an iterable of strings, got one string: {texts[:40]!r}")
        made = cls(
            symbols=[END], normalization=normalization, phonemes=phonemes, lowercase=lowercase
        )
        found = sorted({piece for text in texts for piece in made._cut(text)} - {END})
        if not found:
            raise DataError("no symbols to make a vocabulary from: there is no text")
        return cls(
            symbols=[*found, END] if end else found,
            normalization=normalization,
            phonemes=phonemes,
            lowercase=lowercase,
        )

    @classmethod
    def from_manifest(
        cls,
        path: str | Path,
        *,
        field: str = "text",
        normalization: str | None = "english",
        phonemes: str | None = None,
        lowercase: bool = True,
        end: bool = True,
    ) -> TextFrontEnd:
        """Collect the symbols of a manifest's transcripts.

        Parameters
        ----------
        path : str or Path
            The manifest, JSON Lines.
        field : str
            Which field holds the text.
        normalization, phonemes, lowercase, end
            As `from_texts` takes them.

        Raises
        ------
        DataError
            If rows lack the field, or hold what cannot be spoken; their ids are named.
        """
        texts = manifest_texts(path, field)
        try:
            return cls.from_texts(
                texts, normalization=normalization, phonemes=phonemes, lowercase=lowercase, end=end
            )
        except DataError as error:
            made = cls(
                symbols=[END], normalization=normalization, phonemes=phonemes, lowercase=lowercase
            )
            rows = zip(read_manifest(path), texts)
            wrong = [row.id for row, text in rows if not made._speakable(text)]
            shown = ", ".join(wrong[:_NAMED]) + (", ..." if len(wrong) > _NAMED else "")
            raise DataError(
                f"{path}: {len(wrong)} texts cannot be spoken (ids: {shown}); the first: {error}"
            ) from error

    @classmethod
    def tacotron2(cls) -> TextFrontEnd:
        """Make the front end of the published Tacotron 2 models of NVIDIA and SpeechBrain.

        Of its 148 ids with padding, 84 are phonemes of the CMU dictionary, which plain text never
        gives; the ids are those of keithito's ``text_to_sequence``.

        Examples
        --------
        >>> front_end = TextFrontEnd.tacotron2()
        >>> front_end.vocab_size, front_end.encode("Hi!")
        (148, [45, 46, 2])
        """
        vowels = re.findall("..", "AAAEAHAOAWAYEHEREYIHIYOWOYUHUW")
        consonants = [*"BDFGKLMNPRSTVWYZ", "CH", "DH", "HH", "JH", "NG", "SH", "TH", "ZH"]
        phones = sorted([v + stress for v in vowels for stress in ("", *"012")] + consonants)
        capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        letters = [*"-!'(),.:;? ", *capitals, *capitals.lower()]
        return cls(symbols=[*letters, *(f"@{phone}" for phone in phones)])

    @property
    def vocab_size(self) -> int:
        """Number of ids, that of padding included."""
        return len(self.symbols) + 1

    def normalize(self, text: str) -> str:
        """Give the text as it is read aloud, before it is cut into symbols."""
        if self.normalization is None:
            return text.strip()
        return normalize_english(text)

    def pieces(self, text: str) -> list[str]:
        """Cut a text into symbols, known to the model or not.

        Punctuation that the model has never seen is left out: it is not spoken, and a model of
        texts without any still takes a sentence with its full stop.

        Parameters
        ----------
        text : str
            As somebody writes it.

        Returns
        -------
        list of str
            One for each id that `encode` gives.

        Raises
        ------
        DataError
            If there is nothing to speak in the text; for phonemes, also if it holds symbols that
            espeak-ng would pass over.
        """
        return [piece for piece in self._cut(text) if piece in self._ids or piece not in _SILENT]

    def _cut(self, text: str) -> list[str]:
        """Cut a text into symbols; see `pieces`."""
        read = self.normalize(text)
        if not any(character.isalnum() for character in read):
            raise DataError(f"nothing to speak: no letter and no digit in the text {text[:200]!r}")
        if self._phonemizer is None:
            found = list(read.lower() if self.lowercase else read)
        else:
            unknown = [i for i, character in enumerate(read) if not self._readable(character)]
            if unknown:
                texts = {"the text": text, "the text as it is read": read}
                raise _outside("cannot be pronounced", [read[i] for i in unknown], texts)
            found = list(self._phonemizer(read))
        return [*found, END] if END in self._ids else found

    def encode(self, text: str) -> list[int]:
        """Turn text into ids.

        Parameters
        ----------
        text : str
            As somebody writes it.

        Returns
        -------
        list of int
            None of them that of padding.

        Raises
        ------
        DataError
            If a symbol is unknown: which one, in its place; or if there is nothing to speak.
        """
        found = self.pieces(text)
        try:
            return [self._ids[piece] for piece in found]
        except KeyError:
            unknown = [piece for piece in found if piece not in self._ids]
            cut = "".join(piece for piece in found if piece != END)
            # A letter of the alphabet is another thing than the same letter as a phoneme.
            texts = {"the text as it is read": cut}
            if self.phonemes is None:
                texts = {"the text": text, **texts}
            raise _outside("outside the symbols of this voice", unknown, texts) from None

    def _speakable(self, text: str) -> bool:
        try:
            self._cut(text)
        except DataError:
            return False
        return True

    def names(self, ids: Iterable[int]) -> list[str]:
        """Give the symbols of ids: what `pieces` gives for a text that `encode` takes.

        Parameters
        ----------
        ids : iterable of int
            As `encode` gives them.

        Raises
        ------
        ValueError
            For an id that is none of a symbol, such as that of padding.

        Examples
        --------
        >>> front_end = TextFrontEnd.from_texts(["a bee"])
        >>> front_end.names(front_end.encode("Bee!"))
        ['b', 'e', 'e', '<end>']
        """
        found = list(ids)
        wrong = [i for i in found if not 1 <= i <= len(self.symbols)]
        if wrong:
            raise ValueError(f"id {wrong[0]} is no symbol's: they have 1..{len(self.symbols)}")
        return [self.symbols[i - 1] for i in found]

    def _readable(self, character: str) -> bool:
        kind = unicodedata.category(character)[0]
        if kind in "LM" and (self.phonemes or "").startswith("en"):
            return character.isascii()
        # Digits are only there without normalisation; every voice reads them.
        return (kind in "LMZP" and character not in _WORDLESS) or character in "0123456789"


def _outside(what: str, unknown: Sequence[str], texts: Mapping[str, str]) -> DataError:
    """Name what is unknown, and show its first in its place: in the first text that has it."""
    names = []
    for piece in dict.fromkeys(unknown):
        points = ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, 'unnamed')}" for c in piece)
        names.append(f"{piece!r} ({points})")
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    first = unknown[0]
    # What is small here may have been a capital.
    places = {where: text.lower().find(first.lower()) for where, text in texts.items()}
    where = next((where for where, place in places.items() if place >= 0), next(iter(texts)))
    text, place = texts[where], max(places[where], 0)
    before, found, after = text[:place], text[place:][: len(first)], text[place:][len(first) :]
    shown = (
        f"{'...' if len(before) > _SHOWN else ''}{before[-_SHOWN:]}>>{found}<<"
        f"{after[:_SHOWN]}{'...' if len(after) > _SHOWN else ''}"
    )
    return DataError(
        f"{what}: {', '.join(names[:_NAMED])}{more}; at position {place} of {where}: {shown!r}. "
        "Write it in words, or leave it out"
    )
