"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)


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
