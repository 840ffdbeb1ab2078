r"""Windows' estimates joined to sources, each in its place.

Long recordings go through in overlapping windows (`speechkit.models.windows`), and in each of them
a network may put the speakers in another order. So windows are joined like this::

    window 0  a |---------------------------|
              b |---------------------------|
    window 1                  b' |---------------------------|     order by likeness to a, b
                              a' |---------------------------|     over the whole overlap
                                 <- overlap ->
    a joined    |----- a -----------|\/|---- a' ------------|     cross-fade in its middle half

The outer quarters of the overlap, where one of the two windows lacks context, come from the other
one. Windows start on the encoder's frames. So a network whose receptive field is shorter than a
quarter of the overlap gives what it gives for the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from speechkit.losses.separation import permutation_invariant
from speechkit.models.windows import Plan, is_silent

_FAINT = 1e-3
"""An estimate 60 dB below the loudest one of its window says nothing about the order."""


class SourceJoiner:
    """Joins the estimates of overlapping windows, in the order of the first one's.

    Parameters
    ----------
    plan : Plan
        How the recording is cut.

    Examples
    --------
    >>> joiner = SourceJoiner(Plan(8000, 1, 4, 2))
    >>> x = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6],
    ...                   [9.0, 0, 9, 0, 9, 0, 9, 0, 9, 0, 9, 0]])
    >>> first = joiner.add(x[:, :8], x[:, :8].sum(0), is_last=False)
    >>> rest = joiner.add(x[:, 4:].flip(0), x[:, 4:].sum(0), is_last=True)  # speakers swapped
    >>> torch.equal(torch.cat([first, rest], dim=1)[:2], x)
    True
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._step = plan.step * plan.stride
        self._overlap = 2 * plan.half * plan.stride
        self._edge = self._overlap // 4
        # Coherent signals keep their level under weights that add up to 1.
        size = self._overlap - 2 * self._edge
        self._rise = torch.arange(1, size + 1) / (size + 1)
        self._tail: Tensor | None = None
        self._order: Tensor | None = None

    def add(self, estimates: Tensor, mixture: Tensor, *, is_last: bool) -> Tensor:
        """Take the next window's estimates ``(S, t)`` and mixture ``(t,)``; give what is final.

        Returns
        -------
        Tensor
            Shape ``(S + 1, t')``: the sources in order, and the mixture.
        """
        if self._order is None:
            self._order = torch.arange(len(estimates))
        if self._tail is not None:
            quiet = is_silent(mixture[: self._overlap], self.plan.sample_rate)
            self._order = match_order(
                self._tail[:-1], estimates[:, : self._overlap], self._order, silent=quiet
            )
        rows = torch.cat([estimates[self._order], mixture[None]])
        if self._tail is not None:
            rows[:, : self._overlap] = self._fade(self._tail, rows[:, : self._overlap])
        if is_last:
            return rows
        self._tail = rows[:, self._step :].clone()
        return rows[:, : self._step]

    def _fade(self, old: Tensor, new: Tensor) -> Tensor:
        inner = slice(self._edge, self._overlap - self._edge)
        # lerp is exact where both are equal
        middle = torch.lerp(old[:, inner], new[:, inner], self._rise)
        return torch.cat([old[:, : inner.start], middle, new[:, inner.stop :]], dim=1)


def match_order(
    previous: Tensor, following: Tensor, order: Tensor, *, silent: bool = False
) -> Tensor:
    """Find which of a window's estimates continues which source.

    The likeness of two signals is ``<x, y> / sqrt(|x| |y|)``: their cosine, weighted by the
    geometric mean of their levels. The cosine alone would take what leaks of a speaker into the
    estimate of a silent one for the speaker; the product alone is dominated by one estimate where
    the network makes it louder than the others.

    Parameters
    ----------
    previous : Tensor
        Shape ``(S, t)``: the sources on the overlap, joined so far.
    following : Tensor
        Shape ``(S, t)``: the next window's estimates there, as the network gives them.
    order : Tensor
        Shape ``(S,)``: the last window's order, kept where an estimate is silent (60 dB below the
        loudest) and nothing else speaks against it.
    silent : bool
        Whether nothing is heard: the order is kept.

    Returns
    -------
    Tensor
        Shape ``(S,)``: ``following[order]`` continues ``previous``.

    Examples
    --------
    >>> a, b = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    >>> before = torch.tensor([0, 1])
    >>> match_order(torch.stack([a, b]), torch.stack([b + 0.1 * a, a]), before).tolist()
    [1, 0]
    >>> match_order(torch.stack([a, b]), torch.zeros(2, 4), before).tolist()
    [0, 1]
    """
    if silent or len(order) == 1:
        return order
    x, y = following[order].double(), previous.double()
    x_level, y_level = x.norm(dim=1), y.norm(dim=1)
    heard = torch.outer(x_level > _FAINT * x_level.max(), y_level > _FAINT * y_level.max())
    levels = torch.outer(x_level, y_level).sqrt()
    likeness = torch.where(heard, (x @ y.T) / levels.clamp_min(1e-30), 0.0)
    likeness = likeness / likeness.abs().max().clamp_min(1e-30)
    keep = 1e-6 * torch.eye(len(order), dtype=torch.float64)  # decides between equals alone
    return order[permutation_invariant((likeness + keep).unsqueeze(0)).order[0]]


class MixtureGains:
    """Gathers, block by block, the gains by which sources add up to their mixture.

    Parameters
    ----------
    num_sources : int
        How many there are.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> gains = MixtureGains(2)
    >>> _ = list(gains.watch([torch.cat([x, 3 * x[:1] - 2 * x[1:]])]))
    >>> gains.solve().round(decimals=4).tolist()
    [[3.0], [-2.0]]
    """

    def __init__(self, num_sources: int) -> None:
        self.num_sources = num_sources
        self._products = torch.zeros(num_sources + 1, num_sources + 1, dtype=torch.float64)

    def watch(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pass blocks ``(S + 1, t)`` on, the mixture in the last row, and note their products."""
        for block in blocks:
            wide = block.double()
            self._products += wide @ wide.T
            yield block

    def solve(self) -> Tensor:
        """Give the gains ``(S, 1)``; 0 for a source that is silent throughout."""
        level = self._products.diagonal().sqrt()
        level = torch.where(level > 0, level, torch.ones_like(level))
        cosine = self._products / torch.outer(level, level)
        inverse = torch.linalg.pinv(cosine[:-1, :-1], hermitian=True, rtol=1e-9)
        gains = inverse @ cosine[:-1, -1] * level[-1] / level[:-1]
        return gains.float().unsqueeze(1)
