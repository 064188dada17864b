"""The clips of a run that a refresh trains on: which can be used, which are held out, and the batch of a step."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from protos.types import RefreshRequest
from reward_server.errors import TooFewClips
from reward_server.profiles.run_clips import RunClip

HELD_OUT_SHARE = 8  # one clip in this many is held out
MAX_HELD_OUT = 64  # per origin


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """A run's clips by origin. `of` leaves out clips whose shape only one origin has, because it would reveal the
    origin."""

    real: Sequence[RunClip]
    rollouts: Sequence[RunClip]

    @classmethod
    def of(cls, real: Sequence[RunClip], rollouts: Sequence[RunClip], *, at_least: int) -> Buffers:
        """Keep the clips of shapes that both origins have.

        Raises TooFewClips unless each origin has `at_least` such clips.
        """
        shared = {clip.shape for clip in real} & {clip.shape for clip in rollouts}
        kept = [[clip for clip in clips if clip.shape in shared] for clips in (real, rollouts)]
        if min(map(len, kept)) < at_least:
            raise TooFewClips(
                f"{len(kept[0])} real clips of {len(real)} and {len(kept[1])} rollouts of {len(rollouts)} share their "
                f"length and frame size with the other origin, but a refresh needs {at_least} of each; submit real "
                "clips and rollouts of the same length and frame size"
            )
        return cls(real=kept[0], rollouts=kept[1])

    @property
    def smaller(self) -> int:
        """The number of clips of the origin that has fewer."""
        return min(len(self.real), len(self.rollouts))

    def split(self, seed: int, *, copied_first: bool = False) -> tuple[Buffers, Buffers]:
        """Split into clips to train on and held-out clips.

        Whole groups are held out, because the clips of a group resemble each other. If that would leave no training
        clips of an origin, single clips are held out instead. With `copied_first`, groups whose real clip has copies
        are held out before others.
        """
        both = [*self.real, *self.rollouts]
        names = [clip.group_id or f"\0{position}" for position, clip in enumerate(both)]
        for units in (names, [f"\0{position}" for position in range(len(both))]):
            copied = {unit for unit, clip in zip(units, both, strict=True) if copied_first and clip.copies}
            held = self._held_out(units, seed, copied)
            real, rollouts = held[: len(self.real)], held[len(self.real) :]
            if not (all(real) or all(rollouts)):
                break
        trained = Buffers(real=_where(self.real, real, False), rollouts=_where(self.rollouts, rollouts, False))
        return trained, Buffers(real=_where(self.real, real, True), rollouts=_where(self.rollouts, rollouts, True))

    def _held_out(self, units: Sequence[str], seed: int, first: Collection[str]) -> list[bool]:
        """Hold out units in a random order, `first` first, until each origin has its share of held-out clips."""
        origins = [0] * len(self.real) + [1] * len(self.rollouts)
        missing = [_share(len(self.real)), _share(len(self.rollouts))]
        held: set[str] = set()

        def place(unit: str) -> tuple[bool, bytes]:
            return unit not in first, hashlib.sha256(f"{seed}\0{unit}".encode()).digest()

        for unit in sorted(set(units), key=place):
            brings = [origin for origin, name in zip(origins, units, strict=True) if name == unit]
            if any(missing[origin] > 0 for origin in brings):
                held.add(unit)
                for origin in brings:
                    missing[origin] -= 1
        return [unit in held for unit in units]


def batch_of(clips: Buffers, request: RefreshRequest, step: int) -> Buffers:
    """Draw clips of one shape: `clips_per_step` of each origin, or all if there are fewer.

    Both discriminators get the same clips.
    """
    rng = np.random.default_rng((request.seed, step))
    # All clips of an origin and shape may be held out. The other shapes are still used.
    shapes = sorted({clip.shape for clip in clips.real} & {clip.shape for clip in clips.rollouts})
    if not shapes:
        raise TooFewClips(
            f"after one clip in {HELD_OUT_SHARE} is held out, no real clip and rollout of the same length and frame "
            "size are left to train on; score more clips first"
        )
    counts = np.array([sum(clip.shape == shape for clip in [*clips.real, *clips.rollouts]) for shape in shapes])
    shape = shapes[int(rng.choice(len(shapes), p=counts / counts.sum()))]
    real, rollouts = ([clip for clip in some if clip.shape == shape] for some in (clips.real, clips.rollouts))
    return Buffers(
        real=_choose(real, request.clips_per_step, rng), rollouts=_choose(rollouts, request.clips_per_step, rng)
    )


def _choose(clips: Sequence[RunClip], num: int, rng: np.random.Generator) -> list[RunClip]:
    return [clips[i] for i in rng.choice(len(clips), size=min(num, len(clips)), replace=False)]


def _share(num: int) -> int:
    return min(MAX_HELD_OUT, max(1, num // HELD_OUT_SHARE))


def _where(clips: Sequence[RunClip], held: Iterable[bool], wanted: bool) -> list[RunClip]:
    return [clip for clip, is_held in zip(clips, held, strict=True) if is_held is wanted]
