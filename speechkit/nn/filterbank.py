"""Learned filter banks: waveform to frames and back, the outer shell of a separation network."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.masking import Padded, mask_padding

Activation = Literal["relu", "none"]


def _check_geometry(kernel_size: int, stride: int) -> None:
    if not 1 <= stride <= kernel_size:
        raise ValueError(
            f"stride={stride} must be between 1 and kernel_size={kernel_size}: samples between "
            "kernels would be lost"
        )


class FilterbankEncoder(nn.Module):
    """A strided convolution over the waveform.

    Luo and Mesgarani 2019, "Conv-TasNet", section II-B. The waveform is padded with zeros at its
    end, up to the next whole kernel, so that every sample is seen by the decoder too::

        samples   | a b c d e f 0 0 |      kernel 4, stride 2: a length of 6 or less than 8 is
        kernels   | - - - - |              padded to the next one that kernels cover exactly
                      | - - - - |
                          | - - - - |

    Parameters
    ----------
    num_filters : int
        Features of a frame.
    kernel_size : int
        Samples that a filter sees.
    stride : int
        Samples between frames.
    activation : {"relu", "none"}
        What follows the convolution.

    Examples
    --------
    >>> encoder = FilterbankEncoder(num_filters=8, kernel_size=4, stride=2)
    >>> frames = encoder(torch.randn(2, 7), torch.tensor([7, 3]))
    >>> frames.data.shape, frames.lengths.tolist()
    (torch.Size([2, 3, 8]), [3, 1])
    """

    def __init__(
        self,
        *,
        num_filters: int,
        kernel_size: int = 16,
        stride: int = 8,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        _check_geometry(kernel_size, stride)
        if activation not in ("relu", "none"):
            raise ValueError(f"unknown activation {activation!r}: choose 'relu' or 'none'")
        self.num_filters = num_filters
        self.kernel_size = kernel_size
        self.stride = stride
        self.activation = activation
        self.conv = nn.Conv1d(1, num_filters, kernel_size, stride=stride, bias=False)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Return how many frames so many samples give; at least one, where there is a sample."""
        more = torch.div(
            (lengths - self.kernel_size).clamp(min=0) + self.stride - 1,
            self.stride,
            rounding_mode="floor",
        )
        return (more + 1) * (lengths > 0)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Padded:
        """Encode waveforms.

        Parameters
        ----------
        waveform : Tensor
            Shape ``(B, T)``.
        lengths : Tensor
            Shape ``(B,)``: valid samples.

        Returns
        -------
        Padded
            Frames ``(B, T', num_filters)``, not negative with ``"relu"``, zero in the padding.

        Raises
        ------
        ValueError
            If the waveform is not ``(B, T)``.
        """
        if waveform.dim() != 2 or lengths.shape != waveform.shape[:1]:
            raise ValueError(
                "waveform must be (B, T) with lengths (B,), got "
                f"{tuple(waveform.shape)} and {tuple(lengths.shape)}"
            )
        frames = int(self.num_frames(torch.tensor(max(1, waveform.shape[1]))))
        samples = (frames - 1) * self.stride + self.kernel_size
        waveform = F.pad(mask_padding(waveform, lengths), (0, samples - waveform.shape[1]))
        # A matrix product over overlapping pieces: (B, T', K) @ (K, N).
        pieces = waveform.unfold(1, self.kernel_size, self.stride)
        x = F.linear(pieces, self.conv.weight.squeeze(1))
        return Padded(F.relu(x) if self.activation == "relu" else x, self.num_frames(lengths))


class FilterbankDecoder(nn.Module):
    """A transposed convolution from frames back to a waveform: kernels overlap and add.

    Parameters
    ----------
    num_filters, kernel_size, stride : int
        As in the encoder.

    Examples
    --------
    >>> decoder = FilterbankDecoder(num_filters=8, kernel_size=4, stride=2)
    >>> decoder(torch.randn(2, 3, 8), 7).shape
    torch.Size([2, 7])
    """

    def __init__(self, *, num_filters: int, kernel_size: int = 16, stride: int = 8) -> None:
        super().__init__()
        _check_geometry(kernel_size, stride)
        self.num_filters = num_filters
        self.kernel_size = kernel_size
        self.stride = stride
        self.conv = nn.ConvTranspose1d(num_filters, 1, kernel_size, stride=stride, bias=False)

    def forward(self, frames: Tensor, num_samples: int) -> Tensor:
        """Turn frames ``(B, T', num_filters)`` into the first samples ``(B, num_samples)``.

        The frames must be zero in the padding.
        """
        pieces = F.linear(frames, self.conv.weight.squeeze(1).T)  # (B, T', K)
        waveform = overlap_add(pieces, self.stride)
        missing = num_samples - waveform.shape[1]
        return F.pad(waveform, (0, missing)) if missing > 0 else waveform[:, :num_samples]


def overlap_add(pieces: Tensor, stride: int) -> Tensor:
    """Add pieces ``(B, T', K)`` that begin every ``stride`` samples: ``(B, (T' - 1) stride + K)``.

    Examples
    --------
    >>> overlap_add(torch.ones(1, 3, 2), 1).tolist()
    [[1.0, 2.0, 2.0, 1.0]]
    """
    batch, frames, size = pieces.shape
    parts = -(-size // stride)
    pieces = F.pad(pieces, (0, parts * stride - size))
    length = (frames - 1) * stride + size
    # Part p of piece t lies in block t + p: as many additions as kernels overlap.
    out = pieces.new_zeros(batch, frames + parts - 1, stride)
    for part in range(parts):
        out[:, part : part + frames] += pieces[..., part * stride : (part + 1) * stride]
    return out.flatten(1)[:, :length]
