"""Trial lists in VoxCeleb's format, and their scores.

A line is ``<1 or 0> <first file> <second file>``: 1 where both are one speaker. Files are relative
to the corpus's root. The embedding model is a function: waveforms, each ``(T,)``, to ``(N, D)``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from speechkit.data.errors import DataError, listing
from speechkit.files import atomic_write
from speechkit.speakers.scores import pair_scores

Embed: TypeAlias = Callable[[list[Tensor]], Tensor]
"""Embeddings ``(N, D)`` of N waveforms ``(T,)`` at the model's rate."""


class Trial(NamedTuple):
    """Two files, and whether one speaker speaks in both."""

    target: bool
    first: str
    second: str


def read_trials(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> list[Trial]:
    """Read a trial list, and check that its files are there.

    Parameters
    ----------
    path : path
        A text file in the format above; empty lines are left out.
    root : path, optional
        The folder that the files are relative to. Without it they are not looked for.

    Returns
    -------
    list of Trial
        With the files as the list names them.

    Raises
    ------
    DataError
        When the list is unreadable or empty, lines have another format, or files are missing: each
        with its line number.

    Examples
    --------
    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "trials.txt"
    >>> write_trials(place, [Trial(True, "a/1.wav", "a/2.wav"), Trial(False, "a/1.wav", "b.wav")])
    >>> read_trials(place)[1]
    Trial(target=False, first='a/1.wav', second='b.wav')
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: the trial list cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a trial list: it is not UTF-8 text") from error
    trials: list[Trial] = []
    problems: list[str] = []
    missing: dict[str, int] = {}
    known: dict[str, bool] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            problems.append(f"line {number}: {line.strip()[:120]!r}")
            continue
        trials.append(Trial(fields[0] == "1", fields[1], fields[2]))
        for name in fields[1:] if root is not None else ():
            if name not in known:
                known[name] = Path(str(root), name).is_file()
            if not known[name]:
                missing.setdefault(name, number)
    if problems:
        raise DataError(
            listing(
                f"{path}: {len(problems)} lines are no trials",
                problems,
                "A line is '<1 or 0> <first file> <second file>', with no spaces in names",
            )
        )
    if missing:
        rows = [f"line {number}: {name}" for name, number in missing.items()]
        advice = f"Files are looked for under {root}: correct the root, or remove these trials"
        raise DataError(listing(f"{path}: {len(rows)} files do not exist", rows, advice))
    if not trials:
        raise DataError(f"{path}: the trial list is empty")
    return trials


def write_trials(path: str | os.PathLike[str], trials: Iterable[Trial]) -> None:
    """Write a trial list.

    Raises
    ------
    ValueError
        Where the name of a file is empty or holds white space, which the format cannot say.
    """
    lines = []
    for trial in trials:
        for name in trial[1:]:
            if len(name.split()) != 1 or name != name.strip():
                raise ValueError(f"a trial list cannot hold the file name {name!r}")
        lines.append(f"{int(trial.target)} {trial.first} {trial.second}\n")
    atomic_write(Path(path), "".join(lines))


def trial_files(trials: Iterable[Trial]) -> list[str]:
    """List the files of trials, each once.

    Examples
    --------
    >>> trial_files([Trial(True, "b", "a"), Trial(False, "a", "c")])
    ['b', 'a', 'c']
    """
    return list(dict.fromkeys(name for trial in trials for name in trial[1:]))


def trial_speakers(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """Find out who speaks on the two sides, for intervals that draw whole speakers.

    Files that a target trial joins, in one step or several, are one speaker's, who is called by
    one of the files. A speaker without any target trial counts as one speaker for each file.

    Raises
    ------
    DataError
        Where a trial says "different" of files that others say are one speaker's.

    Examples
    --------
    >>> trial_speakers([Trial(True, "a1", "a2"), Trial(False, "a2", "b1")])
    [('a1', 'a1'), ('a1', 'b1')]
    """
    parent = {name: name for name in trial_files(trials)}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for trial in trials:
        if trial.target:
            parent[find(trial.second)] = find(trial.first)
    pairs = [(find(trial.first), find(trial.second)) for trial in trials]
    for number, (trial, (a, b)) in enumerate(zip(trials, pairs), start=1):
        if not trial.target and a == b:
            raise DataError(
                f"trial {number} says that {trial.first} and {trial.second} are different "
                "speakers, but target trials join them; correct the list"
            )
    return pairs


def embed_files(
    files: Sequence[str],
    root: str | os.PathLike[str],
    embed: Embed,
    *,
    sample_rate: int,
    batch_size: int = 16,
) -> dict[str, Tensor]:
    """Compute the embedding of each file.

    Parameters
    ----------
    files : sequence of str
        Relative to the root.
    root : path
        The corpus.
    embed : callable
        As above.
    sample_rate : int
        Of the model, in Hz: files of other rates are resampled.
    batch_size : int
        Waveforms given at once; files of like size come together.

    Returns
    -------
    dict
        From file to embedding ``(D,)``, on the CPU.

    Raises
    ------
    DataError
        When a file is missing or unreadable, or its embedding is not finite.
    """
    from speechkit.data.audio import audio_info, read_audio

    root = Path(root)
    seconds = {}
    for name in dict.fromkeys(files):
        info = audio_info(root / name)
        seconds[name] = info.num_samples / info.sample_rate
    names = sorted(seconds, key=seconds.__getitem__)
    found: dict[str, Tensor] = {}
    for begin in range(0, len(names), batch_size):
        batch = names[begin : begin + batch_size]
        waveforms = [read_audio(root / name, sample_rate=sample_rate)[0] for name in batch]
        with torch.inference_mode():
            embeddings = embed(waveforms).detach().float().cpu()
        if embeddings.dim() != 2 or len(embeddings) != len(batch):
            raise ValueError(
                f"embed gave {tuple(embeddings.shape)} for {len(batch)} waveforms, not (N, D)"
            )
        for name, embedding in zip(batch, embeddings):
            if not bool(embedding.isfinite().all()) or not bool(embedding.any()):
                raise DataError(f"{root / name}: its embedding is zero or not finite")
            found[name] = embedding.clone()
    return {name: found[name] for name in seconds}


def score_trials(
    trials: Sequence[Trial],
    embeddings: Mapping[str, Tensor],
    score: Callable[[Tensor, Tensor], Tensor] = pair_scores,
    *,
    chunk: int = 65536,
) -> Tensor:
    """Score each trial.

    Parameters
    ----------
    trials : sequence of Trial
        What to compare.
    embeddings : mapping
        From file to ``(D,)``, as :func:`embed_files` gives.
    score : callable
        Two tensors ``(N, D)`` to ``(N,)``: the cosine, or ``pair_scores`` of
        `speechkit.speakers.scores.AdaptiveSNorm` or `speechkit.speakers.plda.Plda`.
    chunk : int
        How many trials are scored at once, which bounds the memory.

    Returns
    -------
    Tensor
        Shape ``(N,)``.

    Raises
    ------
    DataError
        Where there is no trial, or a trial's file has no embedding.

    Examples
    --------
    >>> embeddings = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    >>> score_trials([Trial(True, "a", "a"), Trial(False, "a", "b")], embeddings)
    tensor([1., 0.])
    """
    missing = [name for name in trial_files(trials) if name not in embeddings]
    if missing or not trials:
        raise DataError(
            f"{len(missing)} files of {len(trials)} trials have no embedding: {missing[:5]}"
        )
    names = list(embeddings)
    row = {name: number for number, name in enumerate(names)}
    table = torch.stack([embeddings[name] for name in names])
    sides = torch.tensor([[row[trial.first], row[trial.second]] for trial in trials])
    return torch.cat(
        [score(table[pairs[:, 0]], table[pairs[:, 1]]) for pairs in sides.split(chunk)]
    )


def trial_rows(trials: Sequence[Trial], scores: Tensor) -> list[dict[str, Any]]:
    """Make the rows that `speechkit.metrics.verification.summarize` takes.

    Examples
    --------
    >>> trial_rows([Trial(True, "a", "b")], torch.tensor([0.5]))
    [{'id': 'a b', 'score': 0.5, 'target': True}]
    """
    if scores.shape != (len(trials),):
        raise ValueError(f"{len(trials)} trials, but scores {tuple(scores.shape)}")
    rows = []
    for trial, score in zip(trials, scores.tolist()):
        if not math.isfinite(score):
            raise ValueError(f"the score of {trial.first} and {trial.second} is {score}")
        rows.append({"id": f"{trial.first} {trial.second}", "score": score, "target": trial.target})
    return rows
