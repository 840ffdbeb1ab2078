"""CTC prefix beam search without a language model.

Peaked posteriors are those of a trained recogniser: a token every few frames, blanks between.
Soft ones are less sure, as
on hard audio; flat ones are those of an untrained one, where little can be pruned.

- ``same``: both sides count a beam alike (``beam_unit="ending"``) and return the whole beam; the
  n-best lists are compared before the timing (in float64, so that no tie depends on rounding).
- ``default``: each with its own defaults, one best hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from speechkit.decoding.ctc import PrefixBeamSearch
from speechkit.decoding.hypothesis import Hypothesis
from tools.benchmarks.measure import Bench, Contest, Measurement, Target, peer

TOLERANCE = 1e-4
Scored = list[tuple[str, float]]
Search = Callable[[Tensor], object]


@dataclass(frozen=True)
class Sizes:
    """Frames, and what is combined."""

    frames: int = 500
    vocabularies: tuple[int, ...] = (30, 500)
    beams: tuple[int, ...] = (10, 100)
    kinds: tuple[str, ...] = ("peaked", "soft", "flat")
    settings: tuple[str, ...] = ("same", "default")


FULL = Sizes()
QUICK = Sizes(frames=100, vocabularies=(30,), beams=(10,))
MARGINS = {"peaked": 12.0, "soft": 6.0}  # of the spoken label over the noise, in nats


@dataclass(frozen=True)
class Rival:
    """A peer's search.

    Attributes
    ----------
    name : str
        Of the peer.
    make : callable
        From (vocabulary, beam size, hypotheses) to a search of ``(T, V)`` log-probabilities;
        None where the peer is not installed.
    scored : callable
        From what the search returns to texts and scores, the best first.
    target : Target
        The ratio to reach.
    """

    name: str
    make: Callable[[int, int, int], Search] | None
    scored: Callable[[object], Scored]
    target: Target


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure every combination against SpeechBrain and pyctcdecode."""
    rivals = [_speechbrain(), _pyctcdecode()]
    for setting in sizes.settings:
        for vocabulary in sizes.vocabularies:
            for kind in sizes.kinds:
                exact = posteriors(kind, vocabulary, sizes.frames)
                for beam in sizes.beams:
                    case = f"{kind}, {vocabulary} tokens, beam {beam}, {setting}"
                    for rival in rivals:
                        yield _contest(bench, rival, case, exact, beam, setting == "same")


def _contest(
    bench: Bench, rival: Rival, case: str, exact: Tensor, beam: int, same: bool
) -> Measurement:
    vocabulary = exact.shape[1]
    nbest = beam if same else 1
    search = our_search(beam, nbest, "ending" if same else "prefix")
    theirs = rival.make and rival.make(vocabulary, beam, nbest)
    difference = ""
    if same and theirs is not None:
        mine = our_scores(search(exact), vocabulary)
        difference = disagreement(mine, rival.scored(theirs(exact)))
    log_probs = exact.float()
    contest = Contest(
        "ctc_search",
        case,
        rival.name,
        lambda: search(log_probs),
        theirs and (lambda: theirs(log_probs)),
        rival.target,
        calls=1 if case.startswith("flat") else 5,
    )
    return bench.compare(contest, note=difference, failed=bool(difference), on_cpu=True)


def posteriors(kind: str, vocabulary: int, frames: int) -> Tensor:
    """Make log-probabilities ``(T, V)`` in float64 of a kind; blank is 0."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(frames, vocabulary, generator=generator, dtype=torch.float64)
    if kind in MARGINS:
        path = torch.zeros(frames, dtype=torch.long)
        gaps = torch.randint(4, 9, (frames,), generator=generator)
        starts = gaps.cumsum(0)
        starts = starts[starts < frames]
        path[starts] = torch.randint(1, vocabulary, (len(starts),), generator=generator)
        longer = starts[(starts % 5 < 2) & (starts + 1 < frames)]
        path[longer + 1] = path[longer]
        logits[torch.arange(frames), path] += MARGINS[kind]
    return logits.log_softmax(-1)


def symbols(vocabulary: int) -> list[str]:
    """Return the blank and single letters; no space, on whose runs the peers merge."""
    return ["", *(chr(0x4E00 + n) for n in range(vocabulary - 1))]


def our_search(beam: int, nbest: int, unit: str) -> Callable[[Tensor], list[Hypothesis]]:
    """Return our search as a function of ``(T, V)``."""
    search = PrefixBeamSearch(beam_size=beam, nbest=nbest, beam_unit=unit)  # type: ignore[arg-type]
    return lambda log_probs: search(log_probs[None], torch.tensor([len(log_probs)]))[0]


def our_scores(hypotheses: list[Hypothesis], vocabulary: int) -> Scored:
    """Return texts and scores."""
    names = symbols(vocabulary)
    return [("".join(names[n] for n in one.tokens), one.score) for one in hypotheses]


def disagreement(ours: Scored, theirs: Scored) -> str:
    """Say where two n-best lists differ; nothing where they are the same.

    Examples
    --------
    >>> disagreement([("a", -1.0)], [("a", -1.0)])
    ''
    >>> disagreement([("a", -1.0)], [("a", -1.5)])
    'n-best differs at rank 1: score -1.00000 against -1.50000'
    """
    if len(ours) != len(theirs):
        return f"n-best differs: {len(ours)} hypotheses against {len(theirs)}"
    for rank, ((text, score), (other, their_score)) in enumerate(zip(ours, theirs), 1):
        if abs(score - their_score) > TOLERANCE:
            return f"n-best differs at rank {rank}: score {score:.5f} against {their_score:.5f}"
        if text != other:
            return f"n-best differs at rank {rank}: {text!r} against {other!r}"
    return ""


def _speechbrain() -> Rival:
    module = peer("speechbrain.decoders.ctc")

    def make(vocabulary: int, beam: int, nbest: int) -> Search:
        assert module is not None
        searcher = module.CTCBeamSearcher(
            blank_index=0,
            vocab_list=symbols(vocabulary),
            beam_size=beam,
            topk=nbest,
            prune_history=False,
        )
        return lambda log_probs: searcher(log_probs[None], torch.ones(1))[0]

    def scored(beams: object) -> Scored:
        return [(one.text, float(one.score)) for one in beams]  # type: ignore[attr-defined]

    return Rival("speechbrain", make if module else None, scored, Target(ratio=2.0))


def _pyctcdecode() -> Rival:
    module = peer("pyctcdecode")

    def make(vocabulary: int, beam: int, nbest: int) -> Search:
        assert module is not None
        decoder = module.build_ctcdecoder(symbols(vocabulary))
        return lambda log_probs: decoder.decode_beams(
            log_probs.numpy(), beam_width=beam, prune_history=False
        )

    def scored(beams: object) -> Scored:
        return [(one[0], float(one[-2])) for one in beams]  # type: ignore[attr-defined]

    return Rival("pyctcdecode", make if module else None, scored, Target(ratio=1.0))
