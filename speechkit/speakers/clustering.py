"""Spectral clustering of the embeddings of one recording's windows into speakers.

Each window is joined to its ``p`` most similar ones, with their cosine as weight. Where the graph
falls into parts that hang together in themselves but hardly with each other, the smallest
eigenvalues of its Laplacian are near 0, one for each part, and the gap after them tells how many
there are. ``p`` is the one whose gap is largest for its size (normalized maximum eigengap, Park et
al. 2020), found on at most `MAX_SAMPLED` windows. The windows' rows in the first eigenvectors are
then clustered by k-means.

An hour of speech has about 7,000 windows. Only as many eigenvectors as there are speakers are
needed, so a block Krylov method finds them: some twenty products with the graph instead of a full
decomposition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.speakers.scores import cosine_scores, unit_length

MAX_SAMPLED = 600
_MAX_DENSE = 800  # windows up to which the full decomposition is quick
_FEWEST, _MOST_OF_FEW = 6, 12  # neighbors tried in short recordings
_SHARES = (0.02, 0.25)  # of all windows, tried as neighbors in long ones
_NUM_TRIED = 12
_MOST_SPEAKERS = 8  # looked for, however few are allowed
_ROWS = 1024


def spectral_clustering(
    embeddings: Tensor,
    *,
    num_speakers: int | None = None,
    min_speakers: int = 1,
    max_speakers: int = 8,
    threshold: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Tell the speakers of one recording apart.

    Parameters
    ----------
    embeddings : Tensor
        Shape ``(N, D)``, one a window, in order of time.
    num_speakers : int, optional
        How many there are; by default it is estimated.
    min_speakers, max_speakers : int
        Bounds of the estimate.
    threshold : float, optional
        Cosine at and above which two embeddings are one speaker's, such as a calibrated one. If the
        number is estimated, speakers whose mean embeddings are that much alike become one, though
        never fewer than `min_speakers`. Without it the estimate rests on the gap alone, which needs
        some fifty windows to be sure of.
    seed : int
        Of k-means and the Krylov method's start; equal input gives equal labels.

    Returns
    -------
    Tensor
        Shape ``(N,)``, int64: speakers numbered from 0 in order of appearance.

    Raises
    ------
    DataError
        Where there are fewer windows than speakers asked for.
    ValueError
        Where an embedding has no direction, or the numbers of speakers are not ordered.

    References
    ----------
    Ng, Jordan and Weiss (2001), "On spectral clustering"; Park, Han, Kumar and Narayanan (2020),
    "Auto-tuning spectral clustering for speaker diarization using normalized maximum eigengap".

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> voices = torch.eye(16)[[0] * 40 + [1] * 30 + [0] * 10]
    >>> labels = spectral_clustering(voices + 0.1 * torch.randn(80, 16, generator=generator))
    >>> labels.tolist() == [0] * 40 + [1] * 30 + [0] * 10
    True
    """
    _check_numbers(len(embeddings), num_speakers, min_speakers, max_speakers)
    x = unit_length(embeddings.detach().float())
    number = len(x)
    if number == 0:
        return torch.zeros(0, dtype=torch.long)
    if num_speakers is None:
        speakers, share = _estimate(x, min_speakers, max_speakers)
    else:
        speakers, share = num_speakers, _estimate(x, num_speakers, num_speakers)[1]
    if speakers == 1:
        return torch.zeros(number, dtype=torch.long)
    neighbors = min(number, max(_least_neighbors(number), round(share * number)))
    generator = torch.Generator().manual_seed(seed)
    vectors = _leading_vectors(_graph(x, neighbors), speakers, generator)
    labels = k_means(_rows_of_unit_length(vectors), speakers, generator=generator)
    if num_speakers is None and threshold is not None:
        labels = merge_alike(x, labels, threshold, min_speakers=min_speakers)
    return in_order_of_appearance(labels)


def estimate_num_speakers(
    embeddings: Tensor, *, min_speakers: int = 1, max_speakers: int = 8
) -> int:
    """Estimate how many speakers there are by the normalized maximum eigengap.

    Parameters and errors are those of :func:`spectral_clustering`.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> one_voice = torch.ones(60, 16) + torch.randn(60, 16, generator=generator)
    >>> estimate_num_speakers(one_voice)
    1
    """
    _check_numbers(len(embeddings), None, min_speakers, max_speakers)
    return _estimate(unit_length(embeddings.detach().float()), min_speakers, max_speakers)[0]


def merge_alike(
    embeddings: Tensor, labels: Tensor, threshold: float, *, min_speakers: int = 1
) -> Tensor:
    """Join the two most similar speakers as long as their means' cosine reaches a threshold.

    Parameters
    ----------
    embeddings : Tensor
        Shape ``(N, D)``.
    labels : Tensor
        Shape ``(N,)``, int64.
    threshold : float
        A cosine.
    min_speakers : int
        Where to stop.

    Returns
    -------
    Tensor
        Shape ``(N,)``: labels of those who are left.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> merge_alike(x, torch.tensor([0, 1, 2]), 0.8).tolist()
    [0, 0, 2]
    """
    x, labels = unit_length(embeddings.float()), labels.clone()
    while len(names := labels.unique()) > min_speakers:
        means = torch.stack([x[labels == name].mean(dim=0) for name in names])
        scores = cosine_scores(means, means).fill_diagonal_(-2.0)
        first, second = divmod(int(scores.argmax()), len(names))
        if float(scores[first, second]) < threshold:
            break
        labels[labels == names[max(first, second)]] = names[min(first, second)]
    return labels


def in_order_of_appearance(labels: Tensor) -> Tensor:
    """Renumber labels ``(N,)`` from 0 in the order in which they first appear.

    Examples
    --------
    >>> in_order_of_appearance(torch.tensor([7, 7, 2, 7, 5])).tolist()
    [0, 0, 1, 0, 2]
    """
    number = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    return torch.tensor([number[label] for label in labels.tolist()], dtype=torch.long)


def k_means(
    points: Tensor,
    clusters: int,
    *,
    generator: torch.Generator,
    num_starts: int = 5,
    num_iterations: int = 50,
) -> Tensor:
    """Cluster points by k-means, started by k-means++ several times; the tightest result wins.

    Parameters
    ----------
    points : Tensor
        Shape ``(N, D)``.
    clusters : int
        How many; none is left empty.
    generator : torch.Generator
        Chooses the starts.
    num_starts, num_iterations : int
        Tries, and the most rounds of each.

    Returns
    -------
    Tensor
        Shape ``(N,)``, int64, from 0 to ``clusters - 1``.

    Raises
    ------
    DataError
        Where there are fewer points than clusters.

    References
    ----------
    Arthur and Vassilvitskii (2007), "k-means++: the advantages of careful seeding".

    Examples
    --------
    >>> points = torch.tensor([[0.0], [0.1], [5.0]])
    >>> labels = k_means(points, 2, generator=torch.Generator().manual_seed(0))
    >>> labels[0] == labels[1] != labels[2]
    tensor(True)
    """
    if not 1 <= clusters <= len(points):
        raise DataError(f"{len(points)} points do not make {clusters} clusters")
    best, least = torch.zeros(len(points), dtype=torch.long), float("inf")
    for _ in range(num_starts):
        centers = _spread_centers(points, clusters, generator)
        labels = torch.full_like(best, -1)
        for _ in range(num_iterations):
            distances = torch.cdist(points, centers)
            nearest = _without_empty(distances)
            if torch.equal(nearest, labels):
                break
            labels = nearest
            sums = torch.zeros_like(centers).index_add_(0, labels, points)
            centers = sums / torch.bincount(labels, minlength=clusters)[:, None]
        spread = float((points - centers[labels]).square().sum())
        if spread < least:
            best, least = labels, spread
    return best


def _check_numbers(windows: int, given: int | None, least: int, most: int) -> None:
    if not 1 <= least <= most or (given is not None and given < 1):
        raise ValueError(
            "numbers of speakers must be at least 1 and in order, are num_speakers="
            f"{given}, min_speakers={least}, max_speakers={most}"
        )
    wanted = least if given is None else given
    if windows and windows < wanted:
        raise DataError(
            f"{windows} windows of speech cannot hold {wanted} speakers; ask for fewer, or take "
            "shorter windows"
        )


def _least_neighbors(number: int) -> int:
    return min(number, max(_FEWEST, round(_SHARES[0] * number)))


def _estimate(x: Tensor, least: int, most: int) -> tuple[int, float]:
    """Give the number of speakers, and the share of windows that a window is best joined to."""
    # Every few windows: neighbors in time, which share samples, then look less like speakers.
    x = x[:: -(-len(x) // MAX_SAMPLED)]
    number = len(x)
    if number <= 2:  # two windows have no gap to tell by
        return min(least, number), 1.0
    largest = min(number - 1, max(most, _MOST_SPEAKERS))
    highest = min(number, max(round(_SHARES[1] * number), _MOST_OF_FEW))
    lowest = min(highest, _least_neighbors(number))
    steps = [i / (_NUM_TRIED - 1) for i in range(_NUM_TRIED)]
    similar = cosine_scores(x, x)
    found = []
    for neighbors in sorted({round(lowest * (highest / lowest) ** step) for step in steps}):
        graph = _joined(similar, neighbors).double().fill_diagonal_(0.0)
        values = torch.linalg.eigvalsh(torch.diag(graph.sum(dim=1)) - graph)
        # Beyond the bounds too: at fewer parts than there are, the gaps are noise.
        gaps = values[1 : largest + 1] - values[:largest]
        gap = float(gaps.max() / values[-1].clamp_min(1e-12))
        # A small p falls apart of itself, so its gap must be larger to count as much.
        found.append((neighbors / number / (gap + 1e-10), int(gaps.argmax()) + 1, neighbors))
    _, speakers, neighbors = min(found)
    return min(max(speakers, least), most, number), neighbors / number


def _graph(x: Tensor, neighbors: int) -> Tensor:
    """Join windows as :func:`_joined` does; similarities are never all in memory at once."""
    graph = torch.empty(len(x), len(x))
    for first in range(0, len(x), _ROWS):
        similar = x[first : first + _ROWS] @ x.T
        graph[first : first + _ROWS] = _kept(similar, neighbors)
    return (graph + graph.T).mul_(0.5)


def _joined(similar: Tensor, neighbors: int) -> Tensor:
    """Join each with its most similar ones by what is similar in them, shape (N, N), symmetric."""
    graph = _kept(similar, neighbors)
    return (graph + graph.T).mul_(0.5)


def _kept(similar: Tensor, neighbors: int) -> Tensor:
    """Keep each row's largest cosines, where they are positive.

    Park et al. set them to 1. In recordings of under a minute the weights give the number of
    speakers right more often, since the neighbors tried are then more than a speaker has windows.
    """
    floor = similar.topk(neighbors, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    return similar.clamp_min(0.0).masked_fill(similar < floor, 0.0)


def _leading_vectors(graph: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Find the largest eigenvectors ``(N, number)`` of the graph over the roots of its degrees."""
    scale = graph.sum(dim=1).rsqrt()[:, None]
    if len(graph) <= _MAX_DENSE:
        return torch.linalg.eigh((graph * scale * scale.T).double()).eigenvectors[:, -number:]
    # Block Krylov: several vectors at once find equal eigenvalues too, which parts that are not
    # joined at all have. Half of I + A has no negative ones to be found instead.
    block = torch.randn(len(graph), number + 8, generator=generator)
    basis: list[Tensor] = []
    for _ in range(16):
        for _ in range(2):  # twice is enough to be orthogonal to what is there
            for done in basis:
                block = block - done @ (done.T @ block)
            block = torch.linalg.qr(block).Q
        basis.append(block)
        block = 0.5 * (block + scale * (graph @ (scale * block)))
    q = torch.cat(basis, dim=1)
    small = q.T @ (scale * (graph @ (scale * q)))
    values = torch.linalg.eigh(0.5 * (small + small.T).double())
    return q.double() @ values.eigenvectors[:, -number:]


def _rows_of_unit_length(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(1e-12)


def _spread_centers(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Choose each center with a probability that grows with its distance from those before."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distances = torch.full((len(points),), float("inf"), dtype=points.dtype)
    while len(chosen) < clusters:
        last = (points - points[chosen[-1]]).square().sum(dim=1)
        distances = torch.minimum(distances, last)
        distances[chosen] = 0.0
        free = torch.ones(len(points), dtype=points.dtype)
        free[chosen] = 0.0
        weights = distances if float(distances.sum()) > 0 else free  # all others are copies
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return points[chosen]


def _without_empty(distances: Tensor) -> Tensor:
    """Assign to the nearest center; one that nobody is nearest to gets the farthest point."""
    nearest = distances.argmin(dim=1)
    counts = torch.bincount(nearest, minlength=distances.shape[1])
    for empty in torch.nonzero(counts == 0).flatten().tolist():
        own = distances.gather(1, nearest[:, None])[:, 0]
        point = int(torch.where(counts[nearest] > 1, own, -1.0).argmax())
        counts[nearest[point]] -= 1
        nearest[point], counts[empty] = empty, 1
    return nearest
