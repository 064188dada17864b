"""Seeds that depend on what they are for and on nothing else: no state to save, the same on every machine."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *parts: object) -> int:
    """In 0..2^63-1."""
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *parts: object) -> torch.Generator:
    """On the CPU."""
    return torch.Generator().manual_seed(derived_seed(seed, *parts))
