"""The global random generators: seeded, taken into a checkpoint and put back."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "seed_everything", "set_random_state"]

logger = logging.getLogger(__name__)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Take the state of every global generator: python, numpy, torch, each CUDA device.

    Returns
    -------
    dict[str, Any]
        Plain values and tensors, which ``torch.load(weights_only=True)`` opens.

    Examples
    --------
    >>> state = random_state()
    >>> first = torch.rand(3), random.random(), np.random.rand()
    >>> set_random_state(state)
    >>> torch.equal(first[0], torch.rand(3)) and first[1:] == (random.random(), np.random.rand())
    True
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`random_state` took.

    Parameters
    ----------
    state : Mapping[str, Any]
        From :func:`random_state`, loaded to any device. CUDA devices in excess on either side are
        passed over with a warning.

    Examples
    --------
    >>> set_random_state(random_state())
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    saved = state["numpy"]
    keys = saved["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state(
        (saved["name"], keys, saved["position"], saved["has_gauss"], saved["gauss"])
    )
    torch.set_rng_state(state["torch"].cpu())
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices != len(state["cuda"]):
        logger.warning(
            "the random state was saved with %d CUDA devices and there are %d: the run goes on, "
            "not bit-identically",
            len(state["cuda"]),
            devices,
        )
    for device, one in zip(range(devices), state["cuda"]):
        torch.cuda.set_rng_state(one.cpu(), device)
