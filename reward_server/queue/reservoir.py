"""Names the clips of a run's reservoir, and chooses those that a refresh trains on (lua/shared/reservoir.lua).

The draws are hashes of names. So the same clips give the same sample, whatever worker scored them and in what order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

GROUP_BITS = 44  # of a group's hash, so that a score in Redis is exact


@dataclass(frozen=True, kw_only=True)
class KeptClip:
    """A clip of a run's reservoir: its name, its parts in order, and whether it is of an earlier buffer."""

    name: str
    parts: tuple[bytes, ...] = field(repr=False)
    older: bool


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A clip's place in the draw: its name (16 hex digits and the job), and the hash of its group."""

    name: str
    group: int

    @classmethod
    def of(cls, run_id: str, job_id: str, group_id: str, clip_key: str) -> Drawn:
        """Draw by the clip's own key if it has one, which is the same after a restart, else by its job.

        A clip without a group is a group of its own.
        """
        key = clip_key or job_id
        group = _hash(run_id, "group", group_id) if group_id else _hash(run_id, "alone", key)
        return cls(name=_hash(run_id, "clip", key)[:16] + job_id, group=int(group, 16) % 2**GROUP_BITS)


def chosen(
    newer: Sequence[str], older: Sequence[str], *, most: int, share: float, at_least: int
) -> tuple[list[str], list[str]]:
    """The newer and the older clips that a refresh trains on, both given in the order of the reservoir.

    At most `share` of them are older ones, unless there are fewer than `at_least` newer ones. `most` limits their
    number; 0 is no limit.
    """
    if len(newer) < at_least:
        return list(newer)[: most or None], list(older)[: max(0, most - len(newer)) if most else None]
    num_older = min(len(older), round(share / (1 - share) * len(newer)))
    if most:
        num_older = min(num_older, max(round(share * most), most - len(newer)))
    return list(newer)[: most - num_older if most else None], list(older)[:num_older]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
