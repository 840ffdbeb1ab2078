"""PLDA against Gaussian densities written out, and EM against the likelihood it must raise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from speechkit.data.errors import DataError
from speechkit.metrics.verification import equal_error_rate
from speechkit.speakers.plda import Plda, fit_plda
from speechkit.speakers.scores import cosine_scores


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(size: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    root = torch.randn(size, size + 2, generator=generator(seed), dtype=torch.double)
    return scale * root @ root.T / size


def toy(size: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean = torch.randn(size, generator=generator(5), dtype=torch.double)
    return mean, covariance(size, 1), covariance(size, 2, 0.4)


def draw(counts: list[int], size: int = 4, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    mean, between, within = toy(size)
    speakers = [s for s, count in enumerate(counts) for _ in range(count)]
    normal = torch.randn(len(counts) + len(speakers), size, generator=generator(seed)).double()
    voices = mean + normal[: len(counts)] @ torch.linalg.cholesky(between).T
    x = voices[speakers] + normal[len(counts) :] @ torch.linalg.cholesky(within).T
    return x, speakers


def log_likelihood(x, speakers, mean, between, within) -> float:
    """Each speaker's embeddings are one Gaussian vector whose blocks are told by the model."""
    total = 0.0
    rows = torch.tensor(speakers)
    for speaker in rows.unique():
        own = x[rows == speaker]
        n = len(own)
        joint = torch.kron(torch.ones(n, n).double(), between)
        joint += torch.kron(torch.eye(n).double(), within)
        total += float(MultivariateNormal(mean.repeat(n), joint).log_prob(own.flatten()))
    return total


@pytest.mark.parametrize("rank", [4, 1])
def test_scores_are_ratios_of_joint_densities(rank):
    mean, between, within = toy()
    if rank < 4:  # fewer speakers than dimensions give such a covariance
        between = torch.outer(between[0], between[0])
    plda = Plda(mean, between, within)
    a, b = draw([3])[0], draw([5], seed=1)[0]
    total = between + within
    one = torch.cat([torch.cat([total, between]), torch.cat([between, total])], dim=1)
    alone = MultivariateNormal(mean, total)
    want = torch.empty(3, 5, dtype=torch.double)
    for i in range(3):
        for j in range(5):
            both = MultivariateNormal(mean.repeat(2), one).log_prob(torch.cat([a[i], b[j]]))
            want[i, j] = both - alone.log_prob(a[i]) - alone.log_prob(b[j])
    torch.testing.assert_close(plda.scores(a, b), want)
    torch.testing.assert_close(plda.pair_scores(a, b[:3]), want[:, :3].diagonal())


def test_each_round_raises_the_likelihood():
    counts = [1, 2, 3, 5, 1, 4, 2, 2]
    x, speakers = draw(counts)
    values = []
    for rounds in range(8):
        plda = fit_plda(x, speakers, num_iterations=rounds, length_norm=False, floor=0.0)
        values.append(log_likelihood(x, speakers, plda.mean, plda.between, plda.within))
    assert all(later > earlier for earlier, later in itertools.pairwise(values)), values


def test_finds_the_parameters_that_made_the_data():
    counts = [2 + s % 5 for s in range(3000)]
    x, speakers = draw(counts)
    plda = fit_plda(x, speakers, length_norm=False)
    for found, want in zip((plda.mean, plda.between, plda.within), toy()):
        assert float((found - want).norm() / want.norm()) < 0.06


def test_beats_the_cosine_where_voices_differ_in_few_directions():
    """Most of the variance is within speakers: the cosine sees it, PLDA learned to overlook it."""
    size, people = 20, 120
    scale = torch.cat([torch.full((4,), 2.0), torch.full((16,), 0.1)])
    voices = torch.randn(2 * people, size, generator=generator(0)) * scale
    noise = torch.cat([torch.full((4,), 0.6), torch.full((16,), 1.2)])
    x = voices[:, None] + noise * torch.randn(2 * people, 6, size, generator=generator(1))
    x = x + 3.0  # and they are not centered
    speakers = [s for s in range(people) for _ in range(6)]
    plda = fit_plda(x[:people].flatten(0, 1), speakers)
    first, second = x[people:, 0], x[people:, 1]
    targets = torch.eye(people).bool().flatten()
    cosine = equal_error_rate(cosine_scores(first, second).flatten(), targets).value
    ours = equal_error_rate(plda.scores(first, second).flatten(), targets).value
    assert ours < 0.5 * cosine


def test_fewer_embeddings_than_dimensions():
    x, speakers = draw([3, 3, 3], size=30)
    scores = fit_plda(x, speakers).scores(x, x)
    assert bool(scores.isfinite().all())
    same = torch.tensor([[a == b for a in speakers] for b in speakers])
    assert scores[same].min() > scores[~same].max()


def test_the_file_gives_back_the_same(tmp_path):
    x, speakers = draw([3] * 10)
    for length_norm in (True, False):
        plda = fit_plda(x, speakers, length_norm=length_norm)
        plda.save(tmp_path / "plda.safetensors")
        again = Plda.load(tmp_path / "plda.safetensors")
        assert torch.equal(again.scores(x, x), plda.scores(x, x))
    (tmp_path / "bad").write_bytes(b"no safetensors")
    for name in ("bad", "none"):
        with pytest.raises(DataError, match="not a PLDA model"):
            Plda.load(tmp_path / name)


def test_length_norm_forgets_the_length():
    x, speakers = draw([3] * 10)
    plda = fit_plda(x, speakers)
    assert plda.center is not None
    stretched = plda.center + 7 * (x - plda.center)
    torch.testing.assert_close(plda.scores(stretched, x), plda.scores(x, x))
    lengths = plda.transform(x).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, math.sqrt(4)))


def test_what_cannot_be_fitted_is_refused():
    x, speakers = draw([3, 3])
    with pytest.raises(DataError, match="1 speakers with up to 6"):
        fit_plda(x, [0] * 6)
    with pytest.raises(DataError, match="6 speakers with up to 1"):
        fit_plda(x, list(range(6)))
    with pytest.raises(ValueError, match="5"):
        fit_plda(x, speakers[:5])
    with pytest.raises(ValueError, match="finite"):
        fit_plda(x * float("nan"), speakers)
    mean, between, within = toy()
    with pytest.raises(ValueError, match="within"):
        Plda(mean, between, -within)
    with pytest.raises(ValueError, match="between"):
        Plda(mean, -between, within)
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        Plda(mean, between, within).scores(x[:, :3], x)
