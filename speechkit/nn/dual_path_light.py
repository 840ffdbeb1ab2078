"""A light SepFormer: chunks that do not overlap, and attention across their summaries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.dual_path import MaskKind, apply_mask_kind
from speechkit.nn.dual_path_blocks import TransformerBlock
from speechkit.nn.masking import mask_padding, ragged
from speechkit.nn.norm import GlobalLayerNorm


class LightSepFormerMasker(nn.Module):
    """A mask network that attends within chunks, and across one summary of each chunk.

    Della Libera et al. 2022, "Resource-efficient separation Transformer" (RE-SepFormer), section 2:
    the chunks do not overlap, and the inter model sees the mean of each chunk, once between two
    intra models. So it needs half the chunks, and the inter model costs next to nothing. With 128
    features and the defaults it has 7.9 million parameters.

    Parameters
    ----------
    num_features : int
        Features per frame, of the encoder and inside.
    num_sources : int
        Masks.
    chunk_size : int
        Frames of a chunk.
    num_blocks : int
        Intra models; there is an inter model between any two.
    num_layers, num_heads, feedforward_size : int
        Layers of each model, attention heads, hidden features of the feed-forward blocks.
    dropout : float
        Probability of dropping attention weights, hidden values and each layer's outputs.
    mask : {"relu", "sigmoid", "none"}
        Nonlinearity of the masks.
    checkpointing : bool
        Compute the layers once more in the backward pass instead of keeping what is in them.

    Raises
    ------
    ValueError
        If the settings make no sense.

    Examples
    --------
    >>> masker = LightSepFormerMasker(
    ...     num_features=8, num_sources=2, chunk_size=4, num_layers=1, num_heads=2,
    ...     feedforward_size=16,
    ... )
    >>> masker(torch.randn(3, 11, 8), torch.tensor([11, 5, 2])).shape
    torch.Size([3, 2, 11, 8])
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_sources: int,
        chunk_size: int = 150,
        num_blocks: int = 2,
        num_layers: int = 8,
        num_heads: int = 8,
        feedforward_size: int = 1024,
        dropout: float = 0.0,
        mask: MaskKind = "relu",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if chunk_size < 1 or num_blocks < 1 or num_sources < 1:
            raise ValueError(
                f"chunk_size={chunk_size}, num_blocks={num_blocks} and num_sources={num_sources} "
                "must be at least 1"
            )
        apply_mask_kind(torch.zeros(1), mask)
        self.num_features = num_features
        self.num_sources = num_sources
        self.chunk_size = chunk_size
        self.num_blocks = num_blocks
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.feedforward_size = feedforward_size
        self.dropout = dropout
        self.mask = mask
        self.checkpointing = checkpointing

        def build() -> TransformerBlock:
            return TransformerBlock(
                embed_dim=num_features,
                num_heads=num_heads,
                num_layers=num_layers,
                feedforward_size=feedforward_size,
                dropout=dropout,
            )

        def build_norm() -> GlobalLayerNorm:
            return GlobalLayerNorm(num_features=num_features, eps=torch.finfo(torch.float32).eps)

        self.intra = nn.ModuleList(build() for _ in range(num_blocks))
        self.intra_norms = nn.ModuleList(build_norm() for _ in range(num_blocks))
        self.inter = nn.ModuleList(build() for _ in range(num_blocks - 1))
        self.inter_norms = nn.ModuleList(build_norm() for _ in range(num_blocks - 1))
        self.prelu = nn.PReLU()
        self.output = nn.Linear(num_features, num_sources * num_features)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Estimate masks.

        Parameters
        ----------
        x : Tensor
            Shape ``(B, T, num_features)``.
        lengths : Tensor
            Shape ``(B,)``: valid frames.

        Returns
        -------
        Tensor
            Shape ``(B, num_sources, T, num_features)``; beyond the lengths it means nothing.
        """
        batch, num_frames, _ = x.shape
        size, rerun = self.chunk_size, self.checkpointing and torch.is_grad_enabled()
        counts = None
        if ragged(lengths, num_frames) is not None:
            x = mask_padding(x, lengths)
            counts = (lengths + size - 1) // size
        x = F.pad(x, (0, 0, 0, -num_frames % size if num_frames else size))
        x = x.unflatten(1, (-1, size)).flatten(0, 1)  # (B * S, K, N)
        for index, (intra, norm) in enumerate(zip(self.intra, self.intra_norms)):
            x = norm(intra(x, checkpointing=rerun), None, x)
            if index < len(self.inter):
                summary = x.mean(1).unflatten(0, (batch, -1))  # (B, S, N)
                y = self.inter[index](summary, counts, checkpointing=rerun)
                summary = self.inter_norms[index](y, counts, summary)
                x = x + summary.flatten(0, 1).unsqueeze(1)
        x = self.prelu(x).unflatten(0, (batch, -1)).flatten(1, 2)[:, :num_frames]
        masks = self.output(x).unflatten(-1, (self.num_sources, self.num_features))
        return apply_mask_kind(masks, self.mask).transpose(1, 2)
