"""A small causal Transformer over a codec's codes, as it is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import mask_padding

MAX_FAN_IN = 1040  # 1040 * 127 * 127 < 2**24: sums of 8-bit products are exact in float32


class CodeBlock(nn.Module):
    """Causal self-attention with a bias for each distance, and a feed-forward layer.

    Norms stand before the layers and divide by the root mean square (Zhang and Sennrich 2019); the
    bias of a distance is that of Raffel et al. 2020, "T5", without buckets; ReLU, no other biases:
    all of which integers can follow.

    Parameters
    ----------
    embed_dim, num_heads, ffn_dim : int
        Sizes.
    max_distance : int
        Distances of at least ``max_distance - 1`` frames share a bias.
    dropout : float
        Probability of dropping a value of a layer's output.
    """

    def __init__(
        self, *, embed_dim: int, num_heads: int, ffn_dim: int, max_distance: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.ffn_dim = ffn_dim
        self.max_distance = max_distance
        self.dropout = dropout
        self.attention_norm = nn.RMSNorm(embed_dim, eps=1e-6)
        self.project_in = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, max_distance))
        self.project_out = nn.Linear(embed_dim, embed_dim, bias=False)
        self.ffn_norm = nn.RMSNorm(embed_dim, eps=1e-6)
        self.ffn_in = nn.Linear(embed_dim, ffn_dim, bias=False)
        self.ffn_out = nn.Linear(ffn_dim, embed_dim, bias=False)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, D)`` to the same shape, frame t from frames up to t."""
        B, T, D = x.shape
        qkv = self.project_in(self.attention_norm(x)).view(
            B, T, 3, self.num_heads, D // self.num_heads
        )
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        bias = self._bias(T).to(queries.dtype)
        heads = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        x = x + self.drop(self.project_out(heads.transpose(1, 2).reshape(B, T, D)))
        return x + self.drop(self.ffn_out(F.relu(self.ffn_in(self.ffn_norm(x)))))

    def _bias(self, num_frames: int) -> Tensor:
        """Bias ``(H, T, T)`` of query and key: -inf for what lies ahead."""
        positions = torch.arange(num_frames, device=self.distance_bias.device)
        distance = positions.unsqueeze(1) - positions
        bias = self.distance_bias[:, distance.clamp(0, self.max_distance - 1)]
        return bias.masked_fill(distance < 0, float("-inf"))


class CodeTransformer(nn.Module):
    """Predicts every codebook's code of a frame from the frames before it.

    The language model of Défossez et al. 2022, "High fidelity neural audio compression",
    section 3.3: embeddings of a frame's codes are summed, all codebooks of the next frame are
    predicted at once. `speechkit.coding.integer_model.IntegerCodeModel.from_float` makes of it the
    exact probabilities that files are written with. A model of ``num_codebooks`` also takes fewer,
    the first ones, and should then have been trained so.

    Parameters
    ----------
    num_codebooks : int
        The most codebooks, ``Q``.
    codebook_size : int
        Codes of each, ``V``; at most 32768.
    embed_dim, ffn_dim : int
        Sizes, each at most 1040 (sums of 8-bit products stay exact in float32).
    num_heads, num_layers : int
        Heads of a layer, and layers.
    max_distance : int
        Distances that attention tells apart, in frames.
    dropout : float
        Probability of dropping a value.

    Raises
    ------
    ValueError
        If a size is out of its bounds, or the heads do not divide ``embed_dim``.

    Examples
    --------
    >>> model = CodeTransformer(num_codebooks=4, codebook_size=16, embed_dim=8, num_heads=2,
    ...                         ffn_dim=16, num_layers=1)
    >>> codes = torch.randint(16, (2, 4, 10))
    >>> logits = model(codes, torch.tensor([10, 7]))
    >>> changed = codes.clone()
    >>> changed[:, :, 5:] = 0
    >>> early = model.eval()(codes)[:, :, :6]
    >>> logits.shape, torch.allclose(model(changed)[:, :, :6], early, atol=1e-5)
    (torch.Size([2, 4, 10, 16]), True)
    """

    def __init__(
        self,
        *,
        num_codebooks: int,
        codebook_size: int,
        embed_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 768,
        num_layers: int = 4,
        max_distance: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check_sizes(num_codebooks, codebook_size, embed_dim, num_heads, ffn_dim)
        if num_layers < 1 or max_distance < 1:
            raise ValueError(
                f"num_layers ({num_layers}) and max_distance ({max_distance}) must be at least 1"
            )
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.ffn_dim = ffn_dim
        self.num_layers = num_layers
        self.max_distance = max_distance
        self.dropout = dropout
        self.embedding = nn.Embedding(num_codebooks * codebook_size, embed_dim)
        self.start = nn.Parameter(torch.randn(embed_dim))
        self.blocks = nn.ModuleList(
            CodeBlock(
                embed_dim=embed_dim,
                num_heads=num_heads,
                ffn_dim=ffn_dim,
                max_distance=max_distance,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_codebooks * codebook_size)
        self.drop = Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=num_codebooks**-0.5)  # frames of unit power
        nn.init.normal_(self.head.weight, std=0.2 * embed_dim**-0.5)  # nearly uniform at first
        nn.init.zeros_(self.head.bias)

    def forward(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits of every code of every frame.

        Parameters
        ----------
        codes : Tensor
            Shape ``(B, Q, T)``, int64, with ``Q`` up to ``num_codebooks``.
        lengths : Tensor, optional
            Shape ``(B,)``: valid frames; what the padding holds does not matter.

        Returns
        -------
        Tensor
            Logits ``(B, Q, T, V)``: those of frame t follow from the frames before it.

        Raises
        ------
        ValueError
            If there are more codebooks than the model has.
        """
        B, Q, T = codes.shape
        if not 1 <= Q <= self.num_codebooks:
            raise ValueError(f"codes of {Q} codebooks; the model has {self.num_codebooks}")
        frames = codes.transpose(1, 2)  # (B, T, Q)
        if lengths is not None:
            frames = mask_padding(frames, lengths, 0)
        offsets = torch.arange(Q, device=codes.device) * self.codebook_size
        x = self.embedding(frames[:, : max(T - 1, 0)] + offsets).sum(2)
        x = torch.cat([self.start.to(x.dtype).expand(B, 1, -1), x], dim=1)[:, :T]
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        size = Q * self.codebook_size
        logits = F.linear(self.norm(x), self.head.weight[:size], self.head.bias[:size])
        return logits.view(B, T, Q, self.codebook_size).transpose(1, 2)


def _check_sizes(
    num_codebooks: int, codebook_size: int, embed_dim: int, num_heads: int, ffn_dim: int
) -> None:
    if num_codebooks < 1 or not 2 <= codebook_size <= 1 << 15:
        raise ValueError(
            f"num_codebooks ({num_codebooks}) must be at least 1, codebook_size ({codebook_size}) "
            "in [2, 32768]"
        )
    if not (1 <= embed_dim <= MAX_FAN_IN and 1 <= ffn_dim <= MAX_FAN_IN):
        raise ValueError(
            f"embed_dim ({embed_dim}) and ffn_dim ({ffn_dim}) must lie in [1, {MAX_FAN_IN}], so "
            "that sums of 8-bit products are exact in float32"
        )
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"num_heads ({num_heads}) must divide embed_dim ({embed_dim})")
