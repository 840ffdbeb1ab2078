"""Finite scalar quantization: a few bounded numbers, each rounded to one of a few levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechkit.nn.masking import length_mask, mask_padding
from speechkit.nn.quantize import Quantized


class FiniteScalarQuantizer(nn.Module):
    """Rounds each of a few projected features to its levels; nothing can collapse or die.

    Mentzer et al. 2023, "Finite scalar quantization: VQ-VAE made simple". A linear layer gives as
    many features as there are levels, tanh bounds them, and each is rounded to the nearest of its
    levels, evenly spaced from -1 to 1 (the paper leaves out half a step where they are even). A
    frame's code is the number whose digits are its levels. Further codebooks round what the ones
    before left, on a grid finer by ``level - 1``.

    Parameters
    ----------
    latent_size : int
        Features of a latent.
    levels : sequence of int
        Levels of each number, at least 2: (8, 5, 5, 5) stands for 1000 codes.
    num_codebooks : int
        Codes of a frame.

    Raises
    ------
    ValueError
        If there are no levels, or fewer than 2 of one.

    Examples
    --------
    >>> quantizer = FiniteScalarQuantizer(latent_size=6, levels=(4, 3), num_codebooks=2)
    >>> latents = torch.randn(1, 7, 6)
    >>> codes = quantizer.eval().encode(latents)
    >>> codes.shape, bool(codes.max() < quantizer.codebook_size)
    (torch.Size([1, 2, 7]), True)
    >>> torch.allclose(quantizer.decode(codes), quantizer(latents).data, atol=1e-6)
    True
    """

    steps: Tensor
    places: Tensor

    def __init__(
        self, *, latent_size: int, levels: Sequence[int] = (8, 5, 5, 5), num_codebooks: int = 1
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be one number or more, each at least 2: {list(levels)}")
        if num_codebooks < 1:
            raise ValueError(f"num_codebooks must be at least 1: {num_codebooks}")
        self.latent_size = latent_size
        self.levels = list(levels)
        self.num_codebooks = num_codebooks
        self.project_in = nn.Linear(latent_size, len(levels))
        self.project_out = nn.Linear(len(levels), latent_size)
        places = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("steps", torch.tensor([x - 1.0 for x in levels]), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    @property
    def codebook_size(self) -> int:
        """Codes that a frame of one codebook can have."""
        return math.prod(self.levels)

    def forward(
        self,
        latents: Tensor,
        lengths: Tensor | None = None,
        *,
        num_codebooks: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantize latents ``(B, T, latent_size)``; nothing is drawn, and commitment is 0.

        Parameters
        ----------
        latents, lengths, num_codebooks, generator
            As of `speechkit.nn.quantize.ResidualVectorQuantizer`; the generator is not used.

        Raises
        ------
        ValueError
            If there are not so many codebooks.
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = latents.float()
            x = x if lengths is None else mask_padding(x, lengths)
            bounded = self.project_in(x).tanh()
            codes = self._round(bounded.detach(), self._count(num_codebooks))
            rounded = bounded + (self._values(codes) - bounded).detach()
            data = self.project_out(rounded)
        if lengths is not None:
            data = mask_padding(data, lengths)
            codes = codes.masked_fill(~length_mask(lengths, x.shape[1]).unsqueeze(1), 0)
        return Quantized(data, codes, data.new_zeros(len(data)))

    @torch.no_grad()
    def encode(self, latents: Tensor, *, num_codebooks: int | None = None) -> Tensor:
        """Find the codes ``(B, Q, T)`` of latents ``(B, T, latent_size)``; no gradients."""
        bounded = self.project_in(latents.float()).tanh()
        return self._round(bounded, self._count(num_codebooks))

    def decode(self, codes: Tensor) -> Tensor:
        """Turn codes ``(B, Q, T)`` into latents ``(B, T, latent_size)``."""
        self._count(codes.shape[1])
        return self.project_out(self._values(codes))

    def _count(self, num_codebooks: int | None) -> int:
        count = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= count <= self.num_codebooks:
            raise ValueError(f"{count} codebooks: there are 1 to {self.num_codebooks}")
        return count

    def _round(self, bounded: Tensor, count: int) -> Tensor:
        """Round ``(B, T, numbers)`` in [-1, 1] to codes ``(B, Q, T)``."""
        codes, residual = [], bounded
        for _ in range(count):
            # What is left of a step of 2 / (levels - 1) fills [-1, 1] again.
            digits = ((residual + 1) / 2 * self.steps).round().clamp(min=0).minimum(self.steps)
            residual = (residual - (2 * digits / self.steps - 1)) * self.steps
            codes.append((digits.long() * self.places).sum(2))
        return torch.stack(codes, dim=1)

    def _values(self, codes: Tensor) -> Tensor:
        """Give the numbers ``(B, T, numbers)`` that codes ``(B, Q, T)`` stand for."""
        radix = self.steps.long() + 1
        digits = codes.unsqueeze(3) // self.places % radix  # (B, Q, T, numbers)
        depth = torch.arange(codes.shape[1], device=codes.device).view(-1, 1, 1)
        return ((2 * digits / self.steps - 1) / self.steps**depth).sum(1)
