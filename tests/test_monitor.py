"""Alignments watched over epochs: numbers, warnings, files that stay few, pictures, the page."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from speechkit.data.manifest import DataError
from speechkit.metrics.alignment import attention_diagonality, attention_entropy, blank_rate
from speechkit.monitor import AlignmentMonitor, read_attention
from speechkit.plots import AttentionMap, attention_figure, figure_pixels, pooled
from speechkit.report import write_report
from speechkit.tracking import MAX_PLOTS, Tracker, plot_files

PIECES = ["<blank>", "a", " ", "$x$", "<b>"]
LENGTHS = torch.tensor([8, 12, 6, 10])
TOKEN_LENGTHS = torch.tensor([3, 5, 1, 4])
TOKENS = torch.tensor([[1, 2, 3, 0, 0], [4, 3, 2, 1, 1], [2, 0, 0, 0, 0], [1, 2, 1, 2, 0]])
IDS = ["d", "b", "a", "c"]
DURATIONS = [0.8, 1.2, 0.6, 1.0]


@pytest.fixture(autouse=True)
def _propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    # A run of another test may have taken the log for itself.
    monkeypatch.setattr(logging.getLogger("speechkit"), "propagate", True)


def diagonal() -> Tensor:
    """Give attention that looks along a line, with NaN in the padding."""
    weights = torch.full((4, 6, 12), math.nan)
    for i, (rows, frames) in enumerate(zip((TOKEN_LENGTHS + 1).tolist(), LENGTHS.tolist())):
        place = torch.linspace(0, frames - 1, rows).unsqueeze(1)
        weights[i, :rows, :frames] = (-3 * (torch.arange(frames) - place) ** 2).softmax(dim=1)
    return weights


def flat() -> Tensor:
    return (1.0 / LENGTHS).reshape(4, 1, 1).expand(4, 6, 12)


def feed(monitor: AlignmentMonitor, attention: Tensor, items: list[int]) -> None:
    monitor.add(
        [IDS[i] for i in items], [DURATIONS[i] for i in items], LENGTHS[items],
        attention=attention[items], tokens=TOKENS[items], token_lengths=TOKEN_LENGTHS[items],
        pieces=PIECES,
    )  # fmt: skip


def watched(folder: Path, epochs: int, *, start: int = 1, num_utterances: int = 2) -> Tracker:
    tracker, monitor = Tracker(folder), AlignmentMonitor(num_utterances=num_utterances)
    for epoch in range(start, epochs + 1):
        feed(monitor, diagonal() if epoch > 3 else flat(), [0, 1, 2, 3])
        values = monitor.end(tracker, epoch=epoch, step=10 * epoch)
        tracker.log({"epoch": epoch, "step": 10 * epoch, "train/loss": 1.0}
                    | {f"valid/{k}": v for k, v in values.items()})  # fmt: skip
    tracker.close()
    return tracker


def epochs_kept(folder: Path) -> list[int]:
    return [file.epoch for file in plot_files(folder, "attention")]


def test_numbers_are_means_over_utterances_however_they_are_batched(tmp_path: Path) -> None:
    log_probs = torch.randn(4, 12, 5).log_softmax(dim=-1)
    expected = {
        "blank_rate": float(blank_rate(log_probs, LENGTHS).mean()),
        "attention_diagonality": float(
            attention_diagonality(diagonal(), TOKEN_LENGTHS + 1, LENGTHS).mean()
        ),
        "attention_entropy": float(
            attention_entropy(diagonal(), TOKEN_LENGTHS + 1, LENGTHS).mean()
        ),
    }
    monitor = AlignmentMonitor(num_utterances=0)
    for batches in ([[0, 1, 2, 3]], [[2], [3, 0, 1]]):
        for items in batches:
            feed(monitor, diagonal(), items)
            ids, durations = [IDS[i] for i in items], [DURATIONS[i] for i in items]
            monitor.add(ids, durations, LENGTHS[items], log_probs=log_probs[items])
        values = monitor.end(Tracker(tmp_path), epoch=1, step=1)
        assert values == pytest.approx(expected, abs=1e-6)
    assert monitor.end(Tracker(tmp_path), epoch=1, step=1) == {}  # begun anew
    assert not (tmp_path / "plots").exists()


def test_the_same_utterances_are_kept_whatever_the_order(tmp_path: Path) -> None:
    for name, batches in {"one": [[0, 1, 2, 3]], "two": [[3], [0], [2, 1]]}.items():
        monitor, tracker = AlignmentMonitor(num_utterances=2), Tracker(tmp_path / name)
        for items in batches:
            feed(monitor, diagonal(), items)
        monitor.end(tracker, epoch=1, step=7)
        tracker.close()
    files = [plot_files(tmp_path / name, "attention")[0].path for name in ("one", "two")]
    assert files[0].name == "epoch-0001-step-7.npz"
    first, second = map(read_attention, files)
    assert [item.id for item in first] == [item.id for item in second] == ["a", "b"]
    assert all(np.array_equal(x.weights, y.weights) for x, y in zip(first, second))
    shown = first[1]
    assert shown.pieces == ["<b>", "$x$", "␣", "a", "a", "⟨end⟩"]
    assert (shown.seconds, shown.epoch) == (1.2, 1)
    assert np.abs(shown.weights - diagonal()[1].numpy()).max() < 1 / 255


def test_advice_is_given_once_and_the_finding_every_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = AlignmentMonitor(num_utterances=0)
    blank = torch.zeros(4, 12, 5).index_fill(2, torch.tensor([0]), 1.0)
    for epoch in (1, 2):
        feed(monitor, flat(), [0, 1, 2, 3])
        monitor.add(IDS, DURATIONS, LENGTHS, log_probs=blank)
        monitor.end(Tracker(tmp_path), epoch=epoch, step=epoch)
    feed(monitor, diagonal(), [0, 1, 2, 3])
    monitor.end(Tracker(tmp_path), epoch=3, step=3)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.split(" is ")[0] for line in lines] == [
        "epoch 1: the CTC output", "epoch 1: the attention",
        "epoch 2: the CTC output", "epoch 2: the attention",
    ]  # fmt: skip
    assert ["language model" in line for line in lines] == [False, True, False, False]
    assert ["plateau" in line for line in lines] == [True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "without tokens"),
        (
            {"tokens": TOKENS[:, :4]},
            r"shape \(4, 6, 12\) does not belong to tokens of shape \(4, 4",
        ),
    ],
)
def test_attention_that_is_not_of_the_tokens(changes: dict[str, Tensor], message: str) -> None:
    given = {"attention": diagonal(), "tokens": TOKENS, "token_lengths": TOKEN_LENGTHS, **changes}
    with pytest.raises(ValueError, match=message):
        AlignmentMonitor().add(IDS, DURATIONS, LENGTHS, pieces=PIECES, **given)
    with pytest.raises(ValueError, match="-1"):
        AlignmentMonitor(num_utterances=-1)


def test_files_stay_few_and_include_the_first_and_the_last_epoch(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for epoch in range(1, 101):
        tracker.arrays("attention", {"x": np.zeros(1)}, epoch=epoch, step=5 * epoch)
        kept = epochs_kept(tmp_path)
        assert len(kept) <= MAX_PLOTS
        assert (kept[0], kept[-1]) == (1, epoch)
    assert kept == [1, 16, 32, 48, 64, 80, 96, 100]


def test_a_resumed_run_has_the_same_files_and_curves(tmp_path: Path) -> None:
    """Killed after epoch 9 was drawn, taken up from the checkpoint of epoch 7."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    watched(whole, 10, num_utterances=1)
    watched(killed, 9, num_utterances=1)
    assert epochs_kept(killed) == [1, 2, 4, 6, 8, 9]
    Tracker(killed).rewind(step=70)
    assert epochs_kept(killed) == [1, 2, 4, 6]
    watched(killed, 10, start=8, num_utterances=1)
    for name in ("plots/attention/*.npz", "metrics.jsonl"):
        one, other = (
            {path.name: path.read_bytes() for path in folder.glob(name)}
            for folder in (whole, killed)
        )
        assert one == other
        assert one


def test_tensorboard_has_a_picture_an_epoch_and_none_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched(tmp_path, 3)
    tracker = Tracker(tmp_path)
    tracker.rewind(step=10)
    tracker.image("attention/a", np.zeros((4, 6, 3), np.uint8), 20)
    tracker.log({"epoch": 2, "step": 20, "train/loss": 2.0})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    images = events.Images("attention/a")
    assert [image.step for image in images] == [10, 20]
    assert (images[1].height, images[1].width) == (4, 6)
    assert images[0].height > 60
    assert [scalar.step for scalar in events.Scalars("train/loss")] == [10, 20]


def test_runs_stay_small(tmp_path: Path) -> None:
    """Three utterances of 20 s, one frame each 10 ms, with noise that does not compress."""
    monitor, tracker = AlignmentMonitor(), Tracker(tmp_path)
    monitor.add(
        ["a", "b", "c"], [20.0] * 3, torch.tensor([2000] * 3),
        attention=torch.rand(3, 101, 2000).softmax(dim=-1),
        tokens=torch.ones(3, 100, dtype=torch.int64), token_lengths=torch.tensor([100] * 3),
        pieces=PIECES,
    )  # fmt: skip
    monitor.end(tracker, epoch=1, step=1)
    tracker.close()
    assert plot_files(tmp_path, "attention")[0].path.stat().st_size < 80_000
    assert sum(p.stat().st_size for p in (tmp_path / "tensorboard").iterdir()) < 200_000


def test_pooling_keeps_the_sums() -> None:
    weights = torch.rand(3, 1000).softmax(dim=1).numpy()
    assert pooled(weights).shape == (3, 250)
    assert pooled(weights).sum(axis=1) == pytest.approx(1.0)
    assert pooled(weights[:, :256]) is not None
    assert pooled(weights[:, :256]).shape == (3, 256)


def test_epochs_are_drawn_on_one_scale_with_labels_and_seconds() -> None:
    sharp = AttentionMap("u", 9, np.eye(5, dtype=np.float32), ["a", "$x$", "b", "␣", "c"], 2.5, 1.0)
    dull = AttentionMap("u", 1, np.full((5, 5), 0.2, np.float32), sharp.pieces, 2.5, -0.001)
    figure = attention_figure([dull, sharp])
    first, second, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == [
        "epoch 1, diagonality 0.00", "epoch 9, diagonality 1.00",
    ]  # fmt: skip
    assert first.images[0].norm is second.images[0].norm
    assert first.get_xlim() == (0, 2.5)
    assert [text.get_text() for text in first.get_yticklabels()] == list(sharp.pieces)
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first label is on top
    assert bar.get_ylabel() == "weight"
    pixels = figure_pixels(attention_figure([sharp], width=4.0), dpi=50)
    assert pixels.shape[1:] == (200, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) <= 64
    with pytest.raises(ValueError, match="at least one"):
        attention_figure([])


def test_the_page_shows_first_middle_and_last_epoch(tmp_path: Path) -> None:
    watched(tmp_path, 5)
    text = write_report(tmp_path).read_text()
    assert "<h2>Attention</h2>" in text
    assert text.count('<figure class="wide"') == 2
    for name, seconds in (("a", "0.60"), ("b", "1.20")):
        start = text.index(f'aria-label="Attention of {name} over {seconds} s: epoch 1, ')
        label = text[start : text.index(">", start)].split('" ')[0]
        assert [part.split(",")[0] for part in label.split("; ")][1:] == ["epoch 3", "epoch 5"]
    assert "&lt;b&gt;" in text  # a label that looks like a tag
    assert ">$x$<" in text
    assert "At the last epoch" not in text
    assert write_report(tmp_path).read_text() == text


def test_the_page_says_what_flat_attention_means(tmp_path: Path) -> None:
    watched(tmp_path, 1)
    text = write_report(tmp_path).read_text()
    assert "At the last epoch the attention is flat" in text
    assert text.count("epoch 1, diagonality") == 4  # no epoch beside itself: heading and label
    assert "<h2>Attention</h2>" not in write_report(_without_plots(tmp_path)).read_text()


def _without_plots(folder: Path) -> Path:
    (folder / "plots").rename(folder / "elsewhere")
    return folder


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"no archive"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = watched(tmp_path, 1).folder / "plots" / "attention" / "epoch-0001-step-10.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"epoch-0001-step-10\.npz: not a file of attention maps"):
        write_report(tmp_path)


WORKER = """
import sys
from pathlib import Path
import torch
from speechkit import distributed
from speechkit.monitor import AlignmentMonitor
from speechkit.tracking import Tracker

with distributed.session() as place:
    monitor, tracker = AlignmentMonitor(num_utterances=2), Tracker(Path(sys.argv[1]) / "run")
    # Rank 1 has two utterances, rank 0 one: a mean of means would differ.
    names = (["m"], ["k", "z"])[place.rank]
    weights = torch.full((len(names), 2, 2), 0.5) if place.rank else torch.eye(2).unsqueeze(0)
    monitor.add(names, [1.0] * len(names), torch.full((len(names),), 2), attention=weights,
                tokens=torch.ones(len(names), 1, dtype=torch.int64),
                token_lengths=torch.ones(len(names), dtype=torch.int64), pieces=["_", "a"])
    values = monitor.end(tracker, epoch=1, step=1)
    (Path(sys.argv[1]) / f"rank{place.rank}.txt").write_text(repr(values))
    tracker.close()
"""


def test_two_processes_give_one_result_and_one_file(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    texts = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    assert eval(texts[0]) == pytest.approx(
        {"attention_diagonality": 1 / 3, "attention_entropy": 2 / 3}
    )
    (file,) = plot_files(tmp_path / "run", "attention")
    assert [item.id for item in read_attention(file.path)] == ["k", "m"]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
