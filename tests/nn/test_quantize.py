"""Residual vector quantizer, its options, k-means, scalar quantization, codebook use."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from speechkit.nn.quantize import (
    ResidualVectorQuantizer,
    VectorQuantizer,
    codebook_use,
    count_codes,
    draw_num_codebooks,
    kmeans,
    nearest_codes,
)
from speechkit.nn.quantize_scalar import FiniteScalarQuantizer

SIZE = 6


def _quantizer(**options: object) -> ResidualVectorQuantizer:
    torch.manual_seed(0)
    settings = {"latent_size": SIZE, "codebook_size": 16, "num_codebooks": 4, **options}
    return ResidualVectorQuantizer(**settings)  # type: ignore[arg-type]


def _latents(frames: int = 200, items: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(items, frames, SIZE, generator=generator)


def _clusters(count: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    chosen = torch.randint(4, (count,), generator=generator)
    return centers, centers[chosen] + 0.1 * torch.randn(count, 2, generator=generator)


def test_nearest_is_brute_force() -> None:
    vectors, codebook = torch.randn(50, 7), torch.randn(9, 7)
    assert torch.equal(nearest_codes(vectors, codebook), torch.cdist(vectors, codebook).argmin(1))


def test_kmeans_finds_clusters_and_draws_from_its_generator() -> None:
    centers, vectors = _clusters()
    state = torch.get_rng_state()
    found = kmeans(vectors, num_codes=16, generator=torch.Generator().manual_seed(0))
    again = kmeans(vectors, num_codes=16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.codebook, again.codebook)
    assert torch.cdist(centers, found.codebook).min(1).values.max() < 0.2
    assert int(found.counts.sum()) == len(vectors)
    assert torch.equal(torch.bincount(found.codes, minlength=16).float(), found.counts)
    error = (vectors - found.codebook[found.codes]).square().mean()
    worse = kmeans(vectors, num_codes=16, iterations=0, generator=torch.Generator().manual_seed(0))
    assert error < (vectors - worse.codebook[worse.codes]).square().mean()


def test_kmeans_with_fewer_vectors_than_codes() -> None:
    found = kmeans(torch.tensor([[1.0], [2.0]]), num_codes=8)
    assert set(found.codebook.flatten().tolist()) <= {1.0, 2.0}
    with pytest.raises(ValueError, match="k-means needs vectors and codes: 0 and 8"):
        kmeans(torch.zeros(0, 3), num_codes=8)


def test_first_batch_initialises_all_codebooks() -> None:
    quantizer = _quantizer()
    latents = _latents()
    before = quantizer.layers[3].codebook.clone()
    quantizer(latents, num_codebooks=1)
    assert bool(quantizer.initialised)
    assert not torch.equal(quantizer.layers[3].codebook, before)
    errors = [
        float((quantizer.eval()(latents, num_codebooks=n).data - latents).square().mean())
        for n in (1, 2, 3, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.4


@pytest.mark.parametrize(
    "options", [{}, {"codebook_dim": 3}, {"codebook_dim": 3, "cosine": True}], ids=str
)
def test_codes_decode_to_the_quantized_latents(options: dict[str, object]) -> None:
    quantizer = _quantizer(**options)
    latents = _latents()
    for _ in range(2):
        quantizer(latents)
    quantizer.eval()
    for count in (1, 4):
        out = quantizer(latents, num_codebooks=count)
        assert out.codes.shape == (2, count, 200)
        assert torch.equal(quantizer.encode(latents, num_codebooks=count), out.codes)
        assert torch.equal(quantizer.decode(out.codes), out.data)
    if options.get("cosine"):
        lengths = torch.cat([layer.codebook.norm(dim=1) for layer in quantizer.layers])
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(training: bool) -> None:
    batch = _quantizer(kmeans_iterations=0, threshold_dead=0.0).train(training)
    alone = copy.deepcopy(batch)
    latents, lengths = _latents(20), torch.tensor([20, 8])
    latents[1, 8:] = float("nan")
    out = batch(latents, lengths)
    assert not out.data[1, 8:].any()
    assert not out.codes[1, :, 8:].any()
    for i, length in enumerate(lengths):
        one = copy.deepcopy(alone)(latents[i : i + 1, :length])
        torch.testing.assert_close(out.data[i, :length], one.data[0])
        assert torch.equal(out.codes[i, :, :length], one.codes[0])
        torch.testing.assert_close(out.commitment[i], one.commitment[0])
    together = torch.cat([latents[0], latents[1, :8]])[None]
    alone(together)
    for mine, other in zip(batch.buffers(), alone.buffers()):
        torch.testing.assert_close(mine, other)


def test_straight_through_and_commitment_gradients() -> None:
    quantizer = _quantizer(kmeans_iterations=0, threshold_dead=0.0)
    latents = _latents(5).requires_grad_()
    books = [layer.codebook.clone() for layer in quantizer.layers]
    out = quantizer(latents, num_codebooks=2)
    weights = torch.randn(2, 5, SIZE)
    (through,) = torch.autograd.grad((out.data * weights).sum(), latents, retain_graph=True)
    torch.testing.assert_close(through, weights)
    (pull,) = torch.autograd.grad(out.commitment.sum(), latents)
    first = books[0][out.codes[:, 0]]
    second = books[1][out.codes[:, 1]]
    residuals = [latents - first, latents - first - second]
    want = sum(r.square().mean((1, 2)) for r in residuals) / 2
    torch.testing.assert_close(out.commitment, want)  # type: ignore[arg-type]
    torch.testing.assert_close(pull, sum(residuals).detach() / (5 * SIZE))  # type: ignore[union-attr]


def test_projections_learn() -> None:
    quantizer = _quantizer(codebook_dim=3, cosine=True)
    out = quantizer(_latents())
    (out.data.square().mean() + out.commitment.mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantizer.parameters())


def test_averages_follow_their_formula() -> None:
    layer = VectorQuantizer(latent_size=2, codebook_size=3, decay=0.9, threshold_dead=0.0)
    sums, counts = layer.ema_sums.clone(), layer.ema_counts.clone()
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    layer.update(vectors, torch.tensor([0, 0, 2]))
    sums = 0.9 * sums + 0.1 * torch.tensor([[4.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
    counts = 0.9 * counts + 0.1 * torch.tensor([2.0, 0.0, 1.0])
    torch.testing.assert_close(layer.ema_counts, counts)
    torch.testing.assert_close(layer.codebook, sums / counts.unsqueeze(1), atol=1e-4, rtol=1e-4)


def test_dead_codes_come_back() -> None:
    """A codebook far away from the data but for one code ends up used throughout."""
    _, vectors = _clusters(400)
    torch.manual_seed(0)
    layer = VectorQuantizer(latent_size=2, codebook_size=16, decay=0.5)
    with torch.no_grad():
        layer.codebook[1:] += 1000
        layer.ema_sums.copy_(layer.codebook)
    kept = copy.deepcopy(layer)
    kept.threshold_dead = 0.0
    for _ in range(12):
        for one in (layer, kept):
            one.update(vectors, one.nearest(vectors))
    used = [len(one.nearest(vectors).unique()) for one in (layer, kept)]
    assert used[1] == 1
    assert used[0] >= 14


def test_small_batches_do_not_replace_what_is_used() -> None:
    """Five frames for sixteen codes: below the threshold of 2 each, and yet not dead."""
    torch.manual_seed(0)
    layer = VectorQuantizer(latent_size=2, codebook_size=4, decay=0.9)
    layer.ema_counts.fill_(0.5)
    layer.ema_sums.copy_(layer.codebook * 0.5)
    before = layer.codebook.clone()
    layer.update(before[[0, 1, 2, 3]] + 0.0, torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(layer.codebook, before, atol=1e-3, rtol=1e-3)


def test_dropout_draws_from_its_generator() -> None:
    quantizer = _quantizer(dropout=0.5, kmeans_iterations=0)
    latents = _latents(10, items=64)
    state = torch.get_rng_state()
    quantizer.layers.requires_grad_(False)
    for layer in quantizer.layers:
        layer.threshold_dead = 0.0
    out = copy.deepcopy(quantizer)(latents, generator=torch.Generator().manual_seed(5))
    same = copy.deepcopy(quantizer)(latents, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(out.codes, same.codes)
    depths = (out.codes[:, :, 0] >= 0).sum(1)
    assert set(depths.tolist()) == {1, 2, 3, 4}
    assert 0.4 < (depths == 4).float().mean() < 0.8
    torch.testing.assert_close(
        out.data[depths == 2],
        _frozen(quantizer)(latents[depths == 2], num_codebooks=2).data,
    )
    assert (quantizer.eval()(latents).codes >= 0).all()
    torch.testing.assert_close(_frozen(quantizer).decode(out.codes), out.data)


def _frozen(quantizer: ResidualVectorQuantizer) -> ResidualVectorQuantizer:
    return copy.deepcopy(quantizer).eval()


def test_state_resumes_exactly() -> None:
    """Saved after two batches and loaded elsewhere, the third gives the same bits."""
    first, second = _quantizer(), _quantizer()
    for seed in (1, 2):
        first(_latents() * seed)
    state, random = copy.deepcopy(first.state_dict()), torch.get_rng_state()
    want = first(_latents() * 3)
    second.load_state_dict(state)
    torch.set_rng_state(random)
    got = second(_latents() * 3)
    assert torch.equal(got.codes, want.codes)
    assert torch.equal(got.data, want.data)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers()))
    assert not list(first.parameters())


def test_number_of_codebooks_is_drawn_evenly_and_is_checked() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_num_codebooks([2, 4, 8], generator) for _ in range(300)]
    assert all(70 < drawn.count(n) < 130 for n in (2, 4, 8))
    quantizer = _quantizer(kmeans_iterations=0).eval()
    with pytest.raises(ValueError, match="5 codebooks: there are 1 to 4"):
        quantizer.encode(_latents(), num_codebooks=5)
    with pytest.raises(ValueError, match="0 codebooks: there are 1 to 4"):
        quantizer(_latents(), num_codebooks=0)
    with pytest.raises(RuntimeError, match="the codebooks hold random numbers"):
        _quantizer().encode(_latents())


def test_autocast_and_half_change_no_code() -> None:
    quantizer = _quantizer(kmeans_iterations=0).eval()
    latents = _latents()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(latents).codes, quantizer.encode(latents))
        codes = quantizer.encode(latents)
    assert torch.equal(codes, quantizer.encode(latents))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="cosine=True needs codebook_dim"):
        _quantizer(cosine=True)
    with pytest.raises(ValueError, match=r"dropout=1.5 in \[0, 1\]"):
        _quantizer(dropout=1.5)
    with pytest.raises(ValueError, match=r"decay=1.0 must be in \[0, 1\)"):
        _quantizer(decay=1.0)
    with pytest.raises(ValueError, match=r"levels must be .* at least 2: \[8, 1\]"):
        FiniteScalarQuantizer(latent_size=4, levels=(8, 1))


def test_codebook_use() -> None:
    codes = torch.tensor([[[0, 1, 2, 3], [0, 0, 0, -1]], [[0, 1, 9, 9], [0, 0, 9, 9]]])
    counts = count_codes(codes, torch.tensor([4, 2]), codebook_size=10)
    assert counts.sum(1).tolist() == [6, 5]
    use = codebook_use(counts)
    torch.testing.assert_close(use.share, torch.tensor([0.4, 0.1]))
    shares = [2 / 6, 2 / 6, 1 / 6, 1 / 6]
    entropy = -sum(p * math.log(p) for p in shares)
    torch.testing.assert_close(use.perplexity, torch.tensor([math.exp(entropy), 1.0]))
    assert codebook_use(torch.zeros(1, 4)).perplexity.tolist() == [1.0]


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (4,)])
def test_scalar_codes_are_all_reachable_and_decode(levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(latent_size=SIZE, levels=levels, num_codebooks=2).eval()
    every = torch.arange(quantizer.codebook_size).view(1, 1, -1)
    values = quantizer._values(every)
    assert len(values[0].unique(dim=0)) == math.prod(levels)
    assert torch.equal(quantizer._round(values, 1), every)
    assert values.abs().max() == 1
    latents = _latents()
    out = quantizer(latents)
    torch.testing.assert_close(quantizer.decode(quantizer.encode(latents)), out.data)
    bounded = quantizer.project_in(latents).tanh()
    step = 2 / quantizer.steps
    for depth in (1, 2):  # rounded to half a step, of the finer grid with two codebooks
        rounded = quantizer._values(quantizer.encode(latents, num_codebooks=depth))
        limit = step / 2 / quantizer.steps ** (depth - 1) + 1e-5
        assert ((rounded - bounded).abs() <= limit).all()


def test_scalar_gradients_and_padding() -> None:
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(latent_size=SIZE, levels=(5, 4))
    latents = _latents(9).requires_grad_()
    quantizer(latents).data.square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().min() > 0
    assert all(p.grad is not None for p in quantizer.parameters())
    padded = latents.detach().clone()
    padded[1, 4:] = float("nan")
    out = quantizer(padded, torch.tensor([9, 4]))
    assert not out.data[1, 4:].any()
    assert not out.codes[1, :, 4:].any()
    torch.testing.assert_close(out.data[1, :4], quantizer(latents[1:, :4]).data[0])
    assert out.commitment.tolist() == [0.0, 0.0]
