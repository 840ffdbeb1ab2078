"""Time-delay layers: convolution over frames, activation, batch norm.

Batches are ``(B, T, C)`` with the features of a frame side by side in memory. A kernel of one frame
is a product of matrices, a longer one a convolution whose image is one row, channels last: neither
copies the batch into another layout, which on a CPU costs as much as the smaller convolutions.

At an item's edge there are zeros, or its own frames mirrored::

    item          a b c d          reach of the kernel: 2
    zeros     0 0 a b c d 0 0
    reflect   c b a b c d c b      the padding that SpeechBrain's models were trained with
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.conv import MaskedBatchNorm

PaddingKind = Literal["zeros", "reflect"]
ActivationKind = Literal["relu", "leaky_relu"]


def mirror_frames(x: Tensor, reach: int, lengths: Tensor | None = None) -> Tensor:
    """Continue each item beyond both of its ends by its own frames, mirrored.

    Parameters
    ----------
    x : Tensor
        Shape ``(B, T, C)``.
    reach : int
        Frames to add at each end.
    lengths : Tensor, optional
        Shape ``(B,)``: valid frames; all by default. An item that is shorter than the reach is
        mirrored again and again.

    Returns
    -------
    Tensor
        Shape ``(B, reach + T + reach, C)``.

    Examples
    --------
    >>> x = torch.tensor([[[1.0], [2.0], [3.0], [9.0]]])
    >>> mirror_frames(x, 2, torch.tensor([3])).flatten().tolist()
    [3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0, 2.0]
    """
    frames = x.shape[1]
    if lengths is None and frames > reach:
        before, after = x[:, 1 : reach + 1].flip(1), x[:, frames - reach - 1 : -1].flip(1)
        return torch.cat([before, x, after], dim=1)
    if lengths is None:
        lengths = torch.full((len(x),), frames, device=x.device)
    last = (lengths.clamp(min=1) - 1).unsqueeze(1)  # (B, 1)
    positions = torch.arange(-reach, frames + reach, device=x.device)
    positions = positions.remainder((2 * last).clamp(min=1))  # (B, T'): there and back again
    positions = torch.minimum(positions, 2 * last - positions).clamp(min=0)
    return x.gather(1, positions.unsqueeze(2).expand(-1, -1, x.shape[2]))


def frame_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    dilation: int = 1,
    padding: PaddingKind = "zeros",
    lengths: Tensor | None = None,
) -> Tensor:
    """Convolve frames with a centred kernel; there are as many frames after as before.

    Parameters
    ----------
    x : Tensor
        Shape ``(B, T, C)``; zero in the padding.
    weight : Tensor
        Shape ``(D, C, K)``, K odd.
    bias : Tensor, optional
        Shape ``(D,)``.
    dilation : int
        Frames between taps.
    padding : {"zeros", "reflect"}
        What stands beyond an item's ends.
    lengths : Tensor, optional
        Shape ``(B,)``: valid frames; all by default.

    Returns
    -------
    Tensor
        Shape ``(B, T, D)``; not zero in the padding.

    Examples
    --------
    >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> frame_conv(x, torch.ones(1, 1, 3), None).flatten().tolist()
    [3.0, 6.0, 5.0]
    >>> frame_conv(x, torch.ones(1, 1, 3), None, padding="reflect").flatten().tolist()
    [5.0, 6.0, 7.0]
    """
    if weight.shape[2] == 1:
        return F.linear(x, weight.squeeze(2), bias)
    reach = dilation * (weight.shape[2] // 2)
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], 0, weight.shape[0])
    if padding == "reflect":
        x, reach = mirror_frames(x, reach, lengths), 0
    image = x.unsqueeze(1).permute(0, 3, 1, 2)  # (B, C, 1, T)
    out = F.conv2d(image, weight.unsqueeze(2), bias, padding=(0, reach), dilation=(1, dilation))
    return out.permute(0, 2, 3, 1).squeeze(1)


class FrameBatchNorm(MaskedBatchNorm):
    """`MaskedBatchNorm` that leaves a batch without padding to torch's own kernel.

    Parameters
    ----------
    num_features : int
        Features per frame.
    eps : float
        Added to the variance.
    momentum : float
        Share of the batch's statistics in the new running averages.

    Examples
    --------
    >>> norm = FrameBatchNorm(num_features=4)
    >>> x = torch.randn(2, 50, 4) * 3 + 1
    >>> torch.allclose(norm(x), norm(x, torch.tensor([50, 50])), atol=1e-5)
    True
    """

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise ``(B, T, num_features)``; all frames are valid where no lengths are given."""
        rows = x.shape[0] * x.shape[1]
        if lengths is None and rows < (2 if self.training else 1):  # torch's wants more
            lengths = torch.full((len(x),), x.shape[1], device=x.device)
        if lengths is not None:
            return super().forward(x, lengths)
        mean, var = self.running_mean, self.running_var
        if self.training:
            # torch keeps for the gradient what it is given, and a later call would change that.
            mean, var = mean.clone(), var.clone()
        image = x.unsqueeze(1).permute(0, 3, 1, 2)  # (B, C, 1, T), channels last in memory
        out = F.batch_norm(
            image, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        if self.training:
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
        return out.permute(0, 2, 3, 1).squeeze(1)


class TDNNLayer(nn.Module):
    """Convolution over frames, activation, batch norm; as many frames after as before.

    Waibel et al. 1989, "Phoneme recognition using time-delay neural networks"; in this order in
    Snyder et al. 2018 (x-vectors) and Desplanques et al. 2020 (ECAPA-TDNN).

    Parameters
    ----------
    input_size, output_size : int
        Features per frame before and after.
    kernel_size : int
        Odd; taps.
    dilation : int
        Frames between taps.
    padding : {"zeros", "reflect"}
        What stands beyond an item's ends.
    activation : {"relu", "leaky_relu"}
        The leaky one has a slope of 0.01.

    Raises
    ------
    ValueError
        If the kernel is even, or padding or activation unknown.

    Examples
    --------
    >>> layer = TDNNLayer(input_size=80, output_size=16, kernel_size=5)
    >>> layer(torch.randn(2, 30, 80)).shape
    torch.Size([2, 30, 16])
    """

    def __init__(
        self,
        *,
        input_size: int,
        output_size: int,
        kernel_size: int = 1,
        dilation: int = 1,
        padding: PaddingKind = "zeros",
        activation: ActivationKind = "relu",
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that frames stay centred: {kernel_size}")
        if padding not in ("zeros", "reflect"):
            raise ValueError(f"unknown padding {padding!r}: choose 'zeros' or 'reflect'")
        if activation not in ("relu", "leaky_relu"):
            raise ValueError(f"unknown activation {activation!r}: choose 'relu' or 'leaky_relu'")
        self.input_size = input_size
        self.output_size = output_size
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.activation = activation
        self.conv = nn.Conv1d(input_size, output_size, kernel_size, dilation=dilation)
        self.norm = FrameBatchNorm(num_features=output_size)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, T, input_size)`` to ``(B, T, output_size)``.

        ``lengths`` ``(B,)`` are all T by default; where they are given, the input must be zero in
        the padding, and the output is.
        """
        x = frame_conv(
            x,
            self.conv.weight,
            self.conv.bias,
            dilation=self.dilation,
            padding=self.padding,
            lengths=lengths,
        )
        # In place saves a pass, but the gradient of a view changed in place costs two.
        inplace = not torch.is_grad_enabled()
        if self.activation == "relu":
            return self.norm(F.relu(x, inplace=inplace), lengths)
        return self.norm(F.leaky_relu(x, inplace=inplace), lengths)
