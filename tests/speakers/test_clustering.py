"""Spectral clustering: who is who, how many there are, and an hour's windows."""

from __future__ import annotations

import itertools

import pytest
import torch

from speechkit.data.errors import DataError
from speechkit.speakers import clustering
from speechkit.speakers.clustering import (
    estimate_num_speakers,
    in_order_of_appearance,
    k_means,
    merge_alike,
    spectral_clustering,
)


def conversation(
    number: int, speakers: int, *, seed: int = 0, size: int = 64, turn: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of turns: cosine about 0.5 within a speaker, more where windows overlap in time."""
    generator = torch.Generator().manual_seed(seed)
    voices = torch.nn.functional.normalize(torch.randn(speakers, size, generator=generator))
    labels = torch.arange(-(-number // turn)).repeat_interleave(turn)[:number] % speakers
    noise = torch.randn(number + 2, size, generator=generator) / size**0.5
    noise = noise.unfold(0, 3, 1).mean(dim=2) * 3**0.5  # neighbors share two thirds
    return voices[labels] + noise, labels


def agreement(labels: torch.Tensor, found: torch.Tensor) -> float:
    """Share of windows that are right under the best naming."""
    names = range(int(max(labels.max(), found.max())) + 1)
    return max(
        float((torch.tensor(p)[found] == labels).double().mean())
        for p in itertools.permutations(names)
    )


@pytest.mark.parametrize("speakers", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [100, 400])
def test_finds_who_and_how_many(number, speakers):
    x, labels = conversation(number, speakers)
    assert estimate_num_speakers(x) == speakers
    found = spectral_clustering(x)
    assert agreement(labels, found) > 0.97
    assert torch.equal(found, spectral_clustering(3 * x))
    assert found[0] == 0
    assert torch.equal(found, in_order_of_appearance(found))


def test_a_given_number_is_obeyed():
    x, labels = conversation(60, 3)
    for number in (1, 2, 3, 4, 7):
        assert len(spectral_clustering(x, num_speakers=number).unique()) == number
    assert agreement(labels, spectral_clustering(x, num_speakers=3)) == 1.0
    # A threshold says nothing about a number that is known.
    assert len(spectral_clustering(x, num_speakers=3, threshold=-1.0).unique()) == 3


def test_bounds_of_the_estimate():
    x, _ = conversation(120, 3)
    assert len(spectral_clustering(x, max_speakers=2).unique()) == 2
    assert len(spectral_clustering(x, min_speakers=4).unique()) == 4
    assert estimate_num_speakers(x, min_speakers=4, max_speakers=4) == 4


def test_a_threshold_joins_parts_of_one_voice():
    """One voice in two rooms: two parts for the gap, one for a threshold below their cosine."""
    x, labels = conversation(120, 2)
    x = x + 2 * torch.nn.functional.normalize(torch.ones(1, 64))
    means = torch.stack([x[labels == n].mean(0) for n in (0, 1)])
    alike = float(torch.cosine_similarity(means[0], means[1], dim=0))
    assert len(spectral_clustering(x).unique()) == 2
    assert len(spectral_clustering(x, threshold=alike + 0.1).unique()) == 2
    assert len(spectral_clustering(x, threshold=alike - 0.1).unique()) == 1
    assert len(spectral_clustering(x, threshold=alike - 0.1, min_speakers=2).unique()) == 2
    assert merge_alike(x, labels, alike - 0.1).unique().tolist() == [0]


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_few_windows(number):
    x, _ = conversation(number, 1)
    assert spectral_clustering(x).tolist() == [0] * number
    assert spectral_clustering(x, num_speakers=number).tolist() == list(range(number))
    with pytest.raises(DataError, match=rf"{number} windows .* {number + 1} speakers"):
        spectral_clustering(x, num_speakers=number + 1)


def test_nothing_copies_and_bad_numbers():
    assert spectral_clustering(torch.zeros(0, 4)).tolist() == []
    copies = torch.ones(30, 4)
    assert spectral_clustering(copies).tolist() == [0] * 30
    assert len(spectral_clustering(copies, num_speakers=3).unique()) == 3
    for numbers in ({"num_speakers": 0}, {"min_speakers": 3, "max_speakers": 2}):
        with pytest.raises(ValueError, match="numbers of speakers"):
            spectral_clustering(copies, **numbers)
    with pytest.raises(ValueError, match="number 0"):
        spectral_clustering(torch.zeros(3, 4))


@pytest.mark.parametrize("apart", [False, True])
def test_block_krylov_finds_the_eigenvectors(monkeypatch, apart):
    """Also where the graph falls into parts that are not joined at all: equal eigenvalues."""
    x, labels = conversation(300, 4)
    graph = clustering._graph(clustering.unit_length(x), 40)
    if apart:
        graph = graph * (labels[:, None] == labels)
    generator = torch.Generator().manual_seed(0)
    whole = clustering._leading_vectors(graph, 4, generator)
    monkeypatch.setattr(clustering, "_MAX_DENSE", 10)
    krylov = clustering._leading_vectors(graph, 4, generator)
    # The same space: the cosines of all angles between the two are 1.
    angles = torch.linalg.svdvals(whole.T @ krylov)
    torch.testing.assert_close(angles, torch.ones(4).double(), atol=1e-4, rtol=0)


def test_the_graph_in_blocks_is_the_whole_graph(monkeypatch):
    x = clustering.unit_length(conversation(50, 2)[0])
    monkeypatch.setattr(clustering, "_ROWS", 7)
    graph = clustering._graph(x, 5)
    similar = x @ x.T
    torch.testing.assert_close(graph, clustering._joined(similar, 5))
    joined = torch.zeros(50, 50)
    for row in range(50):
        nearest = similar[row].argsort(descending=True)[:5]
        joined[row, nearest] = similar[row, nearest].clamp(min=0)
    torch.testing.assert_close(graph, (joined + joined.T) / 2)


def test_many_windows_in_seconds():
    """A third of an hour; the time of an hour is in the benchmark."""
    x, labels = conversation(2400, 4)
    assert agreement(labels, spectral_clustering(x)) > 0.99


def test_k_means_matches_trying_everything():
    points = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).double()

    def spread(labels: tuple[int, ...]) -> float:
        names = torch.tensor(labels)
        return sum(
            float((points[names == n] - points[names == n].mean(0)).square().sum())
            for n in set(labels)
        )

    best = min(spread(labels) for labels in itertools.product(range(3), repeat=8))
    found = k_means(points, 3, generator=torch.Generator().manual_seed(1), num_starts=20)
    assert spread(tuple(found.tolist())) == pytest.approx(best)
    with pytest.raises(DataError, match="8 points"):
        k_means(points, 9, generator=torch.Generator())


def test_k_means_leaves_no_cluster_empty():
    points = torch.tensor([[0.0]] * 6 + [[1.0]])
    labels = k_means(points, 4, generator=torch.Generator().manual_seed(0))
    assert len(labels.unique()) == 4
