"""Multi-period (HiFi-GAN) and multi-resolution (UnivNet, DAC) discriminators.

As those of `speechkit.nn.discriminators`, they take ``(B, C, T)`` and give a `Judgement`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechkit.features.framing import pad_items
from speechkit.nn.discriminators import (
    Judgement,
    SpectrogramDiscriminator,
    check_waveform,
    mask_frames,
    merge_judgements,
    needed_lengths,
)
from speechkit.nn.masking import mask_padding


def _ceil(lengths: Tensor, step: int) -> Tensor:
    return torch.div(lengths + step - 1, step, rounding_mode="floor")


class PeriodDiscriminator(nn.Module):
    """Convolutions over every ``period``-th sample (Kong et al. 2020, section 2.3).

    ::

        period 3      a b c d e f g         rows are steps in time, columns are judged alike and
                      a b c                 never meet; the last row is filled with the item
                      d e f                 mirrored: g f e
                      g f e

    Parameters
    ----------
    period : int
        Samples.
    channels : int
        Of the waveform, judged together.
    widths : sequence of int
        Channels of the hidden layers.
    kernel_size : int
        Rows, odd.
    stride : int
        Rows, of all hidden layers but the last, which has 1.
    negative_slope : float
        Of the leaky ReLU.

    Raises
    ------
    ValueError
        Where a number is out of range, or an input has another shape.

    Examples
    --------
    >>> judge = PeriodDiscriminator(period=3, widths=(4, 8))
    >>> judgement = judge(torch.randn(2, 1, 40), torch.tensor([40, 10]))
    >>> judgement.logits[0].shape, [frames.tolist() for frames in judgement.frames[0]]
    (torch.Size([2, 1, 5, 3]), [[5, 2], [5, 2], [5, 2]])
    """

    def __init__(
        self,
        *,
        period: int,
        channels: int = 1,
        widths: Sequence[int] = (32, 128, 512, 1024, 1024),
        kernel_size: int = 5,
        stride: int = 3,
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        if period < 1 or stride < 1 or kernel_size < 1 or kernel_size % 2 == 0 or not widths:
            raise ValueError(
                "need period and stride of at least 1, an odd kernel_size and some widths, got "
                f"period={period}, stride={stride}, kernel_size={kernel_size}, "
                f"widths={list(widths)}"
            )
        self.period = period
        self.channels = channels
        self.widths = widths
        self.kernel_size = kernel_size
        self.stride = stride
        self.negative_slope = negative_slope
        self.strides = [stride] * (len(widths) - 1) + [1]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (kernel_size, 1), (s, 1), (kernel_size // 2, 0)))
            for before, after, s in zip((channels, *widths), widths, self.strides)
        )
        self.output = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def _fold(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Give ``(B, C, rows, period)``; each item's last row is filled with its mirror image."""
        each = lengths.repeat_interleave(self.channels)
        longer = pad_items(waveform.flatten(0, 1), each, self.period - 1)[:, self.period - 1 :]
        rows = -(-waveform.shape[2] // self.period)
        full = mask_padding(longer[:, : rows * self.period], _ceil(each, self.period) * self.period)
        return full.view(waveform.shape[0], self.channels, rows, self.period)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Judgement:
        """Judge ``(B, channels, T)`` with valid samples ``(B,)``; all are valid without them."""
        check_waveform(waveform, self.channels)
        lengths = needed_lengths(lengths, waveform.shape[2])
        whole = torch.full((waveform.shape[0],), waveform.shape[2], device=waveform.device)
        x = self._fold(waveform, whole if lengths is None else lengths)
        rows = None if lengths is None else _ceil(lengths, self.period)
        features, valid = [], []
        for layer, stride in zip(self.layers, self.strides):
            rows = None if rows is None else _ceil(rows, stride)
            x = mask_frames(F.leaky_relu(layer(x), self.negative_slope), rows)
            features.append(x)
            valid.append(rows)
        logits = mask_frames(self.output(x), rows)
        frames = [r for r in (*valid, rows) if r is not None]
        return Judgement([logits], [features], [frames] if frames else None)


class MultiPeriodDiscriminator(nn.Module):
    """The multi-period discriminator of HiFi-GAN (Kong et al. 2020, section 2.3).

    Parameters
    ----------
    periods : sequence of int
        Samples; primes, so that they overlap little.
    channels, widths, kernel_size, stride, negative_slope
        As in `PeriodDiscriminator`; the defaults have 41.1 M parameters.

    Examples
    --------
    >>> judge = MultiPeriodDiscriminator(widths=(4, 8))
    >>> [tuple(logits.shape[2:]) for logits in judge(torch.randn(1, 1, 240)).logits]
    [(40, 2), (27, 3), (16, 5), (12, 7), (8, 11)]
    """

    def __init__(
        self,
        *,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        channels: int = 1,
        widths: Sequence[int] = (32, 128, 512, 1024, 1024),
        kernel_size: int = 5,
        stride: int = 3,
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        if not periods:
            raise ValueError("periods is empty: give at least one")
        self.periods = periods
        self.channels = channels
        self.widths = widths
        self.kernel_size = kernel_size
        self.stride = stride
        self.negative_slope = negative_slope
        self.scales = nn.ModuleList(
            PeriodDiscriminator(
                period=period, channels=channels, widths=widths, kernel_size=kernel_size,
                stride=stride, negative_slope=negative_slope,
            )
            for period in periods
        )  # fmt: skip

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Judgement:
        """Judge ``(B, channels, T)`` with valid samples ``(B,)``; all are valid without them."""
        return merge_judgements([scale(waveform, lengths) for scale in self.scales])


class MultiResolutionDiscriminator(nn.Module):
    """The multi-resolution discriminator of UnivNet (Jang et al. 2021, section 2.3), or DAC's.

    By default UnivNet's: magnitudes, at three resolutions. That of DAC (Kumar et al. 2023, section
    3.3) looks at the complex spectrogram in bands::

        MultiResolutionDiscriminator(
            resolutions=((2048, 512, 2048), (1024, 256, 1024), (512, 128, 512)),
            representation="complex", bands=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0), negative_slope=0.1,
        )

    Parameters
    ----------
    resolutions : sequence of tuple of int
        FFT size, hop and window of each, in samples.
    channels, num_filters, representation, bands, negative_slope
        As in `SpectrogramDiscriminator`.

    Examples
    --------
    >>> judge = MultiResolutionDiscriminator(num_filters=2)
    >>> [tuple(logits.shape[2:]) for logits in judge(torch.randn(1, 1, 4800)).logits]
    [(40, 65), (20, 129), (96, 33)]
    """

    def __init__(
        self,
        *,
        resolutions: Sequence[tuple[int, int, int]] = (
            (1024, 120, 600),
            (2048, 240, 1200),
            (512, 50, 240),
        ),
        channels: int = 1,
        num_filters: int = 32,
        representation: str = "magnitude",
        bands: Sequence[float] | None = None,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        if not resolutions:
            raise ValueError("resolutions is empty: give at least one (FFT size, hop, window)")
        self.resolutions = resolutions
        self.channels = channels
        self.num_filters = num_filters
        self.representation = representation
        self.bands = bands
        self.negative_slope = negative_slope
        self.scales = nn.ModuleList(
            SpectrogramDiscriminator(
                n_fft=n_fft, hop_length=hop, win_length=window, channels=channels,
                num_filters=num_filters, dilations=(1, 1, 1), representation=representation,
                normalize=False, pad_mode="reflect", bands=bands, negative_slope=negative_slope,
            )
            for n_fft, hop, window in resolutions
        )  # fmt: skip

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Judgement:
        """Judge ``(B, channels, T)`` with valid samples ``(B,)``; all are valid without them."""
        return merge_judgements([scale(waveform, lengths) for scale in self.scales])
