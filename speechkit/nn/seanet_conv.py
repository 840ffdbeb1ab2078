"""Convolutions of a SEANet: padded inside, causal or centred, exact for padded batches.

Layout is ``(B, C, T)`` here. A convolution of stride ``s`` gives ``ceil(T / s)`` frames, whatever
``T`` is: behind its end an item is padded until the last window is full::

    stride 2, kernel 4, causal      p p a b c d e p       p: padding, two before and one behind
                                    [p p a b] [a b c d] [c d e p]

In a batch every item is padded at its own end, by zeros or by its own mirror image.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from speechkit.nn.conv import strided_lengths
from speechkit.nn.masking import length_mask

NormKind = Literal["weight", "time_group", "none"]
PadMode = Literal["constant", "reflect"]
_NORMS = ("weight", "time_group", "none")
_PAD_MODES = ("constant", "reflect")


def mask_channels(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero the padding of ``(B, C, T)``; without lengths, nothing is padding.

    Examples
    --------
    >>> mask_channels(torch.ones(1, 1, 3), torch.tensor([2])).tolist()
    [[[1.0, 1.0, 0.0]]]
    """
    if lengths is None:
        return x
    return x.masked_fill(~length_mask(lengths, x.shape[2]).unsqueeze(1), 0.0)


def pad_ends(
    x: Tensor,
    left: int,
    right: int,
    *,
    stride: int = 1,
    mode: PadMode = "constant",
    lengths: Tensor | None = None,
) -> Tensor:
    """Pad each item before its start and behind its end, so that the last window is full.

    Parameters
    ----------
    x : Tensor
        Shape ``(B, C, T)``.
    left, right : int
        Frames before the start and behind the end.
    stride : int
        Of the convolution that follows; up to ``stride - 1`` frames more are padded behind.
    mode : {"constant", "reflect"}
        Zeros, or the item mirrored. An item too short to be mirrored is first made longer by zeros.
    lengths : Tensor, optional
        Shape ``(B,)``: valid frames; all by default.

    Returns
    -------
    Tensor
        Shape ``(B, C, left + T + right + stride - 1)``.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 2.0, 3.0, 9.0]]])
    >>> pad_ends(x, 2, 1, mode="reflect", lengths=torch.tensor([3])).tolist()
    [[[3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 0.0]]]
    """
    x = mask_channels(x, lengths)
    size = x.shape[2]
    tail = right + stride - 1
    if mode == "constant" or left + tail == 0:
        return F.pad(x, (left, tail)) if left + tail else x
    if lengths is None:
        behind = right + -size % stride
        needed = max(left, behind) + 1
        longer = F.pad(x, (0, needed - size)) if size < needed else x
        mirrored = F.pad(longer, (left, behind), "reflect")[..., : left + size + behind]
        return F.pad(mirrored, (0, tail - behind)) if tail > behind else mirrored
    return _mirror_items(x, left, right, tail, stride, lengths)


def _mirror_items(
    x: Tensor, left: int, right: int, tail: int, stride: int, lengths: Tensor
) -> Tensor:
    """Mirror items of different lengths; ``x`` is zero in the padding."""
    size = x.shape[2]
    if size <= left:
        x = F.pad(x, (0, left + 1 - size))
    padded = F.pad(x[..., :size], (left, tail))
    if left:
        padded[..., :left] = x[..., 1 : left + 1].flip(2)
    if not tail:
        return padded
    # An item shorter than its padding counts as longer, by zeros, as F.pad needs it.
    behind = right + -lengths % stride
    virtual = lengths.maximum(behind.clamp(min=left) + 1).unsqueeze(1)
    places = lengths.unsqueeze(1) + torch.arange(tail, device=x.device)  # (B, tail)
    sources = torch.where(places < virtual, places, 2 * (virtual - 1) - places).clamp(min=0)
    real = sources < lengths.unsqueeze(1)
    wide = (-1, x.shape[1], -1)
    index = sources.clamp(max=x.shape[2] - 1).unsqueeze(1).expand(wide)
    values = x.gather(2, index).masked_fill(~real.unsqueeze(1), 0.0)
    return padded.scatter(2, (left + places).unsqueeze(1).expand(wide), values)


class TimeGroupNorm(nn.Module):
    """Normalise each item over all its frames and channels, then scale each channel.

    Wu and He 2018, "Group normalization", with one group. It needs the whole item, so a network
    with it is neither causal nor streams.

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> norm = TimeGroupNorm(num_features=3)
    >>> x = torch.randn(2, 3, 8)
    >>> batch, alone = norm(x, torch.tensor([8, 5])), norm(x[1:, :, :5])
    >>> torch.allclose(batch[1, :, :5], alone[0], atol=1e-5)
    True
    """

    def __init__(self, *, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise ``(B, C, T)``; the padding must be finite."""
        if lengths is None:
            return F.group_norm(x, 1, self.weight, self.bias, self.eps)
        shares = length_mask(lengths, x.shape[2]) / lengths.clamp(min=1).unsqueeze(1)
        shares = shares.unsqueeze(1) / self.num_features  # (B, 1, T)
        x = x.float()
        mean = (x * shares).sum((1, 2), keepdim=True)
        centred = x - mean
        var = (centred.square() * shares).sum((1, 2), keepdim=True)
        scale = (var + self.eps).rsqrt() * self.weight.unsqueeze(1)
        return torch.addcmul(self.bias.unsqueeze(1), centred, scale)


def _check(norm: str, pad_mode: str, causal: bool) -> None:
    if norm not in _NORMS:
        raise ValueError(f"unknown norm {norm!r}: choose from {list(_NORMS)}")
    if pad_mode not in _PAD_MODES:
        raise ValueError(f"unknown pad_mode {pad_mode!r}: choose from {list(_PAD_MODES)}")
    if causal and norm == "time_group":
        raise ValueError(
            "norm='time_group' looks at the whole item and cannot be causal: use norm='weight', or "
            "causal=False"
        )


class SEANetConv(nn.Module):
    """A 1-D convolution that pads each item, with its norm.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, dilation : int
        As in `torch.nn.Conv1d`.
    causal : bool
        Whether all padding but what fills the last window lies before the start.
    norm : {"weight", "time_group", "none"}
        Weight norm (Salimans and Kingma 2016), `TimeGroupNorm` of the output, or neither.
    pad_mode : {"constant", "reflect"}
        See `pad_ends`. With ``"reflect"`` the first frames depend on some that come after them.

    Raises
    ------
    ValueError
        For an unknown choice, or a causal time-group norm.

    Examples
    --------
    >>> conv = SEANetConv(in_channels=1, out_channels=4, kernel_size=4, stride=2)
    >>> conv(torch.randn(2, 1, 9)).shape, conv.num_frames(torch.tensor([9, 4])).tolist()
    (torch.Size([2, 4, 5]), [5, 2])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = True,
        norm: NormKind = "weight",
        pad_mode: PadMode = "constant",
    ) -> None:
        super().__init__()
        _check(norm, pad_mode, causal)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.causal = causal
        self.norm = norm
        self.pad_mode = pad_mode
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, dilation=dilation)
        _start(conv, in_channels * kernel_size)
        self.conv = weight_norm(conv) if norm == "weight" else conv
        self.time_norm = TimeGroupNorm(num_features=out_channels) if norm == "time_group" else None

    @property
    def reach(self) -> int:
        """Input frames under one window."""
        return (self.kernel_size - 1) * self.dilation + 1

    @property
    def padding(self) -> int:
        """Frames padded, besides those that fill the last window."""
        return self.reach - self.stride

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames."""
        return strided_lengths(lengths, self.stride)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, in_channels, T)`` to ``(B, out_channels, ceil(T / stride))``."""
        if x.shape[2] == 0:
            return x.new_zeros(x.shape[0], self.out_channels, 0)
        # Odd paddings of a centred kernel have their larger half before the start.
        right = 0 if self.causal else self.padding // 2
        x = pad_ends(
            x,
            self.padding - right,
            right,
            stride=self.stride,
            mode=self.pad_mode,
            lengths=lengths,
        )
        x = self.conv(x)
        if self.time_norm is None:
            return x
        return self.time_norm(x, None if lengths is None else self.num_frames(lengths))


class SEANetTransposedConv(nn.Module):
    """A transposed 1-D convolution that gives ``stride`` frames for each of its input.

    The kernel is ``2 * stride`` long; what sticks out is cut off, behind the end where it is
    causal, and on both sides otherwise.

    Parameters
    ----------
    in_channels, out_channels, stride : int
        As in `torch.nn.ConvTranspose1d`.
    causal, norm
        As in `SEANetConv`.

    Raises
    ------
    ValueError
        For an unknown norm, or a causal time-group norm.

    Examples
    --------
    >>> SEANetTransposedConv(in_channels=4, out_channels=2, stride=5)(torch.randn(1, 4, 3)).shape
    torch.Size([1, 2, 15])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        stride: int,
        causal: bool = True,
        norm: NormKind = "weight",
    ) -> None:
        super().__init__()
        _check(norm, "constant", causal)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.causal = causal
        self.norm = norm
        conv = nn.ConvTranspose1d(in_channels, out_channels, 2 * stride, stride)
        _start(conv, 2 * in_channels)  # as many products make a sample
        self.conv = weight_norm(conv) if norm == "weight" else conv
        self.time_norm = TimeGroupNorm(num_features=out_channels) if norm == "time_group" else None

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, in_channels, T)`` to ``(B, out_channels, T * stride)``."""
        size = x.shape[2] * self.stride
        if size == 0:
            return x.new_zeros(x.shape[0], self.out_channels, 0)
        x = self.conv(mask_channels(x, lengths))
        if self.time_norm is not None:  # over what is cut off too, as in the published networks
            x = self.time_norm(x, None if lengths is None else (lengths + 1) * self.stride)
        first = 0 if self.causal else self.stride - self.stride // 2
        return x[..., first : first + size]


def _start(conv: nn.Conv1d | nn.ConvTranspose1d, products: int) -> None:
    """Draw weights that keep the power of what goes through (LeCun et al. 1998), without biases.

    With torch's own start, twenty layers leave little but biases of a signal: an autoencoder needs
    hundreds of updates before what comes out depends on what goes in.
    """
    nn.init.normal_(conv.weight, std=products**-0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def fold_weight_norm(module: nn.Module) -> nn.Module:
    """Put plain weights in the place of weight norm, for inference: faster, the same outputs.

    The module describes itself as one with ``norm="none"`` afterwards.

    Parameters
    ----------
    module : nn.Module
        Changed in place, with all that is inside it.

    Returns
    -------
    nn.Module
        The same module.

    Examples
    --------
    >>> conv = SEANetConv(in_channels=1, out_channels=2, kernel_size=3)
    >>> x = torch.randn(1, 1, 8)
    >>> before = conv(x)
    >>> after = fold_weight_norm(conv)(x)
    >>> torch.allclose(before, after, atol=1e-6), sorted(conv.state_dict())
    (True, ['conv.bias', 'conv.weight'])
    """
    for part in list(module.modules()):
        if parametrize.is_parametrized(part, "weight"):
            # Not torch's remove_parametrizations: it takes the weight from the class, which a
            # copy of the module shares.
            weight = nn.Parameter(part.weight.detach().clone())  # type: ignore[operator]
            part.__class__ = type(part).__bases__[0]
            del part.parametrizations
            part.weight = weight
        if getattr(part, "norm", None) == "weight":
            part.norm = "none"  # type: ignore[assignment]
    return module
