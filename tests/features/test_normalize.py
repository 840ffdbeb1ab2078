"""Normalisation: statistics over valid frames only, merged over batches and processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from speechkit.features.normalize import GlobalNorm, UtteranceNorm


def _batches(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        lengths = torch.randint(1, 20, (4,), generator=generator)
        x = torch.randn(4, 20, 3, generator=generator) * torch.tensor([1.0, 5.0, 0.1]) - 8.0
        for row, length in zip(x, lengths):
            row[length:] = float("nan")
        made.append((x, lengths))
    return made


def _valid(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([row[:n] for x, lengths in batches for row, n in zip(x, lengths)])


def test_utterance_norm() -> None:
    x, lengths = _batches(1)[0]
    lengths[0], lengths[1] = 20, 1
    x[0] = torch.randn(20, 3) * 7 + 2
    out = UtteranceNorm()(x, lengths)
    torch.testing.assert_close(out[0].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[0].std(0, correction=0), torch.ones(3))
    assert torch.isfinite(out).all()
    assert (out[1] == 0).all()
    for b, n in enumerate(lengths.tolist()):
        alone = UtteranceNorm()(x[b : b + 1, :n], torch.tensor([n]))
        torch.testing.assert_close(out[b, :n], alone[0], atol=1e-4, rtol=1e-4)
    centred = UtteranceNorm(mean_only=True)(x, lengths)
    torch.testing.assert_close(centred[0], x[0] - x[0].mean(0), atol=1e-5, rtol=1e-5)


def test_utterance_norm_of_constant_features_is_finite_with_gradient() -> None:
    x = torch.full((1, 5, 2), 3.0, requires_grad=True)
    out = UtteranceNorm()(x, torch.tensor([5]))
    out.sum().backward()
    assert (out == 0).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_global_norm_collects_the_statistics_of_all_valid_frames() -> None:
    norm, batches = GlobalNorm(num_features=3), _batches()
    for x, lengths in batches:
        assert torch.isfinite(norm(x, lengths)).all()
    valid = _valid(batches)
    torch.testing.assert_close(norm.mean, valid.mean(0))
    torch.testing.assert_close(norm.variance, valid.var(0, correction=0))
    assert int(norm.count) == len(valid)
    assert int(norm.steps) == 5
    norm.eval()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x, lengths = batches[0]
    out = norm(x, lengths)
    expected = (x[0, : lengths[0]] - valid.mean(0)) / valid.std(0, correction=0)
    torch.testing.assert_close(out[0, : lengths[0]], expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in before.items())


def test_global_norm_is_deterministic_and_resumes() -> None:
    batches = _batches()
    first, second = GlobalNorm(num_features=3), GlobalNorm(num_features=3)
    for x, lengths in batches[:2]:
        first(x, lengths)
    second.load_state_dict(first.state_dict())
    for x, lengths in batches[2:]:
        assert torch.equal(first(x, lengths), second(x, lengths))


def test_global_norm_stops_after_update_steps() -> None:
    norm, batches = GlobalNorm(num_features=3, update_steps=2), _batches()
    for x, lengths in batches:
        norm(x, lengths)
    torch.testing.assert_close(norm.mean, _valid(batches[:2]).mean(0))
    assert int(norm.steps) == 2


def test_global_norm_ignores_non_finite_and_empty_batches() -> None:
    norm, (x, lengths) = GlobalNorm(num_features=3), _batches(1)[0]
    norm(x, lengths)
    mean = norm.mean.clone()
    norm(torch.full((1, 4, 3), float("inf")), torch.tensor([4]))
    norm(torch.zeros(1, 4, 3), torch.tensor([0]))
    assert torch.equal(norm.mean, mean)


def test_global_norm_names_a_wrong_size() -> None:
    with pytest.raises(ValueError, match=r"need 3 features, got shape \(1, 2, 4\)"):
        GlobalNorm(num_features=3)(torch.zeros(1, 2, 4), torch.tensor([2]))


@pytest.mark.parametrize("norm", [UtteranceNorm(), GlobalNorm(num_features=3)])
def test_float32_inside_autocast(norm: torch.nn.Module) -> None:
    x, lengths = _batches(1)[0]
    norm.eval()
    expected = norm(x, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(x, lengths), expected)


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = GlobalNorm(num_features=3)
    for x, lengths in _batches(6)[rank::2]:
        norm(x, lengths)
    torch.save(norm.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_global_norm_merges_the_batches_of_all_processes(tmp_path: Path) -> None:
    mp.start_processes(_worker, (str(tmp_path),), nprocs=2, start_method="fork")
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(zero[name], one[name]) for name in zero)
    valid = _valid(_batches(6))
    torch.testing.assert_close(zero["mean"], valid.mean(0))
    torch.testing.assert_close(zero["variance"], valid.var(0, correction=0))
    assert int(zero["count"]) == len(valid)
