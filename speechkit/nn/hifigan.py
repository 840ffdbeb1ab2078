"""The generator of HiFi-GAN (Kong et al. 2020), and with an inverse STFT at its end (iSTFTNet).

::

    conv, [leaky ReLU, transposed conv, mean of residual blocks], leaky ReLU, conv, tanh

Each stage multiplies the rate by its factor and halves the channels; its residual blocks look at
spans of several lengths. The published sizes at 22.05 kHz, of 80 bands:

==== ======== ============ ============== ===== ========= =========================== ==========
     channels rates        kernels        block kernels   dilations                   parameters
==== ======== ============ ============== ===== ========= =========================== ==========
V1   512      8, 8, 2, 2   16, 16, 4, 4   1     3, 7, 11  1, 3, 5 in each             13.93 M
V2   128      as V1        as V1          1     3, 7, 11  1, 3, 5 in each             0.93 M
V3   256      8, 8, 4      16, 16, 8      2     3, 5, 7   1, 2; 2, 6; 3, 12           1.46 M
==== ======== ============ ============== ===== ========= =========================== ==========
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechkit.features.framing import one_of
from speechkit.nn.seanet_conv import NormKind, PadMode, mask_channels
from speechkit.nn.seanet_units import InverseSTFTHead
from speechkit.nn.tdnn import mirror_frames

SLOPE = 0.1
_LAST_SLOPE = 0.01  # before the last convolution, as published

BlockKind = Literal["1", "2"]


def _finished(
    layer: nn.Conv1d | nn.ConvTranspose1d, norm: NormKind, std: float | None
) -> nn.Module:
    """Draw the weights as the authors do, before weight norm takes lengths and directions."""
    if std is not None:
        nn.init.normal_(layer.weight, 0.0, std)
    return weight_norm(layer) if norm == "weight" else layer


def _conv(
    inputs: int,
    outputs: int,
    kernel_size: int,
    *,
    norm: NormKind,
    pad_mode: PadMode,
    dilation: int = 1,
    std: float | None = None,
) -> nn.Module:
    """Make a convolution that keeps the number of samples."""
    layer = nn.Conv1d(
        inputs,
        outputs,
        kernel_size,
        dilation=dilation,
        padding=dilation * (kernel_size - 1) // 2,
        padding_mode="zeros" if pad_mode == "constant" else "reflect",
    )
    return _finished(layer, norm, std)


def _convolve(conv: Any, x: Tensor, slope: float | None = None, *, own: bool = False) -> Tensor:
    """Leaky ReLU of the slope, then the convolution, be it a transposed one.

    ``own`` says that ``x`` may be overwritten.

    On a CPU and without gradients ``x`` is an image of one row, channels last, which saves the
    copies into another layout that torch's convolutions of one dimension make. What is computed
    element by element, between two convolutions, keeps that layout.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu":
        out: Tensor = conv(_activated(x, slope, own))
        return out
    frames, reach = x.transpose(1, 2), conv.padding[0]
    if conv.padding_mode == "reflect":
        # The ends first: so the activation has a copy of its own to be made in.
        frames, reach, own = mirror_frames(frames, reach), 0, True
    frames = _activated(frames.contiguous(), slope, own)
    image, weight = frames.unsqueeze(1).permute(0, 3, 1, 2), conv.weight.unsqueeze(2)
    if isinstance(conv, nn.ConvTranspose1d):
        out = F.conv_transpose2d(
            image, weight, conv.bias, stride=(1, conv.stride[0]), padding=(0, reach)
        )
    else:
        out = F.conv2d(image, weight, conv.bias, padding=(0, reach), dilation=(1, conv.dilation[0]))
    return out.squeeze(2)


def _activated(x: Tensor, slope: float | None, own: bool) -> Tensor:
    if slope is None:
        return x
    return F.leaky_relu_(x, slope) if own else F.leaky_relu(x, slope)


class HiFiGANBlock(nn.Module):
    """A residual block: dilated convolutions, each added to what it was given.

    Parameters
    ----------
    channels : int
        In and out.
    kernel_size : int
        Odd.
    dilations : sequence of int
        One for each step.
    kind : {"1", "2"}
        ``"1"``: each step has a second convolution, not dilated; ``"2"``: one alone.
    norm : {"weight", "none"}
        Weight norm, or plain weights.
    pad_mode : {"constant", "reflect"}
        What lies beyond the ends: zeros, or the mirror image.
    weight_std : float, optional
        Of the weights at the start; with None as torch makes them.
    """

    def __init__(
        self,
        *,
        channels: int,
        kernel_size: int,
        dilations: Sequence[int],
        kind: BlockKind = "1",
        norm: NormKind = "weight",
        pad_mode: PadMode = "constant",
        weight_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel_size = kernel_size
        self.dilations = dilations
        self.kind = kind
        self.norm = norm
        self.pad_mode = pad_mode
        self.weight_std = weight_std
        self.first = nn.ModuleList(self._step(dilation) for dilation in dilations)
        self.second = nn.ModuleList(self._step(1) for _ in dilations if kind == "1")

    def _step(self, dilation: int) -> nn.Module:
        return _conv(
            self.channels,
            self.channels,
            self.kernel_size,
            dilation=dilation,
            norm=self.norm,
            pad_mode=self.pad_mode,
            std=self.weight_std,
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, channels, T)`` to the same shape; ``lengths`` ``(B,)`` are valid samples."""
        # In place where it can be: a convolution does not need its output for the gradient, and at
        # the rate of samples fresh memory costs as much as the arithmetic.
        for index, conv in enumerate(self.first):
            y = _convolve(conv, mask_channels(x, lengths), SLOPE)
            if self.second:
                y = _convolve(self.second[index], mask_channels(y, lengths), SLOPE, own=True)
            x = y.add_(x)
        return x


class HiFiGANGenerator(nn.Module):
    """Mel spectra to waveforms.

    The defaults are those of V1; see the table of the module for the others.

    Parameters
    ----------
    num_mels : int
        Bands.
    channels : int
        Of the first convolution; divisible by 2 to the number of stages.
    upsample_rates : sequence of int
        By how much each stage raises the rate.
    upsample_kernels : sequence of int
        Of the transposed convolutions: each its rate plus an even number.
    block_kind : {"1", "2"}
        See `HiFiGANBlock`.
    block_kernels : sequence of int
        One residual block each, of odd kernels.
    block_dilations : sequence of sequence of int
        Those of each block.
    istft_hop : int
        Above 0: in the place of the last convolution and tanh, an inverse STFT of this hop and a
        window of four hops raises the rate once more (Kaneko et al. 2022): less work at high rates.
    norm : {"weight", "none"}
        Weight norm, as in training; ``"none"`` after `speechkit.nn.seanet_conv.fold_weight_norm`.
    pad_mode : {"constant", "reflect"}
        What convolutions see beyond the ends: zeros as in the authors' code, or the mirror image as
        in SpeechBrain's.
    weight_std : float, optional
        Of the weights at the start, but those of the first convolution and of an inverse STFT; with
        None as torch makes them.

    Attributes
    ----------
    hop_length : int
        Samples of a frame.
    takes_lengths : bool
        Whether padded batches can be given with lengths; not with ``pad_mode="reflect"``.

    Raises
    ------
    ValueError
        Where the numbers do not fit together.

    Examples
    --------
    >>> generator = HiFiGANGenerator(channels=16, block_kernels=(3,), block_dilations=((1, 3),))
    >>> generator(torch.randn(2, 80, 5), torch.tensor([5, 2])).shape, generator.hop_length
    (torch.Size([2, 1, 1280]), 256)
    """

    def __init__(
        self,
        *,
        num_mels: int = 80,
        channels: int = 512,
        upsample_rates: Sequence[int] = (8, 8, 2, 2),
        upsample_kernels: Sequence[int] = (16, 16, 4, 4),
        block_kind: BlockKind = "1",
        block_kernels: Sequence[int] = (3, 7, 11),
        block_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        istft_hop: int = 0,
        norm: NormKind = "weight",
        pad_mode: PadMode = "constant",
        weight_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.num_mels = num_mels
        self.channels = channels
        self.upsample_rates = upsample_rates
        self.upsample_kernels = upsample_kernels
        self.block_kind = block_kind
        self.block_kernels = block_kernels
        self.block_dilations = block_dilations
        self.istft_hop = istft_hop
        self.norm = norm
        self.pad_mode = pad_mode
        self.weight_std = weight_std
        self._check_numbers()
        self.input = _conv(num_mels, channels, 7, norm=norm, pad_mode=pad_mode)
        self.upsamplers = nn.ModuleList()
        self.blocks = nn.ModuleList()
        width = channels
        for rate, kernel in zip(upsample_rates, upsample_kernels):
            width //= 2
            layer = nn.ConvTranspose1d(
                2 * width, width, kernel, stride=rate, padding=(kernel - rate) // 2
            )
            self.upsamplers.append(_finished(layer, norm, weight_std))
            self.blocks.append(
                nn.ModuleList(
                    HiFiGANBlock(
                        channels=width, kernel_size=size, dilations=dilations, kind=block_kind,
                        norm=norm, pad_mode=pad_mode, weight_std=weight_std,
                    )
                    for size, dilations in zip(block_kernels, block_dilations)
                )
            )  # fmt: skip
        if istft_hop:
            self.output: nn.Module = InverseSTFTHead(
                in_channels=width, channels=1, hop_length=istft_hop, causal=False, norm=norm,
                pad_mode=pad_mode,
            )  # fmt: skip
        else:
            self.output = _conv(width, 1, 7, norm=norm, pad_mode=pad_mode, std=weight_std)

    def _check_numbers(self) -> None:
        one_of("block_kind", self.block_kind, ("1", "2"))
        one_of("norm", self.norm, ("weight", "none"))
        one_of("pad_mode", self.pad_mode, ("constant", "reflect"))
        rates, kernels = list(self.upsample_rates), list(self.upsample_kernels)
        if not rates or len(rates) != len(kernels):
            raise ValueError(f"need as many upsample_kernels as rates, got {kernels} and {rates}")
        bad = [(r, k) for r, k in zip(rates, kernels) if r < 1 or k < r or (k - r) % 2]
        if bad:
            raise ValueError(
                f"each of upsample_kernels must be its rate plus an even number; these (rate, "
                f"kernel) are not: {bad}"
            )
        if self.channels < 1 or self.channels % 2 ** len(rates):
            raise ValueError(
                f"channels={self.channels} must be divisible by 2 ** {len(rates)}, for the stages"
            )
        known = len(self.block_kernels) == len(self.block_dilations) and all(self.block_dilations)
        if not self.block_kernels or not known:
            raise ValueError(
                f"need dilations for each of block_kernels {list(self.block_kernels)}, got "
                f"{[list(d) for d in self.block_dilations]}"
            )
        if any(size % 2 == 0 for size in self.block_kernels) or self.istft_hop < 0:
            raise ValueError(
                f"need odd block_kernels and istft_hop >= 0, got {list(self.block_kernels)} and "
                f"{self.istft_hop}"
            )

    @property
    def hop_length(self) -> int:
        """Samples of a frame."""
        return math.prod(self.upsample_rates) * (self.istft_hop or 1)

    @property
    def takes_lengths(self) -> bool:
        """Whether padded batches can be given with lengths."""
        return self.pad_mode == "constant"

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Make waveforms.

        Parameters
        ----------
        mel : Tensor
            Shape ``(B, num_mels, T)``: channels first.
        lengths : Tensor, optional
            Shape ``(B,)``: valid frames; all by default, which is faster.

        Returns
        -------
        Tensor
            Shape ``(B, 1, T * hop_length)``, zero beyond the items' ends.

        Raises
        ------
        ValueError
            For lengths where the items' ends are mirrored: give the items one by one.
        """
        if lengths is not None and not self.takes_lengths:
            raise ValueError('pad_mode="reflect" takes no lengths: give the items one by one')
        frames = mel.shape[2]
        if frames == 0:
            return mel.new_zeros(len(mel), 1, 0)
        x, valid = _convolve(self.input, mask_channels(self._long_enough(mel), lengths)), lengths
        for rate, upsampler, blocks in zip(self.upsample_rates, self.upsamplers, self.blocks):
            x = _convolve(upsampler, mask_channels(x, valid), SLOPE, own=True)
            valid = None if valid is None else valid * rate
            total = blocks[0](x, valid)  # type: ignore[index]
            for block in blocks[1:]:  # type: ignore[index]
                total = total.add_(block(x, valid))
            x = total.div_(len(self.block_kernels))
        x = mask_channels(x, valid)
        if self.istft_hop:
            wave = self.output(F.leaky_relu_(x, _LAST_SLOPE).contiguous(), valid)
            valid = None if valid is None else valid * self.istft_hop
        else:
            wave = torch.tanh(_convolve(self.output, x, _LAST_SLOPE, own=True))
        return mask_channels(wave[..., : frames * self.hop_length], valid)

    def _long_enough(self, mel: Tensor) -> Tensor:
        """Repeat the last frame of a mel that is shorter than what is mirrored beyond its ends."""
        if self.pad_mode == "constant":
            return mel
        least, rate = 4, 1
        for factor in self.upsample_rates:
            rate *= factor
            reach = max(
                max(dilations) * (size - 1) // 2
                for size, dilations in zip(self.block_kernels, self.block_dilations)
            )
            least = max(least, reach // rate + 1)
        return F.pad(mel, (0, max(0, least - mel.shape[2])), mode="replicate")
