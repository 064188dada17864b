"""Derives seeds from the run's seed and from what they are for.

They depend on nothing else, so there is no generator state to save, and they are the same on every machine.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *parts: object) -> int:
    """A seed in 0..2^63-1 from `seed` and the text of `parts`."""
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *parts: object) -> torch.Generator:
    """A torch generator on the CPU with the seed `derived_seed(seed, *parts)`."""
    return torch.Generator().manual_seed(derived_seed(seed, *parts))
