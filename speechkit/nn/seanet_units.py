"""What a SEANet is built from besides convolutions; layout ``(B, C, T)``."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.masking import length_mask
from speechkit.nn.seanet_conv import NormKind, PadMode, SEANetConv, SEANetTransposedConv

ActivationKind = Literal["elu", "snake"]


class Snake(nn.Module):
    """The periodic activation ``x + sin(a x)^2 / a``, with an ``a`` for each channel.

    Ziyin, Hartwig and Ueda 2020, "Neural networks fail to learn periodic functions and how to fix
    it", eq. 3; in a codec, Kumar et al. 2023.

    Parameters
    ----------
    channels : int
        Channels, each with its own learned frequency; 1 at first.

    Examples
    --------
    >>> snake = Snake(channels=2)
    >>> x = torch.randn(1, 2, 5)
    >>> torch.allclose(snake(x), x + x.sin().square(), atol=1e-6)
    True
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.alpha = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to the same shape."""
        return x + (self.alpha * x).sin().square() / (self.alpha + 1e-9)


def make_activation(kind: ActivationKind, channels: int) -> nn.Module:
    """Build an activation by its name.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> make_activation("elu", 8)
    ELU(alpha=1.0)
    """
    if kind == "elu":
        return nn.ELU()
    if kind == "snake":
        return Snake(channels=channels)
    raise ValueError(f"unknown activation {kind!r}: choose from ['elu', 'snake']")


class ResidualUnit(nn.Module):
    """A dilated convolution to fewer channels, one back, and a 1x1 convolution beside them.

    Tagliasacchi et al. 2020, "SEANet"; the narrow branch from Défossez et al. 2022, section 3.2.

    Parameters
    ----------
    channels : int
        Before and after.
    kernel_size, dilation : int
        Of the first convolution.
    compress : int
        How many times fewer channels the branch has.
    activation : {"elu", "snake"}
        Before each convolution of the branch.
    causal, norm, pad_mode
        As in `speechkit.nn.seanet_conv.SEANetConv`.

    Examples
    --------
    >>> ResidualUnit(channels=8, dilation=2)(torch.randn(2, 8, 11)).shape
    torch.Size([2, 8, 11])
    """

    def __init__(
        self,
        *,
        channels: int,
        kernel_size: int = 3,
        dilation: int = 1,
        compress: int = 2,
        activation: ActivationKind = "elu",
        causal: bool = True,
        norm: NormKind = "weight",
        pad_mode: PadMode = "constant",
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.compress = compress
        self.activation = activation
        self.causal = causal
        self.norm = norm
        self.pad_mode = pad_mode
        hidden = channels // compress

        def conv(inputs: int, outputs: int, kernel: int, spread: int) -> SEANetConv:
            return SEANetConv(
                in_channels=inputs,
                out_channels=outputs,
                kernel_size=kernel,
                dilation=spread,
                causal=causal,
                norm=norm,
                pad_mode=pad_mode,
            )

        self.activation1 = make_activation(activation, channels)
        self.conv1 = conv(channels, hidden, kernel_size, dilation)
        self.activation2 = make_activation(activation, hidden)
        self.conv2 = conv(hidden, channels, 1, 1)
        self.shortcut = conv(channels, channels, 1, 1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, channels, T)`` to the same shape."""
        branch = self.conv1(self.activation1(x), lengths)
        branch = self.conv2(self.activation2(branch), lengths)
        return self.shortcut(x, lengths) + branch


class SkipLSTM(nn.Module):
    """LSTM layers over time, past to future, whose input is added to their output.

    Parameters
    ----------
    channels : int
        Before and after.
    num_layers : int
        At least 1.

    Examples
    --------
    >>> SkipLSTM(channels=4, num_layers=2)(torch.randn(2, 4, 7)).shape
    torch.Size([2, 4, 7])
    """

    def __init__(self, *, channels: int, num_layers: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.num_layers = num_layers
        self.lstm = nn.LSTM(channels, channels, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, T)`` to the same shape; what follows a frame does not matter."""
        if x.shape[2] == 0:
            return x
        frames = x.permute(2, 0, 1)  # (T, B, C)
        return (self.lstm(frames)[0] + frames).permute(1, 2, 0)


class EncoderStage(nn.Module):
    """Residual units, an activation and a convolution that lowers the rate.

    Parameters
    ----------
    units : nn.ModuleList
        Of `ResidualUnit`.
    activation : nn.Module
        Before the convolution.
    resample : SEANetConv
        With the stage's stride.
    """

    def __init__(
        self, *, units: nn.ModuleList, activation: nn.Module, resample: SEANetConv
    ) -> None:
        super().__init__()
        self.units = units
        self.activation = activation
        self.resample = resample

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, C, T)`` to ``(B, C', ceil(T / stride))``."""
        for unit in self.units:
            x = unit(x, lengths)
        return self.resample(self.activation(x), lengths)


class DecoderStage(nn.Module):
    """An activation, a transposed convolution that raises the rate, and residual units.

    Parameters
    ----------
    activation : nn.Module
        Before the convolution.
    resample : SEANetTransposedConv
        With the stage's stride.
    units : nn.ModuleList
        Of `ResidualUnit`.
    """

    def __init__(
        self, *, activation: nn.Module, resample: SEANetTransposedConv, units: nn.ModuleList
    ) -> None:
        super().__init__()
        self.activation = activation
        self.resample = resample
        self.units = units

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, C, T)`` to ``(B, C', T * stride)``."""
        x = self.resample(self.activation(x), lengths)
        for unit in self.units:
            x = unit(x, None if lengths is None else lengths * self.resample.stride)
        return x


class InverseSTFTHead(nn.Module):
    """From features to waveforms by an inverse short-time Fourier transform.

    A convolution gives log-magnitude and phase of each bin (Kaneko et al. 2022, "iSTFTNet"; Siuzdak
    2023, "Vocos"). Frame ``j`` begins at sample ``j * hop_length`` where it is causal, so that no
    sample waits for a later frame, and is centred there otherwise. Windows and their sum are those
    of an endless signal.

    Parameters
    ----------
    in_channels : int
        Of the features.
    channels : int
        Of the waveforms.
    hop_length : int
        Samples of a frame; the transform has ``4 * hop_length``.
    kernel_size : int
        Of the convolution.
    causal, norm, pad_mode
        As in `speechkit.nn.seanet_conv.SEANetConv`.

    Examples
    --------
    >>> head = InverseSTFTHead(in_channels=8, channels=2, hop_length=10)
    >>> head(torch.randn(1, 8, 6)).shape
    torch.Size([1, 2, 60])
    """

    window: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        hop_length: int,
        kernel_size: int = 7,
        causal: bool = True,
        norm: NormKind = "weight",
        pad_mode: PadMode = "constant",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels = channels
        self.hop_length = hop_length
        self.kernel_size = kernel_size
        self.causal = causal
        self.norm = norm
        self.pad_mode = pad_mode
        self.conv = SEANetConv(
            in_channels=in_channels,
            out_channels=channels * (4 * hop_length + 2),
            kernel_size=kernel_size,
            causal=causal,
            norm=norm,
            pad_mode=pad_mode,
        )
        window = torch.hann_window(4 * hop_length)
        envelope = window.square().view(4, hop_length).sum(0).repeat(4)
        self.register_buffer("window", window / envelope, persistent=False)

    def frames(self, x: Tensor) -> Tensor:
        """Turn ``(B, C * (n_fft + 2), T)`` into windowed frames ``(B, C, T, 4, hop_length)``."""
        with torch.autocast(x.device.type, enabled=False):
            size, bins = 4 * self.hop_length, 2 * self.hop_length + 1
            log_magnitude, phase = x.float().unflatten(1, (self.channels, 2, bins)).unbind(2)
            # No bin is louder than a full-scale sine would make it.
            magnitude = log_magnitude.clamp(max=7.0).exp()
            spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
            waves = torch.fft.irfft(spectrum.transpose(2, 3), size) * self.window
            return waves.unflatten(3, (4, self.hop_length))

    def overlap_add(self, frames: Tensor) -> Tensor:
        """Add ``(B, C, T, 4, hop_length)`` up where they lie: ``(B, C, (T + 3) * hop_length)``."""
        parts = [F.pad(frames[..., k, :], (0, 0, k, 3 - k)) for k in range(4)]
        return torch.stack(parts).sum(0).flatten(2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, in_channels, T)`` to ``(B, channels, T * hop_length)``."""
        if x.shape[2] == 0:
            return x.new_zeros(x.shape[0], self.channels, 0)
        frames = self.frames(self.conv(x, lengths))
        if lengths is not None:
            valid = length_mask(lengths, x.shape[2])[:, None, :, None, None]
            frames = frames.masked_fill(~valid, 0.0)
        first = 0 if self.causal else 3 * self.hop_length // 2
        return self.overlap_add(frames)[..., first : first + x.shape[2] * self.hop_length]
