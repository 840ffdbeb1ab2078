"""One codebook: k-means, nearest vectors, and a codebook that follows what it quantizes.

Where ``torch.distributed`` runs, sums are added up over the processes, and vectors drawn from the
batches of all of them, so that every process has the same codebook. Vectors are drawn from torch's
global generator, as dropout is, unless a function is given another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = 16384  # vectors whose distances to all codes are held at once


def _world() -> tuple[int, int]:
    """Give the number of this process and of all."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _sum_over_ranks(*tensors: Tensor) -> list[Tensor]:
    """Add each tensor up over the processes, all in one collective."""
    if _world()[1] == 1:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]


def draw_vectors(vectors: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw ``count`` of the vectors ``(N, D)`` of all processes, without repeats where possible.

    Every process gives its share, and all get the same ``(count, D)``.

    Examples
    --------
    >>> drawn = draw_vectors(torch.arange(4.0).view(4, 1), 4)
    >>> sorted(drawn.flatten().tolist())
    [0.0, 1.0, 2.0, 3.0]
    """
    rank, world = _world()
    mine = torch.arange(rank, count, world, device=vectors.device)
    if len(vectors) == 0:
        drawn = vectors.new_zeros(len(mine), vectors.shape[1])
    else:
        # On the CPU, so that a seed means the same on every device.
        place = torch.device("cpu") if generator is None else generator.device
        if len(vectors) >= len(mine):
            order = torch.randperm(len(vectors), generator=generator, device=place)[: len(mine)]
        else:
            order = torch.randint(len(vectors), (len(mine),), generator=generator, device=place)
        drawn = vectors[order.to(vectors.device)]
    filled = vectors.new_zeros(count, vectors.shape[1]).index_copy(0, mine, drawn)
    return _sum_over_ranks(filled)[0]


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Find for each vector the code at the smallest Euclidean distance, the first of equals.

    Parameters
    ----------
    vectors : Tensor
        Shape ``(N, D)``.
    codebook : Tensor
        Shape ``(K, D)``.

    Returns
    -------
    Tensor
        Shape ``(N,)``, int64.

    Examples
    --------
    >>> nearest_codes(torch.tensor([[0.9], [-3.0]]), torch.tensor([[0.0], [1.0]])).tolist()
    [1, 0]
    """
    squares = codebook.square().sum(1)
    parts = [
        torch.addmm(squares, part, codebook.T, alpha=-2).argmin(1) for part in vectors.split(_BLOCK)
    ]
    return torch.cat(parts)


def _count_and_sum(vectors: Tensor, codes: Tensor, num_codes: int) -> list[Tensor]:
    """Count each code's vectors ``(K,)`` and add them up ``(K, D)``, over all processes."""
    counts = torch.bincount(codes, minlength=num_codes).to(vectors.dtype)
    sums = vectors.new_zeros(num_codes, vectors.shape[1]).index_add_(0, codes, vectors)
    return _sum_over_ranks(counts, sums)


class KMeans(NamedTuple):
    """What `kmeans` gives.

    Attributes
    ----------
    codebook : Tensor
        Shape ``(K, D)``: the clusters' means.
    codes : Tensor
        Shape ``(N,)``: each vector's cluster.
    counts : Tensor
        Shape ``(K,)``: vectors in each cluster, of all processes.
    """

    codebook: Tensor
    codes: Tensor
    counts: Tensor


@torch.no_grad()
def kmeans(
    vectors: Tensor,
    *,
    num_codes: int,
    iterations: int = 50,
    cosine: bool = False,
    generator: torch.Generator | None = None,
) -> KMeans:
    """Quantize vectors by plain k-means (Lloyd 1982, "Least squares quantization in PCM").

    Parameters
    ----------
    vectors : Tensor
        Shape ``(N, D)``, float. Where ``torch.distributed`` runs, those of all processes count.
    num_codes : int
        Clusters ``K``; the first means are drawn from the vectors.
    iterations : int
        How often vectors find their mean, and means move.
    cosine : bool
        Keep the means at length 1; give vectors of length 1.
    generator : torch.Generator, optional
        Draws the first means; torch's global one by default.

    Returns
    -------
    KMeans
        Codebook, codes and counts. A mean that no vector is nearest to stays where it is.

    Raises
    ------
    ValueError
        If there are no vectors, or no codes.

    Examples
    --------
    >>> vectors = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    >>> found = kmeans(vectors, num_codes=2, generator=torch.Generator().manual_seed(1))
    >>> sorted(found.codebook.flatten().tolist()), found.counts.tolist()
    ([0.5, 10.5], [2.0, 2.0])
    """
    if num_codes < 1 or (len(vectors) == 0 and _world()[1] == 1):
        raise ValueError(f"k-means needs vectors and codes: {len(vectors)} and {num_codes}")
    codebook = draw_vectors(vectors, num_codes, generator)
    for _ in range(iterations):
        counts, sums = _count_and_sum(vectors, nearest_codes(vectors, codebook), num_codes)
        means = sums / counts.clamp(min=1).unsqueeze(1)
        means = F.normalize(means, dim=1) if cosine else means
        codebook = torch.where(counts.unsqueeze(1) > 0, means, codebook)
    codes = nearest_codes(vectors, codebook)
    counts, _ = _count_and_sum(vectors, codes, num_codes)
    return KMeans(codebook, codes, counts)


class VectorQuantizer(nn.Module):
    """A codebook that follows the vectors which it quantizes, by exponential moving averages.

    van den Oord, Vinyals and Kavukcuoglu 2017, "Neural discrete representation learning", appendix
    A.1; dead codes replaced as in Dhariwal et al. 2020, "Jukebox", section 3.1. Codebook and
    averages are buffers: they are in the state dict, and no optimiser sees them.

    Parameters
    ----------
    latent_size : int
        Features of a vector.
    codebook_size : int
        Codes.
    codebook_dim : int, optional
        Features of a code, where they are fewer: a linear layer before and one behind (factorised
        codes: Yu et al. 2022, "Vector-quantized image modeling with improved VQGAN", section 3.2).
    cosine : bool
        Give vectors and codes length 1, so that the nearest code has the largest cosine (the same
        paper). Needs ``codebook_dim``: a layer must give the codes their length back.
    decay : float
        Of the averages, each update.
    threshold_dead : float
        A code whose average number of vectors an update falls below this is replaced by a vector
        of the batch; 0 for never. Where batches are small, half of the average over all codes
        counts, if it is less: otherwise most codes would be replaced all the time.

    Raises
    ------
    ValueError
        For numbers out of their range.

    Examples
    --------
    >>> layer = VectorQuantizer(latent_size=6, codebook_size=16, codebook_dim=2, cosine=True)
    >>> layer.decode(layer.nearest(layer.project(torch.randn(5, 6)))).shape
    torch.Size([5, 6])
    """

    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor

    def __init__(
        self,
        *,
        latent_size: int,
        codebook_size: int = 1024,
        codebook_dim: int | None = None,
        cosine: bool = False,
        decay: float = 0.99,
        threshold_dead: float = 2.0,
    ) -> None:
        super().__init__()
        if codebook_size < 1 or (codebook_dim is not None and codebook_dim < 1):
            raise ValueError(
                f"codebook_size={codebook_size}, codebook_dim={codebook_dim}: at least 1"
            )
        if cosine and codebook_dim is None:
            raise ValueError("cosine=True needs codebook_dim: say how many features a code has")
        if not 0 <= decay < 1 or threshold_dead < 0:
            raise ValueError(
                f"decay={decay} must be in [0, 1), threshold_dead={threshold_dead} at least 0"
            )
        self.latent_size = latent_size
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.cosine = cosine
        self.decay = decay
        self.threshold_dead = threshold_dead
        size = codebook_dim or latent_size
        self.project_in = nn.Linear(latent_size, size) if codebook_dim else None
        self.project_out = nn.Linear(size, latent_size) if codebook_dim else None
        codebook = torch.randn(codebook_size, size)
        self.register_buffer("codebook", F.normalize(codebook, dim=1) if cosine else codebook)
        self.register_buffer("ema_sums", self.codebook.clone())
        self.register_buffer("ema_counts", torch.ones(codebook_size))

    def project(self, latents: Tensor) -> Tensor:
        """Map latents ``(..., latent_size)`` to where the codes are, ``(..., codebook_dim)``."""
        if self.project_in is not None:
            latents = self.project_in(latents)
        return F.normalize(latents, dim=-1) if self.cosine else latents

    def expand(self, codes: Tensor) -> Tensor:
        """Map vectors of the codebook ``(..., codebook_dim)`` back to latents."""
        return codes if self.project_out is None else self.project_out(codes)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Find the nearest code of projected vectors ``(..., codebook_dim)``."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        return nearest_codes(flat, self.codebook).view(vectors.shape[:-1])

    def look_up(self, codes: Tensor) -> Tensor:
        """Give the codebook's vectors, ``(..., codebook_dim)``."""
        return F.embedding(codes, self.codebook)

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes of any shape to latents ``(..., latent_size)``."""
        return self.expand(self.look_up(codes))

    @torch.no_grad()
    def initialise(self, vectors: Tensor, iterations: int) -> None:
        """Take the means of k-means over projected vectors ``(N, codebook_dim)`` as codebook."""
        found = kmeans(
            vectors, num_codes=self.codebook_size, iterations=iterations, cosine=self.cosine
        )
        self.codebook.copy_(found.codebook)
        self.ema_counts.copy_(found.counts)
        self.ema_sums.copy_(found.codebook * found.counts.unsqueeze(1))

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Move the codebook towards projected vectors ``(N, codebook_dim)`` with their codes."""
        counts, sums = _count_and_sum(vectors, codes, self.codebook_size)
        self.ema_counts.lerp_(counts, 1 - self.decay)
        self.ema_sums.lerp_(sums, 1 - self.decay)
        # Counts that are almost 0 are smoothed (Laplace), so that no mean is 0 / 0.
        total, eps = self.ema_counts.sum(), 1e-5
        smooth = (self.ema_counts + eps) / (total + self.codebook_size * eps) * total
        means = self.ema_sums / smooth.clamp(min=1e-20).unsqueeze(1)
        self.codebook.copy_(F.normalize(means, dim=1) if self.cosine else means)
        self._replace_dead(vectors, total / self.codebook_size)

    def _replace_dead(self, vectors: Tensor, average: Tensor) -> None:
        if not self.threshold_dead:
            return
        limit = (average / 2).clamp(max=self.threshold_dead)
        dead = self.ema_counts < limit  # the same in all processes, as the counts are
        if not bool(dead.any()):
            return
        fresh = draw_vectors(vectors, self.codebook_size)
        wide = dead.unsqueeze(1)
        self.codebook.copy_(torch.where(wide, fresh, self.codebook))
        # A new code starts as one that has just enough vectors, or the average would draw it back.
        self.ema_counts.copy_(torch.where(dead, limit, self.ema_counts))
        self.ema_sums.copy_(torch.where(wide, fresh * limit, self.ema_sums))
