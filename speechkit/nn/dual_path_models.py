"""The published dual-path networks by their numbers: dual-path RNN and SepFormer."""

from __future__ import annotations

from typing import Literal

from speechkit.nn.dual_path import DualPathBlock, DualPathMasker, Margin, MaskKind
from speechkit.nn.dual_path_blocks import RNNBlock, TransformerBlock
from speechkit.nn.norm import NormKind
from speechkit.nn.transformer import Activation


class DualPathRNNMasker(DualPathMasker):
    """The dual-path RNN.

    Luo, Chen and Yoshioka 2020, "Dual-path RNN: efficient long sequence modeling for time-domain
    single-channel speech separation", section 3.2. With 64 features, the defaults below and filter
    banks of 2 samples it has the 2.6 million parameters of the paper.

    Parameters
    ----------
    num_features : int
        Features per frame of the encoder.
    num_sources : int
        Masks.
    bottleneck_size : int
        Features inside.
    hidden_size : int
        Units of one direction of a recurrent layer.
    chunk_size : int
        Frames of a chunk; even. The paper has 250 for filters of 2 samples, 100 for 16.
    num_blocks : int
        Dual-path blocks.
    num_layers : int
        Recurrent layers of each intra and inter model.
    cell : {"lstm", "gru"}
        Kind of unit.
    bidirectional : bool
        Whether the inter models also read from the end; the intra models always do.
    dropout : float
        Probability of dropping a value between recurrent layers.
    norm : {"global", "frame"}
        Over an item, or over the features of each frame.
    bottleneck_bias, margin, mask, checkpointing
        As in `DualPathMasker`; the defaults are those of asteroid.

    Examples
    --------
    >>> import torch
    >>> masker = DualPathRNNMasker(
    ...     num_features=8, num_sources=2, bottleneck_size=6, hidden_size=4, chunk_size=4,
    ...     num_blocks=2,
    ... )
    >>> masker(torch.randn(2, 11, 8), torch.tensor([11, 5])).shape
    torch.Size([2, 2, 11, 8])
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_sources: int,
        bottleneck_size: int = 64,
        hidden_size: int = 128,
        chunk_size: int = 250,
        num_blocks: int = 6,
        num_layers: int = 1,
        cell: Literal["lstm", "gru"] = "lstm",
        bidirectional: bool = True,
        dropout: float = 0.0,
        norm: NormKind = "global",
        bottleneck_bias: bool = True,
        margin: Margin = "chunk",
        mask: MaskKind = "relu",
        checkpointing: bool = False,
    ) -> None:
        def build(both: bool) -> RNNBlock:
            return RNNBlock(
                embed_dim=bottleneck_size,
                hidden_size=hidden_size,
                num_layers=num_layers,
                cell=cell,
                bidirectional=both,
                dropout=dropout,
            )

        super().__init__(
            num_features=num_features,
            bottleneck_size=bottleneck_size,
            num_sources=num_sources,
            chunk_size=chunk_size,
            blocks=[
                DualPathBlock(intra=build(True), inter=build(bidirectional), norm=norm)
                for _ in range(num_blocks)
            ],
            norm=norm,
            bottleneck_bias=bottleneck_bias,
            margin=margin,
            mask=mask,
            checkpointing=checkpointing,
        )
        self.hidden_size = hidden_size
        self.num_blocks = num_blocks
        self.num_layers = num_layers
        self.cell = cell
        self.bidirectional = bidirectional
        self.dropout = dropout


class SepFormerMasker(DualPathMasker):
    """The SepFormer.

    Subakan et al. 2021, "Attention is all you need in speech separation", section 3.2. With 256
    features, the defaults below and filter banks of 16 samples it has the 25.7 million parameters
    of the paper (2 sources).

    Parameters
    ----------
    num_features : int
        Features per frame of the encoder.
    num_sources : int
        Masks.
    bottleneck_size : int
        Features inside.
    chunk_size : int
        Frames of a chunk; even.
    num_blocks : int
        Dual-path blocks.
    intra_layers, inter_layers : int
        Transformer layers of each intra and of each inter model.
    num_heads, feedforward_size : int
        Attention heads, hidden features of the feed-forward blocks.
    dropout : float
        Probability of dropping attention weights, hidden values and each layer's outputs.
    pre_norm : bool
        Whether norms come before attention and feed-forward instead of after their sums.
    activation : {"relu", "gelu", "silu"}
        Of the feed-forward blocks.
    positions : bool
        Whether intra and inter models add sinusoids to their input.
    linear : bool
        Whether a linear layer follows each intra and inter model.
    norm, skip_intra, bottleneck_bias, global_positions, mask, checkpointing
        As in `DualPathMasker` and `DualPathBlock`.

    Examples
    --------
    >>> import torch
    >>> masker = SepFormerMasker(
    ...     num_features=8, num_sources=3, bottleneck_size=8, chunk_size=4, num_blocks=1,
    ...     intra_layers=2, inter_layers=1, num_heads=2, feedforward_size=16,
    ... )
    >>> masker(torch.randn(2, 11, 8), torch.tensor([11, 5])).shape
    torch.Size([2, 3, 11, 8])
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_sources: int,
        bottleneck_size: int = 256,
        chunk_size: int = 250,
        num_blocks: int = 2,
        intra_layers: int = 8,
        inter_layers: int = 8,
        num_heads: int = 8,
        feedforward_size: int = 1024,
        dropout: float = 0.0,
        pre_norm: bool = True,
        activation: Activation = "relu",
        positions: bool = True,
        linear: bool = False,
        norm: NormKind = "global",
        skip_intra: bool = True,
        bottleneck_bias: bool = False,
        global_positions: bool = False,
        mask: MaskKind = "relu",
        checkpointing: bool = False,
    ) -> None:
        def build(num_layers: int) -> TransformerBlock:
            return TransformerBlock(
                embed_dim=bottleneck_size,
                num_heads=num_heads,
                num_layers=num_layers,
                feedforward_size=feedforward_size,
                dropout=dropout,
                pre_norm=pre_norm,
                activation=activation,
                positions=positions,
                linear=linear,
            )

        super().__init__(
            num_features=num_features,
            bottleneck_size=bottleneck_size,
            num_sources=num_sources,
            chunk_size=chunk_size,
            blocks=[
                DualPathBlock(
                    intra=build(intra_layers),
                    inter=build(inter_layers),
                    norm=norm,
                    skip_intra=skip_intra,
                )
                for _ in range(num_blocks)
            ],
            norm=norm,
            bottleneck_bias=bottleneck_bias,
            global_positions=global_positions,
            mask=mask,
            checkpointing=checkpointing,
        )
        self.num_blocks = num_blocks
        self.intra_layers = intra_layers
        self.inter_layers = inter_layers
        self.num_heads = num_heads
        self.feedforward_size = feedforward_size
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.activation = activation
        self.positions = positions
        self.linear = linear
        self.skip_intra = skip_intra
