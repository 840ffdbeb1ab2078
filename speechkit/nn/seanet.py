"""SEANet: waveforms to latents and back (Tagliasacchi et al. 2020; Défossez et al. 2022).

::

    encoder   conv, [residual units, activation, strided conv], LSTM, activation, conv
    decoder   conv, LSTM, [activation, transposed conv, residual units], activation, conv

Each stage of the encoder doubles the channels and divides the rate by its stride; the decoder
undoes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechkit.nn.conv import strided_lengths
from speechkit.nn.masking import Padded, mask_padding
from speechkit.nn.seanet_conv import (
    NormKind,
    PadMode,
    SEANetConv,
    SEANetTransposedConv,
    fold_weight_norm,
    mask_channels,
)
from speechkit.nn.seanet_units import (
    ActivationKind,
    DecoderStage,
    EncoderStage,
    InverseSTFTHead,
    ResidualUnit,
    SkipLSTM,
    make_activation,
)

__all__ = ["SEANetDecoder", "SEANetEncoder", "fold_weight_norm"]


def _check_strides(strides: Sequence[int]) -> None:
    if not strides or min(strides) < 1:
        raise ValueError(f"strides must be one number or more, each at least 1: {list(strides)}")


def _full(lengths: Tensor | None, x: Tensor, axis: int) -> Tensor:
    if lengths is not None:
        return lengths
    return torch.full((x.shape[0],), x.shape[axis], device=x.device)


class _SEANet(nn.Module):
    """The numbers that encoder and decoder share."""

    def __init__(
        self,
        *,
        channels: int,
        num_filters: int,
        latent_size: int,
        strides: Sequence[int],
        residual_layers: int,
        dilation_base: int,
        kernel_size: int,
        last_kernel_size: int,
        residual_kernel_size: int,
        compress: int,
        lstm_layers: int,
        activation: ActivationKind,
        causal: bool,
        norm: NormKind,
        pad_mode: PadMode,
    ) -> None:
        super().__init__()
        _check_strides(strides)
        self.channels = channels
        self.num_filters = num_filters
        self.latent_size = latent_size
        self.strides = list(strides)
        self.residual_layers = residual_layers
        self.dilation_base = dilation_base
        self.kernel_size = kernel_size
        self.last_kernel_size = last_kernel_size
        self.residual_kernel_size = residual_kernel_size
        self.compress = compress
        self.lstm_layers = lstm_layers
        self.activation = activation
        self.causal = causal
        self.norm = norm
        self.pad_mode = pad_mode

    @property
    def hop_length(self) -> int:
        """Samples of a frame of latents."""
        return math.prod(self.strides)

    def _conv(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> SEANetConv:
        return SEANetConv(
            in_channels=inputs,
            out_channels=outputs,
            kernel_size=kernel_size,
            stride=stride,
            causal=self.causal,
            norm=self.norm,
            pad_mode=self.pad_mode,
        )

    def _units(self, channels: int) -> nn.ModuleList:
        return nn.ModuleList(
            ResidualUnit(
                channels=channels,
                kernel_size=self.residual_kernel_size,
                dilation=self.dilation_base**index,
                compress=self.compress,
                activation=self.activation,
                causal=self.causal,
                norm=self.norm,
                pad_mode=self.pad_mode,
            )
            for index in range(self.residual_layers)
        )

    def _lstm(self, channels: int) -> SkipLSTM | None:
        if not self.lstm_layers:
            return None
        return SkipLSTM(channels=channels, num_layers=self.lstm_layers)


class SEANetEncoder(_SEANet):
    """Waveforms to latents.

    The defaults are EnCodec's at 24 kHz: 75 frames a second. What is in a frame depends on no
    sample after it (with ``causal`` and ``pad_mode="constant"``; mirrored padding, as in the
    published networks, lets the first frames wait for some more).

    Parameters
    ----------
    channels : int
        Of the waveforms: 1 mono, 2 stereo.
    num_filters : int
        Channels of the first convolution.
    latent_size : int
        Features of a latent.
    strides : sequence of int
        In the order in which the encoder takes them.
    residual_layers : int
        Residual units of a stage; the dilation of unit ``j`` is ``dilation_base ** j``.
    dilation_base : int
        See ``residual_layers``.
    kernel_size, last_kernel_size, residual_kernel_size : int
        Of the first convolution, of the last one and of the residual units.
    compress : int
        How many times fewer channels the branch of a residual unit has.
    lstm_layers : int
        LSTM layers at the rate of the latents; 0 for none.
    activation : {"elu", "snake"}
        See `speechkit.nn.seanet_units.Snake`.
    causal : bool
        Whether frames depend on the past alone.
    norm : {"weight", "time_group", "none"}
        See `speechkit.nn.seanet_conv.SEANetConv`.
    pad_mode : {"constant", "reflect"}
        What lies beyond an item's ends: zeros, or its mirror image.

    Raises
    ------
    ValueError
        For an unknown choice, a causal time-group norm, or no strides.

    Examples
    --------
    >>> encoder = SEANetEncoder(num_filters=2, latent_size=6, strides=(2, 5), lstm_layers=1)
    >>> latents, frames = encoder(torch.randn(2, 1, 101), torch.tensor([101, 40]))
    >>> latents.shape, frames.tolist(), encoder.hop_length
    (torch.Size([2, 11, 6]), [11, 4], 10)
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        num_filters: int = 32,
        latent_size: int = 128,
        strides: Sequence[int] = (2, 4, 5, 8),
        residual_layers: int = 1,
        dilation_base: int = 2,
        kernel_size: int = 7,
        last_kernel_size: int = 7,
        residual_kernel_size: int = 3,
        compress: int = 2,
        lstm_layers: int = 2,
        activation: ActivationKind = "elu",
        causal: bool = True,
        norm: NormKind = "weight",
        pad_mode: PadMode = "constant",
    ) -> None:
        super().__init__(
            channels=channels,
            num_filters=num_filters,
            latent_size=latent_size,
            strides=strides,
            residual_layers=residual_layers,
            dilation_base=dilation_base,
            kernel_size=kernel_size,
            last_kernel_size=last_kernel_size,
            residual_kernel_size=residual_kernel_size,
            compress=compress,
            lstm_layers=lstm_layers,
            activation=activation,
            causal=causal,
            norm=norm,
            pad_mode=pad_mode,
        )
        width = num_filters
        self.input = self._conv(channels, width, kernel_size)
        self.stages = nn.ModuleList()
        for stride in strides:
            self.stages.append(
                EncoderStage(
                    units=self._units(width),
                    activation=make_activation(activation, width),
                    resample=self._conv(width, 2 * width, 2 * stride, stride),
                )
            )
            width *= 2
        self.lstm = self._lstm(width)
        self.output_activation = make_activation(activation, width)
        self.output = self._conv(width, latent_size, last_kernel_size)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Latents for ``lengths`` samples: one for each ``hop_length``, begun or full."""
        return strided_lengths(lengths, self.hop_length)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Padded:
        """Encode a padded batch.

        Parameters
        ----------
        waveform : Tensor
            Shape ``(B, channels, T)``.
        lengths : Tensor, optional
            Shape ``(B,)``: valid samples; all by default, which is faster.

        Returns
        -------
        Padded
            Latents ``(B, T', latent_size)``, zero in the padding, and their lengths ``(B,)``.
        """
        valid, x = lengths, self.input(waveform, lengths)
        for stage, stride in zip(self.stages, self.strides):
            x = stage(x, valid)
            valid = None if valid is None else strided_lengths(valid, stride)
        if self.lstm is not None:
            x = self.lstm(mask_channels(x, valid))
        x = self.output(self.output_activation(x), valid).transpose(1, 2)
        return Padded(x if valid is None else mask_padding(x, valid), _full(valid, x, 1))


class SEANetDecoder(_SEANet):
    """Latents to waveforms; the mirror image of `SEANetEncoder`.

    Parameters
    ----------
    channels, num_filters, latent_size, residual_layers, dilation_base, kernel_size,
    last_kernel_size, residual_kernel_size, compress, lstm_layers, activation, causal, norm,
    pad_mode
        As in `SEANetEncoder`.
    strides : sequence of int
        In the order in which the decoder takes them, the encoder's reversed.
    istft_stages : int
        How many of the last strides an inverse STFT takes the place of (see
        `speechkit.nn.seanet_units.InverseSTFTHead`): none by default, all of them as in Vocos.

    Raises
    ------
    ValueError
        For an unknown choice, a causal time-group norm, no strides, or more ``istft_stages`` than
        strides.

    Examples
    --------
    >>> decoder = SEANetDecoder(num_filters=2, latent_size=6, strides=(5, 2), lstm_layers=1)
    >>> decoder(torch.randn(2, 11, 6), torch.tensor([11, 4])).data.shape
    torch.Size([2, 1, 110])
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        num_filters: int = 32,
        latent_size: int = 128,
        strides: Sequence[int] = (8, 5, 4, 2),
        residual_layers: int = 1,
        dilation_base: int = 2,
        kernel_size: int = 7,
        last_kernel_size: int = 7,
        residual_kernel_size: int = 3,
        compress: int = 2,
        lstm_layers: int = 2,
        activation: ActivationKind = "elu",
        causal: bool = True,
        norm: NormKind = "weight",
        pad_mode: PadMode = "constant",
        istft_stages: int = 0,
    ) -> None:
        super().__init__(
            channels=channels,
            num_filters=num_filters,
            latent_size=latent_size,
            strides=strides,
            residual_layers=residual_layers,
            dilation_base=dilation_base,
            kernel_size=kernel_size,
            last_kernel_size=last_kernel_size,
            residual_kernel_size=residual_kernel_size,
            compress=compress,
            lstm_layers=lstm_layers,
            activation=activation,
            causal=causal,
            norm=norm,
            pad_mode=pad_mode,
        )
        if not 0 <= istft_stages <= len(strides):
            raise ValueError(f"istft_stages={istft_stages}: there are {len(strides)} strides")
        self.istft_stages = istft_stages
        width = num_filters * 2 ** len(strides)
        self.input = self._conv(latent_size, width, kernel_size)
        self.lstm = self._lstm(width)
        self.stages = nn.ModuleList()
        kept = len(strides) - istft_stages
        for stride in strides[:kept]:
            self.stages.append(self._stage(width, stride))
            width //= 2
        self.output_activation = make_activation(activation, width)
        self.output: SEANetConv | InverseSTFTHead
        if istft_stages:
            self.output = InverseSTFTHead(
                in_channels=width,
                channels=channels,
                hop_length=math.prod(strides[kept:]),
                kernel_size=last_kernel_size,
                causal=causal,
                norm=norm,
                pad_mode=pad_mode,
            )
        else:
            self.output = self._conv(width, channels, last_kernel_size)

    def _stage(self, width: int, stride: int) -> DecoderStage:
        resample = SEANetTransposedConv(
            in_channels=width,
            out_channels=width // 2,
            stride=stride,
            causal=self.causal,
            norm=self.norm,
        )
        return DecoderStage(
            activation=make_activation(self.activation, width),
            resample=resample,
            units=self._units(width // 2),
        )

    def forward(self, latents: Tensor, lengths: Tensor | None = None) -> Padded:
        """Decode a padded batch.

        Parameters
        ----------
        latents : Tensor
            Shape ``(B, T', latent_size)``.
        lengths : Tensor, optional
            Shape ``(B,)``: valid latents; all by default, which is faster.

        Returns
        -------
        Padded
            Waveforms ``(B, channels, T' * hop_length)``, zero in the padding, and their lengths
            in samples.
        """
        valid, x = lengths, self.input(latents.transpose(1, 2), lengths)
        if self.lstm is not None:
            x = self.lstm(mask_channels(x, valid))
        for stage, stride in zip(self.stages, self.strides):
            x = stage(x, valid)
            valid = None if valid is None else valid * stride
        x = self.output(self.output_activation(x), valid)
        samples = None if lengths is None else lengths * self.hop_length
        return Padded(mask_channels(x, samples), _full(samples, x, 2))
