"""Text to label ids and back: characters and SentencePiece. Id 0 is the CTC blank."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from speechkit.data.manifest import DataError, read_manifest

BLANK = "<blank>"
SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character
# Characters that SentencePiece keeps for itself: it drops the sentences that hold them, silently.
RESERVED = frozenset({"\0", "\t", "\n", "\r", SPACE_MARK, "\u2047", "\u2585"})
_SHOWN = 200


class CharTokenizer:
    """One label for each character.

    Parameters
    ----------
    symbols : sequence of str
        The characters of the vocabulary; the first gets id 1, as id 0 is the CTC blank.

    Raises
    ------
    ValueError
        If a symbol is not exactly one character, or is given twice.

    Examples
    --------
    >>> tokenizer = CharTokenizer(symbols=["a", "b", " "])
    >>> tokenizer.encode("ab a")
    [1, 2, 3, 1]
    >>> tokenizer.decode([1, 2, 3, 1])
    'ab a'
    >>> tokenizer.vocab_size
    4
    """

    blank_id: int = 0

    def __init__(self, *, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        wrong = [s for s in self.symbols if not isinstance(s, str) or len(s) != 1]
        if wrong:
            raise ValueError(f"each symbol must be one character, got {wrong[:10]!r}")
        twice = sorted({s for s in self.symbols if self.symbols.count(s) > 1})
        if twice:
            raise ValueError(f"symbols given more than once: {twice[:10]!r}")
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols, start=1)}

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CharTokenizer:
        """Collect the characters of some texts, in code point order.

        Parameters
        ----------
        texts : iterable of str
            The training transcripts.

        Returns
        -------
        CharTokenizer
            With every character that occurs.

        Raises
        ------
        DataError
            If there is no character at all.

        Examples
        --------
        >>> CharTokenizer.from_texts(["ba", "a c"]).symbols
        [' ', 'a', 'b', 'c']
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be an iterable of strings, got one string: {texts[:40]!r}")
        symbols = sorted({character for text in texts for character in text})
        if not symbols:
            raise DataError("no characters to make a vocabulary from: every text is empty")
        return cls(symbols=symbols)

    @classmethod
    def from_manifest(cls, path: str | Path, field: str = "text") -> CharTokenizer:
        """Collect the characters of a manifest's transcripts, in code point order.

        Parameters
        ----------
        path : str or Path
            The manifest, JSON Lines.
        field : str
            Which field holds the text.

        Raises
        ------
        DataError
            If rows lack the field; their ids are named.
        """
        return cls.from_texts(manifest_texts(path, field))

    @property
    def vocab_size(self) -> int:
        """Number of labels, the blank included."""
        return len(self.symbols) + 1

    @property
    def pieces(self) -> list[str]:
        """The string of each id; that of the blank is ``<blank>``."""
        return [BLANK, *self.symbols]

    def encode(self, text: str) -> list[int]:
        """Turn text into label ids.

        Parameters
        ----------
        text : str
            Made of the vocabulary's characters only; nothing is normalised.

        Returns
        -------
        list of int
            One id a character, none of them the blank.

        Raises
        ------
        DataError
            If a character is not in the vocabulary: which one, where, in which text.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            raise _outside(text, [i for i, c in enumerate(text) if c not in self._ids]) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Turn label ids into text; blanks are skipped.

        Parameters
        ----------
        ids : iterable of int
            Label ids, already collapsed.

        Returns
        -------
        str
            The text.

        Raises
        ------
        ValueError
            If an id is not in the vocabulary.
        """
        ids = _checked_ids(ids, self.vocab_size)
        return "".join(self.symbols[i - 1] for i in ids if i != self.blank_id)


class SentencePieceTokenizer:
    """Sub-word labels (Kudo & Richardson, 2018, "SentencePiece").

    Parameters
    ----------
    model : bytes
        A SentencePiece model, as its trainer writes it. The id of its piece ``i`` is ``i + 1``
        here, as id 0 is the CTC blank.

    Raises
    ------
    ValueError
        If the bytes are not a SentencePiece model.

    Examples
    --------
    >>> texts = ["one two three", "three two one", "two one"]
    >>> tokenizer = SentencePieceTokenizer.train(texts, vocab_size=12)
    >>> tokenizer.vocab_size
    12
    >>> tokenizer.decode(tokenizer.encode("three one"))
    'three one'
    """

    blank_id: int = 0

    def __init__(self, *, model: bytes) -> None:
        self.model = bytes(model)
        # Touched here so that a wrong model fails where it is given, not at the first text.
        _ = self._processor

    @classmethod
    def train(
        cls,
        source: str | Path | Iterable[str],
        *,
        vocab_size: int,
        model_type: str = "unigram",
        field: str = "text",
    ) -> SentencePieceTokenizer:
        """Train a model; the same texts give the same bytes.

        Parameters
        ----------
        source : str, Path, or iterable of str
            A manifest (a path), or the texts themselves.
        vocab_size : int
            Number of labels, the blank and SentencePiece's unknown piece included.
        model_type : str
            ``"unigram"`` (Kudo, 2018) or ``"bpe"`` (Sennrich et al., 2016).
        field : str
            Which field of the manifest holds the text.

        Returns
        -------
        SentencePieceTokenizer
            It covers every character of the texts and changes none (no Unicode normalisation, all
            spaces kept), so that ``decode(encode(text)) == text``.

        Raises
        ------
        DataError
            If texts hold characters that SentencePiece reserves, or are too few or too varied for
            ``vocab_size``.
        ValueError
            If ``model_type`` is unknown.
        """
        if model_type not in ("unigram", "bpe"):
            raise ValueError(f'model_type must be "unigram" or "bpe", got {model_type!r}')
        texts = list(manifest_texts(source, field) if isinstance(source, (str, Path)) else source)
        for text in texts:
            positions = [i for i, character in enumerate(text) if character in RESERVED]
            if positions:
                raise _outside(text, positions, "reserved by SentencePiece; clean the text of")
        return cls(model=_train_sentencepiece([t for t in texts if t], vocab_size, model_type))

    @cached_property
    def _processor(self) -> Any:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = processor.LoadFromSerializedProto(self.model)
        except RuntimeError as error:
            raise ValueError(
                f"not a SentencePiece model ({len(self.model)} bytes): {error}"
            ) from error
        if not loaded or processor.GetPieceSize() == 0:
            raise ValueError(f"not a SentencePiece model ({len(self.model)} bytes)")
        return processor

    def __getstate__(self) -> dict[str, Any]:
        # Workers get the model's bytes and build their own processor.
        return {"model": self.model}

    @property
    def vocab_size(self) -> int:
        """Number of labels, the blank included."""
        return int(self._processor.GetPieceSize()) + 1

    @cached_property
    def pieces(self) -> list[str]:
        """The string of each id; that of the blank is ``<blank>``, a space is written ``▁``."""
        size = self._processor.GetPieceSize()
        return [BLANK, *(self._processor.IdToPiece(i) for i in range(size))]

    def encode(self, text: str) -> list[int]:
        """Turn text into label ids.

        Parameters
        ----------
        text : str
            Made of characters that the model was trained on.

        Returns
        -------
        list of int
            Label ids, none of them the blank.

        Raises
        ------
        DataError
            If a character is not in the vocabulary: which one, where, in which text.
        """
        if not text:
            return []
        ids = self._processor.EncodeAsIds(text)
        unknown = self._processor.unk_id()
        if unknown in ids or SPACE_MARK in text:
            raise _outside(text, [i for i, c in enumerate(text) if not self._covers(c)])
        return [i + 1 for i in ids]

    def _covers(self, character: str) -> bool:
        if character == SPACE_MARK:
            return False
        return self._processor.unk_id() not in self._processor.EncodeAsIds(character)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn label ids into text; see `CharTokenizer.decode`."""
        ids = _checked_ids(ids, self.vocab_size)
        return str(self._processor.DecodeIds([i - 1 for i in ids if i != self.blank_id]))


Tokenizer = CharTokenizer | SentencePieceTokenizer


def manifest_texts(path: str | Path, field: str = "text") -> list[str]:
    """Read one text field of every row of a manifest.

    Parameters
    ----------
    path : str or Path
        The manifest, JSON Lines.
    field : str
        ``"text"``, or any other field that holds a string.

    Returns
    -------
    list of str
        In the order of the rows.

    Raises
    ------
    DataError
        If rows lack the field; the first ids are named.
    """
    texts: list[str] = []
    missing: list[str] = []
    for utterance in read_manifest(path):
        value = getattr(utterance, field, None)
        value = utterance.extra.get(field) if value is None else value
        if isinstance(value, str):
            texts.append(value)
        else:
            missing.append(utterance.id)
    if missing:
        shown = ", ".join(missing[:10])
        raise DataError(
            f"{path}: {len(missing)} rows have no text in the field {field!r} (ids: {shown}); "
            "add it to them, or leave them out"
        )
    return texts


def _train_sentencepiece(texts: list[str], vocab_size: int, model_type: str) -> bytes:
    import sentencepiece

    if not texts:
        raise DataError("no text to train a SentencePiece model from: every text is empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size - 1,  # the blank is not SentencePiece's
            model_type=model_type,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=max(len(text.encode()) for text in texts) + 1,
            num_threads=1,  # the sums of expectation maximisation depend on how they are split
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        characters = len({character for text in texts for character in text})
        # Its message says "3 vs 24" where 24 is the least possible, or "a value <= 29".
        bound = re.search(r"(<=|vs) (\d+)", str(error))
        side = "most" if bound and bound[1] == "<=" else "least"
        advice = f"at {side} {int(bound[2]) + 1}" if bound else "another number"
        raise DataError(
            f"SentencePiece cannot make vocab_size={vocab_size} {model_type} labels from "
            f"{len(texts)} texts with {characters} different characters: {error} (the blank is not "
            f"in its count). Set vocab_size to {advice}."
        ) from error
    return model.getvalue()


def _checked_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    checked = [int(i) for i in ids]
    wrong = [i for i in checked if not 0 <= i < vocab_size]
    if wrong:
        raise ValueError(f"ids outside the vocabulary of {vocab_size} labels: {wrong[:10]}")
    return checked


def _outside(
    text: str,
    positions: list[int],
    why: str = "outside the tokenizer's vocabulary; clean the text of",
) -> DataError:
    named = ", ".join(f"{text[i]!r} (U+{ord(text[i]):04X}) at position {i}" for i in positions[:10])
    more = f" and {len(positions) - 10} more" if len(positions) > 10 else ""
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return DataError(f"{named}{more} is {why} it, or train the tokenizer on it: {shown!r}")
