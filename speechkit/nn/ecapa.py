"""The frame-level network of ECAPA-TDNN: SE-Res2Net blocks, all of them aggregated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.masking import Padded, mask_padding, ragged
from speechkit.nn.tdnn import PaddingKind, TDNNLayer


class Res2NetLayer(nn.Module):
    """Convolution in groups, each of which also sees what the one before it gave.

    Gao et al. 2021, "Res2Net: a new multi-scale backbone architecture", figure 2(b), along time.

    Parameters
    ----------
    num_features : int
        Features per frame, in and out.
    scale : int
        Groups; the first one passes unchanged.
    kernel_size, dilation, padding
        As in `speechkit.nn.tdnn.TDNNLayer`.

    Raises
    ------
    ValueError
        If the features cannot be divided into ``scale`` groups, or there are less than two.
    """

    def __init__(
        self,
        *,
        num_features: int,
        scale: int = 8,
        kernel_size: int = 3,
        dilation: int = 1,
        padding: PaddingKind = "zeros",
    ) -> None:
        super().__init__()
        if scale < 2 or num_features % scale:
            raise ValueError(
                f"{num_features} features cannot be divided into scale={scale} groups: the scale "
                "must be at least 2 and divide them"
            )
        self.num_features = num_features
        self.scale = scale
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        width = num_features // scale
        self.layers = nn.ModuleList(
            TDNNLayer(
                input_size=width,
                output_size=width,
                kernel_size=kernel_size,
                dilation=dilation,
                padding=padding,
            )
            for _ in range(scale - 1)
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, T, num_features)`` to the same shape; see `TDNNLayer` for the padding."""
        first, *rest = x.chunk(self.scale, dim=2)
        groups = [first]
        for layer, group in zip(self.layers, rest):
            # What the first group gives is itself, and only later ones are handed on.
            groups.append(layer(group if len(groups) == 1 else group + groups[-1], lengths))
        return torch.cat(groups, dim=2)


class SqueezeExcitation(nn.Module):
    """A factor between 0 and 1 for each feature of an item, from its means over all frames.

    Hu, Shen and Sun 2018, "Squeeze-and-excitation networks", along time.

    Parameters
    ----------
    num_features : int
        Features per frame.
    hidden_size : int
        Size of the layer between.
    """

    def __init__(self, *, num_features: int, hidden_size: int = 128) -> None:
        super().__init__()
        self.num_features = num_features
        self.hidden_size = hidden_size
        self.squeeze = nn.Linear(num_features, hidden_size)
        self.excite = nn.Linear(hidden_size, num_features)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Give the factors ``(B, 1, num_features)`` of ``(B, T, num_features)``.

        ``lengths`` ``(B,)`` are all T by default; the input must be zero in the padding.
        """
        if lengths is None:
            mean = x.mean(dim=1) if x.shape[1] else x.new_zeros(x.shape[0], x.shape[2])
        else:
            mean = x.sum(dim=1) / lengths.clamp(min=1).unsqueeze(1)
        return self.excite(F.relu(self.squeeze(mean))).sigmoid().unsqueeze(1)


class SERes2NetBlock(nn.Module):
    """Pointwise layer, `Res2NetLayer`, pointwise layer, `SqueezeExcitation`, residual.

    Desplanques et al. 2020, figure 1.

    Parameters
    ----------
    num_features : int
        Features per frame, in and out.
    scale, kernel_size, dilation, padding
        Of the `Res2NetLayer`.
    se_size : int
        Hidden size of the squeeze and excitation.
    """

    def __init__(
        self,
        *,
        num_features: int,
        scale: int = 8,
        se_size: int = 128,
        kernel_size: int = 3,
        dilation: int = 1,
        padding: PaddingKind = "zeros",
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.scale = scale
        self.se_size = se_size
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.expand = TDNNLayer(input_size=num_features, output_size=num_features)
        self.res2net = Res2NetLayer(
            num_features=num_features,
            scale=scale,
            kernel_size=kernel_size,
            dilation=dilation,
            padding=padding,
        )
        self.reduce = TDNNLayer(input_size=num_features, output_size=num_features)
        self.gate = SqueezeExcitation(num_features=num_features, hidden_size=se_size)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, T, num_features)`` to the same shape; see `TDNNLayer` for the padding."""
        hidden = self.reduce(self.res2net(self.expand(x, lengths), lengths), lengths)
        return torch.addcmul(x, hidden, self.gate(hidden, lengths))


class ECAPAEncoder(nn.Module):
    """Frames of ECAPA-TDNN, up to its pooling.

    Desplanques, Thienpondt and Demuynck 2020, "ECAPA-TDNN: Emphasized channel attention,
    propagation and aggregation in TDNN based speaker verification", figure 2. With
    `speechkit.nn.pooling.AttentiveStatisticsPooling` and an embedding of 192, it has the 6.2
    million parameters of the paper with 512 channels and the 14.7 million with 1024.

    Parameters
    ----------
    input_size : int
        Features per frame.
    channels : int
        Features between the blocks: C of the paper.
    output_size : int
        Features of a frame after the aggregation.
    kernel_size, dilations : int, sequence of int
        Of the blocks; there is one for each dilation.
    first_kernel_size : int
        Of the layer before the blocks.
    scale, se_size : int
        Of the blocks: groups of the Res2Net layer, hidden size of the squeeze and excitation.
    padding : {"zeros", "reflect"}
        What stands beyond an item's ends; ``"reflect"`` in SpeechBrain's models.
    sum_inputs : bool
        A block's input is the sum of the outputs of all layers before it (section 3.3 of the
        paper); False: that of the last one, as in SpeechBrain's models.

    Raises
    ------
    ValueError
        If there are no dilations, a kernel is even, or the channels cannot be grouped.

    Examples
    --------
    >>> encoder = ECAPAEncoder(input_size=80, channels=16, output_size=24, scale=4)
    >>> out = encoder(torch.randn(2, 30, 80), torch.tensor([30, 4]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 30, 24]), [30, 4])
    """

    def __init__(
        self,
        *,
        input_size: int = 80,
        channels: int = 512,
        output_size: int = 1536,
        kernel_size: int = 3,
        dilations: Sequence[int] = (2, 3, 4),
        first_kernel_size: int = 5,
        scale: int = 8,
        se_size: int = 128,
        padding: PaddingKind = "zeros",
        sum_inputs: bool = True,
    ) -> None:
        super().__init__()
        if not dilations:
            raise ValueError("dilations is empty: name the dilation of at least one block")
        self.input_size = input_size
        self.channels = channels
        self.output_size = output_size
        self.kernel_size = kernel_size
        self.dilations = list(dilations)
        self.first_kernel_size = first_kernel_size
        self.scale = scale
        self.se_size = se_size
        self.padding = padding
        self.sum_inputs = sum_inputs
        self.first = TDNNLayer(
            input_size=input_size,
            output_size=channels,
            kernel_size=first_kernel_size,
            padding=padding,
        )
        self.blocks = nn.ModuleList(
            SERes2NetBlock(
                num_features=channels,
                scale=scale,
                se_size=se_size,
                kernel_size=kernel_size,
                dilation=dilation,
                padding=padding,
            )
            for dilation in self.dilations
        )
        self.aggregate = TDNNLayer(
            input_size=channels * len(self.dilations), output_size=output_size
        )

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames: the same."""
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, T, output_size)``, zero in the padding."""
        valid = ragged(lengths, x.shape[1])
        if valid is not None:
            x = mask_padding(x, valid)
        x = total = self.first(x, valid)
        outputs = []
        for block in self.blocks:
            x = block(total if self.sum_inputs else x, valid)
            outputs.append(x)
            if self.sum_inputs and len(outputs) < len(self.blocks):
                total = total + x
        return Padded(self.aggregate(torch.cat(outputs, dim=2), valid), lengths)
