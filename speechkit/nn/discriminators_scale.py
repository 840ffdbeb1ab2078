"""The multi-scale discriminator of HiFi-GAN (Kong et al. 2020; Kumar et al. 2019, "MelGAN").

As those of `speechkit.nn.discriminators`, they take ``(B, C, T)`` and give a `Judgement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from speechkit.features.framing import one_of
from speechkit.nn.discriminators import Judgement, check_waveform, merge_judgements, needed_lengths
from speechkit.nn.masking import length_mask

DiscriminatorNorm = Literal["weight", "spectral"]


class ScaleLayer(NamedTuple):
    """A convolution of a `ScaleDiscriminator`: it has ``width`` channels."""

    width: int
    kernel_size: int
    stride: int
    groups: int


HIFIGAN_LAYERS = (
    ScaleLayer(128, 15, 1, 1),
    ScaleLayer(128, 41, 2, 4),
    ScaleLayer(256, 41, 2, 16),
    ScaleLayer(512, 41, 4, 16),
    ScaleLayer(1024, 41, 4, 16),
    ScaleLayer(1024, 41, 1, 16),
    ScaleLayer(1024, 5, 1, 1),
)
"""The published layers, 9.9 M parameters."""


class ScaleDiscriminator(nn.Module):
    """Strided convolutions in groups over the waveform.

    Parameters
    ----------
    layers : sequence of (int, int, int, int)
        Channels, odd kernel, stride and groups of each, as `ScaleLayer`.
    norm : {"weight", "spectral"}
        Weight norm or spectral norm.
    negative_slope : float
        Of the leaky ReLU.

    Raises
    ------
    ValueError
        Where a number is out of range, or an input has another shape.

    Examples
    --------
    >>> judge = ScaleDiscriminator(layers=((4, 15, 1, 1), (8, 41, 2, 2)))
    >>> judgement = judge(torch.randn(2, 1, 40), torch.tensor([40, 10]))
    >>> judgement.logits[0].shape, [frames.tolist() for frames in judgement.frames[0]]
    (torch.Size([2, 1, 20, 1]), [[40, 10], [20, 5], [20, 5]])
    """

    def __init__(
        self,
        *,
        layers: Sequence[tuple[int, int, int, int]] = HIFIGAN_LAYERS,
        norm: DiscriminatorNorm = "weight",
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        one_of("norm", norm, ("weight", "spectral"))
        if not layers or any(kernel % 2 == 0 for _, kernel, _, _ in layers):
            raise ValueError(f"need at least one of layers, of odd kernels, got {list(layers)}")
        self.layers = layers
        self.norm = norm
        self.negative_slope = negative_slope
        normed = weight_norm if norm == "weight" else spectral_norm
        inputs = [1, *(width for width, *_ in layers)]
        self.convs = nn.ModuleList(
            normed(nn.Conv1d(before, width, kernel, stride, kernel // 2, groups=groups))
            for before, (width, kernel, stride, groups) in zip(inputs, layers)
        )
        self.output = normed(nn.Conv1d(inputs[-1], 1, 3, padding=1))

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Judgement:
        """Judge ``(B, 1, T)`` with valid samples ``(B,)``; all are valid without them."""
        check_waveform(waveform, 1)
        valid = needed_lengths(lengths, waveform.shape[2])
        x = _masked(waveform, valid)
        features, frames = [], []
        for conv, (_, _, stride, _) in zip(self.convs, self.layers):
            valid = None if valid is None else (valid + stride - 1) // stride
            x = _masked(F.leaky_relu(conv(x), self.negative_slope), valid)
            features.append(x.unsqueeze(3))
            frames.append(valid)
        logits = _masked(self.output(x), valid).unsqueeze(3)
        known = [n for n in (*frames, valid) if n is not None]
        return Judgement([logits], [features], [known] if known else None)


class MultiScaleDiscriminator(nn.Module):
    """The multi-scale discriminator of HiFi-GAN (section 2.3): each scale at half the rate before.

    The first, of the waveform as it is, has spectral norm; the others see averages of 4 samples.

    Parameters
    ----------
    num_scales : int
        How many; 3 as published have 29.6 M parameters.
    layers, negative_slope
        As in `ScaleDiscriminator`.

    Raises
    ------
    ValueError
        Where a number is out of range, or an input has another shape.

    Examples
    --------
    >>> judge = MultiScaleDiscriminator(layers=((4, 15, 1, 1), (8, 41, 2, 2)))
    >>> [tuple(logits.shape[2:]) for logits in judge(torch.randn(1, 1, 240)).logits]
    [(120, 1), (61, 1), (31, 1)]
    """

    def __init__(
        self,
        *,
        num_scales: int = 3,
        layers: Sequence[tuple[int, int, int, int]] = HIFIGAN_LAYERS,
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        if num_scales < 1:
            raise ValueError(f"num_scales must be at least 1, got {num_scales}")
        self.num_scales = num_scales
        self.layers = layers
        self.negative_slope = negative_slope
        self.scales = nn.ModuleList(
            ScaleDiscriminator(
                layers=layers,
                norm="weight" if index else "spectral",
                negative_slope=negative_slope,
            )
            for index in range(num_scales)
        )

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Judgement:
        """Judge ``(B, 1, T)`` with valid samples ``(B,)``; all are valid without them."""
        check_waveform(waveform, 1)
        valid = needed_lengths(lengths, waveform.shape[2])
        x, judgements = waveform, []
        for index, scale in enumerate(self.scales):
            if index:
                x = F.avg_pool1d(_masked(x, valid), 4, 2, padding=2)
                valid = None if valid is None else valid // 2 + 1
            judgements.append(scale(x, valid))
        return _merged(judgements, valid is not None)


class CombinedDiscriminator(nn.Module):
    """Several discriminators as one: HiFi-GAN's multi-period and multi-scale.

    Parameters
    ----------
    parts : list of nn.Module
        Each gives a `Judgement` of a waveform and lengths.

    Examples
    --------
    >>> part = MultiScaleDiscriminator(num_scales=1, layers=((4, 15, 1, 1),))
    >>> judge = CombinedDiscriminator(parts=[part])
    >>> len(judge(torch.randn(1, 1, 240)).logits)
    1
    """

    def __init__(self, *, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts is empty: give at least one discriminator")
        self.parts = nn.ModuleList(parts)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Judgement:
        """Judge ``(B, C, T)`` with valid samples ``(B,)``; all are valid without them."""
        return merge_judgements([part(waveform, lengths) for part in self.parts])


def _masked(x: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return x
    return x.masked_fill(~length_mask(lengths, x.shape[2]).unsqueeze(1), 0.0)


def _merged(judgements: Sequence[Judgement], padded: bool) -> Judgement:
    """Merge; a scale whose items happen to be full says so where the others have lengths."""
    if not padded:
        return merge_judgements(judgements)
    return merge_judgements([_with_frames(judgement) for judgement in judgements])


def _with_frames(judgement: Judgement) -> Judgement:
    if judgement.frames is not None:
        return judgement
    frames = [
        [torch.full((len(x),), x.shape[2], device=x.device) for x in (*maps, logits)]
        for maps, logits in zip(judgement.features, judgement.logits)
    ]
    return judgement._replace(frames=frames)
