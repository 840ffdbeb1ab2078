"""Features and normalisation of a recording that comes in pieces.

Importing this module makes `STFT`, `LogMel`, `MFCC`, `GlobalNorm` and `UtteranceNorm` known to
`speechkit.nn.streaming.open_stream`. The frames are those of the whole recording::

    samples  x0 x1 x2 x3 x4 x5 x6 ...
    framed   x2 x1 [x0 x1 x2 x3 ..          the start is mirrored when n_fft // 2 samples are there
             .. x3 x4 x5] x4 x3             the end when the recording ends
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.features.framing import Framed
from speechkit.features.normalize import GlobalNorm, UtteranceNorm
from speechkit.features.spectrum import MFCC, STFT, LogMel
from speechkit.nn.streaming import Stream, open_stream


class FeatureStream(Stream):
    """Spectral features of waveforms in pieces: ``push(samples (B, t)) -> (B, frames, F)``.

    Parameters
    ----------
    module : STFT, LogMel or MFCC
        Without what needs the whole recording: a ``top_db``, and deltas.
    batch_size : int
        Recordings that come side by side.

    Raises
    ------
    ValueError
        If a setting needs the whole recording.

    Examples
    --------
    >>> log_mel = LogMel(num_mels=20).eval()
    >>> x = torch.randn(1, 1000)
    >>> stream = open_stream(log_mel)
    >>> parts = [stream.push(x[:, :700]), stream.push(x[:, 700:]), stream.finish()]
    >>> [part.shape[1] for part in parts]
    [4, 2, 1]
    >>> whole = log_mel(x, torch.tensor([1000])).data
    >>> torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)
    True
    """

    module: Framed

    def __init__(self, module: Framed, batch_size: int) -> None:
        super().__init__(module, batch_size)
        _check_bounded(module)
        self.stride = module.hop_length
        self._pad = module.n_fft // 2
        mirrors = module.pad_mode == "reflect"
        self.lookahead = self._pad if mirrors else module.n_fft - self._pad - 1
        device = module._window.device
        self._started = not mirrors
        self._samples = torch.zeros(batch_size, 0 if mirrors else self._pad, device=device)
        self._next = 0  # sample of the buffer at which the next frame begins

    def _take(self, frames: Tensor) -> Tensor:
        self._samples = torch.cat([self._samples, frames.to(self._samples)], dim=1)
        if not self._started:
            if self._samples.shape[1] <= self._pad:
                return self._nothing(self._samples.device)
            self._started = True
            mirrored = self._samples[:, 1 : self._pad + 1].flip(1)
            self._samples = torch.cat([mirrored, self._samples], dim=1)
        return self._transform()

    def _end(self) -> Tensor:
        if not self._started:  # too short to be mirrored once: as the module does it
            lengths = torch.full((self.batch_size,), self._samples.shape[1])
            data: Tensor = self.module(self._samples, lengths.to(self._samples.device)).data
            return data
        if self.module.pad_mode == "reflect":
            last = self._samples[:, -self._pad - 1 : -1].flip(1)
            self._samples = torch.cat([self._samples, last], dim=1)
        else:
            self._samples = F.pad(self._samples, (0, self._pad))
        return self._transform()

    def _transform(self) -> Tensor:
        module, first = self.module, self._next
        count = (self._samples.shape[1] - first - module.n_fft) // self.stride + 1
        if count < 1:
            return self._nothing(self._samples.device)
        self._next += count * self.stride
        with torch.autocast(self._samples.device.type, enabled=False):
            spectrum = torch.stft(
                self._samples[:, first : self._next - self.stride + module.n_fft],
                module.n_fft,
                hop_length=self.stride,
                win_length=module.win_length,
                window=module._window,
                center=False,
                return_complex=True,
            )
            features = _from_spectrum(module, spectrum.transpose(1, 2))
        # The end is mirrored from the last samples, which may lie before the next frame.
        drop = max(0, min(self._next, self._samples.shape[1] - self._pad - 1))
        self._samples = self._samples[:, drop:].clone()
        self._next -= drop
        return features


def _from_spectrum(module: Framed, spectrum: Tensor) -> Tensor:
    if not isinstance(module, LogMel):
        return spectrum
    bands = module._bands(spectrum)
    return bands @ module._dct if isinstance(module, MFCC) else bands


def _check_bounded(module: Framed) -> None:
    name = type(module).__name__
    if getattr(module, "top_db", None) is not None:
        raise ValueError(
            f"{name}(top_db={module.top_db}) needs the loudest frame of the whole recording and "
            "cannot stream; train with top_db=None"
        )
    if getattr(module, "deltas", 0):
        raise ValueError(
            f"{name}(deltas={module.deltas}) cannot stream; train with deltas=0 and leave the "
            "differences in time to the encoder's convolutions"
        )


@open_stream.register(STFT)
@open_stream.register(LogMel)
def _open_features(module: Framed, batch_size: int = 1) -> Stream:
    return FeatureStream(module, batch_size)


class _FrameStream(Stream):
    """A normaliser that takes each frame by itself."""

    def _take(self, frames: Tensor) -> Tensor:
        lengths = torch.full((frames.shape[0],), frames.shape[1], device=frames.device)
        out: Tensor = self.module(frames, lengths)
        return out

    def _nothing(self, device: torch.device | None) -> Tensor:
        return torch.zeros(self.batch_size, 0, int(self.module.num_features), device=device)  # type: ignore[arg-type]


@open_stream.register
def _open_global_norm(module: GlobalNorm, batch_size: int = 1) -> Stream:
    return _FrameStream(module, batch_size)


@open_stream.register
def _open_utterance_norm(module: UtteranceNorm, batch_size: int = 1) -> Stream:
    raise ValueError(
        "UtteranceNorm needs the mean of the whole recording and cannot stream; train with "
        "speechkit.features.normalize.GlobalNorm"
    )
