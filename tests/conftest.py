"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

torch.set_num_threads(2)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real audio, or skip the test where there is none."""
    candidates = [Path(os.environ["SPEECHKIT_DATA"])] if "SPEECHKIT_DATA" in os.environ else []
    candidates.append(Path(__file__).parents[2] / "shared" / "data")
    for folder in candidates:
        if (folder / "README.md").is_file():
            return folder
    pytest.skip("no real audio: set SPEECHKIT_DATA to the folder that holds it")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small embedded corpus: ``root/{train,dev,test}`` and ``root/manifests``."""
    pytest.importorskip("espeakng_loader")
    from speechkit.datasets import toy

    root = tmp_path_factory.mktemp("toy")
    toy.prepare(root, root / "manifests", num_train=24, num_dev=6, num_test=6)
    return root


@pytest.fixture(scope="session")
def recipe() -> Callable[[str], ModuleType]:
    """Return a function that imports ``recipes/<task>/train.py``."""

    def load(task: str) -> ModuleType:
        name = f"recipe_{task}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / task / "train.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        return sys.modules[name]

    return load
