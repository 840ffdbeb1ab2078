"""Dynamic time warping: the cheapest way to walk through two sequences together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class WarpingPath(NamedTuple):
    """Which element of one sequence belongs to which of another.

    Attributes
    ----------
    first, second : np.ndarray
        Shape ``(K,)``, int64: the pairs, from the first of both to the last of both.
    cost : float
        Sum over the pairs; the mean is ``cost / len(first)``.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    cost: float


def warp(costs: npt.NDArray[np.float64]) -> WarpingPath:
    """Find the path of least cost, exactly (Sakoe & Chiba, 1978, without slope constraint).

    A step goes one on in either sequence or in both, and each pair on the way counts once. Of equal
    paths the one with steps in both is taken. Antidiagonals are computed at once: time and memory
    grow as ``N * M``, without a Python loop over either product.

    Parameters
    ----------
    costs : np.ndarray
        Shape ``(N, M)``, finite: what it costs to pair two elements.

    Returns
    -------
    WarpingPath
        At least ``max(N, M)`` and at most ``N + M - 1`` pairs.

    Raises
    ------
    ValueError
        Where there is nothing to pair, or a cost is not finite.

    References
    ----------
    Sakoe & Chiba (1978), "Dynamic programming algorithm optimization for spoken word recognition".

    Examples
    --------
    >>> x, y = np.array([0.0, 1.0, 5.0]), np.array([0.0, 0.0, 1.0, 5.0])
    >>> path = warp(np.abs(x[:, None] - y))
    >>> path.first.tolist(), path.second.tolist(), path.cost
    ([0, 0, 1, 2], [0, 1, 2, 3], 0.0)
    """
    if costs.ndim != 2 or 0 in costs.shape:
        raise ValueError(f"costs must be (N, M) with at least one pair, got {costs.shape}")
    if not np.isfinite(costs).all():
        place = tuple(int(n) for n in np.argwhere(~np.isfinite(costs))[0])
        raise ValueError(f"the cost at {place} is {costs[place]}")
    steps, cost = _walk(np.ascontiguousarray(costs, dtype=np.float64))
    first, second = _trace(steps)
    return WarpingPath(first, second, cost)


_BOTH, _FIRST, _SECOND = 0, 1, 2


def _walk(costs: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.uint8], float]:
    """Give the last step of the best path to each pair, and the whole path's cost.

    Antidiagonal ``k`` holds the pairs ``(i, k - i)``. Of two antidiagonals the sums are kept, at
    ``i + 1``, so that what lies before the first element is infinite and never taken.
    """
    rows, columns = costs.shape
    steps = np.zeros((rows, columns), dtype=np.uint8)
    before = np.full(rows + 1, np.inf)  # antidiagonal k - 2
    last = np.full(rows + 1, np.inf)  # antidiagonal k - 1
    before[0] = 0.0  # nothing costs nothing: where the first pair comes from
    for k in range(rows + columns - 1):
        low, high = max(0, k - columns + 1), min(rows, k + 1)
        i = np.arange(low, high)
        both = before[low:high]
        first = last[low:high]  # from (i - 1, j)
        second = last[low + 1 : high + 1]  # from (i, j - 1)
        one = np.minimum(first, second)
        step = np.where(first <= second, _FIRST, _SECOND)
        step[both <= one] = _BOTH
        steps[i, k - i] = step
        new = np.full(rows + 1, np.inf)
        new[low + 1 : high + 1] = np.minimum(both, one) + costs[i, k - i]
        before, last = last, new
    return steps, float(last[rows])


def _trace(
    steps: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Walk back from the last pair."""
    i, j = steps.shape[0] - 1, steps.shape[1] - 1
    pairs = [(i, j)]
    while i > 0 or j > 0:
        step = steps[i, j]
        i -= step != _SECOND
        j -= step != _FIRST
        pairs.append((i, j))
    first, second = np.array(pairs[::-1], dtype=np.int64).T
    return first, second
