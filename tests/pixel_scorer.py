"""Provides a small scorer with the pipeline's interface: it scores tensor clips by their pixels, and fails on demand.

The logits are the mean and the largest absolute difference of neighbouring frames, so a test can compute the reward of
every clip. A clip's `policy_version` may ask for a failure: "raise", "exit" (of the whole process, like a crash in
native code), "stuck", or "slow:SECONDS". Run as a script, it is a worker process on the Redis of the environment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from protos.codec import clip_to_tensor, tensor_to_clip
from protos.types import (
    Bounds,
    Clip,
    Context,
    ContractError,
    Dynamics,
    Input,
    Limits,
    Logits,
    Media,
    Model,
    Provenance,
    Reward,
    Source,
    Submission,
    Timings,
)
from reward_server.errors import BadTensor, NotReady
from reward_server.scorer import Scored
from reward_server.serving.signals import Stop
from reward_server.settings import Settings
from reward_server.worker.worker import run_worker

BOUNDS = Bounds(min=-10, max=10)
MODEL = Model(
    profile="embedded",
    discriminator_version="pixels-1",
    weights_digest="none",
    preprocessing_digest="none",
    bounds=BOUNDS,
    weights=Logits(instantaneous=1, long_term=1),
    limits=Limits(max_bytes=10**6, max_frames=99, max_frame_pixels=10**6, max_duration_s=9, max_clips_per_request=64),
    input=Input(fps=12, window_frames=4, min_frames=2, num_tracks=0, area_px=64, containers=(), tensor_forms=()),
)


def moving_clip(step: int, height_px: int = 8) -> Clip:
    """A clip in which every pixel rises by `step` per frame. Both logits are `step`."""
    levels = (np.arange(4) * step).astype(np.uint8)
    return Clip(frames=np.broadcast_to(levels[:, None, None, None], (4, 3, height_px, 8)).copy(), fps=12)


def moving(step: int, height_px: int = 8, **context: object) -> Submission:
    """`moving_clip` as a submission."""
    payload = clip_to_tensor(moving_clip(step, height_px))
    return Submission(payload=payload, media=Media.TENSOR, context=Context(**context))  # type: ignore[arg-type]


def pixel_dynamics(clip: Clip) -> Dynamics:
    """Dynamics that stand for motion: the mean absolute difference of neighbouring frames, half of it by the camera."""
    step = float(np.abs(np.diff(clip.frames.astype(np.float64), axis=0)).mean())
    return Dynamics(
        total_motion=step,
        camera_motion=step / 2,
        object_motion=step / 2,
        dynamic_degree=float(step > 0),
        tracks_alive=1,
    )


@dataclass(frozen=True, kw_only=True)
class Pixels:
    clip: Clip
    context: Context

    @property
    def shape(self) -> tuple[int, ...]:
        return self.clip.frames.shape

    @property
    def cost(self) -> float:
        return float(self.clip.frames[:, 0].size)


@dataclass
class PixelScorer:
    """`batches` keeps the shapes of every call of `score`. `release` lets clips that are "held" go on."""

    model: Model = MODEL
    batches: list[list[tuple[int, ...]]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def discriminators(self) -> None:
        """None, because the rewards are formulas and there is nothing to load or to train."""

    profile = discriminators

    def discriminators_of(self, data: bytes) -> None:
        raise NotReady("pixels have one version")

    def prepare(self, submission: Submission, discriminators: None = None) -> Pixels:
        try:
            return Pixels(clip=tensor_to_clip(submission.payload), context=submission.context)
        except ContractError as error:
            raise BadTensor(str(error)) from error

    def score(self, prepared: Sequence[Pixels]) -> list[Scored]:
        self.batches.append([item.shape for item in prepared])
        for item in prepared:
            self._fault(item.context.policy_version)
        return [Scored(result=self._reward(item)) for item in prepared]

    def _fault(self, wanted: str) -> None:
        if wanted == "raise":
            raise RuntimeError("as asked")
        if wanted == "exit":
            os.kill(os.getpid(), signal.SIGKILL)
        if wanted == "held":
            assert self.release.wait(60)
        if wanted.startswith("slow:"):
            time.sleep(float(wanted.removeprefix("slow:")))

    def _reward(self, item: Pixels) -> Reward:
        steps = np.abs(np.diff(item.clip.frames.astype(np.float64), axis=0))
        logits = Logits(instantaneous=float(steps.mean()), long_term=float(steps.max()))
        num, _, height, width = self_shape = item.shape
        assert len(self_shape) == 4
        source = Source(
            frames=num, fps=item.clip.fps, duration_s=num / item.clip.fps, height_px=height, width_px=width, codec="raw"
        )
        return Reward(
            combined=(logits.instantaneous + logits.long_term) / 2,
            instantaneous=logits.instantaneous,
            long_term=logits.long_term,
            logits=logits,
            clipped=False,
            bounds=BOUNDS,
            windows=(),
            dynamics=pixel_dynamics(item.clip),
            provenance=Provenance(
                profile="embedded",
                discriminator_version=self.model.discriminator_version,
                weights_digest="none",
                preprocessing_digest="none",
                query_seed=0,
                num_tracks=0,
                source=source,
                fps_used=item.clip.fps,
                frames_used=num,
                height_px=height,
                width_px=width,
                mean_visibility=1,
                mean_confidence=1,
                timings=Timings(decode_ms=1, motion_ms=2, discriminator_ms=3),
            ),
        )


async def main() -> None:
    stop = Stop()
    with stop.on_signals():
        await run_worker(Settings(), PixelScorer(), stop.asked)


if __name__ == "__main__":
    asyncio.run(main())
