"""Residual vector quantization: a latent as the sum of one code from each of several codebooks.

Zeghidour et al. 2021, "SoundStream", section III-C; training as in Défossez et al. 2022, "High
fidelity neural audio compression". Latents are ``(B, T, D)``, codes ``(B, Q, T)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.nn.masking import length_mask, mask_padding
from speechkit.nn.quantize_codebook import KMeans, VectorQuantizer, kmeans, nearest_codes

__all__ = [
    "CodebookUse",
    "KMeans",
    "Quantized",
    "ResidualVectorQuantizer",
    "VectorQuantizer",
    "codebook_use",
    "count_codes",
    "draw_num_codebooks",
    "kmeans",
    "nearest_codes",
]


class Quantized(NamedTuple):
    """What a quantizer gives.

    Attributes
    ----------
    data : Tensor
        Shape ``(B, T, D)``: the quantized latents, zero in the padding. Gradients go through to
        the latents as if nothing had been quantized.
    codes : Tensor
        Shape ``(B, Q, T)``, int64; 0 in the padding, and -1 where quantizer dropout left a
        codebook out.
    commitment : Tensor
        Shape ``(B,)``: mean squared distance of an item's latents from their codes, the mean over
        its frames, features and codebooks.
    """

    data: Tensor
    codes: Tensor
    commitment: Tensor


def draw_num_codebooks(choices: Sequence[int], generator: torch.Generator) -> int:
    """Draw how many codebooks a batch uses, each choice as likely as another.

    With a generator of (seed, epoch, step) all processes of a run draw the same, which they must:
    they add up the statistics of each codebook.

    Examples
    --------
    >>> draw_num_codebooks([2, 4, 8], torch.Generator().manual_seed(0)) in (2, 4, 8)
    True
    """
    place = torch.randint(len(choices), (1,), generator=generator, device=generator.device)
    return choices[int(place)]


class ResidualVectorQuantizer(nn.Module):
    """Codebooks one after the other, each for what those before it left.

    In training the first batch's frames initialise all codebooks by k-means, and every batch moves
    those that it used (`VectorQuantizer.update`). All of this state is in buffers.

    Parameters
    ----------
    latent_size : int
        Features of a latent.
    codebook_size : int
        Codes of each codebook.
    num_codebooks : int
        Codebooks.
    decay, threshold_dead, codebook_dim, cosine
        See `VectorQuantizer`.
    kmeans_iterations : int
        Of the first batch; with 0, random codebooks count as initialised.
    dropout : float
        Share of a training batch's items that use a random number of codebooks, from 1 to all
        (Kumar et al. 2023, "High-fidelity audio compression with improved RVQGAN", section 3.3).

    Raises
    ------
    ValueError
        For numbers out of their range.

    Examples
    --------
    >>> quantizer = ResidualVectorQuantizer(latent_size=4, codebook_size=8, num_codebooks=3)
    >>> latents = torch.randn(2, 40, 4)
    >>> out = quantizer(latents, torch.tensor([40, 25]))
    >>> out.data.shape, out.codes.shape, out.commitment.shape
    (torch.Size([2, 40, 4]), torch.Size([2, 3, 40]), torch.Size([2]))
    >>> codes = quantizer.eval().encode(latents, num_codebooks=2)
    >>> torch.equal(quantizer.decode(codes), quantizer(latents, num_codebooks=2).data)
    True
    """

    initialised: Tensor

    def __init__(
        self,
        *,
        latent_size: int,
        codebook_size: int = 1024,
        num_codebooks: int = 32,
        decay: float = 0.99,
        kmeans_iterations: int = 50,
        threshold_dead: float = 2.0,
        codebook_dim: int | None = None,
        cosine: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_codebooks < 1 or kmeans_iterations < 0 or not 0 <= dropout <= 1:
            raise ValueError(
                f"num_codebooks={num_codebooks} must be at least 1, kmeans_iterations="
                f"{kmeans_iterations} at least 0, and dropout={dropout} in [0, 1]"
            )
        self.latent_size = latent_size
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.decay = decay
        self.kmeans_iterations = kmeans_iterations
        self.threshold_dead = threshold_dead
        self.codebook_dim = codebook_dim
        self.cosine = cosine
        self.dropout = dropout
        self.layers = nn.ModuleList(
            VectorQuantizer(
                latent_size=latent_size,
                codebook_size=codebook_size,
                codebook_dim=codebook_dim,
                cosine=cosine,
                decay=decay,
                threshold_dead=threshold_dead,
            )
            for _ in range(num_codebooks)
        )
        self.register_buffer("initialised", torch.tensor(kmeans_iterations == 0))

    def forward(
        self,
        latents: Tensor,
        lengths: Tensor | None = None,
        *,
        num_codebooks: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantize latents; in training, let the codebooks follow them.

        Parameters
        ----------
        latents : Tensor
            Shape ``(B, T, latent_size)``.
        lengths : Tensor, optional
            Shape ``(B,)``: valid frames; all by default.
        num_codebooks : int, optional
            Codebooks to use, the first ones; all by default. The same in all processes.
        generator : torch.Generator, optional
            Draws for quantizer dropout; torch's global one by default.

        Returns
        -------
        Quantized
            Latents, codes and commitment.

        Raises
        ------
        ValueError
            If there are not so many codebooks.
        """
        count = self._count(num_codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            x = latents.float()
            x = x if lengths is None else mask_padding(x, lengths)
            valid = self._valid(x, lengths)
            if self.training and not bool(self.initialised):
                self._initialise(x.detach(), valid)
            return self._quantize(x, valid, self._draw_depths(x, count, generator), count)

    def _quantize(self, x: Tensor, valid: Tensor, depths: Tensor | None, count: int) -> Quantized:
        frames = valid.sum(1).clamp(min=1)
        residual, total = x, torch.zeros_like(x)
        codes, commitments = [], []
        for index, layer in enumerate(self._used(count)):
            used = valid if depths is None else valid & (depths > index).unsqueeze(1)
            vectors = layer.project(residual)
            chosen = layer.nearest(vectors.detach())
            picked = layer.look_up(chosen)
            if self.training:
                layer.update(vectors.detach()[used], chosen[used])
            distances = (vectors - picked).square().mean(2) * used
            commitments.append(distances.sum(1) / frames)
            if layer.project_out is not None:
                # Straight through, codebook by codebook: the projections learn.
                picked = vectors + (picked - vectors).detach() if self.training else picked
            part = layer.expand(picked) * used.unsqueeze(2)
            total = total + part
            residual = residual - part
            codes.append(chosen.masked_fill(~valid, 0).masked_fill(valid & ~used, -1))
        if self.training and self.codebook_dim is None:
            total = x + (total - x).detach()
        depth = count if depths is None else depths.to(x.dtype)
        return Quantized(total, torch.stack(codes, 1), torch.stack(commitments).sum(0) / depth)

    def encode(self, latents: Tensor, *, num_codebooks: int | None = None) -> Tensor:
        """Find the codes ``(B, Q, T)`` of latents ``(B, T, latent_size)``; no gradients.

        Raises
        ------
        ValueError
            If there are not so many codebooks.
        RuntimeError
            If no training batch has initialised the codebooks, and no weights were loaded.
        """
        count = self._count(num_codebooks)
        if not bool(self.initialised):
            raise RuntimeError(
                "the codebooks hold random numbers: the first training batch initialises them; "
                "train the model, load its weights, or build it with kmeans_iterations=0"
            )
        codes = []
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            residual = latents.float()
            for index, layer in enumerate(self._used(count)):
                chosen = layer.nearest(layer.project(residual))
                if index + 1 < count:
                    residual = residual - layer.decode(chosen)
                codes.append(chosen)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Add up the codes ``(B, Q, T)`` of the first ``Q`` codebooks: ``(B, T, latent_size)``.

        A code of -1 adds nothing.

        Raises
        ------
        ValueError
            If there are not so many codebooks.
        """
        total = None
        for layer, chosen in zip(self._used(self._count(codes.shape[1])), codes.unbind(1)):
            part = layer.decode(chosen.clamp(min=0)) * (chosen >= 0).unsqueeze(2)
            total = part if total is None else total + part
        assert total is not None  # _count lets no 0 through
        return total

    def _used(self, count: int) -> list[VectorQuantizer]:
        return list(self.layers[:count])  # type: ignore[arg-type]

    def _count(self, num_codebooks: int | None) -> int:
        count = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= count <= self.num_codebooks:
            raise ValueError(f"{count} codebooks: there are 1 to {self.num_codebooks}")
        return count

    @staticmethod
    def _valid(x: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return length_mask(lengths, x.shape[1])

    def _draw_depths(
        self, x: Tensor, count: int, generator: torch.Generator | None
    ) -> Tensor | None:
        """Draw how many codebooks each item uses, ``(B,)``; None where all use all."""
        if not (self.training and self.dropout):
            return None
        place = torch.device("cpu") if generator is None else generator.device
        draws = torch.rand(2, len(x), generator=generator, device=place).to(x.device)
        some = (1 + draws[1] * count).long().clamp(max=count)
        return torch.where(draws[0] < self.dropout, some, count)

    @torch.no_grad()
    def _initialise(self, x: Tensor, valid: Tensor) -> None:
        residual = x[valid]
        for layer in self._used(self.num_codebooks):
            vectors = layer.project(residual)
            layer.initialise(vectors, self.kmeans_iterations)
            residual = residual - layer.decode(layer.nearest(vectors))
        self.initialised.fill_(True)


def count_codes(codes: Tensor, lengths: Tensor | None = None, *, codebook_size: int) -> Tensor:
    """Count how often each code of each codebook occurs.

    Counts of several batches, and of several processes, may be added up before `codebook_use`.

    Parameters
    ----------
    codes : Tensor
        Shape ``(B, Q, T)``; negative codes are none.
    lengths : Tensor, optional
        Shape ``(B,)``: valid frames; all by default.
    codebook_size : int
        Codes of a codebook, ``K``.

    Returns
    -------
    Tensor
        Shape ``(Q, K)``, int64.

    Examples
    --------
    >>> codes = torch.tensor([[[0, 2, 2, 1]]])
    >>> count_codes(codes, torch.tensor([3]), codebook_size=4).tolist()
    [[1, 0, 2, 0]]
    """
    real = codes >= 0
    if lengths is not None:
        real &= length_mask(lengths, codes.shape[2]).unsqueeze(1)
    rows = torch.arange(codes.shape[1], device=codes.device).view(1, -1, 1) * codebook_size
    counts = torch.bincount((codes + rows)[real], minlength=codes.shape[1] * codebook_size)
    return counts.view(codes.shape[1], codebook_size)


class CodebookUse(NamedTuple):
    """What `codebook_use` gives, each of shape ``(Q,)``.

    Attributes
    ----------
    share : Tensor
        Of the codes that occurred at all, in [0, 1].
    perplexity : Tensor
        How many codes, if all were as frequent, would have the same entropy: 1 to ``K``.
    """

    share: Tensor
    perplexity: Tensor


def codebook_use(counts: Tensor) -> CodebookUse:
    """Say how well each codebook is used, from the counts ``(Q, K)`` of `count_codes`.

    Examples
    --------
    >>> use = codebook_use(torch.tensor([[5, 5, 0, 0], [1, 1, 1, 1]]))
    >>> use.share.tolist(), [round(x, 4) for x in use.perplexity.tolist()]
    ([0.5, 1.0], [2.0, 4.0])
    """
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(shares, shares).sum(1)
    return CodebookUse((counts > 0).double().mean(1).float(), entropy.exp().float())
