"""Cutting each item of a padded batch into frames, as if it were alone.

The samples after an item's end are replaced by its own reflection before the frames are cut.

::

    item    x0 x1 x2 x3 x4 |  ?  ?  ?  ?       what follows an item in a batch means nothing
    framed  x2 x1 x0 x1 x2 x3 x4 x3 x2 0 0     n_fft // 2 mirrored samples on each side of the item
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.masking import Padded, length_mask, mask_padding

# Samples worked on at once on a CPU: what lies between the steps then stays in its cache, which was
# measured over three times faster than one pass over ten minutes of audio.
_BLOCK_SAMPLES = 1 << 19


class Framed(nn.Module):
    """What STFT, log-mel and MFCC share: framing, window, float32 (arguments: see `STFT`)."""

    _window: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int,
        hop_length: int,
        win_length: int | None,
        window: str,
        pad_mode: str,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.win_length = win_length
        self.window = window
        self.pad_mode = pad_mode
        if not 0 < (win_length or n_fft) <= n_fft or hop_length <= 0:
            raise ValueError(
                f"need 0 < win_length <= n_fft and hop_length > 0, got win_length={win_length}, "
                f"n_fft={n_fft}, hop_length={hop_length}"
            )
        one_of("window", window, ("hann", "hamming", "ones"))
        one_of("pad_mode", pad_mode, ("reflect", "constant"))

    def _make_tables(self) -> dict[str, Tensor]:
        """Compute the constant tensors of the module, by buffer name, in float32."""
        make: dict[str, Callable[[int], Tensor]] = {
            "hann": torch.hann_window,
            "hamming": torch.hamming_window,
            "ones": torch.ones,
        }
        return {"_window": make[self.window](self.win_length or self.n_fft)}

    def _register_tables(self) -> None:
        # Not in the state dict: they follow from the constructor's arguments.
        for name, table in self._make_tables().items():
            self.register_buffer(name, table.float(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Framed:
        # model.half() must not round the window and the filters: they are made anew in float32.
        super()._apply(fn, recurse)
        if self._window.dtype != torch.float32:
            for name, table in self._make_tables().items():
                self.register_buffer(name, table.float().to(self._window.device), persistent=False)
        return self

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Count the frames of waveforms.

        Parameters
        ----------
        lengths : Tensor
            Shape ``(B,)``, samples.

        Returns
        -------
        Tensor
            Shape ``(B,)``: ``lengths // hop_length + 1``, a frame centred at each multiple of the
            hop.
        """
        return torch.div(lengths, self.hop_length, rounding_mode="floor") + 1

    def _map_spectrum(
        self, waveforms: Tensor, lengths: Tensor, function: Callable[[Tensor], Tensor]
    ) -> Padded:
        """Apply a function to the complex spectrum ``(B, T', n_fft // 2 + 1)``, block by block."""
        _check_batch(waveforms, lengths)
        padded = pad_items(waveforms.float(), lengths, self.n_fft // 2, self.pad_mode)
        batch, frames = waveforms.shape[0], waveforms.shape[1] // self.hop_length + 1
        block = frames
        if waveforms.device.type == "cpu" and not torch.compiler.is_compiling():
            block = max(1, _BLOCK_SAMPLES // (max(batch, 1) * self.hop_length))
        outputs = []
        for start in range(0, frames, block):
            count = min(block, frames - start)
            first = start * self.hop_length
            piece = padded[:, first : first + (count - 1) * self.hop_length + self.n_fft]
            spectrum = torch.stft(
                piece,
                self.n_fft,
                hop_length=self.hop_length,
                win_length=self.win_length,
                window=self._window,
                center=False,
                return_complex=True,
            )
            outputs.append(function(spectrum.transpose(1, 2)))
        data = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        counts = self.num_frames(lengths)
        if not _all_full(counts, frames):
            data = mask_padding(data, counts)
        return Padded(data, counts)


def pad_items(waveforms: Tensor, lengths: Tensor, pad: int, mode: str = "reflect") -> Tensor:
    """Extend each item of a batch at its own two ends.

    Parameters
    ----------
    waveforms : Tensor
        Shape ``(B, T)``; what lies beyond the lengths is ignored.
    lengths : Tensor
        Shape ``(B,)``, valid samples.
    pad : int
        Samples to add before and after.
    mode : str
        ``"reflect"`` mirrors the item without repeating its end samples, again and again where it
        is shorter than ``pad``; ``"constant"`` adds zeros.

    Returns
    -------
    Tensor
        Shape ``(B, T + 2 * pad)``: item ``b`` stands at ``pad .. pad + lengths[b]``, zeros follow
        its extension.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    >>> pad_items(x, torch.tensor([3]), 2).tolist()
    [[3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.0]]
    """
    padded = F.pad(waveforms, (pad, pad))
    if not _all_full(lengths, waveforms.shape[1]):
        padded.masked_fill_(~length_mask(lengths + pad, padded.shape[1]), 0.0)
    if mode == "constant" or pad == 0:
        return padded
    size = lengths.unsqueeze(1)
    steps = torch.arange(1, pad + 1, device=waveforms.device)
    period = (2 * (size - 1)).clamp_min(1)
    # Positions before the start (-1, -2, ...) and after the end (L, L + 1, ...), folded inwards.
    folded = torch.cat([steps % period, (size - 1 + steps) % period], dim=1)
    folded = torch.where(folded < size, folded, period - folded)
    target = torch.cat([(pad - steps).expand(len(lengths), pad), pad + size - 1 + steps], dim=1)
    mirrored = padded.gather(1, pad + folded)
    if padded.requires_grad:  # gather keeps its input for the gradient
        return padded.scatter(1, target, mirrored)
    return padded.scatter_(1, target, mirrored)


def _all_full(lengths: Tensor, size: int) -> bool:
    # Only asked where the answer does not make a GPU wait.
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool((lengths == size).all())


def _check_batch(waveforms: Tensor, lengths: Tensor) -> None:
    if waveforms.dim() != 2 or lengths.shape != waveforms.shape[:1]:
        raise ValueError(
            "need waveforms (B, T) and lengths (B,), got shapes "
            f"{tuple(waveforms.shape)} and {tuple(lengths.shape)}"
        )
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and len(lengths):
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > waveforms.shape[1]:
            raise ValueError(
                f"lengths must be samples in 0 .. {waveforms.shape[1]}, got {low} .. {high}"
            )


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise a ValueError that names the choices, unless the value is one of them."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
