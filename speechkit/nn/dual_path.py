"""Dual-path mask networks: chunks, what runs within and across them, and the frame around both.

A long sequence is cut into chunks that overlap by half; one model sees a chunk (intra), another
sees one position of all chunks (inter). All tensors of chunks are ``(B, S, K, N)``: items, chunks,
frames of a chunk, features, so that the intra model takes a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.masking import mask_padding, ragged
from speechkit.nn.norm import NormKind, make_norm
from speechkit.nn.positional import absolute_positions

Margin = Literal["half", "chunk"]
MaskKind = Literal["relu", "sigmoid", "none"]
_Count = TypeVar("_Count", int, Tensor)


def num_chunks(num_frames: _Count, chunk_size: int, margin: Margin = "half") -> _Count:
    """Return how many half-overlapping chunks so many frames give.

    Every frame lies in two chunks. With the margin ``"half"`` the first chunk begins half a chunk
    before the first frame and the number of chunks is even, as in SpeechBrain; with ``"chunk"`` it
    begins a whole chunk before, as in asteroid.

    Examples
    --------
    >>> num_chunks(10, 4), num_chunks(torch.tensor([10, 1]), 4, "chunk").tolist()
    (8, [8, 3])
    """
    if margin == "half":
        return 2 * ((num_frames + chunk_size // 2) // chunk_size + 1)
    return (num_frames + chunk_size) // (chunk_size // 2) + 1


def split_chunks(x: Tensor, chunk_size: int, margin: Margin = "half") -> Tensor:
    """Cut ``(B, T, N)`` into half-overlapping chunks ``(B, S, K, N)``, zeros around the frames.

    With K = 4, ``a b c`` and the margin ``"half"``::

        . . a b c . . . . .   ->   . . a b,  a b c .,  c . . .,  . . . .

    Examples
    --------
    >>> split_chunks(torch.tensor([[[1.0], [2.0], [3.0]]]), 4)[0, :, :, 0].tolist()
    [[0.0, 0.0, 1.0, 2.0], [1.0, 2.0, 3.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    half = chunk_size // 2
    before = half if margin == "half" else chunk_size
    total = (num_chunks(x.shape[1], chunk_size, margin) + 1) * half
    x = F.pad(x, (0, 0, before, total - before - x.shape[1]))
    halves = x.unflatten(1, (-1, half))  # (B, S + 1, K / 2, N)
    return torch.cat([halves[:, :-1], halves[:, 1:]], dim=2)


def join_chunks(chunks: Tensor, num_frames: int, margin: Margin = "half") -> Tensor:
    """Overlap and add chunks ``(B, S, K, N)`` of `split_chunks` to ``(B, num_frames, N)``.

    Examples
    --------
    >>> x = torch.randn(2, 9, 3)
    >>> torch.equal(join_chunks(split_chunks(x, 4), 9), 2 * x)
    True
    """
    half = chunks.shape[2] // 2
    joined = (chunks[:, 1:, :half] + chunks[:, :-1, half:]).flatten(1, 2)
    begin = 0 if margin == "half" else half
    return joined[:, begin : begin + num_frames]


def apply_mask_kind(x: Tensor, kind: str) -> Tensor:
    """Apply the nonlinearity of masks.

    Raises
    ------
    ValueError
        If it is unknown.

    Examples
    --------
    >>> apply_mask_kind(torch.tensor([-1.0, 2.0]), "relu").tolist()
    [0.0, 2.0]
    """
    if kind == "none":
        return x
    if kind not in ("relu", "sigmoid"):
        raise ValueError(f"unknown mask {kind!r}: choose from ['none', 'relu', 'sigmoid']")
    return x.relu() if kind == "relu" else x.sigmoid()


class DualPathBlock(nn.Module):
    """One model within the chunks, then one across them, each with a norm and a residual.

    Luo, Chen and Yoshioka 2020, "Dual-path RNN", eq. 3-8; Subakan et al. 2021, "Attention is all
    you need in speech separation", section 2.2.

    Parameters
    ----------
    intra, inter : nn.Module
        Of `speechkit.nn.dual_path_blocks`: ``forward(x, lengths, checkpointing=...)`` maps
        ``(R, T, embed_dim)`` in any memory layout to the same shape.
    norm : {"global", "frame"}
        Over an item's own chunks, or over the features of each frame.
    skip_intra : bool
        Whether a residual goes round the intra model; one always goes round the inter model.

    Raises
    ------
    ValueError
        If the models differ in their features, or the norm is unknown.

    Examples
    --------
    >>> from speechkit.nn.dual_path_blocks import RNNBlock
    >>> block = DualPathBlock(
    ...     intra=RNNBlock(embed_dim=6, hidden_size=4), inter=RNNBlock(embed_dim=6, hidden_size=4))
    >>> block(torch.randn(2, 5, 4, 6)).shape
    torch.Size([2, 5, 4, 6])
    """

    def __init__(
        self,
        *,
        intra: nn.Module,
        inter: nn.Module,
        norm: NormKind = "global",
        skip_intra: bool = True,
    ) -> None:
        super().__init__()
        if intra.embed_dim != inter.embed_dim:
            raise ValueError(
                f"intra has {intra.embed_dim} features and inter has {inter.embed_dim}"
            )
        self.embed_dim = int(intra.embed_dim)  # type: ignore[arg-type]
        self.intra = intra
        self.inter = inter
        self.norm = norm
        self.skip_intra = skip_intra
        self.intra_norm = make_norm(norm, self.embed_dim)
        self.inter_norm = make_norm(norm, self.embed_dim)

    def forward(
        self, x: Tensor, counts: Tensor | None = None, *, checkpointing: bool = False
    ) -> Tensor:
        """Map chunks ``(B, S, K, embed_dim)`` to the same shape.

        Parameters
        ----------
        x : Tensor
            The chunks.
        counts : Tensor, optional
            Shape ``(B,)``: chunks of each item; all by default.
        checkpointing : bool
            Whether the backward pass computes the models' inside once more.
        """
        batch, chunks, size, _ = x.shape
        y = self.intra(x.flatten(0, 1), None, checkpointing=checkpointing)
        y = y.unflatten(0, (batch, chunks))
        x = self.intra_norm(y, counts, x if self.skip_intra else None)
        # Chunks first in memory: a copy only where there are several items, and time-major models
        # need no other.
        across = x.transpose(0, 1).flatten(1, 2).transpose(0, 1)  # (B * K, S, N)
        lengths = None if counts is None else counts.repeat_interleave(size)
        y = self.inter(across, lengths, checkpointing=checkpointing)
        y = y.unflatten(0, (batch, size)).transpose(1, 2)
        return self.inter_norm(y, counts, x)


class DualPathMasker(nn.Module):
    """A mask network of dual-path blocks over half-overlapping chunks.

    Luo, Chen and Yoshioka 2020, "Dual-path RNN: efficient long sequence modeling for time-domain
    single-channel speech separation", figure 1; Subakan et al. 2021 for the gated output. An item
    of a padded batch has the chunks that it has alone.

    Parameters
    ----------
    num_features : int
        Features per frame of the encoder.
    bottleneck_size : int
        Features inside, the ``embed_dim`` of the blocks.
    num_sources : int
        Masks.
    chunk_size : int
        Frames of a chunk; even.
    blocks : sequence of DualPathBlock
        One after the other.
    norm : {"global", "frame"}
        Of the input.
    bottleneck_bias : bool
        Whether the map to ``bottleneck_size`` has a bias.
    margin : {"half", "chunk"}
        Zeros before the first frame (`num_chunks`).
    global_positions : bool
        Whether sinusoids of the frames' positions are added before the cut.
    mask : {"relu", "sigmoid", "none"}
        Nonlinearity of the masks.
    checkpointing : bool
        Compute the blocks once more in the backward pass instead of keeping what is in them.

    Raises
    ------
    ValueError
        If the settings make no sense.

    Examples
    --------
    >>> from speechkit.nn.dual_path_blocks import RNNBlock
    >>> block = DualPathBlock(
    ...     intra=RNNBlock(embed_dim=6, hidden_size=4), inter=RNNBlock(embed_dim=6, hidden_size=4))
    >>> masker = DualPathMasker(
    ...     num_features=8, bottleneck_size=6, num_sources=2, chunk_size=4, blocks=[block])
    >>> masker(torch.randn(3, 11, 8), torch.tensor([11, 5, 2])).shape
    torch.Size([3, 2, 11, 8])
    """

    def __init__(
        self,
        *,
        num_features: int,
        bottleneck_size: int,
        num_sources: int,
        chunk_size: int,
        blocks: Sequence[nn.Module],
        norm: NormKind = "global",
        bottleneck_bias: bool = False,
        margin: Margin = "half",
        global_positions: bool = False,
        mask: MaskKind = "relu",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check(bottleneck_size, num_sources, chunk_size, blocks, margin, mask)
        self.num_features = num_features
        self.bottleneck_size = bottleneck_size
        self.num_sources = num_sources
        self.chunk_size = chunk_size
        self.norm = norm
        self.bottleneck_bias = bottleneck_bias
        self.margin: Margin = margin
        self.global_positions = global_positions
        self.mask = mask
        self.checkpointing = checkpointing
        self.input_norm = make_norm(norm, num_features)
        self.bottleneck = nn.Linear(num_features, bottleneck_size, bias=bottleneck_bias)
        self.blocks = nn.ModuleList(blocks)
        self.prelu = nn.PReLU()
        self.split = nn.Linear(bottleneck_size, num_sources * bottleneck_size)
        self.gate = nn.Linear(bottleneck_size, 2 * bottleneck_size)  # for tanh, for sigmoid
        self.output = nn.Linear(bottleneck_size, num_features, bias=False)

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
        num_frames = x.shape[1]
        valid = ragged(lengths, num_frames)
        counts = None if valid is None else num_chunks(valid, self.chunk_size, self.margin)
        x = self._embed(x, valid)
        x = split_chunks(x, self.chunk_size, self.margin)
        for block in self.blocks:
            x = block(x, counts, checkpointing=self.checkpointing and torch.is_grad_enabled())
        x = join_chunks(self.prelu(x), num_frames, self.margin)  # (B, T, C)
        # The papers split into sources before they add the overlap. The map is linear and every
        # frame lies in two chunks, so this is the same with half the work and memory.
        x = F.linear(x, self.split.weight, 2 * self.split.bias)
        x = x.unflatten(-1, (self.num_sources, self.bottleneck_size))  # (B, T, sources, C)
        value, gate = self.gate(x).chunk(2, dim=-1)
        masks = self.output(value.tanh() * gate.sigmoid())
        return apply_mask_kind(masks, self.mask).transpose(1, 2)

    def _embed(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Normalise and map frames to ``(B, T, C)``, zero in the padding."""
        if lengths is not None:
            x = mask_padding(x, lengths)
        x = self.bottleneck(self.input_norm(x, lengths))
        if self.global_positions:
            positions = absolute_positions(x.shape[1], self.bottleneck_size, x.device)
            x = x * self.bottleneck_size**0.5 + positions
        return x if lengths is None else mask_padding(x, lengths)


def _check(
    bottleneck_size: int,
    num_sources: int,
    chunk_size: int,
    blocks: Sequence[nn.Module],
    margin: str,
    mask: str,
) -> None:
    if chunk_size < 2 or chunk_size % 2:
        raise ValueError(f"chunk_size must be even, since chunks overlap by half, not {chunk_size}")
    if num_sources < 1:
        raise ValueError(f"num_sources must be at least 1, not {num_sources}")
    if margin not in ("half", "chunk"):
        raise ValueError(f"unknown margin {margin!r}: choose 'half' or 'chunk'")
    apply_mask_kind(torch.zeros(1), mask)
    if not blocks:
        raise ValueError("a dual-path network needs at least one block")
    for index, block in enumerate(blocks):
        if block.embed_dim != bottleneck_size:
            raise ValueError(
                f"blocks[{index}] has {block.embed_dim} features, bottleneck_size is "
                f"{bottleneck_size}"
            )
