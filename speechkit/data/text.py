"""Lines of text as the data of a run, for language models: `TextData`."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechkit.data.batch import Failure
from speechkit.data.errors import listing
from speechkit.data.manifest import DataError, read_manifest
from speechkit.data.sampler import BucketBatchSampler
from speechkit.data.splits import File, SplitData


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


class TextLine(NamedTuple):
    """One line: its id, its text and its labels ``(U,)``, int32, without begin and end."""

    id: str
    text: str
    tokens: Tensor


class TextDataset(Dataset[dict[str, Any] | Failure]):
    """Lines as items ``{"id", "text", "tokens"}``, the tokens ``(U,)`` int64.

    Parameters
    ----------
    lines : sequence of TextLine
        What `TextData` holds.
    """

    def __init__(self, lines: Sequence[TextLine]) -> None:
        self.lines = lines

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the item of (epoch, index); it is the same in every epoch."""
        line = self.lines[key[1]]
        return {"id": line.id, "text": line.text, "tokens": line.tokens.long()}


class TextData(SplitData):
    r"""Text as the data of a run: what `SpeechData` is for recordings.

    All of it is held in memory, encoded: meant for up to a few million lines.

    Parameters
    ----------
    train, valid : path, optional
        Files of one sentence a line (``.gz`` or not), or manifests (``.jsonl``), of which the
        transcripts are taken. Empty lines are left out.
    test : mapping of name to path, optional
        The test splits.
    tokenizer : object with ``encode(text) -> list[int]``
        See `speechkit.data.tokenizer`.
    max_batch_tokens : int
        Longest line times number of lines of a batch stays within it. A line counts with its end:
        one label more than it has.
    max_line_tokens : int, optional
        Longer training lines are left out, and counted in the log.
    num_buckets, max_batch_size : int, optional
        See `BucketBatchSampler`.
    max_bad_share : float
        Share of the training lines that the tokenizer may be unable to encode; they are left out
        and named in the log. In other splits there may be none.
    limit, overfit : int, optional
        As in `SpeechData`.
    eval_batch_tokens : int, optional
        The budget of evaluation, by default as in training; a longer line is alone.
    seed : int
        Of the run.

    Raises
    ------
    DataError
        When a file cannot be read, or lines cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> from speechkit.data.tokenizer import CharTokenizer
    >>> path = Path(tempfile.mkdtemp()) / "train.txt"
    >>> _ = path.write_text("a\nabb\nba\n")
    >>> data = TextData(
    ...     train=path, tokenizer=CharTokenizer(symbols=["a", "b"]), max_batch_tokens=6)
    >>> for batch in data.eval_loader("train"):
    ...     print(batch.ids, batch.tokens.data.tolist(), batch.tokens.lengths.tolist())
    ['train.txt:3', 'train.txt:1'] [[2, 1], [1, 0]] [2, 1]
    ['train.txt:2'] [[1, 2, 2]] [3]
    """

    def __init__(
        self,
        *,
        train: File | None = None,
        valid: File | None = None,
        test: Mapping[str, File] | None = None,
        tokenizer: _Encoder,
        max_batch_tokens: int,
        max_line_tokens: int | None = None,
        num_buckets: int | None = None,
        max_batch_size: int | None = None,
        max_bad_share: float = 0.01,
        limit: int | None = None,
        overfit: int | None = None,
        eval_batch_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        # Items lie ready in memory: workers would only carry them about.
        super().__init__(
            train=train, valid=valid, test=test, num_workers=0, max_bad_share=max_bad_share,
            seed=seed,
        )  # fmt: skip
        self.tokenizer = tokenizer
        self.max_batch_tokens = max_batch_tokens
        self.max_line_tokens = max_line_tokens
        self.max_batch_size = max_batch_size
        self.limit = limit if overfit is None else overfit
        self.overfit = overfit
        self.eval_batch_tokens = eval_batch_tokens or max_batch_tokens
        self.train_items: list[TextLine] = []
        if "train" in self.paths:
            self.train_items = self.select_train(
                self._train_lines(),
                _size,
                longest=("max_line_tokens", max_line_tokens),
                budget=("max_batch_tokens", max_batch_tokens),
                limit=self.limit,
            )
        self.lines = {
            name: self.train_items if name == "train" or overfit else self._eval_lines(name)
            for name in self.paths
        }
        self.sampler = self._make_sampler(
            self.train_items, max_batch_tokens, num_buckets=num_buckets, seed=seed
        )

    def texts(self, split: str) -> list[str]:
        """Return the lines of a split; of ``"train"``, those that training uses."""
        return [line.text for line in self.lines[self._known(split)]]

    def items(self, split: str, *, training: bool) -> TextDataset:
        """Return a split's lines; they are the same in training and in evaluation."""
        return TextDataset(self.lines[split])

    def eval_sampler(self, split: str) -> BucketBatchSampler:
        """Return the sampler of a split in evaluation: not shuffled, nothing left out."""
        return self._make_sampler(
            self.lines[split], self.eval_batch_tokens, shuffle=False, long_alone=True
        )

    def advice(self, split: str, *, training: bool) -> str:
        """Return what to do about lines of a split that cannot be encoded."""
        return f"Clean the text of {self.paths[split]}, or train the tokenizer on it"

    def _make_sampler(
        self, lines: Sequence[TextLine], max_tokens: int, **options: Any
    ) -> BucketBatchSampler:
        return BucketBatchSampler(
            [_size(line) for line in lines],
            max_batch_seconds=max_tokens,
            max_batch_size=self.max_batch_size,
            **options,
        )

    def _train_lines(self) -> list[TextLine]:
        encoded = list(self._encoded("train"))
        self.train_items = [entry for entry in encoded if isinstance(entry, TextLine)]
        failures = [entry for entry in encoded if isinstance(entry, Failure)]
        if not self.train_items:
            raise DataError(f"{self.paths['train']}: no line can be encoded: {failures[0].message}")
        self.note_failures(failures)
        return self.train_items

    def _eval_lines(self, split: str) -> list[TextLine]:
        encoded = list(self._encoded(split))
        problems = [f"{e.id}: {e.message}" for e in encoded if isinstance(e, Failure)]
        if problems:
            head = f"{self.paths[split]}: a score must not leave any line out"
            raise DataError(listing(head, problems, f"{self.advice(split, training=False)}."))
        return [entry for entry in encoded if isinstance(entry, TextLine)]

    def _encoded(self, split: str) -> Iterator[TextLine | Failure]:
        for name, text in read_texts(self.paths[split]):
            try:
                tokens = self.tokenizer.encode(text)
            except DataError as error:
                yield Failure(name, str(error))
                continue
            yield TextLine(name, text, torch.tensor(tokens, dtype=torch.int32))


def _size(line: TextLine) -> int:
    """Positions that a line takes: its labels and its end."""
    return len(line.tokens) + 1


def read_texts(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    r"""Read the texts of a file with the names of their places.

    Parameters
    ----------
    path : path
        A manifest (``.jsonl``), or a text file in UTF-8, one sentence a line, ``.gz`` or not.

    Returns
    -------
    list of (str, str)
        Id and text: of a manifest its own ids, of a text file ``<file name>:<line number>``. Lines
        without text are left out; white space at both ends too.

    Raises
    ------
    DataError
        When the file cannot be read, a manifest's row has no text, or there is no text at all.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt.gz"
    >>> _ = path.write_bytes(gzip.compress(b"one two\n\nthree\n"))
    >>> read_texts(path)
    [('a.txt.gz:1', 'one two'), ('a.txt.gz:3', 'three')]
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        texts = [(row.id, row.text) for row in read_manifest(path)]
        missing = [name for name, text in texts if text is None]
        if missing:
            advice = "Add it to them, or remove these rows."
            raise DataError(listing(f"{path}: {len(missing)} rows have no text", missing, advice))
        found = [(name, text.strip()) for name, text in texts if text and text.strip()]
    else:
        lines = ((n, line.strip()) for n, line in enumerate(read_lines(path), start=1))
        found = [(f"{path.name}:{number}", line) for number, line in lines if line]
    if not found:
        raise DataError(f"{path}: no text in it; give one sentence a line")
    return found


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Read the lines of a text file in UTF-8, ``.gz`` or not.

    Raises
    ------
    DataError
        When the file is missing, is no text (which line) or, compressed, is cut or damaged.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; prepare the text or correct the path") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: not a whole gzip file ({error}); fetch it again, or unpack it"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    # Bytes are split by "\n" alone: str.splitlines would also cut at U+2028 inside a sentence.
    lines = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not text in UTF-8 ({error.reason} at byte {error.start}); "
                "convert the file"
            ) from error
    return lines
