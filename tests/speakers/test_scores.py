"""Cosine and AS-norm against loops; what has no direction is refused."""

from __future__ import annotations

import pytest
import torch

from speechkit.speakers.scores import (
    AdaptiveSNorm,
    cosine_scores,
    pair_scores,
    speaker_means,
    unit_length,
)


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_cosine_is_that_of_torch():
    a, b = some(5, 8), some(7, 8, seed=1)
    want = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(cosine_scores(a, 3 * b), want)
    torch.testing.assert_close(pair_scores(a, b[:5]), want.diagonal())


@pytest.mark.parametrize("top", [2, 6, 50])
def test_as_norm_matches_a_loop(top):
    a, b, cohort = some(4, 6), some(5, 6, seed=1), some(20, 6, seed=2)
    norm = AdaptiveSNorm(cohort, top=top)
    raw = cosine_scores(a, b)
    want = torch.zeros(4, 5, dtype=torch.double)
    for i in range(4):
        for j in range(5):
            parts = []
            for side in (a[i], b[j]):
                scores = sorted(cosine_scores(side[None], cohort)[0].tolist())[-top:]
                mean = sum(scores) / len(scores)
                std = (sum((s - mean) ** 2 for s in scores) / len(scores)) ** 0.5
                parts.append((raw[i, j].item() - mean) / std)
            want[i, j] = sum(parts) / 2
    torch.testing.assert_close(norm.scores(a, b), want)
    torch.testing.assert_close(norm.pair_scores(a, b[:4]), want[:, :4].diagonal())
    torch.testing.assert_close(norm.scores(b, a), want.T)


def test_as_norm_aligns_voices_that_are_like_everybody():
    """Half of the speakers resemble all others: one threshold fits only after normalization."""
    from speechkit.metrics.verification import equal_error_rate

    common = some(1, 16)
    people = some(40, 16, seed=1)
    people[:20] += 3 * common
    cohort = some(200, 16, seed=2)
    cohort[:100] += 3 * common
    first, second = (people + 0.9 * some(40, 16, seed=s) for s in (3, 4))
    targets = torch.eye(40).bool().flatten()
    plain = equal_error_rate(cosine_scores(first, second).flatten(), targets).value
    norm = AdaptiveSNorm(cohort, top=30)
    assert equal_error_rate(norm.scores(first, second).flatten(), targets).value < 0.8 * plain


def test_means_of_speakers_are_those_of_a_loop():
    x = some(9, 4)
    speakers = ["b", "a", "b", "c", "a", "b", "c", "c", "c"]
    means, names = speaker_means(x, speakers)
    assert names == ["b", "a", "c"]
    for mean, name in zip(means, names):
        own = [row / row.norm() for row, s in zip(x, speakers) if s == name]
        torch.testing.assert_close(mean, torch.stack(own).mean(0))


def test_what_has_no_direction_is_refused():
    x = some(3, 4)
    for bad in (0.0, float("nan"), float("inf")):
        broken = x.clone()
        broken[1] = bad
        with pytest.raises(ValueError, match=r"1 of 3 .* number 1"):
            unit_length(broken)
    with pytest.raises(ValueError, match="floating point"):
        unit_length(torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="different sizes"):
        cosine_scores(x, some(3, 5))
    with pytest.raises(ValueError, match="both sides"):
        pair_scores(x, some(2, 4))
    with pytest.raises(ValueError, match="2 speakers for 3"):
        speaker_means(x, ["a", "b"])
    with pytest.raises(ValueError, match="two cohort speakers"):
        AdaptiveSNorm(x[:1])
    with pytest.raises(ValueError, match="copies"):
        AdaptiveSNorm(x[:1].repeat(5, 1)).scores(x, x)
