"""DER against its definition moment by moment, with every mapping tried, and md-eval's rules."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.metrics.diarization import (
    DiarizationErrors,
    Turn,
    _largest_assignment,
    diarization_errors,
    speaker_mapping,
    summarize,
)

GRID = 4  # brute force counts quarters of a second


def turns_of(names: str, most: int) -> st.SearchStrategy[list[Turn]]:
    """Turns on a grid of one second, which overlap in every way, also with themselves."""
    turn = st.tuples(st.integers(0, 11), st.integers(1, 6), st.sampled_from(names))
    return st.lists(turn.map(lambda x: Turn(x[0], x[0] + x[1], x[2])), max_size=most)


def brute_force(reference, hypothesis, collar, skip_overlap, regions):
    """Each quarter of a second by the definition; the mapping is the best of all."""

    def at(turns, t):
        return {turn.speaker for turn in turns if turn.start <= t < turn.end}

    middles = [(k + 0.5) / GRID for k in range(-2 * GRID, 20 * GRID)]
    middles = [t for t in middles if any(start <= t < end for start, end in regions)]
    ours = sorted({turn.speaker for turn in reference})
    theirs = sorted({turn.speaker for turn in hypothesis})
    padded = [*theirs, *[None] * len(ours)]
    shared = {
        (r, h): sum(r in at(reference, t) and h in at(hypothesis, t) for t in middles)
        for r in ours
        for h in theirs
    }
    choices = [dict(zip(ours, p)) for p in set(itertools.permutations(padded, len(ours)))]
    values = [sum(shared.get(pair, 0) for pair in choice.items()) for choice in choices]
    best = [choice for choice, value in zip(choices, values) if value == max(values)]
    edges = [t for turn in reference for t in turn[:2]]
    scored = [
        t
        for t in middles
        if all(abs(t - edge) >= collar for edge in edges)
        and not (skip_overlap and len(at(reference, t)) > 1)
    ]
    found = set()
    for choice in best:  # as good as each other: any of them may be chosen
        counts = np.zeros(4, dtype=int)
        for t in scored:
            here, there = at(reference, t), at(hypothesis, t)
            right = sum(choice[r] in there for r in here)
            missed, extra = max(len(here) - len(there), 0), max(len(there) - len(here), 0)
            counts += [len(here), missed, extra, min(len(here), len(there)) - right]
        found.add(tuple((counts / GRID).tolist()))
    return found


@given(
    turns_of("abc", 6).filter(bool),
    turns_of("wxyz", 6),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.booleans(),
    st.sampled_from([None, [(0.0, 18.0)], [(1.0, 5.0), (7.0, 20.0)]]),
)
def test_matches_the_definition_moment_by_moment(ref, hyp, collar, skip_overlap, regions):
    found = diarization_errors(ref, hyp, collar=collar, skip_overlap=skip_overlap, regions=regions)
    extent = [(min(t.start for t in ref), max(t.end for t in ref))]
    wanted = brute_force(ref, hyp, collar, skip_overlap, regions or extent)
    values = (found.total, found.missed, found.false_alarm, found.confusion)
    assert any(values == pytest.approx(want, abs=1e-9) for want in wanted), (values, wanted)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**31))
def test_assignment_is_the_best_of_all(rows, columns, seed):
    weights = np.random.default_rng(seed).integers(0, 6, size=(rows, columns)).astype(float)
    pairs = _largest_assignment(weights)
    assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == len(pairs)
    assert all(weights[pair] > 0 for pair in pairs)
    wide = weights if rows <= columns else weights.T
    every = itertools.permutations(range(wide.shape[1]), wide.shape[0])
    best = max(sum(wide[r, c] for r, c in enumerate(choice)) for choice in every)
    assert sum(weights[pair] for pair in pairs) == best


def test_assignment_of_many_speakers_against_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    weights = np.random.default_rng(0).random((40, 60))
    rows, columns = optimize.linear_sum_assignment(weights, maximize=True)
    found = sum(weights[pair] for pair in _largest_assignment(weights))
    assert found == pytest.approx(weights[rows, columns].sum(), abs=1e-9)


def test_the_mapping_is_found_before_the_collar_is_left_out():
    """The rule of md-eval: all that "a" shares with "1" lies in the collar, yet they are paired."""
    reference = [Turn(0, 1, "a"), Turn(1.8, 2.8, "a"), Turn(3.6, 4.4, "a"), Turn(10, 20, "b")]
    hypothesis = [Turn(0, 0.5, "1"), Turn(1.8, 2.3, "1"), Turn(3.6, 4.1, "1"), Turn(0.5, 1, "2")]
    assert speaker_mapping(reference, hypothesis) == {"1": "a"}
    full = diarization_errors(reference, hypothesis)
    assert full.confusion == pytest.approx(0.5)
    inner = diarization_errors(reference, hypothesis, collar=0.5)
    assert (inner.total, inner.missed, inner.confusion) == pytest.approx((9.0, 9.0, 0.0))


def test_known_values_with_collar_and_overlap():
    """md-eval's own way on paper: 4 s of "a", 2 s of both, 4 s of "b", found 1 s late."""
    reference = [Turn(0, 6, "a"), Turn(4, 10, "b")]
    hypothesis = [Turn(0, 5, "x"), Turn(5, 11, "y")]
    plain = diarization_errors(reference, hypothesis)
    assert plain == DiarizationErrors(total=12.0, missed=2.0, false_alarm=0.0, confusion=0.0)
    assert plain.rate == pytest.approx(100 * 2 / 12)
    late = diarization_errors(reference, hypothesis, regions=[(0, 11)])
    assert (late.total, late.missed, late.false_alarm) == (12.0, 2.0, 1.0)
    collar = diarization_errors(reference, hypothesis, collar=0.25)
    # Edges at 0, 4, 6 and 10: 3.5 s of "a", 1.5 s of both, 3.5 s of "b".
    assert (collar.total, collar.missed) == pytest.approx((10.0, 1.5))
    single = diarization_errors(reference, hypothesis, collar=0.25, skip_overlap=True)
    assert (single.total, single.errors) == pytest.approx((7.0, 0.0))


def test_one_speaker_for_all_costs_the_smaller_speakers():
    reference = [Turn(0, 6, "a"), Turn(6, 10, "b")]
    errors = diarization_errors(reference, [Turn(0, 10, "all")])
    assert errors == DiarizationErrors(total=10.0, confusion=4.0)
    assert speaker_mapping(reference, [Turn(0, 10, "all")]) == {"all": "a"}


def test_nothing_found_and_nothing_to_find():
    assert diarization_errors([Turn(0, 5, "a")], []).rate == 100.0
    assert diarization_errors([], [], regions=[(0, 5)]).rate == 0.0
    assert diarization_errors([], [Turn(0, 1, "x")], regions=[(0, 5)]).rate == math.inf
    assert diarization_errors([], [Turn(6, 7, "x")], regions=[(0, 5)]).rate == 0.0
    with pytest.raises(ValueError, match="give regions"):
        diarization_errors([], [Turn(0, 1, "x")])


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ([Turn(2, 1, "a")], {}, "ends before"),
        ([Turn(0, math.nan, "a")], {}, "ends before"),
        ([Turn(0, 1, "a")], {"collar": -0.1}, "collar"),
        ([Turn(0, 1, "a")], {"regions": [(3, 1)]}, "region"),
    ],
)
def test_bad_turns_are_named(reference, options, message):
    with pytest.raises(ValueError, match=message):
        diarization_errors(reference, [], **options)


def test_rows_become_pooled_rates():
    rows = [
        {"id": "a", "reference": [[0, 9, "x"]], "hypothesis": [[0, 9, "1"]]},
        {"id": "b", "reference": [[0, 1, "x"]], "hypothesis": [], "regions": [[0, 2]]},
    ]
    values = {r.metric: (r.value, r.count) for r in summarize(rows)}
    assert values["DER"] == (pytest.approx(10.0), 2)  # by time, not by recording
    assert values["DER (collar 0.25 s)"] == (pytest.approx(100 * 0.5 / 9), 2)
    assert values["missed"] == (pytest.approx(10.0), 2)
    assert values["false alarm"] == values["confusion"] == (0.0, 2)
    with pytest.raises(ValueError, match=r"row 2 \(id 'b'\).*reference"):
        summarize([rows[0], {"id": "b", "hypothesis": []}])
    with pytest.raises(ValueError, match=r"row 1 \(id 'a'\)"):
        summarize([{**rows[0], "hypothesis": [[0, 9]]}])
    with pytest.raises(ValueError, match="no speaking time"):
        summarize([])
