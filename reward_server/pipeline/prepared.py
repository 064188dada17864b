"""Defines a decoded clip that waits for its batch, and how batches are made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protos.types import (
    Context,
    Submission,
)
from reward_server.decoding.decode import DecodedClip
from reward_server.profiles.discriminators import (
    Discriminators,
)


@dataclass(frozen=True, kw_only=True)
class PreparedClip:
    """A decoded clip that waits for its batch."""

    decoded: DecodedClip
    context: Context
    discriminators: Discriminators  # the version that will score the clip
    query_seed: int
    decode_ms: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Frames, height and width of the clip's windows. Clips of one shape share a batch."""
        frames, _, height, width = self.decoded.windows[0].clip.frames.shape
        return frames, height, width

    @property
    def cost(self) -> float:
        """Pixels (frames x height x width) of all the clip's windows."""
        frames, height, width = self.shape
        return float(len(self.decoded.windows) * frames * height * width)


def query_seed(submission: Submission) -> int:
    """Seed of a clip's query points.

    This is the context's seed if it has one. Otherwise the clips of a group share a seed, and a clip without a
    group gets a seed from its bytes.
    """
    context = submission.context
    if context.query_seed is not None:
        return context.query_seed
    shared = f"{context.run_id}\0{context.group_id}".encode() if context.group_id else submission.payload
    return int.from_bytes(hashlib.sha256(shared).digest()[:8], "big")


def batches_by_cost(
    bucket: Sequence[tuple[int, PreparedClip]], max_cost: float
) -> Iterable[Sequence[tuple[int, PreparedClip]]]:
    """Split (position, clip) pairs into consecutive batches of at most `max_cost` pixels; a larger clip goes alone."""
    batch: list[tuple[int, PreparedClip]] = []
    for item in bucket:
        if batch and sum(other.cost for _, other in [*batch, item]) > max_cost:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
