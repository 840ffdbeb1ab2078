"""Dynamic time warping against all paths there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from speechkit.metrics.dtw import warp


def all_paths(rows: int, columns: int) -> Iterator[list[tuple[int, int]]]:
    """Give every path from the first pair to the last."""
    if rows == columns == 1:
        yield [(0, 0)]
        return
    for step in ((1, 1), (1, 0), (0, 1)):
        if rows > step[0] and columns > step[1]:
            for path in all_paths(rows - step[0], columns - step[1]):
                yield [*path, (rows - 1, columns - 1)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (3, 5), (5, 4), (5, 5)])
def test_it_is_the_cheapest_of_all_paths(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(shape))
    paths = list(all_paths(*shape))
    for _ in range(5):
        costs = rng.random(shape)
        want = min(paths, key=lambda path: sum(costs[pair] for pair in path))
        found = warp(costs)
        assert list(zip(found.first.tolist(), found.second.tolist())) == want
        assert found.cost == pytest.approx(sum(costs[pair] for pair in want))


def test_of_equal_paths_the_short_one() -> None:
    found = warp(np.zeros((4, 6)))
    assert len(found.first) == 6
    assert found.cost == 0.0


def test_long_sequences() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)).cumsum(axis=0)
    stretched = x.repeat(rng.integers(1, 4, size=300), axis=0)
    found = warp(np.abs(x[:, None] - stretched).sum(axis=2))
    assert found.cost == 0.0
    np.testing.assert_array_equal(x[found.first], stretched[found.second])


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one pair, got \(0, 3\)"):
        warp(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"the cost at \(1, 0\) is nan"):
        warp(np.array([[0.0, 1.0], [np.nan, 1.0]]))
