"""Resampling of audio that comes in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.data.audio import _ratio, resample


class StreamResampler:
    """Gives, piece by piece, what `speechkit.data.audio.resample` gives for the whole.

    Parameters
    ----------
    orig_rate, new_rate : int
        Samples a second, before and after.

    Examples
    --------
    >>> resampler = StreamResampler(8000, 16000)
    >>> x = torch.randn(1000)
    >>> parts = [resampler.push(x[:300]), resampler.push(x[300:]), resampler.finish()]
    >>> torch.allclose(torch.cat(parts), resample(x, 8000, 16000), atol=1e-5)
    True
    """

    def __init__(self, orig_rate: int, new_rate: int) -> None:
        self.orig_rate = orig_rate
        self.new_rate = new_rate
        self._orig, self._new = _ratio(orig_rate, new_rate)
        # Wider than the kernel (6 zero crossings at the lower rate); pieces begin at multiples of
        # `orig` samples, where the kernel's phase is 0.
        reach = 0 if self._orig == self._new else -(-8 * max(self._orig, self._new) // self._new)
        self._margin = -(-reach // self._orig)  # in periods of `orig` samples
        self._buffer = torch.zeros(0)
        self._first = 0  # period at which the buffer begins
        self._done = 0  # periods given

    @property
    def lookahead(self) -> float:
        """Seconds of input that an output sample waits for."""
        return (self._margin + 1) * self._orig / self.orig_rate if self._margin else 0.0

    def push(self, samples: Tensor) -> Tensor:
        """Take ``(t,)`` samples; give those that are settled."""
        self._buffer = torch.cat([self._buffer, samples])
        ready = self._first + len(self._buffer) // self._orig - self._margin
        return self._give(ready * self._new) if ready > self._done else samples.new_zeros(0)

    def finish(self) -> Tensor:
        """Give the rest."""
        total = self._first * self._orig + len(self._buffer)
        if not len(self._buffer):
            return self._buffer
        return self._give(-(-total * self._new // self._orig))

    def _give(self, end: int) -> Tensor:
        """Give the output up to sample ``end`` and forget what is no longer needed."""
        begin = self._first * self._new
        out = resample(self._buffer, self._orig, self._new)
        out = out[self._done * self._new - begin : end - begin]
        self._done = end // self._new
        first = max(0, self._done - self._margin)
        self._buffer = self._buffer[(first - self._first) * self._orig :].clone()
        self._first = first
        return out
