"""The audio spectrogram transformer: patches of a spectrogram as the words of a sentence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechkit.nn.conv2d_classifier import fill_frames
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded, mask_padding
from speechkit.nn.transformer import TransformerLayer

_NUM_TOKENS = 2  # the class token and the distillation token


class AudioSpectrogramTransformer(nn.Module):
    """Overlapping patches, learned positions, Transformer layers.

    Gong, Chung and Glass 2021, "AST: audio spectrogram transformer". The defaults are the base
    model of the paper, for 10.24 s; with `TokenPooling` and 527 classes it has 86.6 million
    parameters. As in DeiT, two learned tokens stand before the patches, and carry what the whole
    is; the tokens of an item are::

        class, distillation, patches of the first 16 frames (low to high), of frames 10 to 26, ...

    A patch counts where all its frames are an item's own; an item shorter than a patch has one,
    filled up with zeros. An item takes the first positions in time.

    Parameters
    ----------
    input_size : int
        Features per frame: log-mel bins.
    max_frames : int
        Longest item in frames.
    patch_size, stride : int
        Frames and bins of a patch, and from one patch to the next.
    embed_dim, num_heads, num_layers, feedforward_size : int
        Features of a token, attention heads, layers, hidden features of the feed-forward blocks.
    dropout : float
        Probability of dropping attention weights, hidden values and each block's output.

    Raises
    ------
    ValueError
        If not one patch fits.

    Examples
    --------
    >>> encoder = AudioSpectrogramTransformer(
    ...     input_size=32, max_frames=100, embed_dim=16, num_heads=2, num_layers=1,
    ...     feedforward_size=32)
    >>> out = encoder(torch.randn(2, 46, 32), torch.tensor([46, 20]))
    >>> out.data.shape, out.lengths.tolist()  # 2 + 4 x 2 and 2 + 1 x 2 tokens
    (torch.Size([2, 10, 16]), [10, 4])
    """

    def __init__(
        self,
        *,
        input_size: int = 128,
        max_frames: int = 1024,
        patch_size: int = 16,
        stride: int = 10,
        embed_dim: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        feedforward_size: int = 3072,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < stride <= patch_size <= min(input_size, max_frames):
            raise ValueError(
                f"need 0 < stride <= patch_size <= input_size and max_frames, got {stride}, "
                f"{patch_size}, {input_size} and {max_frames}"
            )
        self.input_size = input_size
        self.max_frames = max_frames
        self.patch_size = patch_size
        self.stride = stride
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.feedforward_size = feedforward_size
        self.dropout = dropout
        self.patches = nn.Conv2d(1, embed_dim, patch_size, stride)
        steps, rows = ((size - patch_size) // stride + 1 for size in (max_frames, input_size))
        self.tokens = nn.Parameter(torch.empty(_NUM_TOKENS, embed_dim))
        self.token_positions = nn.Parameter(torch.empty(_NUM_TOKENS, embed_dim))
        self.positions = nn.Parameter(torch.empty(steps, rows, embed_dim))
        for parameter in (self.tokens, self.token_positions, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.layers = nn.ModuleList(
            TransformerLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                feedforward_size=feedforward_size,
                dropout=dropout,
                activation="gelu",
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.drop = Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6  # DeiT's

    @property
    def output_size(self) -> int:
        """Features per token."""
        return self.embed_dim

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Tokens of items of ``lengths`` frames; an item without frames has none."""
        return (_NUM_TOKENS + self._steps(lengths) * self.positions.shape[1]) * (lengths > 0)

    def _steps(self, lengths: Tensor) -> Tensor:
        """Patches in time."""
        steps = torch.div(lengths - self.patch_size, self.stride, rounding_mode="floor") + 1
        return steps.clamp(min=1)

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to tokens ``(B, N, embed_dim)`` and how many each item has.

        Raises
        ------
        ValueError
            If an item is longer than ``max_frames`` and has patches for which there is no position.
        """
        longest = (self.positions.shape[0] - 1) * self.stride + self.patch_size
        if x.shape[1] >= longest + self.stride:
            if int(lengths.max()) >= longest + self.stride:
                raise ValueError(
                    f"an item has {int(lengths.max())} frames, and there are positions for "
                    f"max_frames={self.max_frames}: crop it, classify it in shorter windows, or "
                    "build the encoder with more"
                )
            x = x[:, :longest]
        lengths = lengths.clamp(max=max(x.shape[1], 1))
        x = fill_frames(x, lengths, self.patch_size)
        patches = self.patches(x.unsqueeze(1)).permute(0, 2, 3, 1)  # (B, T', F', D)
        patches = patches + self.positions[: patches.shape[1]]
        tokens = (self.tokens + self.token_positions).expand(len(x), -1, -1)
        x = torch.cat([tokens.to(patches.dtype), patches.flatten(1, 2)], dim=1)
        lengths = self.num_frames(lengths)
        x = self.drop(mask_padding(x, lengths))
        for layer in self.layers:
            x = layer(x, lengths)
        return Padded(mask_padding(self.norm(x), lengths), lengths)


class TokenPooling(nn.Module):
    """The mean of the tokens that stand before the patches, and a layer norm.

    Gong et al. 2021: the mean of class and distillation token; the norm opens their classifier.

    Parameters
    ----------
    input_size : int
        Features per token.
    num_tokens : int
        How many tokens stand before the patches.

    Examples
    --------
    >>> pool = TokenPooling(input_size=2)
    >>> x = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 77.0]]])
    >>> [round(value, 3) for value in pool(x, torch.tensor([3]))[0].tolist()]
    [1.0, -1.0]
    """

    def __init__(self, *, input_size: int, num_tokens: int = _NUM_TOKENS) -> None:
        super().__init__()
        self.input_size = input_size
        self.num_tokens = num_tokens
        self.norm = nn.LayerNorm(input_size, eps=1e-6)

    @property
    def output_size(self) -> int:
        """Features of the pooled vector."""
        return self.input_size

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``(B, N, input_size)``, zero where an item has no tokens, to ``(B, input_size)``."""
        return self.norm(x[:, : self.num_tokens].mean(1))
