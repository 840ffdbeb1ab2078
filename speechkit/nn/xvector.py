"""The frame-level network of x-vectors: a stack of time-delay layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from speechkit.nn.masking import Padded, mask_padding, ragged
from speechkit.nn.tdnn import ActivationKind, PaddingKind, TDNNLayer


class XVectorEncoder(nn.Module):
    """Time-delay layers whose kernels reach over ever more frames.

    Snyder et al. 2018, "X-vectors: robust DNN embeddings for speaker recognition", table 1: with 24
    features, `speechkit.nn.pooling.StatisticsPooling` and an embedding of 512 it has the 4.2
    million parameters of the paper (without what follows the embedding in training, which is
    ``hidden_size`` of `speechkit.losses.speaker.SpeakerLoss`). There are as many frames after as
    before; the paper's recordings lose those at the edges.

    Parameters
    ----------
    input_size : int
        Features per frame.
    channels, kernel_sizes, dilations : sequence of int
        Of each layer: features after it, taps, frames between taps.
    padding : {"zeros", "reflect"}
        What stands beyond an item's ends; ``"reflect"`` in SpeechBrain's models.
    activation : {"relu", "leaky_relu"}
        Of all layers; ``"leaky_relu"`` in SpeechBrain's models.

    Raises
    ------
    ValueError
        If the sequences differ in length or are empty, or a kernel is even.

    Examples
    --------
    >>> import torch
    >>> encoder = XVectorEncoder(input_size=24, channels=(8, 16), kernel_sizes=(5, 3),
    ...                          dilations=(1, 2))
    >>> out = encoder(torch.randn(2, 30, 24), torch.tensor([30, 4]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 30, 16]), [30, 4])
    """

    def __init__(
        self,
        *,
        input_size: int = 24,
        channels: Sequence[int] = (512, 512, 512, 512, 1500),
        kernel_sizes: Sequence[int] = (5, 3, 3, 1, 1),
        dilations: Sequence[int] = (1, 2, 3, 1, 1),
        padding: PaddingKind = "zeros",
        activation: ActivationKind = "relu",
    ) -> None:
        super().__init__()
        if not len(channels) == len(kernel_sizes) == len(dilations) or not channels:
            raise ValueError(
                f"channels {list(channels)}, kernel_sizes {list(kernel_sizes)} and dilations "
                f"{list(dilations)} must name the same layers, at least one"
            )
        self.input_size = input_size
        self.channels = list(channels)
        self.kernel_sizes = list(kernel_sizes)
        self.dilations = list(dilations)
        self.padding = padding
        self.activation = activation
        sizes = [input_size, *channels]
        self.layers = nn.ModuleList(
            TDNNLayer(
                input_size=sizes[i],
                output_size=sizes[i + 1],
                kernel_size=kernel_sizes[i],
                dilation=dilations[i],
                padding=padding,
                activation=activation,
            )
            for i in range(len(channels))
        )

    @property
    def output_size(self) -> int:
        """Features per output frame."""
        return self.channels[-1]

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames: the same."""
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, T, channels[-1])``, zero in the padding."""
        valid = ragged(lengths, x.shape[1])
        if valid is not None:
            x = mask_padding(x, valid)
        for layer in self.layers:
            x = layer(x, valid)
        return Padded(x, lengths)
