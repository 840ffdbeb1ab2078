"""The cost tool: its sizes, one quick run, and one real pass in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def load_tool() -> ModuleType:
    path = ROOT / "tools" / "separation_cost.py"
    spec = importlib.util.spec_from_file_location("separation_cost_tool", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.mark.parametrize(
    ("name", "millions"),
    [("conv_tasnet", 5.1), ("dual_path_rnn", 2.6), ("sepformer", 25.7), ("light_sepformer", 8.0)],
)
def test_models_have_names_and_their_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = tool.MODELS[name](False)
    count = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.06)
    assert model.num_sources == 2
    assert tool.LABELS.keys() == tool.MODELS.keys()


def test_a_quick_run_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked = []

    def memory_of(name: str, seconds: float, device: torch.device, *, quick: bool) -> float:
        asked.append((name, seconds, device.type, quick))
        return 100.0 * seconds

    monkeypatch.setattr(tool, "memory_of", memory_of)
    assert tool.main(["--quick", "--repeats", "1", "--out", str(tmp_path)]) == 0
    assert asked == [(name, s, "cpu", True) for name in tool.MODELS for s in (0.1, 0.2)]
    found = json.loads((tmp_path / "separation_cost.json").read_text())
    assert found["device"].startswith("cpu")
    assert found["threads"] == torch.get_num_threads()
    assert [(row["model"], row["seconds"]) for row in found["rows"]] == [a[:2] for a in asked]
    assert all(row["forward_s"] > 0 for row in found["rows"])
    assert [row["memory_mib"] for row in found["rows"]] == [10.0, 20.0] * 4
    assert (tmp_path / "separation_cost.png").read_bytes()[:4] == b"\x89PNG"
    svg = (tmp_path / "separation_cost.svg").read_text()
    assert "peak memory in MiB" in svg
    assert "light SepFormer (" in svg
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2 + len(asked)
    assert "| sepformer | 0." in printed


def test_memory_is_of_a_pass_in_its_own_process() -> None:
    device = torch.device("cpu")
    short, long = (
        tool.memory_of("conv_tasnet", seconds, device, quick=True) for seconds in (4.0, 16.0)
    )
    # The hidden frames alone, 512 float32 every 8 samples, are 8 MiB for 4 s; the weights of the
    # process and torch itself, some 300 MiB, are not in it.
    assert 8 < short < 150
    assert 2 < long / short < 6


def test_the_length_of_the_input() -> None:
    seen = []

    class Model(torch.nn.Module):
        def forward(self, waveform: torch.Tensor, lengths: torch.Tensor) -> None:
            seen.append((tuple(waveform.shape), lengths.tolist(), torch.is_grad_enabled()))

    tool.forward(Model(), 1.5, torch.device("cpu"))()
    assert seen == [((1, 12000), [12000], False)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasnet"], "no model tasnet; there are: conv_tasnet, dual_path_rnn"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--repeats", "0"], "--repeats must be at least 1"),
    ],
)
def test_wrong_commands(arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_device_that_is_not_there(capsys: Any) -> None:
    assert tool.main(["--device", "cuda:99"]) == 1
    assert "cuda" in capsys.readouterr().err
