"""Randomness as a function of (seed, epoch, utterance id), not of worker or order."""

from __future__ import annotations

import hashlib

import torch


def item_seed(seed: int, epoch: int, item_id: str) -> int:
    """Derive the seed of one item in one epoch.

    Parameters
    ----------
    seed : int
        The run's seed.
    epoch : int
        The epoch, counted as the run counts it.
    item_id : str
        The utterance's id. A second, independent stream of the same item takes another name,
        for example ``f"{id}/specaugment"``.

    Returns
    -------
    int
        In ``[0, 2**63)``: the same on every machine, process and Python version.

    Examples
    --------
    >>> item_seed(1, 0, "a") == item_seed(1, 0, "a")
    True
    >>> len({item_seed(*key) for key in [(1, 0, "a"), (1, 1, "a"), (2, 0, "a"), (1, 0, "b")]})
    4
    """
    # Python's own hash() differs from process to process; the separators keep (1, 11) from (11, 1).
    key = f"{int(seed)}\x1f{int(epoch)}\x1f{item_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def item_generator(seed: int, epoch: int, item_id: str) -> torch.Generator:
    """Return a CPU generator that belongs to one item in one epoch.

    Parameters
    ----------
    seed, epoch, item_id
        As in `item_seed`.

    Returns
    -------
    torch.Generator
        Freshly seeded; the global generator is not touched.

    Examples
    --------
    >>> first = torch.rand(3, generator=item_generator(0, 4, "utt-1"))
    >>> again = torch.rand(3, generator=item_generator(0, 4, "utt-1"))
    >>> torch.equal(first, again)
    True
    """
    generator = torch.Generator()
    generator.manual_seed(item_seed(seed, epoch, item_id))
    return generator
