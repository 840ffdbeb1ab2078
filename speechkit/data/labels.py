"""Labels of whole recordings: their set, their place in an item, their imbalance.

A model keeps the names of its labels in the order of its outputs
(`speechkit.models.classifier.SoundClassifier`), so that its folder needs nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from speechkit.data.errors import DataError, listing
from speechkit.data.manifest import Utterance, read_manifest
from speechkit.names import nearest
from speechkit.nn.masking import Padded

File = str | os.PathLike[str]
_SHOWN = 20


class LabelSet(Sequence[str]):
    """The labels of a task, each with its number; a sequence of their names.

    Parameters
    ----------
    names : sequence of str
        In the order of their numbers.

    Raises
    ------
    DataError
        If there is no name, one is empty, or one is there twice.

    Examples
    --------
    >>> labels = LabelSet(names=["cat", "dog"])
    >>> labels.encode("dog"), labels[0], len(labels)
    (1, 'cat', 2)
    >>> labels.encode("dgo")
    Traceback (most recent call last):
        ...
    speechkit.data.errors.DataError: label 'dgo' is not among the 2 labels of the model ...
    """

    def __init__(self, *, names: Sequence[str]) -> None:
        self.names = list(names)
        bad = [name for name in self.names if not isinstance(name, str) or not name]
        twice = sorted({name for name in self.names if self.names.count(name) > 1}, key=str)
        if not self.names or bad or twice:
            raise DataError(
                f"labels must be names, some, each once; not names: {bad[:_SHOWN]}, there twice: "
                f"{twice[:_SHOWN]}"
            )
        self._ids = {name: number for number, name in enumerate(self.names)}

    @classmethod
    def from_manifest(cls, path: File | Sequence[File], field: str = "label") -> LabelSet:
        """Collect the labels of one manifest, or of several, in alphabetical order.

        Parameters
        ----------
        path : path, or sequence of paths
            What is trained on.
        field : str
            Which field holds an utterance's label, or the list of its labels: ``"label"``,
            ``"emotion"``, ``"speaker"``.

        Raises
        ------
        DataError
            If rows lack the field; their ids are named.
        """
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        found: set[str] = set()
        for one in paths:
            for labels in _labels_of(one, read_manifest(one), field):
                found.update(labels)
        return cls(names=sorted(found))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.names[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def encode(self, name: str) -> int:
        """Return a label's number.

        Raises
        ------
        DataError
            For a label that is not of the set, with what is.
        """
        if name in self._ids:
            return self._ids[name]
        known = ", ".join(self.names[:_SHOWN]) + (", ..." if len(self) > _SHOWN else "")
        raise DataError(
            f"label {name!r} is not among the {len(self)} labels of the model "
            f"({known}){nearest(str(name), self.names) or '.'} Correct or remove the row, or train "
            "with data that has this label"
        )

    def multi_hot(self, names: Iterable[str]) -> Tensor:
        """Return a float tensor ``(C,)``: 1 for the labels named, 0 for the others.

        Examples
        --------
        >>> LabelSet(names=["cat", "dog", "rain"]).multi_hot(["rain", "cat"]).tolist()
        [1.0, 0.0, 1.0]
        """
        target = torch.zeros(len(self))
        for name in names:
            target[self.encode(name)] = 1.0
        return target


def labels_of(utterance: Utterance, field: str = "label") -> list[str]:
    """Return an utterance's labels; a single one is a list of one.

    Raises
    ------
    DataError
        If there is no label, or it is no name nor a list of names. A list may be empty: nothing
        that has a label is heard.

    Examples
    --------
    >>> labels_of(Utterance("a", "a.wav", 1.0, 16000, extra={"label": "dog"}))
    ['dog']
    """
    value = utterance.extra.get(field, getattr(utterance, field, None))
    if isinstance(value, str) and value:
        return [value]
    if isinstance(value, list) and all(isinstance(name, str) and name for name in value):
        return list(value)
    raise DataError(
        f"utterance {utterance.id!r} has no {field!r} (found {value!r}); it must be a name or a "
        "list of names: add it to the manifest's row, or remove the row"
    )


def _labels_of(path: File, rows: Iterable[Utterance], field: str) -> list[list[str]]:
    """Read the labels of all rows, or raise one error about all that have none."""
    found, problems = [], []
    for row in rows:
        try:
            found.append(labels_of(row, field))
        except DataError as error:
            problems.append(error)
    if problems:
        head = f"{os.fspath(path)}: {len(problems)} rows without labels"
        raise DataError(listing(head, problems, f"The field asked for is {field!r}."))
    return found


def check_labels(
    labels: Sequence[str], manifests: Mapping[str, File], *, field: str = "label"
) -> None:
    """Refuse manifests with labels that a model does not know, before anything is computed.

    Parameters
    ----------
    labels : LabelSet or sequence of str
        What the model knows.
    manifests : mapping of name to path
        The splits.
    field : str
        Which field holds the labels.

    Raises
    ------
    DataError
        Naming each split's unknown labels, and in how many rows they are.
    """
    known, problems = set(labels), []
    for split, path in manifests.items():
        counts: dict[str, int] = {}
        for names in _labels_of(path, read_manifest(path), field):
            for name in names:
                if name not in known:
                    counts[name] = counts.get(name, 0) + 1
        problems += [
            f"{split}: {name!r}, in {count} row{'s' if count > 1 else ''} of {os.fspath(path)}"
            for name, count in sorted(counts.items())
        ]
    if problems:
        raise DataError(
            listing(
                f"{len(problems)} labels that were not in training, where there were "
                f"{', '.join(sorted(known)[:_SHOWN])}{', ...' if len(known) > _SHOWN else ''}:",
                problems,
                "Correct or remove these rows, or train with data that has these labels",
            )
        )


class EncodeLabel:
    """Set ``"label"``: an int64 number, or with ``multi_label`` a float tensor ``(C,)``.

    A batch's labels become targets by `as_targets`.

    Parameters
    ----------
    labels : LabelSet or sequence of str
        The labels in the order of the model's outputs.
    field : str
        Which field of the utterance holds its label, or the list of its labels.
    multi_label : bool
        Whether an utterance has any number of labels.

    Examples
    --------
    >>> encode = EncodeLabel(labels=["cat", "dog"])
    >>> utterance = Utterance("a", "a.wav", 1.0, 16000, extra={"label": "dog"})
    >>> encode({"utterance": utterance}, torch.Generator())["label"]
    tensor(1)
    """

    def __init__(
        self, *, labels: Sequence[str], field: str = "label", multi_label: bool = False
    ) -> None:
        self.labels = labels if isinstance(labels, LabelSet) else LabelSet(names=labels)
        self.field = field
        self.multi_label = multi_label

    def __call__(self, item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Encode the label; `DataError` where it is missing, unknown, or not the only one."""
        names = labels_of(item["utterance"], self.field)
        if self.multi_label:
            return {**item, "label": self.labels.multi_hot(names)}
        if len(names) != 1:
            raise DataError(
                f"{len(names)} labels {names} under {self.field!r}, wanted is one: correct the "
                "row, or train with multi_label"
            )
        return {**item, "label": torch.tensor(self.labels.encode(names[0]))}


def as_targets(label: Tensor | Padded, num_labels: int) -> Tensor:
    """Turn a batch's labels into float targets ``(B, C)``.

    Parameters
    ----------
    label : Tensor or Padded
        Of a batch whose items went through `EncodeLabel`: numbers ``(B,)``, or ``(B, C)``.
    num_labels : int
        ``C``.

    Raises
    ------
    ValueError
        If a number is not below ``num_labels``, or there is another number of columns.

    Examples
    --------
    >>> as_targets(torch.tensor([1]), 3).tolist()
    [[0.0, 1.0, 0.0]]
    """
    data = label.data if isinstance(label, Padded) else label
    if data.dim() == 1:
        if len(data) and not 0 <= int(data.min()) <= int(data.max()) < num_labels:
            raise ValueError(f"labels {data.tolist()} must lie in 0 .. {num_labels - 1}")
        return torch.nn.functional.one_hot(data.long(), num_labels).float()
    if data.dim() != 2 or data.shape[1] != num_labels:
        raise ValueError(f"expected labels (B, {num_labels}), got {tuple(data.shape)}")
    return data.float()


def class_weights(
    manifest: File,
    labels: Sequence[str],
    *,
    field: str = "label",
    multi_label: bool = False,
    power: float = 1.0,
) -> Tensor:
    """Weigh rare labels more, for `speechkit.losses.classification.classification_loss`.

    With n of N utterances of a label, and C labels: ``(N / (C n)) ** power``, so that at power 1
    all labels count alike and the mean weight of an utterance is 1. With ``multi_label`` it is the
    weight of a label's presence against its absence, ``((N - n) / n) ** power``.

    Parameters
    ----------
    manifest : path
        What is trained on.
    labels : LabelSet or sequence of str
        In the order of the model's outputs.
    field : str
        Which field holds the labels.
    multi_label : bool
        Whether an utterance has any number of labels.
    power : float
        0 for no weights, 1 for full ones.

    Returns
    -------
    Tensor
        Shape ``(C,)``.

    Raises
    ------
    DataError
        If a label has no utterance, or with ``multi_label`` is on all of them.
    ValueError
        If ``power`` is not in [0, 1].

    Examples
    --------
    >>> import tempfile
    >>> from speechkit.data.manifest import write_manifest
    >>> path = f"{tempfile.mkdtemp()}/train.jsonl"
    >>> rows = [Utterance(f"{n}", "-", 1.0, 8000, extra={"label": "ab"[n > 0]}) for n in range(4)]
    >>> write_manifest(path, rows)
    >>> [round(x, 3) for x in class_weights(path, ["a", "b"]).tolist()]
    [2.0, 0.667]
    """
    if not 0.0 <= power <= 1.0:
        raise ValueError(f"power must be in [0, 1], got {power}")
    known = labels if isinstance(labels, LabelSet) else LabelSet(names=labels)
    rows = _labels_of(manifest, read_manifest(manifest), field)
    counts = torch.zeros(len(known), dtype=torch.float64)
    for names in rows:
        for name in set(names):
            counts[known.encode(name)] += 1
    without = [known[i] for i in range(len(known)) if counts[i] == 0]
    everywhere = [known[i] for i in range(len(known)) if multi_label and counts[i] == len(rows)]
    if without or everywhere:
        raise DataError(
            f"{os.fspath(manifest)}: no weight can be given to labels without utterances "
            f"({', '.join(without[:_SHOWN]) or 'none'}) or on all of them "
            f"({', '.join(everywhere[:_SHOWN]) or 'none'}): leave these labels out, or the weights"
        )
    ratio = (len(rows) - counts) / counts if multi_label else len(rows) / (len(known) * counts)
    return ratio.pow(power).float()
