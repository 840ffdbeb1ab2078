"""Discriminators that look at spectrograms of waveforms, and what every discriminator returns.

All take ``(B, C, T)`` and give a `Judgement`; nothing here knows who made the waveform, so codecs
and vocoders share them. Those of `MultiScaleSTFTDiscriminator` and `MultiResolutionDiscriminator`
are `SpectrogramDiscriminator` with other numbers:

============= ============================ ============================ =========================
of            EnCodec (MS-STFT)            UnivNet (MRD)                DAC
============= ============================ ============================ =========================
input         complex, normalised          magnitude                    complex, in bands
windows       2048, 1024, 512, 256, 128    1200, 600, 240               2048, 1024, 512
hop           a quarter of the window      240, 120, 50                 a quarter of the window
dilations     1, 2, 4 frames               none                         none
ends          nothing beyond the item      mirrored                     mirrored
============= ============================ ============================ =========================

With ``lengths``, what lies beyond an item's end changes nothing of its judgement: every layer's
padding is set to zero, which is what the layer's own padding gives the item alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechkit.features.framing import one_of, pad_items
from speechkit.nn.masking import length_mask, mask_padding, ragged


class Judgement(NamedTuple):
    """What ``K`` sub-discriminators say of a batch of waveforms.

    Attributes
    ----------
    logits : list of Tensor
        One of each sub-discriminator, ``(B, 1, T', F')``: above zero where the signal seems real.
    features : list of list of Tensor
        The activations of the hidden layers of each, ``(B, N, T', F')``.
    frames : list of list of Tensor, optional
        Where some items are padded: of each sub-discriminator the valid ``T'`` of each feature map
        and, last, of the logits, ``(B,)`` each. The rest is zero.
    """

    logits: list[Tensor]
    features: list[list[Tensor]]
    frames: list[list[Tensor]] | None = None


def merge_judgements(judgements: Sequence[Judgement]) -> Judgement:
    """Make one judgement of several.

    Examples
    --------
    >>> one = Judgement([torch.zeros(1, 1, 2, 2)], [[]])
    >>> len(merge_judgements([one, one]).logits)
    2
    """
    frames = [scale for judgement in judgements for scale in judgement.frames or ()]
    return Judgement(
        [logits for judgement in judgements for logits in judgement.logits],
        [features for judgement in judgements for features in judgement.features],
        frames or None,
    )


def split_channels(waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Make each channel an item of its own, as EnCodec judges the two of stereo.

    Parameters
    ----------
    waveform : Tensor
        Shape ``(B, C, T)``.
    lengths : Tensor
        Shape ``(B,)``, valid samples.

    Returns
    -------
    tuple of Tensor
        Shapes ``(B * C, 1, T)`` and ``(B * C,)``; the channels of an item stand together.

    Examples
    --------
    >>> waveform, lengths = split_channels(torch.zeros(2, 2, 5), torch.tensor([5, 3]))
    >>> waveform.shape, lengths.tolist()
    (torch.Size([4, 1, 5]), [5, 5, 3, 3])
    """
    return waveform.flatten(0, 1).unsqueeze(1), lengths.repeat_interleave(waveform.shape[1])


def mask_frames(x: Tensor, frames: Tensor | None) -> Tensor:
    """Zero what lies beyond the valid frames of ``(B, N, T', F')``; nothing does without them.

    Examples
    --------
    >>> mask_frames(torch.ones(1, 1, 2, 1), torch.tensor([1])).flatten().tolist()
    [1.0, 0.0]
    """
    if frames is None:
        return x
    return x.masked_fill(~length_mask(frames, x.shape[2])[:, None, :, None], 0.0)


def needed_lengths(lengths: Tensor | None, samples: int) -> Tensor | None:
    """Forget lengths that are all the whole batch's, where that can be seen without a wait.

    Masks take a quarter of the time of a forward pass, and training often cuts whole segments. On a
    GPU a look at the lengths would wait for it: leave them out there if no item is padded.

    Examples
    --------
    >>> needed_lengths(torch.tensor([5, 5]), 5) is None, needed_lengths(torch.tensor([5, 4]), 5)
    (True, tensor([5, 4]))
    """
    if lengths is None or lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return lengths
    return ragged(lengths, samples)


def check_waveform(waveform: Tensor, channels: int) -> None:
    """Raise a ValueError unless a waveform is ``(B, channels, T)`` with samples in it."""
    if waveform.dim() != 3 or waveform.shape[1] != channels or waveform.shape[2] == 0:
        raise ValueError(
            f"need a waveform (B, {channels}, T) with T > 0, got shape {tuple(waveform.shape)}; "
            "split_channels makes mono of stereo"
        )


def _conv(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: int, dilation: int
) -> nn.Module:
    padding = (dilation * (kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride=(1, stride), padding=padding, dilation=(dilation, 1)
    )
    return weight_norm(conv)


class SpectrogramDiscriminator(nn.Module):
    """2-D convolutions over one spectrogram of a waveform.

    A convolution that keeps the bins; one of stride ``stride`` over the bins for each dilation; a
    square one; and the square one that gives the logits, weight norm (Salimans and Kingma 2016) in
    all and a leaky ReLU behind all but the last.

    Parameters
    ----------
    n_fft : int
        Samples of a frame.
    hop_length : int
        Samples from one frame to the next.
    win_length : int, optional
        Samples of the Hann window; ``n_fft`` by default.
    channels : int
        Of the waveform, judged together.
    num_filters : int
        Channels of the hidden layers.
    kernel_size : tuple of int
        Odd: frames and bins of the kernels; the square ones have the frames both ways.
    stride : int
        Bins, of all hidden convolutions but the first and the last.
    dilations : sequence of int
        Frames between the taps of those convolutions.
    representation : {"complex", "magnitude"}
        Real and imaginary parts as channels, or the modulus.
    normalize : bool
        Divide the window by its 2-norm, so that the level of noise does not depend on its length.
    pad_mode : {"none", "reflect"}
        Beyond an item's ends: nothing (an item shorter than a frame ends in zeros), or the item
        mirrored by ``(n_fft - hop_length) // 2`` samples.
    bands : sequence of float, optional
        Edges, from 0 to 1 (half the sample rate), of bands that have hidden layers of their own.
    negative_slope : float
        Of the leaky ReLU.

    Raises
    ------
    ValueError
        Where the settings contradict each other, or an input has another shape.

    Examples
    --------
    >>> judge = SpectrogramDiscriminator(n_fft=64, hop_length=16, num_filters=4)
    >>> judgement = judge(torch.randn(2, 1, 160), torch.tensor([160, 96]))
    >>> judgement.logits[0].shape, judgement.frames[0][-1].tolist()
    (torch.Size([2, 1, 7, 5]), [7, 3])
    """

    _window: Tensor

    def __init__(
        self,
        *,
        n_fft: int,
        hop_length: int,
        win_length: int | None = None,
        channels: int = 1,
        num_filters: int = 32,
        kernel_size: tuple[int, int] = (3, 9),
        stride: int = 2,
        dilations: Sequence[int] = (1, 2, 4),
        representation: str = "complex",
        normalize: bool = True,
        pad_mode: str = "none",
        bands: Sequence[float] | None = None,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.win_length = win_length
        self.channels = channels
        self.num_filters = num_filters
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilations = dilations
        self.representation = representation
        self.normalize = normalize
        self.pad_mode = pad_mode
        self.bands = bands
        self.negative_slope = negative_slope
        self._check()
        window = torch.hann_window(win_length or n_fft)
        self.register_buffer("_window", window / window.norm() if normalize else window, False)
        tall, _ = kernel_size
        inputs = channels * (2 if representation == "complex" else 1)
        self.stacks = nn.ModuleList(self._stack(inputs) for _ in self._edges()[1:])
        self.output = _conv(num_filters, 1, (tall, tall), 1, 1)

    def _check(self) -> None:
        one_of("representation", self.representation, ("complex", "magnitude"))
        one_of("pad_mode", self.pad_mode, ("none", "reflect"))
        if not 0 < self.hop_length <= (self.win_length or self.n_fft) <= self.n_fft:
            raise ValueError(
                f"need 0 < hop_length <= win_length <= n_fft, got hop_length={self.hop_length}, "
                f"win_length={self.win_length}, n_fft={self.n_fft}"
            )
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(f"kernel_size must be odd both ways, got {self.kernel_size}")
        edges = self._edges()
        if edges[0] != 0 or edges[-1] != self.n_fft // 2 + 1 or sorted(set(edges)) != edges:
            raise ValueError(
                f"bands must rise from 0.0 to 1.0, with a bin in each, got {self.bands} for "
                f"n_fft={self.n_fft}"
            )

    def _edges(self) -> list[int]:
        """Give the first bin of each band and, last, the number of bins."""
        bins = self.n_fft // 2 + 1
        return [int(edge * bins) for edge in self.bands or (0.0, 1.0)]

    def _stack(self, inputs: int) -> nn.ModuleList:
        filters, (tall, _) = self.num_filters, self.kernel_size
        return nn.ModuleList(
            [
                _conv(inputs, filters, self.kernel_size, 1, 1),
                *(
                    _conv(filters, filters, self.kernel_size, self.stride, d)
                    for d in self.dilations
                ),
                _conv(filters, filters, (tall, tall), 1, 1),
            ]
        )

    def _spectrogram(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``(B, inputs, T', F)`` in float32, and the valid frames ``(B,)``."""
        batch = waveform.shape[0]
        x, each = waveform.flatten(0, 1).float(), lengths.repeat_interleave(self.channels)
        pad = (self.n_fft - self.hop_length) // 2 if self.pad_mode == "reflect" else 0
        x = pad_items(x, each, pad) if pad else mask_padding(x, each)
        x = F.pad(x, (0, max(0, self.n_fft - x.shape[1])))
        over = (lengths + 2 * pad - self.n_fft).clamp(min=0)
        frames = (torch.div(over, self.hop_length, rounding_mode="floor") + 1) * (lengths > 0)
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.stft(
                x, self.n_fft, hop_length=self.hop_length, win_length=self.win_length,
                window=self._window.float(), center=False, return_complex=True,
            )  # fmt: skip
            spectrum = spectrum.unflatten(0, (batch, self.channels)).transpose(2, 3)
            if self.representation == "complex":
                return torch.cat([spectrum.real, spectrum.imag], dim=1), frames
            # The gradient of a modulus at zero is not finite.
            power = spectrum.real.square() + spectrum.imag.square()
            return power.clamp_min(torch.finfo(torch.float32).tiny).sqrt(), frames

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Judgement:
        """Judge ``(B, channels, T)`` with valid samples ``(B,)``; all are valid without them."""
        check_waveform(waveform, self.channels)
        lengths = needed_lengths(lengths, waveform.shape[2])
        whole = torch.full((waveform.shape[0],), waveform.shape[2], device=waveform.device)
        x, counts = self._spectrogram(waveform, whole if lengths is None else lengths)
        frames = None if lengths is None else counts
        x = mask_frames(x, frames)
        features, tops = [], []
        edges = self._edges()
        for stack, low, high in zip(self.stacks, edges, edges[1:]):
            band = x[..., low:high]
            assert isinstance(stack, nn.ModuleList)
            for conv in stack:
                band = mask_frames(F.leaky_relu(conv(band), self.negative_slope), frames)
                features.append(band)
            tops.append(band)
        logits = mask_frames(self.output(torch.cat(tops, dim=3)), frames)
        valid = None if frames is None else [[frames] * (len(features) + 1)]
        return Judgement([logits], [features], valid)


class Discriminators(nn.Module):
    """Several discriminators of different kinds as one.

    Parameters
    ----------
    parts : sequence of Module
        Each gives a `Judgement` of ``(waveform, lengths)``.

    Examples
    --------
    >>> kinds = [SpectrogramDiscriminator(n_fft=n, hop_length=8, num_filters=2) for n in (16, 32)]
    >>> judgement = Discriminators(parts=kinds)(torch.randn(1, 1, 100))
    >>> len(judgement.logits), judgement.frames is None
    (2, True)
    """

    def __init__(self, *, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts is empty: give at least one discriminator")
        self.parts = nn.ModuleList(parts)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Judgement:
        """Judge ``(B, C, T)`` with valid samples ``(B,)``; all are valid without them."""
        return merge_judgements([part(waveform, lengths) for part in self.parts])


class MultiScaleSTFTDiscriminator(nn.Module):
    """The discriminator of EnCodec (Defossez et al. 2022, section 3.4 and figure 2).

    The complex spectrogram at several windows, each with a hop of a quarter of it. The paper
    doubles the windows at 48 kHz.

    Parameters
    ----------
    channels : int
        Of the waveform, judged together; the paper judges those of stereo apart (see
        `split_channels`).
    num_filters, kernel_size, stride, dilations, negative_slope
        As in `SpectrogramDiscriminator`. The paper writes a kernel of 3 x 8, its authors' code and
        we have 3 x 9.
    windows : sequence of int
        Samples, each divisible by 4.

    Examples
    --------
    >>> judge = MultiScaleSTFTDiscriminator(num_filters=2)
    >>> judgement = judge(torch.randn(1, 1, 4096))
    >>> [tuple(logits.shape[2:]) for logits in judgement.logits]
    [(5, 129), (13, 65), (29, 33), (61, 17), (125, 9)]
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        num_filters: int = 32,
        windows: Sequence[int] = (2048, 1024, 512, 256, 128),
        kernel_size: tuple[int, int] = (3, 9),
        stride: int = 2,
        dilations: Sequence[int] = (1, 2, 4),
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        if not windows or any(window < 4 or window % 4 for window in windows):
            raise ValueError(f"windows must be multiples of 4, at least one, got {list(windows)}")
        self.channels = channels
        self.num_filters = num_filters
        self.windows = windows
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilations = dilations
        self.negative_slope = negative_slope
        self.scales = nn.ModuleList(
            SpectrogramDiscriminator(
                n_fft=window, hop_length=window // 4, channels=channels, num_filters=num_filters,
                kernel_size=kernel_size, stride=stride, dilations=dilations,
                negative_slope=negative_slope,
            )
            for window in windows
        )  # fmt: skip

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Judgement:
        """Judge ``(B, channels, T)`` with valid samples ``(B,)``; all are valid without them."""
        return merge_judgements([scale(waveform, lengths) for scale in self.scales])
