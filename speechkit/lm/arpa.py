r"""ARPA files: n-gram models as text, as SRILM, kenlm and others write them.

::

    \data\
    ngram 1=4
    ngram 2=2

    \1-grams:
    -1.2    <unk>
    -99     <s>      -0.3
    -0.6    </s>
    -0.4    hello    -0.3

    \2-grams:
    -0.1    <s> hello
    -0.2    hello </s>

    \end\

Numbers are logarithms to base 10: the probability of the last word, and behind the words the
back-off weight. Fields are parted by tabs or spaces.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from speechkit.data.errors import DataError
from speechkit.files import atomic_file
from speechkit.lm.tables import (
    BEGIN,
    FINISH,
    NEVER,
    UNKNOWN,
    NgramTables,
    find,
    link_suffixes,
)

_COUNT = re.compile(r"ngram (\d+) *= *(\d+)")
_LOWEST = -1e30
_SHOWN = 80


def read_arpa(source: str | Path | bytes) -> NgramTables:
    r"""Read an ARPA file, gzipped or not.

    Parameters
    ----------
    source : str, Path or bytes
        The file, or what is in it.

    Returns
    -------
    NgramTables
        Its n-grams. A file without ``<unk>`` gets it, with a probability of zero (``-99``).

    Raises
    ------
    DataError
        For whatever is wrong with it: the line, and what was expected there.
    OSError
        Where the file cannot be opened.

    Examples
    --------
    >>> try:
    ...     read_arpa(b"hello")
    ... except DataError as error:
    ...     print(str(error).split("found")[0])
    ARPA data: line 1: expected '\data\',
    """
    if isinstance(source, bytes):
        return _Reader(io.BytesIO(source), "ARPA data").read()
    with Path(source).open("rb") as file:
        return _Reader(file, str(source)).read()


class _Reader:
    """Reads one file, and knows the number of the line."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        start = file.read(16)
        file.seek(0)
        if start.startswith(b"mmap lm http"):
            raise DataError(
                f'{name}: a binary model of kenlm, not an ARPA file; open it with backend="kenlm"'
            )
        stream = gzip.GzipFile(fileobj=file) if start.startswith(b"\x1f\x8b") else file
        # only "\n" ends a line: a word may hold other characters that Python counts as line ends
        self.lines = io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
        self.name, self.number, self.line = name, 0, ""

    def fail(self, expected: str, number: int | None = None, found: str | None = None) -> NoReturn:
        line = self.line if found is None else found
        shown = line if len(line) <= _SHOWN else line[:_SHOWN] + "..."
        number = self.number if number is None else number
        raise DataError(
            f"{self.name}: line {number}: expected {expected}, found "
            f"{repr(shown) if line else 'an empty line or the end of the file'}; correct the file, "
            "or write it again with the tool that made it"
        )

    def next(self, expected: str) -> str:
        """Read a line, without the white space at its end."""
        self.number += 1
        try:
            line = self.lines.readline()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.line = ""
            raise DataError(
                f"{self.name}: line {self.number}: the gzip data is broken or cut off ({error}); "
                "get the file again"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.name}: line {self.number} or soon after it: not UTF-8 ({error}); convert "
                "the file to UTF-8"
            ) from error
        self.line = line.rstrip("\r\n\t ")
        if not line:
            self.fail(expected)
        return self.line

    def next_filled(self, expected: str) -> str:
        """Read the next line that is not empty."""
        while not self.next(expected):
            pass
        return self.line

    def read(self) -> NgramTables:
        counts = self._counts()
        words, columns = self._words(counts[0], len(counts) == 1)
        ids = {word: i for i, word in enumerate(words)}
        keys, starts = np.arange(len(words)), [1, len(words) + 1]
        levels = [columns]
        for order, count in enumerate(counts[1:], 2):
            expected = f"\\{order}-grams:"
            if self.next_filled(expected) != expected:
                self.fail(f"{expected!r} (or the {order - 1}-grams are more than stated)")
            first = self.number + 1
            grams, numbers = self._entries(order, count, order == len(counts), ids)
            new, places = self._sorted_keys(grams, keys, len(words), first)
            levels.append(numbers[:, places])
            keys = np.concatenate([keys, new])
            starts.append(starts[-1] + count)
        if self.next_filled("\\end\\") != "\\end\\":
            self.fail(f"'\\\\end\\\\' (or the {len(counts)}-grams are more than stated)")
        log_probs, backoffs = np.concatenate([np.zeros((2, 1)), *levels], axis=1)
        links = link_suffixes(keys, starts, len(words))
        return NgramTables(
            words,
            starts,
            keys,
            log_probs.astype(np.float32),
            backoffs.astype(np.float32),
            links,
        )

    def _counts(self) -> list[int]:
        if self.next_filled("'\\data\\'") != "\\data\\":
            self.fail("'\\data\\'")
        counts: list[int] = []
        while True:
            expected = f"'ngram {len(counts) + 1}=COUNT'"
            line = self.next_filled(expected)
            match = _COUNT.fullmatch(line.replace("\t", " "))
            if match is None and line == "\\1-grams:" and counts:
                return counts
            if match is None or int(match[1]) != len(counts) + 1:
                self.fail(expected + (" or '\\1-grams:'" if counts else ""))
            counts.append(int(match[2]))

    def _words(self, count: int, highest: bool) -> tuple[list[str], np.ndarray]:
        """Read the unigrams, and add <unk> where it is missing."""
        words: dict[str, int] = {}
        entries = []
        for _ in range(count):
            fields, log_prob, backoff = self._entry(1, highest)
            word = UNKNOWN if fields[1] == "<UNK>" else fields[1]
            if word in words:
                self.fail(f"a word that line {words[word]} does not have already")
            words[word] = self.number
            entries.append((log_prob, backoff))
        missing = [word for word in (BEGIN, FINISH) if word not in words]
        if missing:
            self.fail(f"the unigrams to end with {' and '.join(missing)} among them")
        if UNKNOWN not in words:
            words[UNKNOWN] = 0
            entries.append((NEVER, 0.0))
        return list(words), np.array(entries).T

    def _entries(
        self, order: int, count: int, highest: bool, ids: dict[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read n-grams: word ids (count, order), and log-probabilities and back-offs (2, count)."""
        grams: list[list[int]] = []
        numbers: list[tuple[float, float]] = []
        for _ in range(count):
            fields, log_prob, backoff = self._entry(order, highest)
            try:
                grams.append([ids[word] for word in fields[1 : order + 1]])
            except KeyError:
                named = [UNKNOWN if word == "<UNK>" else word for word in fields[1 : order + 1]]
                unknown = [word for word in named if word not in ids]
                if unknown:
                    self.fail(f"words of the unigrams (not {', '.join(map(repr, unknown))})")
                grams.append([ids[word] for word in named])
            numbers.append((log_prob, backoff))
        return (
            np.array(grams, dtype=np.int64).reshape(count, order),
            np.array(numbers).reshape(count, 2).T,
        )

    def _entry(self, order: int, highest: bool) -> tuple[list[str], float, float]:
        """Read a line: its fields, of which the first numbers are returned as such."""
        what = f"a log-probability, {order} word{'s' * (order > 1)}"
        if not highest:
            what += " and, maybe, a back-off weight"
        line = self.next(what)
        fields = line.replace("\t", " ").split(" ")
        if "" in fields:
            fields = [field for field in fields if field]
        size = len(fields)
        if size != order + 1 and (highest or size != order + 2):
            self.fail(what)
        try:
            log_prob = float(fields[0])
        except ValueError:
            self.fail("a number first, a log-probability")
        if not _LOWEST < log_prob <= 0.0:
            self.fail("a log-probability that is finite and not above 0")
        if size == order + 1:
            return fields, log_prob, 0.0
        try:
            backoff = float(fields[-1])
        except ValueError:
            self.fail(f"a number as a back-off weight after {order} word{'s' * (order > 1)}")
        if not _LOWEST < backoff < -_LOWEST:
            self.fail("a back-off weight that is finite")
        return fields, log_prob, backoff

    def _sorted_keys(
        self, grams: np.ndarray, keys: np.ndarray, num_words: int, first: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the sorted keys of n-grams whose lines begin at ``first``, and their places."""
        nodes = grams[:, 0] + 1
        for column in grams.T[1:-1]:
            nodes = np.where(nodes > 0, find(keys, nodes * num_words + column), 0)
        if not nodes.all():
            index = int(np.flatnonzero(nodes == 0)[0])
            order = grams.shape[1]
            self.fail(
                f"an n-gram whose first {order - 1} words are among the {order - 1}-grams",
                first + index,
                f"an n-gram of words {grams[index].tolist()} (counted from 0 in the unigrams)",
            )
        new = nodes * num_words + grams[:, -1]
        places = np.argsort(new, kind="stable")
        new = new[places]
        twice = np.flatnonzero(new[1:] == new[:-1])
        if len(twice):
            lines = [first + int(places[twice[0] + k]) for k in (0, 1)]
            self.fail(
                f"an n-gram that line {lines[0]} does not have already", lines[1], "the same words"
            )
        return new, places


def arpa_lines(tables: NgramTables) -> Iterator[str]:
    """Write a model line by line; the shortest digits that give the same 32-bit numbers.

    Parameters
    ----------
    tables : NgramTables
        The model.

    Yields
    ------
    str
        Lines of an ARPA file with their ends.
    """
    sizes = np.diff(tables.starts).tolist()
    yield "\\data\\\n"
    yield from (f"ngram {order}={size}\n" for order, size in enumerate(sizes, 1))
    names = [""]
    first = 0  # node of names[0]
    for order, (start, stop) in enumerate(zip(tables.starts, tables.starts[1:]), 1):
        parents, words = np.divmod(tables.keys[start - 1 : stop - 1], len(tables.words))
        pairs = zip((parents - first).tolist(), words.tolist())
        joined = [(names[parent], tables.words[word]) for parent, word in pairs]
        names = [f"{context} {word}" if context else word for context, word in joined]
        first = start
        yield f"\n\\{order}-grams:\n"
        log_probs = tables.log_probs[start:stop].astype(str).tolist()
        if order == tables.order:
            yield from (f"{p}\t{name}\n" for p, name in zip(log_probs, names))
        else:
            weights = tables.backoffs[start:stop].astype(str).tolist()
            yield from (f"{p}\t{name}\t{b}\n" for p, name, b in zip(log_probs, names, weights))
    yield "\n\\end\\\n"


def write_arpa(tables: NgramTables, path: str | Path) -> None:
    """Write an ARPA file; gzipped, the same model as the same bytes, where the name ends in .gz.

    Parameters
    ----------
    tables : NgramTables
        The model.
    path : str or Path
        Where; the file appears when it is complete.
    """
    with atomic_file(path) as file:
        if str(path).endswith(".gz"):
            file.write(arpa_bytes(tables))
        else:
            file.writelines(line.encode() for line in arpa_lines(tables))


def arpa_bytes(tables: NgramTables) -> bytes:
    """Return a gzipped ARPA file."""
    return gzip.compress("".join(chain(arpa_lines(tables))).encode(), 6, mtime=0)
