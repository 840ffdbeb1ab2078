"""Alignments of synthesized speech: what is wrong with them is found, and nothing else."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from speechkit.metrics.attention import (
    AlignmentReport,
    Stretch,
    _best_pass,
    alignment_diagonality,
    check_alignment,
)

SYMBOLS = 20


def glide(frames: int, symbols: int = SYMBOLS, width: float = 0.7) -> Tensor:
    """Give the alignment of a bell that moves at an even pace."""
    center = torch.linspace(0, symbols - 1, frames).unsqueeze(1)
    return torch.softmax(-(torch.arange(symbols) - center).square() / (2 * width**2), dim=1)


def spoken(*symbols: int, frames: int = 5, blur: float = 0.1) -> Tensor:
    """Give the alignment of these symbols in turn, a little blurred."""
    hard = torch.eye(SYMBOLS)[list(symbols)].repeat_interleave(frames, dim=0)
    return (1 - blur) * hard + blur / SYMBOLS


def check(alignment: Tensor, **options: int) -> AlignmentReport:
    return check_alignment(alignment, *alignment.shape, **options)


@pytest.mark.parametrize("frames", [25, 60, 400])
@pytest.mark.parametrize("width", [0.2, 0.7, 1.2])
def test_good_speech(frames: int, width: float) -> None:
    report = check(glide(frames, width=width))
    assert report.ok
    assert report.problems() == []
    assert report.coverage == 1.0
    assert report.diagonality > 0.95
    assert 0.75 < report.score <= 1.0


def test_an_uneven_pace_and_a_pause_are_no_fault() -> None:
    stays = [3, 9, 2, 12, 1, 5, 40, 4, 6, 2] * 2
    alignment = torch.eye(SYMBOLS).repeat_interleave(torch.tensor(stays), dim=0)
    report = check(alignment)
    assert report.ok
    assert report.score == 1.0


def test_skipped_symbols_are_named() -> None:
    report = check(spoken(*range(6), *range(9, 20)))
    assert report.skipped == (Stretch(6, 8, 30, 30),)
    assert not report.repeated
    assert not report.stalled
    assert report.coverage == pytest.approx(17 / 20)
    assert report.problems("abcdefghijklmnopqrst") == ["skipped: symbols 6 to 8 ('ghi')"]
    # One alone may be silent; of words it is not.
    one = spoken(*range(6), *range(7, 20))
    assert check(one).ok
    assert check(one, min_skip=1).problems() == ["skipped: symbol 6"]
    assert check(one).coverage == pytest.approx(19 / 20)


def test_speech_that_ends_early() -> None:
    report = check(spoken(*range(12)))
    assert report.skipped == (Stretch(12, 19, 60, 60),)
    assert report.score < 0.6


def test_repeated_symbols_are_found_once() -> None:
    report = check(spoken(*range(10), *range(5, 20)))
    assert not report.skipped
    assert not report.stalled
    (found,) = report.repeated
    assert found.stop - found.start == 20  # one symbol of the second round is the one it stayed at
    assert found.first >= 5
    assert found.last <= 9
    assert report.score < 0.9
    assert re.fullmatch(r"repeated: symbols \d to \d in frames \d+ to \d+", report.problems()[0])


def test_going_back_by_one_symbol() -> None:
    alignment = spoken(*range(10), 9, 8, 9, *range(10, 20))
    assert check(alignment).ok
    assert len(check(alignment, min_repeat=1).repeated) == 1
    # A glance elsewhere, shorter than a symbol, is nobody's word.
    glance = spoken(*range(20))
    glance[42] = glance[10]
    assert check(glance).ok


def test_stalls_at_the_end_and_on_the_way() -> None:
    end = check(spoken(*range(20), *[19] * 15))
    assert end.stalled == (Stretch(19, 19, 95, 175),)
    assert end.problems() == ["stalled: 80 frames at symbol 19"]
    assert end.score == pytest.approx(end.order * end.coverage * (1 - 20 / 175))
    way = check(spoken(*range(8), *[7] * 20, *range(8, 20)))
    assert [(s.first, s.stop - s.start) for s in way.stalled] == [(7, 105)]
    assert check(spoken(*range(20), *[19] * 10)).ok  # 55 frames


def test_attention_that_is_lost() -> None:
    flat = check(torch.full((200, SYMBOLS), 1 / SYMBOLS))
    assert flat.problems()[0] == "lost: only 0.10 of the weight lies on one pass"
    assert flat.score <= 3 / SYMBOLS
    stuck = check(spoken(*[3] * 40))
    assert stuck.coverage == pytest.approx(3 / 20)  # with what is spread over its neighbours
    assert not stuck.ok
    generator = torch.Generator().manual_seed(0)
    stray = check(torch.softmax(4 * torch.randn(200, SYMBOLS, generator=generator), dim=1))
    assert not stray.ok
    assert stray.score < 0.5
    backward = check(glide(200).flip(0))
    assert backward.diagonality < -0.9
    assert backward.score < 0.3


def test_the_score_falls_with_the_fault() -> None:
    scores = [check(spoken(*range(10 - n), *range(10 + n, 20))).score for n in range(5)]
    assert all(after < before for before, after in itertools.pairwise(scores))


def test_padding_changes_nothing() -> None:
    alignment = spoken(*range(10), *range(5, 20))
    padded = torch.full((130, 31), math.nan)
    padded[:125, :SYMBOLS] = alignment
    assert check_alignment(padded, 125, SYMBOLS) == check(alignment)


def test_tiny_alignments() -> None:
    report = check_alignment(torch.zeros(0, 3), 0, 3)
    assert (report.score, report.problems("abc")) == (0.0, ["skipped: symbols 0 to 2 ('abc')"])
    one = check(torch.ones(5, 1))
    assert (one.score, one.ok) == (1.0, True)
    assert math.isnan(one.diagonality)


@pytest.mark.parametrize(
    ("alignment", "frames", "symbols", "message"),
    [
        (torch.ones(1, 3, 3), 3, 3, "must be (T, U), of one item, got (1, 3, 3)"),
        (torch.ones(3, 3), 4, 3, "4 frames and 3 symbols do not fit an alignment of shape (3, 3)"),
        (torch.ones(3, 3), 3, 0, "at least one symbol is needed"),
        (torch.tensor([[1.0, 0.0], [0.5, math.nan]]), 2, 2, "(frame, symbol) (1, 1) is nan"),
        (torch.tensor([[1.0, -0.5]]), 1, 2, "(frame, symbol) (0, 1) is -0.5"),
    ],
)
def test_refused(alignment: Tensor, frames: int, symbols: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_alignment(alignment, frames, symbols)


def test_the_best_pass_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        weights = rng.random((5, 4))
        paths = itertools.combinations_with_replacement(range(4), 5)
        want = max(paths, key=lambda path: weights[range(5), path].sum())
        assert tuple(_best_pass(weights)) == want


def test_numbers_of_a_batch_are_those_of_the_items() -> None:
    items = [glide(60), spoken(*range(12))[:, :15], spoken(*range(6), *range(9, 20))]
    lengths = torch.tensor([len(item) for item in items])
    symbols = torch.tensor([item.shape[1] for item in items])
    batch = torch.full((3, int(lengths.max()) + 4, SYMBOLS + 2), math.nan)
    for place, item in zip(batch, items):
        place[: len(item), : item.shape[1]] = item
    for function, name in ((alignment_diagonality, "diagonality"),):
        values = function(batch, lengths, symbols)
        wanted = [getattr(check(item), name) for item in items]
        assert values.tolist() == pytest.approx(wanted, abs=1e-5)
