"""A worker whose scorer takes no time, for benchmarks of what is around scoring: `python -m benchmarks.light_worker`.

Queue, leases, decode children and refreshes are the real ones. A clip's reward is the level of its first pixel, so a
reward that went to another clip is seen. A refresh trains nothing: it publishes a new name. MOTION_REWARD_* holds the
settings, and LIGHT_VERSION the version that is loaded. A clip's `policy_version` may ask for a fault:

    sleep:S     scoring its batch takes S seconds longer
    exit        the worker that scores it dies
    crash       the child that decodes it dies
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protos.types import (
    Bounds,
    Dynamics,
    Input,
    Limits,
    Logits,
    Model,
    Provenance,
    RefreshResponse,
    Reward,
    Separation,
    Source,
    Submission,
)
from protos.types import DiscriminatorRefresh as Figures
from reward_server import log
from reward_server.decoding.children import decode_pool
from reward_server.decoding.sampling import Sampling
from reward_server.queue.refreshes import Refresh
from reward_server.queue.run_store import Version
from reward_server.scorer import Scored
from reward_server.serving.signals import Stop
from reward_server.settings import Settings
from reward_server.worker import refresher
from reward_server.worker.refresh_training import Made, RefreshTraining, Start, version_name
from reward_server.worker.scoring import num_threads
from reward_server.worker.worker import run_worker

VERSION = "LIGHT_VERSION"  # the name of the environment variable
SAMPLING = Sampling(area_px=64 * 96, min_frames=2)
BOUNDS = Bounds(min=-1000.0, max=1000.0)
LIMITS = Limits(
    max_bytes=10**7, max_frames=400, max_frame_pixels=4096 * 2304, max_duration_s=60, max_clips_per_request=64
)
NO_MOTION = Dynamics(total_motion=0, camera_motion=0, object_motion=0, dynamic_degree=0, tracks_alive=0)
SAME = Figures(losses=(0.0,), before=Separation(auc=0.5, logit_gap=0.0), after=Separation(auc=0.5, logit_gap=0.0))
KILL_S = 0.1  # after a child is given the clip that kills it
FEATURES = b"motion" * 40  # what is kept of a clip for refreshes


@dataclass(frozen=True, kw_only=True)
class LightVersion:
    """The discriminators of a run's version: its name."""

    version: str


@dataclass(frozen=True, kw_only=True)
class LightClip:
    """A prepared clip."""

    level: float
    submission: Submission
    version: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, 3, 8, 8)

    @property
    def cost(self) -> float:
        return 128.0


class LightScorer:
    """The parts of a Pipeline that a worker needs."""

    discriminators = profile = None

    def __init__(self, settings: Settings, version: str) -> None:
        self._max_decode_s = settings.max_decode_s
        self._pool = decode_pool(settings, max(1, num_threads(settings) // 2))
        self.model = Model(
            profile="embedded",
            discriminator_version=version,
            weights_digest="light",
            preprocessing_digest="light",
            bounds=BOUNDS,
            weights=Logits(instantaneous=0.5, long_term=0.5),
            limits=LIMITS,
            input=Input(
                fps=12, window_frames=8, min_frames=2, num_tracks=0, area_px=6144, containers=(), tensor_forms=()
            ),
        )

    def discriminators_of(self, data: bytes) -> LightVersion:
        return LightVersion(version=data.decode())

    def prepare(self, submission: Submission, discriminators: LightVersion | None = None) -> LightClip:
        if submission.context.policy_version == "crash":
            self._level(submission)  # so that there is a child
            self._signal_children(signal.SIGSTOP)  # so that it cannot be done too soon
            threading.Timer(KILL_S, self._signal_children, (signal.SIGKILL,)).start()
        level = self._level(submission)
        version = discriminators.version if discriminators else self.model.discriminator_version
        return LightClip(level=level, submission=submission, version=version)

    def score(self, prepared: Sequence[LightClip]) -> list[Scored]:
        for clip in prepared:
            fault, _, seconds = clip.submission.context.policy_version.partition(":")
            if fault == "exit":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "sleep":
                time.sleep(float(seconds))
        return [Scored(result=self._reward(clip), features=(FEATURES,)) for clip in prepared]

    def _level(self, submission: Submission) -> float:
        """The level of the first pixel. Raises what is wrong with the clip."""
        assert self._pool
        decoded = self._pool.decode(submission, SAMPLING, LIMITS, self._max_decode_s)
        return float(decoded.windows[0].clip.frames[0, 0, 0, 0])

    def _signal_children(self, number: signal.Signals) -> None:
        assert self._pool
        for pid in self._pool.pids():
            os.kill(pid, number)

    def _reward(self, clip: LightClip) -> Reward:
        source = Source(frames=8, fps=12, duration_s=0.7, height_px=8, width_px=8, codec="raw")
        provenance = Provenance(
            profile="embedded",
            discriminator_version=clip.version,
            weights_digest="light",
            preprocessing_digest="light",
            query_seed=clip.submission.context.query_seed or 0,
            num_tracks=0,
            source=source,
            fps_used=12,
            frames_used=8,
            height_px=8,
            width_px=8,
            mean_visibility=1,
            mean_confidence=1,
        )
        return Reward(
            combined=clip.level,
            instantaneous=clip.level,
            long_term=clip.level,
            logits=Logits(instantaneous=clip.level, long_term=clip.level),
            clipped=False,
            bounds=BOUNDS,
            windows=(),
            provenance=provenance,
            dynamics=NO_MOTION,
        )


class LightTraining(RefreshTraining):
    """Makes a version of nothing but a name."""

    def train(self, refresh: Refresh, start: Start, halt: threading.Event) -> Made:
        base, run_id = self._scorer.model.discriminator_version, refresh.request.run_id
        name = version_name(base, run_id, start.number, uuid.uuid4().hex[:8])
        return Made(
            version=Version(name=name, digest="light", number=start.number, base=base, preprocessing_digest="light"),
            discriminators=name.encode(),
            training=name.encode(),
            cut_ms=start.cut_ms,
            response=RefreshResponse(
                discriminator_version=name,
                weights_digest="light",
                previous_version=start.previous.name if start.previous else base,
                steps=refresh.request.steps,
                num_real=len(start.real),
                num_rollouts=len(start.rollouts),
                num_held_out=0,
                instantaneous=SAME,
                long_term=SAME,
                seconds=0.0,
            ),
        )


async def main() -> None:
    settings, stop = Settings(), Stop()
    log.configure(settings.log_level)
    swapped: Any = refresher
    swapped.RefreshTraining = LightTraining  # scoring is what is left out here, and so is training
    with stop.on_signals():
        await run_worker(settings, LightScorer(settings, os.environ.get(VERSION, "light-1")), stop.asked)


if __name__ == "__main__":
    asyncio.run(main())
